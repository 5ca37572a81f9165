"""One checkpoint, in one file or several: what it says of itself, and its tensors, safely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ibscan.errors import CheckpointError
from ibscan.inputs.archives import load_archive, read_archive, stored_element
from ibscan.inputs.containers import chosen_set, is_tensor, stripped_names, under
from ibscan.inputs.coordinates import (
    EPOCH_KEYS,
    STEP_KEYS,
    Coordinates,
    first_known,
    numbers_in_metadata,
    numbers_in_name,
    numbers_in_object,
    numbers_in_sidecar,
)
from ibscan.inputs.described import StoredTensor, check_tensor, plain_number, stated_number
from ibscan.inputs.discovery import is_conventional, weights_file
from ibscan.inputs.files import FileChanged, Snapshot, content_kind, snapshot, tried_twice
from ibscan.inputs.foreign import refusal
from ibscan.inputs.nested import numbers_beside
from ibscan.inputs.shards import SHARD, identity, is_index, read_index
from ibscan.inputs.tensorfiles import read_tensor_header, read_tensors
from ibscan.types import Checkpoint, TensorInfo

__all__ = ["FORMATS", "inspect_checkpoint", "load_tensors"]

# What is read, whatever the file is called: the kind of its content, and what the format is called.
FORMATS = {"safetensors": "safetensors", "zip": "torch zip", "pickle": "torch legacy"}
LONGEST_METADATA = 10_000
# From here on a file is hashed piece by piece and only what is needed of it is read again, straight into tensors.
STREAMED_BYTES = 1 << 20


@dataclass(frozen=True)
class _Contents:
    """What a file says: tensors by stored name, metadata, numbers, which set of tensors was taken; its format and hash.

    Of several files, the hash of each is in `shards`; `stamps` are those of each file's snapshot.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    coordinates: Coordinates
    state_key: str
    format: str
    size: int
    sha256: str
    shards: Mapping[Path, str] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)


def inspect_checkpoint(
    path: Path, name: str, *, state_key: str | None = None, weights: str | None = None
) -> Checkpoint:
    """Read what a checkpoint says of itself, without keeping its weights and without running anything in it.

    The number inside the file wins over a sidecar, the sidecar over the name.

    Args:
        path: The file, or a folder that is one checkpoint.
        name: Its path relative to the series' folder, as tables and messages show it.
        state_key: Which set of tensors, where the file holds several (`--state-key`).
        weights: `raw` or `ema`, where it holds both (`--weights`).

    Returns:
        The checkpoint; `epoch` and `step` are None where nothing states them, and `step_source` is then `order`.

    Raises:
        CheckpointError: The file cannot be used; the sentence says why and what to do.
    """
    file = weights_file(path, name) if path.is_dir() else path
    if SHARD.search(file.name):
        raise CheckpointError(
            f"{name}: is one shard of a checkpoint in several files; give its folder, or the .index.json beside it."
        )
    read = _sharded_contents if is_index(file.name) else _file_contents
    contents = read(file, name, state_key, weights)
    names = stripped_names(list(contents.tensors))
    for stored in names:
        _refuse_dtype(stored, contents.tensors[stored].dtype, name)
    parts = [part for part in name.split("/") if part]
    alone = numbers_in_sidecar(file.parent, name) if is_conventional(file.name) else Coordinates()
    found = first_known(contents.coordinates, alone, *(numbers_in_name(part) for part in reversed(parts[-2:])))
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
        tensors={clean: contents.tensors[stored] for stored, clean in names.items()},
        metadata=contents.metadata,
        state_key=contents.state_key,
        stored_names={clean: stored for stored, clean in names.items()},
        shards=contents.shards,
        stamps=contents.stamps,
    )


def _file_contents(file: Path, name: str, state_key: str | None, weights: str | None) -> _Contents:
    def read() -> _Contents:
        with snapshot(file, name, whole=STREAMED_BYTES) as shot:
            kind = _kind(shot, file, name)
            contents = _safetensors_contents if kind == "safetensors" else _torch_contents
            return replace(contents(shot, name, kind, state_key, weights), stamps={file: shot.stamp})

    return tried_twice(read)


