"""Run a request: what both the command line and Python call."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.engine import resume
from ibscan.engine.complete import planned
from ibscan.engine.pace import Pace
from ibscan.engine.plan import Plan, skip_sentence
from ibscan.engine.request import PARTIAL, Reporter, Request, Silent
from ibscan.engine.scan import Block, blocks, partition
from ibscan.engine.watch import polls
from ibscan.errors import InputError
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.results.axes import is_metric
from ibscan.results.coverage import FAILURES, failures, rows_of, statuses
from ibscan.results.join import join, joined
from ibscan.results.parts import Parts, parts
from ibscan.results.schema import build
from ibscan.results.select import arranged, selected
from ibscan.results.stated import contradiction
from ibscan.results.store import write
from ibscan.results.unresolved import unresolved_sentences

__all__ = ["Finished", "run"]


@dataclass(frozen=True)
class Finished:
    """What a scan came to: its result, the file it was written to if any, and the exit code of the command."""

    result: Result
    output: Path | None
    exit_code: int


def run(request: Request, reporter: Reporter | None = None) -> Finished:
    """Run a scan verb.

    Finished blocks are kept as parts beside the output; the file is written once all are there. The same request again
    measures only what is missing. With `follow` the file is updated after every poll of the folder.

    Args:
        request: What to measure, on what, and where to write; without an output the result stays in memory.
        reporter: Hears notices and progress.

    Returns:
        The cells asked for, the output, and 0 or 4 (a checkpoint or a cell failed).

    Raises:
        IbscanError: With the exit code of the guide's table (ci.md).
        Interrupted: A signal; the parts stay.
    """
    reporter = reporter or Silent()
    if request.follow and request.output is not None:
        return _follow(request, request.output, reporter)
    plan = planned(request, reporter)
    if request.output is None:
        found, skipped = _measure_blocks(plan, _cut(plan, plan.series.checkpoints), {}, None, reporter)
        result = joined(found)
    else:
        with parts(request.output, "") as store:
            result, skipped = _update_file(request, plan, request.output, store, reporter, set())
    return _run_of(request, plan, result, skipped, set(), reporter)


def _follow(request: Request, output: Path, reporter: Reporter) -> Finished:
    """Measure a folder's checkpoints as they arrive, and bring the file up to date after every poll."""
    following = polls(request, reporter)
    measured: set[tuple[str, str]] = set()
    with parts(output, "") as store:
        for poll in following:
            before = len(measured)
            result, skipped = _update_file(request, poll.plan, output, store, poll.reporter, measured, final=poll.last)
            # Only the first poll honours --force and --no-resume: later ones must keep what this run has measured.
            request = dataclasses.replace(request, resume=True, force=False)
            gone = [c.name for c in poll.plan.series.checkpoints if c.name in skipped and not c.path.exists()]
            if gone:
                poll.reporter.notice(f"{', '.join(gone)}: deleted before it could be measured.")
            if len(measured) > before:
                poll.reporter.notice(f"{output} is up to date; checkpoints measured so far: {len(measured)}.")
            plan = poll.plan
    return _run_of(request, plan, result, skipped, measured, reporter)


def _run_of(
    request: Request,
    plan: Plan,
    result: Result | None,
    skipped: Mapping[str, str],
    measured: set[tuple[str, str]],
    reporter: Reporter,
) -> Finished:
    """Return the run: the part of the result asked for, with `measured` checkpoints that were deleted since."""
    skipped = {**plan.series.skipped, **skipped}
    asked = None if result is None else _asked(result, plan, measured)
    if asked is None or not rows_of(asked):
        reasons = " ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise InputError(f"no checkpoint could be measured. {reasons}")
    asked = _with_run_attrs(asked, plan, skipped)
    contradicted = contradiction(asked, plan.series.checkpoints, len(plan.probe.labels))
    if contradicted is not None:
        reporter.notice(contradicted)
    return Finished(asked, request.output, _exit_code(asked, skipped, request, reporter))


