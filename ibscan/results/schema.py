"""Lay out the estimates of one block of checkpoints as a result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.quantity import Dimension, Quantity
from ibscan.core.records import Array, Checkpoint, Layer
from ibscan.core.result import Result, Variable
from ibscan.results.axes import DESCRIPTIONS, METRIC, STATED_METRIC, fill_value, metric_value, stored_text, strings
from ibscan.results.bounds import without_broken_bounds
from ibscan.results.store import FORMAT_VERSION

__all__ = ["build"]


def build(
    checkpoints: Sequence[Checkpoint],
    layers: Sequence[Layer],
    outcomes: Sequence[tuple[Measure, Mapping[str, Estimate], int]],
    *,
    attrs: Mapping[str, Any],
) -> Result:
    """Lay out what was measured on one block of checkpoints as a result.

    Measures that share a dimension (say `noise`) with different values get the union of them; what one did not
    measure there is `not_measured`.

    Args:
        checkpoints: The C checkpoints of the block, in order.
        layers: The L layers reported.
        outcomes: For each measure what it returned, arrays (C, L, *dims) or (C, *dims), and the rows it used.
        attrs: Root attributes; mappings and lists become JSON, None is left out.

    Returns:
        Coordinates, variables with companions and statuses, and root attributes.

    Raises:
        ValueError: An estimate has another shape than its quantity declares.
    """
    coordinates = {**_checkpoint_coordinates(checkpoints), **_layer_coordinates(layers)}
    axes = _axes(outcomes)
    for dimension, values in axes.items():
        attributes = {"long_name": dimension.meaning}
        coordinates[dimension.name] = Variable((dimension.name,), _axis(dimension, values), attributes)
    variables: dict[str, Variable] = {}
    for measure, estimates, rows in outcomes:
        for quantity in measure.quantities:
            if quantity.key not in estimates or 0 in estimates[quantity.key].value.shape[2:]:
                continue
            estimate = estimates[quantity.key]
            lead = (len(checkpoints), len(layers)) if quantity.per_layer else (len(checkpoints),)
            places = _places(quantity, measure, estimate, lead, axes)
            measured = {"at": measure.at, "rows": int(quantity.rows(measure, rows)), **measure.attributes}
            variables.update(_family(quantity, estimate, places, measured))
    variables = without_broken_bounds(variables | _metrics(checkpoints, variables))
    fixed = {"Conventions": "CF-1.11", "format": "ibscan", "format_version": FORMAT_VERSION}
    return Result(coordinates, variables, {**fixed, **_plain(attrs)})


def _described(name: str) -> dict[str, Any]:
    return {"long_name": DESCRIPTIONS.get(name, name)}


def _checkpoint_coordinates(checkpoints: Sequence[Checkpoint]) -> dict[str, Variable]:
    def known(number: float | None) -> float:
        return float("nan") if number is None else float(number)

    columns: dict[str, Array] = {
        "checkpoint": np.arange(len(checkpoints), dtype=np.int64),
        "epoch": np.array([known(c.epoch) for c in checkpoints], dtype=np.float64),
        # HDF5 holds 64 bits; a longer number is no step, and stays readable in the name.
        "step": np.array(
            [-1 if c.step is None or not 0 <= c.step < 2**63 else c.step for c in checkpoints], dtype=np.int64
        ),
        "value": np.array([known(c.value) for c in checkpoints], dtype=np.float64),
        "checkpoint_name": strings(c.name for c in checkpoints),
        "checkpoint_sha256": strings(c.sha256 for c in checkpoints),
        "step_source": strings(c.step_source for c in checkpoints),
    }
    return {name: Variable(("checkpoint",), values, _described(name)) for name, values in columns.items()}


def _layer_coordinates(layers: Sequence[Layer]) -> dict[str, Variable]:
    columns: dict[str, Array] = {
        "layer": strings(layer.name for layer in layers),
        "layer_type": strings(layer.kind for layer in layers),
        "layer_width": np.array([layer.width for layer in layers], dtype=np.int64),
    }
    return {name: Variable(("layer",), values, _described(name)) for name, values in columns.items()}


def _values(quantity: Quantity, measure: Measure, estimate: Estimate, axis: int) -> list[Any]:
    """Return the coordinate values of one of the quantity's own dimensions (`axis` counts from its first)."""
    dimension = quantity.over[axis]
    length = estimate.value.shape[(2 if quantity.per_layer else 1) + axis]
    given = measure.coordinates.get(dimension.name)
    if given is None:  # only the network decides how many there are
        return list(range(dimension.first, dimension.first + length))
    listed = [stored_text(v) if isinstance(v, str) else v for v in np.asarray(given, dtype=object).tolist()]
    if len(listed) != length:
        raise ValueError(f"{quantity.key}: {dimension.name} has {len(listed)} values, the estimate has {length}")
    return listed


def _axes(outcomes: Sequence[tuple[Measure, Mapping[str, Estimate], int]]) -> dict[Dimension, list[Any]]:
    """Return the union of coordinate values of each dimension: numbers ascending, names as they appear."""
    found: dict[Dimension, dict[Any, None]] = {}
    for measure, estimates, _ in outcomes:
        for quantity in measure.quantities:
            if quantity.key in estimates:
                for axis, dimension in enumerate(quantity.over):
                    values = _values(quantity, measure, estimates[quantity.key], axis)
                    found.setdefault(dimension, {}).update(dict.fromkeys(values))
    axes: dict[Dimension, list[Any]] = {}
    for dimension, union in found.items():
        if not union:
            continue
        named = any(isinstance(value, str) for value in union)
        axes[dimension] = list(union) if named else sorted(union)
    return axes


