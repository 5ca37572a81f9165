"""Spectra of representations over the series, a panel for every number made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.views.figures.curves import over_checkpoints
from ibscan.views.figures.panels import Found, found_at, log_or_linear, over_series, titled
from ibscan.views.figures.picture import Axis, Figure, Panel, Picture, Run

__all__ = ["FIGURE"]

_NUMBERS = {
    "representation_effective_rank": "effective rank",
    "representation_participation": "participation ratio",
    "representation_numerical_rank": "numerical rank",
    "representation_stable_rank": "stable rank",
    "representation_entropy": "entropy",
    "representation_alpha": "exponent alpha",
}


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    panels: list[Panel] = []
    first: tuple[str, Found] | None = None
    for key, words in _NUMBERS.items():
        for parameter, found in found_at(runs, key):
            curves = over_checkpoints(runs, key, found)
            if curves:
                first = first or (key, found)
                unit = runs[found[0][0]].view.unit(key)
                title = ", ".join(part for part in (words + (f" / {unit}" if unit else ""), parameter) if part)
                panels.append(Panel(title, (key,), curves, Axis("", log_or_linear(curves), unit=unit)))
    if first is not None:
        title = titled(runs, *first, "spectra of representations")
        yield over_series(runs, "representation", title, panels, columns=2)


FIGURE = Figure("Ranks, entropy and decay of the spectra of representations over the series by layer.", _pictures)
