"""A part of a run as one small file: quick to write, quick to read, worthless if a bit of it is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.results.axes import strings
from ibscan.types import Array, Result, Variable

__all__ = ["Part", "opened", "packed", "unpacked"]


@dataclass(frozen=True)
class Part:
    """A part as it was read: the key of its settings, its checkpoints' files, and what was measured.

    `places` has a path a checkpoint, or none where nobody said.
    """

    key: str
    places: tuple[Path, ...]
    result: Result


def packed(result: Result, key: str, places: Sequence[Path] = ()) -> bytes:
    """Return the bytes of a part.

    An archive of plain arrays and one JSON header: with some hundred objects an HDF5 file takes a tenth of a second
    to write and to read again, which is longer than many a checkpoint takes to measure.

    Args:
        result: What was measured.
        key: Of the settings it was measured with.
        places: The checkpoints' files, absolute.
    """
    arrays: dict[str, Array] = {}
    header: dict[str, Any] = {
        "key": key,
        "places": [str(path) for path in places],
        "attrs": dict(result.attrs),
        "coordinates": {},
        "variables": {},
    }
    for kind, named in (("coordinates", result.coordinates), ("variables", result.variables)):
        for name, variable in named.items():
            text = variable.values.dtype.kind == "O"
            label = f"a{len(arrays)}"
            arrays[label] = np.empty(0) if text else variable.values
            header[kind][name] = {
                "array": label,
                "dims": variable.dims,
                "text": variable.values.tolist() if text else None,
                "attrs": {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in variable.attrs.items()},
            }
    stream = io.BytesIO()
    np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpacked(source: Path | io.BytesIO, key: str) -> Result | None:
    """Return what a part holds, or None where it is damaged or belongs to other settings."""
    part = opened(source)
    return None if part is None or part.key != key else part.result


def opened(source: Path | io.BytesIO) -> Part | None:
    """Return a part of any settings, or None where it is damaged or of another form."""
    try:
        stream = io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source
        with np.load(stream, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            result = Result(
                {name: _variable(archive, entry) for name, entry in header["coordinates"].items()},
                {name: _variable(archive, entry) for name, entry in header["variables"].items()},
                header["attrs"],
            )
            return Part(header["key"], tuple(map(Path, header["places"])), result)
    except Exception:  # noqa: BLE001 - the boundary to a file that a crash may have damaged
        # zipfile, zlib, json and numpy raise a dozen kinds between them.
        return None


def _variable(archive: Mapping[str, Array], entry: Mapping[str, Any]) -> Variable:
    attrs = {k: np.array(v, dtype=np.int8) if k == "flag_values" else v for k, v in entry["attrs"].items()}
    values = archive[entry["array"]] if entry["text"] is None else strings(entry["text"])
    return Variable(tuple(entry["dims"]), values, attrs)
