"""Decode an open HDF5 file to a result; check every size and kind before using it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.errors import InputError
from ibscan.results.axes import AUXILIARY, KINDS

__all__ = ["DIMENSION_NAMES", "FORMAT_VERSION", "decoded", "unreadable"]

FORMAT_VERSION = 1

# Attribute with the names of dimensions, as JSON: following the references of dimension scales, as other readers do,
# crashes the HDF5 library, and with it the process, on a damaged file.
DIMENSION_NAMES = "dimensions"

# Deflate cannot shrink by more than 1032 : 1, so what claims more is not what a writer wrote.
_DEFLATE_BOUND = 1040
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_BOOKKEEPING = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "coordinates"}
_STRING_BLOCK = 64
_KINDS: dict[str, type] = {
    "units": str,
    "long_name": str,
    "symbol": str,
    "at": str,
    "ancillary_variables": str,
    "flag_meanings": str,
    "rows": int,
    "shown": int,
}
_ROOT_KINDS: dict[str, type] = {
    "format": str,
    "format_version": int,
    "created_at": str,
    "ibscan_version": str,
    "torch_version": str,
    "device": str,
    "command": str,
    "model": str,
    "probe": str,
    "probe_sha256": str,
    "seed": int,
    "settings": str,
    "skipped": str,
    "complete": int,
}


def decoded(file: h5py.File, size: int, where: str) -> Result:
    """Decode the result that an open file holds.

    Args:
        file: The file, open for reading.
        size: Its size in bytes, the bound for what it may claim to hold.
        where: Its name for messages.

    Raises:
        InputError: The file is foreign, newer, or inconsistent. h5py's own exceptions pass through.
    """
    attrs = _attributes(file)
    if attrs.get("format") != "ibscan":
        raise InputError(f"{where}: is HDF5, but not a result of ibscan (no attribute format='ibscan').")
    version = attrs.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{where}: is damaged: format_version is {version!r}, expected {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{where}: has format {version}, written by a newer ibscan; this one reads up to {FORMAT_VERSION}. Upgrade."
        )
    dimensions = json.loads(attrs.pop(DIMENSION_NAMES, "{}"))
    coordinates: dict[str, Variable] = {}
    variables: dict[str, Variable] = {}
    for name, dataset in _datasets(file, size, where):
        dims = tuple(dimensions.get(name, ()))
        if len(dims) != dataset.ndim or not all(isinstance(dim, str) for dim in dims):
            raise InputError(f"{where}: is damaged: {name!r} of shape {dataset.shape} has the dimensions {dims}.")
        variable = Variable(dims, _values(dataset, size), _attributes(dataset))
        (coordinates if dims == (name,) or name in AUXILIARY else variables)[name] = variable
    result = Result(coordinates, variables, attrs)
    fault = next(_faults(result), None)
    if fault is not None:
        raise InputError(f"{where}: is damaged: {fault}. Run the scan again, or restore the file.")
    return result


def unreadable(where: str, error: Exception) -> InputError:
    """Turn what h5py raised on a file into a sentence."""
    what = " ".join(str(error).split())[:200]
    return InputError(
        f"{where}: is not a readable result file of ibscan ({what}); expected whole HDF5 with format='ibscan'."
    )


def _datasets(file: h5py.File, size: int, where: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the root's datasets; refuse links out of the file, and sizes that the file cannot hold."""
    stored = 0
    for name in file:
        # Check the kind of link first: looking the object up would follow it.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{where}: {name!r} is a link; a result of ibscan holds none, and none is followed.")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{where}: {name!r} is no dataset; a result of ibscan has a flat root.")
        if dataset.external or dataset.is_virtual:
            raise InputError(f"{where}: {name!r} takes its data from another file; that is never followed.")
        creation = dataset.id.get_create_plist()
        filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
        if set(filters) - _FILTERS or filters.count(h5py.h5z.FILTER_DEFLATE) > 1:
            raise InputError(f"{where}: {name!r} is stored through unknown filters {filters}.")
        storage = dataset.id.get_storage_size()
        stored += storage
        bound = storage * (_DEFLATE_BOUND if h5py.h5z.FILTER_DEFLATE in filters else 1)
        if stored > size or dataset.size * dataset.id.get_type().get_size() > bound or not dataset.size:
            raise InputError(f"{where}: {name!r} claims shape {dataset.shape}, which the file cannot hold.")
        yield name, dataset


