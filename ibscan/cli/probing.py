"""`ibscan ls --probe`: try a series on a probe, and say what a scan would measure, hold and take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ibscan.cli.output import Output
from ibscan.core.boundary import is_out_of_memory
from ibscan.core.estimate import Status
from ibscan.core.records import Series
from ibscan.core.streams import RandomStreams
from ibscan.engine.memory import BASE, layer_memory, weight_memory
from ibscan.engine.model_spec import ModelSpec
from ibscan.engine.plan import Plan, planned
from ibscan.engine.request import Request
from ibscan.engine.scan import measure_layers
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.numerics.memory import free_bytes

__all__ = ["probed"]


def probed(request: Request, output: Output) -> tuple[Series, ModelSpec, list[dict[str, Any]]]:
    """Try what a scan would do, and say in a notice whether it would work.

    Returns:
        The series, its model, and a row for each layer.

    Raises:
        IbscanError: The error that a scan would end with.
    """
    with output.progress() as reporter:
        plan = planned(dataclasses.replace(request, output=None), reporter)
    obstacles = _obstacles(plan)
    layers = list(_layers(plan, obstacles))
    output.notice(_promise(plan, max(row["memory"] for row in layers), obstacles))
    return plan.series, plan.model.stated, layers


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
