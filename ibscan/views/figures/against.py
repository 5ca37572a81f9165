"""A quantity against its parameter (eps or noise): a panel for every layer, checkpoints as colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.views.figures.curves import (
    band_of,
    cells,
    checkpoint_scale,
    label_of,
    layers_shown,
    places,
    series_scale,
)
from ibscan.views.figures.panels import ceiling, parameters, symbol_axis, titled
from ibscan.views.figures.picture import Axis, Curve, Panel, Picture, Run
from ibscan.views.view import measured_indices

__all__ = ["against"]

_MOST_LAYERS, _MOST_CHECKPOINTS = 8, 6


def against(
    runs: Sequence[Run], name: tuple[str, str], variable: tuple[str, str], words: tuple[str, str], label: str
) -> Iterator[Picture]:
    """Yield the picture of a variable against its parameter, where it was measured at two or more.

    Args:
        runs: The results.
        name: Kind and part of the picture.
        variable: The variable, and its own dimension.
        words: The title, and the name of the y axis.
        label: Name of the x axis.
    """
    key, dim = variable
    if len(values := parameters(runs, key, dim)) < 2:
        return
    found = values[0][1]
    y = symbol_axis(runs, key, found, words[1])
    levels = ceiling(runs, key, found) if key.endswith("_xt") else ()
    shown, notes = layers_shown(runs, _MOST_LAYERS)
    curves = {layer: tuple(_curves(runs, variable, layer)) for layer in shown}
    yield Picture(
        *name,
        titled(runs, key, found, words[0]),
        tuple(Panel(layer, (key,), made, y, levels, layer=layer) for layer, made in curves.items() if made),
        Axis(label, "log"),
        series_scale(runs),
        tuple(run.name for run in runs),
        band_of(runs) if any(curve.half is not None for made in curves.values() for curve in made) else "",
        columns=2,
        notes=tuple(notes),
    )


def _curves(runs: Sequence[Run], variable: tuple[str, str], layer: str) -> Iterator[Curve]:
    """Yield the curve of every checkpoint shown at a layer, by the layer's name."""
    key, dim = variable
    for number, run in enumerate(runs):
        view, known = run.view, measured_indices(run.view, key, dim)
        names = [label_of(view, k) for k in range(len(view.result["layer"].values))]
        if not known or layer not in names:
            continue
        order = sorted(known, key=lambda index, at=view.result[dim].values: float(at[index]))  # type: ignore[misc]
        parts = [cells(run, key, index).at(slice(None), names.index(layer)) for index in order]
        x, at, (_, labels) = view.result[dim].values[order].astype(np.float64), places(view), view.axis
        for row in checkpoint_scale(view, _MOST_CHECKPOINTS):
            one = [part.at(row) for part in parts]
            half = [part.half for part in one if part.half is not None]
            status = [part.status for part in one if part.status is not None]
            ends = [(np.nan, np.nan) if part.ends is None else part.ends for part in one]
            y = np.array([float(part.values) for part in one])
            if not np.isfinite(y).any():
                continue
            yield Curve(
                labels[row],
                x,
                y,
                float(at[row]),
                number,
                np.array(half, dtype=np.float64) if len(half) == len(one) else None,
                (np.array([e[0] for e in ends], dtype=np.float64), np.array([e[1] for e in ends], dtype=np.float64)),
                np.array(status) if len(status) == len(one) else None,
            )
