"""Try the measures of a scan on a few rows: what cannot be measured, and how long all of it would take here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ibscan.core.boundary import is_out_of_memory
from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.network import Network
from ibscan.core.records import Checkpoint
from ibscan.core.streams import RandomStreams
from ibscan.engine.plan import Plan
from ibscan.engine.scan import measure_layers
from ibscan.errors import CheckpointError
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.measures.work import seconds

__all__ = ["Trial", "tried"]

# A measure is tried on more and more rows until it takes so many seconds: what is shorter is mostly overhead.
ENOUGH_SECONDS = 0.2
FEW_ROWS, GROWTH = 16, 4
# Checkpoints stacked in a trial, spread over the series: the work depends on how far a network is trained.
STACKED = 4


@dataclass(frozen=True)
class Trial:
    """What came of a trial: layers without a Jacobian, by index, with the reason; seconds a scan would take."""

    obstacles: Mapping[int, str]
    seconds: float | None


def tried(plan: Plan) -> Trial:
    """Run every measure on a few rows of some checkpoints; time what could be run.

    The first run of the measure that has a `trial` is on one row, and says which layers it cannot measure. Each measure
    is then run on more and more rows, and its seconds are extrapolated by its declared cost.

    Returns:
        The trial; `seconds` is None where a measure ran out of memory.
    """
    began = time.perf_counter()
    try:
        network = _network(plan, _spread(plan))
    except CheckpointError:  # a scan skips it; the first one was read when the model was made
        network = _network(plan, plan.series.checkpoints[:1])
    total = (time.perf_counter() - began) / network.size
    obstacles: dict[int, str] = {}
    known = True
    for measure in plan.measures:

        def run(rows: int, measure: Measure = measure) -> Mapping[str, Estimate]:
            seed = plan.attrs["seed"]
            return measure_layers(measure, network, plan.probe.sampled(rows, seed), RandomStreams(seed), plan.layers)

        try:
            # Not timed: the first run of a kind loads and compiles.
            first = run(1 if measure.trial else FEW_ROWS)
            if measure.trial:
                obstacles |= _obstacles(first[measure.trial])
            total += _timed(plan, measure, run) / network.size
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            known = False
            if measure.trial:
                obstacles |= dict.fromkeys(plan.layers, "its Jacobian at one row is more than the memory there is")
    return Trial(obstacles, total * len(plan.series.checkpoints) if known else None)


def _network(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Network:
    return plan.model.network([(checkpoint, load_tensors(checkpoint)) for checkpoint in checkpoints])


def _spread(plan: Plan) -> Sequence[Checkpoint]:
    """Return checkpoints of a trial: several of a network that stacks them, else the middle one."""
    found = plan.series.checkpoints
    most = min(len(found), STACKED, plan.most)
    return [found[(2 * k + 1) * len(found) // (2 * most)] for k in range(most)]


def _obstacles(found: Estimate) -> dict[int, str]:
    """Return the layers of which there is no number, with the reason."""
    assert found.status is not None
    without = (Status.NOT_MEASURED, Status.FAILED)
    return {k: reason for k, reason in (found.reasons or {}).items() if found.status[0, k].min() in without}


def _timed(plan: Plan, measure: Measure, run: Callable[[int], object]) -> float:
    """Return about how many seconds a measure takes on all its rows, from runs on few."""
    whole = plan.rows(measure)

    def declared(rows: int) -> float:
        return seconds(measure, dataclasses.replace(plan.sizes(measure), rows=rows))

    rows, before = min(whole, 1 if measure.trial else FEW_ROWS), 0
    spent = previous = 0.0
    while True:
        began = time.perf_counter()
        run(rows)
        previous, spent = spent, time.perf_counter() - began
        if rows >= whole or spent >= ENOUGH_SECONDS:
            break
        rows, before = min(whole, GROWTH * rows), rows
    proportional = spent * declared(whole) / declared(rows)
    if rows == whole:
        return spent
    if before:
        # What the last rows added, without the overhead that both runs had.
        slope = (spent - previous) / (declared(rows) - declared(before))
        proportional = min(proportional, spent + max(0.0, slope) * (declared(whole) - declared(rows)))
    # Few inputs are told apart easily, so that draws meet their tolerance sooner than on all: hold that to what is
    # declared, which are seconds of a CPU.
    harder = measure.channel and plan.device.type == "cpu"
    return max(proportional, declared(whole)) if harder else proportional
