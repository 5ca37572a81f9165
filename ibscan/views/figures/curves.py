"""Read curves out of results: values with their errors, open brackets and statuses, along checkpoints or parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.cells import Ends, has_open_bracket
from ibscan.views.figures.picture import Axis, Curve, Names, Run, Scale
from ibscan.views.view import View, name_of, statuses, thinned

__all__ = [
    "Cells",
    "band_of",
    "cells",
    "checkpoint_scale",
    "checkpoints_axis",
    "label_of",
    "layer_names",
    "layers_shown",
    "names_of_layers",
    "over_checkpoints",
    "places",
    "series_places",
    "series_scale",
]

# Half width of a 95 % interval, in standard errors.
_NORMAL = 1.96
_SHOWN = frozenset({Status.OK, Status.SATURATED, Status.UNRESOLVED, Status.LOWER_BOUND})
_WIDE_RANGE = 20.0
_LARGEST = 1e100


@dataclass(frozen=True)
class Cells:
    """A variable at one place along its own dimensions, arrays (C, L) or (C,): NaN where there is no number to draw."""

    values: Array
    half: Array | None
    ends: Ends | None
    status: Array | None

    def at(self, *index: int | slice) -> Cells:
        """Return the part at an index of every array."""

        def part(values: Array | None) -> Array | None:
            return None if values is None else np.asarray(values[index])

        ends = None if self.ends is None else (np.asarray(self.ends[0][index]), np.asarray(self.ends[1][index]))
        return Cells(np.asarray(self.values[index]), part(self.half), ends, part(self.status))


def cells(run: Run, key: str, *index: int) -> Cells:
    """Read a variable at an index along its own dimensions, with its band and the brackets that did not close.

    The band is that of 95 %, or one standard deviation between results that were pooled.
    """
    view = run.view
    values, codes = _at(view.values(key), index), statuses(view, key)
    codes = None if codes is None else _at(codes, index)
    if codes is not None:
        values = np.where(np.isin(codes, list(_SHOWN)), values, np.nan)
    values = _drawable(values)
    errors, bracket = view.companion(key, "stderr"), view.bracket(key)
    half = None if errors is None else _drawable(_at(errors, index)) * (1.0 if run.pooled else _NORMAL)
    ends = None if bracket is None else (_drawable(_at(bracket[0], index)), _drawable(_at(bracket[1], index)))
    opened = has_open_bracket(codes, ends)
    if ends is not None and opened is not None:
        ends = tuple(np.where(opened, end, np.nan) for end in ends)  # type: ignore[assignment]
    return Cells(values, half, ends if opened is not None and opened.any() else None, codes)


def _drawable(values: Array) -> Array:
    """Return numbers that can be drawn, NaN for others: of larger ones no axis can be made."""
    return np.where(np.abs(values) < _LARGEST, values, np.nan)


def _at(values: Array, index: tuple[int, ...]) -> Array:
    """Return the values at an index along the last dimensions."""
    where: tuple[Any, ...] = (..., *index)
    return np.asarray(values[where])


def band_of(runs: Sequence[Run]) -> str:
    """Say what the band about a curve is."""
    pooled = max(run.pooled for run in runs)
    return f"band: ±1 std over {pooled} runs" if pooled else "band: 95 % interval"


def label_of(view: View, layer: int) -> str:
    """Return the name of a layer, in one line."""
    return name_of(str(view.result["layer"].values[layer]), unicode=True)


def layer_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """List the layers of all results, in the order of the first that has them."""
    return tuple(dict.fromkeys(label_of(run.view, k) for run in runs for k in range(_layers(run.view))))


def layers_shown(runs: Sequence[Run], most: int) -> tuple[list[str], list[str]]:
    """Choose at most so many layers, spread evenly, and note where there are more."""
    names = layer_names(runs)
    if len(names) <= most:
        return list(names), []
    chosen = np.linspace(0, len(names) - 1, most).round().astype(int).tolist()
    return [names[k] for k in chosen], [f"{most} of {len(names)} layers shown (--layers chooses)."]


def _layers(view: View) -> int:
    return len(view.result["layer"].values)


def over_checkpoints(runs: Sequence[Run], key: str, found: Iterable[tuple[int, tuple[int, ...]]]) -> tuple[Curve, ...]:
    """Return a curve a result and layer over the series.

    Args:
        runs: The results.
        key: A variable over (checkpoint, layer, ...).
        found: The results, by their place among `runs`, that have it, with the index along its own dimensions.
    """
    names = layer_names(runs)
    curves: list[Curve] = []
    for number, index in found:
        view, read = runs[number].view, cells(runs[number], key, *index)
        x = places(view)
        for layer in range(_layers(view)):
            label, part = label_of(view, layer), read.at(slice(None), layer)
            if np.isfinite(part.values).any() or part.ends is not None:
                curves.append(
                    Curve(label, x, part.values, names.index(label), number, part.half, part.ends, part.status)
                )
    return tuple(curves)


def places(view: View) -> Array:
    """Return where checkpoints lie on the axis of the series: its numbers, or their order where it has none."""
    values = view.axis_values
    if values is None or np.abs(values).max(initial=0.0) >= _LARGEST:
        return np.arange(view.size, dtype=np.float64)
    return values.astype(np.float64)


def checkpoints_axis(runs: Sequence[Run]) -> Axis:
    """Return the axis of the series: logarithmic where its numbers span much, with zero where that is among them."""
    view = runs[0].view
    label, names = view.axis
    if view.axis_values is None:
        return Axis(label, names=tuple(names))
    return Axis(label, _scale(np.concatenate([places(run.view) for run in runs])))


def _scale(values: Array) -> str:
    positive = values[values > 0]
    if (values < 0).any() or not len(positive) or positive.max() < _WIDE_RANGE * positive.min():
        return "linear"
    return "symlog" if (values == 0).any() else "log"


def series_places(runs: Sequence[Run]) -> tuple[tuple[float, str], ...]:
    """Return the places on the axis of the series and their labels, ascending, of all results."""
    found = {place: label for run in runs for place, label in zip(places(run.view), run.view.axis[1], strict=True)}
    return tuple(sorted((float(place), label) for place, label in found.items()))


def series_scale(runs: Sequence[Run]) -> Scale:
    """Return the colours that stand for places on the axis of the series."""
    values, axis = np.concatenate([places(run.view) for run in runs]), checkpoints_axis(runs)
    return Scale(axis.label, float(values.min()), float(values.max()), axis.scale != "linear")


def checkpoint_scale(view: View, most: int) -> list[int]:
    """Choose checkpoints that stand for the series, first and last among them."""
    values = view.axis_values
    return thinned(view.size if values is None else values, most)


def names_of_layers(runs: Sequence[Run]) -> Names:
    """Return the colours that stand for layers."""
    return Names(layer_names(runs))
