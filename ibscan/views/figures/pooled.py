"""Pool results of several seeds: their mean, and their standard deviation in place of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.errors import NothingMatched
from ibscan.views.figures.curves import places
from ibscan.views.figures.picture import Run
from ibscan.views.view import View

__all__ = ["pooled"]

# Of the statuses of pooled cells the first of these is that of the mean.
_WORST = (
    Status.NONFINITE,
    Status.FAILED,
    Status.OUT_OF_MEMORY,
    Status.DEAD,
    Status.NOT_MEASURED,
    Status.UNRESOLVED,
    Status.SATURATED,
    Status.LOWER_BOUND,
    Status.OK,
)


def pooled(runs: Sequence[Run]) -> Run:
    """Return the mean over results as one, of the checkpoints, layers and parameters that all of them have.

    A companion `se` holds the standard deviation between results, also of quantities that have no error of their own;
    ends of brackets are the outermost; a cell's status is the worst. Counts, such as histograms, are left out: their
    bins differ.

    Raises:
        NothingMatched: The results share no checkpoint or no layer.
    """
    results, first = [run.view.result for run in runs], runs[0].view
    keep: dict[str, list[list[int]]] = {"checkpoint": _shared([places(run.view).tolist() for run in runs])}
    for dim in {dim for result in results for variable in result.variables.values() for dim in variable.dims}:
        if dim != "checkpoint" and all(dim in result.coordinates for result in results):
            keep[dim] = _shared([result[dim].values.tolist() for result in results])
    for dim in ("checkpoint", "layer"):
        if dim in keep and not keep[dim][0]:
            raise NothingMatched(f"--band: the results have no {dim} in common; draw them without it.")
    variables: dict[str, Variable] = {}
    for key in results[0].quantities:
        kept = [_parts(result, key, {dim: rows[k] for dim, rows in keep.items()}) for k, result in enumerate(results)]
        found = [part for part in kept if part is not None]
        if len(found) == len(results):
            variables |= _mean(key, results[0][key], found)
    scales = {
        name: Variable(scale.dims, _cut(scale, {dim: rows[0] for dim, rows in keep.items()}), scale.attrs)
        for name, scale in results[0].coordinates.items()
        if all(dim in keep for dim in scale.dims)
    }
    budgets = {name: found for name, found in results[0].variables.items() if Estimate.field_of(name) == "budget"}
    whole = Result(scales, {**budgets, **variables}, results[0].attrs)
    view = View(whole, first.units, first.every, first.width, first.unicode)
    return Run(f"mean of {len(runs)}", view, len(runs))


def _shared(lists: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Return, for every list, the places of the values that all have, in the order of the first."""
    common = reduce(lambda left, right: left & set(right), lists[1:], set(lists[0]))
    values = [value for value in dict.fromkeys(lists[0]) if value in common]
    return [[list(one).index(value) for value in values] for one in lists]


def _cut(variable: Variable, keep: Mapping[str, list[int]]) -> Array:
    values = variable.values
    for axis, dim in enumerate(variable.dims):
        values = np.take(values, keep[dim], axis)
    return np.asarray(values)


def _parts(result: Result, key: str, keep: Mapping[str, list[int]]) -> Mapping[str, Array] | None:
    """Return value, status and ends of a quantity where all results have it; None for what is not pooled."""
    if key not in result.quantities or any(dim not in keep for dim in result[key].dims):
        return None
    if result[key].values.dtype.kind != "f" or "distance_bin" in result[key].dims:
        return None
    beside = {name: found for name, found in result.companions(key).items() if name in ("status", "lower", "upper")}
    return {name: _cut(found, keep) for name, found in {"value": result[key], **beside}.items()}


def _mean(key: str, like: Variable, parts: Sequence[Mapping[str, Array]]) -> dict[str, Variable]:
    shared = set.intersection(*(set(part) for part in parts))
    stacked = {name: np.stack([part[name] for part in parts]) for name in shared}
    if len({part["value"].shape for part in parts}) != 1 or stacked["value"].size == 0:
        return {}
    with np.errstate(all="ignore"):
        made = {"": stacked["value"].mean(0), "se": stacked["value"].std(0, ddof=1)}
    if "status" in stacked:
        made["status"] = _worst(stacked["status"])
    if {"lower", "upper"} <= shared:
        made |= {"lower": stacked["lower"].min(0), "upper": stacked["upper"].max(0)}
    names = {suffix: Estimate.companion(key, suffix) if suffix else key for suffix in made}
    attrs = {**like.attrs, "ancillary_variables": " ".join(name for suffix, name in names.items() if suffix)}
    return {
        names[suffix]: Variable(like.dims, values, like.attrs if suffix else attrs) for suffix, values in made.items()
    }


def _worst(statuses: Array) -> Array:
    rank = {int(status): place for place, status in enumerate(_WORST)}
    worst: Array = np.vectorize(rank.__getitem__, otypes=[np.int64])(statuses).min(0)
    return np.asarray(np.array([int(status) for status in _WORST], dtype=np.int8)[worst])
