"""Check a path before it is opened, and read a file's bytes as they were at one moment."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from ibscan.errors import CheckpointError, InputError

__all__ = [
    "FileChanged",
    "Snapshot",
    "exists",
    "file_head",
    "regular_stat",
    "retried",
    "small_text",
    "snapshot",
    "special_kind",
]

T = TypeVar("T")
SMALL_BYTES = 256 << 20
# Of a config or a manifest.
TEXT_BYTES = 1 << 20
HEAD_BYTES = 1024
RETRY_SECONDS = 0.05
# Two writes within one tick of the file system's clock (at most 2 s) leave the same times.
SETTLED_NS = 2_000_000_000

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SPECIAL_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


class FileChanged(CheckpointError):  # noqa: N818 - says what happened
    """A file changed while it was read."""


@dataclass(frozen=True)
class Snapshot:
    """A file's bytes at one moment: a stream over them, their number and their hash.

    `blob` holds the bytes of a file small enough to be read whole, else None. `stamp` holds the numbers of the file
    system that any change to the file changes; it is empty for a file written so lately that its times may not show
    the next change.
    """

    stream: BinaryIO
    size: int
    sha256: str
    blob: bytes | None
    stamp: tuple[int, ...] = ()


def exists(path: str) -> bool:
    """Tell whether a path exists; one that is invalid (too long, a null byte) does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def special_kind(mode: int) -> str:
    """Name the kind of a special file, or return the empty string for a regular one."""
    return next((words for test, words in SPECIAL_KINDS if test(mode)), "" if stat.S_ISREG(mode) else "no regular file")


def regular_stat(path: Path, name: str) -> os.stat_result:
    """Return the stat of a regular, readable file, following symlinks, without opening anything.

    Raises:
        CheckpointError: Missing, forbidden, a symlink loop, or no regular file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(unreadable(path, name, error)) from None
    except ValueError as error:
        raise CheckpointError(f"{name}: is no path ({error}).") from None
    words = special_kind(found.st_mode)
    if words:
        raise CheckpointError(f"{name}: is {words}, but a regular file was expected; it was not opened.")
    return found


def small_text(path: Path) -> str:
    """Return the text of a small file that users or libraries write beside checkpoints.

    Raises:
        InputError: Missing, no regular file, unreadable, over 1 MiB, or no UTF-8.
    """
    try:
        size = regular_stat(path, str(path)).st_size
        if size > TEXT_BYTES:
            raise InputError(f"{path}: has {size} bytes, and at most {TEXT_BYTES} were expected; is it another file?")
        return path.read_bytes().decode("utf-8-sig")
    except CheckpointError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(unreadable(path, str(path), error)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error}); mend it or move it away.") from None


def unreadable(path: Path, name: str, error: OSError) -> str:
    """Return the message for a file that the system did not let us read."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return f"{name}: is a link to {path.readlink()}, which does not exist."
        return f"{name}: does not exist (or was deleted while it was being read); check the path, or run again."
    if isinstance(error, PermissionError):
        return f"{name}: may not be read (permission denied); ask for read permission on it."
    reason = error.strerror or str(error)
    return f"{name}: cannot be read ({reason})."


def file_head(path: Path) -> bytes:
    """Return the first bytes of a file already known to be regular."""
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def retried(read: Callable[[], T]) -> T:
    """Call `read`, a second time if the file changed during the first.

    Raises:
        CheckpointError: It changed twice, or cannot be used.
    """
    try:
        return read()
    except FileChanged:
        time.sleep(RETRY_SECONDS)
        return read()


@contextmanager
def snapshot(
    path: Path, name: str, *, whole: int | None = None, known: tuple[tuple[int, ...], str] = ((), "")
) -> Iterator[Snapshot]:
    """Open a file so that the bytes parsed are the bytes hashed; a file that changes meanwhile gets one more try.

    Nothing is mapped: a training run may still write here, and a file cut short while mapped kills the process with
    SIGBUS.

    Args:
        path: The file.
        name: What to call it in a message.
        whole: Files of this many bytes or more are not read whole unless written lately; None for the largest limit.
        known: Stamp and hash of an earlier snapshot; a file that still has that stamp is not hashed again.

    Yields:
        The snapshot; its stream stands at the start and is closed afterwards.

    Raises:
        FileChanged: It changed while it was parsed; `retried` tries again.
        CheckpointError: Not a regular readable file, or it changed twice while being read.
    """
    whole = SMALL_BYTES if whole is None else min(whole, SMALL_BYTES)
    for attempt in range(2):
        if attempt:
            time.sleep(RETRY_SECONDS)
        shot = _attempt(path, name, whole, known, last=bool(attempt))
        if shot is not None:
            break
    else:
        raise CheckpointError(f"{name}: changed twice while it was being read; run again once nothing writes to it.")
    with shot.stream:
        before = None if shot.blob is not None else os.fstat(shot.stream.fileno())
        failure: InputError | None = None
        try:
            yield shot
        except InputError as error:
            failure = error
        # If the file changed while it was parsed, report that and not the parser's error.
        if before is not None and not _unchanged(path, before):
            raise FileChanged(f"{name}: changed while it was being read; run again once nothing writes to it.")
        if failure is not None:
            raise failure


def _unchanged(path: Path, before: os.stat_result) -> bool:
    try:
        after = path.stat()
    except OSError:
        return False
    return (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def _attempt(path: Path, name: str, whole: int, known: tuple[tuple[int, ...], str], *, last: bool) -> Snapshot | None:
    try:
        before = path.stat()
        if special_kind(before.st_mode):
            regular_stat(path, name)
        stream = path.open("rb")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not last:
            return None
        raise CheckpointError(unreadable(path, name, error)) from None
    try:
        held = os.fstat(stream.fileno())
        stamp = _stamp(held)
        if stamp and stamp == known[0]:
            return Snapshot(stream, held.st_size, known[1], None, stamp)
        # Without a stamp a later change might go unseen: read the file whole.
        shot = _hashed(stream, before.st_size, whole if stamp else SMALL_BYTES, stamp)
        after = path.stat()
    except OSError as error:
        stream.close()
        if isinstance(error, FileNotFoundError):
            return None
        raise CheckpointError(unreadable(path, name, error)) from None
    if shot.size == before.st_size and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        return shot
    shot.stream.close()
    return None


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED_NS:
        return ()
    # ctime too: unlike mtime it cannot be set back.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hashed(stream: io.BufferedReader, size: int, whole: int, stamp: tuple[int, ...]) -> Snapshot:
    if size < whole:
        with stream:
            blob = stream.read(whole)
        return Snapshot(io.BytesIO(blob), len(blob), hashlib.sha256(blob).hexdigest(), blob, stamp)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return Snapshot(stream, length, digest, None, stamp)