def _sharded_contents(file: Path, name: str, state_key: str | None, weights: str | None) -> _Contents:
    """Read every file an index names, one at a time, and hold the index against them."""
    index = read_index(file, name)
    contents: list[_Contents] = []
    holder: dict[str, str] = {}
    for shard, named in index.files.items():
        where = _beside(name, shard)
        found = _file_contents(shard, where, "", None)
        _check_shard(found.tensors, named, where, name)
        twice = next((key for key in found.tensors if key in holder), None)
        if twice is not None:
            raise CheckpointError(f"{name}: {twice!r} is both in {holder[twice]} and in {where}; save it again.")
        holder.update(dict.fromkeys(found.tensors, where))
        contents.append(found)
    tensors = {key: info for one in contents for key, info in one.tensors.items()}
    metadata = {key: word for one in contents for key, word in one.metadata.items()} | dict(index.metadata)
    shards = {shard: one.sha256 for shard, one in zip(index.files, contents, strict=True)}
    return _Contents(
        _of_one_set(tensors, state_key, weights, name),
        metadata,
        first_known(numbers_in_metadata(metadata, name), *(one.coordinates for one in contents)),
        state_key or "",
        f"{contents[0].format}, {len(contents)} shards",
        sum(one.size for one in contents),
        identity(shards.values()),
        shards,
        {shard: stamp for one in contents for shard, stamp in one.stamps.items()},
    )


def _kind(shot: Snapshot, file: Path, name: str) -> str:
    head = shot.stream.read(1024)
    shot.stream.seek(0)
    kind = content_kind(head)
    # The name settles what the content leaves open.
    if kind in ("unknown", "idx") and file.suffix == ".safetensors" and not head.lstrip().startswith((b"{", b"<")):
        kind = "safetensors"
    # The parts of a distributed checkpoint are torch files, one tensor each.
    if kind not in FORMATS or file.suffix == ".distcp":
        raise CheckpointError(refusal(kind, file, name, shot.size))
    return kind


def _safetensors_contents(
    shot: Snapshot, name: str, kind: str, state_key: str | None, weights: str | None
) -> _Contents:
    header = read_tensor_header(shot.stream, shot.size, name)
    if not header.tensors:
        raise CheckpointError(f"{name}: holds no tensors; expected a state dict, as model.state_dict() gives.")
    tensors = _of_one_set(header.tensors, state_key, weights, name)
    # The format holds strings and tensors: a count is either.
    stated = [key for key in EPOCH_KEYS + STEP_KEYS if key in header.tensors and not _sizes(header.tensors[key])]
    shot.stream.seek(0)
    loaded = read_tensors(shot.stream, shot.size, name, stated) if stated else {}
    counts = {key: loaded[key].item() for key in stated if not loaded[key].dtype.is_complex}
    numbers = first_known(numbers_in_metadata(header.metadata, name), numbers_in_object(counts, name))
    return _Contents(tensors, header.metadata, numbers, state_key or "", FORMATS[kind], shot.size, shot.sha256)


def _sizes(info: TensorInfo) -> list[int]:
    """Return the sizes that make a tensor more than one number."""
    return [size for size in info.shape if size != 1]


def _of_one_set(
    tensors: Mapping[str, TensorInfo], state_key: str | None, weights: str | None, name: str
) -> Mapping[str, TensorInfo]:
    """Return what is asked for of a file that has no keys: all, or those whose names begin with --state-key."""
    if weights == "ema":
        raise CheckpointError(
            f"{name}: holds one set of tensors under no key, so there is no ema to take; leave --weights out."
        )
    chosen = under(tensors, state_key or "")
    if not chosen:
        raise CheckpointError(
            f"{name}: holds one set of tensors under no key, and no name in it begins with {state_key!r} and a dot; "
            f"leave --state-key {state_key} out."
        )
    return chosen


