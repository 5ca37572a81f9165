"""What makes information finite, noise or cells: the variables of each way, their heads, and what to say below them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ibscan.types import Array, Status
from ibscan.views.frame import Frame, codes, measured, name_of, places, statement, terms

__all__ = [
    "CHANNELS",
    "NOISY",
    "PROJECTED",
    "Channel",
    "Leaf",
    "closed",
    "inputs",
    "largest_error",
    "leaves_of",
    "measured_at",
    "notes",
    "widest_bracket",
]

_BINNED = {
    "xt": "binned: entropy over cells; it measures clustering, it does not estimate I(X;T).",
    "ty": "binned: what the cell tells about the label; it depends on the cells chosen.",
}
_SLOPE = "-dI/d ln noise: the slope of I(X; T+Z), in nats: E||T - E[T|T+Z]||^2/noise^2, T the layer, Z the noise."


@dataclass(frozen=True)
class Channel:
    """One way: the variables `mi_KEY_SIDE`, the dimension they run along, and what is said of it."""

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
        "readout_rel",
        "read-out",
        "rel_noise",
        "read-out, noise R rms: at this layer alone, of a standard deviation R times the layer's own root-mean-square "
        "distance from its mean; in activation units it differs by layer and checkpoint (--variable noise_absolute).",
    ),
)
CHANNELS = (*NOISY, Channel("binned", "binned", "binning"))
PROJECTED = Channel("readout_projected", "read-out", "noise")


@dataclass(frozen=True)
class Leaf:
    """One column under every layer: a variable at one value of its parameter."""

    channel: Channel
    side: str
    place: int
    heads: tuple[str, ...]

    @property
    def name(self) -> str:
        """The variable."""
        return self.channel.variable(self.side)


def leaves_of(frame: Frame, channel: Channel, side: str) -> list[Leaf]:
    """Return the columns of a variable, one for each value of its parameter at which anything was measured.

    Args:
        frame: The result and how it is shown.
        channel: Where noise was added, or cells cut.
        side: `xt`, `ty` or `slope`.

    Returns:
        Columns whose heads name channel, quantity and parameter; none where nothing was measured.
    """
    name = channel.variable(side)
    found = places(frame, name, channel.dim)
    symbol = name_of(str(frame.result[name].attrs.get("symbol", "")), frame.unicode) if found else ""
    parameters = {place: _parameter(frame, channel, place) for place in found}
    return [Leaf(channel, side, place, (channel.label, symbol, text)) for place, text in parameters.items()]


def _parameter(frame: Frame, channel: Channel, place: int) -> str:
    value = frame.result[channel.dim].values.tolist()[place]
    if isinstance(value, str):
        return name_of(value, frame.unicode)
    return f"noise {value:g}" + (" rms" if channel.dim == "rel_noise" else "")


def measured_at(frame: Frame, leaves: Sequence[Leaf], *, unit: bool = True) -> str:
    """Return under what terms columns were measured: those of the first, and of channels that have others."""
    first = terms(frame, leaves[0].name, unit=False)
    others = {one.channel.label: terms(frame, one.name, unit=False) for one in leaves}
    listed = [f"{label} {other}" for label, other in others.items() if other != first]
    return "; ".join((terms(frame, leaves[0].name, unit=unit), *listed))


def closed(frame: Frame, name: str) -> Array:
    """Return the values of a variable, less those of the network channel whose bracket is open: they can be anything.

    Args:
        frame: The result and how it is shown.
        name: A variable over (checkpoint, layer, parameter).

    Returns:
        (C, L, P) in the unit asked for, NaN where the bracket is open.
    """
    values, status, result = frame.scaled(name), codes(frame, name), frame.result
    ends = [f"{name}_{end}" for end in ("lower", "upper", "se")]
    bracketed = all(end in result and result[end].dims == result[name].dims for end in ends)
    if status is None or not bracketed or not name.startswith("mi_network_"):
        return values
    low, high, error = (result[end].values for end in ends)
    tolerance = result.settings.get("measures", {}).get("mi_network", {}).get("tolerance", 0.0)
    is_open = (status == Status.UNRESOLVED) & ((high - low) / 2 - 1.96 * error > tolerance)
    return np.where(is_open, np.nan, values)


def notes(frame: Frame, leaves: Sequence[Leaf]) -> list[str]:
    """Return what needs saying below columns of one side.

    Args:
        frame: The result and how it is shown.
        leaves: At least one.

    Returns:
        What the channels are, how exact the values, and above what none can be.
    """
    side = leaves[0].side
    binned = [one for one in leaves if one.channel.dim == "binning"]
    found = list(dict.fromkeys(one.channel.note for one in leaves if one.channel.note))
    found += [_SLOPE] if side == "slope" else []
    if binned:
        found += [_BINNED[side], *_moving(frame, binned), *_outside(frame, binned)]
    arrays = {one.name: (closed(frame, one.name), codes(frame, one.name)) for one in leaves}
    marked = [(arrays[one.name][0][..., one.place], arrays[one.name][1], one.place) for one in leaves]
    if any((np.isnan(v) & (s[..., k] == Status.UNRESOLVED)).any() for v, s, k in marked if s is not None):
        found.append("? alone: the bracket is open, the value means nothing; --variable NAME_lower and NAME_upper.")
    error, bracket = largest_error(frame, leaves), widest_bracket(frame, leaves)
    unit = frame.unit(leaves[0].name)
    found += [f"Standard errors up to {statement(error, unit)}."] if error is not None else []
    if bracket is not None:
        ends = f"Brackets of the network channel end up to {statement(bracket, unit)} from its values"
        found.append(f"{ends}, unresolved ones aside.")
    return found + ([_ceiling(frame, leaves[0].name)] if side == "xt" else [])


def inputs(frame: Frame, name: str) -> tuple[float, bool]:
    """Return H(X) in nats, above which no I(X;T) can be, and whether it is known: else it is that of distinct rows."""
    known = frame.result.settings.get("input_entropy")
    if isinstance(known, int | float) and math.isfinite(known):
        return float(known), True
    return math.log(max(1, frame.result[name].attrs.get("rows", 0))), False


def _ceiling(frame: Frame, name: str) -> str:
    entropy, known = inputs(frame, name)
    bound = statement(entropy / (math.log(2) if frame.unit(name) == "bit" else 1.0), frame.unit(name))
    if known:
        return f"Ceiling: H(X) = {bound}."
    return f"Ceiling: H(X), at most ln {frame.result[name].attrs.get('rows', 0)} = {bound}, less where rows repeat."


def largest_error(
    frame: Frame, leaves: Sequence[Leaf], *, last: bool = False, layers: Sequence[int] | None = None
) -> float | None:
    """Return the largest standard error of columns to two digits, of all checkpoints or the last; None without any.

    Of values that are not shown, as their bracket is open, none counts, nor of layers other than those given.
    """
    found: list[float] = []
    for one in leaves:
        if f"{one.name}_se" in frame.result.variables:
            rows, across = slice(-1 if last else 0, None), slice(None) if layers is None else layers
            values = frame.scaled(f"{one.name}_se")[rows, across, one.place]
            shown = np.isfinite(values) & np.isfinite(closed(frame, one.name)[rows, across, one.place])
            found += values[shown].tolist()
    return float(f"{max(found):.2g}") if found else None


def widest_bracket(frame: Frame, leaves: Sequence[Leaf], *, last: bool = False) -> float | None:
    """Return how far the ends of the network channel's brackets are from its values, where those are resolved."""
    found: list[float] = []
    for one in leaves:
        if one.channel.key == "network" and f"{one.name}_upper" in frame.result.variables:
            ends = frame.scaled(f"{one.name}_upper") - frame.scaled(f"{one.name}_lower")
            status = codes(frame, one.name)
            resolved = np.isfinite(ends) if status is None else np.isfinite(ends) & (status != Status.UNRESOLVED)
            rows = slice(-1 if last else 0, None)
            found += (0.5 * ends[rows, :, one.place][resolved[rows, :, one.place]]).tolist()
    return float(f"{max(found):.2g}") if found else None


