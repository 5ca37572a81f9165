"""Find the files and folders of a run folder that may be checkpoints, and say what was left out and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.core.text import natural
from ibscan.errors import CheckpointError, InputError
from ibscan.inputs.files import special_kind, unreadable
from ibscan.inputs.folder.numbers import has_labelled_number
from ibscan.inputs.folder.shards import SHARD, is_index, named_files
from ibscan.inputs.folder.unsupported import folder_kind
from ibscan.inputs.formats.recognise import is_claimed, is_conventional, is_recognised, usual_suffixes
from ibscan.inputs.probes.hdf5 import is_result

__all__ = [
    "BESIDE",
    "TEMPORARY",
    "TRAINER",
    "Candidate",
    "Found",
    "found_in_folder",
    "weights_file",
]

TEMPORARY = re.compile(r"(\.tmp$|^tmp-|\.part$|\.incomplete$)", re.IGNORECASE)
# Other files that trainers save beside the weights; they are never opened.
BESIDE = re.compile(
    r"^((optimizer|optim|lr_scheduler|scheduler|scaler|sampler|dl_state_dict|rng[_-]?state|random_states?|trainer_state|"
    r"training_args|train_args|args|hparams|custom_checkpoint)([-_.\d].*)?|.*_optim_states)\.(pt|pth|bin|safetensors|pkl)$",
    re.IGNORECASE,
)
TRAINER = "trainer_state.json"


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
    """A folder sorted: candidates, what was skipped and why, sentences, and names of what else lies there.

    `refused` says why the folder as a whole cannot be read, where it is one checkpoint of another kind.
    """

    candidates: list[Candidate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: str = ""


def _listing(folder: Path, name: str) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise InputError(unreadable(folder, name, error)) from None


def found_in_folder(folder: Path, exclude: Sequence[Path], matches: Callable[[str], bool] | None = None) -> Found:
    """Sort what lies in a run folder: its files, and one level of folders that are one checkpoint each.

    Args:
        folder: The folder.
        exclude: Paths that are never checkpoints (the probe in use, the output).
        matches: Whether the series' own pattern knows a name such as `kl=0.1/last.ckpt`; of a folder of several
            checkpoints those are taken.

    Returns:
        What was found; nothing was opened but the first bytes of regular files, and the indexes of shards.

    Raises:
        InputError: The folder cannot be listed.
    """
    found = _files(
        _listing(folder, str(folder)),
        {path.resolve() for path in exclude},
        lambda path, found: _sort_folder(path, found, matches),
    )
    if found.refused:
        found.skipped[folder.name or str(folder)] = f"{folder}: {found.refused}"
    return found


def _files(paths: Sequence[Path], barred: set[Path], nested: Callable[[Path, Found], None] | None = None) -> Found:
    """Sort what lies in one folder; folders in it are for `nested` to sort."""
    names = {path.name for path in paths}
    refused, parts = folder_kind(names)
    found = Found(refused=refused)
    shards = {file for path in paths if is_index(path.name) for file in named_files(path)}
    stray = [path.name for path in paths if SHARD.search(path.name) and path not in shards]
    if stray and any(is_index(name) for name in names):
        found.notices.append(f"{', '.join(stray[:3])}: no index beside it names this shard, so it was left out.")
    elif stray and not refused:
        found.refused = "holds shards of a sharded checkpoint without the .index.json that names them; copy it whole."
    for path in paths:
        if path in shards or path.name in stray or (parts is not None and parts.match(path.name)):
            continue
        # In a folder of the HF Trainer weights have usual names, so nothing is recognised by content.
        _sort(path, found, barred, nested, sniffed=TRAINER not in names)
    return found


def _sort(
    path: Path, found: Found, barred: set[Path], nested: Callable[[Path, Found], None] | None, *, sniffed: bool
) -> None:
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
        if nested is not None:
            nested(path, found)
    elif words:
        _claim_or_pass(path, found, f"{name}: is {words}, but a regular file was expected; it was not opened.")
    elif is_claimed(name) or (sniffed and is_recognised(path, name)):
        if not (name.endswith((".h5", ".hdf5")) and is_result(path)):
            found.candidates.append(Candidate(path, name))
    elif not (sniffed and is_result(path)):
        found.others.append(name)


def _claim_or_pass(path: Path, found: Found, sentence: str) -> None:
    if is_claimed(path.name):
        found.skipped[path.name] = sentence
    else:
        found.others.append(path.name)


def _sort_folder(path: Path, found: Found, matches: Callable[[str], bool] | None) -> None:
    if path.name.endswith(".parts"):
        return
    try:
        refused, inside = _inside(path, path.name)
    except InputError as error:
        found.skipped[path.name] = str(error)
        return
    picked = [file for file in inside if matches is not None and matches(f"{path.name}/{file.name}")]
    if refused:
        found.skipped[path.name] = f"{path.name}: {refused}"
    elif len(inside) == 1 or picked:
        found.candidates += [Candidate(file, f"{path.name}/{file.name}") for file in picked or inside]
    elif inside and all(is_conventional(file.name) for file in inside):
        found.skipped[path.name] = _several(path.name, inside)
    elif inside:
        found.notices.append(
            f"{path.name}: holds {len(inside)} checkpoints, a series of its own, so it was left out; scan it by "
            "itself, or pick one of each folder with a pattern under [series] in ibscan.toml."
        )
    else:
        reason = _why_empty(path)
        if reason:
            found.notices.append(f"{path.name}: was left out: it {reason}.")
        else:
            found.others.append(f"{path.name}/")


def _why_empty(folder: Path) -> str:
    """Return why a folder that seems meant as a checkpoint is none, or the empty string where it is another thing."""
    paths = [path for path in _listing(folder, folder.name) if not path.name.startswith(".")]
    unfinished = next((path.name for path in paths if TEMPORARY.search(path.name)), "")
    if unfinished:
        return f"holds {unfinished}, which looks like an unfinished save, and no weights"
    if any(path.name == "adapter_config.json" for path in paths):
        return "holds the config of an adapter without its weights"
    for inner in (path for path in paths if path.is_dir()):
        if any(is_claimed(path.name) and not BESIDE.match(path.name) for path in _listing(inner, inner.name)):
            return f"holds weights in {inner.name}/ alone; scan that folder, or give its files by their paths"
    saw = ", ".join(path.name for path in paths[:4]) or "nothing"
    return f"is called like a checkpoint and holds no weights (saw {saw})" if has_labelled_number(folder.name) else ""


def _inside(folder: Path, name: str) -> tuple[str, list[Path]]:
    """Return why a folder is no checkpoint here, if so, and the files that may be its weights, unreadable ones too."""
    paths = _listing(folder, name)
    inner = _files(paths, set())
    inside = [one.path for one in inner.candidates] + [folder / file for file in inner.skipped]
    inside.sort(key=lambda path: natural(path.name))
    usual = [path for path in inside if is_conventional(path.name)]
    trainer = any(path.name == TRAINER for path in paths)
    if trainer and not inside and not inner.refused:
        return (
            "is a trainer's folder without its weights in a file beside trainer_state.json; those that FSDP or "
            "DeepSpeed left in parts are not read, merge them with `accelerate merge-weights` or zero_to_fp32.py."
        ), []
    return inner.refused, usual if trainer and usual else inside


def _several(name: str, inside: Sequence[Path]) -> str:
    listed = ", ".join(path.name for path in inside[:4])
    return f"{name}: holds several files of weights ({listed}), and one was expected; give the one meant by its path."


def weights_file(folder: Path, name: str) -> Path:
    """Return the one file of weights in a folder that is one checkpoint.

    Raises:
        CheckpointError: None, several, or a kind of checkpoint that is not read.
        InputError: The folder cannot be listed.
    """
    refused, inside = _inside(folder, name)
    if refused:
        raise CheckpointError(f"{name}: {refused}")
    if not inside:
        raise CheckpointError(f"{name}: is a folder without a checkpoint in it; expected one {usual_suffixes()}.")
    if len(inside) > 1:
        raise CheckpointError(_several(name, inside))
    return inside[0]
