"""Binned information: the entropy of a layer cut into cells, which measures clustering."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from ibscan.measures.activations import input_weights, is_saturated, label_status, layer_status, layers_in_turn
from ibscan.numerics.cells import cell_entropy, equal_cells, grid_cells
from ibscan.types import At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["BinnedInformation"]

Cut = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BinnedInformation:
    """H(bin T) over the probe and I(bin T; Y): what past work reported as information.

    Args:
        bins: Numbers of equal cells over the range.
        widths: Cell widths of a grid with an edge at 0, activation units.
        limits: The range for `bins`; None takes the activation's own where it has one, else the layer's range on the
            probe at that checkpoint.
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.

    Source:
        Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 (the quantity); Goldfeld et al. 2019 (that it sees clustering).
    """

    bins: tuple[int, ...] = (30,)
    widths: tuple[float, ...] = ()
    limits: tuple[float, float] | None = None
    at: At = "post"
    samples: int | None = 4096

    name: ClassVar[str] = "mi_binned"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("mi_binned_xt",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("mi_binned_xt", "H(bin T)", "nat", "entropy of the binned layer over the probe", ("binning",)),
        Quantity("mi_binned_ty", "I(bin T; Y)", "nat", "information of the binned layer about the label", ("binning",)),
        Quantity("mi_binned_cells", "cells", "1", "occupied cells", ("binning",), counted=True),
        Quantity("mi_binned_width", "cell width", "activation units", "width of a cell", ("binning",)),
        Quantity(
            "mi_binned_outside",
            "share outside",
            "1",
            "share of values outside the range, counted in its end cells",
            ("binning",),
            default_shown=False,
        ),
    )

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: of each."""
        return True

    @property
    def coordinates(self) -> Mapping[str, Sequence[str]]:
        """Names of the binnings, the range in them where it was given."""
        given = "" if self.limits is None else f" on {_short(self.limits[0])}:{_short(self.limits[1])}"
        return {"binning": [f"{k} bins{given}" for k in self.bins] + [f"width {_short(w)}" for w in self.widths]}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,  # noqa: ARG002
        layers: Sequence[int] | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint for every binning; exact, nothing is random.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled: they are the population.
            streams: Not used.
            layers: Those to measure, None for all; of others there is nothing.

        Returns:
            Entropies in nats, occupied cells, widths in activation units, shares outside a stated range.
        """
        ceiling = input_weights(probe)[1]
        labels = None if probe.y is None else torch.as_tensor(probe.y, device=network.device)
        classes = len(probe.labels) if probe.y is not None else 1
        shape = (network.size, len(network.layers), len(self.bins) + len(self.widths))
        xt, ty, width, outside = (np.full(shape, np.nan) for _ in range(4))
        cells = np.full(shape, -1, dtype=np.int64)
        status = np.full(shape, Status.OK, dtype=np.int8)
        for layer, values in layers_in_turn(network, probe.x, self.at, layers):
            for c in range(network.size):
                state = layer_status(values[c])
                status[c, layer] = state
                if state is Status.NONFINITE:
                    continue
                for k, (cut, step, beyond) in enumerate(self._cuts(values[c], network.layers[layer])):
                    found = cell_entropy(values[c], labels, classes, cut)
                    place = (c, layer, k)
                    # Rounding may leave -1e-16 where the entropy is 0.
                    xt[place], ty[place] = max(0.0, found.entropy), max(0.0, found.label_information)
                    cells[place], width[place], outside[place] = found.occupied, step, beyond
                    if state is Status.OK and is_saturated(found.entropy, ceiling):
                        status[place] = Status.SATURATED
        if labels is None:
            ty[:] = np.nan
        sound = np.where(status == Status.NONFINITE, status, Status.OK).astype(np.int8)
        return {
            "mi_binned_xt": Estimate(xt, status),
            "mi_binned_ty": Estimate(ty, label_status(status, labelled=labels is not None)),
            "mi_binned_cells": Estimate(cells, None),
            "mi_binned_width": Estimate(width, sound),
            "mi_binned_outside": Estimate(outside, sound),
        }

    def _cuts(self, values: torch.Tensor, layer: Layer) -> list[tuple[Cut, float, float]]:
        """Return for every binning what gives the cells, their width, and the share of values outside the range."""
        found: list[tuple[Cut, float, float]] = []
        if self.bins:
            lowest, highest = (float(end) for end in values.aminmax())
            low, high = self.limits or (layer.post_range if self.at == "post" else None) or (lowest, highest)
            beyond = 0.0
            if high > low and (lowest < low or highest > high):
                beyond = float(((values < low) | (values > high)).double().mean())
            for count in self.bins:
                cut = partial(equal_cells, low=low, high=high, bins=count)
                wide = math.isinf(high - low)
                found.append((cut, high / count - low / count if wide else (high - low) / count, beyond))
        return found + [(partial(grid_cells, width=width), width, 0.0) for width in self.widths]


def _short(number: float) -> str:
    # Six digits read well, but two widths that differ in the seventh are two binnings.
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
