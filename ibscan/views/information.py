"""The tables of mutual information: noisy channels and binning side by side, none without its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Group as Stack

from ibscan.types import Array, Status
from ibscan.views.frame import Cells, Frame, block, layered, leaf, measured, name_of, statement, terms

__all__ = ["information_tables"]

_CHANNELS = {"network": "network", "readout": "read-out"}
_MOST_LEAVES = 4
_TITLES = {"xt": "mutual information I(X;T)", "ty": "mutual information I(T;Y)"}
_CHANNEL_NOTES = {
    "network": "network: Gaussian noise of that standard deviation at every hidden layer.",
    "readout": "read-out: Gaussian noise of that standard deviation at this layer alone.",
}
_BINNED_NOTES = {
    "xt": "binned: entropy over cells; it measures clustering, it does not estimate I(X;T).",
    "ty": "binned: what the cell tells about the label; it depends on the cells chosen.",
}


@dataclass(frozen=True)
class _Leaf:
    """One column under every layer: a variable at one value of its parameter."""

    name: str
    heads: tuple[str, ...]
    place: int


def information_tables(frame: Frame) -> Iterator[Stack | None]:
    """Yield the tables of I(X;T) and I(T;Y), as far as they were measured.

    Args:
        frame: The result and how it is shown.

    Yields:
        One table; with many noises one for each noise, and one for the binned values.
    """
    for side in ("xt", "ty"):
        noisy = [name for name in (f"mi_{c}_{side}" for c in _CHANNELS) if measured(frame, name, "noise")]
        binned = f"mi_binned_{side}"
        noises = frame.result["noise"].values.tolist() if noisy else []
        by_noise = [[_noisy(frame, name, place, value) for name in noisy] for place, value in enumerate(noises)]
        cells = _binned(frame, binned) if measured(frame, binned, "binning") else []
        together = [leaf for leaves in by_noise for leaf in leaves] + cells
        if len(together) <= _MOST_LEAVES:
            by_noise, cells = ([together] if together else []), []
        for leaves in (*by_noise, *([cells] if cells else [])):
            yield _table(frame, side, leaves)


def _noisy(frame: Frame, name: str, place: int, noise: float) -> _Leaf:
    channel = next(label for key, label in _CHANNELS.items() if name.startswith(f"mi_{key}_"))
    return _Leaf(name, (channel, _symbol(frame, name), f"noise {noise:g}"), place)


def _binned(frame: Frame, name: str) -> list[_Leaf]:
    binnings = frame.result["binning"].values.tolist()
    symbol = _symbol(frame, name)
    return [
        _Leaf(name, ("binned", symbol, name_of(label, frame.unicode)), place) for place, label in enumerate(binnings)
    ]


def _symbol(frame: Frame, name: str) -> str:
    return name_of(str(frame.result[name].attrs.get("symbol", "")), frame.unicode)


def _table(frame: Frame, side: str, leaves: Sequence[_Leaf]) -> Stack:
    def columns(layer: int) -> Sequence[Cells]:
        return [_closed(frame, one, layer) for one in leaves]

    names = list(dict.fromkeys(one.name for one in leaves))
    notes = [note for key, note in _CHANNEL_NOTES.items() if f"mi_{key}_{side}" in names]
    binned = [one for one in leaves if one.name == f"mi_binned_{side}"]
    if binned:
        notes += [_BINNED_NOTES[side], *_moving(frame, binned), *_outside(frame, binned)]
    if any(np.isnan(cells.values[_unresolved(cells)]).any() for k in range(_layers(frame)) for cells in columns(k)):
        notes.append("? alone: the bracket is open, the value means nothing; --variable NAME_lower and NAME_upper.")
    errors, brackets = _largest_error(frame, leaves), _widest_bracket(frame, leaves)
    notes += [note for note in (errors, brackets) if note] + ([_ceiling(frame, names[0])] if side == "xt" else [])
    return block(frame, (_TITLES[side], terms(frame, names[0])), layered(frame, columns), notes)


def _closed(frame: Frame, one: _Leaf, layer: int) -> Cells:
    """Return a column, less values of the network channel whose bracket is open: those can be anything."""
    cells = leaf(frame, one.name, one.heads, layer, one.place)
    if not one.name.startswith("mi_network_") or f"{one.name}_upper" not in frame.result:
        return cells
    at = (slice(None), layer, one.place)
    low, high, error = (frame.result[f"{one.name}_{end}"].values[at] for end in ("lower", "upper", "se"))
    tolerance = frame.result.settings.get("measures", {}).get("mi_network", {}).get("tolerance", 0.0)
    is_open = _unresolved(cells) & ((high - low) / 2 - 1.96 * error > tolerance)
    return replace(cells, values=np.where(is_open, np.nan, cells.values))


def _unresolved(cells: Cells) -> Array:
    found: Array = np.asarray(cells.statuses == Status.UNRESOLVED) if cells.statuses is not None else np.zeros(0, bool)
    return found if found.shape == cells.values.shape else np.zeros(cells.values.shape, dtype=bool)


def _layers(frame: Frame) -> int:
    return len(frame.result["layer"].values)


def _ceiling(frame: Frame, name: str) -> str:
    """Return the sentence on H(X), above which no I(X;T) can be."""
    known = frame.result.settings.get("input_entropy")
    rows = frame.result[name].attrs.get("rows", 0)
    scale = math.log(2) if frame.unit(name) == "bit" else 1.0
    if isinstance(known, int | float) and math.isfinite(known):
        return f"Ceiling: H(X) = {statement(known / scale, frame.unit(name))}."
    bound = statement(math.log(max(1, rows)) / scale, frame.unit(name))
    return f"Ceiling: H(X), at most ln {rows} = {bound}, less where rows repeat."


def _largest_error(frame: Frame, leaves: Sequence[_Leaf]) -> str:
    found: list[float] = []
    for one in leaves:
        if f"{one.name}_se" in frame.result.variables:
            values = frame.scaled(f"{one.name}_se")[..., one.place]
            found += values[np.isfinite(values)].tolist()
    unit = frame.unit(leaves[0].name)
    return f"Standard errors up to {statement(float(f'{max(found):.2g}'), unit)}." if found else ""


def _widest_bracket(frame: Frame, leaves: Sequence[_Leaf]) -> str:
    """Say how far the ends of the network channel's brackets are from its values, where those are resolved."""
    found: list[float] = []
    for one in leaves:
        if one.name.startswith("mi_network_") and f"{one.name}_upper" in frame.result.variables:
            ends = frame.scaled(f"{one.name}_upper") - frame.scaled(f"{one.name}_lower")
            status = frame.result.status(one.name)
            closed = np.isfinite(ends) if status is None else np.isfinite(ends) & (status != Status.UNRESOLVED)
            found += (0.5 * ends[..., one.place][closed[..., one.place]]).tolist()
    if not found:
        return ""
    farthest = statement(float(f"{max(found):.2g}"), frame.unit(leaves[0].name))
    return f"Brackets of the network channel end up to {farthest} from its values, unresolved ones aside."


