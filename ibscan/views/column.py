"""Columns of numbers, what is known of their errors, and how their course along the series is drawn.

Shapes: C checkpoints, L layers, R rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.cells import Ends, has_open_bracket, trend
from ibscan.views.verdict import errors_of, within_errors
from ibscan.views.view import View, statuses

__all__ = ["Column", "Course", "column", "course_of", "is_empty", "scaled"]


@dataclass(frozen=True)
class Column:
    """One column of numbers under every layer: heads from top to bottom; arrays (R, L), or (R,).

    `ends` are those of brackets, `stderr` standard errors, `scale` the lowest and highest level of its trend.
    """

    heads: tuple[str, ...]
    values: Array
    statuses: Array | None
    ends: Ends | None = None
    stderr: Array | None = None
    scale: Ends | None = None

    def of(self, *index: Any) -> Column:  # noqa: ANN401 - an index of numpy
        """Return part of the column."""
        return self._arranged(lambda array: array[index])

    def turned(self) -> Column:
        """Return the column with rows and layers exchanged."""
        return self._arranged(np.transpose)

    def changed(self, change: Callable[[Array], Array]) -> Column:
        """Apply an increasing function to the numbers, which leaves them without standard errors and scale."""
        values, ends = change(self.values), _each(change, self.ends)
        return Column(self.heads, values, self.statuses, ends)

    def _arranged(self, arrange: Callable[[Array], Array]) -> Column:
        statuses = None if self.statuses is None else arrange(self.statuses)
        stderr = None if self.stderr is None else arrange(self.stderr)
        ends, scale = _each(arrange, self.ends), _each(arrange, self.scale)
        return Column(self.heads, arrange(self.values), statuses, ends, stderr, scale)


@dataclass(frozen=True)
class Course:
    """A quantity along the series, in every layer: its name in words, which may have its parameter, and (C, L).

    Courses of one `kind` differ in their parameter alone.
    """

    name: tuple[str, ...]
    column: Column
    kind: str = ""


def _each(change: Callable[[Array], Array], ends: Ends | None) -> Ends | None:
    return None if ends is None else (change(ends[0]), change(ends[1]))


def column(
    view: View,
    name: str,
    heads: Sequence[str],
    *index: Any,  # noqa: ANN401 - an index of numpy
    values: Array | None = None,
    ceiling: Array | float | None = None,
) -> Column:
    """Return a column of a variable, a row a checkpoint, with its errors, and its brackets where it has any.

    `index` is along its dimensions beyond checkpoint and layer; `values` replace its numbers, in its shape, and have
    neither. `ceiling` (L,) is the most the numbers can be, where it is known.
    """
    numbers, ends, stderr = values, None, None
    if numbers is None:
        numbers, ends, stderr = view.values(name), view.bracket(name), view.companion(name, "stderr")
    return scaled(Column(tuple(heads), numbers, statuses(view, name), ends, stderr).of(..., *index), ceiling)


def scaled(one: Column, ceiling: Array | float | None = None) -> Column:
    """Return a column with the scale of its trends: 0 to a ceiling (L,), or all its values and 0."""
    finite = one.values[np.isfinite(one.values)]
    high = max(finite.max(initial=0.0), 0.0) if ceiling is None else ceiling
    low = min(finite.min(initial=0.0), 0.0)
    shape = one.values.shape
    return replace(one, scale=(np.broadcast_to(np.float64(low), shape), np.broadcast_to(np.float64(high), shape)))


def course_of(one: Column, length: int, *, unicode: bool) -> str:
    """Draw the trend of a column (C,): flat where its range is within errors, saturated values and open brackets gaps.

    `length` is the number of characters at most.
    """
    opened = has_open_bracket(one.statuses, one.ends)
    gaps = np.zeros(one.values.shape, dtype=bool) if opened is None else opened
    if one.statuses is not None:
        gaps = gaps | (one.statuses == Status.NOT_MEASURED) | (one.statuses == Status.SATURATED)
    known = np.where(gaps | ~np.isfinite(one.values), np.nan, one.values)
    if within_errors(known, errors_of(known, one.statuses, one.stderr, one.ends)) and np.isfinite(known).any():
        # Halved before they are added: two numbers near the largest double would overflow.
        known = np.where(np.isnan(known), known, 2 * np.nanmean(known / 2))
    scale = (0.0, 1.0) if one.scale is None else (float(one.scale[0][0]), float(one.scale[1][0]))
    return trend(known, length, scale, unicode=unicode)


def is_empty(one: Column) -> bool:
    """Return whether nothing of a column was measured."""
    return one.statuses is not None and bool((one.statuses == Status.NOT_MEASURED).all())
