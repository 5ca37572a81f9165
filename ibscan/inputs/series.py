"""Which checkpoints make up a series, in which order, and on which axis."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.errors import CheckpointError, InputError, NothingMatched
from ibscan.inputs.checkpoint import inspect_checkpoint
from ibscan.inputs.comparison import difference, is_copy, same_weights
from ibscan.inputs.coordinates import compiled_pattern, first_known, numbers_by_pattern
from ibscan.inputs.discovery import Candidate, Found, found_in_folder, natural_key
from ibscan.inputs.files import unreadable
from ibscan.inputs.manifest import Manifest
from ibscan.inputs.selection import axis_values, select_epochs
from ibscan.types import Checkpoint, Series

__all__ = ["axis_values", "read_series", "select_epochs"]

ACCEPTED = ".safetensors files, or .pt, .pth, .ckpt and .bin files of torch.save"
AXES = ("epoch", "step")


def coordinate(axis: str) -> Callable[[Checkpoint], float | None]:
    """Return the function from a checkpoint to its number on an axis; any other name is a sweep's own."""
    return lambda one: {"epoch": one.epoch, "step": one.step}.get(axis, one.value)


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

    Ordered by epoch if all have one, else by step if all have one, else by name with numbers counted (10 after 2);
    a sweep by its own value. Several checkpoints within one epoch are ordered by step.

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
    where, found = _found(paths, exclude)
    draft = _Draft(skipped=dict(found.skipped), notices=list(found.notices))
    candidates = _matching(found.candidates, manifest, draft)
    for candidate in candidates:
        try:
            draft.checkpoints.append(_inspected(candidate, manifest, state_key, weights, inspect))
        except CheckpointError as error:
            draft.skipped[candidate.name] = str(error)
    if not draft.checkpoints and not draft.skipped:
        raise NothingMatched(_nothing(where, found, manifest))
    _drop_copies(draft)
    axis = _axis(draft, manifest)
    _keep_one_architecture(draft)
    if not draft.checkpoints:
        raise InputError(_all_skipped(where, draft.skipped))
    _refuse_doubles(draft.checkpoints, axis)
    if axis == "index":
        draft.checkpoints = [
            one if _known(one) else dataclasses.replace(one, step_source="order") for one in draft.checkpoints
        ]
    return Series(tuple(draft.checkpoints), axis, draft.skipped, tuple(draft.notices))


def _found(paths: Sequence[Path], exclude: Sequence[Path]) -> tuple[str, Found]:
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            if len(paths) == 1 or isinstance(error, FileNotFoundError):
                raise InputError(unreadable(path, str(path), error)) from None
    if len(paths) == 1 and paths[0].is_dir():
        return str(paths[0]), found_in_folder(paths[0], exclude)
    # Absolute but not resolved: a link is called as the user called it.
    barred = {path.resolve() for path in exclude}
    absolute = list(dict.fromkeys(path.absolute() for path in paths if not (exclude and path.resolve() in barred)))
    parent = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    candidates = [Candidate(path, path.relative_to(parent).as_posix()) for path in absolute]
    return "the paths given", Found(candidates=candidates)


def _matching(candidates: Sequence[Candidate], manifest: Manifest | None, draft: _Draft) -> list[Candidate]:
    if manifest is None or manifest.pattern is None:
        return list(candidates)
    expression, _ = compiled_pattern(manifest.pattern, str(manifest.path))
    matching = [one for one in candidates if expression and numbers_by_pattern(expression, one.name) is not None]
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
    if manifest is None or manifest.pattern is None:
        return checkpoint
    expression, _ = compiled_pattern(manifest.pattern, str(manifest.path))
    read = numbers_by_pattern(expression, candidate.name)
    if read is None:
        return checkpoint
    # What the user wrote beside the files beats what is in them; numbers the pattern does not name stay.
    found = first_known(read)
    return dataclasses.replace(
        checkpoint,
        epoch=checkpoint.epoch if found.epoch is None else found.epoch,
        step=checkpoint.step if found.step is None else found.step,
        value=checkpoint.value if found.value is None else found.value,
        step_source="pattern",
    )


def _nothing(where: str, found: Found, manifest: Manifest | None) -> str:
    if found.candidates and manifest is not None and manifest.pattern is not None:
        count = len(found.candidates)
        return f"{where}: the pattern {manifest.pattern} of ibscan.toml matches none of {count} files; mend it."
    seen = [*found.others, *(notice.partition(":")[0] for notice in found.notices)]
    listed = ", ".join(seen[:5]) + (f" and {len(seen) - 5} more" if len(seen) > 5 else "")
    return f"{where}: holds no checkpoint (saw {listed or 'nothing'}); expected {ACCEPTED}, or folders of one each."


