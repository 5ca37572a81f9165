"""Bounds that counts disprove."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.result import Variable

__all__ = ["without_broken_bounds"]

_BOUND, _RANKS = "rank_bound_weights", ("local_rank", "local_rank_rel")


def without_broken_bounds(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """Mark the bound on local rank by weights as not measured where a count of local rank exceeds it.

    Only rounding can bring that about: at thresholds below that of a Jacobian nothing else is counted.
    """
    state = Estimate.companion(_BOUND, "status")
    if not {_BOUND, state} <= set(variables):
        return dict(variables)
    bound, status = variables[_BOUND], variables[state]
    broken = np.zeros(bound.values.shape, dtype=bool)
    for rank in _RANKS:
        counts = variables.get(Estimate.companion(rank, Estimate.COMPANIONS["maximum"]))
        if counts is not None:
            broken |= (counts.values > bound.values[..., None]).any(-1)
    values = np.where(broken, np.nan, bound.values)
    codes = np.where(broken, Status.NOT_MEASURED, status.values).astype(np.int8)
    return {
        **variables,
        _BOUND: dataclasses.replace(bound, values=values),
        state: dataclasses.replace(status, values=codes),
    }
