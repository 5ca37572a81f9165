"""Binned information: the entropy of a layer's values after binning, which measures clustering."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure, Situation, Sizes
from ibscan.core.network import LayeredNetwork
from ibscan.core.option import MEASURE, RARE, Option, at_least, number, option, positive, whole
from ibscan.core.quantity import BINNING, Quantity
from ibscan.core.records import At, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.errors import UsageError
from ibscan.measures.shared import AT, BEYOND_Y, GIVEN_Y, ROWS, SAMPLES

if TYPE_CHECKING:
    import torch

    from ibscan.measures.driver import LayerValues

__all__ = ["BinnedInformation", "parse_range"]


def parse_range(flag: str, given: Any) -> Any:  # noqa: ANN401 - text, a pair, or None
    """Parse the text LO:HI; return anything else unchanged.

    Raises:
        UsageError: The text is not a pair of numbers.
    """
    if not isinstance(given, str):
        return given
    low, _, high = given.partition(":")
    try:
        if "_" in given:  # Python would take 1_0 for 10
            raise ValueError
        return float(low), float(high)
    except ValueError:
        raise UsageError(f"{flag} {given}: expected LO:HI, such as -1:1.") from None


def _check_range(flag: str, given: Any) -> None:  # noqa: ANN401 - whatever was given
    if not isinstance(given, tuple | list) or len(given) != 2 or not all(isinstance(end, Real) for end in given):
        raise UsageError(f"{flag} {given}: expected LO:HI, such as -1:1.")
    low, high = given
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"{flag} {low}:{high}: expected LO:HI, finite, with LO < HI.")


def _needs_bins(given: Mapping[str, Any]) -> None:
    if given.get("bin_range") is not None and given.get("bin_width") and not given.get("bins"):
        raise UsageError("--bin-range is the range of --bins, and only --bin-width was asked for; add --bins K.")


def _bins_or_widths(value: tuple[int, ...], situation: Situation) -> tuple[int, ...]:
    # Widths replace the default number of bins.
    only_widths = situation.given.get("bin_width") and not situation.given.get("bins")
    return () if only_widths else value or BinnedInformation.bins


BINS = Option(
    "Equal cells over the activation's range; repeatable. Default: {default}.",
    MEASURE,
    metavar="K",
    several=True,
    parse=whole,
    check=at_least(1),
    settle=_bins_or_widths,
    place=3,
)
WIDTHS = Option(
    "Cells of a fixed width; repeatable.",
    RARE,
    "bin_width",
    metavar="W",
    several=True,
    parse=number,
    check=positive,
    place=4,
)
LIMITS = Option(
    "The range of --bins.",
    RARE,
    "bin_range",
    metavar="LO:HI",
    read=parse_range,
    check=_check_range,
    against=_needs_bins,
    place=5,
)


@dataclass(frozen=True)
class BinnedInformation(Measure):
    """H(bin T) over the probe and I(bin T; Y): what past work reported as information.

    Args:
        bins: Numbers of equal bins over the range.
        widths: Bin widths of a grid with an edge at 0, activation units.
        limits: The range for `bins`; None takes the activation's own range if it has one, else the range of the layer's
            values on the probe at that checkpoint.
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.
    """

    bins: tuple[int, ...] = option((30,), BINS)
    widths: tuple[float, ...] = option((), WIDTHS)
    limits: tuple[float, float] | None = option(None, LIMITS)
    at: At = option("post", AT)
    samples: int | None = option(ROWS, SAMPLES)

    name: ClassVar[str] = "mi_binned"
    verb: ClassVar[str] = "mi"
    required_keys: ClassVar[tuple[str, ...]] = ("mi_binned_xt",)
    source: ClassVar[str] = (
        "Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 (the quantity); Goldfeld et al. 2019, arXiv 1810.05728 (that it "
        "sees clustering)"
    )
    caveat: ClassVar[str] = (
        "It does not estimate I(X; T): of a deterministic network it is the entropy of the cells, and measures "
        "clustering. Wide layers and narrow cells saturate it at H(X)."
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "mi_binned_xt",
            "H(bin T)",
            "nat",
            "entropy of the binned layer over the probe",
            (BINNING,),
            formula="H(bin T) = -sum_k p_k ln p_k, p_k the share of rows in cell k, a cell being one bin of every unit",
        ),
        Quantity(
            "mi_binned_ty",
            "I(bin T; Y)",
            "nat",
            "information of the binned layer about the label",
            (BINNING,),
            formula="I(bin T; Y) = H(bin T) - sum_y p(y) H(bin T | y)",
        ),
        Quantity(
            "mi_binned_xt_given_y",
            "H(bin T | Y)",
            "nat",
            "entropy of the binned layer that its label does not tell, H(bin T) - I(bin T; Y)",
            (BINNING,),
            formula="H(bin T | Y) = H(bin T) - I(bin T; Y) = sum_y p(y) H(bin T | y)",
            caveat=GIVEN_Y,
            table=BEYOND_Y,
        ),
        Quantity(
            "mi_binned_cells",
            "cells",
            "1",
            "occupied cells",
            (BINNING,),
            counted=True,
            formula="#{k : p_k > 0}",
        ),
        Quantity(
            "mi_binned_width",
            "cell width",
            "activation units",
            "width of a cell",
            (BINNING,),
            formula="(HI - LO) / K for K bins over the range LO to HI, or the width asked for",
            caveat="Where the range is the layer's own on the probe it moves, and checkpoints cannot be compared.",
        ),
        Quantity(
            "mi_binned_outside",
            "share outside",
            "1",
            "share of values outside the range, counted in its end cells",
            (BINNING,),
            default_shown=False,
            formula="#{(row, unit) : t < LO or t > HI} / (N D)",
        ),
    )

    @property
    def coordinates(self) -> Mapping[str, Sequence[str]]:
        """Names of the binnings, with the range if it was given."""
        given = "" if self.limits is None else f" on {_short(self.limits[0])}:{_short(self.limits[1])}"
        return {"binning": [f"{k} bins{given}" for k in self.bins] + [f"width {_short(w)}" for w in self.widths]}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: rows are sorted by cells, one unit at a time."""
        kinds = len(self.coordinates["binning"])
        return float(sum(kinds * (1e-3 + sizes.rows * (1e-6 + 2e-8 * layer.width)) for layer in sizes.wanted))

    def __call__(
        self,
        network: LayeredNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Layers | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint for every binning; exact.

        Returns:
            Arrays (C, L, B): entropies in nats, occupied cells, widths in activation units, shares outside the range.
        """
        import torch

        from ibscan.measures.driver import input_weights, labels_consistent, measure_each_layer

        labels = None if probe.y is None else torch.as_tensor(probe.y, device=network.device)
        classes = len(probe.labels) if probe.y is not None else 1
        measure_layer = partial(
            self._measure_layer,
            labels=labels,
            classes=classes,
            ceiling=input_weights(probe)[1],
            consistent=labels_consistent(probe),
        )
        return measure_each_layer(self, network, probe, measure_layer, layers)

    def _measure_layer(
        self, data: LayerValues, labels: torch.Tensor | None, classes: int, ceiling: float, *, consistent: bool
    ) -> dict[str, Estimate]:
        """Return the estimates of one layer, arrays (B,); I(bin T; Y) is subtracted if labels are `consistent`."""
        import numpy as np

        from ibscan.measures.driver import is_saturated, label_status
        from ibscan.numerics.geometry.cells import cell_entropy

        if data.status is Status.NONFINITE:
            return {}
        binnings = self._binnings(data.values, data.layer)
        found = [cell_entropy(data.values, labels, classes, cells) for cells, _, _ in binnings]
        status = np.full(len(binnings), data.status, dtype=np.int8)
        if data.status is Status.OK:
            status[[is_saturated(one.entropy, ceiling) for one in found]] = Status.SATURATED
        # Rounding may leave -1e-16 for an entropy of 0.
        xt = np.array([max(0.0, one.entropy) for one in found])
        ty = np.array([math.nan if labels is None else max(0.0, one.label_information) for one in found])
        given_y = np.maximum(0.0, xt - ty) if consistent else np.full(len(binnings), np.nan)
        exact = np.full(len(binnings), Status.OK)
        return {
            "mi_binned_xt": Estimate(xt, status),
            "mi_binned_ty": Estimate(ty, label_status(status, labelled=labels is not None)),
            "mi_binned_xt_given_y": Estimate(given_y, label_status(status, labelled=consistent)),
            "mi_binned_cells": Estimate(np.array([one.occupied for one in found]), None),
            "mi_binned_width": Estimate(np.array([width for _, width, _ in binnings]), exact),
            "mi_binned_outside": Estimate(np.array([outside for _, _, outside in binnings]), exact.copy()),
        }

    def _binnings(
        self, values: torch.Tensor, layer: Layer
    ) -> list[tuple[Callable[[torch.Tensor], torch.Tensor], float, float]]:
        """Return every binning as (function from values to cells, cell width, share of values outside the range)."""
        from ibscan.numerics.geometry.cells import equal_cells, grid_cells

        found: list[tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = []
        if self.bins:
            lowest, highest = (float(end) for end in values.aminmax())
            low, high = self.limits or (layer.post_range if self.at == "post" else None) or (lowest, highest)
            outside = 0.0
            if high > low and (lowest < low or highest > high):
                outside = float(((values < low) | (values > high)).double().mean())
            overflows = math.isinf(high - low)
            for count in self.bins:
                cells = partial(equal_cells, low=low, high=high, bins=count)
                width = high / count - low / count if overflows else (high - low) / count
                found.append((cells, width, outside))
        return found + [(partial(grid_cells, width=width), width, 0.0) for width in self.widths]


def _short(number: float) -> str:
    # Six digits if they are exact: names of different widths must differ.
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
