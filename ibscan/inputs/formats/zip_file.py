"""Check zip archives of torch.save and numpy before anything in them is read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping

from ibscan.errors import CheckpointError
from ibscan.inputs.files import Snapshot

__all__ = ["SAVE_AGAIN", "check_directory", "checked_zip"]

MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_PICKLE_BYTES = 64 << 20
# The zip64 locator alone, and with the record before it.
ZIP64_LOCATOR_BYTES, ZIP64_BYTES = 20, 76
SAVE_AGAIN = "save a single .safetensors file, or torch.save(model.state_dict(), ...)"


def checked_zip(shot: Snapshot, name: str) -> tuple[bytes, dict[str, int]]:
    """Check every entry of a zip archive of torch.save; return its pickle, and the size of every stored block by key.

    Raises:
        CheckpointError: Damaged, truncated, compressed, or an archive of another kind.
    """
    check_directory(shot, name)
    # The boundary to a foreign reader: a damaged zip makes zipfile raise nearly anything.
    try:
        with zipfile.ZipFile(shot.stream) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            # torch ignores case: of data.pkl and DATA.PKL it might read the one that was not checked.
            if len({entry.lower() for entry in entries}) < len(archive.infolist()):
                raise CheckpointError(f"{name}: holds a zip entry twice under one name; save it again.")
            root = _root(entries, name)
            _check_entries(entries, shot.size, name)
            broken = archive.testzip()
            if broken is not None:
                raise CheckpointError(
                    f"{name}: the checksum (CRC) of {broken} does not hold, so its bytes are damaged; copy it again."
                )
            blocks = f"{root}data/"
            sizes = {key.removeprefix(blocks): one.file_size for key, one in entries.items() if key.startswith(blocks)}
            return archive.read(f"{root}data.pkl"), sizes
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile raises BadZipFile, RuntimeError, struct.error, EOFError, OSError, ...
        raise CheckpointError(
            f"{name}: is a damaged or truncated zip archive ({error}); copy or save it again."
        ) from None


def check_directory(shot: Snapshot, name: str) -> None:
    """Refuse a zip archive with too many entries or a misplaced directory, before its entries are listed."""
    start = max(0, shot.size - (1 << 16) - 128)
    shot.stream.seek(start)
    tail = shot.stream.read()
    shot.stream.seek(0)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise CheckpointError(
            f"{name}: is a truncated zip archive (its directory at the end is missing); copy or save it again."
        )
    count, size, offset = struct.unpack("<HII", tail[end + 10 : end + 20])
    # The zip64 record and its locator stand just before the end record, if anywhere.
    record = end - ZIP64_BYTES
    if record >= 0 and tail[end - ZIP64_LOCATOR_BYTES : end].startswith(b"PK\x06\x07"):
        count, size, offset = struct.unpack("<QQQ", tail[record + 32 : record + 56])
    else:
        record = end
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{name}: its zip directory lists {count} entries in {size} bytes, far beyond a checkpoint; refused."
        )
    if start + record != offset + size:
        # zipfile and torch may then find different directories, and load other entries than were checked.
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
        # A deflated entry of 195 KB inflated to 200 MB.
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
