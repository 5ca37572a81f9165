"""Which files and folders of a run folder may be checkpoints, and which are something else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.errors import CheckpointError, InputError
from ibscan.inputs.files import content_kind, file_head, special_kind, unreadable
from ibscan.inputs.foreign import folder_kind, is_part
from ibscan.inputs.hdf5 import is_result

__all__ = ["CONVENTIONAL", "Candidate", "Found", "found_in_folder", "natural_key", "weights_file"]

CONVENTIONAL = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
)
# A file so named is meant as a checkpoint: if it cannot be used, that is said and not passed over.
CLAIMED = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".th",
    ".pt2",
    ".onnx",
    ".keras",
    ".distcp",
    ".pth.tar",
    ".pt.tar",
    ".weights.h5",
)
CLAIMED_BIN = re.compile(r"(model|checkpoint|ckpt|epoch|step|weights).*\.bin$", re.IGNORECASE)
TEMPORARY = re.compile(r"(\.tmp$|^tmp-|\.part$|\.incomplete$)", re.IGNORECASE)
BESIDE = re.compile(
    r"^(optimizer|optim|scheduler|scaler|rng[_-]?state|random_states?|training_args|train_args|args|hparams)"
    r"([-_.\d].*)?\.(pt|pth|bin|safetensors|pkl)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidate:
    """A path that may be a checkpoint, and its name relative to the series' folder.

    A name of bytes that are no UTF-8 is kept with those bytes as visible escapes: files and terminals hold no other.
    """

    path: Path
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.encode("utf-8", "backslashreplace").decode("utf-8"))


@dataclass
class Found:
    """A folder sorted: candidates, what was skipped and why, sentences, and names of what else lies there."""

    candidates: list[Candidate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 10 after 2."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() and len(part) < 400 else (1, 0, part) for part in parts if part]


def _listing(folder: Path, name: str) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    except OSError as error:
        raise InputError(unreadable(folder, name, error)) from None


def found_in_folder(folder: Path, exclude: Sequence[Path]) -> Found:
    """Sort what lies in a run folder: its files, and one level of folders that are one checkpoint each.

    Args:
        folder: The folder.
        exclude: Paths that are never checkpoints (the probe in use, the output).

    Returns:
        What was found; nothing was opened but the first bytes of regular files.

    Raises:
        InputError: The folder cannot be listed.
    """
    found = Found()
    paths = _listing(folder, str(folder))
    whole = folder_kind(paths)
    if whole:
        found.skipped[folder.name or str(folder)] = f"{folder}: {whole}"
        paths = [
            path for path in paths if path.suffix not in (".distcp", ".safetensors", ".bin") or not is_part(path, paths)
        ]
    barred = {path.resolve() for path in exclude}
    for path in paths:
        _sort(path, found, barred)
    return found


def _sort(path: Path, found: Found, barred: set[Path]) -> None:
    name = path.name
    if name == "ibscan.toml" or name.startswith("probe.") or BESIDE.match(name):
        return
    if TEMPORARY.search(name):
        found.notices.append(f"{name}: looks like an unfinished save, so it was left out.")
        return
    if name.startswith("."):
        found.others.append(name)
        return
    try:
        mode = path.stat().st_mode
        if path.resolve() in barred:
            return
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else OSError(40, "too many levels of symbolic links")
        _claim_or_pass(path, found, unreadable(path, name, reason))
        return
    words = special_kind(mode)
    if words == "a folder":
        _sort_folder(path, found)
    elif words:
        _claim_or_pass(path, found, f"{name}: is {words}, but a regular file was expected; it was not opened.")
    elif is_claimed(name) or _is_recognised(path, name):
        if not (name.endswith((".h5", ".hdf5")) and is_result(path)):
            found.candidates.append(Candidate(path, name))
    elif not is_result(path):
        found.others.append(name)


def _claim_or_pass(path: Path, found: Found, sentence: str) -> None:
    if is_claimed(path.name):
        found.skipped[path.name] = sentence
    else:
        found.others.append(path.name)


def is_claimed(name: str) -> bool:
    """Tell whether a name says that the file is meant as a checkpoint."""
    return name.lower().endswith(CLAIMED) or bool(CLAIMED_BIN.search(name))


def _is_recognised(path: Path, name: str) -> bool:
    """Tell whether the content of a file with no telling name is a checkpoint."""
    try:
        head = file_head(path)
    except OSError:
        return False
    kind = content_kind(head)
    if kind == "zip":
        return b"/data.pkl" in head and not name.endswith(".npz")
    # The first pickle of torch's legacy format is one known number.
    if kind == "safetensors":
        return int.from_bytes(head[:8], "little") < path.stat().st_size
    return kind == "pickle" and head[2:15] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


def _sort_folder(path: Path, found: Found) -> None:
    if path.name.endswith(".parts"):
        return
    try:
        inside = weights_inside(path)
    except InputError as error:
        found.skipped[path.name] = str(error)
        return
    sentence = folder_kind(_listing(path, path.name))
    if sentence:
        found.skipped[path.name] = f"{path.name}: {sentence}"
    elif len(inside) == 1:
        found.candidates.append(Candidate(inside[0], f"{path.name}/{inside[0].name}"))
    elif inside and all(file.name in CONVENTIONAL for file in inside):
        found.skipped[path.name] = _several(path.name, inside)
    elif inside:
        found.notices.append(
            f"{path.name}: holds {len(inside)} checkpoints, a series of its own, so it was left out; scan it by itself."
        )
    else:
        found.others.append(f"{path.name}/")


def weights_inside(folder: Path) -> list[Path]:
    """Return the files in a folder that may be its weights: never optimizer, rng or argument files."""
    inner = Found()
    for path in _listing(folder, folder.name):
        if not path.is_dir():
            _sort(path, inner, set())
    named = [one.path for one in inner.candidates] + [folder / name for name in inner.skipped]
    return sorted(named, key=lambda path: natural_key(path.name))


def _several(name: str, inside: Sequence[Path]) -> str:
    listed = ", ".join(path.name for path in inside[:4])
    return f"{name}: holds several files of weights ({listed}), and one was expected; give the one meant by its path."


def weights_file(folder: Path, name: str) -> Path:
    """Return the one file of weights in a folder that is one checkpoint.

    Args:
        folder: The folder.
        name: What to call it in a message.

    Returns:
        The file.

    Raises:
        CheckpointError: None, several, or a kind of checkpoint that is not read yet.
        InputError: The folder cannot be listed.
    """
    sentence = folder_kind(_listing(folder, name))
    if sentence:
        raise CheckpointError(f"{name}: {sentence}")
    inside = weights_inside(folder)
    if not inside:
        raise CheckpointError(
            f"{name}: is a folder without a checkpoint in it; expected one .safetensors, .pt, .pth, .ckpt or .bin."
        )
    if len(inside) > 1:
        raise CheckpointError(_several(name, inside))
    return inside[0]
