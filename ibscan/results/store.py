"""Read and write the result file: HDF5 in the shape of netCDF4, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ibscan.core.atomic import write_whole
from ibscan.core.result import Result, Variable
from ibscan.errors import InputError, ResourceError, UsageError
from ibscan.results.axes import AUXILIARY, stored_text
from ibscan.results.decode import DIMENSION_NAMES, FORMAT_VERSION, decoded, unreadable
from ibscan.results.unsealed import read_in_child

__all__ = ["DIMENSION_NAMES", "FORMAT_VERSION", "dimension_names", "read", "stored_variables", "write", "write_bytes"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Below this a chunk index costs more than compression saves.
_WORTH_COMPRESSING = 8192
_NOT_OURS_TO_WRITE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)


def write(result: Result, path: Path) -> None:
    """Write a result with a seal at its end, as `write_bytes` does."""
    content = _encoded(result)
    write_bytes(content + _seal(hashlib.sha256(content).hexdigest()), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write bytes as a file: a reader finds the old file or the new one, never a part of either.

    Args:
        content: The file's bytes.
        path: Exactly this file; a symbolic link is followed.

    Raises:
        UsageError: The place is a folder, does not exist or may not be written.
        ResourceError: The disk is full or failed.
    """
    try:
        write_whole(Path(os.path.realpath(path)), content)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NOT_OURS_TO_WRITE:
            raise UsageError(f"{path}: cannot be written ({reason}). Name another place with -o.") from error
        raise ResourceError(
            f"{path}: writing {len(content)} bytes failed ({reason}). Free space, or name another place with -o."
        ) from error


def stored_variables(result: Result) -> dict[str, Variable]:
    """Return what a file holds of a result: its coordinates, then its variables, less what is empty."""
    everything = {**result.coordinates, **result.variables}
    return {name: variable for name, variable in everything.items() if variable.values.size}


def dimension_names(variables: Mapping[str, Variable]) -> str:
    """Return the attribute `DIMENSION_NAMES` of a file that holds these variables."""
    return json.dumps({name: variable.dims for name, variable in variables.items()})


def read(path: Path) -> Result:
    """Read a result, which may be damaged or hostile.

    Raises:
        InputError: The file is missing, damaged, foreign, or of a newer format.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); expected a result file of ibscan.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is not a regular file; expected a result file of ibscan.")
    try:
        intact = _is_intact(path, status.st_size)
        if intact is None:
            return read_in_child(path)
        if not intact:
            raise InputError(f"{path}: is damaged: its content does not have the SHA-256 written at its end.")
        with h5py.File(path, "r", locking=False) as file:
            return decoded(file, status.st_size, str(path))
    except InputError:
        raise
    except Exception as error:
        # The boundary to foreign HDF5, on which h5py raises OSError, KeyError, RuntimeError, ValueError and more.
        raise unreadable(str(path), error) from error


def _seal(digest: str) -> bytes:
    """Return the seal of a file: the hash of its HDF5 content, appended where HDF5 does not look."""
    return f"\nibscan {digest}\n".encode()


def _is_intact(path: Path, size: int) -> bool | None:
    """Compare the content with the hash in its seal; return None where there is no seal (edited by other tools).

    Small datasets have no checksum, and damaged text crashes the HDF5 library: a flipped bit has to be found before the
    library reads it.

    Raises:
        InputError: No HDF5 at all.
    """
    length = len(_seal("0" * 64))
    with path.open("rb") as stream:
        if stream.read(len(_HDF5)) != _HDF5:
            raise InputError(f"{path}: is no HDF5 file; expected a result file of ibscan.")
        stream.seek(0)
        digest = hashlib.sha256()
        left = max(0, size - length)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        seal = stream.read(length)
    return seal == _seal(digest.hexdigest()) if seal.startswith(b"\nibscan ") else None


def _encoded(result: Result) -> bytes:
    """Encode a result in memory: on a full disk HDF5 would leave a handle that cannot be closed."""
    with h5py.File("result", "w", driver="core", backing_store=False, track_order=True) as file:
        for name, value in result.attrs.items():
            _put_attribute(file.attrs, name, value)
        present = stored_variables(result)
        _put_attribute(file.attrs, DIMENSION_NAMES, dimension_names(present))
        datasets = {name: _put_dataset(file, name, variable) for name, variable in present.items()}
        scales = [name for name in result.coordinates if name in present and present[name].dims == (name,)]
        for name in scales:
            datasets[name].make_scale(name)
        for name, variable in present.items():
            if name in scales:
                continue
            for axis, dimension in enumerate(variable.dims):
                datasets[name].dims[axis].attach_scale(datasets[dimension])
            auxiliary = [other for other, home in AUXILIARY.items() if home in variable.dims and other in present]
            if auxiliary and name in result.variables:
                _put_attribute(datasets[name].attrs, "coordinates", " ".join(auxiliary))
        file.flush()
        content: bytes = file.id.get_file_image()
    return content


def _put_dataset(file: h5py.File, name: str, variable: Variable) -> h5py.Dataset:
    values, text = variable.values, variable.values.dtype.kind == "O"
    if text:
        dataset = file.create_dataset(name, shape=values.shape, dtype=h5py.string_dtype("utf-8"))
        flat = [stored_text(str(value)) for value in values.ravel()]
        dataset[...] = np.array(flat, dtype=object).reshape(values.shape)
    else:
        heavy = values.nbytes > _WORTH_COMPRESSING
        options: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True} if heavy else {}
        if "_FillValue" in variable.attrs:
            options["fillvalue"] = values.dtype.type(variable.attrs["_FillValue"])
        dataset = file.create_dataset(name, data=values, **options)
    for key, value in variable.attrs.items():
        _put_attribute(dataset.attrs, key, values.dtype.type(value) if key == "_FillValue" and not text else value)
    return dataset


def _put_attribute(attributes: h5py.AttributeManager, name: str, value: Any) -> None:  # noqa: ANN401 - three kinds
    if isinstance(value, str):
        attributes.create(name, stored_text(value), dtype=h5py.string_dtype("utf-8"))
    elif isinstance(value, bool):
        attributes.create(name, int(value))
    elif isinstance(value, np.generic | np.ndarray):
        attributes.create(name, value)
    else:
        attributes.create(name, value, dtype=np.int64 if isinstance(value, int) else np.float64)
