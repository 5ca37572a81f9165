"""`ibscan ls`: print a series as ibscan understands it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ibscan.cli.output import Output
from ibscan.core.boundary import is_out_of_memory
from ibscan.core.estimate import Status
from ibscan.core.records import Checkpoint, Series
from ibscan.core.streams import RandomStreams
from ibscan.engine.complete import planned
from ibscan.engine.memory import BASE, layer_memory, weight_memory
from ibscan.engine.model_spec import ModelSpec, chain_globs, stated_model
from ibscan.engine.models import matches_glob
from ibscan.engine.plan import Plan, manifest_of, series_of
from ibscan.engine.request import PARTIAL, Request
from ibscan.engine.scan import measure_layers
from ibscan.errors import IbscanError, NothingMatched
from ibscan.inputs.probes.read import find_probe
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.networks.resolve import chain_order
from ibscan.numerics.memory import free_bytes
from ibscan.results.export import COLUMNS as ROWS

__all__ = ["COLUMNS", "listed"]

COLUMNS: Mapping[str, str] = {
    "order": "Place of the checkpoint in the series, from 0.",
    **{name: ROWS[name] for name in ("epoch", "step", "value")},
    "step_source": "Where epoch and step were found.",
    "size": "Size of the checkpoint's file in bytes.",
    "dtype": "Number formats of the tensors.",
    "sha256": "SHA-256 of the file; a table shows its first 12 digits.",
    "format": "Format of the file.",
    "tensors": "How many tensors of weights the file holds.",
    "model": "Model the series states, or that --model names.",
    "chain": "Widths of the chain of Linear layers, from input to output.",
    "checkpoint": ROWS["checkpoint"],
    "skipped": "Why the file is no checkpoint of the series.",
    "layer": "Dotted name of the layer.",
    "kind": "Kind of module, such as Linear.",
    "units": "Units of the layer.",
    "measures": "Measures that a scan would take of the layer.",
    "not_measured": "Measures that a scan would not take of the layer, and why.",
    "memory": "Memory the layer's measures would hold, in bytes (an estimate).",
}


def listed(request: Request, output: Output) -> int:
    """Print one row a checkpoint, skipped files last with the reason; with a probe also one row a layer.

    Returns:
        The exit code: 4 where files were skipped, else 0.

    Raises:
        IbscanError: With a probe: the error that a scan would end with; the rows are printed before.
    """
    failure: IbscanError | None = None
    stated: ModelSpec | None
    layers: list[dict[str, Any]] = []
    if request.probe is None:
        series, stated = _read(request, output)
    else:
        try:
            with output.progress() as reporter:
                plan = planned(dataclasses.replace(request, output=None), reporter)
            series, stated = plan.series, plan.model.stated
            obstacles = _obstacles(plan)
            layers = list(_layers(plan, obstacles))
            output.notice(_promise(plan, max(row["memory"] for row in layers), obstacles))
        except IbscanError as error:
            failure = error
            series, stated = _read(request, output)
    rows = [*_rows(series, request, stated, output), *layers]
    # One table for programs; two for people, as checkpoints and layers have different columns.
    parts = [rows] if output.format != "table" else [rows[: len(rows) - len(layers)], layers]
    for part in parts:
        if part:
            output.rows(tuple(COLUMNS), part)
    if failure is not None:
        raise failure
    return PARTIAL if series.skipped else 0


def _read(request: Request, output: Output) -> tuple[Series, ModelSpec | None]:
    """Read the series, and the model where it is stated."""
    manifest = manifest_of(request.paths, trust=request.trust)
    exclude = [] if manifest is None or manifest.probe_path is None else [manifest.probe_path]
    folder = request.paths[0]
    if len(request.paths) == 1 and folder.is_dir() and not exclude:
        found = find_probe(folder)
        exclude = [] if found is None else [found]
    series = series_of(request, manifest, exclude=exclude)
    for notice in series.notices:
        output.notice(notice)
    try:
        # Trust is not needed: no code is run here.
        stated = stated_model(
            request.model, request.model_arg, manifest, series.checkpoints, trust=True, chain=request.chain
        )
    except IbscanError as error:
        output.notice(str(error))
        return series, None
    return series, stated


def _obstacles(plan: Plan) -> dict[int, str]:
    """Compute every Jacobian of a scan at one row; return why some layers have none, by their index."""
    tried = next((measure for measure in plan.measures if measure.trial), None)
    if tried is None or plan.model.max_stacked is None:  # a chain's Jacobian is a product of matrices, and always there
        return {}
    first, seed = plan.series.checkpoints[0], plan.attrs["seed"]
    network = plan.model.network([(first, load_tensors(first))])
    try:
        row, streams = plan.probe.sampled(1, seed), RandomStreams(seed)
        found = measure_layers(tried, network, row, streams, plan.layers)[tried.trial]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return dict.fromkeys(plan.layers, "its Jacobian at one row is more than the memory there is")
    assert found.status is not None
    without = (Status.NOT_MEASURED, Status.FAILED)
    return {k: reason for k, reason in (found.reasons or {}).items() if found.status[0, k].min() in without}


def _promise(plan: Plan, largest: int, obstacles: Mapping[int, str]) -> str:
    """Say whether a scan would work, and how much memory it would hold."""
    held, free = BASE + weight_memory(plan) + largest, free_bytes(plan.device)
    names = ", ".join(repr(plan.model.names[layer]) for layer in obstacles)
    but = f" but for local_rank of {names} (see not_measured)" if obstacles else ""
    if held <= free:
        return f"a scan would work{but}, and hold about {held / 2**20:.0f} MiB (an estimate)."
    return (
        f"a scan would hold about {held / 2**20:.0f} MiB (an estimate), and {free / 2**20:.0f} MiB are free here: it "
        "may run out of memory. Fewer rows (--samples) or layers (--layers) need less."
    )


def _layers(plan: Plan, obstacles: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer reported: what a scan would measure there, and what not and why."""
    measures = [measure for measure in plan.measures if any(q.per_layer for q in measure.quantities)]
    memory = layer_memory(plan)
    for k in plan.layers:
        layer = plan.model.layers[k]
        reasons = {measure.name: obstacles[k] for measure in measures if measure.trial and k in obstacles}
        for measure in measures:
            if measure.inapplicable and not measure.applies_to(layer, plan.model.names):
                reasons[measure.name] = measure.inapplicable
        unlabelled = {} if plan.probe.y is not None else {"what concerns labels": "the probe has none that are classes"}
        yield {
            "layer": layer.name,
            "kind": layer.kind,
            "units": layer.width,
            "measures": ", ".join(measure.name for measure in measures if measure.name not in reasons),
            "not_measured": "; ".join(f"{name}: {reason}" for name, reason in (reasons | unlabelled).items()),
            "memory": memory[k],
        }
    for name, reason in plan.model.unmeasured:
        yield {"layer": name, "not_measured": f"all: {reason}", "memory": 0}


