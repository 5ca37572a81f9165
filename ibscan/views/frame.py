"""What every table of one result shares: which rows, which axis, which unit, and how a column is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibscan.types import Array, Result, Status
from ibscan.views.cells import formatted, number, trend
from ibscan.views.console import escaped
from ibscan.views.grid import Column, Group

__all__ = [
    "Cells",
    "Frame",
    "codes",
    "derivative",
    "layered",
    "leaf",
    "measured",
    "name_of",
    "places",
    "statement",
    "terms",
    "thinned",
]

_MOST_ROWS = 12
_TREND = 8
_WHOLE = "checkpoint"


@dataclass(frozen=True)
class Cells:
    """One column before it is text: heads, (C,) values and statuses over all checkpoints."""

    heads: tuple[str, ...]
    values: Array
    statuses: Array | None


@dataclass(frozen=True)
class Frame:
    """A result and how it is to be shown; `labels` names rows that are no checkpoints, and what they are."""

    result: Result
    units: str
    every: bool
    width: int
    unicode: bool
    labels: tuple[str, list[str]] | None = None

    @property
    def size(self) -> int:
        """C, the number of checkpoints."""
        return len(self.result["checkpoint"].values)

    @property
    def rows(self) -> list[int]:
        """Checkpoints shown: all, or those spread evenly over the logarithm of the axis."""
        if self.every:
            return list(range(self.size))
        values = self.axis_values
        return thinned(self.size if values is None else values, _MOST_ROWS)

    @property
    def axis_values(self) -> Array | None:
        """The series' axis, or None where it is not known of all checkpoints."""
        column = {"epoch": "epoch", "step": "step"}.get(self.axis_name, "value")
        values = self.result[column].values
        known = (values >= 0).all() if column == "step" else np.isfinite(values).all()
        return values if known else None

    @property
    def axis_name(self) -> str:
        """Name of the series' axis, `epoch` where the result does not say."""
        axis = self.result.settings.get("axis")
        return axis if isinstance(axis, str) and axis else "epoch"

    @property
    def axis(self) -> tuple[str, list[str]]:
        """Name of the series' axis and one label a checkpoint; names where the axis is not known of all."""
        if self.labels is not None:
            return self.labels
        values = self.axis_values
        if values is not None:
            return name_of(self.axis_name, self.unicode), [_coordinate(value) for value in values.tolist()]
        names = self.result["checkpoint_name"].values.tolist()
        return "checkpoint", [name_of(name, self.unicode) for name in names]

    def scaled(self, name: str) -> Array:
        """Return a variable's values in the unit asked for."""
        found = self.result[name]
        values = found.values.astype(np.float64)
        return values / math.log(2) if self.units == "bits" and found.attrs.get("units") == "nat" else values

    def unit(self, name: str) -> str:
        """Return the unit asked for of a variable; empty for plain numbers."""
        unit = str(self.result[name].attrs.get("units", ""))
        shown = "bit" if self.units == "bits" and unit == "nat" else unit
        return "" if shown == "1" else name_of(shown, self.unicode)

    def column(self, cells: Cells) -> Column:
        """Return a column of the checkpoints shown, and the trend over all."""
        rows = self.rows
        shown = None if cells.statuses is None else cells.statuses[rows]
        texts = formatted(cells.values[rows], shown, unicode=self.unicode)
        finite = cells.values if cells.statuses is None else _without_gaps(cells)
        course = trend(finite, max(_TREND, *(len(text) for text in texts)), unicode=self.unicode)
        return Column(cells.heads, tuple(texts), course)

    @property
    def lead(self) -> list[Column]:
        """The axis, and how well the checkpoint does on the probe."""
        name, labels = self.axis
        rows = self.rows
        columns = [Column((name,), tuple(labels[row] for row in rows), "trend" if self.size > 1 else "")]
        if measured(self, "probe_accuracy", _WHOLE):
            columns.append(self.column(leaf(self, "probe_accuracy", ("accuracy",), None)))
        return columns


def _coordinate(value: float) -> str:
    return str(value) if isinstance(value, int) else str(int(value)) if value.is_integer() else f"{value:.6g}"


def _without_gaps(cells: Cells) -> Array:
    gaps = np.asarray(cells.statuses) == Status.NOT_MEASURED
    return np.where(gaps, np.nan, cells.values)


