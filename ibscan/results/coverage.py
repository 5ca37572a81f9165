"""Find which cells of a result are already measured, and whether a measure may be joined to it.

A cell is one value: of a quantity, at a checkpoint, a layer and a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.quantity import Quantity
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.results.axes import AGREEING, checkpoint_keys, fill_value, is_fill, is_metric

__all__ = [
    "FAILURES",
    "ROUNDING",
    "conflict",
    "covers",
    "failures",
    "half_width",
    "measured_cells",
    "open_bracket",
    "rows_of",
    "statuses",
]

# The next run measures cells with these statuses again.
FAILURES = (Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY)
# Errors that differ by less than this share are taken to be equal but for rounding.
ROUNDING = 1e-6


def rows_of(result: Result) -> dict[tuple[str, str], int]:
    """Return the row of each checkpoint, by (sha256, name)."""
    return {key: row for row, key in enumerate(checkpoint_keys(result))}


def statuses(result: Result) -> dict[str, Array]:
    """Return the status array of each quantity that has one, metrics aside.

    A metric that is not finite was written so by the training loop, and is no failure to measure.
    """
    found = ((key, result.status(key)) for key in result.quantities if not is_metric(key))
    return {key: status for key, status in found if status is not None}


def failures(result: Result) -> int:
    """Count the cells that failed to be measured."""
    return sum(int(np.isin(array, FAILURES).sum()) for array in statuses(result).values())


def conflict(result: Result, measures: Sequence[Measure], rows: int) -> str | None:
    """Return a clause on the first quantity that was measured under other terms than asked for, or None.

    Terms are the rows, before or after the activation, and the measure's attributes; `rows` are those of the whole
    probe.
    """
    for measure in measures:
        used = rows if measure.samples is None else min(rows, measure.samples)
        for quantity in measure.quantities:
            if quantity.key not in result.variables:
                continue
            attrs = result[quantity.key].attrs
            wanted = {"at": measure.at, "rows": quantity.rows(measure, used), **measure.attributes}
            for name, asked in wanted.items():
                there = attrs.get(name, AGREEING[name])
                if there != asked:
                    return f"{quantity.key} was measured with {name} = {there}, and {asked} is asked for"
    return None


def covers(result: Result, row: int, measure: Measure, layers: Sequence[str]) -> bool:
    """Tell whether a result has every cell that a measure would give for a checkpoint, precise enough.

    It does not where a cell is absent, failed, not finite, or (noisy values) wider than the tolerance while the budget
    asked for is larger than the one it had. `row` is the checkpoint's index in the result, `layers` names those asked
    for.
    """
    quantities = {quantity.key: quantity for quantity in measure.quantities}
    return all(_covers_variable(result, row, measure, quantities[key], layers) for key in measure.required_keys)


def _covers_variable(result: Result, row: int, measure: Measure, quantity: Quantity, layers: Sequence[str]) -> bool:
    key = quantity.key
    if any(len(measure.coordinates[dim]) == 0 for dim in quantity.dims):
        return True
    if key not in result.variables:
        return False
    picks = [_positions(result["layer"].values, layers)] if quantity.per_layer else []
    picks += [_positions(result[dim].values, measure.coordinates[dim]) for dim in quantity.dims]
    if any(pick is None for pick in picks):
        return False
    at = np.ix_([row], *(pick for pick in picks if pick is not None))
    status = result.status(key)
    if status is None:
        return bool(np.isfinite(result[key].values[at]).all())
    # What belongs to the checkpoint alone may not be measurable at all, as accuracy without labels.
    retried = (Status.NOT_MEASURED, *FAILURES) if quantity.per_layer else FAILURES
    if np.isin(status[at], retried).any():
        return False
    tolerance = getattr(measure, "tolerance", None)
    return tolerance is None or _precise(result, measure, key, at, tolerance)


def _precise(result: Result, measure: Measure, key: str, at: Any, tolerance: float) -> bool:  # noqa: ANN401 - np.ix_
    found = result.estimate(key)
    assert found.status is not None
    width = np.zeros(found.value[at].shape)
    gap = width
    for side in Estimate.sides(key):
        width = np.fmax(width, 1.96 * _given(result, side, "stderr")[at])
        gap = np.fmax(gap, open_bracket(result, side)[at])
    budget = getattr(measure, "max_draws", 0)
    # Draws do not depend on the run: without budget for a further round the cell would stay as it is.
    round_of_draws = min(int(result[key].attrs["rows"]), budget // 2)
    # A width that just met the tolerance may round to a little more here.
    most = tolerance * (1 + 1e-9)
    if found.budget is not None:
        # Do not retry a cell with the same or a smaller budget, whichever part of it was short.
        allowed = getattr(measure, "allowed", None)
        asked = 0.0 if allowed is None else allowed(key)
        spent = (np.fmax(width, gap) > most) & (found.budget[at] >= asked)
    else:
        spent = (width > tolerance) & (_given(result, key, "draws")[at] + round_of_draws > budget)
    return bool(np.where(found.status[at] == Status.UNRESOLVED, spent, np.fmax(width, gap) <= most).all())


def _given(result: Result, key: str, field: str) -> Array:
    """Return a companion that every noisy value has."""
    found: Array = result.companions(key)[field].values
    return found


def _is_bracketed(result: Result, key: str) -> bool:
    """Tell whether a quantity is a side of a channel with a bracket; the difference of the sides has no tolerance."""
    return bool(Estimate.sides(key)) and result.bracket(key) is not None


def open_bracket(result: Result, key: str) -> Array:
    """Return by how much half the bracket exceeds the 95 % half width; 0 where ends are bounds of another kind."""
    if not _is_bracketed(result, key):
        return np.zeros(result[key].values.shape)
    ends = _given(result, key, "upper") - _given(result, key, "lower")
    return np.asarray(0.5 * ends - 1.96 * _given(result, key, "stderr"))


def measured_cells(result: Result, key: str) -> Array:
    """Return where a quantity was measured or failed."""
    status, values = result.status(key), result[key].values
    return ~is_fill(values, fill_value(values.dtype)) if status is None else status != Status.NOT_MEASURED


def half_width(result: Result, key: str) -> Array:
    """Return the half width that the tolerance limits: of the 95 % interval, and of the bracket where there is one."""
    if not _is_bracketed(result, key):
        return np.asarray(1.96 * _given(result, key, "stderr"))
    # Both sides of a bracketed cell are resolved together or not at all.
    width = np.zeros(result[key].values.shape)
    for side in Estimate.sides(key):
        width = np.fmax(width, np.fmax(1.96 * _given(result, side, "stderr"), open_bracket(result, side)))
    return width


def _positions(present: Array, asked: Sequence[Any]) -> list[int] | None:
    index = {value: k for k, value in enumerate(present.tolist())}
    found = [index.get(value) for value in asked]
    return None if None in found else [k for k in found if k is not None]
