"""Read a series of checkpoints: find, inspect and order them along one axis."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
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
from ibscan.inputs.series.duplicates import is_placed, of_one_architecture, without_copies
from ibscan.inputs.series.epochs import axis_values, select_epochs
from ibscan.inputs.series.manifest import Manifest
from ibscan.inputs.series.ordering import in_order, refuse_doubles

__all__ = ["axis_values", "read_series", "select_epochs"]


@dataclass
class _Draft:
    checkpoints: list[Checkpoint] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


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

    Ordered by epoch if all have one, else by step if all have one, else by what most have; a sweep by its own value.
    Several checkpoints within one epoch are ordered by step. What has no such number is left out, or, where its name
    says that it is the start (`init`, `untrained`, ...), at 0. Where few have a number the order is that of names, with
    numbers counted (10 after 2).

    Args:
        paths: One directory; or files, and folders that are one checkpoint each.
        manifest: The series' own description; its pattern and axis are honoured.
        state_key: Which set of tensors, where a file holds several.
        weights: `raw` or `ema`, where a file holds both.
        exclude: Paths that are no checkpoints: the probe in use, the output.
        inspect: Reads one checkpoint, with the arguments of `inspect_checkpoint`.

    Returns:
        The series. What could not be used is in `skipped` with the reason; sentences for the user are in `notices`.

    Raises:
        NothingMatched: A folder with no checkpoint in it.
        InputError: A missing or unreadable path, a step that occurs twice, or nothing left that could be used.
    """
    where, found = _found(paths, exclude, manifest)
    draft = _Draft(skipped=dict(found.skipped), notices=list(found.notices))
    candidates = _matching(found.candidates, manifest, draft)
    for candidate in candidates:
        try:
            draft.checkpoints.append(_inspected(candidate, manifest, state_key, weights, inspect))
        except CheckpointError as error:
            draft.skipped[candidate.name] = str(error)
    if not draft.checkpoints and not draft.skipped:
        raise NothingMatched(_nothing(where, found, manifest))
    if len(draft.checkpoints) == 1 and len(paths) == 1 and paths[0].is_dir():
        draft.checkpoints = [_named_by_folder(draft.checkpoints[0], paths[0])]
    draft.checkpoints, notices = without_copies(draft.checkpoints)
    draft.notices += notices
    draft.checkpoints, odd, notices = of_one_architecture(draft.checkpoints)
    draft.skipped |= odd
    draft.notices += notices
    if not draft.checkpoints:
        raise InputError(_all_skipped(where, draft.skipped))
    described = "" if manifest is None else manifest.path.name
    axis, draft.checkpoints, notices = in_order(draft.checkpoints, _stated_axis(manifest), described)
    draft.notices += notices
    refuse_doubles(draft.checkpoints, axis)
    return Series(tuple(draft.checkpoints), axis, draft.skipped, tuple(draft.notices))


def _found(paths: Sequence[Path], exclude: Sequence[Path], manifest: Manifest | None) -> tuple[str, Found]:
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            if len(paths) == 1 or isinstance(error, FileNotFoundError):
                raise InputError(unreadable(path, str(path), error)) from None
    if len(paths) == 1 and paths[0].is_dir():
        expression = _expression(manifest)
        known = None if expression is None else lambda name: matches(expression, name) is not None
        return str(paths[0]), found_in_folder(paths[0], exclude, known)
    # Absolute but not resolved: keep the user's name for a link.
    barred = {path.resolve() for path in exclude}
    absolute = list(dict.fromkeys(path.absolute() for path in paths if not (exclude and path.resolve() in barred)))
    parent = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    # A shell pattern such as *.safetensors* lists shards beside their index.
    shards = {file for path in absolute if is_index(path.name) for file in named_files(path)}
    candidates = [Candidate(path, path.relative_to(parent).as_posix()) for path in absolute if path not in shards]
    return "the paths given", Found(candidates=candidates)


def _expression(manifest: Manifest | None) -> re.Pattern[str] | None:
    if manifest is None or manifest.pattern is None:
        return None
    return compiled_pattern(manifest.pattern, str(manifest.path))[0]


def _matching(candidates: Sequence[Candidate], manifest: Manifest | None, draft: _Draft) -> list[Candidate]:
    expression = _expression(manifest)
    if expression is None or manifest is None:
        return list(candidates)
    matching = [one for one in candidates if matches(expression, one.name)]
    taken = {one.name for one in matching}
    left = [one.name for one in candidates if one.name not in taken]
    if left:
        draft.notices.append(
            f"{', '.join(left[:5])}{' ...' if len(left) > 5 else ''}: left out, as the pattern {manifest.pattern} "
            "does not match."
        )
    return matching


def _inspected(
    candidate: Candidate,
    manifest: Manifest | None,
    state_key: str | None,
    weights: str | None,
    inspect: Callable[..., Checkpoint],
) -> Checkpoint:
    checkpoint = inspect(candidate.path, candidate.name, state_key=state_key, weights=weights)
    expression = _expression(manifest)
    if expression is None:
        return checkpoint
    # The manifest's pattern wins over numbers in the file; numbers it does not name stay.
    found = numbers_by_pattern(expression, candidate.name)
    return dataclasses.replace(
        checkpoint,
        epoch=checkpoint.epoch if found.epoch is None else found.epoch,
        step=checkpoint.step if found.step is None else found.step,
        value=checkpoint.value if found.value is None else found.value,
        step_source="pattern",
    )


def _named_by_folder(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return the one checkpoint of `checkpoint-500/`, whose own name says nothing, with what the folder's name says."""
    if is_placed(checkpoint) or not is_conventional(checkpoint.name):
        return checkpoint
    found = numbers_in_name(folder.resolve().name)
    if found.epoch is None and found.step is None:
        return checkpoint
    return dataclasses.replace(checkpoint, epoch=found.epoch, step=found.step, step_source=found.source)


def _nothing(where: str, found: Found, manifest: Manifest | None) -> str:
    if found.candidates and manifest is not None and manifest.pattern is not None:
        count = len(found.candidates)
        return f"{where}: the pattern {manifest.pattern} of ibscan.toml matches none of {count} files; mend it."
    seen = list(dict.fromkeys([*found.others, *(notice.partition(":")[0] for notice in found.notices)]))
    saw = listed(seen, 5) or "nothing"
    why = f" {found.notices[0]}" if found.notices else ""
    return f"{where}: holds no checkpoint (saw {saw}); expected {accepted()}, or folders of one each.{why}"


def _all_skipped(where: str, skipped: Mapping[str, str]) -> str:
    if len(skipped) == 1:
        return next(iter(skipped.values()))
    reasons = " ".join(list(skipped.values())[:2])
    return f"{where}: none of {len(skipped)} checkpoints can be used. First: {reasons}"


def _stated_axis(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    own = compiled_pattern(manifest.pattern, str(manifest.path))[1] if manifest.pattern is not None else None
    return manifest.axis or own
