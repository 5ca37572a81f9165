"""A metric of the checkpoints against the series or the value of a sweep, points coloured by local rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.core.records import Array
from ibscan.views.figures.curves import cells, checkpoints_axis, label_of, layers_shown, places
from ibscan.views.figures.panels import Found, parameter_name, parameters, symbol_axis, titled
from ibscan.views.figures.picture import Axis, Curve, Figure, Panel, Picture, Run, Scale, Told
from ibscan.views.view import is_measured

__all__ = ["FIGURE"]

_RANK, _OF_CHECKPOINT = "local_rank", "checkpoint"
_OWN = ("probe_accuracy", "probe_loss")
_PREFIX = "metric_"
_MOST_LAYERS = 8


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    thresholds = parameters(runs, _RANK, "eps")
    if not thresholds:
        return
    # The middle of the thresholds: the ends count nearly all directions, or nearly none.
    value, found = thresholds[len(thresholds) // 2]
    ranks: dict[int, Array] = {k: cells(runs[k], _RANK, *index).values for k, index in found}
    shown, notes = layers_shown(runs, _MOST_LAYERS)
    for metric in _metrics(runs):
        panels = []
        for layer in shown:
            curves = tuple(_curves(runs, metric, layer, ranks))
            if curves:
                having: Found = [(k, ()) for k in ranks if is_measured(runs[k].view, metric, _OF_CHECKPOINT)]
                y = symbol_axis(runs, metric, having, _words(metric))
                panels.append(_panel(layer, (metric, _RANK), curves, y))
        if panels:
            label = f"local rank of the layer, {parameter_name('eps', value)}"
            scale = Scale(label, 0.0, 1.0, ends=("lowest", "highest"))
            yield Picture(
                "metric",
                metric,
                titled(runs, _RANK, found, f"{_words(metric)} and local rank"),
                tuple(panels),
                checkpoints_axis(runs),
                scale,
                tuple(run.name for run in runs),
                columns=2,
                share_y=True,
                notes=tuple(notes),
            )


def _panel(layer: str, variables: tuple[str, ...], curves: Sequence[Curve], y: Axis) -> Panel:
    """Return the panel of a layer: colours stand for its own range of ranks, which the title gives."""
    every = np.concatenate([curve.tint for curve in curves if curve.tint is not None])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    # A constant rank is in the middle of the scale.
    middle, span = (low, high - low) if high > low else (low - 0.5, 1.0)
    shaded = [dataclasses.replace(c, tint=(c.tint - middle) / span) for c in curves if c.tint is not None]
    ranks = f"{low:.3g} to {high:.3g}" if high > low else f"{low:.3g}"
    return Panel(f"{layer}: {ranks}", variables, tuple(shaded), y, layer=layer)


def _metrics(runs: Sequence[Run]) -> list[str]:
    """List what checkpoints have as a whole: metrics saved with them, accuracy and loss on the probe."""
    named = dict.fromkeys(name for run in runs for name in run.view.result.quantities if name.startswith(_PREFIX))
    return [name for name in (*named, *_OWN) if any(is_measured(run.view, name, _OF_CHECKPOINT) for run in runs)]


def _words(metric: str) -> str:
    own = {"probe_accuracy": "probe accuracy", "probe_loss": "probe loss"}
    return own.get(metric, metric.removeprefix(_PREFIX).replace("_", " "))


def _curves(runs: Sequence[Run], metric: str, layer: str, ranks: dict[int, Array]) -> Iterator[Curve]:
    for number, of_layers in ranks.items():
        view = runs[number].view
        names = [label_of(view, k) for k in range(len(view.result["layer"].values))]
        if layer not in names or not is_measured(view, metric, _OF_CHECKPOINT):
            continue
        read, tint = cells(runs[number], metric), of_layers[:, names.index(layer)]
        known = np.isfinite(read.values) & np.isfinite(tint)
        if known.any():
            y = np.where(known, read.values, np.nan)
            told = (Told(_words(metric), y, read.half, view.unit(metric)), Told("local rank", tint))
            curve = Curve(layer, places(view), y, run=number, tint=tint, told=told)
            yield dataclasses.replace(curve, half=read.half, status=read.status)


FIGURE = Figure(
    "Every metric of the checkpoints against the series or a sweep's value, points coloured by local rank.", _pictures
)
