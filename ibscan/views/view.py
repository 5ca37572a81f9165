"""A result and how it is shown: its checkpoints, axis, unit and terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.views.cells import Ends, number
from ibscan.views.console import escaped

__all__ = [
    "View",
    "derivative",
    "information_unit",
    "is_measured",
    "measured_indices",
    "name_of",
    "quantity_of",
    "statuses",
    "terms",
    "thinned",
]

_MOST_ROWS = 12
_WHOLE = "checkpoint"


@dataclass(frozen=True)
class View:
    """A result and how it is shown.

    `units` is `nats` or `bits`, `every` asks for all checkpoints, `width` counts the columns of the terminal,
    `unicode` says whether it shows more than ASCII, and `beside` are the variables that stand beside the accuracy.
    """

    result: Result
    units: str
    every: bool
    width: int
    unicode: bool
    beside: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """C, the number of checkpoints."""
        return len(self.result["checkpoint"].values)

    def shown(self, most: int = _MOST_ROWS) -> list[int]:
        """Choose the checkpoints shown: all, or at most `most`, spread evenly over the logarithm of the axis."""
        values = self.axis_values
        return list(range(self.size)) if self.every else thinned(self.size if values is None else values, most)

    @property
    def axis_values(self) -> Array | None:
        """The series' axis, or None where it is not known of all checkpoints."""
        column = {"epoch": "epoch", "step": "step"}.get(self.axis_name, "value")
        values = self.result[column].values
        known = (values >= 0).all() if column == "step" else np.isfinite(values).all()
        return values if known else None

    @property
    def axis_name(self) -> str:
        """Name of the series' axis, by default `epoch`."""
        axis = self.result.settings.get("axis")
        return axis if isinstance(axis, str) and axis else "epoch"

    @property
    def axis(self) -> tuple[str, list[str]]:
        """Name of the series' axis and one label a checkpoint; names where the axis is not known of all."""
        values = self.axis_values
        if values is not None:
            return name_of(self.axis_name, self.unicode), [_coordinate(value) for value in values.tolist()]
        names = self.result["checkpoint_name"].values.tolist()
        return "checkpoint", [name_of(name, self.unicode) for name in names]

    def values(self, name: str) -> Array:
        """Return a variable's values in the unit asked for."""
        return self._converted(self.result[name])

    def companion(self, key: str, field: str) -> Array | None:
        """Return a field of a quantity's estimate in the unit asked for, None where the result has none."""
        found = self.result.companions(key).get(field)
        return None if found is None else self._converted(found)

    def bracket(self, key: str) -> Ends | None:
        """Return the ends of a quantity's bracket in the unit asked for, None where it has none."""
        ends = self.result.bracket(key)
        return None if ends is None else (self._converted(ends[0]), self._converted(ends[1]))

    def unit(self, name: str) -> str:
        """Return the unit asked for of a variable; empty for plain numbers."""
        unit = str(self.result[name].attrs.get("units", ""))
        shown = "bit" if self.units == "bits" and unit == "nat" else unit
        return "" if shown == "1" else name_of(shown, self.unicode)

    @property
    def eps(self) -> str:
        """How eps is written on this terminal."""
        return "ε" if self.unicode else "eps"

    def _converted(self, variable: Variable) -> Array:
        values = variable.values.astype(np.float64)
        return values / math.log(2) if self.units == "bits" and variable.attrs.get("units") == "nat" else values


def _coordinate(value: float) -> str:
    return str(value) if isinstance(value, int) else str(int(value)) if value.is_integer() else f"{value:.6g}"


def name_of(text: str, unicode: bool) -> str:
    """Escape a name from a file for one line of the terminal."""
    safe = escaped(text)
    return safe if unicode else safe.encode("ascii", "backslashreplace").decode("ascii")


def quantity_of(value: float, unit: str) -> str:
    """Format a number with its unit."""
    return f"{number(value)} {unit}".strip()


def information_unit(view: View) -> str:
    """Name the unit of information where several quantities stand together."""
    return "information in " + ("bit" if view.units == "bits" else "nat")


def is_measured(view: View, name: str, *own: str) -> bool:
    """Tell whether a variable has exactly these dimensions beyond (checkpoint, layer), and any value measured."""
    dims = ("checkpoint",) if own == (_WHOLE,) else ("checkpoint", "layer", *own)
    # A foreign file may have a variable of a known name and of other dimensions.
    if name not in view.result.variables or view.result[name].dims != dims:
        return False
    status = view.result.status(name)
    return bool((status != Status.NOT_MEASURED).any()) if status is not None else view.result[name].values.size > 0


def statuses(view: View, name: str) -> Array | None:
    """Return a variable's statuses; those of a count, which stores none, follow from -1, not measured."""
    status, values = view.result.status(name), view.result[name].values
    if status is None and values.dtype.kind in "iu":
        return np.where(values < 0, Status.NOT_MEASURED, Status.OK)
    return status


def measured_indices(view: View, name: str, own: str) -> list[int]:
    """List the indices along a variable's own dimension at which anything was measured.

    Other variables of the result may have added values to that dimension.
    """
    if not is_measured(view, name, own):
        return []
    status = statuses(view, name)
    if status is None:
        return list(range(len(view.result[own].values)))
    found: list[int] = np.flatnonzero((status != Status.NOT_MEASURED).any((0, 1))).tolist()
    return found


def terms(view: View, name: str, *, unit: bool = True) -> str:
    """Describe how a variable was measured: unit, before or after the activation, directions, rows."""
    attrs = view.result[name].attrs
    parts = [view.unit(name)] if unit else []
    parts += [f"at {name_of(attrs['at'], view.unicode)}"] if attrs.get("at") else []
    dims = attrs.get("input_dims", 0)
    parts += [f"on {dims} random directions"] if dims else []
    parts += [f"{attrs['rows']} probe rows"] if attrs.get("rows") else []
    return ", ".join(part for part in parts if part)


def derivative(view: View, name: str) -> str:
    """Name the derivative whose singular values a variable counts."""
    origin = str(view.result[name].attrs.get("from", "input"))
    return "d layer / d input" if origin == "input" else f"d layer / d post of {name_of(origin, view.unicode)}"


def thinned(along: Array | int, most: int) -> list[int]:
    """Choose at most `most` indices of increasing values (or of so many), spread over their logarithm.

    First and last are among them. Where several of the evenly spaced spots have the same nearest value, the values
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
