"""Open results that scans wrote."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import overload

from ibscan.core.text import told_apart
from ibscan.errors import UsageError
from ibscan.face.run import Run
from ibscan.face.runs import Runs
from ibscan.face.wording import speaking_python
from ibscan.results.store import read

__all__ = ["opened"]


@overload
def opened(path: str | PathLike[str]) -> Run: ...  # type: ignore[overload-overlap]  # text is text in sequence
@overload
def opened(path: Sequence[str | PathLike[str]]) -> Runs: ...
def opened(path: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Run | Runs:
    """Open a result that a scan wrote, or several side by side; they are read into memory.

    Args:
        path: The file, or several; these are named by the ends of their paths, as long as tells them apart.

    Raises:
        UsageError: No path at all, or one that stands twice.
        InputError: A file is missing, damaged, foreign, or of a newer format.

    Example:
        run = ibscan.open("ibscan.h5")
        seeds = ibscan.open(["seed0.h5", "seed1.h5"])
    """
    if isinstance(path, str | PathLike):
        with speaking_python({}):
            return Run(read(Path(path)), Path(path))
    paths = list(path) if isinstance(path, Sequence) else []
    if not paths or not all(isinstance(one, str | PathLike) for one in paths):
        raise UsageError(f"ibscan.open: is given {path!r:.80}; expected the path of a result, or several.")
    files = [Path(one) for one in paths]
    with speaking_python({}):
        return Runs({name: Run(read(file), file) for name, file in zip(told_apart(files), files, strict=True)})
