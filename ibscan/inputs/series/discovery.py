"""Find the files and folders of a run folder that may be checkpoints, with reasons for those left out."""

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

__all__ = ["BESIDE", "TEMPORARY", "TRAINER", "Candidate", "Found", "found_in_folder", "weights_file"]

TEMPORARY = re.compile(r"(\.tmp$|^tmp-|\.part$|\.incomplete$)", re.IGNORECASE)
# Other files that trainers save beside the weights: never opened.
BESIDE = re.compile(
    r"^((optimizer|optim|lr_scheduler|scheduler|scaler|sampler|dl_state_dict|rng[_-]?state|random_states?|trainer_state|"
    r"training_args|train_args|args|hparams|custom_checkpoint)([-_.\d].*)?|.*_optim_states)\.(pt|pth|bin|safetensors|pkl)$",
    re.IGNORECASE,
)
TRAINER = "trainer_state.json"


@dataclass(frozen=True)
class Candidate:
    """A path that may be a checkpoint, and its name relative to the series' folder; bytes beyond UTF-8 are escaped."""

    path: Path
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.encode("utf-8", "backslashreplace").decode("utf-8"))


@dataclass
class Found:
    """The sorted contents of a folder: candidates, reasons by skipped name, notices, and names of other entries.

    `refusal` is the reason if the folder as a whole is one checkpoint that cannot be read.
    """

    candidates: list[Candidate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refusal: str = ""


def _listing(folder: Path, name: str) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise InputError(unreadable(folder, name, error)) from None


def found_in_folder(folder: Path, exclude: Sequence[Path], matches: Callable[[str], bool] | None = None) -> Found:
    """Sort the entries of a run folder: its files, and one level of folders that are one checkpoint each.

    Only first bytes of regular files, and indexes of shards, are read. Paths in `exclude` (the probe in use, the
    output) are no checkpoints. A folder of several checkpoints counts with those whose name, such as
    `kl=0.1/last.ckpt`, `matches`.

    Raises:
        InputError: The folder cannot be listed.
    """
    found = _sorted_paths(
        _listing(folder, str(folder)),
        {path.resolve() for path in exclude},
        lambda path, found: _sort_folder(path, found, matches),
    )
    if found.refusal:
        found.skipped[folder.name or str(folder)] = f"{folder}: {found.refusal}"
    return found


def _sorted_paths(
    paths: Sequence[Path], excluded: set[Path], nested: Callable[[Path, Found], None] | None = None
) -> Found:
    """Sort the entries of one folder, and call `nested` on folders in it."""
    names = {path.name for path in paths}
    refusal, parts = folder_kind(names)
    found = Found(refusal=refusal)
    shards = {file for path in paths if is_index(path.name) for file in named_files(path)}
    unindexed = [path.name for path in paths if SHARD.search(path.name) and path not in shards]
    if unindexed and any(is_index(name) for name in names):
        found.notices.append(f"{', '.join(unindexed[:3])}: no index beside it names this shard, so it was left out.")
    elif unindexed and not refusal:
        found.refusal = "holds shards of a sharded checkpoint without the .index.json that names them; copy it whole."
    for path in paths:
        if path in shards or path.name in unindexed or (parts is not None and parts.match(path.name)):
            continue
        # The HF Trainer gives weights usual names: recognise nothing by content beside its state.
        _sort(path, found, excluded, nested, by_content=TRAINER not in names)
    return found


def _sort(
    path: Path, found: Found, excluded: set[Path], nested: Callable[[Path, Found], None] | None, *, by_content: bool
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
        if path.resolve() in excluded:
            return
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else OSError(40, "too many levels of symbolic links")
        _skip_or_pass(path, found, unreadable(path, name, reason))
        return
    kind = special_kind(mode)
    if kind == "a folder":
        if nested is not None:
            nested(path, found)
    elif kind:
        _skip_or_pass(path, found, f"{name}: is {kind}, but a regular file was expected; it was not opened.")
    elif is_claimed(name) or (by_content and is_recognised(path, name)):
        if not (name.endswith((".h5", ".hdf5")) and is_result(path)):
            found.candidates.append(Candidate(path, name))
    elif not (by_content and is_result(path)):
        found.others.append(name)


def _skip_or_pass(path: Path, found: Found, sentence: str) -> None:
    if is_claimed(path.name):
        found.skipped[path.name] = sentence
    else:
        found.others.append(path.name)


def _sort_folder(path: Path, found: Found, matches: Callable[[str], bool] | None) -> None:
    if path.name.endswith(".parts"):
        return
    try:
        refusal, weights = _weights_inside(path, path.name)
    except InputError as error:
        found.skipped[path.name] = str(error)
        return
    matching = [file for file in weights if matches is not None and matches(f"{path.name}/{file.name}")]
    if refusal:
        found.skipped[path.name] = f"{path.name}: {refusal}"
    elif len(weights) == 1 or matching:
        found.candidates += [Candidate(file, f"{path.name}/{file.name}") for file in matching or weights]
    elif weights and all(is_conventional(file.name) for file in weights):
        found.skipped[path.name] = _several_weights(path.name, weights)
    elif weights:
        found.notices.append(
            f"{path.name}: holds {len(weights)} checkpoints, a series of its own, so it was left out; scan it by "
            "itself, or pick one of each folder with a pattern under [series] in ibscan.toml."
        )
    else:
        reason = _reason_without_weights(path)
        if reason:
            found.notices.append(f"{path.name}: was left out: it {reason}.")
        else:
            found.others.append(f"{path.name}/")


def _reason_without_weights(folder: Path) -> str:
    """Return why a folder that seems meant as a checkpoint holds none, or the empty string for another folder."""
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


def _weights_inside(folder: Path, name: str) -> tuple[str, list[Path]]:
    """Return why a folder is refused, or "", and the files that may be its weights, unreadable ones too."""
    paths = _listing(folder, name)
    inner = _sorted_paths(paths, set())
    weights = [one.path for one in inner.candidates] + [folder / file for file in inner.skipped]
    weights.sort(key=lambda path: natural(path.name))
    usual = [path for path in weights if is_conventional(path.name)]
    trainer = any(path.name == TRAINER for path in paths)
    if trainer and not weights and not inner.refusal:
        return (
            "is a trainer's folder without its weights in a file beside trainer_state.json; those that FSDP or "
            "DeepSpeed left in parts are not read, merge them with `accelerate merge-weights` or zero_to_fp32.py."
        ), []
    return inner.refusal, usual if trainer and usual else weights


def _several_weights(name: str, weights: Sequence[Path]) -> str:
    examples = ", ".join(path.name for path in weights[:4])
    return f"{name}: holds several files of weights ({examples}), and one was expected; give the one meant by its path."


def weights_file(folder: Path, name: str) -> Path:
    """Return the only file of weights in a folder that is one checkpoint.

    Raises:
        CheckpointError: None, several, or a kind of checkpoint that is not read.
        InputError: The folder cannot be listed.
    """
    refusal, weights = _weights_inside(folder, name)
    if refusal:
        raise CheckpointError(f"{name}: {refusal}")
    if not weights:
        raise CheckpointError(f"{name}: is a folder without a checkpoint in it; expected one {usual_suffixes()}.")
    if len(weights) > 1:
        raise CheckpointError(_several_weights(name, weights))
    return weights[0]
