"""Tables of a quantity against its parameter (eps, noise or cells), which runs down; layers and checkpoints across."""

from __future__ import annotations

import re

import numpy as np

from ibscan.core.quantity import DIMENSIONS
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.errors import NothingMatched
from ibscan.views.channels import CHANNELS, SIDES, Channel, channel_columns, notes
from ibscan.views.column import column
from ibscan.views.layout import Sheet, by_parameter
from ibscan.views.local_rank import rank_errors
from ibscan.views.view import View, derivative, measured_indices, name_of, terms

__all__ = ["curve_table", "curve_tables", "curves"]

_RANKS = {"local_rank": "eps", "local_rank_rel": "rel_eps"}
_CHANNELS: dict[str, tuple[Channel, str]] = {
    channel.variable(side): (channel, side) for side in SIDES for channel in CHANNELS
}
_OVER = _RANKS | {name: channel.dim for name, (channel, _) in _CHANNELS.items()}
# Information has one noise and one kind of cells unless more are typed: that is no curve.
_FEWEST = {name: 1 if name in _RANKS else 2 for name in _OVER}
_MOST_COLUMNS = 4
_FEW_POINTS = 8
_COUNTED = "Mean over probe rows of the number of singular values of the Jacobian {of} above"
_THRESHOLDS = {
    "local_rank": "{eps}, which is absolute: in units of the layer's output per unit of the input.",
    "local_rank_rel": "{eps} times the row's largest.",
}


def curves(result: Result) -> tuple[str, ...]:
    """List the quantities that are curves: local rank where measured, and information at two parameters or more.

    Raises:
        NothingMatched: There is none.
    """
    view = View(result, "nats", every=True, width=1, unicode=False)
    found = tuple(key for key, dim in _OVER.items() if len(measured_indices(view, key, dim)) >= _FEWEST[key])
    if not found:
        raise NothingMatched(
            "--curve: the result holds no local rank, and no information at two noises or in two kinds of cells. "
            "Run ibscan rank on its checkpoints, or ibscan mi with more than one --noise."
        )
    return found


def curve_tables(view: View) -> list[Sheet]:
    """Return a table for each curve of the result.

    Raises:
        NothingMatched: The result has no curve.
    """
    return [curve_table(view, key, advise=True) for key in curves(view.result)]


def curve_table(view: View, key: str, *, advise: bool = False) -> Sheet:
    """Return the table of one curve: its parameter down, under every layer first, last and some checkpoints between.

    `advise` adds how a curve of few points gets finer.
    """
    dim, shown = _OVER[key], view.shown(_MOST_COLUMNS)
    values = view.result[dim].values
    known = set(measured_indices(view, key, dim))
    order = [index for index in _order(values) if index in known]
    labels = [name_of(v, view.unicode) if isinstance(v, str) else f"{v:g}" for v in values[order].tolist()]
    axis, checkpoints = view.axis
    columns = [
        column(view, key, (axis, checkpoints[checkpoint]), order).of(checkpoint).turned() for checkpoint in shown
    ]
    if key in _RANKS:
        threshold = _THRESHOLDS[key].format(eps=view.eps)
        below = [f"{_COUNTED.format(of=derivative(view, key))} {threshold} In parentheses: units of the layer."]
        below += rank_errors(view, key, shown, order)
    else:
        below = notes(view, channel_columns(view, *_CHANNELS[key]))
    below += _points(len(order), dim) if advise else []
    if len(shown) < view.size:
        below.append(f"{len(shown)} of {view.size} checkpoints shown (--all shows every one).")
    title = (_title(view, key), terms(view, key))
    return by_parameter(
        view, title, (_spelt(view, DIMENSIONS[dim].label), labels), columns, below, widths=key in _RANKS
    )


def _title(view: View, key: str) -> str:
    against = f"against {_spelt(view, DIMENSIONS[_OVER[key]].title)}"
    if key in _RANKS:
        return f"local rank {against}"
    symbol = name_of(str(view.result[key].attrs.get("symbol", "")), view.unicode)
    return " ".join(part for part in (_CHANNELS[key][0].label, symbol, against) if part)


def _spelt(view: View, label: str) -> str:
    return label.replace("eps", view.eps)


def _order(values: Array) -> list[int]:
    """Return the indices of a parameter's values in ascending order: cells by kind, then by their number."""
    if values.dtype.kind != "O":
        numeric: list[int] = np.argsort(values, kind="stable").tolist()
        return numeric

    def by_number(index: int) -> tuple[str, float]:
        text = str(values[index])
        found = re.search(r"[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", text)
        return (text, 0.0) if found is None else (text.replace(found.group(), "", 1), float(found.group()))

    return sorted(range(len(values)), key=by_number)


def _points(size: int, dim: str) -> list[str]:
    """Note how a curve of few points gets finer."""
    if size >= _FEW_POINTS:
        return []
    count = f"{size} point{'s' if size != 1 else ''}"
    more = f"more {DIMENSIONS[dim].flags} values on ibscan {DIMENSIONS[dim].verb}"
    return [f"A curve of {count}: {more}, into the same file, make it finer."]
