"""Any other variable over the series, a panel for every value of its own dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ibscan.views.figures.curves import over_checkpoints
from ibscan.views.figures.panels import found_at, log_or_linear, over_series, symbol_axis, titled
from ibscan.views.figures.picture import Figure, Panel, Picture, Run
from ibscan.views.view import name_of

__all__ = ["FIGURE", "of_variable"]


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:  # noqa: ARG001 - made on request alone, by `of_variable`
    yield from ()


def of_variable(runs: Sequence[Run], key: str) -> Iterator[Picture]:
    """Yield the picture of a variable that has no figure of its own; none where it is not along layers."""
    found = found_at(runs, key)
    if found:
        panels = []
        for title, where in found:
            curves = over_checkpoints(runs, key, where)
            y = symbol_axis(runs, key, where)
            if curves:
                scale = log_or_linear(curves)
                panels.append(Panel(title, (key,), curves, dataclasses.replace(y, scale=scale)))
        if panels:
            title = titled(runs, key, found[0][1], name_of(key, unicode=True))
            yield over_series(runs, "variable", title, panels, part=key)


FIGURE = Figure("Any other variable over the series by layer, where --variable names it.", _pictures)
