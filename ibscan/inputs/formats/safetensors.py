"""Read safetensors files: check the header in full, then read tensors by it."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from ibscan.core.records import TensorInfo
from ibscan.errors import CheckpointError
from ibscan.inputs.files import Snapshot
from ibscan.inputs.folder.numbers import EPOCH_KEYS, STEP_KEYS, first_known, numbers_in_metadata, numbers_in_object
from ibscan.inputs.formats.format import Description, Format, Wanted
from ibscan.inputs.formats.state_dict import below_prefix, selected_tensors
from ibscan.inputs.untrusted import decoded_json, stated_sizes

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "SAFETENSORS", "TensorFile", "read_tensor_header", "read_tensors"]

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 100_000

# By the name in the file: the name in torch, and bits per element.
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "U16": ("uint16", 16), "I16": ("int16", 16),
    "U32": ("uint32", 32), "I32": ("int32", 32), "U64": ("uint64", 64), "I64": ("int64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F16": ("float16", 16), "BF16": ("bfloat16", 16), "F32": ("float32", 32), "F64": ("float64", 64),
    "C64": ("complex64", 64),
}  # fmt: skip


@dataclass(frozen=True)
class TensorFile:
    """The header of a safetensors file: tensors in stored order (by offset), and the metadata strings."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_tensor_header(stream: BinaryIO, size: int, name: str) -> TensorFile:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: Truncated, padded, overlapping, of unknown dtype, or otherwise not what the format allows.
    """
    start = stream.read(8)
    if len(start) < 8:
        raise CheckpointError(
            f"{name}: is truncated: a safetensors file has at least 8 bytes, found {size}; copy it again."
        )
    (length,) = struct.unpack("<Q", start)
    if length > size - 8:
        raise CheckpointError(
            f"{name}: its safetensors header states a length of {length} bytes, but the file has {size}; "
            "it is truncated or no safetensors file, copy or save it again."
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{name}: its safetensors header is {length} bytes long, at most {MAX_HEADER_BYTES} were expected; "
            "no checkpoint needs that many names."
        )
    entries = _entries(stream.read(length), name)
    metadata = _metadata(entries.pop("__metadata__", {}), name)
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{name}: names {len(entries)} tensors, at most {MAX_TENSORS} were expected.")
    spans = [(*_span(entry, key, name), key) for key, entry in entries.items()]
    spans.sort(key=lambda span: span[:2])
    _check_spans(spans, size - 8 - length, name)
    infos = {key: TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]][0]) for key, entry in entries.items()}
    return TensorFile({key: infos[key] for *_, key in spans}, metadata)


def read_tensors(
    stream: BinaryIO, size: int, name: str, wanted: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """Read the wanted tensors of a safetensors file (None: all) on the CPU, by name in stored order.

    Each is read straight into its own memory: nothing is mapped or held twice.

    Raises:
        CheckpointError: A damaged header, or the file ends too early.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    # The header check left no gaps between tensors in this order.
    for key, info in read_tensor_header(stream, size, name).tensors.items():
        dtype = getattr(torch, info.dtype)
        if wanted is not None and key not in wanted:
            stream.seek(math.prod(info.shape) * dtype.itemsize, io.SEEK_CUR)
            continue
        tensors[key] = torch.empty(info.shape, dtype=dtype)
        room = tensors[key].reshape(-1).view(torch.uint8).numpy().data
        while room:
            read = stream.readinto(room)  # type: ignore[attr-defined]
            if not read:
                raise CheckpointError(f"{name}: ends within {key!r}; copy or save it again.")
            room = room[read:]
    return tensors


def _entries(header: bytes, name: str) -> dict[str, Any]:
    try:
        entries, doubled = decoded_json(header)
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{name}: its safetensors header is not readable JSON; the file is damaged, copy or save it again."
        ) from None
    if doubled:
        raise CheckpointError(f"{name}: its safetensors header has the name {doubled[0]!r} twice; save it again.")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{name}: its safetensors header is no table of tensors; save it again.")
    return entries


