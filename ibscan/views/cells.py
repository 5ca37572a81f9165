"""Format numbers for a table: aligned, marked with their status, and their trend in a few characters."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array

__all__ = ["formatted", "mark", "number", "trend"]

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


def formatted(values: Array, statuses: Array | None, *, unicode: bool) -> list[str]:
    """Format a column: the same decimals for all, three or four digits, status marks behind; align on the right.

    Args:
        values: (R,) numbers.
        statuses: (R,) codes, or None where there are none.
        unicode: Whether marks may be beyond ASCII.
    """
    codes = [Status.OK] * len(values) if statuses is None else [Status(code) for code in statuses.tolist()]
    listed = [float(value) for value in values.tolist()]
    decimals = _decimals(v for v, code in zip(listed, codes, strict=True) if code is not Status.NOT_MEASURED)
    marks = [mark(code, unicode=unicode) for code in codes]
    # Where one cell has a mark, the others get a space, so that digits are aligned.
    blank = " " if any(m and not math.isnan(v) for m, v in zip(marks, listed, strict=True)) else ""
    cells: list[str] = []
    for value, code, sign in zip(listed, codes, marks, strict=True):
        if code is Status.NOT_MEASURED or math.isnan(value):
            cells.append((sign or "nan") + blank)
        else:
            cells.append(_fixed(value, decimals) + (sign or blank))
    return cells


def trend(values: Array, length: int, *, unicode: bool) -> str:
    """Draw values as a line of levels between smallest and largest; empty where fewer than two are finite.

    Args:
        values: (C,) numbers in order; NaN leaves a gap.
        length: Characters at most; more values are averaged in pieces.
        unicode: Block elements, or ASCII.
    """
    if np.isfinite(values).sum() < 2:
        return ""
    pieces = [piece[np.isfinite(piece)] for piece in np.array_split(values, min(length, len(values)))]
    # Halved before they are added: two numbers near the largest double would overflow.
    means = [float(np.mean(piece / 2)) if len(piece) else math.nan for piece in pieces]
    known = [mean for mean in means if not math.isnan(mean)]
    low, span = min(known), max(known) - min(known)
    levels = _LEVELS if unicode else _ASCII_LEVELS

    # A constant is drawn low: its height says nothing.
    constant = span <= 1e-9 * max(abs(low), abs(low + span))

    def level(mean: float) -> str:
        if math.isnan(mean):
            return " "
        return levels[0 if constant else min(int((mean - low) / span * len(levels)), len(levels) - 1)]

    return "".join(level(mean) for mean in means)


def _decimals(values: Iterable[float]) -> int | None:
    """Return how many decimals give the largest value three to four digits; None for %g format."""
    magnitudes = [abs(value) for value in values if math.isfinite(value)]
    largest = max(magnitudes, default=0.0)
    if largest >= _MOST_DIGITS or 0 < largest < 0.01:
        return None
    if largest == round(largest) and all(magnitude == round(magnitude) for magnitude in magnitudes):
        return 0
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 10 else 3


def _fixed(value: float, decimals: int | None) -> str:
    if not math.isfinite(value):
        return f"{value}"
    # In a column of hundreds a value of 0.004 would otherwise be shown as 0.
    small = decimals is None or 0 < abs(value) < 10.0 ** (1 - decimals)
    return f"{value:.3g}" if small else f"{value:.{decimals}f}"
