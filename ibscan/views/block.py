"""A table as it is printed: title, panels, marks explained, and what needs saying below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.text import Text

from ibscan.types import Status
from ibscan.views.cells import MEANINGS, mark
from ibscan.views.frame import Frame
from ibscan.views.grid import Group, panels

__all__ = ["block", "legend"]


def block(frame: Frame, title: Sequence[str], groups: Sequence[Group], notes: Sequence[str]) -> Stack:
    """Return a table with its title, its panels, and what needs saying below it."""
    separator = " · " if frame.unicode else " - "
    texts = [Text(separator.join(part for part in title if part), style="bold yellow", overflow="fold")]
    texts += panels(frame.lead, groups, width=frame.width, unicode=frame.unicode)
    texts += [Text(note, style="dim", overflow="fold") for note in (*legend(frame, groups), *notes, *_thinning(frame))]
    return Stack(*texts, Text(""))


def legend(frame: Frame, groups: Sequence[Group]) -> list[str]:
    """Explain the marks that occur, and no others."""
    cells = [
        text.strip() for column in (*frame.lead[1:], *(c for g in groups for c in g.columns)) for text in column.cells
    ]
    seen: list[str] = []
    for status, meaning in MEANINGS.items():
        sign = mark(status, unicode=frame.unicode)
        if any(text == sign or (status is not Status.NOT_MEASURED and text.endswith(sign)) for text in cells):
            seen.append(f"{sign} {meaning}")
    return ["; ".join(seen)] if seen else []


def _thinning(frame: Frame) -> list[str]:
    rows = len(frame.rows)
    return (
        [f"{rows} of {frame.size} checkpoints shown (--all shows every one); trend over all."]
        if rows < frame.size
        else []
    )