def _values(dataset: h5py.Dataset, size: int) -> Array:
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None:
        return _strings(dataset, size)
    kind, width = dataset.dtype.kind, dataset.dtype.itemsize
    if dataset.dtype.fields is not None or dataset.dtype.subdtype is not None or kind not in "fiu":
        where = dataset.file.filename
        raise InputError(f"{where}: {dataset.name!r} has type {dataset.dtype}, expected numbers or text.")
    values = dataset[()]
    # A 32-bit NaN may be a signalling one.
    with np.errstate(invalid="ignore"):
        native: Array = values.astype(
            np.float64 if kind == "f" else np.int8 if kind == "i" and width == 1 else np.int64
        )
    return native


def _strings(dataset: h5py.Dataset, size: int) -> Array:
    if dataset.ndim != 1:
        where = dataset.file.filename
        raise InputError(f"{where}: {dataset.name!r} has text in {dataset.ndim} dimensions, expected 1.")
    listed: list[str] = []
    length = 0
    # Sum up block by block: a million elements may all point at the same megabyte of the file.
    for start in range(0, dataset.size, _STRING_BLOCK):
        block = dataset[start : start + _STRING_BLOCK]
        length += sum(len(item) for item in block)
        if length > size:
            raise InputError(f"{dataset.file.filename}: {dataset.name!r} holds more text than the file has bytes.")
        listed += [item.decode("utf-8") for item in block]
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def _attributes(owner: h5py.File | h5py.Dataset) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    # h5py makes manager and dtype anew each time they are asked for, which took a third of the time of reading.
    stored = owner.attrs
    for name in stored:
        if name in _BOOKKEEPING or name.startswith(("_Netcdf4", "_NC")):
            continue
        described = stored.get_id(name)
        dtype = described.dtype
        text = h5py.check_string_dtype(dtype) is not None
        if math.prod(described.shape) > (1 if text else 64):
            where = owner.file.filename
            raise InputError(f"{where}: attribute {name!r} has shape {described.shape}, expected one value.")
        value = stored[name]
        if text:
            one = value if isinstance(value, str | bytes) else value.ravel()[0]
            attributes[name] = one if isinstance(one, str) else one.decode("utf-8")
        elif dtype.kind in "fiu" and dtype.fields is None:
            array = np.asarray(value)
            attributes[name] = array if array.ndim and name == "flag_values" else array.ravel()[0].item()
        else:
            raise InputError(f"{owner.file.filename}: attribute {name!r} is neither text nor a number.")
    return attributes


def _faults(result: Result) -> Iterator[str]:
    """Yield what is wrong with a result, as clauses."""
    for name, expected in _ROOT_KINDS.items():
        if not isinstance(result.attrs.get(name, expected()), expected):
            yield f"attribute {name!r} is {result.attrs[name]!r}"
    for name in ("settings", "skipped"):
        if not isinstance(json.loads(result.attrs.get(name, "{}")), dict):
            yield f"attribute {name!r} is no JSON object"
    for name, home in AUXILIARY.items():
        if home in (*result.coordinates, "checkpoint") and name not in result.coordinates:
            yield f"coordinate {name!r} is missing"
    for name, found in result.coordinates.items():
        kind = found.values.dtype.kind
        if found.dims != (AUXILIARY.get(name, name),) or KINDS.get(name, kind) != kind:
            yield f"coordinate {name!r} is of another kind"
    for name, variable in {**result.coordinates, **result.variables}.items():
        if len(set(variable.dims)) != len(variable.dims):
            yield f"{name!r} repeats a dimension"
        for dimension, length in zip(variable.dims, variable.values.shape, strict=True):
            if dimension not in result.coordinates or len(result.coordinates[dimension].values) != length:
                yield f"{name!r} does not fit dimension {dimension!r}"
        for key, expected in _KINDS.items():
            if not isinstance(variable.attrs.get(key, expected()), expected):
                yield f"attribute {key!r} of {name!r} is {variable.attrs[key]!r}"
    yield from _family_faults(result)


def _family_faults(result: Result) -> Iterator[str]:
    codes = [int(status) for status in Status]
    for name, variable in result.variables.items():
        if variable.values.dtype.kind == "O" or variable.dims[:1] != ("checkpoint",):
            yield f"{name!r} is no variable over checkpoints"
        for other in variable.ancillary:
            if other not in result.variables or result.variables[other].dims != variable.dims:
                yield f"{name!r} names {other!r}, which is missing or of another shape"
            elif Estimate.field_of(other) == "status" and not np.isin(result.variables[other].values, codes).all():
                yield f"{other!r} holds values that are no status"
