"""Say what lines, colours and marks of a picture mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from ibscan.views.figures.artists import Look, fitted
from ibscan.views.figures.picture import Curve, Names, Picture
from ibscan.views.figures.signs import BAND, CAP, GAP, LEVEL
from ibscan.views.figures.signs import signs as picture_signs
from ibscan.views.figures.style import GREY, LINES, MARKERS

__all__ = ["Entries", "names", "signs"]

# Handles of matplotlib, and labels.
Entries: TypeAlias = list[tuple[Any, str]]

_MOST_NAMES = 14
_LONGEST_NAME, _LONGEST = 30, 60


def names(picture: Picture, look: Look) -> Entries:
    """Return what colours, markers and styles of lines stand for: a handle and a label each."""
    return _fitted([*_names(picture, look), *_runs(picture, look)], _LONGEST_NAME)


def signs(picture: Picture, look: Look) -> Entries:
    """Return what bands, levels, marks and gaps say, of those that the picture has: a handle and a label each."""
    return _fitted([(_sign(look, form), words) for form, words in picture_signs(picture)], _LONGEST)


def _fitted(made: Entries, longest: int) -> Entries:
    return [(handle, fitted(label, longest)) for handle, label in made]


def _curves(picture: Picture) -> list[Curve]:
    return [curve for panel in picture.panels for curve in panel.curves]


def _handle(look: Look, **properties: Any) -> Any:  # noqa: ANN401 - a line of matplotlib
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linewidth": 1.3 * look.style.line, "markersize": 2 * look.style.marker, **properties})


def _thinned(used: set[int]) -> list[int]:
    shown = sorted(used)
    if len(shown) <= _MOST_NAMES:
        return shown
    return [shown[k] for k in np.linspace(0, len(shown) - 1, _MOST_NAMES).round().astype(int).tolist()]


def _names(picture: Picture, look: Look) -> Iterator[tuple[Any, str]]:
    colours, curves = picture.colours, _curves(picture)
    if isinstance(colours, Names):
        for shade in _thinned({int(curve.shade) for curve in curves}):
            yield _handle(look, color=look.colour(shade)), colours.names[shade]
    if picture.marks:
        for mark in _thinned({curve.mark for curve in curves}):
            form = MARKERS[mark % len(MARKERS)]
            yield _handle(look, color=GREY, linestyle="none", marker=form, markeredgewidth=0), picture.marks[mark]


def _runs(picture: Picture, look: Look) -> Iterator[tuple[Any, str]]:
    if len(picture.runs) > 1:
        for run in sorted({curve.run for curve in _curves(picture)}):
            yield _handle(look, color="black", linestyle=LINES[run % len(LINES)]), picture.runs[run]


def _sign(look: Look, form: str) -> Any:  # noqa: ANN401 - a handle of matplotlib
    from matplotlib.patches import Patch

    if form == BAND:
        return Patch(facecolor=GREY, alpha=0.35, linewidth=0)
    if form in (LEVEL, CAP):
        return _handle(look, color=GREY, linestyle=":" if form == CAP else (0, (4, 2)))
    if form == GAP:
        return _handle(look, linestyle="none")
    edge = {"markerfacecolor": "white", "markeredgecolor": GREY, "markeredgewidth": 0.8}
    return _handle(look, linestyle="none", marker=form, **edge)
