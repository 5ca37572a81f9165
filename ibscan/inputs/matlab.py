"""MATLAB files of version 5 to 7: the plain arrays in them, read here.

Not by scipy: one damaged byte makes its reader end the process with a bus error, which no `except` catches.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ibscan.errors import InputError
from ibscan.types import Array

__all__ = ["StoredArray", "read_stored", "stored_arrays"]

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
FLAGS, SIZES, CHAR = 6, 5, 4
LOGICAL, COMPLEX = 0x0200, 0x0800
# How numbers are stored, and what class the array has: a double array of small integers is stored in bytes.
STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
CLASSES = {CHAR: "u2", 6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
# Enough for flags, sizes and name of any array; the numbers follow.
START_BYTES = 8192
MOST_ARRAYS = 10_000
MOST_SIZES = 64


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in the file, and what its start says of it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    logical: bool
    offset: int
    length: int
    packed: bool
    order: str

    @property
    def itemsize(self) -> int:
        """Bytes an element, once read."""
        return np.dtype(CLASSES[self.kind]).itemsize


def stored_arrays(stream: BinaryIO, size: int, name: str) -> dict[str, StoredArray]:
    """List the plain arrays (real numbers, logicals, characters) of a MATLAB file without reading their numbers.

    Args:
        stream: The file.
        size: Its length in bytes.
        name: What to call it in a message.

    Returns:
        The arrays by name; cells, structures, sparse and complex arrays are left out.

    Raises:
        InputError: Truncated or damaged.
    """
    stream.seek(0)
    header = stream.read(HEADER_BYTES)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None:
        raise InputError(f"{name}: is a damaged MATLAB file (its header states no byte order); save it again with -v7.")
    found: dict[str, StoredArray] = {}
    place = HEADER_BYTES
    while place < size and len(found) < MOST_ARRAYS:
        stream.seek(place)
        tag = stream.read(8)
        kind, length = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, 0)
        if kind not in (MATRIX, COMPRESSED) or place + 8 + length > size:
            raise InputError(
                f"{name}: is a truncated or damaged MATLAB file (at byte {place} of {size}); save it again with -v7."
            )
        array = _start(stream.read(min(length, START_BYTES)), place + 8, length, kind == COMPRESSED, order, name)
        if array is not None:
            found[array.name] = array
        place += 8 + length
    return found


def _start(raw: bytes, offset: int, length: int, packed: bool, order: str, name: str) -> StoredArray | None:
    start = _inflated(raw, START_BYTES, name)[8:] if packed else raw
    kind, flags, place = _element(start, 0, order, name)
    if kind != FLAGS or len(flags) != 8:
        # A function handle or an opaque object starts otherwise.
        return None
    (word,) = struct.unpack(f"{order}I", flags[:4])
    _, sizes, place = _element(start, place, order, name)
    _, letters, _ = _element(start, place, order, name)
    shape = tuple(struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4]))
    if len(shape) > MOST_SIZES or any(one < 0 for one in shape):
        raise InputError(
            f"{name}: is a damaged MATLAB file (an array states sizes {shape[:8]}); save it again with -v7."
        )
    if word & 0xFF not in CLASSES or word & COMPLEX or not shape:
        return None
    words = letters.decode("utf-8", "replace")
    return StoredArray(words, shape, word & 0xFF, bool(word & LOGICAL), offset, length, packed, order)


def _inflated(raw: bytes, most: int, name: str) -> bytes:
    try:
        return zlib.decompressobj().decompress(raw, most)
    except zlib.error as error:
        raise InputError(f"{name}: is a damaged MATLAB file ({error}); save it again with -v7.") from None


def _element(data: bytes, place: int, order: str, name: str) -> tuple[int, bytes, int]:
    """Return type, content and the place after one element; up to four bytes are stored within the tag itself."""
    tag = data[place : place + 8]
    if len(tag) == 8:
        kind, length = struct.unpack(f"{order}II", tag)
        if kind >> 16:
            return kind & 0xFFFF, tag[4 : 4 + min(kind >> 16, 4)], place + 8
        if place + 8 + length <= len(data):
            return kind, data[place + 8 : place + 8 + length], place + 8 + -(-length // 8) * 8
    raise InputError(f"{name}: is a truncated or damaged MATLAB file (an array breaks off); save it again with -v7.")


def read_stored(stream: BinaryIO, array: StoredArray, name: str) -> Array:
    """Read one array.

    Args:
        stream: The file.
        array: As `stored_arrays` listed it; its size was found acceptable.
        name: What to call the file in a message.

    Returns:
        The array in its own class; characters as one string a row.

    Raises:
        InputError: Its numbers are missing, or of another count than its sizes say.
    """
    count = math.prod(array.shape)
    stream.seek(array.offset)
    data = stream.read(array.length)
    if array.packed:
        # Numbers are stored in 8 bytes at most: what inflates beyond that is no array.
        data = _inflated(data, START_BYTES + 8 * count + 64, name)[8:]
    place = 0
    for _ in ("flags", "sizes", "name"):
        _, _, place = _element(data, place, array.order, name)
    kind, raw, _ = _element(data, place, array.order, name)
    dtype = np.dtype(STORED.get(kind, "V1")).newbyteorder("<" if array.order == "<" else ">")
    if kind not in STORED or len(raw) != count * dtype.itemsize:
        raise InputError(
            f"{name}: array {array.name!r} of shape {array.shape} should hold {count} numbers, "
            f"but {len(raw)} bytes of type {kind} are stored; save it again with -v7."
        )
    numbers = np.frombuffer(raw, dtype).reshape(array.shape, order="F")
    if array.kind == CHAR:
        rows = numbers.reshape(len(numbers), -1) if count else numbers.reshape(len(numbers), 0)
        return np.array(["".join(map(chr, row)).rstrip() for row in rows.tolist()], dtype=np.str_)
    # A damaged array of integers may be stored as floating point that is none.
    with np.errstate(invalid="ignore"):
        return numbers.astype(np.bool_ if array.logical else CLASSES[array.kind])
