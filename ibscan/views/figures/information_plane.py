"""The information plane: I(X;T) against I(T;Y), epochs as colours, layers as markers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.views.channels import CHANNELS, Channel
from ibscan.views.figures.curves import Cells, cells, label_of, layer_names, places, series_places, series_scale
from ibscan.views.figures.panels import Found, parameter_name, parameters, symbol_axis, titled
from ibscan.views.figures.picture import Axis, Curve, Figure, Panel, Picture, Run, Told, without_excess
from ibscan.views.view import is_measured

__all__ = ["FIGURE"]


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    panels: list[Panel] = []
    titles: list[str] = []
    for channel in CHANNELS:
        both = channel.variable("xt"), channel.variable("ty")
        for value, measured in parameters(runs, both[0], channel.dim):
            found = [(k, index) for k, index in measured if is_measured(runs[k].view, both[1], channel.dim)]
            curves = tuple(_curves(runs, channel, found))
            if curves:
                y = symbol_axis(runs, both[1], found, "I(T; Y)")
                panels.append(Panel(f"{channel.label}, {parameter_name(channel.dim, value)}", both, curves, y))
                titles.append(titled(runs, both[0], found, "information plane"))
                unit = runs[found[0][0]].view.unit(both[0])
    if panels:
        yield without_excess(
            Picture(
                "information_plane",
                "",
                titles[0],
                tuple(panels),
                Axis("I(X; T)", unit=unit),
                series_scale(runs),
                tuple(run.name for run in runs),
                marks=layer_names(runs),
                columns=1 if len(panels) < 3 else 2,
                share_y=True,
                places=series_places(runs),
            )
        )


def _curves(runs: Sequence[Run], channel: Channel, found: Found) -> Iterator[Curve]:
    names = layer_names(runs)
    for number, index in found:
        view = runs[number].view
        xt, ty = (cells(runs[number], channel.variable(side), *index) for side in ("xt", "ty"))
        for layer in range(len(view.result["layer"].values)):
            x, y = xt.at(slice(None), layer), ty.at(slice(None), layer)
            known = np.isfinite(x.values) & np.isfinite(y.values)
            if known.any():
                label = label_of(view, layer)
                nowhere = np.where(known, y.values, np.nan)
                mark, unit = names.index(label), view.unit(channel.variable("xt"))
                told = (Told("I(X; T)", x.values, x.half, unit), Told("I(T; Y)", y.values, y.half, unit))
                yield Curve(
                    label, x.values, nowhere, run=number, status=_worse(x, y), tint=places(view), mark=mark, told=told
                )


def _worse(x: Cells, y: Cells) -> np.ndarray | None:
    """Return the status of the points: that of x where it is not ok, else that of y."""
    if x.status is None or y.status is None:
        return x.status if y.status is None else y.status
    return np.where(x.status == 0, y.status, x.status)


FIGURE = Figure("The information plane, I(X;T) against I(T;Y): epochs as colours, layers as markers.", _pictures)
