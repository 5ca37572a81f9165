"""Information against the noise of its channel, a panel for every layer, checkpoints as colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.views.channels import NOISY
from ibscan.views.figures.against import against
from ibscan.views.figures.panels import symbol
from ibscan.views.figures.picture import Figure, Picture, Run

__all__ = ["FIGURE"]

_SIDES = ("xt", "ty")
_LABELS = {"noise": "noise / activation units", "rel_noise": "noise / rms of the layer"}


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    for channel in NOISY:
        for side in _SIDES:
            key = channel.variable(side)
            view = next((run.view for run in runs if key in run.view.result.variables), None)
            if view is not None:
                shown = symbol(view, key)
                words = (f"{channel.label}, {shown} against noise", shown)
                label = _LABELS[channel.dim]
                yield from against(runs, ("information_curve", key), (key, channel.dim), words, label)


FIGURE = Figure(
    "Information against noise by layer, checkpoints as colours, of each channel measured at two or more.", _pictures
)
