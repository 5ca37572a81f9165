"""Select part of a result: checkpoints, parameters, variables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.results.axes import is_metric
from ibscan.results.coverage import rows_of

__all__ = ["arranged", "selected"]


def arranged(result: Result, first: Sequence[str]) -> Result:
    """Order variables as a single command writes them: the quantities `first`, others, metrics; companions follow."""
    order = {key: k for k, key in enumerate(first)}
    quantities = sorted(result.quantities, key=lambda key: order.get(key, len(order) + is_metric(key)))
    names = [name for key in quantities for name in (key, *result[key].ancillary) if name in result.variables]
    return Result(result.coordinates, {name: result.variables[name] for name in names}, result.attrs)


def selected(
    result: Result,
    *,
    checkpoints: Collection[tuple[str, str]] | None = None,
    variables: Collection[str] | None = None,
    coordinates: Mapping[str, Collection[Any]] | None = None,
) -> Result:
    """Select what is named, in the order it had; None keeps everything, dimensions that no variable uses are dropped.

    Args:
        result: The whole.
        checkpoints: (sha256, name) of those to keep.
        variables: Variables to keep, with their companions.
        coordinates: Values to keep along a dimension, such as `{"eps": [0.01]}`.
    """
    keep: dict[str, Array] = {}
    if checkpoints is not None:
        keep["checkpoint"] = np.array([row for key, row in rows_of(result).items() if key in checkpoints], dtype=int)
    for dim, values in (coordinates or {}).items():
        if dim in result.coordinates:
            keep[dim] = np.array([k for k, v in enumerate(result[dim].values.tolist()) if v in values], dtype=int)
    names = _with_companions(result, variables)
    kept = {name: _cut(variable, keep) for name, variable in result.variables.items() if name in names}
    used = {"checkpoint", "layer"} | {dim for variable in kept.values() for dim in variable.dims}
    scales = {
        name: _cut(scale, keep)
        for name, scale in result.coordinates.items()
        if set(scale.dims) <= used and (name not in ("layer_type", "layer_width") or "layer" in used)
    }
    if "checkpoint" in keep:  # number those kept anew
        index = scales["checkpoint"]
        scales["checkpoint"] = Variable(index.dims, np.arange(len(index.values)), index.attrs)
    return Result(scales, kept, result.attrs)


def _with_companions(result: Result, variables: Collection[str] | None) -> set[str]:
    if variables is None:
        return set(result.variables)
    names = {name for name in variables if name in result.variables}
    return names.union(*(result[name].ancillary for name in names))


def _cut(variable: Variable, keep: Mapping[str, Array]) -> Variable:
    values = variable.values
    for axis, dim in enumerate(variable.dims):
        if dim in keep:
            values = np.take(values, keep[dim], axis)
    return Variable(variable.dims, values, variable.attrs)
