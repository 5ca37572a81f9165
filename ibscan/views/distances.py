"""The picture of distances between rows: a histogram of blocks within and between classes, a line each, with edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len

from ibscan.core.records import Array
from ibscan.views.cells import blocks, number
from ibscan.views.grid import TextColumn, TextGroup
from ibscan.views.layout import Sheet, Table, sheet
from ibscan.views.view import View, is_measured, name_of, terms

__all__ = ["TABLE"]

_KINDS = {"within": "distance_within", "between": "distance_between"}
_EDGE = "distance_edge_high"
# Characters of a line, the longest that fits: divisors of the usual 100 bins, so that each stands for as many.
_LENGTHS = (50, 25, 20, 10)
_NOTE = (
    "Pairs of rows of one label (within) and of two (between) by their distance, from 0 to the layer's largest; blocks "
    "are shares of the highest of their line."
)


@dataclass(frozen=True)
class _Line:
    """The histogram of one kind of pairs of a layer at a checkpoint, and the largest distance of the layer."""

    checkpoint: int
    layer: int
    kind: str
    counts: Array
    largest: float


def _lines(view: View) -> Iterator[_Line]:
    """Yield those of the first and the last checkpoint that were measured."""
    for checkpoint in dict.fromkeys((0, view.size - 1)):
        for layer in range(len(view.result["layer"].values)):
            largest = float(view.result[_EDGE].values[checkpoint, layer, -1])
            for kind, name in _KINDS.items():
                counts = view.result[name].values[checkpoint, layer]
                if np.isfinite(largest) and (counts >= 0).all() and counts.sum() > 0:
                    yield _Line(checkpoint, layer, kind, counts, largest)


def _sheets(view: View) -> Iterator[Sheet]:
    if not all(is_measured(view, name, "distance_bin") for name in (*_KINDS.values(), _EDGE)):
        return
    lines = list(_lines(view))
    if not lines:
        return
    axis, labels = view.axis
    names = view.result["layer"].values.tolist()
    lead = [
        TextColumn(("layer",), tuple(name_of(names[line.layer], view.unicode) for line in lines)),
        TextColumn(("pairs",), tuple(line.kind for line in lines)),
    ]
    edges = [number(line.largest) for line in lines]
    room = view.width - sum(2 + one.width for one in lead) - 2 - max(cell_len(edge) for edge in edges)
    length = next((length for length in _LENGTHS if length <= room), _LENGTHS[-1])
    pictures = [blocks(line.counts, length, unicode=view.unicode).ljust(length) for line in lines]
    # Among the leading columns, whose blocks are not looked through for marks.
    lead.append(TextColumn(("from 0".ljust(length),), tuple(pictures)))
    sections: dict[int, str] = {}
    for row, line in enumerate(lines):
        if row == 0 or lines[row - 1].checkpoint != line.checkpoint:
            sections[row] = f"{axis} {labels[line.checkpoint]}"
    title = (TABLE.title, terms(view, _KINDS["within"], unit=False))
    yield sheet(view, title, lead, [TextGroup("", (TextColumn(("to",), tuple(edges)),))], [_NOTE], sections=sections)


TABLE = Table(
    "distances of pairs of rows",
    {
        "pairs": "Pairs of rows of one label (within), or of two (between).",
        "from": "Histogram of their Euclidean distances from 0 on; blocks are shares of the line's highest.",
        "to": "The layer's largest distance, in activation units, where the histogram ends.",
    },
    _sheets,
)
