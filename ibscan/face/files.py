"""Open results that scans wrote."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ibscan.errors import UsageError
from ibscan.face.run import Run
from ibscan.face.wording import speaking_python
from ibscan.results.store import read

__all__ = ["opened"]


def opened(path: str | PathLike[str]) -> Run:
    """Open a result that a scan wrote; it is read into memory, and the file may change.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, damaged, foreign, or of a newer format.

    Example:
        run = ibscan.open("ibscan.h5")
    """
    if not isinstance(path, str | PathLike):
        raise UsageError(f"ibscan.open: is given a {type(path).__name__}; expected the path of one result.")
    with speaking_python({}):
        return Run(read(Path(path)), Path(path))
