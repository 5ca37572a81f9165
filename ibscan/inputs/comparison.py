"""Two checkpoints side by side: copies of one another, or of another architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ibscan.errors import CheckpointError
from ibscan.inputs.checkpoint import load_tensors
from ibscan.types import Checkpoint

__all__ = ["difference", "is_copy", "the_same"]

# Names of copies: the best so far, the latest, the end.
COPIES = ("best", "last", "latest", "final")


def is_copy(checkpoint: Checkpoint) -> bool:
    """Tell whether a name says that the file repeats another one: `best`, `last`, `latest`, `final`."""
    stem = Path(checkpoint.name).name.lower()
    return any(word in stem.replace("-", ".").replace("_", ".").split(".") for word in COPIES)


def the_same(copy: Checkpoint, others: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the first that holds the same tensors: by the hash of the files, else by the numbers; None if none does.

    Where a pattern gives two of them places of their own, they are no copies.
    """
    others = [one for one in others if not _apart(copy, one)]
    equal = next((one for one in others if one.sha256 == copy.sha256), None)
    alike = [one for one in others if one.tensors == copy.tensors and not _differ(copy, one)]
    if equal is not None or not alike:
        return equal
    try:
        mine = load_tensors(copy)
    except CheckpointError:
        return None
    return next((one for one in alike if _holds(one, mine)), None)


def _apart(one: Checkpoint, other: Checkpoint) -> bool:
    return one.step_source == other.step_source == "pattern" and _differ(one, other)


def _differ(one: Checkpoint, other: Checkpoint) -> bool:
    numbers = ((one.epoch, other.epoch), (one.step, other.step), (one.value, other.value))
    return any(a is not None and b is not None and a != b for a, b in numbers)


def _holds(one: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> bool:
    try:
        loaded = load_tensors(one)
    except CheckpointError:
        return False
    return all(loaded[key].equal(tensor) for key, tensor in tensors.items())


def difference(one: Checkpoint, first: Checkpoint) -> str:
    """Return the sentence naming the first tensor in which two architectures differ, or the empty string."""
    advice = "A series holds one architecture; scan the two runs separately."
    for key in dict.fromkeys([*first.tensors, *one.tensors]):
        here, there = one.tensors.get(key), first.tensors.get(key)
        if here is None or there is None:
            has, lacks = (one, first) if there is None else (first, one)
            shape = (here or there).shape  # type: ignore[union-attr]
            return f"{one.name}: {key!r} of shape {shape} is in {has.name}, but not in {lacks.name}. {advice}"
        if here.shape != there.shape:
            return f"{one.name}: {key!r} has shape {here.shape}, but {first.name} has {there.shape}. {advice}"
    return ""
