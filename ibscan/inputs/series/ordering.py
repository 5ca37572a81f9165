"""The axis of a series, and its checkpoints in that order: what has no place on it is placed by rule, or left out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from ibscan.core.records import Checkpoint
from ibscan.core.text import by_name, is_initial, listed
from ibscan.errors import InputError
from ibscan.inputs.folder.numbers import numbers_in_name, size_as_step, sizes_in_name
from ibscan.inputs.series.duplicates import is_placed

__all__ = ["coordinate", "in_order", "refuse_doubles"]

AXES = ("epoch", "step")


def coordinate(axis: str) -> Callable[[Checkpoint], float | None]:
    """Return the function from a checkpoint to its number on an axis; any other name is a sweep's own."""
    return lambda one: {"epoch": one.epoch, "step": one.step}.get(axis, one.value)


def in_order(
    checkpoints: Sequence[Checkpoint], stated: str | None, where: str
) -> tuple[str, list[Checkpoint], list[str]]:
    """Choose the axis of a series and put its checkpoints in order.

    Args:
        checkpoints: In any order, at least one.
        stated: The axis that the manifest names, or None.
        where: What the manifest is called.

    Returns:
        The axis, the checkpoints on it, and a sentence for what was left out or ordered by name.

    Raises:
        InputError: No checkpoint has a number on the stated axis.
    """
    checkpoints = _without_sizes(sorted(checkpoints, key=lambda one: by_name(one.name)))
    axis = _inferred(checkpoints) if stated is None else stated
    if axis == "index":
        return axis, [one if is_placed(one) else _unplaced(one) for one in checkpoints], _said(checkpoints)
    key = coordinate(axis)
    kept = [one for one in checkpoints if key(one) is not None]
    if not kept:
        raise InputError(
            f"{checkpoints[0].name}: {where} names the axis {axis!r}, but no checkpoint states such a number; add "
            f"{{{axis if axis in AXES else 'value:' + axis}}} to the pattern under [series], or name another axis."
        )
    notices, left = [], []
    for one in (one for one in checkpoints if key(one) is None):
        zero = next((other.name for other in kept if key(other) == 0), None)
        if is_initial(one.name) and axis in AXES and zero is None:
            kept.append(_at_zero(one, axis, kept))
            notices.append(f"{one.name}: is taken for the start, {axis} 0, as its name says.")
        elif is_initial(one.name) and zero is not None:
            notices.append(f"{one.name}: was left out: it says that it is the start, and {zero} has {axis} 0 already.")
        else:
            left.append(one.name)
    if left:
        notices.append(
            f"{listed(left, 3)}: states no {axis}, which the others are ordered by, so it was left out; give it one in "
            "its name, or by a pattern under [series] in ibscan.toml."
        )
    return axis, sorted(kept, key=lambda one: key(one) or 0), notices


def _inferred(checkpoints: Sequence[Checkpoint]) -> str:
    numbers = {name: [coordinate(name)(one) for one in checkpoints] for name in (*AXES, "value")}
    known = [name for name, found in numbers.items() if None not in found]
    distinct = [name for name in known if len(set(numbers[name])) == len(numbers[name])]
    # Several saves within one epoch are told apart by their steps; runs of a sweep all end at the same epoch.
    if known and not distinct and "value" in known:
        return "value"
    for name in distinct or known:
        return name
    # A few that have no place do not cost the others theirs.
    counts = {name: sum(number is not None for number in found) for name, found in numbers.items()}
    most = max(counts, key=lambda name: counts[name])
    some = [one for one in checkpoints if coordinate(most)(one) is not None]
    bare = sum(not is_placed(one) and not is_initial(one.name) for one in checkpoints)
    elsewhere = sum(is_placed(one) for one in checkpoints) - len(some)
    # Nor does a single one, whatever their number.
    return _inferred(some) if some and (bare == 1 or len(some) > bare) and len(some) > elsewhere else "index"


def _at_zero(one: Checkpoint, axis: str, others: Sequence[Checkpoint]) -> Checkpoint:
    """Return the checkpoint of the untrained network at its place: epoch 0, step 0, as far as the others have them."""
    epoch = axis == "epoch" or all(other.epoch is not None for other in others)
    step = axis == "step" or all(other.step is not None for other in others)
    return dataclasses.replace(one, epoch=0.0 if epoch else one.epoch, step=0 if step else one.step, step_source="name")


def _unplaced(one: Checkpoint) -> Checkpoint:
    return dataclasses.replace(one, step_source="order")


def _without_sizes(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Take away steps such as the 124M of `gpt_124M_a.pt` that other names have too, or that stand beside no other."""
    sizes = Counter(size for one in checkpoints for size in {s for part in _parts(one) for s in sizes_in_name(part)})
    kept = []
    for one in checkpoints:
        part = next((part for part in _parts(one) if numbers_in_name(part).step is not None), "")
        size = size_as_step(part) if one.step_source == "name" and one.epoch is None else ""
        common = len(checkpoints) == 1 or is_initial(one.name) or sizes[size] > 1
        kept.append(dataclasses.replace(one, step=None, step_source="order") if size and common else one)
    return kept


def _parts(one: Checkpoint) -> list[str]:
    return one.name.split("/")[:-3:-1]


def _said(checkpoints: Sequence[Checkpoint]) -> list[str]:
    if len(checkpoints) < 2:
        return []
    bare = [one.name for one in checkpoints if not is_placed(one)]
    what = f"{listed(bare, 3)}: states neither epoch nor step" if bare else "some state an epoch, others a step"
    return [f"{what}, so the series is ordered by name, from {checkpoints[0].name} to {checkpoints[-1].name}."]


def refuse_doubles(checkpoints: Sequence[Checkpoint], axis: str) -> None:
    """Refuse a series with two checkpoints at one place of its axis.

    Raises:
        InputError: Two are at one place.
    """
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
