"""Files written by torch.save, zip and legacy: checked and listed before torch itself reads them."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch

from ibscan.errors import CheckpointError
from ibscan.inputs.described import NUMPY_ARRAYS, NUMPY_SCALARS, Storage, StoredTensor
from ibscan.inputs.files import Snapshot
from ibscan.inputs.pickles import BrokenPickle, PickleReading, read_pickle

__all__ = ["check_directory", "load_archive", "read_archive", "stored_element"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_PICKLE_BYTES = 64 << 20
# The locator alone, and with the record before it.
WIDE_LOCATOR_BYTES, WIDE_RECORD_BYTES = 20, 76
# Set to anything that means yes, both together, they make torch refuse every file.
SWITCHES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
SWITCHED = threading.Lock()
SAVE_AGAIN = "save a single .safetensors file, or torch.save(model.state_dict(), ...)"


def read_archive(shot: Snapshot, name: str, kind: str) -> PickleReading:
    """List what a torch file holds, after every check that can be made without loading it.

    Args:
        shot: The file.
        name: What to call it in a message.
        kind: `zip` or `pickle`, as its first bytes say.

    Returns:
        The described object, with nothing unsafe in it.

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
    check_directory(shot, name)
    # The boundary to a foreign reader: a damaged zip makes zipfile raise nearly anything.
    try:
        with zipfile.ZipFile(shot.stream) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            # torch looks entries up without regard to case, so of data.pkl and DATA.PKL it might read the other one.
            if len({entry.lower() for entry in entries}) < len(archive.infolist()):
                raise CheckpointError(f"{name}: holds a zip entry twice under one name; save it again.")
            root = _root(entries, name)
            _check_entries(entries, shot.size, name)
            broken = archive.testzip()
            if broken is not None:
                raise CheckpointError(
                    f"{name}: the checksum (CRC) of {broken} does not hold, so its bytes are damaged; copy it again."
                )
            pickled = archive.read(f"{root}data.pkl")
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile raises BadZipFile, RuntimeError, struct.error, EOFError, OSError, ...
        raise CheckpointError(
            f"{name}: is a damaged or truncated zip archive ({error}); copy or save it again."
        ) from None
    reading = read_pickle(io.BytesIO(pickled))
    _refuse_unsafe(reading, name)
    for storage in reading.storages.values():
        _check_record(storage, entries.get(f"{root}data/{storage.key}"), name)
    return reading


def check_directory(shot: Snapshot, name: str) -> None:
    """Read the number of entries from the end of the file, before anything builds a list of them."""
    start = max(0, shot.size - (1 << 16) - 128)
    shot.stream.seek(start)
    tail = shot.stream.read()
    shot.stream.seek(0)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + 22 > len(tail):
        raise CheckpointError(
            f"{name}: is a truncated zip archive (its directory at the end is missing); copy or save it again."
        )
    count, size, offset = struct.unpack("<HII", tail[place + 10 : place + 20])
    # The wide record and its locator, where there are any, stand just before: a reader looks nowhere else.
    wide = place - WIDE_RECORD_BYTES
    if wide >= 0 and tail[place - WIDE_LOCATOR_BYTES : place].startswith(b"PK\x06\x07"):
        count, size, offset = struct.unpack("<QQQ", tail[wide + 32 : wide + 56])
    else:
        wide = place
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{name}: its zip directory lists {count} entries in {size} bytes, far beyond a checkpoint; refused."
        )
    if start + wide != offset + size:
        # Readers differ in where they then look for the directory, so what was checked need not be what is loaded.
        raise CheckpointError(
            f"{name}: is a damaged zip archive (its directory does not stand where the end says, or bytes were put "
            "before it); copy or save it again."
        )


