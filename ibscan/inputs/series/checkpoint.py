"""Inspect and load one checkpoint, in one file or several, without running anything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibscan.core.records import Checkpoint, TensorInfo
from ibscan.errors import CheckpointError
from ibscan.inputs.files import FileChanged, retried, snapshot
from ibscan.inputs.folder.numbers import (
    AxisNumbers,
    first_known,
    numbers_in_metadata,
    numbers_in_name,
    numbers_in_sidecar,
)
from ibscan.inputs.folder.shards import SHARD, identity, is_index, read_index
from ibscan.inputs.formats.format import Description, Wanted
from ibscan.inputs.formats.recognise import file_format, is_conventional
from ibscan.inputs.formats.state_dict import below_prefix, selected_tensors, stripped_names
from ibscan.inputs.series.discovery import weights_file

if TYPE_CHECKING:
    import torch

__all__ = ["inspect_checkpoint", "load_tensors"]

# Larger files are hashed in pieces, and then read straight into tensors.
STREAMED_BYTES = 1 << 20


@dataclass(frozen=True)
class _Contents:
    """The description of a checkpoint, its format, size in bytes and hash, the hashes of shards, stamps by file."""

    description: Description
    format: str
    size: int
    sha256: str
    shards: Mapping[Path, str] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)


def inspect_checkpoint(
    path: Path, name: str, *, state_key: str | None = None, weights: str | None = None
) -> Checkpoint:
    """Describe a checkpoint without keeping its weights and without running anything in it.

    Numbers inside the file win over a sidecar, and a sidecar over the name.

    Args:
        path: The file, or a folder that is one checkpoint.
        name: Its path relative to the series' folder, as tables and messages show it.
        state_key: Which set of tensors, where the file holds several (`--state-key`).
        weights: `raw` or `ema`, where it holds both (`--weights`).

    Returns:
        The checkpoint; `epoch` and `step` are None where nothing states them, and `step_source` is then `order`.

    Raises:
        CheckpointError: The file cannot be used.
    """
    file = weights_file(path, name) if path.is_dir() else path
    if SHARD.search(file.name):
        raise CheckpointError(
            f"{name}: is one shard of a checkpoint in several files; give its folder, or the .index.json beside it."
        )
    read = _sharded_contents if is_index(file.name) else _file_contents
    contents = read(file, name, Wanted(state_key, weights))
    description = contents.description
    names = stripped_names(list(description.tensors))
    for stored in names:
        _refuse_dtype(stored, description.tensors[stored].dtype, name)
    parts = [part for part in name.split("/") if part]
    sidecar = numbers_in_sidecar(file.parent, name) if is_conventional(file.name) else AxisNumbers()
    found = first_known(description.numbers, sidecar, *(numbers_in_name(part) for part in reversed(parts[-2:])))
    return Checkpoint(
        path=file,
        name=name,
        sha256=contents.sha256,
        size=contents.size,
        format=contents.format,
        epoch=found.epoch,
        step=found.step,
        value=found.value,
        step_source=found.source,
        tensors={clean: description.tensors[stored] for stored, clean in names.items()},
        metadata=description.metadata,
        state_key=description.state_key,
        stored_names={clean: stored for stored, clean in names.items()},
        shards=contents.shards,
        stamps=contents.stamps,
    )


def _file_contents(file: Path, name: str, wanted: Wanted) -> _Contents:
    def read() -> _Contents:
        with snapshot(file, name, whole=STREAMED_BYTES) as shot:
            format = file_format(shot, file, name)
            description = format.describe(shot, name, wanted)
            return _Contents(description, format.name, shot.size, shot.sha256, stamps={file: shot.stamp})

    return retried(read)


def _sharded_contents(file: Path, name: str, wanted: Wanted) -> _Contents:
    """Describe every file that an index names, one at a time, and compare them with the index."""
    index = read_index(file, name)
    contents: list[_Contents] = []
    shard_of: dict[str, str] = {}
    for shard, named in index.files.items():
        where = _sibling_name(name, shard)
        found = _file_contents(shard, where, Wanted(""))
        tensors_in_shard = found.description.tensors
        _check_shard(tensors_in_shard, named, where, name)
        twice = next((key for key in tensors_in_shard if key in shard_of), None)
        if twice is not None:
            raise CheckpointError(f"{name}: {twice!r} is both in {shard_of[twice]} and in {where}; save it again.")
        shard_of.update(dict.fromkeys(tensors_in_shard, where))
        contents.append(found)
    tensors = {key: info for one in contents for key, info in one.description.tensors.items()}
    metadata = {key: word for one in contents for key, word in one.description.metadata.items()} | dict(index.metadata)
    shards = {shard: one.sha256 for shard, one in zip(index.files, contents, strict=True)}
    numbers = first_known(numbers_in_metadata(metadata, name), *(one.description.numbers for one in contents))
    return _Contents(
        Description(selected_tensors(tensors, wanted, name), metadata, numbers, wanted.state_key or ""),
        f"{contents[0].format}, {len(contents)} shards",
        sum(one.size for one in contents),
        identity(shards.values()),
        shards,
        {shard: stamp for one in contents for shard, stamp in one.stamps.items()},
    )


def _sibling_name(name: str, file: Path) -> str:
    """Return the name in messages of a file beside the one called `name`."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{file.name}"


