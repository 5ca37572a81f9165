"""Clustering of representations: distances within and between classes, and class-mean geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ibscan.measures.activations import layer_status, layers_in_turn
from ibscan.measures.fit import decisions
from ibscan.numerics.distances import distance_histogram
from ibscan.numerics.geometry import class_geometry
from ibscan.types import Array, At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["Clustering"]

BINS = 100
MEASURED = (
    "distance_within_mean",
    "distance_between_mean",
    "nc1",
    "nc2_equinorm",
    "nc2_equiangle",
    "nc4",
    "nearest_mean_error",
)


@dataclass(frozen=True)
class Clustering:
    """Histograms and means of pairwise distances, neural-collapse statistics, nearest-mean errors.

    Args:
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.

    Source:
        Goldfeld et al. 2019, section 5 (distances); Papyan, Han, Donoho 2020, arXiv 2008.08186 (collapse).
    """

    at: At = "post"
    samples: int | None = 4096

    name: ClassVar[str] = "clustering"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("distance_edge_high",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "distance_within", "pairs within", "1", "pairs of rows of one class", ("distance_bin",), True, True, False
        ),
        Quantity(
            "distance_between",
            "pairs between",
            "1",
            "pairs of rows of two classes",
            ("distance_bin",),
            True,
            True,
            False,
        ),
        Quantity(
            "distance_edge_low",
            "edge",
            "activation units",
            "lower edge of the distance bin",
            ("distance_bin",),
            True,
            True,
            False,
        ),
        Quantity(
            "distance_edge_high",
            "edge",
            "activation units",
            "upper edge of the distance bin",
            ("distance_bin",),
            True,
            True,
            False,
        ),
        Quantity("distance_within_mean", "d within", "activation units", "mean distance of rows of one class"),
        Quantity("distance_between_mean", "d between", "activation units", "mean distance of rows of two classes"),
        Quantity("nc1", "NC1", "1", "within-class over between-class spread, tr(Sigma_W pinv(Sigma_B)) / C"),
        Quantity("nc2_equinorm", "NC2 norm", "1", "std over mean of the distances of class means from their mean"),
        Quantity("nc2_equiangle", "NC2 angle", "1", "mean |cos + 1/(C-1)| between class means about their mean"),
        Quantity("nc4", "NC4", "1", "share of rows whose network decision is not the nearest class mean"),
        Quantity("nearest_mean_error", "NM error", "1", "share of rows nearer to the mean of another class"),
    )

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: of each."""
        return True

    @property
    def coordinates(self) -> Mapping[str, Sequence[int]]:
        """The 100 distance bins; their edges are a checkpoint's and layer's own."""
        return {"distance_bin": range(BINS)}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,  # noqa: ARG002
        layers: Sequence[int] | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint; exact, nothing is random.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled.
            streams: Not used.
            layers: Those to measure, None for all; of others there is nothing.

        Returns:
            Counts, edges (activation units) and statistics.
        """
        shape = (network.size, len(network.layers))
        found = {key: np.full(shape, np.nan) for key in MEASURED}
        status = {key: np.full(shape, Status.NOT_MEASURED, dtype=np.int8) for key in MEASURED}
        counts = np.full((2, *shape, BINS), -1, dtype=np.int64)
        edges = np.full((*shape, BINS + 1), np.nan)
        labels = np.zeros(len(probe.x), dtype=np.int64) if probe.y is None else probe.y
        # A sample may have lost a class; class means are taken of those present.
        present, member = np.unique(labels, return_inverse=True)
        classes = torch.as_tensor(member, device=network.device)
        decided = decisions(network, probe)
        for layer, values in layers_in_turn(network, probe.x, self.at, layers):
            for c in range(network.size):
                place = (c, layer)
                if layer_status(values[c]) is Status.NONFINITE:
                    for key in MEASURED:
                        status[key][place] = Status.NONFINITE
                    continue
                histogram = distance_histogram(values[c], classes, BINS)
                edges[place] = histogram.edges.cpu().numpy()
                if probe.y is None:
                    continue
                counts[:, c, layer] = histogram.within.cpu().numpy(), histogram.between.cpu().numpy()
                numbers = {
                    "distance_within_mean": histogram.within_mean,
                    "distance_between_mean": histogram.between_mean,
                }
                if len(present) > 1:
                    numbers |= _geometry(values[c], classes, present, None if decided is None else decided[c])
                if layer != network.hidden:
                    numbers.pop("nc4", None)
                dead = layer_status(values[c]) is Status.DEAD
                for key, number in numbers.items():
                    if np.isfinite(number):
                        found[key][place], status[key][place] = number, Status.DEAD if dead else Status.OK
                    else:  # coinciding class means, no pair of that kind, or beyond the largest number
                        status[key][place] = Status.DEAD if dead else Status.NOT_MEASURED
                if "nc4" in numbers and decided is not None and bool((decided[c] < 0).any()):
                    found["nc4"][place], status["nc4"][place] = np.nan, Status.NONFINITE
        return {
            "distance_within": Estimate(counts[0], None),
            "distance_between": Estimate(counts[1], None),
            "distance_edge_low": Estimate(edges[..., :-1], None),
            "distance_edge_high": Estimate(edges[..., 1:], None),
        } | {key: Estimate(found[key], status[key]) for key in MEASURED}


def _geometry(
    values: torch.Tensor, classes: torch.Tensor, present: Array, decided: torch.Tensor | None
) -> dict[str, float]:
    geometry = class_geometry(values, classes, len(present))
    numbers = {
        "nc1": geometry.nc1,
        "nc2_equinorm": geometry.equinorm,
        "nc2_equiangle": geometry.equiangle,
        "nearest_mean_error": float((geometry.nearest != classes).to(torch.float64).mean()),
    }
    if decided is not None:
        nearest = torch.as_tensor(present, device=values.device)[geometry.nearest]
        numbers["nc4"] = float((nearest != decided).to(torch.float64).mean())
    return numbers
