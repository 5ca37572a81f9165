"""From a request to a result: the one road behind the command line and the Python functions."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature, signature
from os import PathLike
from pathlib import Path
from typing import Any

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.engine.plan import Plan, planned, skip_sentence
from ibscan.engine.request import PARTIAL, Reporter, Request, Silent, requested, run_settings
from ibscan.engine.resume import changed, formed, kept_rows, remaining, renamed, stored_result, taken_up, tells_the_same
from ibscan.engine.scan import Block, blocks, partition
from ibscan.engine.watch import polls
from ibscan.errors import InputError, UsageError
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.measures import measure_settings
from ibscan.results.axes import is_metric
from ibscan.results.coverage import FAILURES, failures, rows_of, statuses
from ibscan.results.join import first_difference, join, joined
from ibscan.results.parts import Parts, check_output, parts
from ibscan.results.schema import build
from ibscan.results.select import arranged, selected
from ibscan.results.stated import contradiction
from ibscan.results.store import read, write
from ibscan.results.unresolved import unresolved_sentences

__all__ = ["Run", "cluster", "mi", "rank", "run", "scan"]


@dataclass(frozen=True)
class Run:
    """What a scan gives: named arrays, the file they are in if any, and the exit code a command ends with.

    `run["local_rank"]` is one array; `run.result.estimate("local_rank")` has its errors, extremes and statuses too.
    """

    result: Result
    output: Path | None
    exit_code: int

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - a Variable, which numpy takes as an array
        return self.result[name]

    def __contains__(self, name: object) -> bool:
        return name in self.result

    def to_hdf5(self, path: str | PathLike[str]) -> None:
        """Write the arrays as one HDF5 file, whole or not at all.

        Raises:
            UsageError: The path is a folder, or a file that is no result of the same model, probe, seed and dtype.
            ResourceError: The disk is full.
        """
        target = Path(path)
        check_output(target, [])
        difference = first_difference(read(target), self.result.attrs) if target.exists() else None
        if difference is not None:
            raise UsageError(f"{target} holds another result: {difference}. Name another file.")
        write(self.result, target)

    def __iter__(self) -> Iterator[str]:
        return iter(self.result.variables)


def rank(ckpts: str | PathLike[str] | Sequence[str | PathLike[str]] = ".", **options: Any) -> Run:  # noqa: ANN401
    """Measure local rank; see `scan` for the arguments."""
    return run(_request("rank", ckpts, options))


def mi(ckpts: str | PathLike[str] | Sequence[str | PathLike[str]] = ".", **options: Any) -> Run:  # noqa: ANN401
    """Measure binned and noisy-channel mutual information; see `scan` for the arguments."""
    return run(_request("mi", ckpts, options))


def cluster(ckpts: str | PathLike[str] | Sequence[str | PathLike[str]] = ".", **options: Any) -> Run:  # noqa: ANN401
    """Measure clustering; see `scan` for the arguments."""
    return run(_request("cluster", ckpts, options))


def scan(ckpts: str | PathLike[str] | Sequence[str | PathLike[str]] = ".", **options: Any) -> Run:  # noqa: ANN401
    """Measure everything on a series of checkpoints.

    Args:
        ckpts: A folder, a file, or several files.
        **options: Those of the command line that say what to measure, with underscores: `probe`, `probe_arg` and
            `model_arg` (mappings), `model`, `chain`, `run_script`, `state_key`, `layers`, `at`, `epochs`, `samples`,
            `from_layer` (--from), `input_dims`, `eps`, `rel_eps`, `noise`, `rel_noise`, `bins`, `bin_width`,
            `bin_range`, `tolerance`, `seed`, ... A repeatable option takes one value or several; `rel_eps` may be
            empty. `output` names a file to write and resume; without it the result stays in memory.

    Returns:
        The run: `run["local_rank"]` is a named array, `run.to_hdf5(path)` writes the file.

    Raises:
        IbscanError: With the exit code of the guide's table (ci.md).
    """
    return run(_request("scan", ckpts, options))


def _keywords(*functions: Callable[..., Run]) -> None:
    """Let `help` and `inspect.signature` show the options by name; type checkers see `**options`."""
    for function in functions:
        keywords = [
            Parameter(setting.name, Parameter.KEYWORD_ONLY, default=setting.default)
            for setting in (*run_settings(), *measure_settings())
        ]
        first = signature(function).parameters["ckpts"]
        function.__signature__ = Signature([first, *keywords], return_annotation=Run)  # type: ignore[attr-defined]


_keywords(rank, mi, cluster, scan)


def run(request: Request, reporter: Reporter | None = None) -> Run:
    """Carry out a scan verb.

    Finished checkpoints lie as parts beside the output until all are there; the file is then written whole. The same
    request again takes up what is missing. With `follow` the file is whole after every look at the folder.

    Args:
        request: What to measure, on what, and where to write; no output keeps the result in memory.
        reporter: Told notices and progress.

    Returns:
        The cells asked for, the output, and 0 or 4 (a checkpoint or a cell failed).

    Raises:
        IbscanError: With the exit code of the guide's table (ci.md).
        Interrupted: A signal; the parts stay.
    """
    reporter = reporter or Silent()
    if request.follow and request.output is not None:
        return _followed(request, request.output, reporter)
    plan = planned(request, reporter)
    if request.output is None:
        found, skipped = _scanned(plan, _cut(plan, plan.series.checkpoints), {}, None, reporter)
        result = joined(found)
    else:
        with parts(request.output, "") as place:
            result, skipped = _written(request, plan, request.output, place, reporter, set())
    return _finished(request, plan, result, skipped, set(), reporter)


def _followed(request: Request, output: Path, reporter: Reporter) -> Run:
    """Carry out a scan verb on a folder as checkpoints arrive; the file is whole and up to date after every look."""
    following = polls(request, reporter)
    measured: set[tuple[str, str]] = set()
    with parts(output, "") as place:
        for poll in following:
            before = len(measured)
            result, skipped = _written(request, poll.plan, output, place, poll.reporter, measured, whole=poll.last)
            # The first look is what the command says; after it all that is there is this run's own.
            request = dataclasses.replace(request, resume=True, force=False)
            gone = [c.name for c in poll.plan.series.checkpoints if c.name in skipped and not c.path.exists()]
            if gone:
                poll.reporter.notice(f"{', '.join(gone)}: deleted before it could be measured.")
            if len(measured) > before:
                poll.reporter.notice(f"{output} is up to date; checkpoints measured so far: {len(measured)}.")
            plan = poll.plan
    return _finished(request, plan, result, skipped, measured, reporter)


def _finished(
    request: Request,
    plan: Plan,
    result: Result | None,
    skipped: Mapping[str, str],
    measured: set[tuple[str, str]],
    reporter: Reporter,
) -> Run:
    """Return what was asked for: the series, and what was `measured` of checkpoints that are gone by now."""
    skipped = {**plan.series.skipped, **skipped}
    asked = None if result is None else _asked(result, plan, measured)
    if asked is None or not rows_of(asked):
        reasons = " ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise InputError(f"no checkpoint could be measured. {reasons}")
    asked = _completed(asked, plan, skipped)
    contradicted = contradiction(asked, plan.series.checkpoints, len(plan.probe.labels))
    if contradicted is not None:
        reporter.notice(contradicted)
    return Run(asked, request.output, _exit_code(asked, skipped, request, reporter))


def _written(
    request: Request,
    plan: Plan,
    output: Path,
    place: Parts,
    reporter: Reporter,
    measured: set[tuple[str, str]],
    *,
    whole: bool = True,
) -> tuple[Result | None, dict[str, str]]:
    """Measure what the output does not hold yet and is not among the `measured`, which grow; write it whole."""
    # Read under the lock: another run may be finishing this very file.
    held = stored_result(request, plan)
    stored = None if held is None else renamed(held, plan.series.checkpoints)
    left, waiting = remaining(request, plan, stored)
    kept = dataclasses.replace(place, key=plan.part_key())
    finished = taken_up(kept, left) if request.resume else {}
    waiting = [c for c in waiting if (c.sha256, c.name) not in measured]
    cut = formed(kept.begun() if request.resume else (), plan.series.checkpoints, waiting, partial(_cut, left))
    kept.begin([[(c.sha256, c.name) for c in block] for block in cut])
    found, skipped = _scanned(left, cut, finished, kept.add, reporter)
    measured.update(key for part in found for key in rows_of(part))
    result = joined(found)
    if stored is not None:
        # Where training goes on, what a checkpoint is now takes the place of what it was.
        for name in changed(stored, result) if request.follow and result is not None else ():
            reporter.notice(f"{name}: has changed since it was measured, so it was measured again.")
        replace, tolerance = request.force or request.follow, request.option("tolerance") if request.resume else None
        result = stored if result is None else join(stored, result, replace=replace, tolerance=tolerance)
    if result is not None and (stored is not None or finished):
        # Numbers in names, sidecars and the manifest may say more of a checkpoint than when it was measured.
        known = rows_of(result)
        seen = [c for c in plan.series.checkpoints if (c.sha256, c.name) in known]
        result = join(result, build(seen, (), (), attrs=plan.attrs), replace=request.force)
    if result is not None:
        # What could not be read on the way may be whole at the next look.
        result = _completed(result, plan, skipped if whole else {})
        if not whole:
            result = dataclasses.replace(result, attrs={**result.attrs, "complete": 0})
        if held is None or found or not tells_the_same(held, result):
            write(result, output)
    # Also where nothing was left to measure: a run killed when the file was written already has parts of everything.
    dataclasses.replace(kept, held=result, series=plan.series.checkpoints).remove()
    return result, skipped


def _request(verb: Any, ckpts: Any, options: Mapping[str, Any]) -> Request:  # noqa: ANN401 - whatever was called with
    several = [ckpts] if isinstance(ckpts, str | PathLike) else list(ckpts)
    return requested(verb, [Path(path) for path in several], options, f"ibscan.{verb}(...)")


def _cut(plan: Plan, checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, ...]]:
    if not checkpoints:
        return []
    rows = max(plan.rows(measure) for measure in plan.measures)
    units = sum(layer.width for layer in plan.model.layers)
    weights = sum(math.prod(tensor.shape) for tensor in checkpoints[0].tensors.values())
    return partition(checkpoints, units, rows, weights, plan.most)


def _scanned(
    plan: Plan,
    cut: Sequence[tuple[Checkpoint, ...]],
    finished: Mapping[tuple[str, str], Result],
    keep: Callable[[Result, Sequence[Path]], None] | None,
    reporter: Reporter,
) -> tuple[list[Result], dict[str, str]]:
    if not cut:
        return [], {}
    # A block with one checkpoint missing is done again whole: its bits depend on what is stacked together.
    ready = [all((c.sha256, c.name) in finished for c in block) for block in cut]
    found = [part for block, done in zip(cut, ready, strict=True) if done for part in kept_rows(block, finished)]
    todo = [block for block, done in zip(cut, ready, strict=True) if not done]
    reporter.started(sum(len(block) for block in todo))
    skipped: dict[str, str] = {}
    said: set[str] = set()
    made = plan.model.network, plan.measures, plan.probe, plan.attrs["seed"], plan.layers
    for block in blocks(todo, load_tensors, *made, guard=plan.model.guard):
        for name, reason in block.skipped.items():
            reporter.problem(skip_sentence(name, reason))
        skipped.update(block.skipped)
        for sentence, failed in block.sentences():
            if sentence not in said:
                said.add(sentence)
                (reporter.problem if failed else reporter.notice)(sentence)
        if block.checkpoints:
            # One part a block: what was measured together is lost or kept together, at the price of one write.
            found.append(_built(block, plan))
            if keep is not None:
                keep(found[-1], [checkpoint.path for checkpoint in block.checkpoints])
            for checkpoint in block.checkpoints:
                reporter.advanced(checkpoint.name)
    return found, skipped


def _built(block: Block, plan: Plan) -> Result:
    chosen = list(plan.layers)

    def cut(estimate: Estimate) -> Estimate:
        return estimate.mapped(lambda array: array[:, chosen])

    outcomes = []
    for measure, estimates, rows in block.outcomes:
        layered = {quantity.key for quantity in measure.quantities if quantity.per_layer}
        outcomes.append((measure, {k: cut(e) if k in layered else e for k, e in estimates.items()}, rows))
    layers = [layer for k, layer in enumerate(block.layers) if k in chosen]
    return build(block.checkpoints, layers, outcomes, attrs=plan.attrs)


def _completed(result: Result, plan: Plan, skipped: Mapping[str, str]) -> Result:
    present = {name for _, name in rows_of(result)}
    # A folder was read whole: what it skips now is all there is to skip. Of single files others may be in the result.
    before = {} if plan.folder else json.loads(result.attrs.get("skipped", "{}"))
    left_out = {**before, **plan.series.skipped, **skipped}
    left_out = {name: reason for name, reason in left_out.items() if name not in present}
    whole = not left_out and not failures(result)
    fresh = {name: plan.attrs[name] for name in ("created_at", "command", "device", "ibscan_version", "torch_version")}
    attrs = {**result.attrs, **fresh, "skipped": json.dumps(left_out, sort_keys=True), "complete": int(whole)}
    order = [quantity.key for measure in plan.measures for quantity in measure.quantities]
    return dataclasses.replace(arranged(result, order), attrs=attrs)


def _asked(result: Result, plan: Plan, measured: set[tuple[str, str]]) -> Result:
    coordinates: dict[str, Any] = {dim: list(v) for m in plan.measures for dim, v in m.coordinates.items()}
    coordinates["layer"] = [plan.model.names[layer] for layer in plan.layers]
    variables = [quantity.key for measure in plan.measures for quantity in measure.quantities]
    variables += [name for name in result.quantities if is_metric(name)]
    keys = {(c.sha256, c.name) for c in plan.series.checkpoints} | (measured & set(rows_of(result)))
    return selected(result, checkpoints=keys, variables=variables, coordinates=coordinates)


def _exit_code(result: Result, skipped: Mapping[str, str], request: Request, reporter: Reporter) -> int:
    failed = failures(result)
    # Counts that rounding leaves open are among them; of those a sentence was said when they were measured.
    open_ = any((array == Status.UNRESOLVED).any() for array in statuses(result).values())
    if failed:
        found = statuses(result).values()
        kinds = [s.name.lower() for s in FAILURES if any((array == s).any() for array in found)]
        cells = "1 cell" if failed == 1 else f"{failed} cells"
        reporter.problem(f"{cells} could not be measured ({', '.join(kinds)}); running again tries again.")
    budget = {name: request.option(name) for name in ("tolerance", "max_replicas", "max_draws")}
    for sentence in unresolved_sentences(result, **budget):
        (reporter.problem if request.strict else reporter.notice)(sentence)
    return PARTIAL if failed or skipped or (request.strict and open_) else 0
