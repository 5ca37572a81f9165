"""The probe: which file, which arrays of it, and what they become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.errors import CheckpointError, InputError, UsageError
from ibscan.inputs.arguments import applied, checked_arguments, parse_arguments
from ibscan.inputs.arrays import named_arrays
from ibscan.inputs.choice import chosen, split_spec, wanted_keys
from ibscan.inputs.code import is_code
from ibscan.inputs.files import content_kind, exists, file_head, regular_stat
from ibscan.inputs.hdf5 import is_result
from ibscan.inputs.idx import idx_pair, labels_beside, read_idx
from ibscan.inputs.labels import class_indices
from ibscan.inputs.returned import probe_from_code
from ibscan.inputs.tables import SUFFIXES as TABLES
from ibscan.inputs.tables import read_table
from ibscan.types import Array, Probe

__all__ = ["find_probe", "parse_arguments", "read_probe"]

SUFFIXES = (".npz", ".npy", ".safetensors", ".h5", ".hdf5", ".mat", ".pt", ".csv", ".tsv", ".gz")


@dataclasses.dataclass(frozen=True)
class _Raw:
    x: Array
    y: Array | None


def find_probe(folder: Path) -> Path | None:
    """Return the probe that lies in a run folder as `probe.*`, or None; a result of ours is none.

    Args:
        folder: The folder of the checkpoints.

    Returns:
        Its path.

    Raises:
        UsageError: Several.
    """
    try:
        named = sorted(
            path for path in folder.iterdir() if path.name.startswith("probe.") and path.name.endswith(SUFFIXES)
        )
        found = [path for path in named if not (path.is_file() and is_result(path))]
    except OSError:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(
            f"{folder}: holds several probes ({names}); say which with --probe, such as --probe {found[0]}."
        )
    return found[0] if found else None


def read_probe(spec: str, arguments: Mapping[str, Any], *, run_script: bool = False) -> tuple[Probe, tuple[str, ...]]:
    """Read a probe: rows as C-contiguous float64 after their arguments, labels as class indices.

    Args:
        spec: `FILE`, `FILE#x=KEY,y=KEY`, or for IDX `FOLDER#train`, `FOLDER#test`; an empty `y=` takes no labels. Or
            `module:callable`, `path.py:callable`: this runs it, so a spec found in a file needs the user's trust.
        arguments: `scale`, `mean`, `std`, `shape`, applied in this order.
        run_script: Also run code that trains or writes files when it is imported.

    Returns:
        The probe, and sentences for standard error.

    Raises:
        UsageError: Ambiguous arrays, integer pixels without a stated scale.
        InputError: Code that fails; a missing, damaged or unfit file; no rows; NaN or infinity; labels of another
            length.
    """
    checked = checked_arguments(arguments, "--probe-arg")
    file, selection = split_spec(spec)
    try:
        if is_code(file):
            raw = _Raw(*probe_from_code(file, selection, run_script=run_script))
        elif exists(file) and Path(file).is_dir():
            raw = _from_folder(file, selection)
        else:
            raw = _from_file(file, selection)
    except CheckpointError as error:
        raise InputError(str(error)) from None
    _check_rows(raw.x, file)
    if "scale" not in checked:
        _check_pixels(raw.x, file)
    x = applied(raw.x, checked, file)
    if x.ndim < 2:
        raise InputError(
            f"{file}: the inputs have shape {x.shape}, but one row an input, (N, ...), was expected; add --probe-arg "
            "shape=[1] if meant."
        )
    _check_finite(x, file)
    labels: tuple[int | str, ...] = ()
    y: Array | None = None
    notices: tuple[str, ...] = (f"{file}: has no labels, so label quantities are not measured.",)
    if raw.y is not None:
        y, labels, notices = class_indices(raw.y, len(x), file)
    return Probe(x, y, labels, _digest(x, y, labels), spec), notices


def _from_folder(folder: str, split: str) -> _Raw:
    images, labels = idx_pair(Path(folder), split, folder)
    return _Raw(read_idx(images, str(images)), read_idx(labels, str(labels)) if labels else None)


def _from_file(file: str, selection: str) -> _Raw:
    path = Path(file)
    regular_stat(path, file)
    try:
        kind = content_kind(file_head(path))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    if kind in ("idx", "gzip"):
        if selection:
            raise UsageError(
                f"{file}#{selection}: an IDX file holds one array, so nothing is picked by '#'; leave it out."
            )
        beside = labels_beside(path)
        return _Raw(read_idx(path, file), read_idx(beside, str(beside)) if beside else None)
    wanted = wanted_keys(selection, file)
    if kind == "text" and path.suffix.lower() in TABLES:
        return _Raw(*read_table(path, file, wanted))
    picked: list[str | None] = []

    def pick(shapes: Mapping[str, tuple[int, ...]]) -> Sequence[str]:
        picked.extend(chosen(shapes, wanted, file))
        return list(dict.fromkeys(key for key in picked if key is not None))

    found = named_arrays(path, file, pick)
    x, y = (None if key is None else found.picked[key] for key in picked)
    assert x is not None
    return _Raw(x, y)


def _check_rows(x: Array, file: str) -> None:
    if x.dtype.kind not in "biuf":
        raise InputError(f"{file}: the inputs are of type {x.dtype}, but real numbers were expected.")
    if x.ndim == 0 or x.shape[0] == 0 or x.size == 0:
        raise InputError(
            f"{file}: the inputs have shape {x.shape}, so there are 0 rows or 0 numbers a row; at least one was "
            "expected."
        )


def _check_pixels(x: Array, file: str) -> None:
    # Raw pixels saturate every unit and give plausible, wrong numbers.
    if x.dtype.kind in "iu" and (x.max() > 1 or x.min() < -1):
        raise UsageError(
            f"{file}: the inputs are integers from {x.min()} to {x.max()} and no scale is stated; "
            "add --probe-arg scale=255 if they are pixels, or --probe-arg scale=1 if they are meant as they are."
        )


def _check_finite(x: Array, file: str) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        count = int(x.size - np.count_nonzero(finite))
        row = int(np.argmin(finite.reshape(len(x), -1).all(axis=1)))
        raise InputError(
            f"{file}: {count} of the inputs are NaN or infinite (the first in row {row}), but finite numbers were "
            "expected; leave such rows out."
        )


def _digest(x: Array, y: Array | None, labels: Sequence[int | str]) -> str:
    digest = hashlib.sha256()
    for array in (x, y):
        if array is None:
            digest.update(b"none;")
        else:
            digest.update(f"{array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(list(labels)).encode())
    return digest.hexdigest()
