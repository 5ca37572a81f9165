"""Tables of other rows than a result's: what `ls` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ibscan.views.cells import number
from ibscan.views.console import escaped

__all__ = ["listing"]

_NEVER_HOISTED = ("checkpoint", "skipped", "layer", "not_measured")


def listing(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Lay out rows as a table; give what all rows share once, below it.

    Args:
        columns: Columns in order; empty ones are not shown.
        rows: Mappings; a column absent or None is left empty.
    """
    cells = [{name: _cell(row.get(name)) for name in columns} for row in rows]
    distinct = {name: {row[name] for row in cells} - {""} for name in columns}
    shared = [n for n in columns if len(cells) > 1 and len(distinct[n]) == 1 and n not in _NEVER_HOISTED]
    shown = [name for name in columns if distinct[name] and name not in shared]
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for name in shown:
        table.add_column(Text(name), overflow="fold", justify="right" if _numeric(distinct[name]) else "left")
    for row in cells:
        table.add_row(*(Text(row[name], overflow="fold") for name in shown))
    below = [Text(f"{name}: {next(iter(distinct[name]))}", style="dim", overflow="fold") for name in shared]
    return Stack(*([table] if shown else []), *below)


def _cell(value: Any) -> str:  # noqa: ANN401 - whatever a row holds
    if value is None or value != value:
        return ""
    return number(value) if isinstance(value, float) else escaped(str(value))


def _numeric(texts: set[str]) -> bool:
    return all(text.replace(".", "", 1).lstrip("-").isdigit() for text in texts)
