"""Read a series of checkpoints: find, inspect and order them along one axis."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.core.records import Checkpoint, Series
from ibscan.core.text import listed
from ibscan.errors import CheckpointError, InputError, NothingMatched
from ibscan.inputs.files import unreadable
from ibscan.inputs.folder.numbers import numbers_in_name
from ibscan.inputs.folder.pattern import compiled_pattern, matches, numbers_by_pattern
from ibscan.inputs.folder.shards import is_index, named_files
from ibscan.inputs.formats.recognise import accepted, is_conventional
from ibscan.inputs.series.checkpoint import inspect_checkpoint
from ibscan.inputs.series.discovery import Candidate, Found, found_in_folder
from ibscan.inputs.series.duplicates import is_numbered, of_one_architecture, without_copies
from ibscan.inputs.series.epochs import axis_values, select_epochs
from ibscan.inputs.series.manifest import Manifest
from ibscan.inputs.series.ordering import ordered, refuse_repeated
from ibscan.inputs.series.run_folders import run_folders

__all__ = ["axis_values", "read_series", "select_epochs"]


# Run folders named in a message.
MOST_RUNS = 6


@dataclass
class _Draft:
    checkpoints: list[Checkpoint] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    faults: list[CheckpointError] = field(default_factory=list)


def read_series(
    paths: Sequence[Path],
    *,
    manifest: Manifest | None = None,
    state_key: str | None = None,
    weights: str | None = None,
    exclude: Sequence[Path] = (),
    inspect: Callable[..., Checkpoint] = inspect_checkpoint,
) -> Series:
    """Find, inspect and order the checkpoints of one run or sweep.

    The axis is the epoch if all have one, else the step if all have one, else the number that most have; of a sweep,
    its value. Several checkpoints within one epoch are ordered by step. A checkpoint without the number is left out,
    or put at 0 if its name says it is the start (`init`, `untrained`, ...). If few have a number, the order is that of
    names, with numbers counted (10 after 2).

    Args:
        paths: One directory; or files, and folders that are one checkpoint each.
        manifest: Its pattern and axis are used.
        state_key: Which set of tensors, where a file holds several.
        weights: `raw` or `ema`, where a file holds both.
        exclude: Paths that are no checkpoints (the probe in use, the output).
        inspect: Reads one checkpoint, with the arguments of `inspect_checkpoint`.

    Returns:
        The series, with reasons by name of unusable checkpoints in `skipped`, and messages to the user in `notices`.

    Raises:
        NothingMatched: A folder with no checkpoint in it.
        InputError: A missing or unreadable path, a step that occurs twice, or nothing left that could be used.
    """
    pattern, axis = _pattern(manifest)
    where, found = _find_candidates(paths, exclude, pattern)
    draft = _Draft(skipped=dict(found.skipped), notices=list(found.notices))
    inspect = functools.partial(inspect, state_key=state_key, weights=weights)
    for candidate in _matching(found.candidates, manifest, pattern, draft):
        try:
            draft.checkpoints.append(_inspected(candidate, pattern, inspect))
        except CheckpointError as error:
            draft.skipped[candidate.name] = str(error)
            draft.faults.append(error)
    if not draft.checkpoints and not draft.skipped:
        raise _nothing_found(where, found, manifest)
    if len(draft.checkpoints) == 1 and len(paths) == 1 and paths[0].is_dir():
        draft.checkpoints = [_named_by_folder(draft.checkpoints[0], paths[0])]
    draft.checkpoints, notices = without_copies(draft.checkpoints)
    draft.notices += notices
    draft.checkpoints, other_reasons, notices = of_one_architecture(draft.checkpoints)
    draft.skipped |= other_reasons
    draft.notices += notices
    if not draft.checkpoints:
        raise _all_skipped(where, draft)
    manifest_name = "" if manifest is None else manifest.path.name
    axis, draft.checkpoints, notices = ordered(draft.checkpoints, axis, manifest_name)
    draft.notices += notices
    refuse_repeated(draft.checkpoints, axis)
    return Series(tuple(draft.checkpoints), axis, draft.skipped, tuple(draft.notices))


def _find_candidates(
    paths: Sequence[Path], exclude: Sequence[Path], pattern: re.Pattern[str] | None
) -> tuple[str, Found]:
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            if len(paths) == 1 or isinstance(error, FileNotFoundError):
                raise InputError(unreadable(path, str(path), error)) from None
    if len(paths) == 1 and paths[0].is_dir():
        in_pattern = None if pattern is None else lambda name: matches(pattern, name) is not None
        return str(paths[0]), found_in_folder(paths[0], exclude, in_pattern)
    # Not resolved: a link keeps its name.
    excluded = {path.resolve() for path in exclude}
    absolute = list(dict.fromkeys(path.absolute() for path in paths if not (exclude and path.resolve() in excluded)))
    parent = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    # A shell pattern such as *.safetensors* matches shards beside their index.
    shards = {file for path in absolute if is_index(path.name) for file in named_files(path)}
    candidates = [Candidate(path, path.relative_to(parent).as_posix()) for path in absolute if path not in shards]
    return "the paths given", Found(candidates=candidates)


def _pattern(manifest: Manifest | None) -> tuple[re.Pattern[str] | None, str | None]:
    """Return the compiled pattern of a manifest, and the axis that it names."""
    if manifest is None:
        return None, None
    if manifest.pattern is None:
        return None, manifest.axis
    pattern, value_name = compiled_pattern(manifest.pattern, str(manifest.path))
    return pattern, manifest.axis or value_name


def _matching(
    candidates: Sequence[Candidate], manifest: Manifest | None, pattern: re.Pattern[str] | None, draft: _Draft
) -> list[Candidate]:
    if pattern is None or manifest is None:
        return list(candidates)
    matching = [one for one in candidates if matches(pattern, one.name)]
    names = {one.name for one in matching}
    dropped = [one.name for one in candidates if one.name not in names]
    if dropped:
        draft.notices.append(
            f"{', '.join(dropped[:5])}{' ...' if len(dropped) > 5 else ''}: left out, as the pattern "
            f"{manifest.pattern} does not match."
        )
    return matching


def _inspected(candidate: Candidate, pattern: re.Pattern[str] | None, inspect: Callable[..., Checkpoint]) -> Checkpoint:
    checkpoint = inspect(candidate.path, candidate.name)
    if pattern is None:
        return checkpoint
    # The manifest's pattern wins over numbers in the file, which keep those it does not name.
    found = numbers_by_pattern(pattern, candidate.name)
    stated = {key: number for key in ("epoch", "step", "value") if (number := getattr(found, key)) is not None}
    return dataclasses.replace(checkpoint, step_source="pattern", **stated)


def _named_by_folder(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Give a checkpoint with a usual file name and no number the numbers of its folder's name (`checkpoint-500/`)."""
    if is_numbered(checkpoint) or not is_conventional(checkpoint.name):
        return checkpoint
    found = numbers_in_name(folder.resolve().name)
    if found.epoch is None and found.step is None:
        return checkpoint
    return dataclasses.replace(checkpoint, epoch=found.epoch, step=found.step, step_source=found.source)


