"""The usual table: accuracy, and the leading number of each table that has a course, at a few checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
from rich.console import Group as Stack

from ibscan import views
from ibscan.core.estimate import Status
from ibscan.views.column import Column, Course
from ibscan.views.layout import Shown, Table, by_course
from ibscan.views.view import View, information_unit

__all__ = ["TABLE"]

_MOST_ROWS = 5
_NOTE = "ibscan show FILE --full prints every table."


def _sheets(view: View) -> Iterator[Stack]:
    courses = [_leading(found) for table in views.specs() if (found := list(table.courses(view)))]
    if courses:
        yield by_course(view, (TABLE.title, information_unit(view)), courses, [_NOTE], _MOST_ROWS)


def _leading(courses: Sequence[Course]) -> Course:
    """Return the course that moves most among those before one of another name, which differ in their parameter."""
    alike = list(takewhile(lambda course: course.name[:1] == courses[0].name[:1], courses))
    moves = [_range(course.column) for course in alike]
    return alike[int(np.argmax(moves))]


def _range(one: Column) -> float:
    """Return the mean over layers of how far the numbers range; saturated and open ones say nothing."""
    silent = np.zeros(one.values.shape, dtype=bool)
    if one.statuses is not None:
        silent = ~np.isin(one.statuses, (Status.OK, Status.DEAD, Status.LOWER_BOUND))
    values = np.where(silent | ~np.isfinite(one.values), np.nan, one.values)
    ranges = [column[np.isfinite(column)] for column in values.T]
    with np.errstate(over="ignore"):
        return float(np.mean([np.ptp(known) if len(known) else 0.0 for known in ranges]))


TABLE = Table("in brief", {}, _sheets, shown=Shown.USUAL)
