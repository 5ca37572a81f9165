"""Read the arrays of a file in a child process, for formats whose library breaks down on damaged files.

The child is told the file, answers with the shapes of its arrays, is told which of them are wanted, and sends those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["Listing", "Reader", "Unfit", "arrays_by_child", "conversation", "grant", "serve"]

FIRST_SECONDS, BYTES_A_SECOND = 10, 10 << 20


@dataclass(frozen=True)
class Reader:
    """A child that reads one format: the command, and what messages call the format, its library and the way out.

    `empty` continues the message of a file without arrays.
    """

    command: tuple[str, ...]
    format: str
    library: str
    package: str
    again: str
    empty: str


@dataclass(frozen=True)
class Listing:
    """In the child: the shapes of a file's arrays by name, and the function that reads one."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Array]


class Unfit(Exception):  # noqa: N818 - said of an array, reported as a sentence
    """An array that is there and is not read; the message continues `array 'x' ...`, or that of a file its name."""


def arrays_by_child(reader: Reader, shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    """Read the arrays that `pick` chooses from the shapes a file states.

    Args:
        reader: For the file's format.
        shot: The file.
        name: What to call it in a message.
        pick: From shapes by name to the names wanted; may raise.

    Returns:
        All shapes, and the arrays wanted.

    Raises:
        InputError: Damaged, a result of ibscan, or an array that is not read.
    """
    with conversation(reader, str(shot.stream.name) if shot.blob is None else "", shot.blob, name) as child:
        if "result" in (listing := _answer(reader, child, name)):
            raise InputError(f"{name}: is a result of ibscan and no probe; `ibscan show {name}` shows it.")
        shapes = {_visible(key): tuple(shape) for key, shape in listing["shapes"].items()}
        keys = {_visible(key): key for key in listing["shapes"]}
        if not shapes:
            raise InputError(f"{name}: {reader.empty}.")
        wanted = pick(shapes)
        child.send([keys[key] for key in wanted])
        return NamedArrays(shapes, {key: _array(reader, child, key, name) for key in wanted})


@contextmanager
def conversation(reader: Reader, path: str, blob: bytes | None, name: str) -> Iterator[Child]:
    """Start a child and tell it the file: its bytes, or the path where those are None.

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


def _visible(key: str) -> str:
    """Return a name with bytes that are no UTF-8 as escapes."""
    return key.encode("utf-8", "backslashreplace").decode()


def _answer(reader: Reader, child: Child, name: str) -> dict[str, Any]:
    """Return the next answer, if it is no refusal."""
    answer = child.answer()
    if "unfit" in answer:
        raise InputError(f"{name}: {_visible(answer['unfit'])}.")
    if "error" in answer:
        raise InputError(_damaged(reader, name, _visible(answer["error"])))
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

    Args:
        listing_of: Lists a file, given by path or content; None where it is a result of ibscan.
    """
    source = sys.stdin.buffer
    try:
        told = json.loads(source.readline())
        grant(0)
        # From memory where it can be: what is read is what was hashed.
        listing = listing_of(told["path"] if told["bytes"] is None else source.read(told["bytes"]))
        if listing is None:
            tell({"result": True})
            return
        tell({"shapes": listing.shapes})
        for key in json.loads(source.readline() or b"[]"):
            _send(listing, key)
    except Unfit as reason:
        tell({"unfit": str(reason)})
    except Exception as error:  # noqa: BLE001 - the boundary to a foreign reader: it raises nearly anything
        tell({"error": first_line(error)})


def grant(size: float, more_bytes: int | None = None) -> None:
    """Give the child time to read so many bytes, and, where that is said, so many bytes of memory more."""
    limit(FIRST_SECONDS + size / BYTES_A_SECOND, 4 * MAX_ARRAY_BYTES, more_bytes)


def _send(listing: Listing, key: str) -> None:
    try:
        array = np.asarray(listing.read(key))
    except Unfit as reason:
        tell({"unfit": f"array {key!r} {reason}"})
        return
    if array.dtype.kind == "U":
        tell({"texts": array.ravel().tolist(), "shape": array.shape})
        return
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    tell({"dtype": native.dtype.str, "shape": native.shape}, native.reshape(-1).view(np.uint8).data)
