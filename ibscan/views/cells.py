"""Format numbers for a table: aligned, marked with their status, their bracket where it is open, and their trend."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import TypeAlias

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array

__all__ = ["Ends", "blocks", "formatted", "has_open_bracket", "mark", "number", "trend"]

# Lower and upper ends of brackets, in the shape of the values.
Ends: TypeAlias = tuple[Array, Array]

_MARKS = {
    Status.OK: "",
    Status.NOT_MEASURED: "-",
    Status.SATURATED: "*",
    Status.DEAD: "†",
    Status.NONFINITE: "!",
    Status.FAILED: "x",
    Status.OUT_OF_MEMORY: "m",
    Status.UNRESOLVED: "?",
    Status.LOWER_BOUND: "+",
}
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=#"
_MOST_DIGITS = 1e6


def mark(status: Status, *, unicode: bool) -> str:
    """Return the character that stands for a status behind a number."""
    found = _MARKS[status]
    return "#" if found == "†" and not unicode else found


def number(value: float) -> str:
    """Return a number on its own with four significant digits.

    Example:
        >>> number(8.317766), number(0.5), number(60000.0), number(1.25e-7)
        ('8.318', '0.5', '60000', '1.25e-07')
    """
    return f"{value:.0f}" if value == round(value) and abs(value) < _MOST_DIGITS else f"{value:.4g}"


def has_open_bracket(statuses: Array | None, ends: Ends | None) -> Array | None:
    """Return where a bracket did not close, and so stands behind its number; None without statuses or brackets."""
    if statuses is None or ends is None:
        return None
    return np.asarray((statuses == Status.UNRESOLVED) & ~np.isnan(ends[0]) & ~np.isnan(ends[1]))


def formatted(values: Array, statuses: Array | None, *, unicode: bool, ends: Ends | None = None) -> list[str]:
    """Format a column: the same decimals for all, three or four digits, status marks behind; align on the right.

    An open bracket stands between the number and its mark, `3.1 [2.6, 3.6]?`, both in digits of their own.

    Args:
        values: (R,) numbers.
        statuses: (R,) codes, or None where there are none.
        unicode: Whether marks may be beyond ASCII.
        ends: (R,) ends of brackets, or None where there are none.
    """
    codes = [Status.OK] * len(values) if statuses is None else [Status(code) for code in statuses.tolist()]
    listed = [float(value) for value in values.tolist()]
    opened = has_open_bracket(statuses, ends)
    brackets: list[tuple[float, float] | None] = [None] * len(listed)
    if opened is not None and ends is not None:
        pairs = zip(opened.tolist(), ends[0].tolist(), ends[1].tolist(), strict=True)
        brackets = [(low, high) if is_open else None for is_open, low, high in pairs]
    alike = zip(listed, codes, brackets, strict=True)
    decimals = _decimals(v for v, code, bracket in alike if code is not Status.NOT_MEASURED and bracket is None)
    cells: list[tuple[str, str]] = []
    for value, code, bracket in zip(listed, codes, brackets, strict=True):
        sign = mark(code, unicode=unicode)
        if bracket is not None:
            text, behind = _bracketed(value, *bracket)
            cells.append((text, behind + sign))
        elif code is Status.NOT_MEASURED or math.isnan(value):
            cells.append((sign or "nan", ""))
        else:
            cells.append((_fixed(value, decimals), sign))
    # What one cell has behind its number is left blank in the others, so that digits are aligned.
    room = max((len(behind) for _, behind in cells), default=0)
    return [text + behind.ljust(room) for text, behind in cells]


def trend(values: Array, length: int, scale: tuple[float, float], *, unicode: bool) -> str:
    """Draw values as a line of levels of a scale; empty where fewer than two are finite.

    Args:
        values: (C,) numbers in order; NaN leaves a gap.
        length: Characters at most; more values are averaged in pieces.
        scale: Lowest and highest level; values beyond are drawn at its ends.
        unicode: Block elements, or ASCII.
    """
    if np.isfinite(values).sum() < 2:
        return ""
    pieces = [piece[np.isfinite(piece)] for piece in np.array_split(values, min(length, len(values)))]
    # Halved before they are added: two numbers near the largest double would overflow.
    halves = [float(np.mean(piece / 2)) if len(piece) else math.nan for piece in pieces]
    low, span = scale[0] / 2, scale[1] / 2 - scale[0] / 2
    levels = _LEVELS if unicode else _ASCII_LEVELS

    def level(half: float) -> str:
        if math.isnan(half):
            return " "
        share = min(max((half - low) / span, 0.0), 1.0) if span > 0 else 0.0
        return levels[min(int(share * len(levels)), len(levels) - 1)]

    return "".join(level(half) for half in halves)


def blocks(counts: Array, length: int, *, unicode: bool) -> str:
    """Draw a histogram as a line of levels of its largest block, of neighbouring bins; blank where there is nothing.

    Args:
        counts: (B,) numbers that are not negative.
        length: Characters at most.
        unicode: Block elements, or ASCII.
    """
    pieces = np.array([piece.mean() for piece in np.array_split(counts, min(length, len(counts)))])
    levels = _LEVELS if unicode else _ASCII_LEVELS
    if not pieces.max(initial=0) > 0:
        return " " * len(pieces)
    places = np.minimum((pieces / pieces.max() * len(levels)).astype(int), len(levels) - 1)
    return "".join(levels[place] if piece > 0 else " " for place, piece in zip(places, pieces, strict=True))


def _decimals(values: Iterable[float]) -> int | None:
    """Return how many decimals give the largest value three to four digits; None for %g format."""
    magnitudes = [abs(value) for value in values if math.isfinite(value)]
    largest = max(magnitudes, default=0.0)
    if largest >= _MOST_DIGITS or 0 < largest < 0.01:
        return None
    if largest == round(largest) and all(magnitude == round(magnitude) for magnitude in magnitudes):
        return 0
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 10 else 3


def _bracketed(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a number and its bracket, its ends rounded outward so that it still holds.

    They have two digits of the bracket's width, and no more decimals than numbers of their size have anyway.

    Example:
        >>> _bracketed(3.12, 2.62, 3.59)
        ('3.12', ' [2.62, 3.59]')
        >>> _bracketed(3.12, 2.12, 4.13)
        ('3.1', ' [2.1, 4.2]')
    """
    decimals, width = _decimals((value, low, high)), high - low
    if decimals is not None and 0 < width < math.inf:
        decimals = min(decimals, max(0, 1 - math.floor(math.log10(width))))
    ends = _rounded(low, decimals, ROUND_FLOOR), _rounded(high, decimals, ROUND_CEILING)
    text = "" if math.isnan(value) else f"{value:z.3g}" if decimals is None else f"{value:z.{decimals}f}"
    return text, f" [{', '.join(ends)}]"


def _rounded(value: float, decimals: int | None, rounding: str) -> str:
    """Round a number down or up to so many decimals, or to three digits."""
    if not math.isfinite(value):
        return f"{value}"
    # As decimal as the shortest text that stands for the number: 3.6 is not rounded up to 3.7.
    exact = Decimal(repr(value))
    if decimals is None:
        return f"{float(Context(prec=3, rounding=rounding).plus(exact)):z.3g}"
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), rounding):z.{decimals}f}"


def _fixed(value: float, decimals: int | None) -> str:
    if not math.isfinite(value):
        return f"{value}"
    # In a column of hundreds a value of 0.004 would otherwise be shown as 0.
    small = decimals is None or 0 < abs(value) < 10.0 ** (1 - decimals)
    return f"{value:.3g}" if small else f"{value:.{decimals}f}"
