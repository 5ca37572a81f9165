"""Read files of torch.save, zip and legacy: check them in full before torch itself reads them."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ibscan.core.records import TensorInfo
from ibscan.core.text import first_line, listed
from ibscan.errors import CheckpointError
from ibscan.inputs.files import Snapshot
from ibscan.inputs.folder.numbers import numbers_in_object
from ibscan.inputs.formats.format import Description, Format, Wanted
from ibscan.inputs.formats.nested import numbers_beside
from ibscan.inputs.formats.pickle_objects import (
    NUMPY_ARRAYS,
    NUMPY_SCALARS,
    Storage,
    StoredTensor,
    check_tensor,
    plain_number,
    stated_number,
)
from ibscan.inputs.formats.pickle_reader import BrokenPickle, PickleReading, read_pickle
from ibscan.inputs.formats.state_dict import chosen_set, is_tensor
from ibscan.inputs.formats.zip_file import SAVE_AGAIN, checked_zip

if TYPE_CHECKING:
    import torch

__all__ = ["TORCH_LEGACY", "TORCH_ZIP", "load_archive", "read_archive", "stored_element"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The first pickle of a legacy file is this one number.
LEGACY_PICKLE = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
LONGEST_METADATA = 10_000
# If both are true, torch refuses every file.
SWITCHES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
ENVIRONMENT_LOCK = threading.Lock()


def read_archive(shot: Snapshot, name: str, kind: str) -> PickleReading:
    """Describe the object in a torch file (`kind`: zip or pickle), after all checks possible without loading it.

    Raises:
        CheckpointError: Damaged, unsafe, compressed, or no state dict.
    """
    try:
        reading = _read_zip(shot, name) if kind == "zip" else _read_legacy(shot, name)
    except BrokenPickle as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged or hostile, copy or save it again.") from None
    if reading.later_protocol:
        raise CheckpointError(
            f"{name}: was saved with a pickle protocol above 2, which torch's safe reader does not take; "
            "save it again with torch.save's own default."
        )
    return reading


def _read_zip(shot: Snapshot, name: str) -> PickleReading:
    pickled, sizes = checked_zip(shot, name)
    reading = read_pickle(io.BytesIO(pickled))
    _refuse_unsafe(reading, name)
    for storage in reading.storages.values():
        _check_record(storage, sizes.get(storage.key), name)
    return reading


def _check_record(storage: Storage, size: int | None, name: str) -> None:
    wanted = storage.elements * storage.itemsize
    if size != wanted:
        found = "is missing" if size is None else f"has {size}"
        raise CheckpointError(
            f"{name}: stored block {storage.key} should have {wanted} bytes and {found}; save it again."
        )


def _read_legacy(shot: Snapshot, name: str) -> PickleReading:
    stream = shot.stream
    first = read_pickle(stream)
    if first.value != LEGACY_MAGIC:
        _refuse_unsafe(first, name)
        raise CheckpointError(f"{name}: is a plain pickle, not a file of torch.save; {SAVE_AGAIN}.")
    for _ in ("protocol", "system"):
        _refuse_unsafe(read_pickle(stream), name)
    reading = read_pickle(stream)
    _refuse_unsafe(reading, name)
    keys = read_pickle(stream)
    _refuse_unsafe(keys, name)
    named = isinstance(keys.value, list) and all(isinstance(key, str) for key in keys.value)
    if not named or not set(keys.value) <= set(reading.storages):
        raise BrokenPickle("the list of stored blocks does not match the tensors")
    for key in keys.value:
        _check_block(stream, reading.storages[key], shot.size, name)
        reading.blocks[key] = stream.tell() - reading.storages[key].elements * reading.storages[key].itemsize
    if len(keys.value) != len(reading.storages):
        raise BrokenPickle("some tensors have no stored block")
    return reading


def _check_block(stream: BinaryIO, storage: Storage, size: int, name: str) -> None:
    begin = stream.read(8)
    wanted = storage.elements * storage.itemsize
    left = size - stream.tell()
    if len(begin) < 8 or wanted > left:
        raise CheckpointError(
            f"{name}: is truncated: block {storage.key} takes {wanted} bytes, {max(left, 0)} are left; copy it again."
        )
    if struct.unpack("<q", begin)[0] * (1 if storage.dtype == "uint8" else storage.itemsize) != wanted:
        raise CheckpointError(
            f"{name}: block {storage.key} states another length than its tensor; the file is damaged."
        )
    stream.seek(wanted, io.SEEK_CUR)


def stored_element(shot: Snapshot, reading: PickleReading, tensor: StoredTensor) -> int | float | None:
    """Return the number in a tensor of one element without loading others, or None for bool and complex."""
    import torch

    dtype = getattr(torch, tensor.dtype, None) if tensor.kind == "dense" else None
    if tensor.storage is None or not isinstance(dtype, torch.dtype) or dtype is torch.bool or dtype.is_complex:
        return None
    size, start = dtype.itemsize, tensor.offset * dtype.itemsize
    if not 0 <= start <= tensor.storage.elements * tensor.storage.itemsize - size:
        return None
    key = tensor.storage.key
    if key in reading.blocks:
        shot.stream.seek(reading.blocks[key] + start)
        raw = shot.stream.read(size)
    else:
        shot.stream.seek(0)
        with zipfile.ZipFile(shot.stream) as archive:
            root = next(one for one in archive.namelist() if one.endswith("data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{root}data/{key}") as block:
                block.seek(start)
                raw = block.read(size)
    number = torch.frombuffer(bytearray(raw), dtype=dtype).item() if len(raw) == size else None
    return number if isinstance(number, int | float) else None


def _refuse_unsafe(reading: PickleReading, name: str) -> None:
    if not reading.unsafe:
        return
    names = listed(reading.unsafe, 3)
    if any(found.startswith("torch.nn.modules") for found in reading.unsafe):
        raise CheckpointError(
            f"{name}: holds a whole pickled module ({names}), which is code and was not run; {SAVE_AGAIN}.",
            lines=(
                "Where its class can be imported, Python saves the weights alone (which runs code of the files: "
                "they must be your own):",
                "  import pathlib",
                "  from torch import load, save",
                '  pathlib.Path("weights").mkdir()',
                f"  for f in pathlib.Path().glob({'*' + PurePath(name).suffix!r}):",
                '      save(load(f, weights_only=False).state_dict(), f"weights/{f.name}")',
            ),
        )
    raise CheckpointError(
        f"{name}: its pickle would call {names}, which is not plain data and was not run; {SAVE_AGAIN}."
    )


def load_archive(source: BinaryIO, name: str) -> Any:  # noqa: ANN401 - whatever was saved
    """Load a torch file that `read_archive` found safe on the CPU, with torch's own safe reader.

    Raises:
        CheckpointError: torch cannot read it.
    """
    import torch

    # The boundary to a foreign reader: torch.load raises any exception on a damaged file.
    try:
        with _safe_switch_alone(), torch.serialization.safe_globals(_safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name}: torch's safe reader refuses it ({first_line(error, 200)}); {SAVE_AGAIN}."
        ) from None
    except Exception as error:  # noqa: BLE001 - see above
        raise CheckpointError(
            f"{name}: torch cannot read it ({first_line(error, 200)}); copy or save it again."
        ) from None


@contextlib.contextmanager
def _safe_switch_alone() -> Iterator[None]:
    """Unset torch's unsafe environment variable where the safe one is set too; afterwards put it back."""
    safe, unsafe_name = SWITCHES
    if safe not in os.environ:
        yield
        return
    # One thread at a time: os.environ is shared.
    with ENVIRONMENT_LOCK:
        unsafe = os.environ.pop(unsafe_name, None)
        try:
            yield
        finally:
            if unsafe is not None:
                os.environ[unsafe_name] = unsafe