def _root(entries: Mapping[str, zipfile.ZipInfo], name: str) -> str:
    roots = [entry.removesuffix("data.pkl") for entry in entries if entry == "data.pkl" or entry.endswith("/data.pkl")]
    tails = {entry.partition("/")[2] or entry for entry in entries}
    if "constants.pkl" in tails or any(tail.startswith("code/") for tail in tails):
        raise CheckpointError(
            f"{name}: is a TorchScript archive, which carries code and is not read; where you trust it, "
            'torch.save(torch.jit.load(FILE).state_dict(), "FILE.pt").'
        )
    if any(
        tail.endswith(("model.json", "serialized_exported_program.json")) or "archive_format" in tail for tail in tails
    ):
        raise CheckpointError(
            f"{name}: is an exported program (.pt2), which is not read; where you trust it, "
            'torch.save(torch.export.load(FILE).state_dict, "FILE.pt").'
        )
    if "model.weights.h5" in entries or ("config.json" in entries and "metadata.json" in entries):
        raise CheckpointError(
            f"{name}: is a Keras archive, which is not read; save its arrays under the names of the torch model "
            "with safetensors.numpy.save_file."
        )
    if entries and all(entry.endswith(".npy") for entry in entries):
        raise CheckpointError(
            f"{name}: is a numpy archive (.npz), which is no checkpoint here; save a single .safetensors file."
        )
    if len(roots) != 1:
        raise CheckpointError(f"{name}: is a zip archive without the data.pkl of torch.save; {SAVE_AGAIN}.")
    return roots[0]


def _check_entries(entries: Mapping[str, zipfile.ZipInfo], size: int, name: str) -> None:
    for entry in entries.values():
        # torch never compresses; a deflated entry of 195 KB inflated to 200 MB.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{name}: its entry {entry.filename} is compressed, which torch.save never does; refused."
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{name}: its data.pkl takes {entry.file_size} bytes, far beyond a state dict; refused."
            )
    total = sum(entry.file_size for entry in entries.values())
    if total > size:
        raise CheckpointError(f"{name}: its entries declare {total} bytes, but the file has {size}; refused.")


def _check_record(storage: Storage, entry: zipfile.ZipInfo | None, name: str) -> None:
    wanted = storage.elements * storage.itemsize
    if entry is None or entry.file_size != wanted:
        found = "is missing" if entry is None else f"has {entry.file_size}"
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
    """Return the number in a tensor of one element without loading anything else, or None where it holds no number.

    Args:
        shot: The file.
        reading: As `read_archive` returned it.
        tensor: Of that reading, of one element.
    """
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
            place = next(one for one in archive.namelist() if one.endswith("data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{place}data/{key}") as block:
                block.seek(start)
                raw = block.read(size)
    number = torch.frombuffer(bytearray(raw), dtype=dtype).item() if len(raw) == size else None
    return number if isinstance(number, int | float) else None


def _refuse_unsafe(reading: PickleReading, name: str) -> None:
    if not reading.unsafe:
        return
    listed = ", ".join(reading.unsafe[:3]) + (f" and {len(reading.unsafe) - 3} more" if len(reading.unsafe) > 3 else "")
    if any(found.startswith("torch.nn.modules") for found in reading.unsafe):
        raise CheckpointError(
            f"{name}: holds a whole pickled module ({listed}), which is code and was not run; {SAVE_AGAIN}."
        )
    raise CheckpointError(
        f"{name}: its pickle would call {listed}, which is not plain data and was not run; {SAVE_AGAIN}."
    )


def load_archive(source: BinaryIO, name: str) -> Any:  # noqa: ANN401 - whatever was saved
    """Load a torch file that `read_archive` found safe, with torch's own safe reader.

    Args:
        source: The file, from its start.
        name: What to call it in a message.

    Returns:
        The object saved, its tensors on the CPU.

    Raises:
        CheckpointError: torch does not read it after all.
    """
    # The boundary to a foreign reader: what torch.load raises on a damaged file is not a closed list.
    try:
        with _one_switch(), torch.serialization.safe_globals(_plain_data()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name}: torch's safe reader refuses it ({_first_line(error)}); {SAVE_AGAIN}.") from None
    except Exception as error:  # noqa: BLE001 - see above
        raise CheckpointError(f"{name}: torch cannot read it ({_first_line(error)}); copy or save it again.") from None


@contextlib.contextmanager
def _one_switch() -> Iterator[None]:
    """Take the unsafe one of torch's two switches away where both are set: the safe one is what holds here."""
    safe, unsafe_name = SWITCHES
    if safe not in os.environ:
        yield
        return
    # What one thread puts back must not come between another's check and its load.
    with SWITCHED:
        unsafe = os.environ.pop(unsafe_name, None)
        try:
            yield
        finally:
            if unsafe is not None:
                os.environ[unsafe_name] = unsafe


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _plain_data() -> list[Any]:
    scalar, rebuilt = np.dtype("f8").type(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    named: list[Any] = [(scalar, name) for name in NUMPY_SCALARS] + [(rebuilt, name) for name in NUMPY_ARRAYS]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"}
    return [*named, np.dtype, np.ndarray, *kinds, argparse.Namespace]