def _update_file(
    request: Request,
    plan: Plan,
    output: Path,
    store: Parts,
    reporter: Reporter,
    measured: set[tuple[str, str]],
    *,
    final: bool = True,
) -> tuple[Result | None, dict[str, str]]:
    """Measure what the output does not hold and this run has not `measured` (updated in place), and write the file."""
    # Read under the lock: another run may be finishing this very file.
    on_disk = resume.stored_result(request, plan)
    stored = None if on_disk is None else resume.renamed(on_disk, plan.series.checkpoints)
    left, waiting = resume.remaining(request, plan, stored)
    kept = dataclasses.replace(store, key=plan.part_key())
    finished = resume.finished_parts(kept, left) if request.resume else {}
    waiting = [c for c in waiting if (c.sha256, c.name) not in measured]
    cut = resume.resumed_blocks(
        kept.begun() if request.resume else (), plan.series.checkpoints, waiting, partial(_cut, left)
    )
    kept.begin([[(c.sha256, c.name) for c in block] for block in cut])
    found, skipped = _measure_blocks(left, cut, finished, kept.add, reporter)
    measured.update(key for part in found for key in rows_of(part))
    result = joined(found)
    if stored is not None:
        # While training goes on, a checkpoint that changed replaces its earlier rows.
        for name in resume.changed_names(stored, result) if request.follow and result is not None else ():
            reporter.notice(f"{name}: has changed since it was measured, so it was measured again.")
        replace, tolerance = request.force or request.follow, request.option("tolerance") if request.resume else None
        result = stored if result is None else join(stored, result, replace=replace, tolerance=tolerance)
    if result is not None and (stored is not None or finished):
        # Names, sidecars and the manifest may hold more numbers of a checkpoint than when it was measured.
        present = rows_of(result)
        known = [c for c in plan.series.checkpoints if (c.sha256, c.name) in present]
        result = join(result, build(known, (), (), attrs=plan.attrs), replace=request.force)
    if result is not None:
        # Checkpoints that could not be read yet may be complete at the next poll.
        result = _with_run_attrs(result, plan, skipped if final else {})
        if not final:
            result = dataclasses.replace(result, attrs={**result.attrs, "complete": 0})
        if on_disk is None or found or not resume.is_unchanged(on_disk, result):
            write(result, output)
    # Even if nothing was measured: a run that died after writing the file left its parts behind.
    dataclasses.replace(kept, held=result, series=plan.series.checkpoints).remove()
    return result, skipped


def _cut(plan: Plan, checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, ...]]:
    if not checkpoints:
        return []
    rows = max(plan.rows(measure) for measure in plan.measures)
    units = sum(layer.width for layer in plan.model.layers)
    weights = sum(math.prod(tensor.shape) for tensor in checkpoints[0].tensors.values())
    return partition(checkpoints, units, rows, weights, plan.most)


def _measure_blocks(
    plan: Plan,
    cut: Sequence[tuple[Checkpoint, ...]],
    finished: Mapping[tuple[str, str], Result],
    keep: Callable[[Result, Sequence[Path]], None] | None,
    reporter: Reporter,
) -> tuple[list[Result], dict[str, str]]:
    """Return the results of all blocks, from `finished` parts or measured now, and the checkpoints that were skipped.

    `keep` is called with the result and the files of every block that is measured.
    """
    if not cut:
        return [], {}
    # A block with one checkpoint missing is measured again: the last bits depend on what is stacked together.
    ready = [all((c.sha256, c.name) in finished for c in block) for block in cut]
    found = [part for block, done in zip(cut, ready, strict=True) if done for part in resume.kept_rows(block, finished)]
    todo = [block for block, done in zip(cut, ready, strict=True) if not done]
    total, whole = (sum(len(block) for block in part) for part in (todo, cut))
    if total < whole:
        reporter.notice(f"{whole - total} of {whole} checkpoints taken up from a scan that was interrupted.")
    reporter.started(total)
    skipped: dict[str, str] = {}
    reported: set[str] = set()
    work = plan.model.network, plan.measures, plan.probe, plan.attrs["seed"], plan.layers
    pace = Pace(plan, total, reporter)
    for block in blocks(todo, load_tensors, *work, guard=plan.model.guard, watch=pace):
        for name, reason in block.skipped.items():
            reporter.problem(skip_sentence(name, reason))
        skipped.update(block.skipped)
        for sentence, failed in block.sentences():
            if sentence not in reported:
                reported.add(sentence)
                (reporter.problem if failed else reporter.notice)(sentence)
        if block.checkpoints:
            # One part for each block, so that a block is kept or lost as a whole, by one write.
            found.append(_block_result(block, plan))
            if keep is not None:
                keep(found[-1], [checkpoint.path for checkpoint in block.checkpoints])
            for checkpoint in block.checkpoints:
                reporter.advanced(checkpoint.name)
    return found, skipped


