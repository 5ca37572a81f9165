"""The probe: which file, which arrays of it, and what they become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.errors import CheckpointError, InputError, UsageError
from ibscan.inputs.arguments import applied, checked_arguments, parse_arguments
from ibscan.inputs.arrays import NOW, named_arrays
from ibscan.inputs.files import content_kind, file_head, regular_stat
from ibscan.inputs.idx import idx_pair, labels_beside, read_idx
from ibscan.inputs.labels import class_indices
from ibscan.types import Array, Probe

__all__ = ["find_probe", "parse_arguments", "read_probe"]

SUFFIXES = (".npz", ".npy", ".safetensors", ".h5", ".hdf5", ".mat", ".pt", ".csv", ".gz")
CODE = re.compile(r"[\w./\\-]+:[A-Za-z_]\w*")
INPUTS = ("x", "X", "inputs", "input", "images", "data", "features", "F", "x_probe", "X_probe")
LABELS = ("y", "Y", "labels", "label", "targets", "target", "classes", "y_probe", "Y_probe")


@dataclasses.dataclass(frozen=True)
class _Raw:
    x: Array
    y: Array | None


def find_probe(folder: Path) -> Path | None:
    """Return the probe that lies in a run folder as `probe.*`, or None.

    Args:
        folder: The folder of the checkpoints.

    Returns:
        Its path.

    Raises:
        UsageError: Several.
    """
    try:
        found = sorted(
            path for path in folder.iterdir() if path.name.startswith("probe.") and path.name.endswith(SUFFIXES)
        )
    except OSError:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(
            f"{folder}: holds several probes ({names}); say which with --probe, such as --probe {found[0]}."
        )
    return found[0] if found else None


def read_probe(spec: str, arguments: Mapping[str, Any]) -> tuple[Probe, tuple[str, ...]]:
    """Read a probe: rows as C-contiguous float64 after their arguments, labels as class indices.

    Args:
        spec: `FILE`, `FILE#x=KEY,y=KEY`, or for IDX `FOLDER#train`, `FOLDER#test`; an empty `y=` takes no labels.
        arguments: `scale`, `mean`, `std`, `shape`, applied in this order.

    Returns:
        The probe, and sentences for standard error.

    Raises:
        UsageError: A form that comes later, ambiguous arrays, integer pixels without a stated scale.
        InputError: A missing, damaged or unfit file; no rows; NaN or infinity; labels of another length.
    """
    checked = checked_arguments(arguments, "--probe-arg")
    file, selection = _parts(spec)
    try:
        raw = _from_folder(file, selection) if Path(file).is_dir() else _from_file(file, selection)
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


def _parts(spec: str) -> tuple[str, str]:
    if Path(spec).exists() or "#" not in spec:
        file, selection = spec, ""
    else:
        file, _, selection = spec.rpartition("#")
    # A path that exists is that path, whatever colons are in it.
    if not Path(file).exists() and CODE.fullmatch(file):
        raise UsageError(
            f"--probe {spec}: probes from code (module:callable, path.py:callable) come in a later version; {NOW}."
        )
    return file, selection


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
    chosen: dict[str, str | None] = {}

    def pick(shapes: Mapping[str, tuple[int, ...]]) -> Sequence[str]:
        chosen.update(_chosen(shapes, _wanted(selection, file), file))
        return list(dict.fromkeys(key for key in chosen.values() if key))

    found = named_arrays(path, file, pick)
    y = chosen["y"]
    return _Raw(found.picked[str(chosen["x"])], None if y is None else found.picked[y])


def _wanted(selection: str, file: str) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for part in selection.split(",") if selection else []:
        role, equals, key = part.partition("=")
        if role.strip() not in ("x", "y") or not equals or role.strip() in wanted:
            raise UsageError(f"{file}#{selection}: {part!r} cannot be read; expected #x=KEY,y=KEY.")
        wanted[role.strip()] = key.strip()
    return wanted


def _chosen(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, str], file: str) -> dict[str, str | None]:
    """Return which array is x and which is y (None for no labels), refusing to guess between several."""
    listed = ", ".join(f"{key} {shape}" for key, shape in list(shapes.items())[:12])
    for key in wanted.values():
        if key and key not in shapes:
            raise UsageError(f"{file}: there is no array {key!r}; there is {listed}.")
    picked: dict[str, str | None] = {}
    for role, names in (("x", INPUTS), ("y", LABELS)):
        if role in wanted:
            picked[role] = wanted[role] or None
            continue
        fitting = [key for key in names if key in shapes and key not in wanted.values()]
        if role == "x" and not fitting:
            fitting = [key for key in shapes if key not in LABELS and key not in wanted.values()]
        if len(fitting) > 1 or (role == "x" and not fitting):
            raise UsageError(
                f"{file}: which array is {role} is not clear from {listed}; add #x=KEY,y=KEY, such as "
                f"{file}#{_example(shapes)}."
            )
        picked[role] = fitting[0] if fitting else None
    if picked["x"] is None:
        raise UsageError(f"{file}: x= names no array; there is {listed}.")
    return picked


def _example(shapes: Mapping[str, tuple[int, ...]]) -> str:
    by_rank = sorted(shapes, key=lambda key: -len(shapes[key]))
    return f"x={by_rank[0]}" + (f",y={by_rank[-1]}" if len(by_rank) > 1 else "")


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
