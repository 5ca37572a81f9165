"""What a scan has in hand, as progress shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Hand"]


@dataclass(frozen=True)
class Hand:
    """The checkpoints that are measured now, by what, at which layer, and how long all that is left may take.

    Attributes:
        place: Their places among those to measure, from 1: `3`, or `5-8` where several are measured together.
        where: Where they are in the series: `epoch 38`, `epoch 6-26`, or a name.
        measure: Name of the measure.
        layer: Name of the layer; empty while it works on all of them.
        left: Estimates the seconds left, at the time it is called.
    """

    place: str
    where: str
    measure: str
    layer: str
    left: Callable[[], float]
