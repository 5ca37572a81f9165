"""Lay out columns of text under heads of several lines, in as many panels as the width requires; cut nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

__all__ = ["TextColumn", "TextGroup", "panels"]

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
    room = width - sum(column.width + len(_GAP) for column in lead) + len(_GAP)
    narrowest = [TextGroup(group.name, (column,)) for group in groups for column in group.columns]
    if any(_needed(group) > room for group in narrowest):
        return [_listed(lead, groups, sections)]
    packed: list[list[TextGroup]] = []
    for group in _split(groups, room):
        if packed and sum(_needed(other) for other in (*packed[-1], group)) <= room:
            packed[-1].append(group)
        else:
            packed.append([group])
    return [_panel(lead, row, _folded(sections, width), unicode) for row in packed]


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
    heads = max((len(column.heads) for group in groups for column in group.columns), default=0)
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
    for level in range(heads):
        # Heads of fewer lines are aligned at the bottom.
        entries = [
            column.heads[level - heads + len(column.heads)] if level >= heads - len(column.heads) else ""
            for column, _ in columns
        ]
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
