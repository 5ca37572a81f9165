"""Recognise the kind of a file by its first bytes and its name, with the declarations of all formats."""

from __future__ import annotations

from pathlib import Path

from ibscan.errors import CheckpointError
from ibscan.inputs import formats
from ibscan.inputs.files import HDF5_MAGIC, Snapshot, file_head
from ibscan.inputs.folder.shards import is_index, whole_name
from ibscan.inputs.folder.unsupported import UNREAD_SUFFIXES, refusal
from ibscan.inputs.formats.format import Format

__all__ = [
    "accepted",
    "content_kind",
    "file_format",
    "is_claimed",
    "is_conventional",
    "is_read",
    "is_recognised",
    "usual_suffixes",
]

# Other kinds of files: offset, bytes, kind.
OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "lfs"),
    (0, HDF5_MAGIC, "hdf5"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"MATLAB 5.0 MAT-file", "mat"),
    (257, b"ustar", "tar"),
    # MATLAB 7.3 writes HDF5 behind 512 bytes of its own.
    (512, HDF5_MAGIC, "hdf5"),
)


def content_kind(head: bytes) -> str:
    """Return the kind of a file by its head: its first kilobyte, or all of it.

    This is the kind of a checkpoint format (zip, pickle, safetensors), or one of empty, lfs, hdf5, npy, gzip, bzip2,
    xz, zstd, mat, tar, onnx, idx, text, unknown.
    """
    if not head:
        return "empty"
    stated = [(offset, magic, one.kind) for one in formats.FORMATS for offset, magic in one.magic]
    for offset, magic, kind in (*stated, *OTHERS):
        if head.startswith(magic, offset):
            return kind
    for one in formats.FORMATS:
        if one.resembles(head):
            return one.kind
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


def file_format(shot: Snapshot, file: Path, name: str) -> Format:
    """Return the format of a file by its content, and by its name where the content leaves it open; rewind `shot`.

    Raises:
        CheckpointError: It is of no format that is read.
    """
    head = shot.stream.read(1024)
    shot.stream.seek(0)
    kind = content_kind(head)
    for one in formats.FORMATS:
        named = kind in ("unknown", "idx") and one.suffixes[:1] == (file.suffix,) and one.by_suffix(head)
        # The parts of a distributed checkpoint are torch files, one tensor each.
        if (kind == one.kind or named) and file.suffix != ".distcp":
            return one
    raise CheckpointError(refusal(kind, file, name, shot.size))


def is_read(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a format that is read."""
    kind = content_kind(head)
    return any(kind == one.kind for one in formats.FORMATS)


def is_claimed(name: str) -> bool:
    """Tell whether a file name is one of a checkpoint, of a format that is read or not."""
    suffixes = (*(suffix for one in formats.FORMATS for suffix in one.suffixes), *UNREAD_SUFFIXES)
    if name.lower().endswith(suffixes) or is_index(name):
        return True
    return any(one.claims is not None and one.claims.search(name) for one in formats.FORMATS)


def is_conventional(name: str) -> bool:
    """Tell whether a file name is the one that libraries give to a folder's weights, or to their index."""
    return any(whole_name(name) in one.usual for one in formats.FORMATS)


def is_recognised(path: Path, name: str) -> bool:
    """Tell whether the content of a file is a checkpoint, whatever its name."""
    try:
        head, size = file_head(path), path.stat().st_size
    except OSError:
        return False
    kind = content_kind(head)
    return any(one.kind == kind and one.is_whole(head, name, size) for one in formats.FORMATS)


def accepted() -> str:
    """Return which files are read, for messages: `.safetensors files, or .pt, .pth, .ckpt and .bin files of ...`."""
    return ", or ".join(
        f"{', '.join(suffixes[:-1])}{' and ' if suffixes[1:] else ''}{suffixes[-1]} files{writer}"
        for suffixes, writer in (one.accepted for one in formats.FORMATS)
        if suffixes
    )


def usual_suffixes() -> str:
    """Return the suffixes of files that are read, for messages: `.safetensors, .pt, .pth, .ckpt or .bin`."""
    suffixes = [suffix for one in formats.FORMATS for suffix in one.accepted[0]]
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
