"""Read a result without a seal in a process of its own: `python -P -m ibscan.results.unsealed PATH NAME`.

Of 1500 results with one to three damaged bytes and no seal, 7 made the HDF5 library end its process.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import h5py

from ibscan.core.child import ChildEnded, limit, started, tell
from ibscan.core.result import Result
from ibscan.errors import InputError
from ibscan.results.decode import decoded, unreadable
from ibscan.results.packed import packed, unpacked

__all__ = ["read_in_child"]

MODULE = ("-P", "-m", "ibscan.results.unsealed")
# Far beyond any result; on a damaged file the library may loop for ever, or ask for all memory.
SECONDS, BYTES = 60, 8 << 30


def read_in_child(path: Path) -> Result:
    """Read a result in a child process.

    Raises:
        InputError: The file is damaged, foreign, or of a newer format.
    """
    with started((*MODULE, os.fspath(path.absolute()), os.fspath(path))) as child:
        try:
            answer = child.answer()
            if "error" in answer:
                raise InputError(answer["error"])
            content = bytearray(answer["bytes"])
            child.fill(memoryview(content))
            result = unpacked(io.BytesIO(content), "")
            if result is None:
                raise ChildEnded(0)
            return result
        except ChildEnded as end:
            reason = end.reason("the HDF5 library")
            raise InputError(f"{path}: is no readable result file of ibscan ({reason}).") from None


def main() -> None:
    """Send the result at the path of the first argument; messages name it as the second argument does."""
    _, path, where = sys.argv
    limit(SECONDS, BYTES)
    try:
        with h5py.File(path, "r", locking=False) as file:
            answer = packed(decoded(file, Path(path).stat().st_size, where), "")
    except InputError as error:
        tell({"error": str(error)})
    except Exception as error:  # noqa: BLE001 - the boundary to foreign HDF5: h5py raises nearly anything
        tell({"error": str(unreadable(where, error))})
    else:
        tell({"bytes": len(answer)}, answer)


if __name__ == "__main__":
    main()
