"""Write whole files: a reader finds the old file or the new one, never a mixture or a part."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

__all__ = ["stray_pattern", "temporary_name", "write_whole"]


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file to a temporary one beside it, have that reach the disk, and rename it into place.

    Args:
        path: Exactly this file; a symbolic link is replaced.
        content: The file's bytes.
        durable: Wait for the disk, so that a crash of the machine leaves the new file or the old one too.

    Raises:
        OSError: As the system raised it; the old file is untouched and the temporary one gone.
    """
    temporary = temporary_name(path)
    try:
        # Not mkstemp(), which ignores the umask's permissions.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Return a new name beside a file for its unfinished content; `stray_pattern` matches it."""
    return path.parent / f"{stray_pattern(path)[:-1]}{secrets.token_hex(6)}.tmp"


def stray_pattern(path: Path) -> str:
    """Return the glob of temporary files that interrupted writes of `path` may have left beside it."""
    # A hash instead of the name: the name may already be as long as the file system allows.
    return f".ibscan-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-*"


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: otherwise a crash of the machine may bring the old file back."""
    # Unreadable folders and some network file systems refuse it; the rename itself is done.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