def _check_shard(found: Mapping[str, TensorInfo], named: Sequence[str], where: str, name: str) -> None:
    """Refuse a shard that does not hold exactly the tensors that the index lists for it."""
    absent = next((key for key in named if key not in found), None)
    wanted = set(named)
    extra = next((key for key in found if key not in wanted), None)
    if absent is not None or extra is not None:
        what = f"has {absent!r} there, which it lacks" if absent is not None else f"does not name its {extra!r}"
        raise CheckpointError(f"{name}: does not fit {where}: the index {what}; copy or save the whole folder again.")


def _refuse_dtype(stored: str, dtype: str, name: str) -> None:
    """Refuse complex and quantised tensors, and integer weights and biases, but not integer buffers (counters)."""
    floating = dtype.startswith(("float", "bfloat"))
    parameter = stored.rsplit(".", 1)[-1] in ("weight", "bias")
    if dtype.startswith(("complex", "q")) or (parameter and not floating):
        raise CheckpointError(
            f"{name}: {stored!r} has dtype {dtype}, but floating point was expected. Save a float copy of the weights."
        )


def load_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Load the tensors of a checkpoint on the CPU, in their stored dtype, in the order and under the names it lists.

    Raises:
        CheckpointError: The file is gone, changed since it was listed (after one more try), or does not load.
    """
    stamps = checkpoint.stamps
    if not checkpoint.shards:
        file = checkpoint.path
        known = stamps.get(file, ()), checkpoint.sha256
        return _checked_against_listing(_loaded_file(file, checkpoint.name, known, checkpoint.state_key), checkpoint)
    whole: dict[str, Any] = {}
    for shard, sha256 in checkpoint.shards.items():
        whole |= _loaded_file(shard, _sibling_name(checkpoint.name, shard), (stamps.get(shard, ()), sha256), "")
    return _checked_against_listing(below_prefix(whole, checkpoint.state_key), checkpoint)


def _loaded_file(file: Path, name: str, known: tuple[tuple[int, ...], str], state_key: str) -> dict[str, Any]:
    """Return the tensors of one file by stored name, refusing a file that changed since it was hashed."""

    def read() -> dict[str, Any]:
        with snapshot(file, name, whole=STREAMED_BYTES, known=known) as shot:
            if shot.sha256 != known[1]:
                raise FileChanged(
                    f"{name}: changed since it was listed (its hash differs); run again once nothing writes to it."
                )
            return dict(file_format(shot, file, name).load(shot, name, state_key))

    return retried(read)


def _checked_against_listing(loaded: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {clean: loaded[stored].detach() for stored, clean in stripped_names(list(loaded)).items()}
    for key, info in checkpoint.tensors.items():
        tensor = tensors.get(key)
        if tensor is None or tuple(tensor.shape) != info.shape or str(tensor.dtype) != f"torch.{info.dtype}":
            found = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise CheckpointError(
                f"{checkpoint.name}: {key!r} was listed as {info.shape} {info.dtype}, but {found} was loaded; refused."
            )
        # The listing is our own reading of the pickle; torch must have read the same.
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{checkpoint.name}: {key!r} claims more elements than are stored; refused.")
    return {key: tensors[key] for key in checkpoint.tensors}
