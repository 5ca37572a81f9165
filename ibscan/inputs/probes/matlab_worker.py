"""Read the arrays of a MATLAB file in a process of its own: `python -P -m ibscan.inputs.probes.matlab_worker`.

One damaged byte can make scipy's reader end its process with a bus error. `ibscan.inputs.probes.child_arrays` describes
the messages.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.io

from ibscan.core.records import Array
from ibscan.inputs.probes.child_arrays import Listing, UnreadableArray, extend_limits, serve
from ibscan.inputs.probes.named_arrays import MAX_ARRAY_BYTES

# numpy types by MATLAB class; not cell, struct, object, function, opaque, sparse.
PLAIN = {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
PLAIN |= {"double": "float64", "single": "float32", "logical": "bool", "char": "str"}
HEADER_BYTES = 128
# Types of a file's elements: a matrix, plain or compressed.
ELEMENTS = (14, 15)
# scipy's name for MATLAB's data on functions.
WORKSPACE = "__function_workspace__"
# Memory for one array: so many copies of its numbers, and a spare.
SPARE_BYTES, COPIES, MOST_BYTES = 256 << 20, 4, 8


def _listing(content: str | bytes) -> Listing:
    extend_limits(0, SPARE_BYTES)
    # Open until this process ends.
    stream: BinaryIO = io.BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb")  # noqa: SIM115
    _check_whole(stream)
    found = {name: (tuple(shape), PLAIN[kind]) for name, shape, kind in scipy.io.whosmat(stream) if kind in PLAIN}
    found.pop(WORKSPACE, None)
    return Listing({name: shape for name, (shape, _) in found.items()}, lambda key: _read(stream, key, *found[key]))


def _check_whole(stream: BinaryIO) -> None:
    """Refuse a file whose elements do not end at its end: scipy would read a truncated file without an error."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(HEADER_BYTES - 2)
    order, offset = ("<" if stream.read(2) == b"IM" else ">"), HEADER_BYTES
    while offset < size:
        stream.seek(offset)
        tag = stream.read(8)
        kind, length = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, 0)
        if kind not in ELEMENTS or offset + 8 + length > size:
            raise UnreadableArray(
                f"is a truncated or damaged MATLAB file (at byte {offset} of {size}); save it again with -v7"
            )
        offset += 8 + length
    stream.seek(0)


def _read(stream: BinaryIO, key: str, shape: tuple[int, ...], dtype: str) -> Array:
    # Ignore sizes of 0: numpy refuses even 0 rows of 2^64 numbers.
    size = MOST_BYTES * math.prod(filter(None, shape))
    if size > MAX_ARRAY_BYTES:
        raise UnreadableArray(
            f"of shape {shape} takes {size} bytes, at most {MAX_ARRAY_BYTES} are read; save fewer rows"
        )
    extend_limits(size, COPIES * size + SPARE_BYTES)
    stream.seek(0)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        # Not `mat_dtype=True`, which makes doubles of small integers and of complex numbers too.
        array = scipy.io.loadmat(stream, variable_names=[key]).get(key)
        # scipy returns a text instead of an array that it cannot read.
        if not isinstance(array, np.ndarray) or array.shape != shape or (array.dtype.kind == "U") != (dtype == "str"):
            raise UnreadableArray(f"of shape {shape} is damaged; save it again with -v7")
        if dtype != "str":
            return array if array.dtype.kind == "c" else array.astype(dtype)
    return np.array([row.rstrip() for row in array.ravel().tolist()], dtype=np.str_).reshape(shape)


if __name__ == "__main__":
    serve(_listing)
