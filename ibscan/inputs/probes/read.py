"""Find and read the probe: inputs as rows of float64, labels as class indices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.core.records import Array, Beside, Probe
from ibscan.errors import CheckpointError, InputError, UsageError
from ibscan.inputs.code.live import Live
from ibscan.inputs.code.load import is_code
from ibscan.inputs.files import exists, file_head, regular_stat
from ibscan.inputs.formats.recognise import content_kind
from ibscan.inputs.probes.arguments import applied, checked_arguments, parse_arguments
from ibscan.inputs.probes.arrays import named_arrays
from ibscan.inputs.probes.callable_probe import Returned, probe_from_code, probe_from_object
from ibscan.inputs.probes.hdf5 import is_result
from ibscan.inputs.probes.idx import idx_pair, labels_beside, read_idx
from ibscan.inputs.probes.labels import class_indices
from ibscan.inputs.probes.naming import Shapes, argument_of, role_of
from ibscan.inputs.probes.probe_keys import chosen_keys, left_out, split_spec, wanted_keys
from ibscan.inputs.probes.text_tables import SUFFIXES as TABLES
from ibscan.inputs.probes.text_tables import read_table

__all__ = ["find_probe", "parse_arguments", "read_probe"]

SUFFIXES = (".npz", ".npy", ".safetensors", ".h5", ".hdf5", ".mat", ".pt", ".csv", ".tsv", ".gz")
BLOCK_ROWS = 256
MOST_NAMED = 12


@dataclasses.dataclass(frozen=True)
class _Arrays:
    x: Array
    y: Array | None
    notices: tuple[str, ...] = ()
    beside: Beside | None = None


def find_probe(folder: Path) -> Path | None:
    """Return the path of `probe.*` in a run folder, or None; a result of ibscan is no probe.

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
            f"{folder}: holds several probes ({names}); say which with --probe, such as --probe {found[0]}.",
            options=("--probe", str(found[0])),
        )
    return found[0] if found else None


def read_probe(
    given: str | Live, arguments: Mapping[str, Any], *, run_script: bool = False
) -> tuple[Probe, tuple[str, ...]]:
    """Read a probe: x (N, ...) as C-contiguous float64 with `arguments` applied, labels (N,) as class indices.

    Args:
        given: `FILE`, `FILE#x=KEY,y=KEY`, or for IDX `FOLDER#train`, `FOLDER#test`; an empty `y=` takes no labels. Or
            `module:callable`, `path.py:callable`, which runs code: trust it first if a file named it. Or what Python
            handed over.
        arguments: `scale`, `mean`, `std`, `shape`, applied in this order.
        run_script: Also run code that trains or writes files when it is imported.

    Returns:
        The probe, and notices for standard error.

    Raises:
        UsageError: Ambiguous arrays; pixels without a stated scale: non-negative whole numbers, some above 1.
        InputError: Failing code; a missing, damaged or unfit file; no rows; NaN or infinity; labels of another length.
    """
    checked = checked_arguments(arguments, "--probe-arg")
    spec = given if isinstance(given, str) else given.spec
    file, selection = split_spec(spec)
    try:
        if isinstance(given, Live):
            raw = _with_beside(probe_from_object(given), {}, file)
        elif is_code(file):
            found = probe_from_code(file, selection, run_script=run_script)
            raw = _with_beside(found, wanted_keys(selection, file), file)
        elif exists(file) and Path(file).is_dir():
            images, beside = idx_pair(Path(file), selection, file)
            raw = _Arrays(read_idx(images, str(images)), read_idx(beside, str(beside)) if beside else None)
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
    return Probe(x, y, labels, _digest(x, y, labels), spec, raw.beside), (*raw.notices, *notices)


def _with_beside(found: Returned, wanted: Mapping[str, str], file: str) -> _Arrays:
    beside = _beside(found.shapes, wanted, (found.inputs, found.labels), file, found.read)
    return _Arrays(found.x, found.y, beside=beside)