def _metadata(found: Any, name: str) -> dict[str, str]:  # noqa: ANN401 - decoded JSON
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(
            f"{name}: its safetensors metadata must map strings to strings, and does not; save it again."
        )
    return dict(found)


def _span(entry: Any, key: str, name: str) -> tuple[int, int]:  # noqa: ANN401 - decoded JSON
    fits = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    shape, offsets = (stated_sizes(entry[part] if fits else None) for part in ("shape", "data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(entry["dtype"], str):
        raise CheckpointError(
            f"{name}: the safetensors header entry of {key!r} lacks dtype, shape or data_offsets; save it again."
        )
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{name}: {key!r} has dtype {entry['dtype']!r}, which is not known here; known are {', '.join(DTYPES)}."
        )
    begin, end = offsets
    bits = math.prod(shape) * DTYPES[entry["dtype"]][1]
    if (end - begin) * 8 != bits:
        raise CheckpointError(
            f"{name}: {key!r} of shape {shape} and dtype {entry['dtype']} takes {bits // 8} bytes, "
            f"but its offsets {begin} to {end} span {end - begin}; the file is damaged."
        )
    return begin, end


def _check_spans(spans: list[tuple[int, int, str]], available: int, name: str) -> None:
    reached = 0
    for begin, end, key in spans:
        if begin != reached:
            gap = f"leaves a gap of {begin - reached} bytes before it"
            what = "overlaps the tensor before it" if begin < reached else gap
            raise CheckpointError(
                f"{name}: {key!r} begins at byte {begin} of the data and {what} (expected {reached}); the file is "
                "damaged."
            )
        reached = end
    if reached != available:
        missing = f"{reached - available} bytes are missing (truncated)"
        what = missing if reached > available else f"{available - reached} bytes too many follow them"
        raise CheckpointError(
            f"{name}: its tensors take {reached} bytes, but {available} follow the header: {what}; copy or save it "
            "again."
        )


def _describe(shot: Snapshot, name: str, wanted: Wanted) -> Description:
    header = read_tensor_header(shot.stream, shot.size, name)
    if not header.tensors:
        raise CheckpointError(f"{name}: holds no tensors; expected a state dict, as model.state_dict() gives.")
    tensors = selected_tensors(header.tensors, wanted, name)
    # An epoch or step may be stored as a string in the metadata, or as a tensor of one element.
    known = [key for key in EPOCH_KEYS + STEP_KEYS if key in header.tensors]
    stated = [key for key in known if all(size == 1 for size in header.tensors[key].shape)]
    shot.stream.seek(0)
    loaded = read_tensors(shot.stream, shot.size, name, stated) if stated else {}
    counts = {key: loaded[key].item() for key in stated if not loaded[key].dtype.is_complex}
    numbers = first_known(numbers_in_metadata(header.metadata, name), numbers_in_object(counts, name))
    return Description(tensors, header.metadata, numbers, wanted.state_key or "")


def _load(shot: Snapshot, name: str, state_key: str) -> dict[str, torch.Tensor]:
    return below_prefix(read_tensors(shot.stream, shot.size, name), state_key)


def _has_impossible_length(head: bytes) -> bool:
    # An impossible header length, which the reader reports; its bytes occur in no text.
    return head[8:9] == b"{" and any(byte > 126 or (byte < 32 and byte not in b"\t\n\r") for byte in head[:8])


def _is_whole(head: bytes, _name: str, size: int) -> bool:
    return int.from_bytes(head[:8], "little") < size


SAFETENSORS = Format(
    kind="safetensors",
    name="safetensors",
    # The upper half of the header's length, always below 4 GiB, and its first character. Checked before the bytes that
    # resemble a pickle: a header of 1152 bytes begins as one does.
    magic=((4, b"\0\0\0\0{"),),
    suffixes=(".safetensors",),
    describe=_describe,
    load=_load,
    accepted=((".safetensors",), ""),
    usual=("model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors"),
    resembles=_has_impossible_length,
    by_suffix=lambda head: not head.lstrip().startswith((b"{", b"<")),
    is_whole=_is_whole,
)
