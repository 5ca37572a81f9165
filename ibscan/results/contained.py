"""Whether a result has all that a part of a run has: the part is then of no more use."""

from __future__ import annotations

import numpy as np

from ibscan.results.axes import AGREEING, checkpoint_keys, families, keys
from ibscan.results.coverage import FAILURES, ROUNDING, half_width, measured_cells
from ibscan.results.join import first_difference
from ibscan.types import Array, Estimate, Result, Status

__all__ = ["holds"]


def holds(held: Result, part: Result) -> list[bool]:
    """Say of each checkpoint of a part whether a result has all that was measured of it, and as precisely.

    Args:
        held: The result.
        part: Of any settings.
    """
    found = np.ones(len(checkpoint_keys(part)), dtype=bool)
    if first_difference(held, part.attrs) is not None:
        return [False] * len(found)
    theirs = families(held)
    for main in families(part):
        there = measured_cells(part, main)
        status = part.status(main)
        if status is not None:
            # What failed is nothing that anybody takes up.
            there &= ~np.isin(status, FAILURES)
        if main in theirs and _agree(held, part, main):
            there &= ~_known(held, part, main)
        found &= ~there.reshape(len(found), -1).any(1)
    return [bool(one) for one in found]


def _agree(held: Result, part: Result, main: str) -> bool:
    there, here = held[main], part[main]
    return there.dims == here.dims and all(
        there.attrs.get(name, other) == here.attrs.get(name, other) for name, other in AGREEING.items()
    )


def _known(held: Result, part: Result, main: str) -> Array:
    """Return where a result has a part's cells, no less precise, and tried with no smaller a budget."""
    dims = part[main].dims
    places = []
    for dim in dims:
        index = {key: k for k, key in enumerate(keys(held, dim))}
        places.append(np.array([index.get(key, len(index)) for key in keys(part, dim)], dtype=np.intp))

    def at(values: Array, fill: float) -> Array:
        # One place more along every dimension, for what is not there.
        padded = np.pad(values, [(0, 1)] * values.ndim, constant_values=fill)
        return np.asarray(padded[np.ix_(*places)])

    status = held.status(main)
    usable = measured_cells(held, main) if status is None else ~np.isin(status, (Status.NOT_MEASURED, *FAILURES))
    known = at(usable, False)
    if f"{main}_se" in held and f"{main}_se" in part:
        known &= ~(half_width(part, main) * (1 + ROUNDING) < at(half_width(held, main), np.nan))
    budget = Estimate.companion(main, "budget")
    if budget in held and budget in part and part[budget].dims == dims:
        known &= ~(part[budget].values > at(held[budget].values, np.nan))
    return known
