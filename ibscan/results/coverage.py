"""Which cells of a result are measured already, and whether a measure may join it at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibscan.core.measure import Measure
from ibscan.core.quantity import Quantity
from ibscan.results.axes import AGREEING, checkpoint_keys, fill_value, is_fill
from ibscan.types import Array, Estimate, Result, Status

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

# A cell of these is measured again by the next run.
FAILURES = (Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY)
# Errors that differ by no more than this share are those of one measurement, rounded in another way.
ROUNDING = 1e-6


def rows_of(result: Result) -> dict[tuple[str, str], int]:
    """Return the row of each checkpoint, by (sha256, name)."""
    return {key: row for row, key in enumerate(checkpoint_keys(result))}


def statuses(result: Result) -> dict[str, Array]:
    """Return the status arrays by name, but those of metrics.

    A metric is what the training loop wrote; that it is not finite is no failure of ours.
    """
    names = (name for name in result.variables if name.endswith("_status") and not name.startswith("metric_"))
    return {name: result[name].values for name in names}


def failures(result: Result) -> int:
    """Return how many cells failed to be measured."""
    return sum(int(np.isin(array, FAILURES).sum()) for array in statuses(result).values())


def conflict(result: Result, measures: Sequence[Measure], rows: int) -> str | None:
    """Say in what way measures of other rows, or at another place, stand in the result already.

    Args:
        result: The file's.
        measures: What is asked for.
        rows: Rows of the whole probe.

    Returns:
        A clause naming the first difference, or None.
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
    """Return whether every cell that a measure would give for a checkpoint is there, measured, and precise enough.

    Args:
        result: The file's, of the same identity.
        row: The checkpoint's place in it.
        measure: What is asked for.
        layers: Names of the layers asked for.

    Returns:
        False where a cell is absent, failed, not finite, or (noisy values) wider than the tolerance while the budget
        asked for is larger than the one it had.
    """
    quantities = {quantity.key: quantity for quantity in measure.quantities}
    return all(_covers_variable(result, row, measure, quantities[key], layers) for key in measure.primary)


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
    # What belongs to the checkpoint alone may be not measurable at all, as accuracy is without labels.
    retried = (Status.NOT_MEASURED, *FAILURES) if quantity.per_layer else FAILURES
    if np.isin(status[at], retried).any():
        return False
    tolerance = getattr(measure, "tolerance", None)
    return tolerance is None or _precise(result, measure, key, at, tolerance)


def _precise(result: Result, measure: Measure, key: str, at: Any, tolerance: float) -> bool:  # noqa: ANN401 - np.ix_
    width = np.zeros(result[key].values[at].shape)
    gap = width
    for name in (key, key.replace("_xt", "_ty")):
        width = np.fmax(width, 1.96 * result[f"{name}_se"].values[at])
        gap = np.fmax(gap, open_bracket(result, name, at))
    status = result.status(key)
    unresolved = np.zeros(width.shape, dtype=bool) if status is None else status[at] == Status.UNRESOLVED
    budget = getattr(measure, "max_draws", 0)
    # Draws do not depend on the run: with a budget that allows no further round a cell would come out as it is.
    round_of_draws = min(int(result[key].attrs["rows"]), budget // 2)
    # A number that just met the tolerance is computed from others here, with another rounding.
    most = tolerance * (1 + 1e-9)
    spent = (width > tolerance) & (result[f"{key}_draws"].values[at] + round_of_draws > budget)
    if (allowed := Estimate.companion(key, "budget")) in result:
        asked = getattr(measure, "max_replicas", 0) * budget
        # What a budget could not do it could not do again, whichever part of it was short.
        spent = (np.fmax(width, gap) > most) & (result[allowed].values[at] >= asked)
    return bool(np.where(unresolved, spent, np.fmax(width, gap) <= most).all())


def open_bracket(result: Result, key: str, at: Any = ...) -> Array:  # noqa: ANN401 - an index
    """Return half of what a value's bracket leaves open beside its 95 % interval; 0 where ends are other bounds."""
    if Estimate.companion(key.replace("_ty", "_xt"), "budget") not in result:
        return np.zeros(result[key].values[at].shape)
    ends = result[f"{key}_upper"].values[at] - result[f"{key}_lower"].values[at]
    return np.asarray(0.5 * ends - 1.96 * result[f"{key}_se"].values[at])


def measured_cells(result: Result, main: str) -> Array:
    """Return where there is anything of a main variable, failures included."""
    status, values = result.status(main), result[main].values
    return ~is_fill(values, fill_value(main, values.dtype)) if status is None else status != Status.NOT_MEASURED


def half_width(result: Result, main: str) -> Array:
    """Return what is held against the tolerance: of the 95 % interval, and of the bracket where there is one."""
    if Estimate.companion(main.replace("_ty", "_xt"), "budget") not in result:
        return np.asarray(1.96 * result[f"{main}_se"].values)
    # Both sides of a bracketed cell are resolved together or not at all.
    width = np.zeros(result[main].values.shape)
    for side in (f"{main[:-3]}_xt", f"{main[:-3]}_ty"):
        width = np.fmax(width, np.fmax(1.96 * result[f"{side}_se"].values, open_bracket(result, side)))
    return width


def _positions(present: Array, asked: Sequence[Any]) -> list[int] | None:
    index = {value: k for k, value in enumerate(present.tolist())}
    found = [index.get(value) for value in asked]
    return None if None in found else [k for k in found if k is not None]
