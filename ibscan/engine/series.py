"""Read the series that a request names, and the manifest beside it; torch is not needed for that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from ibscan.core.records import Checkpoint, Series
from ibscan.engine.request import Request
from ibscan.errors import InputError
from ibscan.inputs.series.checkpoint import inspect_checkpoint
from ibscan.inputs.series.manifest import Manifest, read_manifest
from ibscan.inputs.series.read import read_series, select_epochs

__all__ = ["folder_of", "manifest_of", "series_of"]


def manifest_of(paths: Sequence[Path], *, trust: bool) -> Manifest | None:
    """Read the manifest in the folder given, or in the one folder that holds all files given; None if there is none.

    Raises:
        InputError: A path is malformed, or the manifest cannot be used.
    """
    for path in paths:
        # Names from standard input may be of any length and hold any byte. Missing files are reported by the readers.
        try:
            path.stat()
        except ValueError as error:
            raise InputError(f"{path}: is no path ({error}).") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InputError(f"{path}: is no path ({error.strerror}).") from None
    folder = folder_of(paths)
    return None if folder is None else read_manifest(folder, trust=trust)


def series_of(
    request: Request,
    manifest: Manifest | None,
    *,
    exclude: Sequence[Path],
    inspect: Callable[..., Checkpoint] = inspect_checkpoint,
) -> Series:
    """Read the series a request names and select its `--epochs`."""
    series = read_series(
        request.paths,
        manifest=manifest,
        state_key=request.state_key,
        weights=request.weights,
        exclude=exclude,
        inspect=inspect,
    )
    # partial: in a folder that is followed, epochs asked for may come later.
    return series if request.epochs is None else select_epochs(series, request.epochs, partial=request.follow)


def folder_of(paths: Sequence[Path]) -> Path | None:
    """Return the folder given, or the one folder that holds all files given; None if there is none."""
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
    parents = {path.parent for path in paths}
    return parents.pop() if len(parents) == 1 else None
