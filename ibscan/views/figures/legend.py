"""Say what lines, colours and marks of a picture mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.figures.artists import STATUS_MARKS, Look, fitted
from ibscan.views.figures.picture import Curve, Names, Picture
from ibscan.views.figures.style import GREY, LINES, MARKERS

__all__ = ["Entries", "names", "signs"]

# Handles of matplotlib, and labels.
Entries: TypeAlias = list[tuple[Any, str]]

_MOST_NAMES = 14
_LONGEST_NAME, _LONGEST = 30, 60
_SAID = {
    Status.SATURATED: "hollow: saturated",
    Status.UNRESOLVED: "open: unresolved",
    Status.LOWER_BOUND: "lower bound",
}
_GAPS = {
    Status.NOT_MEASURED: "not measured",
    Status.DEAD: "dead",
    Status.NONFINITE: "not finite",
    Status.FAILED: "failed",
    Status.OUT_OF_MEMORY: "out of memory",
}


def names(picture: Picture, look: Look) -> Entries:
    """Return what colours, markers and styles of lines stand for: a handle and a label each."""
    return _fitted([*_names(picture, look), *_runs(picture, look)], _LONGEST_NAME)


def signs(picture: Picture, look: Look) -> Entries:
    """Return what bands, levels, marks and gaps say, of those that the picture has: a handle and a label each."""
    return _fitted([*_lines(picture, look), *_statuses(picture, look)], _LONGEST)


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


def _lines(picture: Picture, look: Look) -> Iterator[tuple[Any, str]]:
    from matplotlib.patches import Patch

    for label in dict.fromkeys(level.label for panel in picture.panels for level in panel.levels):
        yield _handle(look, color=GREY, linestyle=(0, (4, 2))), label
    if any(panel.caps for panel in picture.panels):
        yield _handle(look, color=GREY, linestyle=":"), "cap below H(X)"
    if picture.band:
        yield Patch(facecolor=GREY, alpha=0.35, linewidth=0), picture.band


def _statuses(picture: Picture, look: Look) -> Iterator[tuple[Any, str]]:
    curves = _curves(picture)
    codes: set[int] = set()
    gaps: set[int] = set()
    for curve in curves:
        if curve.status is not None and not curve.steps:
            missing: Array = ~np.isfinite(curve.y)
            codes |= set(np.asarray(curve.status)[~missing].tolist())
            gaps |= set(np.asarray(curve.status)[missing].tolist())
    present = {status: form for status, form in STATUS_MARKS.items() if status in codes}
    if any(curve.tint is not None for curve in curves):
        # Markers stand for layers there, and hollow ones for every such status.
        said = " or ".join(_SAID[status].rpartition(": ")[2] for status in present)
        present, words = ({Status.SATURATED: "o"} if present else {}), {Status.SATURATED: f"hollow: {said}"}
    else:
        opened = any(curve.ends is not None and np.isfinite(curve.ends[0]).any() for curve in curves)
        words = _SAID | ({Status.UNRESOLVED: "unresolved, its bracket"} if opened else {})
    for status, form in present.items():
        edge = {"markerfacecolor": "white", "markeredgecolor": GREY, "markeredgewidth": 0.8}
        yield _handle(look, linestyle="none", marker=form, **edge), words[status]
    gap = [text for status, text in _GAPS.items() if status in gaps]
    if gap:
        yield _handle(look, linestyle="none"), f"gap: {', '.join(gap)}"
