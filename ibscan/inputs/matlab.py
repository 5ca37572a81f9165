"""Read the arrays of a MATLAB file of version 5 to 7 by scipy in a child process; version 7.3 is HDF5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ibscan.errors import InputError
from ibscan.inputs.child_arrays import Reader, arrays_by_child
from ibscan.inputs.files import Snapshot
from ibscan.inputs.named import NamedArrays, Pick, check_size

__all__ = ["matlab_arrays"]

READER = Reader(("-P", "-m", "ibscan.inputs.matlab_worker"), "MATLAB", "scipy", "scipy", "save it again with -v7")
MOST_BYTES = 8


def matlab_arrays(shot: Snapshot, name: str, pick: Pick, otherwise: str) -> NamedArrays:
    """Read the arrays that `pick` chooses: real or complex numbers, logicals, and characters as one string a row.

    Args:
        shot: The file.
        name: What to call it in a message.
        pick: From shapes by name to the names wanted; may raise.
        otherwise: What a probe may be, for a file without such arrays.

    Returns:
        All shapes, and the arrays wanted; cells, structures, objects and sparse arrays are left out.

    Raises:
        InputError: Damaged, without plain arrays, or an array that is too large.
    """

    def checked(shapes: Mapping[str, tuple[int, ...]]) -> Sequence[str]:
        if not shapes:
            raise InputError(f"{name}: holds no plain numeric array; {otherwise}.")
        wanted = pick(shapes)
        for key in wanted:
            check_size(shapes[key], MOST_BYTES, key, name)
        return wanted

    return arrays_by_child(READER, shot, name, checked)
