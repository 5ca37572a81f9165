"""Say what lines, colours and marks of a picture mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.figures.artists import STATUS_MARKS, Look, fitted
from ibscan.views.figures.picture import Curve, Names, Picture, Scale
from ibscan.views.figures.style import GREY, LINES, MARKERS

__all__ = ["Entries", "names", "signs"]

# Handles of matplotlib, and labels.
Entries: TypeAlias = list[tuple[Any, str]]

_MOST_NAMES = 14
_LONGEST = 30
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
    return _fitted([*_names(picture, look), *_runs(picture, look)])


def signs(picture: Picture, look: Look) -> Entries:
    """Return what bands, levels, marks and gaps say, of those that the picture has: a handle and a label each."""
    return _fitted([*_lines(picture, look), *_statuses(picture, look)])


def _fitted(made: Entries) -> Entries:
    return [(handle, fitted(label, _LONGEST)) for handle, label in made]


def _curves(picture: Picture) -> list[Curve]:
    return [curve for panel in picture.panels for curve in panel.curves]


def _handle(look: Look, **properties: Any) -> Any:  # noqa: ANN401 - a line of matplotlib
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linewidth": 1.3 * look.style.line, "markersize": 2 * look.style.marker, **properties})


def _thinned(names: tuple[str, ...], used: set[int]) -> list[int]:
    shown = sorted(used)
    if len(shown) <= _MOST_NAMES:
        return shown
    return [shown[k] for k in np.linspace(0, len(shown) - 1, _MOST_NAMES).round().astype(int).tolist()]


def _names(picture: Picture, look: Look) -> Iterator[tuple[Any, str]]:
    colours, curves = picture.colours, _curves(picture)
    if isinstance(colours, Names):
        for shade in _thinned(colours.names, {int(curve.shade) for curve in curves}):
            yield _handle(look, color=look.colour(shade)), colours.names[shade]
    if picture.marks:
        for mark in _thinned(picture.marks, {curve.mark for curve in curves}):
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
    for status, form in STATUS_MARKS.items():
        if status in codes:
            bracket = status is Status.UNRESOLVED and any(_has_bracket(curve) for curve in curves)
            label = "open: unresolved, its bracket" if bracket else _SAID[status]
            shown = "o" if picture.marks or isinstance(picture.colours, Scale) and _tinted(picture) else form
            handle = _handle(
                look, linestyle="none", marker=shown, markerfacecolor="white", markeredgecolor=GREY, markeredgewidth=0.8
            )
            yield handle, label
    said = [text for status, text in _GAPS.items() if status in gaps]
    if said:
        yield _handle(look, linestyle="none"), f"gap: {', '.join(said)}"


def _tinted(picture: Picture) -> bool:
    return any(curve.tint is not None for curve in _curves(picture))


def _has_bracket(curve: Curve) -> bool:
    return curve.ends is not None and bool(np.isfinite(curve.ends[0]).any())
