"""Resume a run: what its output and its parts hold already, and what is left to measure."""

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

__all__ = [
    "changed_names",
    "finished_parts",
    "is_unchanged",
    "kept_rows",
    "remaining",
    "renamed",
    "resumed_blocks",
    "stored_result",
]


def stored_result(request: Request, plan: Plan) -> Result | None:
    """Read the existing output if the request may extend it; None if there is none, or if --force replaces it.

    Raises:
        UsageError: The output holds another result, and --force was not given.
    """
    if request.output is None or not request.output.exists():
        return None
    stored = read(request.output)
    difference = first_difference(stored, plan.attrs)
    if difference is not None and request.force:
        return None
    if difference is None and not request.force:
        difference = conflict(stored, plan.measures, len(plan.probe.x))
        # --follow expects files to change.
        if difference is None and not request.follow:
            difference = changed_checkpoint(stored, plan.series.checkpoints)
    if difference is not None:
        raise UsageError(
            f"{request.output} holds another result: {difference}. Write elsewhere with -o, or replace it with --force."
        )
    return stored


def renamed(stored: Result, checkpoints: Sequence[Checkpoint]) -> Result:
    """Return the result with the current names of checkpoints whose files were renamed."""
    names, rows = {checkpoint.name for checkpoint in checkpoints}, rows_of(stored)
    new_names = {c.sha256: c.name for c in checkpoints if (c.sha256, c.name) not in rows}
    column = stored["checkpoint_name"]
    values = column.values.copy()
    for (sha, name), row in rows.items():
        if sha in new_names and name not in names:
            values[row] = new_names.pop(sha)
    coordinates = {**stored.coordinates, "checkpoint_name": dataclasses.replace(column, values=values)}
    return dataclasses.replace(stored, coordinates=coordinates)


def changed_names(stored: Result, result: Result) -> list[str]:
    """Return the names of checkpoints whose content differs between the two results."""
    hashes = {name: sha for sha, name in rows_of(stored)}
    return [name for sha, name in rows_of(result) if hashes.get(name, sha) != sha]


def changed_checkpoint(stored: Result, checkpoints: Sequence[Checkpoint]) -> str | None:
    """Return a message about a checkpoint whose content changed since it was measured, or None."""
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
    """Return the plan without measures that the output covers, and the checkpoints that still need measuring."""
    series = plan.series
    # What --force replaces is measured again for every checkpoint.
    if stored is None or not request.resume or conflict(stored, plan.measures, len(plan.probe.x)) is not None:
        return plan, series.checkpoints
    rows = rows_of(stored)
    chosen = [plan.model.layers[layer] for layer in plan.layers]

    def done(measure: Measure, checkpoint: Checkpoint) -> bool:
        row = rows.get((checkpoint.sha256, checkpoint.name))
        names = [layer.name for layer in chosen if measure.applies_to(layer, plan.model.names)]
        return row is not None and covers(stored, row, measure, names)

    measures = tuple(m for m in plan.measures if not all(done(m, c) for c in series.checkpoints))
    waiting = series.without(lambda checkpoint: all(done(measure, checkpoint) for measure in measures))
    return dataclasses.replace(plan, measures=measures), waiting.checkpoints


def finished_parts(kept: Parts, plan: Plan) -> dict[tuple[str, str], Result]:
    """Return the parts that hold every measure of the plan without failures, by the (sha256, name) of checkpoints.

    Args:
        kept: The parts of this command.
        plan: From `remaining`.
    """
    found: dict[tuple[str, str], Result] = {}
    for part in kept.finished():
        # Measures that the output covered when the part was written are missing from it.
        complete = all(any(key in part for key in measure.required_keys) for measure in plan.measures)
        if complete and not failures(part):
            part = renamed(part, plan.series.checkpoints)
            found.update(dict.fromkeys(rows_of(part), part))
    return found


def kept_rows(block: Sequence[Checkpoint], finished: Mapping[tuple[str, str], Result]) -> list[Result]:
    """Return the rows of a block's checkpoints, cut out of the parts that hold them.

    Args:
        block: Checkpoints, all of them in parts.
        finished: From `finished_parts`.
    """
    keys = [(checkpoint.sha256, checkpoint.name) for checkpoint in block]
    distinct = {id(finished[key]): finished[key] for key in keys}
    return [selected(part, checkpoints=set(keys) & set(rows_of(part))) for part in distinct.values()]


def resumed_blocks(
    begun: Sequence[Sequence[tuple[str, str]]],
    series: Sequence[Checkpoint],
    waiting: Sequence[Checkpoint],
    cut: Callable[[Sequence[Checkpoint]], list[tuple[Checkpoint, ...]]],
) -> list[tuple[Checkpoint, ...]]:
    """Return the blocks to measure: those of an unfinished run as they were, and the other checkpoints cut anew.

    Which checkpoints are stacked together decides the last bits of numbers, so a resumed run must keep its blocks even
    if other commands have measured some of them meanwhile.

    Args:
        begun: Blocks of an unfinished run of the same command, by the (sha256, name) of their checkpoints.
        series: All checkpoints asked for.
        waiting: Checkpoints that still need measuring.
        cut: Cuts checkpoints into blocks.
    """
    position = {(checkpoint.sha256, checkpoint.name): k for k, checkpoint in enumerate(series)}
    needed = {(checkpoint.sha256, checkpoint.name) for checkpoint in waiting}
    blocks: list[tuple[Checkpoint, ...]] = []
    assigned: set[tuple[str, str]] = set()
    for block in begun:
        if position.keys() >= set(block) and assigned.isdisjoint(block) and not needed.isdisjoint(block):
            blocks.append(tuple(series[position[key]] for key in block))
            assigned.update(block)
    blocks += cut([checkpoint for checkpoint in waiting if (checkpoint.sha256, checkpoint.name) not in assigned])
    return sorted(blocks, key=lambda block: position[block[0].sha256, block[0].name])


def is_unchanged(stored: Result, result: Result) -> bool:
    """Return whether coordinates, settings and completeness are the same, so that the file need not be rewritten."""
    same = all(
        name in stored
        and np.array_equal(stored[name].values, coordinate.values, equal_nan=coordinate.values.dtype.kind == "f")
        for name, coordinate in result.coordinates.items()
    )
    return same and all(
        stored.attrs.get(name) == result.attrs.get(name) for name in ("settings", "skipped", "complete")
    )
