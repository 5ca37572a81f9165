"""Compare the checkpoints of a series: drop copies, and separate those of another architecture."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ibscan.core.records import Checkpoint, is_counter
from ibscan.core.text import natural
from ibscan.errors import CheckpointError
from ibscan.inputs.formats.recognise import is_conventional
from ibscan.inputs.series.adapters import adapters_sentence
from ibscan.inputs.series.checkpoint import load_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["is_numbered", "of_one_architecture", "repeats", "without_copies"]

# Names and shapes of all tensors.
Architecture: TypeAlias = frozenset[tuple[str, tuple[int, ...]]]
# Words in the names of copies.
COPIES = ("best", "last", "latest", "final")
# Lightning's second file of one name.
VERSION = re.compile(r"-v\d+(?=\.[A-Za-z]+$|$)")


def is_numbered(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint has an epoch, a step or a value."""
    return any(number is not None for number in (checkpoint.epoch, checkpoint.step, checkpoint.value))


def without_copies(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Drop links, repeats, and `best`, `last` and the like that equal another checkpoint or have no number.

    Returns:
        The checkpoints kept, in their order, and a notice for each other one.
    """
    checkpoints, notices = _without_links(checkpoints)
    checkpoints, repeat_notices = _without_repeats(checkpoints)
    notices += repeat_notices
    # A trainer may save its last or best weights again beside the folders of the run.
    nested = any("/" in one.name for one in checkpoints)
    copies: list[Checkpoint] = []
    others: list[Checkpoint] = []
    for one in checkpoints:
        is_copy = repeats(one.name) or (nested and "/" not in one.name and is_conventional(one.name))
        (copies if is_copy else others).append(one)
    kept = list(others)
    for copy in copies:
        same = _same_file(copy, kept) or _same_numbers(copy, others)
        if same is not None:
            notices.append(f"{copy.name}: holds the same weights as {same.name}, so it was left out.")
        elif not is_numbered(copy) and any(is_numbered(one) for one in others):
            notices.append(
                f"{copy.name}: no epoch or step is known for it, so it was left out; its weights equal no other's."
            )
        else:
            kept.append(copy)
    names = {one.name for one in kept}
    return [one for one in checkpoints if one.name in names], notices


def _without_links(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Drop links to another checkpoint of the series."""
    names_by_path = {}
    for one in checkpoints:
        root = one.path.parents[one.name.count("/")]
        if root.resolve() / one.name == one.path.resolve():
            names_by_path[one.path.resolve()] = one.name
    targets = {one.name: names_by_path.get(one.path.resolve(), one.name) for one in checkpoints}
    links = {name: target for name, target in targets.items() if target != name}
    notices = [f"{name}: is a link to {target}, so it was left out." for name, target in links.items()]
    return [one for one in checkpoints if one.name not in links], notices


def _without_repeats(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Drop weights saved again at one position: by two callbacks, in two formats, as versions of one name."""
    groups: dict[tuple[object, ...], list[Checkpoint]] = {}
    for one in checkpoints:
        numbers = [("epoch", one.epoch), ("step", one.step), ("value", one.value)]
        position = next((pair for pair in numbers if pair[1] is not None), ("name", VERSION.sub("", one.name)))
        groups.setdefault(position, []).append(one)
    common = Counter(_architecture(one) for one in checkpoints)
    kept, notices = [], []
    for group in groups.values():
        first: list[Checkpoint] = []
        for one in sorted(group, key=lambda one: _repeat_order(one, common)):
            same_position = [other for other in first if not _numbers_differ(one, other)]
            same = _same_file(one, same_position) or _same_numbers(one, same_position)
            if same is None:
                first.append(one)
            else:
                notices.append(f"{one.name}: holds the same weights as {same.name}, so it was left out.")
        kept += first
    names = {one.name for one in kept}
    return [one for one in checkpoints if one.name in names], notices


def _repeat_order(one: Checkpoint, common: Mapping[Architecture, int]) -> tuple[bool, bool, int, tuple[object, ...]]:
    """Return the sort key that puts the repeat to keep first: plain name, commonest architecture, name."""
    return repeats(one.name), VERSION.search(one.name) is not None, -common[_architecture(one)], natural(one.name)


def _architecture(one: Checkpoint) -> Architecture:
    return frozenset((key, info.shape) for key, info in one.tensors.items() if not is_counter(key, info.shape))


def of_one_architecture(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], dict[str, str], list[str]]:
    """Keep the commonest architecture, or of equally common ones that of the earliest checkpoint.

    Returns:
        The checkpoints kept, in their order; reasons by name of the others; a notice that counts them.
    """
    groups: dict[Architecture, list[Checkpoint]] = {}
    for one in sorted(checkpoints, key=_provisional_order):
        groups.setdefault(_architecture(one), []).append(one)
    if len(groups) < 2:
        return list(checkpoints), {}, []
    largest, *others = sorted(groups.values(), key=len, reverse=True)
    names = {one.name for one in largest}
    reasons = {one.name: _difference(one, largest[0]) for group in others for one in group}
    counts = ", ".join(f"{len(group)} like {group[0].name}" for group in others[:3])
    notice = f"{len(groups)} architectures: {len(largest)} like {largest[0].name} are kept, {counts} left out."
    return [one for one in checkpoints if one.name in names], reasons, [notice]


def _provisional_order(checkpoint: Checkpoint) -> tuple[float, float, tuple[object, ...]]:
    """Return the sort key before an axis is known: epoch, step, name; unknown numbers last."""
    epoch, step = checkpoint.epoch, checkpoint.step
    return (math.inf if epoch is None else epoch, math.inf if step is None else step, natural(checkpoint.name))


def repeats(name: str) -> bool:
    """Tell whether a name is one of a copy: it holds the word `best`, `last`, `latest` or `final`."""
    stem = Path(name).name.lower()
    return any(word in stem.replace("-", ".").replace("_", ".").split(".") for word in COPIES)


def _same_file(copy: Checkpoint, others: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the first checkpoint with the same hash, unless a pattern gives the two different numbers."""
    return next((one for one in others if one.sha256 == copy.sha256 and not _distinct_by_pattern(copy, one)), None)


def _same_numbers(copy: Checkpoint, others: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the first checkpoint with equal tensors and no different number."""
    names = _unprefixed_names(copy)
    shapes = {key: copy.tensors[name] for key, name in names.items()}
    candidates = [(one, _unprefixed_names(one)) for one in others if not _numbers_differ(copy, one)]
    alike = [(one, core) for one, core in candidates if {k: one.tensors[name] for k, name in core.items()} == shapes]
    if not alike:
        return None
    try:
        mine = load_tensors(copy)
    except CheckpointError:
        return None
    return next(
        (one for one, core in alike if _has_tensors(one, {core[k]: mine[name] for k, name in names.items()})), None
    )


def _unprefixed_names(one: Checkpoint) -> dict[str, str]:
    """Return the tensor names by the same names without the prefix that all share (`model.`)."""
    names = {name: name for name, info in one.tensors.items() if not is_counter(name, info.shape)}
    while names and len({key.partition(".")[0] for key in names}) == 1 and all("." in key for key in names):
        names = {key.partition(".")[2]: name for key, name in names.items()}
    return names


def _distinct_by_pattern(one: Checkpoint, other: Checkpoint) -> bool:
    return one.step_source == other.step_source == "pattern" and _numbers_differ(one, other)


def _numbers_differ(one: Checkpoint, other: Checkpoint) -> bool:
    numbers = ((one.epoch, other.epoch), (one.step, other.step), (one.value, other.value))
    return any(a is not None and b is not None and a != b for a, b in numbers)


def _has_tensors(one: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> bool:
    try:
        loaded = load_tensors(one)
    except CheckpointError:
        return False
    return all(loaded[key].equal(tensor) for key, tensor in tensors.items())


def _difference(one: Checkpoint, first: Checkpoint) -> str:
    """Name the first tensor in which two architectures differ in a message, or return the empty string."""
    adapters = adapters_sentence(one)
    if adapters:
        return adapters
    advice = "A series holds one architecture; scan the two runs separately."
    for key in dict.fromkeys([*first.tensors, *one.tensors]):
        here, there = one.tensors.get(key), first.tensors.get(key)
        if all(info is None or is_counter(key, info.shape) for info in (here, there)):
            continue
        if here is None or there is None:
            has, lacks = (one, first) if there is None else (first, one)
            shape = (here or there).shape  # type: ignore[union-attr]
            return f"{one.name}: {key!r} of shape {shape} is in {has.name}, but not in {lacks.name}. {advice}"
        if here.shape != there.shape:
            return f"{one.name}: {key!r} has shape {here.shape}, but {first.name} has {there.shape}. {advice}"
    return ""
