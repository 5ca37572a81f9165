"""Tell whether a result has everything that a part of a run has, so that the part can be deleted."""

from __future__ import annotations

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.results.axes import AGREEING, checkpoint_keys, keys
from ibscan.results.coverage import FAILURES, ROUNDING, half_width, measured_cells
from ibscan.results.join import first_difference

__all__ = ["holds"]


def holds(held: Result, part: Result) -> list[bool]:
    """Tell for each checkpoint of a part whether the result `held` has all of its cells, at least as precise."""
    found = np.ones(len(checkpoint_keys(part)), dtype=bool)
    if first_difference(held, part.attrs) is not None:
        return [False] * len(found)
    theirs = set(held.quantities)
    for key in part.quantities:
        wanted = measured_cells(part, key)
        status = part.status(key)
        if status is not None:
            # A failed cell is measured again anyway.
            wanted &= ~np.isin(status, FAILURES)
        if key in theirs and _agree(held, part, key):
            wanted &= ~_known(held, part, key)
        found &= ~wanted.reshape(len(found), -1).any(1)
    return [bool(one) for one in found]


def _agree(held: Result, part: Result, key: str) -> bool:
    there, here = held[key], part[key]
    return there.dims == here.dims and all(
        there.attrs.get(name, other) == here.attrs.get(name, other) for name, other in AGREEING.items()
    )


def _known(held: Result, part: Result, key: str) -> Array:
    """Return where a result has a part's cells, at least as precise and with at least its budget."""
    indices = []
    for dim in part[key].dims:
        index = {value: k for k, value in enumerate(keys(held, dim))}
        indices.append(np.array([index.get(value, len(index)) for value in keys(part, dim)], dtype=np.intp))

    def at(values: Array, fill: float) -> Array:
        # One more entry along every dimension, for coordinates that the result lacks.
        padded = np.pad(values, [(0, 1)] * values.ndim, constant_values=fill)
        return np.asarray(padded[np.ix_(*indices)])

    there, here = held.estimate(key), part.estimate(key)
    status = there.status
    usable = measured_cells(held, key) if status is None else ~np.isin(status, (Status.NOT_MEASURED, *FAILURES))
    known = at(usable, False)
    if there.stderr is not None and here.stderr is not None:
        known &= ~(half_width(part, key) * (1 + ROUNDING) < at(half_width(held, key), np.nan))
    if there.budget is not None and here.budget is not None:
        known &= ~(here.budget > at(there.budget, np.nan))
    return known
