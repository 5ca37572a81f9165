"""Decide what a series of numbers did: whether it fell since its peak, rose, or neither, by the errors it states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.cells import Ends

__all__ = ["WORDS", "Errors", "Verdict", "Word", "changes", "critical", "errors_of", "judged", "within_errors"]

# Of intervals: that none of those compared misses.
_CONFIDENCE = 0.95
# Of the largest value: what rounding alone may change.
_ROUNDING = 1e-9
_UNUSABLE = (Status.NOT_MEASURED, Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY)


class Word(Enum):
    """What a series did."""

    COMPRESSES = "compresses"
    EXPANDS = "expands"
    FLAT = "flat"
    SATURATED = "saturated"
    CANNOT_TELL = "cannot tell"


WORDS: Mapping[Word, str] = {
    Word.COMPRESSES: "fell since its peak by more than the error, and made up for half of it at most",
    Word.EXPANDS: "rose from its lowest to the last by more than the error, and did not fall since; of an earlier fall "
    "it made up for more than half",
    Word.FLAT: "no change to the last value exceeds its error",
    Word.SATURATED: "too close to its ceiling to tell whether it changed",
    Word.CANNOT_TELL: "the errors do not decide (unresolved values, open brackets that overlap), or there are not two "
    "values",
}


@dataclass(frozen=True)
class Errors:
    """How far values (...) may be off: `below` and `above` for certain, `spread` by chance, as a standard error."""

    below: Array
    above: Array
    spread: Array


@dataclass(frozen=True)
class Verdict:
    """What a series (C,) did.

    `first`, `peak` and `last` are indices of checkpoints, None where there is none; `since` is the last index at which
    it was still within errors of its peak (of its lowest value, where it expands), None where it did neither. `change`
    leads to the last value from the peak, or from the lowest where it expands or the peak is the last; `error` is half
    of its 95 % interval, which holds for all checkpoints held against the last at once, as the peak is chosen among
    them: 0 where values are exact, infinite where nothing is known of one of them.
    """

    word: Word
    first: int | None = None
    peak: int | None = None
    last: int | None = None
    since: int | None = None
    change: float = math.nan
    error: float = math.nan

    @property
    def exceeds(self) -> bool | None:
        """Whether the change exceeds its error; None where that is not known."""
        return {Word.COMPRESSES: True, Word.EXPANDS: True, Word.FLAT: False}.get(self.word)


def critical(comparisons: int) -> float:
    """Return half of a 95 % interval in standard errors, that of so many comparisons none is missed.

    Source:
        Sidak 1967: intervals of correlated Gaussian numbers hold together at least as often as independent ones.
    """
    alone = _CONFIDENCE ** (1 / max(1, comparisons))
    return NormalDist().inv_cdf((1 + alone) / 2)


def errors_of(values: Array, statuses: Array | None, stderr: Array | None, ends: Ends | None) -> Errors:
    """Return the errors of values, arrays of one shape: brackets where there are any, else standard errors, else none.

    Of a bracket, which is of 95 %, what its standard error does not explain is taken for certain. A value that is
    unresolved and has no bracket, or whose standard error is unknown, may be off by any amount.
    """
    below, above, spread = (np.zeros(values.shape) for _ in range(3))
    has_bracket = np.zeros(values.shape, dtype=bool)
    if stderr is not None:
        spread = np.where(np.isfinite(stderr), stderr, math.inf)
    with np.errstate(all="ignore"):
        if ends is not None:
            has_bracket = np.isfinite(ends[0]) & np.isfinite(ends[1])
            spread = np.where(has_bracket & np.isinf(spread), 0.0, spread)
            chance = critical(1) * spread
            below = np.where(has_bracket, np.maximum(values - ends[0] - chance, 0.0), 0.0)
            above = np.where(has_bracket, np.maximum(ends[1] - values - chance, 0.0), 0.0)
    if statuses is not None:
        # A dead layer's value is 0 whatever was drawn.
        spread = np.where((statuses == Status.DEAD) & np.isinf(spread), 0.0, spread)
        spread = np.where((statuses == Status.UNRESOLVED) & ~has_bracket, math.inf, spread)
    return Errors(below, above, spread)


def changes(values: Array, errors: Errors, start: int, stop: int | Array, sigmas: float) -> tuple[Array, Array]:
    """Return the lower and upper end of the interval of each change from index `start` to index `stop`.

    What is certain adds up; standard errors, taken as independent, add up squared, and count `sigmas` times.
    """
    with np.errstate(all="ignore"):
        change = values[stop] - values[start]
        chance = sigmas * np.hypot(errors.spread[start], errors.spread[stop])
        rounding = _ROUNDING * np.maximum(np.abs(values[start]), np.abs(values[stop]))
        lower = change - errors.below[stop] - errors.above[start] - chance - rounding
        upper = change + errors.above[stop] + errors.below[start] + chance + rounding
    return lower, upper


def within_errors(values: Array, errors: Errors) -> bool:
    """Return whether no two of values (C,), NaN aside, differ beyond errors."""
    known = np.isfinite(values)
    if not known.any():
        return True
    # The largest and the smallest are chosen among all pairs.
    drawn = int((known & np.isfinite(errors.spread) & (errors.spread > 0)).sum())
    sigmas = critical(drawn * (drawn - 1) // 2)
    lower, _ = changes(values, errors, int(np.nanargmin(values)), int(np.nanargmax(values)), sigmas)
    return not lower > 0


def judged(values: Array, statuses: Array | None, errors: Errors) -> Verdict:
    """Judge a series (C,) by its errors; values that are not measured are left out.

    Pairs of saturated values tell nothing. A fall or a rise is decided by any earlier value that differs from the last
    beyond errors, which are those of all these comparisons at once; an unresolved value among those that might have
    shown a fall forbids any other verdict. Of a fall and the rise after it the larger one is told.
    """
    codes = np.zeros(values.shape, dtype=int) if statuses is None else statuses
    measured = np.flatnonzero(codes != Status.NOT_MEASURED)
    if not len(measured):
        return Verdict(Word.CANNOT_TELL)
    first, last = int(measured[0]), int(measured[-1])
    usable = np.isfinite(values) & ~np.isin(codes, _UNUSABLE)
    unsure = (codes == Status.UNRESOLVED) | np.isinf(errors.spread)
    known = np.flatnonzero(usable & ~unsure) if (usable & ~unsure).any() else np.flatnonzero(usable)
    if not len(known):
        return Verdict(Word.CANNOT_TELL, first, None, last)
    peak, lowest = _last_of(values, known, largest=True), _last_of(values, known, largest=False)
    before = np.flatnonzero(usable[:last])
    if not usable[last] or not len(before):
        return Verdict(Word.CANNOT_TELL, first, peak, last)
    saturated = codes == Status.SATURATED
    sigmas = _sigmas(errors, before, last, saturated)
    lower, upper = _until(values, errors, before, last, saturated, sigmas)
    fell, rose = upper < 0, lower > 0
    # Where brackets are open, a fall that they leave possible is as undecided as one that they show.
    open_ends = (unsure[before] | unsure[last]) & (lower < 0) & (upper > 0)
    top = peak if peak in before[fell] else int(before[np.argmin(upper)])
    bottom = lowest if lowest in before[rose] else int(before[np.argmax(lower)])
    expands = rose.any() and not open_ends.any() and not fell[before > bottom].any()
    # Halved, as the sum of two numbers near the largest double would overflow.
    if fell.any() and not (expands and values[last] / 2 > values[top] / 4 + values[bottom] / 4):
        return _moved(Word.COMPRESSES, (first, top, last), top, values, errors, saturated, sigmas)
    if expands:
        return _moved(Word.EXPANDS, (first, peak, last), bottom, values, errors, saturated, sigmas)
    word = Word.CANNOT_TELL if open_ends.any() else Word.SATURATED if saturated[last] else Word.FLAT
    start = peak if peak < last else lowest if lowest < last else int(before[-1])
    return Verdict(word, first, peak, last, None, *_change(values, errors, start, last, sigmas))


def _sigmas(errors: Errors, before: Array, last: int, saturated: Array) -> float:
    """Return how many standard errors decide when the peak is chosen among those before the last."""
    # Those that chance has no part in, or that it leaves open, decide nothing wrongly.
    larger = np.maximum(errors.spread[before], errors.spread[last])
    drawn = np.isfinite(larger) & (larger > 0) & ~(saturated[before] & saturated[last])
    return critical(int(drawn.sum()))


def _last_of(values: Array, among: Array, *, largest: bool) -> int:
    """Return the index of the largest or smallest of some values, the last of those that are equal."""
    reverse = values[among][::-1]
    place = int(reverse.argmax() if largest else reverse.argmin())
    return int(among[len(among) - 1 - place])


def _until(
    values: Array, errors: Errors, before: Array, last: int, saturated: Array, sigmas: float
) -> tuple[Array, Array]:
    """Return the intervals of the changes to the last value; of two saturated values, all numbers."""
    lower, upper = (-end for end in changes(values, errors, last, before, sigmas)[::-1])
    undecided = saturated[before] & saturated[last]
    return np.where(undecided, -math.inf, lower), np.where(undecided, math.inf, upper)


def _moved(
    word: Word, ends: tuple[int, int, int], start: int, values: Array, errors: Errors, saturated: Array, sigmas: float
) -> Verdict:
    """Return the verdict of a series that moved from index `start` on; `ends` are first, peak and last."""
    between = np.arange(start, ends[2])
    lower, upper = changes(values, errors, start, between, sigmas)
    away = upper < 0 if word is Word.COMPRESSES else lower > 0
    # NaNs are no return to the peak; two saturated values do not differ.
    back = ~away & np.isfinite(values[between]) | (saturated[between] & saturated[start])
    since = int(between[np.flatnonzero(back)[-1]]) if back.any() else start
    return Verdict(word, *ends, since, *_change(values, errors, start, ends[2], sigmas))


def _change(values: Array, errors: Errors, start: int, stop: int, sigmas: float) -> tuple[float, float]:
    """Return a change and half of its interval, rounding aside."""
    with np.errstate(all="ignore"):
        chance = sigmas * np.hypot(errors.spread[start], errors.spread[stop])
        sides = errors.below[stop] + errors.above[start], errors.above[stop] + errors.below[start]
        return float(values[stop] - values[start]), float(max(sides) + chance)
