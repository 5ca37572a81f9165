"""The channels of mutual information, noisy or binned: their variables, column heads, and notes below tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.cells import has_open_bracket
from ibscan.views.column import Column, column
from ibscan.views.view import View, is_measured, measured_indices, name_of, quantity_of, statuses, terms

__all__ = [
    "CHANNELS",
    "HEADS",
    "NOISY",
    "PROJECTED",
    "SIDES",
    "Channel",
    "ChannelColumn",
    "channel_columns",
    "input_entropy",
    "largest_error",
    "leading",
    "measured_at",
    "noise_groups",
    "notes",
    "widest_bracket",
]

HEADS: Mapping[str, str] = {
    "network": "Network channel: noise is added to the output of every hidden layer, and propagated.",
    "read-out": "Read-out channel: noise is added to the output of the measured layer alone.",
    "binned": "Entropy or information of the layer's activations cut into cells; no noise is added.",
}
_BINNED = {
    "xt": "binned: entropy over cells; it measures clustering, it does not estimate I(X;T).",
    "ty": "binned: what the cell tells about the label; it depends on the cells chosen.",
}
_SLOPE = "-dI/d ln noise: the slope of I(X; T+Z), in nats: E||T - E[T|T+Z]||^2/noise^2, T the layer, Z the noise."


@dataclass(frozen=True)
class Channel:
    """One channel: its variables are `mi_KEY_SIDE`, over the dimension `dim`; tables name it by `label`."""

    key: str
    label: str
    dim: str
    note: str = ""

    def variable(self, side: str) -> str:
        """Return the name of the variable of one side: `xt`, `ty`, or `slope`."""
        return f"mi_{self.key}_{side}"


NOISY = (
    Channel("network", "network", "noise", "network: Gaussian noise of that standard deviation at every hidden layer."),
    Channel("readout", "read-out", "noise", "read-out: Gaussian noise of that standard deviation at this layer alone."),
    Channel(
        "network_rel",
        "network",
        "rel_noise",
        "network, noise R rms: at every hidden layer, of a standard deviation R times the layer's own root-mean-square "
        "distance from its mean without noise; in activation units it differs by layer and checkpoint (--variable "
        "mi_network_noise_absolute).",
    ),
    Channel(
        "readout_rel",
        "read-out",
        "rel_noise",
        "read-out, noise R rms: at this layer alone, of a standard deviation R times the layer's own root-mean-square "
        "distance from its mean; in activation units it differs by layer and checkpoint (--variable noise_absolute).",
    ),
)
# Quantities of a channel that have a table or a curve.
SIDES = ("xt", "ty", "slope")
CHANNELS = (*NOISY, Channel("binned", "binned", "binning"))
PROJECTED = Channel("readout_projected", "read-out", "noise")


@dataclass(frozen=True)
class ChannelColumn:
    """One column under every layer: a quantity of a channel at one value of its parameter, and the heads over it."""

    channel: Channel
    side: str
    index: int
    heads: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the variable shown."""
        return self.channel.variable(self.side)


def leading(view: View, channels: Sequence[Channel]) -> list[Channel]:
    """Order channels: where hidden layers have no bounds, noise relative to the layer comes first."""
    first = bool(view.result.settings.get("unbounded"))
    return sorted(channels, key=lambda channel: first and channel.dim != "rel_noise")


def channel_columns(view: View, channel: Channel, side: str) -> list[ChannelColumn]:
    """List the columns of a side (`xt`, `ty` or `slope`), one for each parameter at which anything was measured.

    Their heads name channel, quantity and parameter.
    """
    key = channel.variable(side)
    found = measured_indices(view, key, channel.dim)
    symbol = name_of(str(view.result[key].attrs.get("symbol", "")), view.unicode) if found else ""
    return [
        ChannelColumn(channel, side, index, (channel.label, symbol, _parameter(view, channel, index)))
        for index in found
    ]


def noise_groups(
    view: View,
    found: Sequence[Sequence[ChannelColumn]],
    *,
    change: Callable[[Array], Array] | None = None,
    prefix: str = "",
) -> list[tuple[str, list[Column]]]:
    """Return a group of columns for each channel, under heads that give the noise alone.

    `change`, increasing, is applied to the numbers; `prefix` is put before the name of the channel.
    """

    def shown(one: ChannelColumn) -> Column:
        plain = column(view, one.key, one.heads[-1].split(" ", 1), one.index)
        return plain if change is None else plain.changed(change)

    return [(prefix + columns[0].channel.label, [shown(one) for one in columns]) for columns in found]


def _parameter(view: View, channel: Channel, index: int) -> str:
    value = view.result[channel.dim].values.tolist()[index]
    if isinstance(value, str):
        return name_of(value, view.unicode)
    return f"noise {value:g}" + (" rms" if channel.dim == "rel_noise" else "")


def measured_at(view: View, columns: Sequence[ChannelColumn], *, unit: bool = True) -> str:
    """Return the terms of the first column, and those of channels that differ from it."""
    first = terms(view, columns[0].key, unit=False)
    others = {one.channel.label: terms(view, one.key, unit=False) for one in columns}
    listed = [f"{label} {other}" for label, other in others.items() if other != first]
    return "; ".join((terms(view, columns[0].key, unit=unit), *listed))


