"""Local rank over the series, a panel for every eps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.views.figures.curves import over_checkpoints
from ibscan.views.figures.panels import over_series, parameter_name, parameters, symbol_axis, titled
from ibscan.views.figures.picture import Figure, Panel, Picture, Run

__all__ = ["FIGURE"]

_RANKS = {"local_rank": "eps", "local_rank_rel": "rel_eps"}


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    for key, dim in _RANKS.items():
        found = parameters(runs, key, dim)
        if found:
            y = symbol_axis(runs, key, found[0][1], "local rank")
            panels = [
                Panel(parameter_name(dim, value), (key,), over_checkpoints(runs, key, where), y)
                for value, where in found
            ]
            title = titled(runs, key, found[0][1], "local rank")
            yield over_series(runs, "local_rank", title, panels, part="" if dim == "eps" else key)


FIGURE = Figure("Local rank over the series by layer, a panel for every eps, with its 95 % interval.", _pictures)
