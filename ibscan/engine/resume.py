"""What an output holds already: whether a run may join it, and what is left to measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ibscan.core.measure import Measure
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.engine.plan import Plan
from ibscan.engine.request import Request
from ibscan.errors import UsageError
from ibscan.results.coverage import conflict, covers, failures, rows_of
from ibscan.results.join import first_difference
from ibscan.results.parts import Parts
from ibscan.results.select import selected
from ibscan.results.store import read

__all__ = ["changed", "formed", "kept_rows", "remaining", "renamed", "stored_result", "taken_up", "tells_the_same"]


def stored_result(request: Request, plan: Plan) -> Result | None:
    """Return the output as it is, if the request may join it; of another identity it is refused or, forced, left."""
    if request.output is None or not request.output.exists():
        return None
    stored = read(request.output)
    difference = first_difference(stored, plan.attrs)
    if difference is not None and request.force:
        return None
    if difference is None and not request.force:
        difference = conflict(stored, plan.measures, len(plan.probe.x))
        # A folder is followed because its files change.
        if difference is None and not request.follow:
            difference = changed_checkpoint(stored, plan.series.checkpoints)
    if difference is not None:
        raise UsageError(
            f"{request.output} holds another result: {difference}. Write elsewhere with -o, or replace it with --force."
        )
    return stored


def renamed(stored: Result, checkpoints: Sequence[Checkpoint]) -> Result:
    """Return the result with the new names of checkpoints whose files were renamed since."""
    names, rows = {checkpoint.name for checkpoint in checkpoints}, rows_of(stored)
    fresh = {c.sha256: c.name for c in checkpoints if (c.sha256, c.name) not in rows}
    column = stored["checkpoint_name"]
    values = column.values.copy()
    for (sha, name), row in rows.items():
        if sha in fresh and name not in names:
            values[row] = fresh.pop(sha)
    coordinates = {**stored.coordinates, "checkpoint_name": dataclasses.replace(column, values=values)}
    return dataclasses.replace(stored, coordinates=coordinates)


def changed(stored: Result, result: Result) -> list[str]:
    """Return the names under which the two hold different contents."""
    hashes = {name: sha for sha, name in rows_of(stored)}
    return [name for sha, name in rows_of(result) if hashes.get(name, sha) != sha]


def changed_checkpoint(stored: Result, checkpoints: Sequence[Checkpoint]) -> str | None:
    """Say which checkpoint has another content than when it was measured, or None."""
    hashes = {name: sha for sha, name in rows_of(stored)}
    for checkpoint in checkpoints:
        before = hashes.get(checkpoint.name, checkpoint.sha256)
        if before != checkpoint.sha256:
            return (
                f"checkpoint {checkpoint.name} has changed, its SHA-256 is {before[:12]}... there and "
                f"{checkpoint.sha256[:12]}... now"
            )
    return None


def remaining(request: Request, plan: Plan, stored: Result | None) -> tuple[Plan, Sequence[Checkpoint]]:
    """Return the plan less the measures, and the checkpoints less those, that the output covers."""
    series = plan.series
    # A measure that --force replaces is measured anew everywhere.
    if stored is None or not request.resume or conflict(stored, plan.measures, len(plan.probe.x)) is not None:
        return plan, series.checkpoints
    places = rows_of(stored)
    chosen = [plan.model.layers[layer] for layer in plan.layers]

    def done(measure: Measure, checkpoint: Checkpoint) -> bool:
        row = places.get((checkpoint.sha256, checkpoint.name))
        names = [layer.name for layer in chosen if measure.applies_to(layer, plan.model.names)]
        return row is not None and covers(stored, row, measure, names)

    measures = tuple(m for m in plan.measures if not all(done(m, c) for c in series.checkpoints))
    waiting = series.without(lambda checkpoint: all(done(measure, checkpoint) for measure in measures))
    return dataclasses.replace(plan, measures=measures), waiting.checkpoints


def taken_up(kept: Parts, plan: Plan) -> dict[tuple[str, str], Result]:
    """Return, by checkpoint, the parts that hold all that is left to measure.

    Args:
        kept: The parts of this command.
        plan: Less the measures that the output covers.
    """
    found: dict[tuple[str, str], Result] = {}
    for part in kept.finished():
        # A run that found some measures in its output has parts without them.
        whole = all(any(key in part for key in measure.required_keys) for measure in plan.measures)
        if whole and not failures(part):
            part = renamed(part, plan.series.checkpoints)
            found.update(dict.fromkeys(rows_of(part), part))
    return found


def kept_rows(block: Sequence[Checkpoint], finished: Mapping[tuple[str, str], Result]) -> list[Result]:
    """Return a block's rows of the parts they are in: one part, if the series is cut as it was then.

    Args:
        block: Checkpoints, all of them in parts.
        finished: As `taken_up` returns them.
    """
    keys = [(checkpoint.sha256, checkpoint.name) for checkpoint in block]
    distinct = {id(finished[key]): finished[key] for key in keys}
    return [selected(part, checkpoints=set(keys) & set(rows_of(part))) for part in distinct.values()]


def formed(
    begun: Sequence[Sequence[tuple[str, str]]],
    series: Sequence[Checkpoint],
    waiting: Sequence[Checkpoint],
    cut: Callable[[Sequence[Checkpoint]], list[tuple[Checkpoint, ...]]],
) -> list[tuple[Checkpoint, ...]]:
    """Return blocks to measure: those that a run before had begun, just as they were, and what is left, cut anew.

    What other commands measured meanwhile does not change what is stacked together, and so no bit of the numbers.

    Args:
        begun: Blocks of an unfinished run of the same command, by the (sha256, name) of their checkpoints.
        series: All checkpoints asked for.
        waiting: Those of which something is left to measure.
        cut: Cuts checkpoints into blocks.
    """
    place = {(checkpoint.sha256, checkpoint.name): k for k, checkpoint in enumerate(series)}
    left = {(checkpoint.sha256, checkpoint.name) for checkpoint in waiting}
    blocks: list[tuple[Checkpoint, ...]] = []
    taken: set[tuple[str, str]] = set()
    for block in begun:
        if place.keys() >= set(block) and taken.isdisjoint(block) and not left.isdisjoint(block):
            blocks.append(tuple(series[place[key]] for key in block))
            taken.update(block)
    blocks += cut([checkpoint for checkpoint in waiting if (checkpoint.sha256, checkpoint.name) not in taken])
    return sorted(blocks, key=lambda block: place[block[0].sha256, block[0].name])


def tells_the_same(stored: Result, result: Result) -> bool:
    """Return whether nothing changed but who asked when."""
    same = all(
        name in stored
        and np.array_equal(stored[name].values, coordinate.values, equal_nan=coordinate.values.dtype.kind == "f")
        for name, coordinate in result.coordinates.items()
    )
    return same and all(
        stored.attrs.get(name) == result.attrs.get(name) for name in ("settings", "skipped", "complete")
    )
