"""Join results: of the parts of a run, of several commands, of a series that grew."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.errors import UsageError
from ibscan.results.axes import AGREEING, AUXILIARY, checkpoint_keys, fill_value, keys, ordered, strings
from ibscan.results.bounds import without_broken_bounds
from ibscan.results.coverage import ROUNDING, half_width, measured_cells

__all__ = ["first_difference", "join", "joined"]

_WAY_OUT = "Write elsewhere with -o, or replace it with --force."


@dataclass(frozen=True)
class _Union:
    """The united coordinates, and by dimension the index in them of every coordinate of either result."""

    coordinates: Mapping[str, Variable]
    old: Mapping[str, Array]
    new: Mapping[str, Array]

    def index(self, side: Mapping[str, Array], dims: tuple[str, ...]) -> tuple[Array, ...]:
        return np.ix_(*(side[dim] for dim in dims))

    def shape(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(len(self.coordinates[dim].values) for dim in dims)


def join(old: Result, new: Result, *, replace: bool = False, tolerance: float | None = None) -> Result:
    """Unite two results; where both measured a cell, take `new`'s unless that failed.

    Cells in neither are NaN, `not_measured` or -1. Checkpoints are the same if hash and name agree; they are ordered
    by value, epoch, step or name, numeric parameters ascending, layers as `settings["layers"]` lists them.

    Args:
        old: The result so far.
        new: The result to add.
        replace: Let `new` replace what contradicts it: all of `old` if the run's identity differs, else a variable
            with its companions, or the row of a checkpoint that changed.
        tolerance: Keep an old value whose standard error is the smaller one, and mark it `unresolved` where its 95 %
            half width exceeds this tolerance.

    Returns:
        The union, with the attributes of `new` and the settings of both.

    Raises:
        UsageError: The two contradict each other and `replace` is False.
    """
    difference = first_difference(old, new.attrs)
    if difference is not None:
        if replace:
            return new
        raise UsageError(f"Results of different runs cannot be joined: {difference}. {_WAY_OUT}")
    old = _without_changed_checkpoints(_without_changed_variables(old, new, replace), new, replace)
    settings = _merged(old.settings, new.settings)
    union = _union(old, new, settings.get("layers"))
    variables = without_broken_bounds(_united(old, new, union, tolerance))
    used = {"checkpoint", "layer"} | {dim for variable in variables.values() for dim in variable.dims}
    coordinates = {name: v for name, v in union.coordinates.items() if set(v.dims) <= used}
    attrs = {**old.attrs, **new.attrs}
    if "settings" in attrs:
        attrs["settings"] = json.dumps(settings, sort_keys=True)
    if "skipped" in attrs:
        measured = set(coordinates["checkpoint_name"].values.tolist())
        before = json.loads(old.attrs.get("skipped", "{}"))
        skipped = {name: reason for name, reason in before.items() if name not in measured}
        attrs["skipped"] = json.dumps({**skipped, **json.loads(new.attrs.get("skipped", "{}"))}, sort_keys=True)
    return Result(coordinates, variables, attrs)


def joined(results: Sequence[Result]) -> Result | None:
    """Join n results pairwise, so that no array is copied more than log2(n) times."""
    level = list(results)
    while len(level) > 1:
        level = [join(*level[k : k + 2]) if k + 1 < len(level) else level[k] for k in range(0, len(level), 2)]
    return level[0] if level else None


def first_difference(old: Result, new_attrs: Mapping[str, Any]) -> str | None:
    """Return a clause on the first difference in identity between a result and a run, or None.

    Args:
        old: The result so far.
        new_attrs: The root attributes of the run: model, probe_sha256, seed, and settings (JSON: dtype, layers, widths,
            weights, code).
    """
    settings = json.loads(new_attrs.get("settings", "{}"))
    pairs = [(name, old.attrs.get(name), new_attrs.get(name)) for name in ("model", "probe_sha256", "seed")]
    # A spec such as mlp:tanh fits many architectures, and a file may hold raw and averaged weights side by side.
    for name in ("dtype", "layers", "widths", "weights"):
        pairs.append((name, old.settings.get(name), settings.get(name)))
    # Code may change while its name stays.
    pairs.append(("the model's code, by its SHA-256,", old.settings.get("code", ""), settings.get("code", "")))
    for name, there, here in pairs:
        if there != here:
            return f"{name} is {there!r} there and {here!r} in this run"
    return None


def _without_changed_variables(old: Result, new: Result, replace: bool) -> Result:
    """Drop the variables of `old` whose terms (`AGREEING`), dimensions or kind differ from `new`'s."""
    dropped: set[str] = set()
    for name in set(old.quantities) & set(new.quantities):
        before, after = old[name], new[name]
        pairs = [(key, before.attrs.get(key, other), after.attrs.get(key, other)) for key, other in AGREEING.items()]
        pairs.append(("dimensions", before.dims, after.dims))
        pairs.append(("kind", str(before.values.dtype), str(after.values.dtype)))
        pairs.append(("status", old.status(name) is not None, new.status(name) is not None))
        for key, there, here in pairs:
            if there != here and not replace:
                raise UsageError(f"{name} cannot be joined: its {key} is {there!r} there and {here!r} now. {_WAY_OUT}")
            if there != here:
                dropped |= {name, *before.ancillary}
    if not dropped:
        return old
    variables = {name: v for name, v in old.variables.items() if name not in dropped}
    used = {"checkpoint", "layer"} | {dim for v in variables.values() for dim in v.dims}
    return Result({name: v for name, v in old.coordinates.items() if set(v.dims) <= used}, variables, old.attrs)