def _axis(dimension: Dimension, values: list[Any]) -> Array:
    if isinstance(values[0], str):
        return strings(values)
    # A noise given as the integer 1 is a float like 0.5.
    return np.asarray(values, dtype=np.int64 if dimension.kind == "i" else np.float64)


def _places(
    quantity: Quantity, measure: Measure, estimate: Estimate, lead: tuple[int, ...], axes: Mapping[Dimension, list[Any]]
) -> tuple[tuple[int, ...], tuple[Array, ...]]:
    """Return the shape of the variable, and where along each axis the estimate's entries go."""
    if estimate.value.shape[: len(lead)] != lead or estimate.value.ndim != len(lead) + len(quantity.dims):
        raise ValueError(f"{quantity.key}: shape {estimate.value.shape}, expected {lead} and {quantity.dims}")
    shape = lead + tuple(len(axes.get(dimension, ())) for dimension in quantity.over)
    index = [np.arange(n) for n in lead]
    for axis, dimension in enumerate(quantity.over):
        lookup = {value: place for place, value in enumerate(axes.get(dimension, ()))}
        index.append(np.array([lookup[v] for v in _values(quantity, measure, estimate, axis)], dtype=np.intp))
    return shape, np.ix_(*index)


def _spread(values: Array, places: tuple[tuple[int, ...], tuple[Array, ...]]) -> Array:
    shape, index = places
    filled = np.full(shape, fill_value(values.dtype), dtype=values.dtype)
    filled[index] = values
    return filled


def _family(
    quantity: Quantity,
    estimate: Estimate,
    places: tuple[tuple[int, ...], tuple[Array, ...]],
    measured: Mapping[str, Any],
) -> dict[str, Variable]:
    """Lay out a quantity as variables: its value, its companions and its status."""
    key = quantity.key
    dims = (("checkpoint", "layer") if quantity.per_layer else ("checkpoint",)) + quantity.dims
    common = {"units": quantity.unit, "symbol": quantity.symbol, **measured, "shown": int(quantity.default_shown)}
    common |= {"table": quantity.table} if quantity.table else {}
    parts = {suffix: getattr(estimate, field) for field, suffix in Estimate.COMPANIONS.items()}
    names = {suffix: Estimate.companion(key, suffix) for suffix, values in parts.items() if values is not None}
    status_name = Estimate.companion(key, "status")
    status = [] if estimate.status is None else [status_name]

    def variable(values: Array, long_name: str, ancillary: Sequence[str], *, integer: bool = False) -> Variable:
        array = np.asarray(values).astype(np.int64 if integer else np.float64)
        attrs: dict[str, Any] = {"long_name": long_name, **common, "_FillValue": fill_value(array.dtype)}
        if ancillary:
            attrs["ancillary_variables"] = " ".join(ancillary)
        return Variable(dims, _spread(array, places), attrs)

    integer = quantity.counted and np.asarray(estimate.value).dtype.kind in "iub"
    family = {key: variable(estimate.value, quantity.meaning, [*names.values(), *status], integer=integer)}
    for suffix, name in names.items():
        family[name] = variable(parts[suffix], f"{Estimate.MEANINGS[suffix]} {quantity.meaning}", status)
        if suffix in Estimate.UNITLESS:
            family[name] = replace(family[name], attrs={**family[name].attrs, "units": "1"})
    if estimate.status is not None:
        codes = np.asarray(estimate.status).astype(np.int8)
        family[status_name] = Variable(dims, _spread(codes, places), _status_attrs(key))
    return family


def _status_attrs(key: str) -> dict[str, Any]:
    return {
        "long_name": f"status of {key}",
        "flag_values": np.array(list(Status), dtype=np.int8),
        "flag_meanings": " ".join(status.name.lower() for status in Status),
    }


def _metrics(checkpoints: Sequence[Checkpoint], present: Mapping[str, Variable]) -> dict[str, Variable]:
    """Return `metric_NAME` for the numbers that checkpoints carry in their metadata."""
    variables: dict[str, Variable] = {}
    keys = sorted(
        {key for c in checkpoints for key in c.metadata if key.startswith(STATED_METRIC) and key != STATED_METRIC}
    )
    for key in keys:
        name = METRIC + re.sub(r"[^A-Za-z0-9_]", "_", key.removeprefix(STATED_METRIC))
        status_name = Estimate.companion(name, "status")
        parsed = [metric_value(c.metadata.get(key)) for c in checkpoints]
        # Two names may become the same, or one the status of another: keep the first.
        if {name, status_name} & {*variables, *present} or all(number is None for number in parsed):
            continue
        values = np.array([float("nan") if v is None or not math.isfinite(v) else v for v in parsed])
        codes = [
            Status.NOT_MEASURED if v is None else Status.OK if math.isfinite(v) else Status.NONFINITE for v in parsed
        ]
        attrs = {
            "long_name": f"{stored_text(key.removeprefix(STATED_METRIC))}, from the checkpoint's metadata",
            "units": "1",
            "symbol": stored_text(key.removeprefix(STATED_METRIC)),
            "shown": 1,
            "_FillValue": float("nan"),
            "ancillary_variables": status_name,
        }
        variables[name] = Variable(("checkpoint",), values, attrs)
        variables[status_name] = Variable(("checkpoint",), np.array(codes, dtype=np.int8), _status_attrs(name))
    return variables


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert attributes to what a file holds: strings, integers, floats."""
    plain: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, bool | int | np.bool_ | np.integer):
            plain[name] = int(value)
        elif isinstance(value, float | np.floating):
            plain[name] = float(value)
        elif isinstance(value, str | Path):
            plain[name] = stored_text(str(value))
        elif value is not None:
            plain[name] = stored_text(json.dumps(value))
    return plain
