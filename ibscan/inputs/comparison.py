"""Two checkpoints side by side: copies of one another, or of another architecture."""

from __future__ import annotations

from pathlib import Path

from ibscan.errors import CheckpointError
from ibscan.inputs.checkpoint import load_tensors
from ibscan.types import Checkpoint

__all__ = ["difference", "is_copy", "repeats", "same_weights"]

# Names of copies: the best so far, the latest, the end.
COPIES = ("best", "last", "latest", "final")


def is_copy(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint's name says that it repeats another one."""
    return repeats(checkpoint.name)


def repeats(name: str) -> bool:
    """Tell whether a name says that the file repeats another one: `best`, `last`, `latest`, `final`."""
    stem = Path(name).name.lower()
    return any(word in stem.replace("-", ".").replace("_", ".").split(".") for word in COPIES)


def same_weights(copy: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether two checkpoints hold the same tensors: by the hash of the files, else by the numbers."""
    if copy.sha256 == other.sha256:
        return True
    numbers = [
        (a, b) for a, b in ((copy.epoch, other.epoch), (copy.step, other.step)) if a is not None and b is not None
    ]
    if any(a != b for a, b in numbers) or copy.tensors != other.tensors:
        return False
    try:
        mine, theirs = load_tensors(copy), load_tensors(other)
    except CheckpointError:
        return False
    return all(mine[key].equal(theirs[key]) for key in mine)


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
