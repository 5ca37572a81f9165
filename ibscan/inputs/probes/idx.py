"""Read IDX files (such as MNIST), gzipped or not, and find images and labels in their folder."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from ibscan.core.records import Array
from ibscan.errors import InputError, UsageError
from ibscan.inputs.files import snapshot, special_kind, unreadable
from ibscan.inputs.probes.named_arrays import MAX_ARRAY_BYTES

__all__ = ["idx_pair", "labels_beside", "read_idx"]

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES = re.compile(r"^(?P<split>.*?)[-_.]?images(?P<sep>[-._])idx\d-ubyte(?P<gz>\.gz)?$", re.IGNORECASE)
SPLITS = {"train": "train", "t10k": "test", "test": "test"}
# Deflate compresses by at most about 1032 to 1.
MOST_INFLATED = 1040


def read_idx(path: Path, name: str) -> Array:
    """Read one IDX file, in its stored type and native byte order.

    Raises:
        InputError: Not IDX, truncated, padded, or too large.
    """
    with snapshot(path, name) as shot:
        head = shot.stream.read(2)
        shot.stream.seek(0)
        packed = head == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=shot.stream) if packed else shot.stream
        try:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 8:
                raise InputError(
                    f"{name}: is no IDX file (its first bytes are {start.hex(' ')}); expected 00 00, a type and a rank."
                )
            shape = struct.unpack(f">{start[3]}I", stream.read(4 * start[3]))
            dtype = np.dtype(TYPES[start[2]])
            wanted = math.prod(shape) * dtype.itemsize
            largest = min(MAX_ARRAY_BYTES, shot.size * (MOST_INFLATED if packed else 1))
            # Ignore sizes of 0: numpy refuses even 0 rows of 2^64 numbers.
            if math.prod(filter(None, shape)) > MAX_ARRAY_BYTES or wanted > largest:
                raise InputError(
                    f"{name}: states shape {shape}, {wanted} bytes, more than a file of {shot.size} bytes can hold "
                    "here."
                )
            raw = stream.read(wanted)
            more = len(stream.read(1))
        except (EOFError, OSError, zlib.error, struct.error) as error:
            raise InputError(f"{name}: is a truncated or damaged IDX file ({error}); copy it again.") from None
    if len(raw) != wanted or more:
        found = f"{len(raw)} are there" if len(raw) != wanted else "more follow"
        raise InputError(f"{name}: states shape {shape}, {wanted} bytes of data, but {found}; copy it again.")
    return np.frombuffer(io.BytesIO(raw).getbuffer(), dtype).reshape(shape).astype(dtype.newbyteorder("="))


def labels_beside(images: Path) -> Path | None:
    """Return the labels file that belongs to an images file by its name, or None."""
    match = IMAGES.match(images.name)
    if match is None:
        return None
    # The separator before idx is a dash in the original and a dot in some unpackings; one of the two may be gzipped.
    stem = images.name[: match.start("sep")]
    base = re.sub("images$", lambda word: "labels" if word[0].islower() else "Labels", stem, flags=re.IGNORECASE)
    separators = dict.fromkeys((match["sep"], "-", "."))
    names = [f"{base}{sep}idx1-ubyte{gz}" for sep in separators for gz in (match["gz"] or "", "", ".gz")]
    return next((images.with_name(name) for name in names if images.with_name(name).is_file()), None)


def idx_pair(folder: Path, split: str, name: str) -> tuple[Path, Path | None]:
    """Return the images file, and the labels file or None, of one split of an IDX folder.

    `split` is `train`, `test`, or empty for a folder with only one.

    Raises:
        UsageError: Both splits and none named, or a split that is not there.
        InputError: No IDX images in the folder.
    """
    try:
        paths = sorted(
            path for path in folder.iterdir() if IMAGES.match(path.name) and not special_kind(path.stat().st_mode)
        )
    except OSError as error:
        raise InputError(unreadable(folder, name, error)) from None
    splits: dict[str, list[Path]] = {}
    for path in paths:
        match = IMAGES.match(path.name)
        word = match["split"].lower() if match else ""
        known = next((to for part, to in SPLITS.items() if part in word), word or "(unnamed)")
        splits.setdefault(known, []).append(path)
    if not splits:
        raise InputError(
            f"{name}: is a folder without IDX images (such as train-images-idx3-ubyte.gz); give the probe file itself."
        )
    listed = ", ".join(f"{name}#{known}" for known in splits)
    if not split and len(splits) > 1:
        raise UsageError(
            f"{name}: holds several splits; say which with {' or '.join(f'{name}#{known}' for known in splits)}."
        )
    chosen = splits.get(split or next(iter(splits)))
    if chosen is None:
        raise UsageError(f"{name}#{split}: there is no such split in the folder; there is {listed}.")
    # The same images gzipped and unpacked are one: the unpacked file reads faster.
    images = min(chosen, key=lambda path: path.suffix == ".gz")
    return images, labels_beside(images)