def _nothing_found(where: str, found: Found, manifest: Manifest | None) -> NothingMatched:
    if found.candidates and manifest is not None and manifest.pattern is not None:
        count = len(found.candidates)
        return NothingMatched(
            f"{where}: the pattern {manifest.pattern} of ibscan.toml matches none of {count} files; mend it."
        )
    runs = run_folders(Path(where), MOST_RUNS)
    if runs:
        names = listed([path.relative_to(where).as_posix() for path in runs], MOST_RUNS)
        begin = "one run folder" if len(runs) == 1 else "run folders"
        one = "it" if len(runs) == 1 else "one of them, or pick one checkpoint of each with a pattern in ibscan.toml"
        return NothingMatched(f"{where}: holds no checkpoint itself, but {begin}: {names}. Scan {one}.", path=runs[0])
    seen = list(dict.fromkeys([*found.others, *(notice.partition(":")[0] for notice in found.notices)]))
    saw = listed(seen, 5) or "nothing"
    why = f" {found.notices[0]}" if found.notices else ""
    return NothingMatched(
        f"{where}: holds no checkpoint (saw {saw}); expected {accepted()}, or folders of one each.{why}"
    )


def _all_skipped(where: str, draft: _Draft) -> InputError:
    reasons = list(draft.skipped.values())
    first = draft.faults[0] if draft.faults else InputError(reasons[0])
    if len(reasons) == 1 or (first.options and all(fault.options == first.options for fault in draft.faults)):
        return InputError(reasons[0], options=first.options, lines=first.lines)
    alike = len({reason.replace(name, "") for name, reason in draft.skipped.items()}) == 1
    shown = " ".join(reasons[: 1 if alike else 2])
    said = f"{where}: none of {len(reasons)} checkpoints can be used. First: {shown}"
    return InputError(said, options=first.options, lines=first.lines)
