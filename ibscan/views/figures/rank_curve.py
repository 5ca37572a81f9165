"""Local rank against eps, a panel for every layer, checkpoints as colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.views.figures.against import against
from ibscan.views.figures.picture import Figure, Picture, Run

__all__ = ["FIGURE"]

_RANKS = {"local_rank": ("eps", "ε"), "local_rank_rel": ("rel_eps", "ε, relative to the largest")}


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    for key, (dim, label) in _RANKS.items():
        words = ("local rank against ε", "local rank")
        yield from against(runs, ("rank_curve", "" if dim == "eps" else key), (key, dim), words, label)


FIGURE = Figure("Local rank against eps by layer, checkpoints as colours.", _pictures)