def name_of(text: str, unicode: bool) -> str:
    """Return a name from a file as one line that the terminal can show."""
    safe = escaped(text)
    return safe if unicode else safe.encode("ascii", "backslashreplace").decode("ascii")


def measured(frame: Frame, name: str, *own: str) -> bool:
    """Return whether a variable of these dimensions beyond (checkpoint, layer) is there, and any cell measured."""
    dims = ("checkpoint",) if own == (_WHOLE,) else ("checkpoint", "layer", *own)
    # What stands in a file under a known name need not be what this program would have written.
    if name not in frame.result.variables or frame.result[name].dims != dims:
        return False
    status = frame.result.status(name)
    return bool((status != Status.NOT_MEASURED).any()) if status is not None else frame.result[name].values.size > 0


def codes(frame: Frame, name: str) -> Array | None:
    """Return a variable's statuses. A count has none: what it holds in place of a count is not measured."""
    status, values = frame.result.status(name), frame.result[name].values
    if status is None and values.dtype.kind in "iu":
        return np.where(values < 0, Status.NOT_MEASURED, Status.OK)
    return status


def places(frame: Frame, name: str, own: str) -> list[int]:
    """Return where along its own dimension any cell of a variable was measured: what joined it may have more."""
    if not measured(frame, name, own):
        return []
    status = codes(frame, name)
    if status is None:
        return list(range(len(frame.result[own].values)))
    found: list[int] = np.flatnonzero((status != Status.NOT_MEASURED).any((0, 1))).tolist()
    return found


def leaf(frame: Frame, name: str, heads: tuple[str, ...], layer: int | None, *place: Any) -> Cells:  # noqa: ANN401
    """Return one column of a variable: of a layer (None where it has none), at a place along its own dimensions."""
    index = (slice(None), *(() if layer is None else (layer,)), *place)
    status = codes(frame, name)
    return Cells(heads, frame.scaled(name)[index], None if status is None else status[index])


def layered(frame: Frame, leaves: Callable[[int], Sequence[Cells]], *, widths: bool = False) -> list[Group]:
    """Return one group a layer, of the columns that `leaves` gives for its index."""
    groups: list[Group] = []
    for layer, name in enumerate(frame.result["layer"].values.tolist()):
        title = name_of(name, frame.unicode)
        if widths:
            title += f" ({frame.result['layer_width'].values[layer]})"
        groups.append(Group(title, tuple(frame.column(cells) for cells in leaves(layer))))
    return groups


def terms(frame: Frame, name: str, *, unit: bool = True) -> str:
    """Return under what terms a variable was measured: unit, place, rows."""
    attrs = frame.result[name].attrs
    parts = [frame.unit(name)] if unit else []
    parts += [f"at {name_of(attrs['at'], frame.unicode)}"] if attrs.get("at") else []
    dims = attrs.get("input_dims", 0)
    parts += [f"on {dims} random directions"] if dims else []
    parts += [f"{attrs['rows']} probe rows"] if attrs.get("rows") else []
    return ", ".join(part for part in parts if part)


def derivative(frame: Frame, name: str) -> str:
    """Return of what by what a variable counts the derivative's singular values."""
    origin = str(frame.result[name].attrs.get("from", "input"))
    return "d layer / d input" if origin == "input" else f"d layer / d post of {name_of(origin, frame.unicode)}"


def thinned(along: Array | int, most: int) -> list[int]:
    """Return at most `most` places of increasing values (or of so many), spread over their logarithm.

    First and last are among them. Where several of the evenly spaced spots have the same nearest place, the places
    farthest from those chosen fill up.
    """
    values = np.arange(along, dtype=np.float64) if isinstance(along, int) else along.astype(np.float64)
    if len(values) <= most:
        return list(range(len(values)))
    steps = np.diff(values)
    gap = steps[steps > 0].min() if (steps > 0).any() else 1.0
    spot = np.log(values - values[0] + gap)
    even = np.linspace(spot[0], spot[-1], most)
    chosen = {0, len(values) - 1, *np.abs(spot - even[:, None]).argmin(1).tolist()}
    while len(chosen) < most:
        distance = np.abs(spot - spot[list(chosen)][:, None]).min(0)
        distance[list(chosen)] = -1.0
        chosen.add(int(distance.argmax()))
    return sorted(chosen)


def statement(value: float, unit: str) -> str:
    """Return a number with its unit."""
    return f"{number(value)} {unit}".strip()
