"""The usual table: accuracy, and the leading number of each table that has a course, at a few checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from ibscan import views
from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.column import Column, Course
from ibscan.views.layout import Sheet, Shown, Table, by_course
from ibscan.views.view import View, information_unit

__all__ = ["TABLE"]

_MOST_ROWS = 5
_NOTE = "ibscan show FILE --full prints every table."


def _sheets(view: View) -> Iterator[Sheet]:
    courses = [_leading(found) for table in views.specs() if (found := list(table.courses(view)))]
    if courses:
        yield by_course(view, (TABLE.title, information_unit(view)), courses, [_NOTE], _MOST_ROWS)


def _leading(courses: Sequence[Course]) -> Course:
    """Return the course that moves most among those of the first kind of which half the numbers say something."""
    kinds = [list(alike) for _, alike in groupby(courses, lambda course: course.kind)]
    best = [alike[int(np.argmax([_range(course.column) for course in alike]))] for alike in kinds]
    return next((course for course in best if _tells(course.column)), best[0])


def _tells(one: Column) -> bool:
    """Return whether at least half of the numbers measured say something."""
    measured = np.ones(one.values.shape, bool) if one.statuses is None else one.statuses != Status.NOT_MEASURED
    return bool(2 * _silent(one)[measured].sum() <= measured.sum())


def _silent(one: Column) -> Array:
    """Return where numbers say nothing: saturated, open, failed."""
    if one.statuses is None:
        return ~np.isfinite(one.values)
    told = np.isin(one.statuses, (Status.OK, Status.DEAD, Status.LOWER_BOUND, Status.NOT_MEASURED))
    return np.asarray(~told)


def _range(one: Column) -> float:
    """Return the mean over layers of how far the numbers range, of those that say something."""
    values = np.where(_silent(one) | ~np.isfinite(one.values), np.nan, one.values)
    ranges = [column[np.isfinite(column)] for column in values.T]
    with np.errstate(over="ignore"):
        return float(np.mean([np.ptp(known) if len(known) else 0.0 for known in ranges]))


TABLE = Table("in brief", {}, _sheets, shown=Shown.USUAL)