def _block_result(block: Block, plan: Plan) -> Result:
    """Return a block as a result with only the layers asked for."""
    chosen = list(plan.layers)

    def cut(estimate: Estimate) -> Estimate:
        return estimate.mapped(lambda array: array[:, chosen])

    outcomes = []
    for measure, estimates, rows in block.outcomes:
        per_layer = {quantity.key for quantity in measure.quantities if quantity.per_layer}
        outcomes.append((measure, {k: cut(e) if k in per_layer else e for k, e in estimates.items()}, rows))
    layers = [layer for k, layer in enumerate(block.layers) if k in chosen]
    return build(block.checkpoints, layers, outcomes, attrs=plan.attrs)


def _with_run_attrs(result: Result, plan: Plan, skipped: Mapping[str, str]) -> Result:
    """Return the result in the plan's order, with this run's versions, skipped checkpoints and completeness."""
    present = {name for _, name in rows_of(result)}
    # A folder lists all its checkpoints. With single files, those skipped by earlier runs still count.
    before = {} if plan.folder else json.loads(result.attrs.get("skipped", "{}"))
    left_out = {**before, **plan.series.skipped, **skipped}
    left_out = {name: reason for name, reason in left_out.items() if name not in present}
    complete = not left_out and not failures(result)
    fresh = {name: plan.attrs[name] for name in ("created_at", "command", "device", "ibscan_version", "torch_version")}
    attrs = {**result.attrs, **fresh, "skipped": json.dumps(left_out, sort_keys=True), "complete": int(complete)}
    order = [quantity.key for measure in plan.measures for quantity in measure.quantities]
    return dataclasses.replace(arranged(result, order), attrs=attrs)


def _asked(result: Result, plan: Plan, measured: set[tuple[str, str]]) -> Result:
    """Return the checkpoints, layers and quantities that were asked for."""
    coordinates: dict[str, Any] = {dim: list(v) for m in plan.measures for dim, v in m.coordinates.items()}
    coordinates["layer"] = [plan.model.names[layer] for layer in plan.layers]
    variables = [quantity.key for measure in plan.measures for quantity in measure.quantities]
    variables += [name for name in result.quantities if is_metric(name)]
    keys = {(c.sha256, c.name) for c in plan.series.checkpoints} | (measured & set(rows_of(result)))
    return selected(result, checkpoints=keys, variables=variables, coordinates=coordinates)


def _exit_code(result: Result, skipped: Mapping[str, str], request: Request, reporter: Reporter) -> int:
    """Report failed and unresolved cells and return the exit code."""
    failed, arrays = failures(result), statuses(result).values()
    unresolved = any((array == Status.UNRESOLVED).any() for array in arrays)
    if failed:
        kinds = [s.name.lower() for s in FAILURES if any((array == s).any() for array in arrays)]
        cells = "1 cell" if failed == 1 else f"{failed} cells"
        reporter.problem(f"{cells} could not be measured ({', '.join(kinds)}); running again tries again.")
    budget = {name: request.option(name) for name in ("tolerance", "max_replicas", "max_draws")}
    for sentence in unresolved_sentences(result, **budget):
        (reporter.problem if request.strict else reporter.notice)(sentence)
    return PARTIAL if failed or skipped or (request.strict and unresolved) else 0
