"""Histograms of distances within and between classes: layers down, checkpoints across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.core.records import Array
from ibscan.views.figures.curves import checkpoint_scale, label_of, layers_shown, places, series_places
from ibscan.views.figures.panels import titled
from ibscan.views.figures.picture import Axis, Curve, Figure, Names, Panel, Picture, Run
from ibscan.views.view import is_measured

__all__ = ["FIGURE"]

_SIDES = ("distance_within", "distance_between")
_EDGES = ("distance_edge_low", "distance_edge_high")
_MOST_LAYERS, _MOST_CHECKPOINTS = 8, 3


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield a picture of the first result that has histograms, and of each other one by its name."""
    for number, run in enumerate(runs):
        view = run.view
        if not all(is_measured(view, name, "distance_bin") for name in (*_SIDES, *_EDGES)):
            continue
        shown, notes = layers_shown([run], _MOST_LAYERS)
        chosen = list(range(view.size)) if view.every else checkpoint_scale(view, _MOST_CHECKPOINTS)
        axis, labels = view.axis
        panels = [
            _panel(runs, number, (row, layer), f"{label_of(view, layer)}, {axis} {labels[row]}")
            for layer in range(len(view.result["layer"].values))
            if label_of(view, layer) in shown
            for row in chosen
        ]
        if not any(panel.curves for panel in panels):
            continue
        own = f"{run.name}: " if len(runs) > 1 else ""
        yield Picture(
            "distances",
            f"{number + 1}" if len(runs) > 1 else "",
            titled(runs, _SIDES[0], [(number, ())], f"{own}distances of pairs of rows"),
            tuple(panels),
            Axis("distance", unit="activation units"),
            Names(("within classes", "between classes"), ordered=False),
            ("",),
            columns=max(2, len(chosen)),
            share_x="row" if len(chosen) > 1 else "none",
            notes=tuple(notes),
            places=series_places([run]),
        )


def _panel(runs: Sequence[Run], number: int, at: tuple[int, int], title: str) -> Panel:
    """Return the panel of a result at a checkpoint and layer."""
    view, (row, layer) = runs[number].view, at
    low, high = (view.values(name)[row, layer] for name in _EDGES)
    edges = np.append(low, high[-1:])
    curves = []
    for shade, name in enumerate(_SIDES):
        share = _density(view.values(name)[row, layer], edges)
        if share is not None:
            curves.append(Curve(name, edges, share, shade, number, steps=True))
    place = float(places(view)[row])
    return Panel(title, _SIDES, tuple(curves), Axis("density"), layer=label_of(view, layer), place=place)


def _density(counts: Array, edges: Array) -> Array | None:
    """Return a histogram as a density; None where nothing was measured or all distances are one."""
    if not np.isfinite(edges).all() or (counts < 0).any() or not counts.sum() > 0:
        return None
    widths = np.diff(edges)
    if (widths <= 0).any():
        return None
    return np.asarray(counts / counts.sum() / widths)


FIGURE = Figure("Histograms of distances within and between classes, by layer and checkpoint.", _pictures)
