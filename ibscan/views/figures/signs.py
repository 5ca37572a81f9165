"""Say what bands, levels, marks and gaps of a picture mean: forms and words, which nothing here draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.figures.picture import Curve, Picture

__all__ = ["BAND", "CAP", "GAP", "LEVEL", "STATUS_MARKS", "signs"]

# Forms beside those of marks.
LEVEL, CAP, BAND, GAP = "level", "cap", "band", "gap"
# Marks of values that are not plainly ok, which are hollow.
STATUS_MARKS = {Status.SATURATED: "o", Status.UNRESOLVED: "D", Status.LOWER_BOUND: "^"}
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


def signs(picture: Picture) -> list[tuple[str, str]]:
    """Return what bands, levels, marks and gaps say, of those that the picture has: a form and words each."""
    return [*_lines(picture), *_statuses(picture)]


def _lines(picture: Picture) -> Iterator[tuple[str, str]]:
    for label in dict.fromkeys(level.label for panel in picture.panels for level in panel.levels):
        yield LEVEL, label
    if any(panel.caps for panel in picture.panels):
        yield CAP, "cap below H(X)"
    if picture.band:
        yield BAND, picture.band


def _statuses(picture: Picture) -> Iterator[tuple[str, str]]:
    curves: list[Curve] = [curve for panel in picture.panels for curve in panel.curves]
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
        yield form, words[status]
    gap = [text for status, text in _GAPS.items() if status in gaps]
    if gap:
        yield GAP, f"gap: {', '.join(gap)}"
