"""The tables of mutual information: noisy channels and binning side by side, none without its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Group as Stack

from ibscan.views.block import block
from ibscan.views.channels import CHANNELS, Leaf, closed, leaves_of, measured_at, notes
from ibscan.views.curve import curve_table
from ibscan.views.frame import Cells, Frame, codes, layered

__all__ = ["information_tables"]

_MOST_LEAVES = 4
# Of more values of one parameter a table each, or one so wide, is read less well than a curve.
_MOST_VALUES = 4
_TITLES = {"xt": "mutual information I(X;T)", "ty": "mutual information I(T;Y)"}


def information_tables(frame: Frame, side: str) -> Iterator[Stack]:
    """Yield the tables of I(X;T), or of I(T;Y), as far as it was measured.

    Args:
        frame: The result and how it is shown.
        side: `xt` or `ty`.

    Yields:
        One table; with several noises one for each noise, one for noise relative to the layer, and one for the binned
        values. What was measured at more than four noises, or in more than four kinds of cells, is a curve over them.
    """
    found = [leaves for channel in CHANNELS if (leaves := leaves_of(frame, channel, side))]
    few = sorted((one for leaves in found if len(leaves) <= _MOST_VALUES for one in leaves), key=_part)
    tables = [list(part) for _, part in groupby(few, _part)] if len(few) > _MOST_LEAVES else [few] if few else []
    curves = [leaves for leaves in found if len(leaves) > _MOST_VALUES]
    for leaves in sorted((*tables, *curves), key=lambda leaves: CHANNELS.index(leaves[0].channel)):
        yield curve_table(frame, leaves[0].name) if leaves in curves else _table(frame, side, leaves)


def _part(one: Leaf) -> tuple[int, int]:
    """Return what columns of one table share, in the order of tables: a noise, or any relative noise, or any cells."""
    dims = list(dict.fromkeys(channel.dim for channel in CHANNELS))
    return dims.index(one.channel.dim), one.place if one.channel.dim == "noise" else 0


def _table(frame: Frame, side: str, leaves: Sequence[Leaf]) -> Stack:
    arrays = {one.name: (closed(frame, one.name), codes(frame, one.name)) for one in leaves}

    def columns(layer: int) -> Sequence[Cells]:
        cells = []
        for one in leaves:
            values, status = arrays[one.name]
            marks = None if status is None else status[:, layer, one.place]
            cells.append(Cells(one.heads, values[:, layer, one.place], marks))
        return cells

    title = (_TITLES[side], measured_at(frame, leaves))
    return block(frame, title, layered(frame, columns), notes(frame, leaves))
