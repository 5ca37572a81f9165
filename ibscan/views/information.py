"""Tables of I(X;T) or I(T;Y): noisy channels and binning side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from ibscan.views.channels import (
    CHANNELS,
    Channel,
    ChannelColumn,
    channel_columns,
    input_entropy,
    leading,
    measured_at,
    notes,
)
from ibscan.views.column import Column, Course, column
from ibscan.views.curve import curve_table
from ibscan.views.layout import Sheet, by_checkpoint
from ibscan.views.scale import telling_noise
from ibscan.views.view import View

__all__ = ["information_courses", "information_sheets"]

_MOST_COLUMNS = 4
# More values of one parameter are easier to read as a curve.
_MOST_VALUES = 4


def information_courses(view: View, side: str) -> Iterator[Course]:
    """Yield each channel at each parameter of a side (`xt` or `ty`) at which anything was measured."""
    for channel in leading(view, CHANNELS):
        for one in channel_columns(view, channel, side):
            yield Course(one.heads, _shown(view, one), channel.key)


def information_sheets(view: View, side: str, title: str) -> Iterator[Sheet]:
    """Yield the tables of a side (`xt` or `ty`), as far as it was measured.

    One table; or, with more than four columns, one for each noise, one for noise relative to the layer, and one for
    binned values. A channel with more than four noises or kinds of cells gets a curve over them.
    """
    channels = leading(view, CHANNELS)
    part = partial(_part, channels)
    found = [columns for channel in channels if (columns := channel_columns(view, channel, side))]
    few = sorted((one for columns in found if len(columns) <= _MOST_VALUES for one in columns), key=part)
    tables = [list(own) for _, own in groupby(few, part)] if len(few) > _MOST_COLUMNS else [few] if few else []
    curves = [columns for columns in found if len(columns) > _MOST_VALUES]
    for columns in sorted((*tables, *curves), key=lambda columns: channels.index(columns[0].channel)):
        if columns in curves:
            yield curve_table(view, columns[0].key)
            continue
        shown = [_shown(view, one) for one in columns]
        advice = telling_noise(view, columns)
        below = [*notes(view, columns), *([advice] if advice is not None else [])]
        yield by_checkpoint(view, (title, measured_at(view, columns)), shown, below)


def _shown(view: View, one: ChannelColumn) -> Column:
    """Return the numbers of a column; those of I(X;T) are between 0 and H(X)."""
    ceiling = None if one.side != "xt" else input_entropy(view, one.key)[0]
    if ceiling is not None and view.unit(one.key) == "bit":
        ceiling /= math.log(2)
    return column(view, one.key, one.heads, one.index, ceiling=ceiling)


def _part(channels: Sequence[Channel], one: ChannelColumn) -> tuple[int, int]:
    """Return the sort key that columns of one table share: one noise, all relative noises, or all cells."""
    dims = list(dict.fromkeys(channel.dim for channel in channels))
    return dims.index(one.channel.dim), one.index if one.channel.dim == "noise" else 0
