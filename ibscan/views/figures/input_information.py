"""I(X;T) over the series, a panel for every channel and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ibscan.views.channels import Channel
from ibscan.views.figures.curves import cells, label_of
from ibscan.views.figures.panels import Found, channel_panels, over_series, titled
from ibscan.views.figures.picture import Curve, Figure, Panel, Picture, Run
from ibscan.views.view import is_measured

__all__ = ["FIGURE"]

# A cap that is this share of the ceiling or more is not drawn: it is the ceiling.
_BELOW_CEILING = 0.99


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    made = channel_panels(runs, "xt")
    if made:
        panels = [dataclasses.replace(one[1], caps=_caps(runs, *one)) for one in made]
        title = titled(runs, panels[0].variables[0], made[0][2], "information about the input")
        yield over_series(runs, "input_information", title, panels)


def _caps(runs: Sequence[Run], channel: Channel, panel: Panel, found: Found) -> tuple[Curve, ...]:
    """Return the caps of the values as curves without marks, where they are below the ceiling."""
    key, caps = f"mi_{channel.key}_cap", []
    for curve in panel.curves:
        run, index = runs[curve.run], dict(found)[curve.run]
        if not is_measured(run.view, key, channel.dim):
            continue
        layer = [label_of(run.view, k) for k in range(len(run.view.result["layer"].values))].index(curve.label)
        values = cells(run, key, *index).values[:, layer]
        values = np.where(values < _BELOW_CEILING * panel.levels[0].y, values, np.nan)
        if np.isfinite(values).any():
            caps.append(Curve(curve.label, curve.x, values, curve.shade, curve.run))
    return tuple(caps)


FIGURE = Figure(
    "I(X;T) of the network, read-out and binned channel over the series by layer, with bands, caps and open brackets.",
    _pictures,
)
