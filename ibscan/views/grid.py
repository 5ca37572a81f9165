"""Lay out columns of text under heads of several lines, in as many panels as the width requires; cut nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

__all__ = ["TextColumn", "TextGroup", "heads_of", "packed", "panels"]

_GAP = "  "


@dataclass(frozen=True)
class TextColumn:
    """One column: its heads from top to bottom, one cell a row, and its trend in the last row."""

    heads: tuple[str, ...]
    cells: tuple[str, ...]
    trend: str = ""

    @property
    def width(self) -> int:
        """Characters across of the widest entry."""
        return max(cell_len(text) for text in (*self.heads, *self.cells, self.trend))


@dataclass(frozen=True)
class TextGroup:
    """Columns under one name, a layer's."""

    name: str
    columns: tuple[TextColumn, ...]


def panels(
    lead: Sequence[TextColumn], groups: Sequence[TextGroup], sections: Mapping[int, str], *, width: int, unicode: bool
) -> list[Text]:
    """Lay out groups side by side after the lead columns, and in further panels where the width ends.

    Args:
        lead: Columns repeated in every panel.
        groups: In order; all columns have the same number of cells and heads.
        sections: Lines above rows, by the index of the row; they are folded at the width.
        width: Characters across the terminal.
        unicode: Whether rules may use line drawing.

    Returns:
        One text a panel. A width in which not even one column fits gives one value a line, folded at the width.
    """
    narrowest = [TextGroup(group.name, (column,)) for group in groups for column in group.columns]
    if any(_needed(group) > _room(lead, width) for group in narrowest):
        return [_listed(lead, groups, sections)]
    return [_panel(lead, row, _folded(sections, width), unicode) for row in packed(lead, groups, width)]


def packed(lead: Sequence[TextColumn], groups: Sequence[TextGroup], width: int) -> list[list[TextGroup]]:
    """Return the groups of every panel: as many as fit beside the lead columns, in order; at least one column each."""
    room = _room(lead, width)
    made: list[list[TextGroup]] = []
    for group in _split(groups, room):
        if made and sum(_needed(other) for other in (*made[-1], group)) <= room:
            made[-1].append(group)
        else:
            made.append([group])
    return made


def heads_of(columns: Sequence[TextColumn]) -> list[tuple[str, ...]]:
    """Return the lines of heads, an entry a column; heads of fewer lines are aligned at the bottom."""
    most = max((len(column.heads) for column in columns), default=0)
    padded = [("",) * (most - len(column.heads)) + column.heads for column in columns]
    return [tuple(heads[level] for heads in padded) for level in range(most)]


def _room(lead: Sequence[TextColumn], width: int) -> int:
    """Return the width beside the lead columns."""
    return width - sum(column.width + len(_GAP) for column in lead) + len(_GAP)


def _needed(group: TextGroup) -> int:
    """Return the width of a group, including the gap before it."""
    inner = sum(column.width for column in group.columns) + len(_GAP) * (len(group.columns) - 1)
    return len(_GAP) + max(inner, cell_len(group.name))


def _split(groups: Sequence[TextGroup], room: int) -> Iterator[TextGroup]:
    """Split groups that are too wide for any panel into pieces that fit."""
    for group in groups:
        piece: tuple[TextColumn, ...] = ()
        for column in group.columns:
            if piece and _needed(TextGroup(group.name, (*piece, column))) > room:
                yield TextGroup(group.name, piece)
                piece = ()
            piece = (*piece, column)
        yield TextGroup(group.name, piece)


def _folded(sections: Mapping[int, str], width: int) -> Mapping[int, str]:
    """Fold lines at a width; a panel cuts nothing, and folds nothing itself."""
    return {row: "\n".join(chop_cells(line, width)) for row, line in sections.items()}


def _panel(lead: Sequence[TextColumn], groups: Sequence[TextGroup], sections: Mapping[int, str], unicode: bool) -> Text:
    text = Text(no_wrap=True, overflow="ignore")
    columns = [(column, column.width) for column in lead]
    names = _GAP.join(" " * column.width for column in lead)
    for group in groups:
        inner = _needed(group) - len(_GAP)
        names += _GAP + group.name + " " * (inner - cell_len(group.name))
        slack = inner - sum(column.width for column in group.columns) - len(_GAP) * (len(group.columns) - 1)
        columns += [(column, column.width + (slack if index == 0 else 0)) for index, column in enumerate(group.columns)]

    def line(entries: Sequence[str]) -> str:
        padded = (" " * (width - cell_len(entry)) + entry for entry, (_, width) in zip(entries, columns, strict=True))
        return _GAP.join(padded).rstrip()

    if any(group.name for group in groups):
        text.append(names.rstrip() + "\n", style="bold")
    for entries in heads_of([column for column, _ in columns]):
        text.append(line(entries) + "\n", style="bold")
    text.append(
        ("─" if unicode else "-") * (sum(width for _, width in columns) + len(_GAP) * (len(columns) - 1)) + "\n",
        style="dim",
    )
    for row in range(len(columns[0][0].cells)):
        if row in sections:
            text.append(sections[row] + "\n", style="bold")
        text.append(line([column.cells[row] for column, _ in columns]) + "\n")
    if any(column.trend for group in groups for column in group.columns):
        text.append(line([column.trend for column, _ in columns]) + "\n", style="cyan")
    return text


def _listed(lead: Sequence[TextColumn], groups: Sequence[TextGroup], sections: Mapping[int, str]) -> Text:
    """Return one value a line, for widths in which no table fits."""
    text = Text(overflow="fold")
    for row in range(len(lead[0].cells)):
        if row in sections:
            text.append(sections[row] + "\n", style="bold")
        text.append(", ".join(" ".join((*column.heads, column.cells[row])) for column in lead) + "\n", style="bold")
        for group in groups:
            for column in group.columns:
                text.append(
                    " ".join(part for part in (group.name, *column.heads, column.cells[row].strip()) if part) + "\n"
                )
    return text
