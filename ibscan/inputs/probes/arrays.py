"""Read the named arrays of a probe file: all shapes, then the numbers of the wanted arrays only."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ibscan.core.records import Array
from ibscan.core.text import first_line
from ibscan.errors import InputError, UsageError
from ibscan.inputs.files import Snapshot, snapshot
from ibscan.inputs.formats.pickle_objects import NUMPY_ARRAYS, Called, StoredTensor, check_tensor
from ibscan.inputs.formats.recognise import content_kind
from ibscan.inputs.formats.safetensors import read_tensor_header, read_tensors
from ibscan.inputs.formats.state_dict import is_tensor
from ibscan.inputs.formats.torch_file import load_archive, read_archive
from ibscan.inputs.formats.zip_file import check_directory
from ibscan.inputs.probes.callable_probe import as_numpy
from ibscan.inputs.probes.child_arrays import Reader, arrays_by_child
from ibscan.inputs.probes.hdf5 import HDF5
from ibscan.inputs.probes.named_arrays import NamedArrays, Pick, check_size
from ibscan.inputs.probes.text_tables import SUFFIXES as TABLES
from ibscan.inputs.untrusted import stated_sizes

__all__ = ["NOW", "named_arrays"]

# Other methods inflate without a bound, or take as much memory as the file states.
NUMPY_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Version 3 differs from 2 only in field names, and structured arrays are refused.
NUMPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
NOW = "a probe is .npz, .npy, .safetensors, .h5, .mat, .pt, .csv, IDX, or code as module:callable or path.py:callable"
# Versions 5 to 7; version 7.3 is HDF5.
MATLAB = Reader(
    ("-P", "-m", "ibscan.inputs.probes.matlab_worker"),
    "MATLAB",
    "scipy",
    "scipy",
    "save it again with -v7",
    f"holds no plain numeric array; {NOW}",
)


def named_arrays(path: Path, name: str, pick: Pick) -> NamedArrays:
    """Read the arrays of a probe file (`.npz .npy .safetensors .h5 .pt .mat`, by content) that `pick` chooses.

    Raises:
        InputError: Damaged, unsafe, of Python objects, too large, or of another kind.
    """
    with snapshot(path, name) as shot:
        head = shot.stream.read(1024)
        shot.stream.seek(0)
        kind = content_kind(head)
        if kind == "zip" and b"data.pkl" in head[:300]:
            kind = "torch"
        if kind not in READERS:
            raise _refusal(kind, path, name)
        return READERS[kind](shot, name, pick)


def _refusal(kind: str, path: Path, name: str) -> InputError:
    if kind == "empty":
        return InputError(f"{name}: has zero bytes; save or copy the probe again.")
    if kind == "lfs":
        return InputError(f"{name}: is a Git LFS pointer, not the data; run `git lfs pull` in its folder.")
    if path.suffix == ".py":
        return InputError(f"{name}: is Python code; name what returns the probe in it, as {name}:NAME.")
    if path.suffix.lower() in TABLES:
        return InputError(f"{name}: is no UTF-8 text ({kind}), but a table was expected; save it as UTF-8.")
    if kind == "text":
        return InputError(f"{name}: is a text file; a table of numbers is read if it is called .csv or .tsv.")
    return InputError(f"{name}: its content is no probe that can be read ({kind}); {NOW}.")


def _npy_header(stream: BinaryIO, key: str, name: str, size: int) -> tuple[int, ...]:
    # The boundary to a foreign reader: a damaged header makes numpy raise ValueError, SyntaxError, TypeError, ...
    try:
        version = np.lib.format.read_magic(stream)
        if version not in NUMPY_HEADERS:
            raise ValueError(f"format version {version}")
        shape, _, dtype = NUMPY_HEADERS[version](stream)
    except Exception as error:  # noqa: BLE001 - see above
        raise InputError(
            f"{name}: array {key!r} has no readable numpy header ({first_line(error)}); save it again."
        ) from None
    if dtype.hasobject:
        raise InputError(
            f"{name}: array {key!r} holds Python objects, which are never unpickled; save it as plain numbers or "
            "strings."
        )
    if dtype.names:
        raise InputError(f"{name}: array {key!r} is a structured array; save its columns as plain arrays.")
    if stated_sizes(shape) is None:
        raise InputError(
            f"{name}: array {key!r} states a shape of {len(shape)} sizes that none can have; save it again."
        )
    # Counted as float64, which the numbers become.
    check_size(shape, max(8, dtype.itemsize), key, name)
    wanted = stream.tell() + math.prod(shape) * dtype.itemsize
    if wanted != size:
        raise InputError(
            f"{name}: array {key!r} should take {wanted} bytes and has {size}; it is truncated or damaged, save it "
            "again."
        )
    return tuple(shape)


def _npy(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    shapes = {"x": _npy_header(shot.stream, "x", name, shot.size)}
    pick(shapes)
    shot.stream.seek(0)
    return NamedArrays(shapes, {"x": np.lib.format.read_array(shot.stream, allow_pickle=False)})


def _npz(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    check_directory(shot, name)
    # The boundary to a foreign reader: a damaged zip makes zipfile raise nearly anything.
    try:
        with zipfile.ZipFile(shot.stream) as archive:
            entries = {
                one.filename.removesuffix(".npy"): one for one in archive.infolist() if one.filename.endswith(".npy")
            }
            if not entries:
                raise InputError(f"{name}: is a zip archive without arrays; {NOW}.")
            shapes = {}
            for key, entry in entries.items():
                if entry.compress_type not in NUMPY_COMPRESSION:
                    raise InputError(f"{name}: array {key!r} is compressed as numpy never does; save it again.")
                with archive.open(entry) as stream:
                    shapes[key] = _npy_header(io.BytesIO(stream.read(70_000)), key, name, entry.file_size)
            picked = {}
            for key in pick(shapes):
                with archive.open(entries[key]) as stream:
                    picked[key] = np.lib.format.read_array(stream, allow_pickle=False)
    except (InputError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - zipfile raises BadZipFile, RuntimeError, struct.error, zlib.error, EOFError, ...
        raise InputError(f"{name}: is a damaged npz archive ({first_line(error)}); copy or save it again.") from None
    return NamedArrays(shapes, picked)


def _safetensors(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    header = read_tensor_header(shot.stream, shot.size, name)
    shapes = {key: info.shape for key, info in header.tensors.items()}
    wanted = pick(shapes)
    for key in wanted:
        check_size(shapes[key], 8, key, name)
    shot.stream.seek(0)
    loaded = read_tensors(shot.stream, shot.size, name, wanted)
    return NamedArrays(shapes, {key: as_numpy(loaded[key]) for key in wanted})


def _torch(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    described = _arrays_of(read_archive(shot, name, "zip" if shot.stream.read(2) == b"PK" else "pickle").value)
    if not described:
        raise InputError(
            f"{name}: holds no tensors; expected a dict of tensors such as {{'x': ..., 'y': ...}}, or a pair (x, y)."
        )
    shapes = {key: _shape(part) or () for key, part in described.items()}
    wanted = pick(shapes)
    for key in wanted:
        if isinstance(described[key], StoredTensor):
            check_tensor(key, described[key], name)
        check_size(shapes[key], 8, key, name)
    shot.stream.seek(0)
    loaded = _arrays_of(load_archive(shot.stream, name))
    return NamedArrays(shapes, {key: _loaded(loaded[key]) for key in wanted})


def _arrays_of(tree: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever was saved, or its description
    """Return tensors and numpy arrays by name, and lists of numbers or strings as long as one of them."""
    if _shape(tree) is not None:
        return {"x": tree}
    complete = isinstance(tree, tuple | list) and 1 <= len(tree) <= 2
    if complete:
        tree = dict(zip(("x", "y"), tree, strict=False)) if _shape(tree[0]) is not None else {}
    if not isinstance(tree, Mapping):
        return {}
    arrays = {str(key): part for key, part in tree.items() if _shape(part) is not None or _is_listed(part)}
    lengths = {shape[0] for part in arrays.values() if (shape := _shape(part))}
    found = {key: part for key, part in arrays.items() if not _is_listed(part) or len(part) in lengths}
    return {} if complete and len(found) < len(tree) else found


def _shape(part: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - see above
    """Return the shape of a tensor or numpy array, loaded or described, or None for another object."""
    if is_tensor(part):
        return tuple(part.shape)
    if isinstance(part, np.ndarray):
        return part.shape if part.dtype.kind in "biufcSU" else None
    if isinstance(part, Called) and part.name in NUMPY_ARRAYS and len(part.state) == 1:
        state = part.state[0]
        dtype = state[2] if isinstance(state, tuple) and len(state) == 5 else None
        kind = dtype.args[0] if isinstance(dtype, Called) and dtype.args else ""
        if isinstance(kind, str) and kind[:1] in "biufcSU" and kind and isinstance(state[1], tuple):
            return tuple(state[1]) if all(isinstance(one, int) and one >= 0 for one in state[1]) else None
    return None


def _is_listed(part: Any) -> bool:  # noqa: ANN401 - see above
    return isinstance(part, list) and bool(part) and all(isinstance(one, bool | int | float | str) for one in part)


def _loaded(part: Any) -> Array:  # noqa: ANN401 - see above
    import torch

    return as_numpy(part) if isinstance(part, torch.Tensor) else np.array(part)


READERS: dict[str, Callable[[Snapshot, str, Pick], NamedArrays]] = {
    "npy": _npy,
    "zip": _npz,
    "torch": _torch,
    "pickle": _torch,
    "safetensors": _safetensors,
    "mat": partial(arrays_by_child, MATLAB),
    "hdf5": partial(arrays_by_child, HDF5),
}
