"""`ibscan ls --probe`: try a series on a probe, and say what a scan would measure, hold and take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ibscan.cli.output import Output
from ibscan.core.records import Series
from ibscan.engine.complete import planned
from ibscan.engine.memory import BASE, layer_memory, weight_memory
from ibscan.engine.model_spec import ModelSpec
from ibscan.engine.plan import Plan
from ibscan.engine.request import Request
from ibscan.engine.trial import Trial, tried
from ibscan.numerics.memory import free_bytes
from ibscan.views.progress import about

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
    trial = tried(plan)
    layers = list(_layers(plan, trial.obstacles))
    output.notice(_promise(plan, max(row["memory"] for row in layers), trial))
    return plan.series, plan.model.stated, layers


def _promise(plan: Plan, largest: int, trial: Trial) -> str:
    """Say whether a scan would work, how much memory it would hold and how long it would take."""
    held, free = BASE + weight_memory(plan) + largest, free_bytes(plan.device)
    names = ", ".join(repr(plan.model.names[layer]) for layer in trial.obstacles)
    but = f" but for local_rank of {names} (see not_measured)" if trial.obstacles else ""
    takes = "" if trial.seconds is None else f"take about {about(trial.seconds)} on this machine"
    memory = f"about {held / 2**20:.0f} MiB"
    if held <= free:
        if not takes:
            return f"a scan would work{but}, and hold {memory} (an estimate)."
        return f"a scan would work{but}, hold {memory} and {takes} (estimates from a few rows)."
    return (
        f"a scan would hold {memory} (an estimate), and {free / 2**20:.0f} MiB are free here: it may run out of "
        f"memory. {f'It would {takes}. ' if takes else ''}Fewer rows (--samples) or layers (--layers) need less."
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