def _safe_globals() -> list[Any]:
    scalar, rebuilt = np.dtype("f8").type(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    named: list[Any] = [(scalar, name) for name in NUMPY_SCALARS] + [(rebuilt, name) for name in NUMPY_ARRAYS]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"}
    return [*named, np.dtype, np.ndarray, *kinds, argparse.Namespace]


def _describe(kind: str, shot: Snapshot, name: str, wanted: Wanted) -> Description:
    reading = read_archive(shot, name, kind)
    tree = reading.value
    if is_tensor(tree):
        raise CheckpointError(f"{name}: holds one bare tensor; expected a state dict, as model.state_dict() gives.")
    key, tensors = chosen_set(tree, name, wanted)
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

    stated = numbers_beside(tree, key, lambda value: stated_number(value, element))
    return Description(infos, metadata, numbers_in_object(stated, name), key)


def _load(shot: Snapshot, name: str, state_key: str) -> dict[str, torch.Tensor]:
    return chosen_set(load_archive(shot.stream, name), name, Wanted(state_key))[1]


def _is_pickle(head: bytes) -> bool:
    return head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5


TORCH_ZIP = Format(
    kind="zip",
    name="torch zip",
    magic=((0, b"PK\x03\x04"), (0, b"PK\x05\x06")),
    suffixes=(".pt", ".pth", ".ckpt", ".th", ".pth.tar", ".pt.tar"),
    describe=partial(_describe, "zip"),
    load=_load,
    accepted=((".pt", ".pth", ".ckpt", ".bin"), " of torch.save"),
    usual=("pytorch_model.bin", "adapter_model.bin"),
    claims=re.compile(r"(model|checkpoint|ckpt|epoch|step|weights).*\.bin$", re.IGNORECASE),
    is_whole=lambda head, name, _: b"/data.pkl" in head and not name.endswith(".npz"),
)
TORCH_LEGACY = Format(
    kind="pickle",
    name="torch legacy",
    magic=((2, LEGACY_PICKLE),),
    suffixes=TORCH_ZIP.suffixes,
    describe=partial(_describe, "pickle"),
    load=_load,
    # Any pickle: the reader has a message for those that torch.save did not write.
    resembles=_is_pickle,
    is_whole=lambda head, _name, _size: head[2:14] == LEGACY_PICKLE,
)
