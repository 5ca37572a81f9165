"""The slope of noisy information beside local rank over the series, a panel for every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ibscan.views.channels import NOISY
from ibscan.views.figures.curves import band_of, checkpoints_axis, layers_shown, over_checkpoints
from ibscan.views.figures.panels import Found, parameter_name, parameters, titled
from ibscan.views.figures.picture import Axis, Curve, Figure, Names, Panel, Picture, Run
from ibscan.views.view import thinned

__all__ = ["FIGURE"]

_RANK = "local_rank"
_MOST_LAYERS, _MOST_VALUES = 8, 3
# A variable, what it is called here, and where it was measured.
Measured: TypeAlias = tuple[str, str, Found]


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield the picture where both were measured at the same place, and on the whole input, as the table does."""
    slopes = [
        (channel.variable("slope"), f"slope, {parameter_name(channel.dim, value)}", found)
        for channel in NOISY
        for value, found in parameters(runs, channel.variable("slope"), channel.dim)
    ]
    ranks = [(_RANK, f"rank, {parameter_name('eps', value)}", found) for value, found in parameters(runs, _RANK, "eps")]
    slopes = [one for one in slopes if ranks and _alike(runs, one[0], one[2], ranks[0][2])]
    if not slopes:
        return
    every = [*_few(slopes), *_few(ranks)]
    curves: dict[str, list[Curve]] = {}
    for shade, (key, _, found) in enumerate(every):
        for curve in over_checkpoints(runs, key, found):
            curves.setdefault(curve.label, []).append(dataclasses.replace(curve, shade=shade))
    shown, notes = layers_shown(runs, _MOST_LAYERS)
    if len(every) < len(slopes) + len(ranks):
        notes.append(f"{len(every)} of {len(slopes) + len(ranks)} noises and thresholds shown.")
    names = (slopes[0][0], _RANK)
    y = Axis("directions")
    yield Picture(
        "information_slope",
        "",
        titled(runs, slopes[0][0], slopes[0][2], "slope of I(X; T+Z) and local rank"),
        tuple(Panel(layer, names, tuple(curves[layer]), y, layer=layer) for layer in shown if layer in curves),
        checkpoints_axis(runs),
        Names(tuple(label for _, label, _ in every), ordered=False),
        tuple(run.name for run in runs),
        band_of(runs),
        columns=2,
        notes=tuple(notes),
    )


def _few(found: Sequence[Measured]) -> list[Measured]:
    """Choose few of the noises or thresholds, spread over them: more lines are not told apart."""
    return [found[k] for k in thinned(len(found), _MOST_VALUES)]


def _alike(runs: Sequence[Run], slope: str, found: Found, ranks: Found) -> bool:
    """Tell whether slope and rank are of the same place, and the rank of the whole input."""
    one, other = runs[found[0][0]].view.result[slope].attrs, runs[ranks[0][0]].view.result[_RANK].attrs
    whole = other.get("from", "input") == "input" and other.get("input_dims", 0) == 0
    return bool(one.get("at")) and one.get("at") == other.get("at") and whole


FIGURE = Figure(
    "The slope of noisy information and local rank over the series by layer, where both are of the same place.",
    _pictures,
)