def notes(view: View, columns: Sequence[ChannelColumn]) -> list[str]:
    """Return the notes below columns of one side: what the channels are, how exact the values, and their ceiling."""
    side = columns[0].side
    binned = [one for one in columns if one.channel.dim == "binning"]
    found = list(dict.fromkeys(one.channel.note for one in columns if one.channel.note))
    found += [_SLOPE] if side == "slope" else []
    if binned:
        found += [*([_BINNED[side]] if side in _BINNED else []), *_moving(view, binned), *_outside(view, binned)]
    error, bracket = largest_error(view, columns), widest_bracket(view, columns)
    unit = view.unit(columns[0].key)
    found += [f"Standard errors up to {quantity_of(error, unit)}."] if error is not None else []
    if bracket is not None:
        ends = f"Brackets of the network channel end up to {quantity_of(bracket, unit)} from its values"
        found.append(f"{ends}, unresolved ones aside.")
    return found + ([_ceiling(view, columns[0].key)] if side == "xt" else [])


def input_entropy(view: View, key: str) -> tuple[float, bool]:
    """Return H(X) in nats, the ceiling of I(X;T), and whether it is known; otherwise rows are taken as distinct."""
    known = view.result.settings.get("input_entropy")
    if isinstance(known, int | float) and math.isfinite(known):
        return float(known), True
    return math.log(max(1, view.result[key].attrs.get("rows", 0))), False


def _ceiling(view: View, key: str) -> str:
    entropy, known = input_entropy(view, key)
    bound = quantity_of(entropy / (math.log(2) if view.unit(key) == "bit" else 1.0), view.unit(key))
    if known:
        return f"Ceiling: H(X) = {bound}."
    return f"Ceiling: H(X), at most ln {view.result[key].attrs.get('rows', 0)} = {bound}, less where rows repeat."


def largest_error(
    view: View, columns: Sequence[ChannelColumn], *, last: bool = False, layers: Sequence[int] | None = None
) -> float | None:
    """Return the largest standard error of columns to two digits, of all checkpoints or the last; None without any.

    Of the layers given alone, of values that are finite, and without those whose bracket is open: it stands beside
    them, and includes their errors.
    """

    def errors(key: str) -> Array | None:
        found = view.companion(key, "stderr")
        opened = has_open_bracket(statuses(view, key), view.bracket(key))
        usable = np.isfinite(view.values(key)) & (True if opened is None else ~opened)
        return None if found is None else np.where(usable, found, np.nan)

    return _largest(columns, errors, last, layers)


def widest_bracket(view: View, columns: Sequence[ChannelColumn], *, last: bool = False) -> float | None:
    """Return the largest half width of the brackets of columns, resolved values alone; None without any."""

    def half_widths(key: str) -> Array | None:
        ends, status = view.bracket(key), statuses(view, key)
        if ends is None:
            return None
        width = ends[1] - ends[0]
        return 0.5 * (width if status is None else np.where(status == Status.UNRESOLVED, np.nan, width))

    return _largest(columns, half_widths, last)


def _largest(
    columns: Sequence[ChannelColumn], of: Callable[[str], Array | None], last: bool, layers: Sequence[int] | None = None
) -> float | None:
    """Return the largest finite value (C, L, P) of columns to two digits, of all checkpoints or the last."""
    rows, across = slice(-1 if last else 0, None), slice(None) if layers is None else layers
    arrays = ((of(one.key), one.index) for one in columns)
    parts = [values[rows, across, index] for values, index in arrays if values is not None]
    known = [float(part[np.isfinite(part)].max()) for part in parts if np.isfinite(part).any()]
    return float(f"{max(known):.2g}") if known else None


def _moving(view: View, binned: Sequence[ChannelColumn]) -> Iterator[str]:
    """Note cells whose width changed along the series, so that values cannot be compared."""
    name = "mi_binned_width"
    if not is_measured(view, name, "binning"):
        return
    status = statuses(view, name)
    values = view.result[name].values
    widths = values if status is None else np.where(status == Status.NOT_MEASURED, np.nan, values)
    factors: Mapping[str, float] = {one.heads[-1]: _factor(widths[:, :, one.index]) for one in binned}
    moved = {label: factor for label, factor in factors.items() if factor > 1 + 1e-9}
    if moved:
        yield (
            f"{', '.join(moved)}: the cells followed the range of the activations, by up to a factor "
            f"{max(moved.values()):.3g}, so checkpoints do not compare; --bin-width keeps them fixed."
        )


def _factor(widths: Array) -> float:
    """Return the ratio of largest to smallest width (C, L) over checkpoints, in the layer where it is largest."""
    known = [column[np.isfinite(column)] for column in widths.T]
    return max((column.max() / column.min() for column in known if len(column) and column.min() > 0), default=1.0)


def _outside(view: View, binned: Sequence[ChannelColumn]) -> Iterator[str]:
    """Note cells at the ends of the range that hold values beyond it."""
    name = "mi_binned_outside"
    if not is_measured(view, name, "binning"):
        return
    for one in binned:
        shares = view.result[name].values[:, :, one.index]
        largest = float(np.nanmax(shares, initial=0.0))
        if largest > 0:
            yield f"{one.heads[-1]}: up to {100 * largest:.3g} % of values lay outside the range, in its end cells."
