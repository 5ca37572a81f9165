"""Pack a part of a run into one small file that is quick to write and to read; a damaged one is ignored."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.results.axes import strings

__all__ = ["Part", "opened", "packed", "unpacked"]


@dataclass(frozen=True)
class Part:
    """A part as read: the key of its settings, the files of its checkpoints if known, and what was measured."""

    key: str
    files: tuple[Path, ...]
    result: Result


def packed(result: Result, key: str, files: Sequence[Path] = ()) -> bytes:
    """Pack a result, its key and the files of its checkpoints into the bytes of a part.

    An archive of arrays with a JSON header: HDF5 takes a tenth of a second for some hundred objects, longer than many a
    checkpoint takes to measure. `key` is the hash of the settings it was measured with; `files` are absolute.
    """
    arrays: dict[str, Array] = {}
    header: dict[str, Any] = {
        "key": key,
        "places": [str(path) for path in files],
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
    """Unpack the result of a part; None where it is damaged or belongs to other settings."""
    part = opened(source)
    return None if part is None or part.key != key else part.result


def opened(source: Path | io.BytesIO) -> Part | None:
    """Unpack a part of any settings; None where it is damaged or of another form."""
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
