"""The table of local rank: checkpoints down, thresholds under every layer."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group as Stack

from ibscan.views.layout import Table, by_checkpoint, column
from ibscan.views.view import View, derivative, is_measured, terms

__all__ = ["TABLE"]

_KEY = "local_rank"


def _sheets(view: View) -> Iterator[Stack]:
    if not is_measured(view, _KEY, "eps"):
        return
    thresholds = view.result["eps"].values.tolist()
    columns = [column(view, _KEY, (f"{view.eps} {eps:g}",), index) for index, eps in enumerate(thresholds)]
    note = (
        f"Mean number of singular values of the Jacobian {derivative(view, _KEY)} above eps, which is absolute. "
        "In parentheses: units of the layer."
    )
    yield by_checkpoint(view, (TABLE.title, terms(view, _KEY)), columns, [note], widths=True)


TABLE = Table("local rank", {}, _sheets)
