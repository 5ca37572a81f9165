"""One checkpoint file: what it says of itself, and its tensors, safely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ibscan.errors import CheckpointError
from ibscan.inputs.archives import load_archive, read_archive
from ibscan.inputs.containers import chosen_set, is_tensor, stripped_names
from ibscan.inputs.coordinates import (
    Coordinates,
    first_known,
    numbers_in_metadata,
    numbers_in_name,
    numbers_in_object,
    numbers_in_sidecar,
)
from ibscan.inputs.described import check_tensor, plain_number
from ibscan.inputs.discovery import CONVENTIONAL, weights_file
from ibscan.inputs.files import FileChanged, Snapshot, content_kind, snapshot, tried_twice
from ibscan.inputs.foreign import refusal
from ibscan.inputs.tensorfiles import read_tensor_header, read_tensors
from ibscan.types import Checkpoint, TensorInfo

__all__ = ["inspect_checkpoint", "load_tensors"]

FORMATS = {"safetensors": "safetensors", "zip": "torch zip", "pickle": "torch legacy"}
LONGEST_METADATA = 10_000
# From here on a file is hashed piece by piece and only what is needed of it is read again, straight into tensors.
STREAMED_BYTES = 1 << 20


@dataclass(frozen=True)
class _Contents:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    coordinates: Coordinates
    state_key: str = ""


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

    def read() -> tuple[Snapshot, str, _Contents]:
        with snapshot(file, name, whole=STREAMED_BYTES) as shot:
            kind = _kind(shot, file, name)
            contents = _safetensors_contents if kind == "safetensors" else _torch_contents
            return shot, kind, contents(shot, name, kind, state_key, weights)

    shot, kind, contents = tried_twice(read)
    names = stripped_names(list(contents.tensors))
    for stored, info in contents.tensors.items():
        _refuse_dtype(stored, info.dtype, name)
    parts = [part for part in name.split("/") if part]
    alone = numbers_in_sidecar(file.parent, name) if file.name in CONVENTIONAL else Coordinates()
    found = first_known(contents.coordinates, alone, *(numbers_in_name(part) for part in reversed(parts[-2:])))
    return Checkpoint(
        path=file,
        name=name,
        sha256=shot.sha256,
        size=shot.size,
        format=FORMATS[kind],
        epoch=found.epoch,
        step=found.step,
        value=found.value,
        step_source=found.source,
        tensors={names[stored]: info for stored, info in contents.tensors.items()},
        metadata=contents.metadata,
        state_key=contents.state_key,
        stored_names={names[stored]: stored for stored in contents.tensors},
        stamp=shot.stamp,
    )


def _kind(shot: Snapshot, file: Path, name: str) -> str:
    head = shot.stream.read(1024)
    shot.stream.seek(0)
    kind = content_kind(head)
    # A header length that happens to be all text bytes: the name settles what the content leaves open.
    if (
        kind in ("text", "unknown", "idx")
        and file.suffix == ".safetensors"
        and not head.lstrip().startswith((b"{", b"<"))
    ):
        kind = "safetensors" if kind != "text" else kind
    if kind not in FORMATS:
        raise CheckpointError(refusal(kind, file, name, shot.size))
    return kind


def _safetensors_contents(
    shot: Snapshot, name: str, kind: str, state_key: str | None, weights: str | None
) -> _Contents:
    del kind
    if state_key:
        raise CheckpointError(
            f"{name}: a safetensors file holds one set of tensors under no key; leave --state-key {state_key} out."
        )
    header = read_tensor_header(shot.stream, shot.size, name)
    if weights == "ema":
        raise CheckpointError(
            f"{name}: a safetensors file holds one set of tensors, so there is no ema to take; leave --weights out."
        )
    if not header.tensors:
        raise CheckpointError(f"{name}: holds no tensors; expected a state dict, as model.state_dict() gives.")
    return _Contents(header.tensors, header.metadata, numbers_in_metadata(header.metadata, name))


def _torch_contents(shot: Snapshot, name: str, kind: str, state_key: str | None, weights: str | None) -> _Contents:
    tree = read_archive(shot, name, kind).value
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
    return _Contents(infos, metadata, numbers_in_object(numbers, name), key)


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

    def read() -> dict[str, Any]:
        known = checkpoint.stamp, checkpoint.sha256
        with snapshot(checkpoint.path, checkpoint.name, whole=STREAMED_BYTES, known=known) as shot:
            if shot.sha256 != checkpoint.sha256:
                raise FileChanged(
                    f"{checkpoint.name}: changed since it was listed (its hash differs); run again once nothing writes "
                    "to it."
                )
            if checkpoint.format == "safetensors":
                return read_tensors(shot.stream, shot.size, checkpoint.name)
            tree = load_archive(shot.stream, checkpoint.name)
            return dict(chosen_set(tree, checkpoint.name, checkpoint.state_key, None)[1])

    return _as_listed(tried_twice(read), checkpoint)


def _as_listed(loaded: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    names = stripped_names(list(loaded))
    tensors = {names[stored]: tensor.detach() for stored, tensor in loaded.items()}
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
