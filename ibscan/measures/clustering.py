"""Clustering of representations: distances within and between classes, and class-mean geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure, Sizes
from ibscan.core.network import DecidingNetwork, WeightedNetwork
from ibscan.core.option import option
from ibscan.core.quantity import DISTANCE_BIN, Quantity
from ibscan.core.records import At, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.shared import AT, ROWS, SAMPLES

if TYPE_CHECKING:
    import torch

    from ibscan.measures.driver import LayerValues

__all__ = ["Clustering"]

BINS = 100
PAPYAN = "Papyan, Han, Donoho 2020, arXiv 2008.08186, section 2"
GOLDFELD = "Goldfeld et al. 2019, arXiv 1810.05728, section 5"
MEANS = "mu_c the mean of class c, mu_G the unweighted mean of the C class means present"


# How far the scores may be, relatively, from the last weight times the hidden layer's post: more than float32 rounding.
SCORE_TOLERANCE = 1e-4


class ClassifyingNetwork(DecidingNetwork, WeightedNetwork, Protocol):
    """A network with decisions and with weights."""


@dataclass(frozen=True)
class Clustering(Measure):
    """Histograms and means of pairwise distances, neural-collapse statistics, nearest-mean errors.

    Args:
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.
    """

    at: At = option("post", AT)
    samples: int | None = option(ROWS, SAMPLES)

    name: ClassVar[str] = "clustering"
    verb: ClassVar[str] = "cluster"
    required_keys: ClassVar[tuple[str, ...]] = ("distance_edge_high",)
    source: ClassVar[str] = PAPYAN
    caveat: ClassVar[str] = "It is of the rows of the probe: a sample that lost a class has no mean of it."
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "distance_within",
            "pairs within",
            "1",
            "pairs of rows of one class",
            (DISTANCE_BIN,),
            counted=True,
            default_shown=False,
            formula="#{i < j : y_i = y_j, LOW <= ||t_i - t_j|| < HIGH}",
            source=GOLDFELD,
        ),
        Quantity(
            "distance_between",
            "pairs between",
            "1",
            "pairs of rows of two classes",
            (DISTANCE_BIN,),
            counted=True,
            default_shown=False,
            formula="#{i < j : y_i != y_j, LOW <= ||t_i - t_j|| < HIGH}",
            source=GOLDFELD,
        ),
        Quantity(
            "distance_edge_low",
            "edge",
            "activation units",
            "lower edge of the distance bin",
            (DISTANCE_BIN,),
            counted=True,
            default_shown=False,
            formula="k/100 of the largest distance, k from 0",
            source=GOLDFELD,
        ),
        Quantity(
            "distance_edge_high",
            "edge",
            "activation units",
            "upper edge of the distance bin",
            (DISTANCE_BIN,),
            counted=True,
            default_shown=False,
            formula="(k+1)/100 of the largest distance, k from 0",
            source=GOLDFELD,
        ),
        Quantity(
            "distance_within_mean",
            "d within",
            "activation units",
            "mean distance of rows of one class",
            formula="mean over i < j with y_i = y_j of ||t_i - t_j||",
            source=GOLDFELD,
            caveat="It grows with the scale of the layer; compare it with the mean distance between classes.",
        ),
        Quantity(
            "distance_between_mean",
            "d between",
            "activation units",
            "mean distance of rows of two classes",
            formula="mean over i < j with y_i != y_j of ||t_i - t_j||",
            source=GOLDFELD,
            caveat="It grows with the scale of the layer; compare it with the mean distance within classes.",
        ),
        Quantity(
            "nc1",
            "NC1",
            "1",
            "within-class over between-class spread, tr(Sigma_W pinv(Sigma_B)) / C",
            formula="tr(Sigma_W pinv(Sigma_B)) / C, Sigma_W the mean over classes of the covariance within, "
            f"Sigma_B that of the class means; {MEANS}",
        ),
        Quantity(
            "nc2_equinorm",
            "NC2 norm",
            "1",
            "std over mean of the distances of class means from their mean",
            formula=f"std_c ||mu_c - mu_G|| / mean_c ||mu_c - mu_G||; {MEANS}",
        ),
        Quantity(
            "nc2_equiangle",
            "NC2 angle",
            "1",
            "mean |cos + 1/(C-1)| between class means about their mean",
            formula=f"mean over c != c' of |cos(mu_c - mu_G, mu_c' - mu_G) + 1/(C-1)|; {MEANS}",
        ),
        Quantity(
            "nc3",
            "NC3",
            "1",
            "distance of the last layer's weight from the centred class means of what feeds it, each of norm 1",
            formula="|| W / ||W||_F - M / ||M||_F ||_F at the last hidden layer, W the weight of the layer it feeds, "
            f"row c of M = mu_c - mu_G; {MEANS}",
            caveat="It is there where the last hidden layer's post is what a linear output is made of, every label "
            "value is in the sample, and has a unit.",
            table="neural collapse",
        ),
        Quantity(
            "nc4",
            "NC4",
            "1",
            "share of rows whose network decision is not the nearest class mean",
            formula="#{rows : argmax of the output != argmin_c ||t - mu_c||} / N, at the last hidden layer",
        ),
        Quantity(
            "nearest_mean_error",
            "NM error",
            "1",
            "share of rows nearer to the mean of another class",
            formula="#{rows : min_c ||t - mu_c|| < ||t - mu_y||} / N",
        ),
    )

    @property
    def coordinates(self) -> Mapping[str, Sequence[int]]:
        """The 100 distance bins, whose edges differ between checkpoints and layers."""
        return {"distance_bin": range(BINS)}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: every pair of rows counts."""
        from ibscan.measures.work import PAIR_UNIT

        pairs = sizes.rows**2 / 2
        return sum(4e-3 + pairs * (1.2e-8 + 2 * PAIR_UNIT * layer.width) for layer in sizes.wanted)

    def __call__(
        self,
        network: ClassifyingNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Layers | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint; exact.

        Returns:
            Counts and edges (activation units), arrays (C, L, B), and statistics, arrays (C, L).
        """
        import numpy as np
        import torch

        from ibscan.measures.driver import measure_each_layer
        from ibscan.measures.scores import decisions

        if probe.y is None:
            classes = torch.zeros(len(probe.x), dtype=torch.int64, device=network.device)
            return measure_each_layer(
                self, network, probe, partial(_distances, classes=classes, labelled=False), layers
            )
        # The sample may lack a class; class means are of those present.
        present, member = np.unique(probe.y, return_inverse=True)
        classes = torch.as_tensor(member, device=network.device)
        decided = decisions(network, probe)
        hidden_wanted = layers is None or network.hidden in layers
        has_nc3 = decided is not None and hidden_wanted and len(present) == len(probe.labels)
        output_layers = _output_layers(network, probe, self.at) if has_nc3 else []

        def measure_layer(data: LayerValues) -> dict[str, Estimate]:
            found = _distances(data, classes, labelled=True)
            if len(present) < 2 or data.status is Status.NONFINITE:
                return found
            # The network's decisions are compared with class means of its last hidden layer alone.
            own = None if decided is None or data.index != network.hidden else decided[data.checkpoint]
            found |= _class_mean_statistics(data, classes, torch.as_tensor(present, device=network.device), own)
            if own is not None and output_layers:
                found |= _weight_duality(data, classes, output_layers, own)
            return found

        return measure_each_layer(self, network, probe, measure_layer, layers)


def _distances(data: LayerValues, classes: torch.Tensor, *, labelled: bool) -> dict[str, Estimate]:
    """Return histograms and means of the distances of all pairs of rows; without labels only the edges."""
    from ibscan.numerics.geometry.distances import distance_histogram

    if data.status is Status.NONFINITE:
        return {}
    histogram = distance_histogram(data.values, classes, BINS)
    edges = histogram.edges.cpu().numpy()
    found = {"distance_edge_low": Estimate(edges[:-1], None), "distance_edge_high": Estimate(edges[1:], None)}
    if not labelled:
        return found
    return found | {
        "distance_within": Estimate(histogram.within.cpu().numpy(), None),
        "distance_between": Estimate(histogram.between.cpu().numpy(), None),
        "distance_within_mean": _scalar(data, histogram.within_mean),
        "distance_between_mean": _scalar(data, histogram.between_mean),
    }


def _class_mean_statistics(
    data: LayerValues, classes: torch.Tensor, present: torch.Tensor, decided: torch.Tensor | None
) -> dict[str, Estimate]:
    """Return the statistics of class means; `decided` (N,) are the network's decisions, -1 if not finite."""
    import torch

    from ibscan.measures.driver import scalar_estimate
    from ibscan.numerics.geometry.class_means import class_geometry

    geometry = class_geometry(data.values, classes, len(present))
    found = {
        "nc1": _scalar(data, geometry.nc1),
        "nc2_equinorm": _scalar(data, geometry.equinorm),
        "nc2_equiangle": _scalar(data, geometry.equiangle),
        "nearest_mean_error": _scalar(data, float((geometry.nearest != classes).to(torch.float64).mean())),
    }
    if decided is not None:
        disagreement = float((present[geometry.nearest] != decided).to(torch.float64).mean())
        undecided = bool((decided < 0).any())
        found["nc4"] = scalar_estimate(math.nan, Status.NONFINITE) if undecided else _scalar(data, disagreement)
    return found


def _output_layers(network: ClassifyingNetwork, probe: Probe, at: At) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the weight (C, classes, D) and pre (C, N, classes) of every affine layer that may be the output layer."""
    from ibscan.measures.driver import layer_values

    if network.hidden is None or at != "post":
        return []
    holds, found = network.affine(probe.x), []
    for layer in range(network.hidden + 1, len(network.layers)):
        weight = network.weight(layer) if holds[layer] else None
        if weight is not None and weight.positions == 1 and weight.matrix.shape[1] == len(probe.labels):
            found.append((weight.matrix, layer_values(network, probe.x, layer, "pre")))
    return found


def _weight_duality(
    data: LayerValues,
    classes: torch.Tensor,
    output_layers: list[tuple[torch.Tensor, torch.Tensor]],
    decided: torch.Tensor,
) -> dict[str, Estimate]:
    """Return NC3 of the output layer: the one whose scores are its weight times the layer's post, if there is one."""
    from ibscan.measures.driver import scalar_estimate
    from ibscan.numerics.geometry.class_means import self_duality

    if bool((decided < 0).any()):
        return {"nc3": scalar_estimate(math.nan, Status.NONFINITE)}
    for weight, scores in ((weights[data.checkpoint], pre[data.checkpoint]) for weights, pre in output_layers):
        if weight.shape[1] == data.values.shape[1] and bool((scores.argmax(1) == decided).all()):
            bias = scores - data.values @ weight.mT
            if bool((bias - bias[0]).abs().max() <= SCORE_TOLERANCE * (scores - scores[0]).abs().max()):
                return {"nc3": _scalar(data, self_duality(data.values, classes, weight))}
    return {}


def _scalar(data: LayerValues, number: float) -> Estimate:
    """Return a number as an estimate, not measured if it is not finite: class means coincide, or there is no pair."""
    from ibscan.measures.driver import scalar_estimate

    if math.isfinite(number):
        return scalar_estimate(number, data.status)
    return scalar_estimate(math.nan, Status.DEAD if data.status is Status.DEAD else Status.NOT_MEASURED)
