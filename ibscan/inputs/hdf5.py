"""Read the arrays of an HDF5 file (MATLAB 7.3 too) in a child process; tell results of ibscan from other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ibscan.errors import InputError
from ibscan.inputs.child_arrays import Reader, arrays_by_child, conversation
from ibscan.inputs.files import HDF5_MAGIC, Snapshot
from ibscan.inputs.named import NamedArrays, Pick

__all__ = ["hdf5_arrays", "is_result"]

READER = Reader(
    ("-P", "-m", "ibscan.inputs.hdf5_worker"),
    "HDF5",
    "the HDF5 library",
    "h5py",
    "copy or save it again, or save the arrays as .npz",
)
BLOCK = 1 << 20


def hdf5_arrays(shot: Snapshot, name: str, pick: Pick) -> NamedArrays:
    """Read the arrays that `pick` chooses from the shapes an HDF5 file states; keys are paths (`train/x`).

    No link is followed and no other file opened; sizes are checked before anything is read.

    Args:
        shot: The file.
        name: What to call it in a message.
        pick: From shapes by name to the names wanted; may raise.

    Returns:
        All shapes, and the arrays wanted; what MATLAB wrote is transposed back.

    Raises:
        InputError: Damaged, a result of ibscan, or an array that is not read.
    """

    def checked(shapes: Mapping[str, tuple[int, ...]]) -> Sequence[str]:
        if not shapes:
            raise InputError(f"{name}: is an HDF5 file without arrays; expected x, and y where there are labels.")
        return pick(shapes)

    return arrays_by_child(READER, shot, name, checked)


def is_result(path: Path) -> bool:
    """Tell whether a file is one of our own results: HDF5 whose attribute `format` is `ibscan`."""
    try:
        with path.open("rb") as stream:
            # The library would be asked about every foreign file, and dies of damaged ones.
            if stream.read(8) != HDF5_MAGIC or not _mentions(stream, (b"format", b"ibscan")):
                return False
        with conversation(READER, str(path), None, path.name) as child:
            return "result" in child.answer()
    except (OSError, InputError):
        return False


def _mentions(stream: IO[bytes], words: tuple[bytes, ...]) -> bool:
    missing, before = set(words), b""
    while missing and (block := stream.read(BLOCK)):
        missing -= {word for word in missing if word in before + block}
        before = block[-16:]
    return not missing
