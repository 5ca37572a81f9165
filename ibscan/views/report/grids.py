"""Turn tables as laid out for consoles into rows of HTML tables."""

from __future__ import annotations

from dataclasses import dataclass

from ibscan.views.grid import TextColumn, TextGroup, heads_of, packed
from ibscan.views.layout import Sheet

__all__ = ["Grid", "Part", "grid"]

_BESIDE = 72


@dataclass(frozen=True)
class Part:
    """One HTML table: names of groups with the columns they span, lines of heads, rows, and the trend.

    A row is the line above it, empty where there is none, and its cells.
    """

    columns: int
    groups: tuple[tuple[str, int], ...]
    heads: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    trend: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table of a result: its title, as many HTML tables as its width requires, and notes."""

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def grid(sheet: Sheet) -> Grid:
    """Return a table as rows."""
    # Beside a long name, which is folded on the page, there is room for numbers.
    width = max(sheet.width, sum(column.width for column in sheet.lead) + _BESIDE)
    parts = tuple(_part(sheet, groups) for groups in packed(sheet.lead, sheet.groups, width))
    return Grid(sheet.title, parts, sheet.notes)


def _part(sheet: Sheet, groups: list[TextGroup]) -> Part:
    columns: list[TextColumn] = [*sheet.lead, *(column for group in groups for column in group.columns)]
    names = tuple((group.name, len(group.columns)) for group in groups)
    count = len(columns[0].cells)
    rows = tuple((sheet.sections.get(row, ""), tuple(one.cells[row] for one in columns)) for row in range(count))
    trend = tuple(one.trend for one in columns)
    return Part(
        len(columns),
        (("", len(sheet.lead)), *names) if any(name for name, _ in names) else (),
        tuple(heads_of(columns)),
        rows,
        trend if any(trend[len(sheet.lead) :]) else (),
    )
