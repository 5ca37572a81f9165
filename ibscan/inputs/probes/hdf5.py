"""Declare the reader of HDF5 files (MATLAB 7.3 too), and recognise results of ibscan."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from ibscan.errors import InputError
from ibscan.inputs.files import HDF5_MAGIC
from ibscan.inputs.probes.child_arrays import Reader, child_reading

__all__ = ["HDF5", "is_result"]

HDF5 = Reader(
    ("-P", "-m", "ibscan.inputs.probes.hdf5_worker"),
    "HDF5",
    "the HDF5 library",
    "h5py",
    "copy or save it again, or save the arrays as .npz",
    "is an HDF5 file without arrays; expected x, and y where there are labels",
)
BLOCK = 1 << 20


def is_result(path: Path) -> bool:
    """Tell whether a file is a result of ibscan: HDF5 with `format` = `ibscan` among its attributes."""
    try:
        with path.open("rb") as stream:
            # Search the bytes first: the HDF5 library is slow to start, and crashes on damaged files.
            if stream.read(8) != HDF5_MAGIC or not _mentions(stream, (b"format", b"ibscan")):
                return False
        with child_reading(HDF5, str(path), None, path.name) as child:
            return "result" in child.answer()
    except (OSError, InputError):
        return False


def _mentions(stream: IO[bytes], words: tuple[bytes, ...]) -> bool:
    missing, before = set(words), b""
    while missing and (block := stream.read(BLOCK)):
        missing -= {word for word in missing if word in before + block}
        before = block[-16:]
    return not missing
