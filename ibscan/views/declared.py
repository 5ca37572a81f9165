"""Tables that quantities declare: those of one title together, each under its symbol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.result import Variable
from ibscan.views.cells import number
from ibscan.views.column import Column, column
from ibscan.views.layout import Sheet, Table, by_checkpoint, by_layer, explained
from ibscan.views.view import View, is_measured, measured_indices, name_of, terms

__all__ = ["TABLE"]

# More columns than that under every layer are shown at the last checkpoint alone.
_MOST_COLUMNS = 3


def _sheets(view: View) -> Iterator[Sheet]:
    """Yield one sheet a title, in the order of the file."""
    titles: dict[str, dict[str, list[Column]]] = {}
    for key in view.result.quantities:
        variable = view.result[key]
        title = name_of(str(variable.attrs.get("table", "")), view.unicode)
        if title and (columns := _columns(view, key, variable)):
            titles.setdefault(title, {})[key] = columns
    for title, found in titles.items():
        notes = [explained({_symbol(view, key): f"{_meaning(view, key)}." for key in found})]
        every = [one for columns in found.values() for one in columns]
        heading = (title, terms(view, next(iter(found))))
        if len(every) > _MOST_COLUMNS:
            yield by_layer(view, heading, [("", every)], notes)
        else:
            yield by_checkpoint(view, heading, every, notes, skip_empty=True, layers=_measured_layers(every))


def _columns(view: View, key: str, variable: Variable) -> list[Column]:
    """Return a column for each value of the quantity's own dimension, or the one there is."""
    own, symbol = variable.dims[2:], _symbol(view, key)
    if len(own) > 1 or not is_measured(view, key, *own):
        return []
    if not own:
        return [column(view, key, (symbol, ""))]
    labels = [value if isinstance(value, str) else f"{own[0]} {number(value)}" for value in view.result[own[0]].values]
    chosen = measured_indices(view, key, own[0])
    return [column(view, key, (symbol, name_of(labels[k], view.unicode)), k) for k in chosen]


def _measured_layers(columns: Sequence[Column]) -> list[int]:
    """Return the layers of which anything was measured."""
    gaps = [one.statuses == Status.NOT_MEASURED for one in columns if one.statuses is not None]
    return np.flatnonzero(~np.all(gaps, (0, 1))).tolist() if gaps else list(range(columns[0].values.shape[1]))


def _symbol(view: View, key: str) -> str:
    return name_of(str(view.result[key].attrs.get("symbol", key)), view.unicode)


def _meaning(view: View, key: str) -> str:
    return name_of(str(view.result[key].attrs.get("long_name", key)), view.unicode)


# Titles are those that quantities declare.
TABLE = Table("", {}, _sheets)
