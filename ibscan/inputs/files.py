"""What a path is before it is opened, what its first bytes say, and its bytes as they were at one moment."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ibscan.errors import CheckpointError

__all__ = ["SMALL_BYTES", "Snapshot", "content_kind", "exists", "file_head", "regular_stat", "snapshot", "special_kind"]

SMALL_BYTES = 256 << 20
HEAD_BYTES = 1024
RETRY_SECONDS = 0.05

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "lfs"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (HDF5_MAGIC, "hdf5"),
    (b"\x93NUMPY", "npy"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"MATLAB 5.0 MAT-file", "mat"),
)
SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


@dataclass(frozen=True)
class Snapshot:
    """A file's bytes at one moment: a stream over them, how many, and their hash.

    `blob` holds the bytes themselves where the file is small enough to be read whole; else None.
    """

    stream: BinaryIO
    size: int
    sha256: str
    blob: bytes | None


def exists(path: str) -> bool:
    """Tell whether there is something under this path; what no path can be (too long, a null byte) is not there."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def special_kind(mode: int) -> str:
    """Return what a non-regular file is, in words, or the empty string for a regular one."""
    return next((words for test, words in SPECIAL if test(mode)), "" if stat.S_ISREG(mode) else "no regular file")


def regular_stat(path: Path, name: str) -> os.stat_result:
    """Return the stat of a regular, readable file, following symlinks, without opening anything.

    Args:
        path: The file.
        name: What to call it in a message.

    Returns:
        Its stat.

    Raises:
        CheckpointError: Missing, forbidden, a symlink loop, or no regular file.
        FileNotFoundError: Never: a missing file is a CheckpointError too.
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


def unreadable(path: Path, name: str, error: OSError) -> str:
    """Return the sentence for a file the system would not let us read."""
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


def content_kind(head: bytes) -> str:
    """Return what the first bytes of a file say it is.

    Args:
        head: The first kilobyte, or all there is.

    Returns:
        One of empty, lfs, zip, pickle, hdf5, npy, gzip, bzip2, xz, zstd, mat, tar, safetensors, onnx, idx, text,
        unknown.
    """
    if not head:
        return "empty"
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    # MATLAB 7.3 writes HDF5 behind 512 bytes of its own.
    if head[512:520] == HDF5_MAGIC:
        return "hdf5"
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "pickle"
    # A length has bytes that no text has; a line break is one that text does.
    if head[8:9] == b"{" and any(byte > 126 or (byte < 32 and byte not in b"\t\n\r") for byte in head[:8]):
        return "safetensors"
    if head[0] == 0x08 and (b"onnx" in head or b"pytorch" in head[:64]):
        return "onnx"
    if head[:2] == b"\0\0" and len(head) > 3 and head[2] in (8, 9, 11, 12, 13, 14) and 1 <= head[3] <= 8:
        return "idx"
    return "text" if _is_text(head) else "unknown"


def _is_text(head: bytes) -> bool:
    try:
        words = head.decode()
    except UnicodeDecodeError as error:
        # A character cut in two by the end of the head is no sign of binary content.
        if error.start < len(head) - 3:
            return False
        words = head[: error.start].decode()
    # Spreadsheets put a byte order mark first.
    return all(character.isprintable() or character in "\t\n\r\f" for character in words.removeprefix("\ufeff"))


@contextmanager
def snapshot(path: Path, name: str) -> Iterator[Snapshot]:
    """Read a file so that what is parsed is what was hashed; a file that changes meanwhile gets one more try.

    Small files are read whole and never mapped: a file cut short while it is mapped kills the process with SIGBUS,
    and a training run may still write here.

    Args:
        path: The file.
        name: What to call it in a message.

    Yields:
        The snapshot; its stream stands at the start and is closed afterwards.

    Raises:
        CheckpointError: Not a regular readable file, or it changed twice while being read.
    """
    for attempt in range(2):
        if attempt:
            time.sleep(RETRY_SECONDS)
        taken = _attempt(path, name, last=bool(attempt))
        if taken is not None:
            break
    else:
        raise CheckpointError(f"{name}: changed twice while it was being read; run again once nothing writes to it.")
    with taken.stream:
        before = None if taken.blob is not None else os.fstat(taken.stream.fileno())
        yield taken
    # What was not read whole may have changed while it was parsed.
    if before is not None and not _unchanged(path, before):
        raise CheckpointError(f"{name}: changed while it was being read; run again once nothing writes to it.")


def _unchanged(path: Path, before: os.stat_result) -> bool:
    try:
        after = path.stat()
    except OSError:
        return False
    return (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def _attempt(path: Path, name: str, *, last: bool) -> Snapshot | None:
    try:
        before = path.stat()
        if special_kind(before.st_mode):
            regular_stat(path, name)
        stream = path.open("rb")
    except FileNotFoundError as error:
        if not last:
            return None
        raise CheckpointError(unreadable(path, name, error)) from None
    except OSError as error:
        raise CheckpointError(unreadable(path, name, error)) from None
    try:
        taken = _taken(stream, before.st_size)
        after = path.stat()
    except FileNotFoundError:
        stream.close()
        return None
    except OSError as error:
        stream.close()
        raise CheckpointError(unreadable(path, name, error)) from None
    if taken.size == before.st_size and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        return taken
    taken.stream.close()
    return None


def _taken(stream: io.BufferedReader, size: int) -> Snapshot:
    if size < SMALL_BYTES:
        with stream:
            blob = stream.read(SMALL_BYTES)
        return Snapshot(io.BytesIO(blob), len(blob), hashlib.sha256(blob).hexdigest(), blob)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return Snapshot(stream, length, digest, None)
