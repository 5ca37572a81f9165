"""Tables of the last checkpoint alone: layers down, what was measured of them across."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.text import Text

from ibscan.types import Array
from ibscan.views.block import legend
from ibscan.views.cells import formatted
from ibscan.views.frame import Frame, codes, name_of
from ibscan.views.grid import Column, Group, panels

__all__ = ["last_column", "last_table"]


def last_column(
    frame: Frame,
    name: str,
    heads: Sequence[str],
    place: int | None = None,
    *,
    values: Array | None = None,
    layers: Sequence[int] | None = None,
) -> Column:
    """Return one column of the last checkpoint, a cell a layer.

    Args:
        frame: The result and how it is shown.
        name: The variable whose statuses mark the cells.
        heads: From top to bottom.
        place: Along the variable's own dimension; None where it has none.
        values: (C, L) or (C, L, P) numbers to show in place of the variable's.
        layers: Indices of those shown; None for all.

    Returns:
        The column.
    """
    numbers, status = frame.scaled(name) if values is None else values, codes(frame, name)
    index = (-1, slice(None) if layers is None else list(layers), *(() if place is None else (place,)))
    marks = None if status is None else status[index]
    return Column(tuple(heads), tuple(formatted(numbers[index], marks, unicode=frame.unicode)))


def last_table(
    frame: Frame,
    title: Sequence[str],
    groups: Sequence[Group],
    notes: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
) -> Stack:
    """Return a table of the last checkpoint, which its title names.

    Args:
        frame: The result and how it is shown.
        title: What the table is of, and under what terms.
        groups: Columns with a cell a layer.
        notes: What needs saying below.
        layers: Indices of those shown; None for all.

    Returns:
        The table.
    """
    names = [name_of(name, frame.unicode) for name in frame.result["layer"].values.tolist()]
    shown = names if layers is None else [names[layer] for layer in layers]
    axis, labels = frame.axis
    texts = [f"{title[0]} at {axis} {labels[-1]}", *title[1:]]
    return Stack(
        Text((" · " if frame.unicode else " - ").join(filter(None, texts)), style="bold yellow", overflow="fold"),
        *panels([Column(("layer",), tuple(shown))], groups, width=frame.width, unicode=frame.unicode),
        *(Text(note, style="dim", overflow="fold") for note in (*legend(frame, groups), *notes)),
        Text(""),
    )
