"""I(T;Y) over the series, a panel for every channel and noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.views.figures.panels import channel_panels, over_series, titled
from ibscan.views.figures.picture import Figure, Picture, Run

__all__ = ["FIGURE"]


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    made = channel_panels(runs, "ty")
    if made:
        title = titled(runs, made[0][1].variables[0], made[0][2], "information about the label")
        yield over_series(runs, "label_information", title, [panel for _, panel, _ in made])


FIGURE = Figure("I(T;Y) of the network, read-out and binned channel over the series by layer.", _pictures)
