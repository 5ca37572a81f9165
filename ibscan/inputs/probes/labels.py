"""Convert labels (integers, integral floats, one-hot rows, strings) to class indices, where they are classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.errors import InputError

__all__ = ["check_missing", "class_indices"]

MOST_NAMED = 5
NOT_MEASURED = "label quantities are not measured."


def class_indices(found: Array, rows: int, source: str) -> tuple[Array | None, tuple[int | str, ...], tuple[str, ...]]:
    """Return class indices (N,) int64, the sorted label values that they index, and notices.

    Labels are (N,), (N, 1) or (1, N) integers, integral floats or strings, or one-hot (N, K), of `rows` = N rows; any
    integers are classes, however many different ones there are. For labels that are no classes the indices are None.

    Raises:
        InputError: Their length is not N, or some are missing: NaN, infinite, None, an empty string.
    """
    y = found
    if y.ndim == 2 and y.size == rows and 1 in y.shape:
        y = y.reshape(rows)
    if y.ndim == 0 or y.shape[0] != rows:
        shape = f"shape {found.shape}" if found.ndim != 1 else f"length {len(found)}"
        raise InputError(
            f"{source}: the labels have {shape}, but the inputs have length {rows} ({rows} rows); give one label a row."
        )
    check_missing(y, source)
    y = _plain(y)
    if y.ndim > 1:
        classes = _one_hot(y)
        if classes is None:
            return (
                None,
                (),
                (f"{source}: the labels of shape {found.shape} are no classes (nor one-hot), so {NOT_MEASURED}",),
            )
        y = classes
    if y.dtype.kind in "SU":
        texts = np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y
        words, indices = np.unique(texts, return_inverse=True)
        return indices.astype(np.int64), tuple(str(word) for word in words), ()
    if y.dtype.kind == "f":
        # Half precision would overflow in the comparison.
        y = y.astype(np.float64)
        if (y != np.floor(y)).any() or np.abs(y).max(initial=0) >= 2**53:
            return (
                None,
                (),
                (f"{source}: the labels are not whole numbers, so no classes (regression targets?); {NOT_MEASURED}",),
            )
    elif y.dtype.kind not in "biu":
        return None, (), (f"{source}: the labels are of type {y.dtype}, which is no class; {NOT_MEASURED}",)
    values, indices = np.unique(y, return_inverse=True)
    return indices.astype(np.int64), tuple(int(value) for value in values), ()


def check_missing(y: Array, source: str, lines: Sequence[int] = ()) -> None:
    """Refuse missing labels, naming their rows, and their lines in a text file.

    Raises:
        InputError: Some are missing.
    """
    found_rows = np.flatnonzero(missing(y).reshape(len(y), -1).any(axis=1)) if len(y) else np.zeros(0, dtype=np.int64)
    if len(found_rows):
        shown = found_rows[:MOST_NAMED].tolist()
        in_lines = f"; {_numbered('line', [lines[row] for row in shown])}" if lines else ""
        more = (
            f" and {len(found_rows) - MOST_NAMED} more, {len(found_rows)} in all"
            if len(found_rows) > MOST_NAMED
            else ""
        )
        raise InputError(
            f"{source}: the labels of {_numbered('row', shown)} (counted from 0{in_lines}){more} are missing (NaN, "
            "infinite, None or empty), but one label a row was expected; leave these rows out, or take no labels with "
            "#y=."
        )


def _numbered(word: str, numbers: Sequence[int]) -> str:
    return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def missing(y: Array) -> Array:
    """Mark missing labels, in the shape of `y`: NaN, infinities, None, NaT, and strings that stand for them."""
    if y.dtype.kind in "fc":
        return ~np.isfinite(y)
    if y.dtype.kind in "mM":
        return np.isnat(y)
    if y.dtype.kind in "OSU":
        absent = [_is_missing(part) for part in y.ravel().tolist()]
        return np.array(absent, dtype=bool).reshape(y.shape)
    return np.zeros(y.shape, dtype=bool)


def _is_missing(part: Any) -> bool:  # noqa: ANN401 - an object of any kind
    if isinstance(part, bytes):
        part = part.decode("utf-8", "replace")
    if isinstance(part, str):
        # NaN and None as numpy and pandas write them among strings.
        return part.strip() in ("", "None", "<NA>", "NaT") or part.strip().lower() == "nan"
    if isinstance(part, float | np.floating):
        return not np.isfinite(part)
    # By type name: pandas' NA cannot be compared.
    return part is None or part is np.ma.masked or type(part).__name__ in ("NAType", "NaTType")


def _plain(found: Array) -> Array:
    """Convert an array of Python objects that are all strings, or all numbers, to an array of those."""
    if found.dtype.kind != "O":
        return found
    parts = found.ravel().tolist()
    for kinds in ((str,), (bool, np.bool_), (int, float, np.integer, np.floating)):
        if parts and all(isinstance(part, kinds) for part in parts):
            plain = np.array(parts).reshape(found.shape)
            # Integers beyond 64 bits stay objects.
            return plain if plain.dtype.kind in "Ubiuf" else found
    return found


def _one_hot(y: Array) -> Array | None:
    if y.ndim != 2 or y.dtype.kind not in "biuf" or y.shape[1] < 2:
        return None
    ones = y == 1
    if not (ones | (y == 0)).all() or not (ones.sum(axis=1) == 1).all():
        return None
    return np.asarray(ones.argmax(axis=1))
