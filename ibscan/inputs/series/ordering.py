"""Choose the axis of a series and order its checkpoints; those without a number on it go to the start or out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from ibscan.core.records import Checkpoint
from ibscan.core.text import by_name, is_initial, listed
from ibscan.errors import InputError
from ibscan.inputs.folder.numbers import numbers_in_name, size_as_step, sizes_in_name
from ibscan.inputs.series.duplicates import is_numbered

__all__ = ["axis_number", "ordered", "refuse_repeated"]

AXES = ("epoch", "step")


def axis_number(one: Checkpoint, axis: str) -> float | None:
    """Return the number of a checkpoint on an axis: epoch, step, or else the sweep's value."""
    return {"epoch": one.epoch, "step": one.step}.get(axis, one.value)


def ordered(
    checkpoints: Sequence[Checkpoint], stated: str | None, where: str
) -> tuple[str, list[Checkpoint], list[str]]:
    """Choose the axis of a series, `stated` by the manifest `where` or None, and put its checkpoints in order.

    Returns:
        The axis, the ordered checkpoints, and notices on those left out or ordered by name.

    Raises:
        InputError: No checkpoint has a number on the stated axis.
    """
    checkpoints = _without_sizes(sorted(checkpoints, key=lambda one: by_name(one.name)))
    axis = _inferred_axis(checkpoints) if stated is None else stated
    if axis == "index":
        in_order = [one if is_numbered(one) else dataclasses.replace(one, step_source="order") for one in checkpoints]
        return axis, in_order, _order_by_name_notice(checkpoints)
    kept = [one for one in checkpoints if axis_number(one, axis) is not None]
    if not kept:
        raise InputError(
            f"{checkpoints[0].name}: {where} names the axis {axis!r}, but no checkpoint states such a number; add "
            f"{{{axis if axis in AXES else 'value:' + axis}}} to the pattern under [series], or name another axis."
        )
    notices, dropped = [], []
    for one in (one for one in checkpoints if axis_number(one, axis) is None):
        zero = next((other.name for other in kept if axis_number(other, axis) == 0), None)
        if is_initial(one.name) and axis in AXES and zero is None:
            kept.append(_at_zero(one, axis, kept))
            notices.append(f"{one.name}: is taken for the start, {axis} 0, as its name says.")
        elif is_initial(one.name) and zero is not None:
            notices.append(f"{one.name}: was left out: it says that it is the start, and {zero} has {axis} 0 already.")
        else:
            dropped.append(one.name)
    if dropped:
        notices.append(
            f"{listed(dropped, 3)}: states no {axis}, which the others are ordered by, so it was left out; give it one "
            "in its name, or by a pattern under [series] in ibscan.toml."
        )
    return axis, sorted(kept, key=lambda one: axis_number(one, axis) or 0), notices


def _inferred_axis(checkpoints: Sequence[Checkpoint]) -> str:
    numbers = {name: [axis_number(one, name) for one in checkpoints] for name in (*AXES, "value")}
    known = [name for name, found in numbers.items() if None not in found]
    distinct = [name for name in known if len(set(numbers[name])) == len(numbers[name])]
    # Several saves within one epoch differ in their steps; runs of a sweep may all end at the same epoch.
    if known and not distinct and "value" in known:
        return "value"
    for name in distinct or known:
        return name
    # A few checkpoints without a number do not spoil the axis of the others.
    counts = {name: sum(number is not None for number in found) for name, found in numbers.items()}
    most = max(counts, key=lambda name: counts[name])
    numbered = [one for one in checkpoints if axis_number(one, most) is not None]
    rest = sum(not is_numbered(one) and not is_initial(one.name) for one in checkpoints)
    elsewhere = sum(is_numbered(one) for one in checkpoints) - len(numbered)
    # Nor does a single one, however few the others are.
    enough = (rest == 1 or len(numbered) > rest) and len(numbered) > elsewhere
    return _inferred_axis(numbered) if numbered and enough else "index"


def _at_zero(one: Checkpoint, axis: str, others: Sequence[Checkpoint]) -> Checkpoint:
    """Give the checkpoint of the untrained network epoch 0 and step 0, as far as all others have these."""
    epoch = axis == "epoch" or all(other.epoch is not None for other in others)
    step = axis == "step" or all(other.step is not None for other in others)
    return dataclasses.replace(one, epoch=0.0 if epoch else one.epoch, step=0 if step else one.step, step_source="name")


def _without_sizes(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Drop steps that may be network sizes (`gpt_124M_a.pt`): those in several names, or in the only name."""
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


def _order_by_name_notice(checkpoints: Sequence[Checkpoint]) -> list[str]:
    if len(checkpoints) < 2:
        return []
    rest = [one.name for one in checkpoints if not is_numbered(one)]
    what = f"{listed(rest, 3)}: states neither epoch nor step" if rest else "some state an epoch, others a step"
    return [f"{what}, so the series is ordered by name, from {checkpoints[0].name} to {checkpoints[-1].name}."]


def refuse_repeated(checkpoints: Sequence[Checkpoint], axis: str) -> None:
    """Refuse a series with two checkpoints at one position of its axis.

    Raises:
        InputError: Two have the same number.
    """
    if axis == "index":
        return
    counts = Counter(axis_number(one, axis) for one in checkpoints)
    for number, count in counts.items():
        if count > 1:
            names = [one.name for one in checkpoints if axis_number(one, axis) == number]
            raise InputError(
                f"{', '.join(names[:3])}: {axis} {number:g} occurs {count} times; a series has each once. "
                "Move one away, or tell them apart with a pattern under [series] in ibscan.toml."
            )