def _moving(frame: Frame, binned: Sequence[_Leaf]) -> Iterator[str]:
    """Say where cells changed their width along the series: such values do not compare."""
    name = "mi_binned_width"
    if not measured(frame, name, "binning"):
        return
    status = frame.result.status(name)
    widths = (
        frame.result[name].values
        if status is None
        else np.where(status == Status.NOT_MEASURED, np.nan, frame.result[name].values)
    )
    for one in binned:
        known = [column[np.isfinite(column)] for column in widths[:, :, one.place].T]
        ratios = [column.max() / column.min() for column in known if len(column) and column.min() > 0]
        if any(ratio > 1 + 1e-9 for ratio in ratios):
            yield (
                f"{one.heads[-1]}: the cells followed the range of the activations, by up to a factor "
                f"{max(ratios):.3g}, so checkpoints do not compare; --bin-width keeps them fixed."
            )


def _outside(frame: Frame, binned: Sequence[_Leaf]) -> Iterator[str]:
    name = "mi_binned_outside"
    if not measured(frame, name, "binning"):
        return
    for one in binned:
        shares = frame.result[name].values[:, :, one.place]
        largest = float(np.nanmax(shares, initial=0.0))
        if largest > 0:
            yield f"{one.heads[-1]}: up to {100 * largest:.3g} % of values lay outside the range, in its end cells."