def _all_skipped(where: str, skipped: Mapping[str, str]) -> str:
    if len(skipped) == 1:
        return next(iter(skipped.values()))
    reasons = " ".join(list(skipped.values())[:2])
    return f"{where}: none of {len(skipped)} checkpoints can be used. First: {reasons}"


def _known(checkpoint: Checkpoint) -> bool:
    return any(number is not None for number in (checkpoint.epoch, checkpoint.step, checkpoint.value))


def _drop_links(draft: _Draft) -> None:
    """Drop links to another checkpoint of the series."""
    places = {}
    for one in draft.checkpoints:
        root = one.path.parents[one.name.count("/")]
        if root.resolve() / one.name == one.path.resolve():
            places[one.path.resolve()] = one.name
    for one in list(draft.checkpoints):
        target = places.get(one.path.resolve(), one.name)
        if target != one.name:
            draft.checkpoints.remove(one)
            draft.notices.append(f"{one.name}: is a link to {target}, so it was left out.")


def _drop_copies(draft: _Draft) -> None:
    """Drop `best`, `last` and the like where they equal another checkpoint, or nothing says when they were saved."""
    _drop_links(draft)
    copies = [one for one in draft.checkpoints if is_copy(one)]
    others = [one for one in draft.checkpoints if not is_copy(one)]
    kept: list[Checkpoint] = []
    for copy in copies:
        same = next((one for one in [*others, *kept] if same_weights(copy, one)), None)
        if same is not None:
            draft.notices.append(f"{copy.name}: holds the same weights as {same.name}, so it was left out.")
        elif not _known(copy) and any(_known(one) for one in others):
            draft.notices.append(
                f"{copy.name}: no epoch or step is known for it, so it was left out; its weights equal no other's."
            )
        else:
            kept.append(copy)
    draft.checkpoints = [one for one in draft.checkpoints if not is_copy(one) or one in kept]


def _axis(draft: _Draft, manifest: Manifest | None) -> str:
    """Choose the axis and put the checkpoints in its order."""
    if not draft.checkpoints:
        return "index"
    axis, key = _stated_axis(draft.checkpoints, manifest) or _inferred_axis(draft)
    draft.checkpoints.sort(key=lambda one: natural_key(one.name))
    if key is not None:
        draft.checkpoints.sort(key=lambda one: key(one) or 0)
    return axis


def _stated_axis(
    checkpoints: Sequence[Checkpoint], manifest: Manifest | None
) -> tuple[str, Callable[[Checkpoint], float | None]] | None:
    if manifest is None:
        return None
    own = compiled_pattern(manifest.pattern, str(manifest.path))[1] if manifest.pattern is not None else None
    axis = manifest.axis or own
    if axis is None:
        return None
    key = coordinate(axis)
    missing = next((one for one in checkpoints if key(one) is None), None)
    if missing is not None:
        raise InputError(
            f"{missing.name}: {manifest.path.name} names the axis {axis!r}, but this checkpoint states no such number; "
            f"add {{{axis if axis in AXES else 'value:' + axis}}} to the pattern under [series], or name another axis."
        )
    return axis, key


def _inferred_axis(draft: _Draft) -> tuple[str, Callable[[Checkpoint], float | None] | None]:
    numbers = {name: [coordinate(name)(one) for one in draft.checkpoints] for name in (*AXES, "value")}
    known = [name for name, found in numbers.items() if None not in found]
    distinct = [name for name in known if len(set(numbers[name])) == len(numbers[name])]
    # Several saves within one epoch are told apart by their steps; runs of a sweep all end at the same epoch.
    if known and not distinct and "value" in known:
        return "value", coordinate("value")
    for name in distinct or known:
        return name, coordinate(name)
    bare = [one.name for one in draft.checkpoints if not _known(one)]
    if len(bare) < len(draft.checkpoints):
        what = f"{', '.join(bare[:3])}: states neither epoch nor step" if bare else "some state an epoch, others a step"
        draft.notices.append(f"{what}, so the series is ordered by name.")
    return "index", None


def _keep_one_architecture(draft: _Draft) -> None:
    if not draft.checkpoints:
        return
    first, kept = draft.checkpoints[0], []
    for one in draft.checkpoints:
        reason = difference(one, first)
        if reason:
            draft.skipped[one.name] = reason
        else:
            kept.append(one)
    draft.checkpoints = kept


def _refuse_doubles(checkpoints: Sequence[Checkpoint], axis: str) -> None:
    if axis == "index":
        return
    key = coordinate(axis)
    counts = Counter(key(one) for one in checkpoints)
    for number, count in counts.items():
        if count > 1:
            names = [one.name for one in checkpoints if key(one) == number]
            raise InputError(
                f"{', '.join(names[:3])}: {axis} {number:g} occurs {count} times; a series has each once. "
                "Move one away, or tell them apart with a pattern under [series] in ibscan.toml."
            )