def _rows(series: Series, request: Request, stated: ModelSpec | None, output: Output) -> Iterator[dict[str, Any]]:
    coded = stated is not None and not stated.spec.startswith("mlp:")
    chain = "" if coded else _chain(series.checkpoints[0], request, stated, output)
    for order, checkpoint in enumerate(series.checkpoints):
        epoch = checkpoint.epoch
        dtypes = sorted({info.dtype for info in checkpoint.tensors.values()})
        yield {
            "order": order,
            # A whole epoch is a count and is printed as one.
            "epoch": int(epoch) if epoch is not None and epoch.is_integer() else epoch,
            "step": checkpoint.step,
            "value": checkpoint.value,
            "step_source": checkpoint.step_source,
            "size": checkpoint.size,
            "dtype": "+".join(dtypes),
            "sha256": checkpoint.sha256 if output.format != "table" else checkpoint.sha256[:12],
            "format": checkpoint.format,
            "tensors": len(checkpoint.tensors),
            "model": "" if stated is None else str(stated),
            "chain": chain,
            "checkpoint": checkpoint.name,
        }
    for name, reason in series.skipped.items():
        yield {"checkpoint": name, "skipped": reason}


def _chain(checkpoint: Checkpoint, request: Request, stated: ModelSpec | None, output: Output) -> str:
    globs = chain_globs(request.chain) if stated is None else stated.chain
    try:
        order = chain_order(checkpoint.tensors, globs, checkpoint.state_key)
    except IbscanError as error:
        output.notice(f"{checkpoint.name}: {error}")
        return ""
    names = [name or "linear" for name in order]
    if request.layers and not any(matches_glob(name, request.layers) for name in names):
        raise NothingMatched(f"--layers {' '.join(request.layers)} matches none of {', '.join(names)}.")
    shapes = [checkpoint.tensors[f"{name}.weight" if name else "weight"].shape for name in order]
    return "-".join(str(width) for width in (shapes[0][1], *(shape[0] for shape in shapes)))
