"""The arrays of an HDF5 file, MATLAB 7.3 among them, read by a child process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ibscan.errors import InputError
from ibscan.inputs.files import HDF5_MAGIC, Snapshot
from ibscan.inputs.named import NamedArrays, Pick, check_size
from ibscan.types import Array

__all__ = ["hdf5_arrays", "is_result"]

WORKER = ("-P", "-m", "ibscan.inputs.hdf5_worker")
AGAIN = "copy or save it again, or save the arrays as .npz"
BLOCK = 1 << 20


def hdf5_arrays(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    """Read the arrays that `pick` chooses from the shapes an HDF5 file states.

    No link is followed and no other file opened; sizes are checked before anything is read. Keys are paths
    (`train/x`).

    Args:
        shot: The file.
        name: What to call it in a message.
        pick: From shapes by name to the names wanted; may raise.

    Returns:
        All shapes, and the arrays wanted; what MATLAB wrote is transposed back.

    Raises:
        InputError: Damaged, a result of ibscan, or an array that is not read.
    """
    with _worker(str(shot.stream.name) if shot.blob is None else "", shot.blob) as child:
        if "result" in (listing := _answer(child, name)):
            raise InputError(f"{name}: is a result of ibscan and no probe; `ibscan show {name}` shows it.")
        shapes = {_visible(key): tuple(shape) for key, shape in listing["shapes"].items()}
        keys = {_visible(key): key for key in listing["shapes"]}
        if not shapes:
            raise InputError(f"{name}: is an HDF5 file without arrays; expected x, and y where there are labels.")
        wanted = pick(shapes)
        _send(child, json.dumps([keys[key] for key in wanted]).encode() + b"\n")
        return NamedArrays(shapes, {key: _array(child, key, name) for key in wanted})


def is_result(path: Path) -> bool:
    """Tell whether a file is one of our own results: HDF5 whose attribute `format` is `ibscan`."""
    try:
        with path.open("rb") as stream:
            # The library would be asked about every foreign file, and dies of damaged ones.
            if stream.read(8) != HDF5_MAGIC or not _mentions(stream, (b"format", b"ibscan")):
                return False
        with _worker(str(path), None) as child:
            return "result" in _answer(child, path.name)
    except (OSError, InputError):
        return False


def _mentions(stream: IO[bytes], words: tuple[bytes, ...]) -> bool:
    missing, before = set(words), b""
    while missing and (block := stream.read(BLOCK)):
        missing -= {word for word in missing if word in before + block}
        before = block[-16:]
    return not missing


def _visible(key: str) -> str:
    """Return a name with bytes that are no UTF-8 as escapes."""
    return key.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _worker(path: str, blob: bytes | None) -> Iterator[subprocess.Popen[bytes]]:
    # What this process imports from, the child shall import from; never from the working folder.
    places = os.pathsep.join(place for place in sys.path if place)
    child = subprocess.Popen(
        [sys.executable, *WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": places},
        # An interrupt from the terminal is for this process, which ends the child.
        start_new_session=True,
    )
    try:
        told = {"path": path, "bytes": None if blob is None else len(blob)}
        _send(child, json.dumps(told).encode() + b"\n" + (blob or b""))
        yield child
    finally:
        child.kill()
        with contextlib.suppress(OSError):
            child.communicate()


def _send(child: subprocess.Popen[bytes], message: bytes) -> None:
    assert child.stdin is not None
    # A child that is gone is told of by the answer that does not come.
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(message)
        child.stdin.flush()


def _answer(child: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    """Return the next answer.

    Raises:
        InputError: The child found the file unfit or damaged, or ended without an answer.
    """
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        raise _gone(child, name)
    answer: dict[str, Any] = json.loads(line)
    if "unfit" in answer:
        raise InputError(f"{name}: {_visible(answer['unfit'])}.")
    if "error" in answer:
        raise InputError(f"{name}: is a damaged HDF5 file ({_visible(answer['error'])}); {AGAIN}.")
    return answer


def _gone(child: subprocess.Popen[bytes], name: str) -> InputError:
    code = child.wait()
    if code >= 0:
        return InputError(
            f"{name}: cannot be read, as the process that reads HDF5 ended with exit code {code}; check that h5py can "
            "be imported, or save the arrays as .npz."
        )
    over = code == -getattr(signal, "SIGXCPU", 0)
    what = "reading it does not come to an end" if over else f"the HDF5 library broke down on it, signal {-code}"
    return InputError(f"{name}: is a damaged HDF5 file ({what}); {AGAIN}.")


def _array(child: subprocess.Popen[bytes], key: str, name: str) -> Array:
    answer = _answer(child, name)
    shape = tuple(answer["shape"])
    if "texts" in answer:
        return np.array(answer["texts"], dtype=np.str_).reshape(shape)
    dtype = np.dtype(answer["dtype"])
    check_size(shape, dtype.itemsize, key, name)
    array = np.empty(shape, dtype)
    left = array.reshape(-1).view(np.uint8).data
    assert child.stdout is not None
    while left:
        # Not readinto of the whole: a pipe gives what it holds.
        count = child.stdout.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise _gone(child, name)
        left = left[count:]
    return array
