"""Read the arrays of a file in a child process, for formats whose library crashes on damaged files.

The parent sends the file, the child the shapes of its arrays, the parent the wanted names, the child those arrays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibscan.core.child import Child, ChildEnded, limit, started, tell
from ibscan.core.records import Array
from ibscan.core.text import first_line
from ibscan.errors import InputError
from ibscan.inputs.files import Snapshot
from ibscan.inputs.probes.named_arrays import MAX_ARRAY_BYTES, NamedArrays, Pick, check_size
from ibscan.inputs.probes.naming import Shapes

__all__ = ["Listing", "Reader", "UnreadableArray", "arrays_by_child", "child_reading", "extend_limits", "serve"]

FIRST_SECONDS, BYTES_A_SECOND = 10, 10 << 20


@dataclass(frozen=True)
class Reader:
    """A child that reads one format: its command, and words for messages.

    `format`, `library`, `package` name the format and what reads it; `again` is the way out of a damaged file, `empty`
    the message for a file without arrays.
    """

    command: tuple[str, ...]
    format: str
    library: str
    package: str
    again: str
    empty: str


@dataclass(frozen=True)
class Listing:
    """The shapes of a file's arrays by name, and the function that reads one, in the child."""

    shapes: Shapes
    read: Callable[[str], Array]


class UnreadableArray(Exception):  # noqa: N818 - its message is reported as a sentence
    """An array or a file that is not read; the message continues `array 'x' ...`, or the file's name."""


def arrays_by_child(reader: Reader, shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    """Read the arrays of a file that `pick` chooses by their shapes; `pick` may raise.

    Raises:
        InputError: Damaged, a result of ibscan, or an array that is not read.
    """
    with child_reading(reader, str(shot.stream.name) if shot.blob is None else "", shot.blob, name) as child:
        if "result" in (listing := _answer(reader, child, name)):
            raise InputError(f"{name}: is a result of ibscan and no probe; `ibscan show {name}` shows it.")
        shapes = {_escaped(key): tuple(shape) for key, shape in listing["shapes"].items()}
        keys = {_escaped(key): key for key in listing["shapes"]}
        if not shapes:
            raise InputError(f"{name}: {reader.empty}.")
        wanted = pick(shapes)
        child.send([keys[key] for key in wanted])
        return NamedArrays(shapes, {key: _array(reader, child, key, name) for key in wanted})


@contextmanager
def child_reading(reader: Reader, path: str, blob: bytes | None, name: str) -> Iterator[Child]:
    """Start a child and send it the file: its bytes, or its path if `blob` is None.

    Raises:
        InputError: The child ended within the block.
    """
    with started(reader.command) as child:
        child.send({"path": path, "bytes": None if blob is None else len(blob)}, blob or b"")
        try:
            yield child
        except ChildEnded as end:
            if end.code >= 0:
                raise InputError(
                    f"{name}: cannot be read, as the process that reads {reader.format} ended with exit code "
                    f"{end.code}; check that {reader.package} can be imported, or save the arrays as .npz."
                ) from None
            raise InputError(_damaged(reader, name, end.reason(reader.library))) from None


def _damaged(reader: Reader, name: str, reason: str) -> str:
    return f"{name}: is a damaged {reader.format} file ({reason}); {reader.again}."


def _escaped(key: str) -> str:
    """Escape the bytes of a name that are not UTF-8."""
    return key.encode("utf-8", "backslashreplace").decode()


def _answer(reader: Reader, child: Child, name: str) -> dict[str, Any]:
    """Return the next answer; a refusal is an InputError."""
    answer = child.answer()
    if "unfit" in answer:
        raise InputError(f"{name}: {_escaped(answer['unfit'])}.")
    if "error" in answer:
        raise InputError(_damaged(reader, name, _escaped(answer["error"])))
    return answer


def _array(reader: Reader, child: Child, key: str, name: str) -> Array:
    answer = _answer(reader, child, name)
    shape = tuple(answer["shape"])
    if "texts" in answer:
        return np.array(answer["texts"], dtype=np.str_).reshape(shape)
    dtype = np.dtype(answer["dtype"])
    check_size(shape, dtype.itemsize, key, name)
    array = np.empty(shape, dtype)
    child.fill(array.reshape(-1).view(np.uint8).data)
    return array


def serve(listing_of: Callable[[str | bytes], Listing | None]) -> None:
    """Answer one request on standard input and output, in the child.

    `listing_of` lists a file, given by path or content, or returns None for a result of ibscan.
    """
    source = sys.stdin.buffer
    try:
        request = json.loads(source.readline())
        extend_limits(0)
        # From memory if possible: those bytes were hashed.
        listing = listing_of(request["path"] if request["bytes"] is None else source.read(request["bytes"]))
        if listing is None:
            tell({"result": True})
            return
        tell({"shapes": listing.shapes})
        for key in json.loads(source.readline() or b"[]"):
            _send(listing, key)
    except UnreadableArray as reason:
        tell({"unfit": str(reason)})
    except Exception as error:  # noqa: BLE001 - the boundary to a foreign reader: it raises nearly anything
        tell({"error": first_line(error)})


def extend_limits(size: float, more_bytes: int | None = None) -> None:
    """Extend the time limit for `size` bytes to read, and the memory limit by `more_bytes`."""
    limit(FIRST_SECONDS + size / BYTES_A_SECOND, 4 * MAX_ARRAY_BYTES, more_bytes)


def _send(listing: Listing, key: str) -> None:
    try:
        array = np.asarray(listing.read(key))
    except UnreadableArray as reason:
        tell({"unfit": f"array {key!r} {reason}"})
        return
    if array.dtype.kind == "U":
        tell({"texts": array.ravel().tolist(), "shape": array.shape})
        return
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    tell({"dtype": native.dtype.str, "shape": native.shape}, native.reshape(-1).view(np.uint8).data)
