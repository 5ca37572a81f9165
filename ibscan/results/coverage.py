"""Which cells of a result are measured already, and whether a measure may join it at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibscan.results.axes import checkpoint_keys
from ibscan.types import Array, Checkpoint, Measure, Result, Status

__all__ = ["conflict", "covers", "rows_of"]

# A cell of these is measured again by the next run.
RETRIED = (Status.NOT_MEASURED, Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY)


def rows_of(result: Result) -> dict[tuple[str, str], int]:
    """Return the row of each checkpoint, by (sha256, name)."""
    return {key: row for row, key in enumerate(checkpoint_keys(result))}


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
            spectral = getattr(measure, "spectrum_rows", None)
            limit = used if quantity.dims in (("eps",), ("rel_eps",)) or spectral is None else min(used, spectral)
            for name, asked in (("at", measure.at), ("rows", limit)):
                if attrs.get(name) != asked:
                    return f"{quantity.key} was measured with {name} = {attrs.get(name)}, and {asked} is asked for"
    return None


def covers(result: Result, checkpoint: Checkpoint, measures: Sequence[Measure], layers: Sequence[str]) -> bool:
    """Return whether every cell asked for is there, measured, and precise enough.

    Args:
        result: The file's, of the same identity.
        checkpoint: Whose cells.
        measures: What is asked for.
        layers: Names of the layers asked for.

    Returns:
        False where a cell is absent, failed, not finite, or (noisy values) wider than the tolerance while the budget
        asked for is larger than the one it had.
    """
    row = rows_of(result).get((checkpoint.sha256, checkpoint.name))
    return row is not None and all(
        _covers_variable(result, row, measure, key, layers) for measure in measures for key in measure.primary
    )


def _covers_variable(result: Result, row: int, measure: Measure, key: str, layers: Sequence[str]) -> bool:
    if key not in result.variables:
        return False
    picks = [_positions(result["layer"].values, layers)]
    dims = next(quantity.dims for quantity in measure.quantities if quantity.key == key)
    picks += [_positions(result[dim].values, measure.coordinates[dim]) for dim in dims]
    if any(pick is None for pick in picks):
        return False
    at = np.ix_([row], *(pick for pick in picks if pick is not None))
    status = result.status(key)
    if status is None:
        return bool(np.isfinite(result[key].values[at]).all())
    if np.isin(status[at], RETRIED).any():
        return False
    tolerance = getattr(measure, "tolerance", None)
    return tolerance is None or _precise(result, measure, key, at, tolerance)


def _precise(result: Result, measure: Measure, key: str, at: Any, tolerance: float) -> bool:  # noqa: ANN401 - np.ix_
    width = np.zeros(result[key].values[at].shape)
    for name in (key, key.replace("_xt", "_ty")):
        width = np.fmax(width, 1.96 * result[f"{name}_se"].values[at])
    status = result.status(key)
    unresolved = False if status is None else status[at] == Status.UNRESOLVED
    spent = result.settings.get("measures", {}).get(measure.name, {}).get("max_draws", 0)
    within = (width <= tolerance) & ~np.asarray(unresolved)
    # Draws do not depend on the run: with the same budget an unresolved cell would come out as it is.
    exhausted = np.asarray(unresolved) & (width > tolerance) & (spent >= getattr(measure, "max_draws", 0))
    return bool((within | exhausted).all())


def _positions(present: Array, asked: Sequence[Any]) -> list[int] | None:
    index = {value: k for k, value in enumerate(present.tolist())}
    found = [index.get(value) for value in asked]
    return None if None in found else [k for k in found if k is not None]
