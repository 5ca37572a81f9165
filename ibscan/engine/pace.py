"""Follow a scan: what it has in hand, and how long what is left may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ibscan.core.hand import Hand
from ibscan.core.measure import Measure
from ibscan.core.records import Checkpoint
from ibscan.engine.plan import Plan
from ibscan.engine.request import Reporter
from ibscan.inputs.series.ordering import axis_number
from ibscan.measures.work import seconds

__all__ = ["Pace"]

# Measured seconds that count half: what has taken less says little about what is to come.
HALF = 1.0


@dataclass
class Pace:
    """Tells a reporter what is in hand, and weighs what is left by declared costs against seconds measured so far.

    A measure's seconds are those declared times a rate: its own, drawn towards the rate of all measures while little of
    it is finished, which is drawn towards one. Seconds are declared for chains, so the rate of a module or of a GPU may
    be far from one, and is known with the first checkpoint.

    Attributes:
        plan: What is measured, at which cost.
        total: Checkpoints to measure.
        reporter: Hears what is in hand.
        clock: Seconds from anywhere.
    """

    plan: Plan
    total: int
    reporter: Reporter
    clock: Callable[[], float] = time.monotonic
    _costs: dict[str, float] = field(init=False)
    _done: dict[str, int] = field(default_factory=dict)
    _spent: dict[str, float] = field(default_factory=dict)
    _place: int = 0
    _block: Sequence[Checkpoint] = ()
    _measure: str = ""
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._costs = {one.name: seconds(one, self.plan.sizes(one)) for one in self.plan.measures}

    def block(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Note that these checkpoints come next."""
        self._place += len(self._block)
        self._block = checkpoints

    def measure(self, measure: Measure | None) -> None:
        """Note that a measure begins on the block, and that the one before has ended; None for the end of the last."""
        now = self.clock()
        if self._measure:
            self._done[self._measure] = self._done.get(self._measure, 0) + len(self._block)
            self._spent[self._measure] = self._spent.get(self._measure, 0.0) + now - self._since
        self._measure, self._since = "" if measure is None else measure.name, now
        self.layer(None)

    def layer(self, index: int | None) -> None:
        """Tell the reporter which layer the measure has in hand; None where it works on all of them."""
        if self._measure:
            layer = "" if index is None else self.plan.model.names[index]
            self.reporter.working(Hand(self._places(), self._where(), self._measure, layer, self.left))

    def left(self) -> float:
        """Estimate the seconds left, from what is finished and what is in hand."""
        known = sum(self._costs[name] * done for name, done in self._done.items())
        common = _rate(sum(self._spent.values()), known, 1.0)
        return sum(self._left_of(name, cost, common) for name, cost in self._costs.items())

    def _left_of(self, name: str, cost: float, common: float) -> float:
        done, spent = self._done.get(name, 0), self._spent.get(name, 0.0)
        rate = _rate(spent, cost * done, common)
        if name != self._measure:
            return rate * cost * (self.total - done)
        running, size = self.clock() - self._since, len(self._block)
        # What takes longer than it should is known to do so, and a tenth of it is still to come for all one knows.
        whole = max(rate * cost * size, 1.1 * running)
        return whole - running + whole / size * (self.total - done - size)

    def _places(self) -> str:
        first, last = self._place + 1, self._place + len(self._block)
        return str(first) if first == last else f"{first}-{last}"

    def _where(self) -> str:
        axis, ends = self.plan.series.axis, (self._block[0], self._block[-1])
        numbers = [None if axis == "index" else axis_number(one, axis) for one in ends]
        labels = [one.name if number is None else f"{number:g}" for one, number in zip(ends, numbers, strict=True)]
        span = "-".join(dict.fromkeys(labels))
        return span if None in numbers else f"{axis} {span}"


def _rate(spent: float, declared: float, common: float) -> float:
    """Return the seconds measured over those declared, drawn towards a common rate where few were measured."""
    share = spent / (spent + HALF)
    return common if not declared else share * spent / declared + (1 - share) * common