def _without_changed_checkpoints(old: Result, new: Result, replace: bool) -> Result:
    """Drop the checkpoints of `old` whose file has changed."""
    hashes = {name: sha for sha, name in checkpoint_keys(new)}
    keep: list[int] = []
    for row, (sha, name) in enumerate(checkpoint_keys(old)):
        if hashes.get(name, sha) == sha:
            keep.append(row)
        elif not replace:
            raise UsageError(
                f"checkpoint {name!r} has changed: its SHA-256 is {sha[:12]}... in the result and "
                f"{hashes[name][:12]}... now. {_WAY_OUT}"
            )
    if len(keep) == len(old["checkpoint"].values):
        return old

    def cut(variable: Variable) -> Variable:
        values = variable.values[keep] if variable.dims[:1] == ("checkpoint",) else variable.values
        return dataclasses.replace(variable, values=values)

    return Result(
        {name: cut(v) for name, v in old.coordinates.items()},
        {name: cut(v) for name, v in old.variables.items()},
        old.attrs,
    )


def _union(old: Result, new: Result, layers: Any) -> _Union:  # noqa: ANN401 - from JSON
    dims = [name for r in (old, new) for name, variable in r.coordinates.items() if variable.dims == (name,)]
    coordinates: dict[str, Variable] = {}
    indices: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for dim in dict.fromkeys(dims):
        listed = [keys(result, dim) if dim in result.coordinates else [] for result in (old, new)]
        united = _united_keys(dim, listed[0], listed[1], layers)
        auxiliary = [name for name, home in AUXILIARY.items() if home == dim]
        columns = {name: _column(old, new, name, listed, united) for name in auxiliary if name in new or name in old}
        if dim == "checkpoint":
            order = ordered(columns, len(united))
            united = [united[row] for row in order]
            columns = {name: dataclasses.replace(v, values=v.values[order]) for name, v in columns.items()}
        lookup = {key: index for index, key in enumerate(united)}
        for side in (0, 1):
            indices[side][dim] = np.array([lookup[key] for key in listed[side]], dtype=np.intp)
        source = (new if dim in new.coordinates else old).coordinates[dim]
        coordinates[dim] = Variable((dim,), _scale(dim, united, source), source.attrs)
        coordinates.update(columns)
    return _Union(coordinates, *indices)


def _united_keys(dim: str, old: list[Hashable], new: list[Hashable], layers: Any) -> list[Any]:  # noqa: ANN401 - JSON
    union: list[Any] = list(dict.fromkeys([*old, *new]))
    if dim == "layer" and isinstance(layers, list):
        order = {name: index for index, name in enumerate(layers) if isinstance(name, str)}
        return sorted(union, key=lambda name: order.get(name, len(order)))
    if dim == "checkpoint" or any(isinstance(value, str) for value in union):
        return union
    return sorted(union)


def _scale(dim: str, union: list[Any], source: Variable) -> Array:
    if dim == "checkpoint":
        return np.arange(len(union), dtype=np.int64)
    return strings(union) if source.values.dtype.kind == "O" else np.array(union, dtype=source.values.dtype)


def _column(old: Result, new: Result, name: str, listed: list[list[Hashable]], union: list[Hashable]) -> Variable:
    """Unite an auxiliary coordinate; prefer `new`'s values."""
    known: dict[Hashable, Any] = {}
    for result, present in zip((old, new), listed, strict=True):
        if name in result.coordinates:
            known.update(zip(present, result.coordinates[name].values.tolist(), strict=True))
    source = (new if name in new.coordinates else old).coordinates[name]
    dtype = source.values.dtype
    values = [known.get(key, fill_value(dtype)) for key in union]
    return Variable(source.dims, strings(values) if dtype.kind == "O" else np.array(values, dtype=dtype), source.attrs)


