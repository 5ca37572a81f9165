"""Read the index of a checkpoint in several files (shards), and resolve the files it names inside its folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibscan.errors import CheckpointError
from ibscan.inputs.files import snapshot
from ibscan.inputs.untrusted import decoded_json

__all__ = ["SHARD", "Index", "identity", "is_index", "named_files", "read_index", "whole_name"]

# model.safetensors.index.json, pytorch_model.bin.index.json, and with a variant: model.safetensors.index.fp16.json.
INDEX = re.compile(r"\.(safetensors|bin|pt|pth)\.index(\.[\w-]+)?\.json$", re.IGNORECASE)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin|pt|pth)$", re.IGNORECASE)
# Enough for the most tensors a checkpoint may hold, each with a long name and a file's name.
MAX_INDEX_BYTES = 16 << 20
MAX_NAMES = 100_000
LONGEST_VALUE = 10_000
# Most characters of a name in a message, and of a file name.
SHOWN, LONGEST_NAME = 120, 255
WAY_OUT = "copy or save the whole folder again"


@dataclass(frozen=True)
class Index:
    """An index of shards: the tensor names by file, in the order of the index, and plain metadata."""

    files: Mapping[Path, tuple[str, ...]]
    metadata: Mapping[str, str]


def is_index(name: str) -> bool:
    """Tell whether a file name is that of an index of shards."""
    return bool(INDEX.search(name))


def whole_name(name: str) -> str:
    """Turn the name of an index into that of one file with all tensors (`model.safetensors`); keep other names."""
    return INDEX.sub(lambda match: f".{match[1]}", name)


def identity(hashes: Iterable[str]) -> str:
    """Return the SHA-256 of a checkpoint in several files: that of their sorted hexadecimal hashes."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def read_index(path: Path, name: str) -> Index:
    """Read an index. Whether the files exist and hold the tensors is not checked.

    Raises:
        CheckpointError: No readable index, too large, or a file that is not in the folder.
    """
    if _size(path) > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{name}: the index has {_size(path)} bytes, at most {MAX_INDEX_BYTES} were expected; no checkpoint needs "
            "that many names."
        )
    with snapshot(path, name) as shot:
        tables = _decoded(shot.stream.read(MAX_INDEX_BYTES + 1), name)
    weight_map = tables.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_NAMES:
        found = f"{len(weight_map)} names" if isinstance(weight_map, dict) else type(weight_map).__name__
        raise CheckpointError(
            f"{name}: its weight_map is {found}, but a table of tensor names to files was expected, 1 to {MAX_NAMES} "
            f"names; {WAY_OUT}."
        )
    paths: dict[Any, Path] = {}
    files: dict[Path, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(
                f"{name}: the index gives {tensor[:SHOWN]!r} a {type(file).__name__}, but the name of a file was "
                f"expected; {WAY_OUT}."
            )
        if file not in paths:
            paths[file] = _path_in_folder(path.parent, file, name)
        files.setdefault(paths[file], []).append(tensor)
    return Index({file: tuple(tensors) for file, tensors in files.items()}, _plain(tables.get("metadata")))


def named_files(path: Path) -> set[Path]:
    """Return the files that an index names, or none for an unreadable one, which `read_index` reports."""
    try:
        return set(read_index(path, path.name).files)
    except CheckpointError:
        return set()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # the reader reports it


def _decoded(text: bytes, name: str) -> dict[str, Any]:
    try:
        tables, doubled = decoded_json(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{name}: the index is not readable JSON; {WAY_OUT}.") from None
    if doubled:
        raise CheckpointError(f"{name}: the index has the name {doubled[0][:SHOWN]!r} twice; {WAY_OUT}.")
    if not isinstance(tables, dict):
        raise CheckpointError(f"{name}: the index is no table, but one with a weight_map was expected; {WAY_OUT}.")
    return tables


def _path_in_folder(folder: Path, file: str, name: str) -> Path:
    """Return the path of a file that an index names, refusing one outside the folder."""
    found_path = folder / file
    try:
        inside = found_path.resolve().parent == folder.resolve()
    except (OSError, RuntimeError, ValueError):
        inside = False
    if Path(file).name != file or len(file) > LONGEST_NAME or is_index(file) or not inside:
        raise CheckpointError(
            f"{name}: the index names {file[:SHOWN]!r}, which is not a file in its own folder (no path and no link out "
            "of it, to a file outside, is followed); copy the files themselves beside the index."
        )
    return found_path


def _plain(found: Any) -> dict[str, str]:  # noqa: ANN401 - decoded JSON
    """Return the strings and numbers of an index' metadata as strings, without other or very long values."""
    if not isinstance(found, dict):
        return {}
    words = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    return {key: text for key, value in words.items() if len(text := str(value)) <= LONGEST_VALUE}
