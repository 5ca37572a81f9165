"""The read-out channel: information through Gaussian noise added at the measured layer alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ibscan.measures.activations import input_weights, is_saturated, label_status, layer_status, layers_in_turn
from ibscan.numerics.mixture import collapsed, gaussian_cap, pairwise_bounds, readout_information
from ibscan.types import At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["Cell", "ReadoutInformation", "readout_cell"]

# Cells of one (checkpoint, layer, noise), in the order they are stored.
FIELDS = ("xt", "xt_se", "xt_lower", "xt_upper", "ty", "ty_se", "cap")


@dataclass(frozen=True)
class ReadoutInformation:
    """I(X; T+Z) and I(T+Z; Y) of the deterministic layer T with Gaussian noise Z at that layer.

    Args:
        noise: Standard deviations, > 0, activation units.
        tolerance: Target half width of the 95 % interval, nats.
        max_draws: Draws of one cell at most.
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728; bounds of Kolchinsky and Tracey 2017.
    """

    noise: tuple[float, ...] = (0.1,)
    tolerance: float = 0.05
    max_draws: int = 65536
    at: At = "post"
    samples: int | None = 4096

    name: ClassVar[str] = "mi_readout"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("mi_readout_xt",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "mi_readout_xt", "I(X; T+Z)", "nat", "information of the layer's noisy read-out about the input", ("noise",)
        ),
        Quantity(
            "mi_readout_ty", "I(T+Z; Y)", "nat", "information of the layer's noisy read-out about the label", ("noise",)
        ),
        Quantity(
            "mi_readout_cap",
            "cap of I(X; T+Z)",
            "nat",
            "smallest proven upper bound: H(X), the Gaussian of the same covariance, or the pairwise one",
            ("noise",),
        ),
    )

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: of each."""
        return True

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """The noise levels."""
        return {"noise": self.noise}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,
        layers: Sequence[int] | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint at every noise level.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled: they are the population.
            streams: Standard normals, common to checkpoints and noise levels.
            layers: Those to measure, None for all; of others there is nothing.

        Returns:
            Values with Monte-Carlo standard errors, pairwise bounds and caps; nats.
        """
        weights, ceiling = input_weights(probe)
        joint = torch.as_tensor(weights, device=network.device)
        shape = (network.size, len(network.layers), len(self.noise))
        cells = {field: np.full(shape, np.nan) for field in FIELDS}
        draws = np.full(shape, np.nan)
        status = np.full(shape, Status.OK, dtype=np.int8)
        for layer, values in layers_in_turn(network, probe.x, self.at, layers):
            for c in range(network.size):
                for k, noise in enumerate(self.noise):
                    place = (c, layer, k)
                    cell = readout_cell(
                        values[c], joint, noise, ceiling, layer, streams, self.tolerance, self.max_draws
                    )
                    status[place], draws[place] = cell.status, cell.draws
                    for field, number in zip(FIELDS, cell.numbers, strict=True):
                        cells[field][place] = number
        labelled = label_status(status, labelled=probe.y is not None)
        if probe.y is None:
            cells["ty"][:], cells["ty_se"][:] = np.nan, np.nan
        capped = np.where(np.isin(status, (Status.DEAD, Status.NONFINITE)), status, Status.OK).astype(np.int8)
        return {
            "mi_readout_xt": Estimate(
                cells["xt"],
                status,
                stderr=cells["xt_se"],
                lower=cells["xt_lower"],
                upper=cells["xt_upper"],
                draws=draws,
            ),
            "mi_readout_ty": Estimate(cells["ty"], labelled, stderr=cells["ty_se"]),
            "mi_readout_cap": Estimate(cells["cap"], capped),
        }


@dataclass(frozen=True)
class Cell:
    """One (checkpoint, layer, noise): numbers in the order of FIELDS, and the draws behind them."""

    status: Status
    numbers: tuple[float, ...]
    draws: float


def readout_cell(
    values: torch.Tensor,
    joint: torch.Tensor,
    noise: float,
    ceiling: float,
    layer: int,
    streams: Streams,
    tolerance: float,
    max_draws: int,
) -> Cell:
    """Return the read-out channel of one layer's values.

    Args:
        values: Of one checkpoint, shape (N, D), float64.
        joint: Joint weights of rows and classes, shape (N, C).
        noise: Standard deviation, > 0.
        ceiling: H(X), nats.
        layer: Index of the layer, for its streams.
        streams: Standard normals.
        tolerance: Target half width, nats.
        max_draws: Draws at most.
    """
    state = layer_status(values)
    if state is not Status.OK:
        dead = state is Status.DEAD
        return Cell(state, (0.0 if dead else math.nan,) * len(FIELDS), 0.0 if dead else math.nan)
    # Centred before anything else, so that a constant offset of the units costs no digits.
    centres, weights, owner = collapsed(values - values.mean(0), joint)
    share = weights.sum(1)

    def normals(draw: int) -> torch.Tensor:
        stream = streams.generator(ReadoutInformation.name, layer, draw)
        return torch.as_tensor(stream.standard_normal(tuple(values.shape)), device=values.device)

    lower, upper = pairwise_bounds(centres, share, noise)
    cap = min(ceiling, gaussian_cap(centres, share, noise), upper)
    found = readout_information(
        centres,
        weights,
        noise,
        normals,
        tolerance=tolerance,
        max_draws=max_draws,
        owner=owner,
        gap=max(0.0, cap - lower),
    )
    status = Status.SATURATED if is_saturated(found.xt, ceiling) else Status.OK
    return Cell(
        status if found.resolved else Status.UNRESOLVED,
        (found.xt, found.xt_se, lower, upper, found.ty, found.ty_se, cap),
        float(found.draws * found.strata),
    )
