"""Read the arrays of a MATLAB file in a process of its own: `python -P -m ibscan.inputs.matlab_worker`.

One damaged byte can make scipy's reader end its process with a bus error. `ibscan.inputs.child_arrays` says what is
asked and answered.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.io

from ibscan.inputs.child_arrays import Listing, Unfit, grant, serve
from ibscan.types import Array

# Classes of plain arrays; not cell, struct, object, function, opaque, sparse.
PLAIN = {"char", "logical", "double", "single"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
# scipy's own name for what MATLAB keeps about functions.
WORKSPACE = "__function_workspace__"
# What inflates beyond the wanted numbers, stored and converted, and this, is no array.
SPARE_BYTES, COPIES, MOST_BYTES = 256 << 20, 4, 8


def main() -> None:
    """Answer one request on standard input and output."""
    serve(_listing)


def _listing(content: str | bytes) -> Listing:
    grant(0, SPARE_BYTES)
    # Open for as long as this process lives.
    stream: BinaryIO = io.BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb")  # noqa: SIM115
    found = scipy.io.whosmat(stream)
    shapes = {name: tuple(shape) for name, shape, kind in found if kind in PLAIN and name != WORKSPACE}
    return Listing(shapes, lambda key: _read(stream, key, shapes[key]))


def _read(stream: BinaryIO, key: str, shape: tuple[int, ...]) -> Array:
    size = MOST_BYTES * math.prod(filter(None, shape))
    grant(size, COPIES * size + SPARE_BYTES)
    stream.seek(0)
    # Stored as floating point where it says integers, a damaged array may hold none; another of the same name is left.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        array = scipy.io.loadmat(stream, variable_names=[key], mat_dtype=True).get(key)
    # Instead of an array it cannot read, scipy returns a text.
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind not in "biufcU":
        raise Unfit(f"of shape {shape} is damaged; save it again with -v7")
    if array.dtype.kind != "U":
        return array
    return np.array([row.rstrip() for row in array.ravel().tolist()], dtype=np.str_).reshape(shape)


if __name__ == "__main__":
    main()