def _moving(frame: Frame, binned: Sequence[Leaf]) -> Iterator[str]:
    """Say where cells changed their width along the series: such values do not compare."""
    name = "mi_binned_width"
    if not measured(frame, name, "binning"):
        return
    status = codes(frame, name)
    values = frame.result[name].values
    widths = values if status is None else np.where(status == Status.NOT_MEASURED, np.nan, values)
    factors: Mapping[str, float] = {one.heads[-1]: _factor(widths[:, :, one.place]) for one in binned}
    moved = {label: factor for label, factor in factors.items() if factor > 1 + 1e-9}
    if moved:
        yield (
            f"{', '.join(moved)}: the cells followed the range of the activations, by up to a factor "
            f"{max(moved.values()):.3g}, so checkpoints do not compare; --bin-width keeps them fixed."
        )


def _factor(widths: Array) -> float:
    """Return by how much the width of cells changed between checkpoints, in the layer where it did most."""
    known = [column[np.isfinite(column)] for column in widths.T]
    return max((column.max() / column.min() for column in known if len(column) and column.min() > 0), default=1.0)


def _outside(frame: Frame, binned: Sequence[Leaf]) -> Iterator[str]:
    name = "mi_binned_outside"
    if not measured(frame, name, "binning"):
        return
    for one in binned:
        shares = frame.result[name].values[:, :, one.place]
        largest = float(np.nanmax(shares, initial=0.0))
        if largest > 0:
            yield f"{one.heads[-1]}: up to {100 * largest:.3g} % of values lay outside the range, in its end cells."
