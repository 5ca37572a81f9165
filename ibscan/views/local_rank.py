"""The table of local rank: checkpoints down, thresholds under every layer."""

from __future__ import annotations

from collections.abc import Iterator

from ibscan.views.column import Column, Course, column, is_empty
from ibscan.views.layout import Sheet, Table, by_checkpoint
from ibscan.views.view import View, derivative, is_measured, terms

__all__ = ["TABLE"]

_KEY = "local_rank"


def _columns(view: View) -> list[Column]:
    """Return a column for each threshold; a rank is between 0 and the units of its layer."""
    if not is_measured(view, _KEY, "eps"):
        return []
    units = view.result["layer_width"].values.astype(float)
    thresholds = view.result["eps"].values.tolist()
    return [column(view, _KEY, (f"{view.eps} {eps:g}",), index, ceiling=units) for index, eps in enumerate(thresholds)]


def _courses(view: View) -> Iterator[Course]:
    for one in _columns(view):
        if not is_empty(one):
            yield Course((TABLE.title, *one.heads), one)


def _sheets(view: View) -> Iterator[Sheet]:
    columns = _columns(view)
    if not columns:
        return
    note = (
        f"Mean number of singular values of the Jacobian {derivative(view, _KEY)} above eps, which is absolute. "
        "In parentheses: units of the layer."
    )
    yield by_checkpoint(view, (TABLE.title, terms(view, _KEY)), columns, [note], widths=True)


TABLE = Table("local rank", {}, _sheets, courses=_courses)
