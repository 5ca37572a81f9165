"""Binned information: the entropy of a layer cut into cells, which measures clustering."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure, Situation, Sizes
from ibscan.core.network import LayeredNetwork
from ibscan.core.option import MEASURE, Option, at_least, number, option, positive, whole
from ibscan.core.quantity import BINNING, Quantity
from ibscan.core.records import At, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.errors import UsageError
from ibscan.measures.shared import AT, BEYOND_Y, GIVEN_Y, ROWS, SAMPLES

if TYPE_CHECKING:
    import torch

    from ibscan.measures.driver import Seen

__all__ = ["BinnedInformation", "parse_range"]


def parse_range(flag: str, given: Any) -> Any:  # noqa: ANN401 - text, a pair, or None
    """Read LO:HI; anything but text stays as it is.

    Raises:
        UsageError: It is no pair of numbers.
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


def _range(flag: str, given: Any) -> None:  # noqa: ANN401 - whatever was given
    low, high = given
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"{flag} {low}:{high}: expected LO:HI, finite, with LO < HI.")


def _of_bins(given: Mapping[str, Any]) -> None:
    if given.get("bin_range") is not None and given.get("bin_width") and not given.get("bins"):
        raise UsageError("--bin-range is the range of --bins, and only --bin-width was asked for; add --bins K.")


def _bins_or_widths(value: tuple[int, ...], situation: Situation) -> tuple[int, ...]:
    # Widths asked for take the place of the usual numbers of cells.
    widths = situation.given.get("bin_width") and not situation.given.get("bins")
    return () if widths else value or BinnedInformation.bins


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
    MEASURE,
    "bin_width",
    metavar="W",
    several=True,
    parse=number,
    check=positive,
    place=4,
)
LIMITS = Option(
    "The range of --bins.",
    MEASURE,
    "bin_range",
    metavar="LO:HI",
    read=parse_range,
    check=_range,
    against=_of_bins,
    place=5,
)


@dataclass(frozen=True)
class BinnedInformation(Measure):
    """H(bin T) over the probe and I(bin T; Y): what past work reported as information.

    Args:
        bins: Numbers of equal cells over the range.
        widths: Cell widths of a grid with an edge at 0, activation units.
        limits: The range for `bins`; None takes the activation's own where it has one, else the layer's range on the
            probe at that checkpoint.
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
        """Names of the binnings, the range in them where it was given."""
        given = "" if self.limits is None else f" on {_short(self.limits[0])}:{_short(self.limits[1])}"
        return {"binning": [f"{k} bins{given}" for k in self.bins] + [f"width {_short(w)}" for w in self.widths]}

    def seconds(self, sizes: Sizes) -> float:
        """Return how long it takes, about: rows are sorted by cells, a unit at a time."""
        kinds = len(self.coordinates["binning"])
        return float(sum(kinds * (1e-3 + sizes.rows * (1e-6 + 2e-8 * layer.width)) for layer in sizes.wanted))

    def __call__(
        self,
        network: LayeredNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Sequence[int] | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint for every binning; exact.

        Returns:
            Entropies in nats, occupied cells, widths in activation units, shares outside a stated range.
        """
        import torch

        from ibscan.measures.driver import each_layer, input_weights, labels_follow

        labels = None if probe.y is None else torch.as_tensor(probe.y, device=network.device)
        classes = len(probe.labels) if probe.y is not None else 1
        given = labels_follow(probe)
        look = partial(self._look, labels=labels, classes=classes, ceiling=input_weights(probe)[1], given=given)
        return each_layer(self, network, probe, look, layers)

    def _look(
        self, seen: Seen, labels: torch.Tensor | None, classes: int, ceiling: float, *, given: bool
    ) -> dict[str, Estimate]:
        """Return the estimates of one layer, arrays (binning,)."""
        import numpy as np

        from ibscan.measures.driver import is_saturated, label_status
        from ibscan.numerics.geometry.cells import cell_entropy

        if seen.status is Status.NONFINITE:
            return {}
        cuts = self._cuts(seen.values, seen.layer)
        found = [cell_entropy(seen.values, labels, classes, cut) for cut, _, _ in cuts]
        status = np.full(len(cuts), seen.status, dtype=np.int8)
        if seen.status is Status.OK:
            status[[is_saturated(one.entropy, ceiling) for one in found]] = Status.SATURATED
        # Rounding may leave -1e-16 where the entropy is 0.
        whole = np.array([max(0.0, one.entropy) for one in found])
        told = np.array([math.nan if labels is None else max(0.0, one.label_information) for one in found])
        left = np.maximum(0.0, whole - told) if given else np.full(len(cuts), np.nan)
        return {
            "mi_binned_xt": Estimate(whole, status),
            "mi_binned_ty": Estimate(told, label_status(status, labelled=labels is not None)),
            "mi_binned_xt_given_y": Estimate(left, label_status(status, labelled=given)),
            "mi_binned_cells": Estimate(np.array([one.occupied for one in found]), None),
            "mi_binned_width": Estimate(np.array([width for _, width, _ in cuts]), np.full(len(cuts), Status.OK)),
            "mi_binned_outside": Estimate(np.array([beyond for _, _, beyond in cuts]), np.full(len(cuts), Status.OK)),
        }

    def _cuts(
        self, values: torch.Tensor, layer: Layer
    ) -> list[tuple[Callable[[torch.Tensor], torch.Tensor], float, float]]:
        """Return for every binning what gives the cells, their width, and the share of values outside the range."""
        from ibscan.numerics.geometry.cells import equal_cells, grid_cells

        found: list[tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = []
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
