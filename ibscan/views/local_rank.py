"""The table of local rank: checkpoints down, thresholds under every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ibscan.core.thresholds import moving_thresholds
from ibscan.views.cells import number
from ibscan.views.column import Column, Course, column, is_empty
from ibscan.views.layout import Sheet, Table, by_checkpoint
from ibscan.views.view import View, derivative, is_measured, terms

__all__ = ["TABLE", "rank_errors", "suggested_thresholds"]

_KEY, _SPECTRUM = "local_rank", "singular_value"
_MEASURE = "ibscan rank --eps auto measures it there"
_ALL = slice(None)
# By how much a threshold may be off one that was measured to need no measuring.
_NEAR = 1.25


def _columns(view: View) -> list[Column]:
    """Return a column for each threshold; a rank is between 0 and the units of its layer."""
    if not is_measured(view, _KEY, "eps"):
        return []
    units = view.result["layer_width"].values.astype(float)
    thresholds = view.result["eps"].values.tolist()
    return [column(view, _KEY, (f"{view.eps} {eps:g}",), index, ceiling=units) for index, eps in enumerate(thresholds)]


def _courses(view: View) -> Iterator[Course]:
    for one in _columns(view):
        if not is_empty(one):
            yield Course((TABLE.title, *one.heads), one)


def rank_errors(view: View, key: str, checkpoints: Any = _ALL, thresholds: Any = _ALL) -> list[str]:  # noqa: ANN401
    """Note the largest standard error of some ranks; `checkpoints` and `thresholds` are indices of numpy."""
    errors = view.companion(key, "stderr")
    known = np.empty(0) if errors is None else errors[checkpoints][..., thresholds]
    known = known[np.isfinite(known)]
    if not len(known):
        return []
    return [f"Standard errors up to {number(float(f'{known.max():.2g}'))}, rows taken as a sample."]


def suggested_thresholds(view: View) -> list[str]:
    """Name the thresholds at which the first and the last checkpoint differ most, unless ranks were measured there."""
    if view.size < 2 or not is_measured(view, _SPECTRUM, "component"):
        return []
    spectra = view.result[_SPECTRUM].values
    measured = view.result["eps"].values.tolist() if "eps" in view.result else []
    found = [
        eps
        for eps in moving_thresholds(spectra[0], spectra[-1])
        if not any(eps / _NEAR <= other <= eps * _NEAR for other in measured)
    ]
    if not found:
        return []
    said = " and ".join(f"{eps:g}" for eps in found)
    return [f"Local rank differs most between the first and the last at {view.eps} {said}: {_MEASURE}."]


def _sheets(view: View) -> Iterator[Sheet]:
    columns = _columns(view)
    if not columns:
        return
    note = (
        f"Mean number of singular values of the Jacobian {derivative(view, _KEY)} above eps, which is absolute. "
        "In parentheses: units of the layer."
    )
    below = [note, *rank_errors(view, _KEY), *suggested_thresholds(view)]
    yield by_checkpoint(view, (TABLE.title, terms(view, _KEY)), columns, below, widths=True)


TABLE = Table("local rank", {}, _sheets, courses=_courses)
