"""Panels that several kinds of figures have: a variable over the series, one panel for each of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from ibscan.core.quantity import DIMENSIONS
from ibscan.views.cells import number
from ibscan.views.channels import CHANNELS, Channel, input_entropy
from ibscan.views.figures.curves import band_of, checkpoints_axis, names_of_layers, over_checkpoints
from ibscan.views.figures.picture import Axis, Curve, Level, Panel, Picture, Run, without_excess
from ibscan.views.view import View, is_measured, measured_indices, name_of, terms

__all__ = [
    "Found",
    "ceiling",
    "channel_panels",
    "found_at",
    "log_or_linear",
    "over_series",
    "parameter_name",
    "parameters",
    "runs_with",
    "symbol",
    "symbol_axis",
    "titled",
]

# Results that have a variable, by their place, with the index along its own dimensions.
Found: TypeAlias = list[tuple[int, tuple[int, ...]]]
_LOG_FROM = 50.0


def runs_with(runs: Sequence[Run], key: str, *own: str) -> Found:
    """List the results in which a variable of these own dimensions was measured."""
    return [(k, ()) for k, run in enumerate(runs) if is_measured(run.view, key, *own)]


def parameters(runs: Sequence[Run], key: str, dim: str) -> list[tuple[object, Found]]:
    """List the values of a variable's own dimension at which anything was measured, ascending; names as they appear."""
    found: dict[object, Found] = {}
    for k, run in enumerate(runs):
        for index in measured_indices(run.view, key, dim):
            found.setdefault(run.view.result[dim].values.tolist()[index], []).append((k, (index,)))
    named = any(isinstance(value, str) for value in found)
    return list(found.items()) if named else sorted(found.items(), key=lambda item: float(str(item[0])))


def parameter_name(dim: str, value: object) -> str:
    """Name a value of a dimension: `eps 0.01`, `noise 0.1 rms`, `30 bins`."""
    if isinstance(value, str):
        return name_of(value, unicode=True)
    label = DIMENSIONS[dim].label.replace("eps", "ε").removesuffix("/rms") if dim in DIMENSIONS else dim
    start, end = "rel. " if dim == "rel_eps" else "", " rms" if dim == "rel_noise" else ""
    return f"{start}{label or dim} {number(float(str(value)))}{end}"


def symbol(view: View, key: str) -> str:
    """Return the symbol of a variable; its name where it has none."""
    return name_of(str(view.result[key].attrs.get("symbol", "") or key), unicode=True)


def symbol_axis(runs: Sequence[Run], key: str, found: Found, words: str = "") -> Axis:
    """Return the axis of a variable: words, or else its symbol, and its unit."""
    view = runs[found[0][0]].view
    unit = view.unit(key)
    return Axis(words or symbol(view, key), unit=unit)


def titled(runs: Sequence[Run], key: str, found: Found, words: str) -> str:
    """Return a title: words, and how the variable was measured."""
    said = list(dict.fromkeys(terms(runs[k].view, key, unit=False) for k, _ in found))
    return f"{words} · {'; '.join(said)}" if any(said) else words


def log_or_linear(curves: Iterable[Curve]) -> str:
    """Return the scale of values: logarithmic where all are positive and span much."""
    values = np.concatenate([np.empty(0), *(curve.y[np.isfinite(curve.y)] for curve in curves)])
    wide = len(values) and values.min() > 0 and values.max() > _LOG_FROM * values.min()
    return "log" if wide else "linear"


def found_at(runs: Sequence[Run], key: str) -> list[tuple[str, Found]]:
    """List where a variable over (checkpoint, layer) and at most one dimension was measured: a name and the results."""
    view = next((run.view for run in runs if key in run.view.result.variables), None)
    dims = () if view is None else view.result[key].dims[2:]
    if len(dims) > 1 or (view is not None and view.result[key].dims[:2] != ("checkpoint", "layer")):
        return []
    if dims:
        return [(parameter_name(dims[0], value), found) for value, found in parameters(runs, key, dims[0])]
    return [("", found)] if (found := runs_with(runs, key)) else []


def over_series(
    runs: Sequence[Run], kind: str, title: str, panels: Sequence[Panel], *, columns: int = 0, part: str = ""
) -> Picture:
    """Return the picture of panels along the series, layers as colours; empty panels are left out."""
    panels = [panel for panel in panels if panel.curves]
    shared = len({panel.y for panel in panels}) == 1
    return without_excess(
        Picture(
            kind,
            part,
            title,
            tuple(panels),
            checkpoints_axis(runs),
            names_of_layers(runs),
            tuple(run.name for run in runs),
            band_of(runs) if any(curve.half is not None for panel in panels for curve in panel.curves) else "",
            columns=columns,
            share_y=shared and columns == 0,
        )
    )


def channel_panels(runs: Sequence[Run], side: str) -> list[tuple[Channel, Panel, Found]]:
    """Return a panel for every channel of information, at every noise or kind of cells, over the series."""
    made = []
    for channel in CHANNELS:
        key = channel.variable(side)
        for value, found in parameters(runs, key, channel.dim):
            view = runs[found[0][0]].view
            # Without the word where the unit says it: panels are narrow.
            parameter = parameter_name(channel.dim, value)
            parameter = parameter.removeprefix("noise ") if channel.dim == "rel_noise" else parameter
            title = f"{channel.label} {symbol(view, key)}, {parameter}"
            curves = over_checkpoints(runs, key, found)
            levels = ceiling(runs, key, found) if side == "xt" else ()
            # Panels are of one quantity but for the binned ones, which estimate something else.
            words = {} if channel.key == "binned" else {"xt": "I(X; T)", "ty": "I(T; Y)"}
            axis = symbol_axis(runs, key, found, words.get(side, ""))
            made.append((channel, Panel(title, (key,), curves, axis, levels), found))
    return made


def ceiling(runs: Sequence[Run], key: str, found: Found) -> tuple[Level, ...]:
    """Return the ceiling H(X) of I(X;T) as a line, the largest of the results."""
    view = runs[found[0][0]].view
    entropy = max(input_entropy(runs[k].view, key)[0] for k, _ in found)
    return (Level(entropy / (math.log(2) if view.unit(key) == "bit" else 1.0), "H(X)"),)