def _united(old: Result, new: Result, union: _Union, tolerance: float | None) -> dict[str, Variable]:
    old_keys, new_keys = set(old.quantities), set(new.quantities)
    variables: dict[str, Variable] = {}
    for key in dict.fromkeys([*old.quantities, *new.quantities]):
        sources = [result[key] for result, there in ((old, old_keys), (new, new_keys)) if key in there]
        companions = list(dict.fromkeys(name for source in sources for name in source.ancillary))
        companions.sort(key=lambda name: Estimate.field_of(name) == "status")
        measured = measured_cells(new, key) if key in new_keys else None
        judged: dict[str, Array] = {}
        kept = np.zeros((), dtype=bool)
        if measured is not None and key in old_keys:
            measured &= ~_worse(old, new, key, union)
            if tolerance is not None and all("stderr" in result.companions(key) for result in (old, new)):
                keep, status = _more_precise(old, new, key, union, tolerance)
                judged[Estimate.companion(key, "status")] = status
                kept = measured & keep
                measured = measured & ~keep
        for name in (key, *companions):
            source = new.variables.get(name) or old.variables[name]
            fill = fill_value(source.values.dtype)
            values = np.full(union.shape(source.dims), fill, dtype=source.values.dtype)
            if name in old.variables:
                values[union.index(union.old, source.dims)] = old.variables[name].values
            if measured is not None:
                index = union.index(union.new, source.dims)
                # A companion that only `old` has belongs to the replaced value, and is dropped with it.
                arriving = new.variables[name].values if name in new.variables else fill
                values[index] = np.where(measured, arriving, values[index])
                if name in judged:
                    values[index] = np.where(kept, judged[name], values[index])
            attrs = {**(old.variables[name].attrs if name in old.variables else {}), **source.attrs}
            if name == key and companions:
                attrs["ancillary_variables"] = " ".join(companions)
            variables[name] = Variable(source.dims, values, attrs)
    return variables


def _worse(old: Result, new: Result, key: str, union: _Union) -> Array:
    """Return where `new` failed to measure what `old` has, in the shape of `new`'s variable."""
    status, fresh = _on(union, new[key].dims, old.status(key), Status.NOT_MEASURED), new.status(key)
    if status is None or fresh is None:
        return np.zeros(new[key].values.shape, dtype=bool)
    failed = (Status.FAILED, Status.OUT_OF_MEMORY)
    worse: Array = np.isin(fresh, failed) & ~np.isin(status, (Status.NOT_MEASURED, *failed))
    return worse


def _more_precise(old: Result, new: Result, key: str, union: _Union, tolerance: float) -> tuple[Array, Array]:
    """Return where `old` has the smaller half width, and its status at the tolerance."""
    dims, fresh = new[key].dims, new.status(key)
    status = _on(union, dims, old.status(key), Status.NOT_MEASURED)
    error = _on(union, dims, half_width(old, key), np.nan)
    assert status is not None
    assert error is not None
    assert fresh is not None
    # Among equals the newer, whose status and budget are this command's.
    less = error * (1 + ROUNDING) < half_width(new, key)
    keep = np.isin(status, (Status.OK, Status.SATURATED, Status.UNRESOLVED)) & less
    if not Estimate.sides(key):  # the tolerance is that of information
        return keep, status
    resolved = np.where(status != Status.UNRESOLVED, status, np.where(fresh != Status.UNRESOLVED, fresh, Status.OK))
    return keep, np.where(error <= tolerance * (1 + 1e-9), resolved, Status.UNRESOLVED).astype(np.int8)


def _on(union: _Union, dims: tuple[str, ...], values: Array | None, fill: float) -> Array | None:
    """Select the values of an array of `old` at the coordinates of `new`."""
    if values is None:
        return None
    whole = np.full(union.shape(dims), fill, dtype=values.dtype)
    whole[union.index(union.old, dims)] = values
    found: Array = whole[union.index(union.new, dims)]
    return found


# Lists of parameters, which are united when results join; any other list is a single value.
_ADDED = ("eps", "rel_eps", "noise", "rel_noise", "bins", "widths")


def _merged(old: Any, new: Any, name: str = "") -> Any:  # noqa: ANN401 - JSON
    """Unite two settings: objects key by key, lists of parameters as sets, else take the newer."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _merged(old.get(key, new.get(key)), new.get(key, old.get(key)), key) for key in {**old, **new}}
    if name in _ADDED and isinstance(old, list) and isinstance(new, list) and old != new:
        return sorted({*old, *new})
    return new