def _torch_contents(shot: Snapshot, name: str, kind: str, state_key: str | None, weights: str | None) -> _Contents:
    reading = read_archive(shot, name, kind)
    tree = reading.value
    if is_tensor(tree):
        raise CheckpointError(f"{name}: holds one bare tensor; expected a state dict, as model.state_dict() gives.")
    key, tensors = chosen_set(tree, name, state_key, weights)
    for stored, tensor in tensors.items():
        check_tensor(stored, tensor, name)
    top = {word: value for word, value in tree.items() if isinstance(word, str)} if isinstance(tree, dict) else {}
    numbers = {word: number for word, value in top.items() if (number := plain_number(value)) is not None}
    words = {
        word: value
        for word, value in top.items()
        if isinstance(value, str | bool) and len(str(value)) < LONGEST_METADATA
    }
    metadata = {word: str(value) for word, value in (words | numbers).items()}
    infos = {stored: TensorInfo(tensor.shape, tensor.dtype) for stored, tensor in tensors.items()}

    def element(tensor: StoredTensor) -> int | float | None:
        return stored_element(shot, reading, tensor)

    beside = numbers_beside(tree, key, lambda value: stated_number(value, element))
    return _Contents(infos, metadata, numbers_in_object(beside, name), key, FORMATS[kind], shot.size, shot.sha256)


def _beside(name: str, file: Path) -> str:
    """Return what a file is called in messages that lies beside one called `name`."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{file.name}"


def _check_shard(found: Mapping[str, TensorInfo], named: Sequence[str], where: str, name: str) -> None:
    """Refuse a shard that does not hold exactly what the index says of it."""
    absent = next((key for key in named if key not in found), None)
    wanted = set(named)
    extra = next((key for key in found if key not in wanted), None)
    if absent is not None or extra is not None:
        what = f"has {absent!r} there, which it lacks" if absent is not None else f"does not name its {extra!r}"
        raise CheckpointError(f"{name}: does not fit {where}: the index {what}; copy or save the whole folder again.")


def _refuse_dtype(stored: str, dtype: str, name: str) -> None:
    """Refuse complex and quantised tensors, and weights and biases of integers; integer buffers (counters) may stay."""
    floating = dtype.startswith(("float", "bfloat"))
    parameter = stored.rsplit(".", 1)[-1] in ("weight", "bias")
    if dtype.startswith(("complex", "q")) or (parameter and not floating):
        raise CheckpointError(
            f"{name}: {stored!r} has dtype {dtype}, but floating point was expected. Save a float copy of the weights."
        )


def load_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Load the tensors of a checkpoint on the CPU, in their stored dtype, under the names the checkpoint lists.

    Args:
        checkpoint: As `inspect_checkpoint` or `read_series` returned it.

    Returns:
        Name to tensor, in the checkpoint's order.

    Raises:
        CheckpointError: The file is gone, changed since it was listed (after one more try), or does not load.
    """
    stamps = checkpoint.stamps
    if not checkpoint.shards:
        file = checkpoint.path
        known = stamps.get(file, ()), checkpoint.sha256
        return _as_listed(_loaded(file, checkpoint.name, known, checkpoint.state_key), checkpoint)
    whole: dict[str, Any] = {}
    for shard, sha256 in checkpoint.shards.items():
        whole |= _loaded(shard, _beside(checkpoint.name, shard), (stamps.get(shard, ()), sha256), "")
    return _as_listed(under(whole, checkpoint.state_key), checkpoint)


def _loaded(file: Path, name: str, known: tuple[tuple[int, ...], str], state_key: str) -> dict[str, Any]:
    """Return the tensors of one file by stored name, if it still is the file of that stamp and hash."""

    def read() -> dict[str, Any]:
        with snapshot(file, name, whole=STREAMED_BYTES, known=known) as shot:
            if shot.sha256 != known[1]:
                raise FileChanged(
                    f"{name}: changed since it was listed (its hash differs); run again once nothing writes to it."
                )
            if _kind(shot, file, name) == "safetensors":
                return under(read_tensors(shot.stream, shot.size, name), state_key)
            return dict(chosen_set(load_archive(shot.stream, name), name, state_key, None)[1])

    return tried_twice(read)


def _as_listed(loaded: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {clean: loaded[stored].detach() for stored, clean in stripped_names(list(loaded)).items()}
    for key, info in checkpoint.tensors.items():
        tensor = tensors.get(key)
        if tensor is None or tuple(tensor.shape) != info.shape or str(tensor.dtype) != f"torch.{info.dtype}":
            found = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise CheckpointError(
                f"{checkpoint.name}: {key!r} was listed as {info.shape} {info.dtype}, but {found} was loaded; refused."
            )
        # The listing came from our reading of the pickle; the bytes behind the tensor have the last word.
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{checkpoint.name}: {key!r} claims more elements than are stored; refused.")
    return {key: tensors[key] for key in checkpoint.tensors}
