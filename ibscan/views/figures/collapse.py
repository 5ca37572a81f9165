"""Clustering and neural collapse over the series, a panel for every number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.views.figures.curves import over_checkpoints
from ibscan.views.figures.panels import log_or_linear, over_series, runs_with, titled
from ibscan.views.figures.picture import Axis, Curve, Figure, Panel, Picture, Run

__all__ = ["FIGURE"]

_WITHIN, _BETWEEN = "distance_within_mean", "distance_between_mean"
_NUMBERS = {
    "nc1": "NC1",
    "nc2_equinorm": "NC2, equal norms",
    "nc2_equiangle": "NC2, equal angles",
    "nc3": "NC3",
    "nc4": "NC4",
    "nearest_mean_error": "nearest mean error",
}


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    panels: list[Panel] = []
    ratio = [(k, ()) for k, _ in runs_with(runs, _WITHIN) if (k, ()) in runs_with(runs, _BETWEEN)]
    curves = tuple(_ratios(runs, [k for k, _ in ratio]))
    if curves:
        panels.append(Panel("within / between", (_WITHIN, _BETWEEN), curves, Axis("")))
    for key, words in _NUMBERS.items():
        if found := runs_with(runs, key):
            curves = over_checkpoints(runs, key, found)
            if curves:
                panels.append(Panel(words, (key,), curves, Axis("", log_or_linear(curves))))
    if panels:
        key = panels[-1].variables[0]
        title = titled(runs, key, runs_with(runs, key), "clustering and neural collapse")
        yield over_series(runs, "collapse", title, panels, columns=2)


def _ratios(runs: Sequence[Run], having: Sequence[int]) -> Iterator[Curve]:
    """Yield the mean distance within classes over that between them."""
    parts = ((over_checkpoints(runs, key, [(k, ())]) for key in (_WITHIN, _BETWEEN)) for k in having)
    for within, between in parts:
        under = {curve.label: curve for curve in between}
        for curve in within:
            if curve.label in under:
                with np.errstate(all="ignore"):
                    ratio = curve.y / under[curve.label].y
                yield dataclasses.replace(curve, y=np.where(np.isfinite(ratio), ratio, np.nan), half=None)


FIGURE = Figure("Distances within over between classes, and neural collapse (NC1 to NC4), over the series.", _pictures)