def _from_file(file: str, selection: str) -> _Arrays:
    path = Path(file)
    regular_stat(path, file)
    try:
        kind = content_kind(file_head(path))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    if kind in ("idx", "gzip"):
        unlabelled = selection == "y="
        if selection and not unlabelled:
            raise UsageError(
                f"{file}#{selection}: an IDX file holds one array, so nothing is picked by '#'; leave it out."
            )
        beside = None if unlabelled else labels_beside(path)
        return _Arrays(read_idx(path, file), read_idx(beside, str(beside)) if beside else None)
    wanted = wanted_keys(selection, file)
    if kind == "text" and path.suffix.lower() in TABLES:
        table = read_table(path, file, wanted)
        shown = ", ".join(table.unused[:MOST_NAMED]) + (" and others" if len(table.unused) > MOST_NAMED else "")
        unused = (f"{file}: not used: {shown}.",) if table.unused else ()
        return _Arrays(table.x, table.y, (*table.notices, *unused))
    picked: list[str | None] = []

    def pick(shapes: Shapes) -> Sequence[str]:
        picked.extend(chosen_keys(shapes, wanted, file))
        return list(dict.fromkeys(key for key in picked if key is not None))

    found = named_arrays(path, file, pick)
    x, y = (None if key is None else found.picked[key] for key in picked)
    assert x is not None

    def read(key: str) -> Array:
        array = named_arrays(path, file, lambda shapes: [key] if key in shapes else []).picked.get(key)
        if array is None or array.shape != found.shapes[key]:
            raise InputError(f"{file}: has changed while it was read; run again once it is whole.")
        return array

    return _Arrays(x, y, beside=_beside(found.shapes, wanted, (str(picked[0]), picked[1]), file, read))


def _beside(
    shapes: Shapes, wanted: Mapping[str, str], picked: tuple[str, str | None], file: str, read: Callable[[str], Array]
) -> Beside | None:
    """Return the arrays that are neither x nor y nor left out by the user."""
    excluded = left_out(wanted) | {str(key) for key in picked}
    unlabelled = wanted.get("y") == ""
    extra = {key: shape for key, shape in shapes.items() if key not in excluded}
    extra = {key: shape for key, shape in extra.items() if not (unlabelled and role_of(key)[0] == "y")}
    inputs = picked[0]
    # Arrays beside the inputs come last, and so win over the same name elsewhere.
    nearest_last = sorted(extra, key=lambda key: key.rpartition("/")[0] == inputs.rpartition("/")[0])
    arguments = {argument_of(key, inputs): key for key in nearest_last if role_of(key)[0] != "y"}
    return Beside(file, extra, arguments, read) if extra else None


def _check_rows(x: Array, file: str) -> None:
    if x.dtype.kind not in "biuf":
        raise InputError(f"{file}: the inputs are of type {x.dtype}, but real numbers were expected.")
    if x.ndim == 0 or x.shape[0] == 0 or x.size == 0:
        raise InputError(
            f"{file}: the inputs have shape {x.shape}, so there are 0 rows or 0 numbers a row; at least one was "
            "expected."
        )


def _check_pixels(x: Array, file: str) -> None:
    # Raw pixels of any type saturate every unit and give plausible, wrong numbers.
    low, high = x.min(), x.max()
    if x.dtype.kind == "b" or not (low >= 0 and 1 < high < np.inf):
        return
    # Block by block: most float inputs have a fraction in the first rows.
    blocks = np.split(x, range(BLOCK_ROWS, len(x), BLOCK_ROWS)) if x.dtype.kind == "f" else []
    if not all((block == np.floor(block)).all() for block in blocks):
        return
    kind = "integers" if x.dtype.kind in "iu" else "whole numbers"
    largest = 255 if high <= 255 else 65535
    likely = largest if x.dtype == np.uint8 or high > largest / 2 else 1
    raise UsageError(
        f"{file}: the inputs are {kind} from {low:.0f} to {high:.0f} and no scale is stated; add --probe-arg "
        f"scale={largest} if they are pixels, or --probe-arg scale=1 if they are meant as they are (counts, token "
        "ids).",
        options=("--probe-arg", f"scale={likely}"),
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
