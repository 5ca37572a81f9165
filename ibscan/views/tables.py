"""Lay out a result as tables for printing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType

from ibscan.core.result import Result
from ibscan.errors import NothingMatched
from ibscan.views import specs
from ibscan.views.column import column
from ibscan.views.curve import curve_tables
from ibscan.views.head import head
from ibscan.views.layout import Sheet, Shown, by_checkpoint
from ibscan.views.metrics import metrics_named
from ibscan.views.summary import NOTHING_SUMMARISED
from ibscan.views.summary import TABLE as SUMMARY
from ibscan.views.view import View, name_of, terms, thinned

__all__ = ["tables"]

_MOST_PARAMETERS = 12


def tables(
    result: Result,
    *,
    units: str = "nats",
    every: bool = False,
    variables: Sequence[str] = (),
    curve: bool = False,
    full: bool = False,
    summary: bool = False,
    beside: Sequence[str] = (),
    width: int,
    unicode: bool = True,
) -> list[RenderableType]:
    """Lay out a result for printing: a head, and the tables of `TABLES` that have anything to show.

    Args:
        result: Any.
        units: `nats`, or `bits` to convert what is in nat.
        every: Every checkpoint instead of about twelve, log-spaced, first and last among them.
        variables: Tables of these alone in place of the usual ones, histograms and spectra included.
        curve: Curves over eps, noise or cells in place of the usual tables.
        full: Every table, instead of the leading numbers in brief.
        summary: The summary alone, without a head.
        beside: Names of metrics saved with the checkpoints, each a column beside the accuracy.
        width: Columns of the terminal; layers that do not fit go to further panels.
        unicode: Whether the terminal shows more than ASCII.

    Returns:
        Renderables for a console without markup, in order. Names from files are escaped.

    Raises:
        UsageError: There is no such metric or unit.
        NothingMatched: There is no such variable; or curves or the summary are asked for, and there is none.
    """
    result.check_shown(units, variables)
    view = View(result, units, every, max(1, width), unicode, metrics_named(result, beside))
    if summary:
        found = list(SUMMARY.sheets(view))
        if not found:
            raise NothingMatched(NOTHING_SUMMARISED)
        return [*found]
    if curve:
        return [head(view), *curve_tables(view)]
    if variables:
        return [head(view), *(_variable(view, name) for name in variables)]
    wanted = (Shown.ALWAYS, Shown.FULL if full else Shown.USUAL)
    return [head(view), *(sheet for table in specs() if table.shown in wanted for sheet in table.sheets(view))]


def _variable(view: View, name: str) -> Sheet:
    found = view.result[name]
    own = [dim for dim in found.dims if dim not in ("checkpoint", "layer")]
    shape = [len(view.result[dim].values) for dim in own]
    total = int(np.prod(shape)) if own else 1
    chosen = thinned(total, _MOST_PARAMETERS)
    notes: list[str] = []
    if len(chosen) < total:
        notes.append(f"{len(chosen)} of {total} values along {', '.join(own)}; ibscan export gives all.")
    columns = []
    for flat in chosen:
        index: tuple[Any, ...] = np.unravel_index(flat, shape) if own else ()
        labels = [view.result[dim].values[at] for dim, at in zip(own, index, strict=True)]
        heads = [_label(view, dim, value) for dim, value in zip(own, labels, strict=True)]
        columns.append(column(view, name, heads, *index))
    meaning = name_of(str(found.attrs.get("long_name", name)), view.unicode)
    title = (name_of(name, view.unicode), meaning, terms(view, name))
    # A narrow layer has fewer singular values than the widest one.
    return by_checkpoint(view, title, columns, notes, skip_empty=True)


def _label(view: View, dim: str, value: Any) -> str:  # noqa: ANN401 - a coordinate value
    text = value if isinstance(value, str) else f"{value:g}"
    return name_of(text if dim == "binning" else f"{dim} {text}", view.unicode)
