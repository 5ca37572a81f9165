"""The table of clustering: how close rows of a class are, in every layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.column import Column, Course, column, scaled
from ibscan.views.layout import Sheet, Table, by_checkpoint, explained
from ibscan.views.view import View, is_measured, statuses, terms

__all__ = ["TABLE"]

_WITHIN, _BETWEEN = "distance_within_mean", "distance_between_mean"
_ONES = {"nc1": ("NC1",), "nearest_mean_error": ("nearest", "mean err")}


def _columns(view: View) -> list[Column]:
    present = [key for key in (_WITHIN, _BETWEEN, *_ONES) if is_measured(view, key)]
    columns = [_ratio(view)] if {_WITHIN, _BETWEEN} <= set(present) else []
    return columns + [column(view, key, heads) for key, heads in _ONES.items() if key in present]


def _courses(view: View) -> Iterator[Course]:
    """Yield the first of what says the same."""
    for one in _columns(view)[:1]:
        yield Course(("clustering", " ".join(one.heads).replace("/ ", "/")), one)


def _sheets(view: View) -> Iterator[Sheet]:
    columns = _columns(view)
    if columns:
        measured = next(key for key in (_WITHIN, *_ONES) if is_measured(view, key))
        title = (TABLE.title, terms(view, measured, unit=False))
        yield by_checkpoint(view, title, columns, [f"{explained(TABLE.heads)} All fall as classes gather."])


def _ratio(view: View) -> Column:
    within, between = view.values(_WITHIN), view.values(_BETWEEN)
    with np.errstate(all="ignore"):
        ratio = np.where(between > 0, within / between, np.nan)
    first, second = statuses(view, _WITHIN), statuses(view, _BETWEEN)
    worse: Array | None = None
    if first is not None and second is not None:
        worse = np.where(first == Status.OK, second, first)
    return scaled(Column(("within/", "between"), ratio, worse))


TABLE = Table(
    "clustering of representations",
    {
        "within/between": "mean Euclidean distance of rows of one label over that of rows of two.",
        "NC1": "tr(S_W pinv(S_B)) / C, spread within classes over that between their means.",
        "nearest mean err": "share of rows nearer to the mean of another class.",
    },
    _sheets,
    {"clustering": "How close rows of one label are, against those of others; it falls as classes gather."},
    courses=_courses,
)
