"""The loop: a series of checkpoints, one network a block, the measures asked for; one finished block at a time.

(Not `scan.py`: `ibscan.scan` is the function a user calls, and a module of that name would hide it.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.network import Network
from ibscan.core.records import Array, Checkpoint, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.models import Loaded
from ibscan.errors import CheckpointError, OutOfMemory
from ibscan.measures.driver import blank, misfortune
from ibscan.numerics.memory import keep_freed

__all__ = ["Block", "blocks", "measured", "partition"]

# Activations (checkpoints x rows x units) a stacked block may hold. Small networks on few rows are bound by the number
# of calls and gain from stacking; beyond this one checkpoint alone is work enough, and a part is written after each.
STACKED_ACTIVATIONS = 2**18
LARGEST_BLOCK = 128
# Weights that checkpoints measured together may have: 32 MB of float64, whatever there are of rows and units.
STACKED_WEIGHTS = 2**22
# Below this width two threads cost more in waiting than they save in work.
THREADED_WIDTH = 64
ARRAYS = ("value", "status", *Estimate.COMPANIONS)
BROKEN = (Status.FAILED, Status.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Block:
    """Finished checkpoints with what was measured on them, and those that could not be read, with the reason.

    `outcomes` holds (measure, estimates by quantity key, rows used), arrays (C, L, ...).
    """

    checkpoints: tuple[Checkpoint, ...]
    layers: tuple[Layer, ...]
    outcomes: tuple[tuple[Measure, Mapping[str, Estimate], int], ...]
    skipped: Mapping[str, str]

    def sentences(self) -> Iterator[tuple[str, bool]]:
        """Yield why some layers' cells are what they are, and whether that is a failure."""
        for measure, estimates, _ in self.outcomes:
            for estimate in estimates.values():
                reasons = estimate.reasons or {}
                for reason in dict.fromkeys(reasons.values()):
                    of = [layer for layer, said in reasons.items() if said == reason]
                    assert estimate.status is not None
                    status = Status(int(estimate.status[:, of].max()))
                    names = ", ".join(repr(self.layers[layer].name) for layer in of)
                    word = status.name.lower()
                    yield f"{measure.name} of {names} is {word}: {reason.rstrip('.')}.", status in BROKEN


def partition(
    checkpoints: Sequence[Checkpoint], units: int, rows: int, weights: int, most: int | None = None
) -> list[tuple[Checkpoint, ...]]:
    """Cut a series into blocks whose size depends on nothing but the sizes of the work.

    So that a run taken up again forms the same blocks, and gives the same bits.

    Args:
        checkpoints: In order.
        units: Units of all layers together.
        rows: Largest number of probe rows any measure uses.
        weights: Numbers one checkpoint holds.
        most: How many a network can hold at once, where it cannot hold any number.

    Returns:
        Blocks in order.
    """
    stacked = min(STACKED_ACTIVATIONS // max(1, units * rows), STACKED_WEIGHTS // max(1, weights))
    size = max(1, min(most or LARGEST_BLOCK, LARGEST_BLOCK, stacked))
    return [tuple(checkpoints[k : k + size]) for k in range(0, len(checkpoints), size)]


def blocks(
    parts: Sequence[Sequence[Checkpoint]],
    load: Callable[[Checkpoint], Mapping[str, torch.Tensor]],
    stack: Callable[[Sequence[Loaded]], Network],
    measures: Sequence[Measure],
    probe: Probe,
    seed: int,
    layers: Sequence[int] | None = None,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Block]:
    """Yield every block, measured.

    Args:
        parts: The series, cut by `partition`.
        load: One checkpoint's tensors.
        stack: C checkpoints with their tensors to a network.
        measures: What to measure.
        probe: The whole probe; each measure takes its own sample of it.
        seed: Of samples and streams.
        layers: Which layers are wanted; None for all.
        guard: What is around every block while somebody's code may run.

    Yields:
        Blocks in the order of the series.
    """
    for part in parts:
        with guard():
            # In a function of its own, so that nothing of one block is there when the next is loaded.
            finished = _finished(part, load, stack, measures, probe, seed, layers)
        yield finished
        del finished


def _finished(
    part: Sequence[Checkpoint],
    load: Callable[[Checkpoint], Mapping[str, torch.Tensor]],
    stack: Callable[[Sequence[Loaded]], Network],
    measures: Sequence[Measure],
    probe: Probe,
    seed: int,
    layers: Sequence[int] | None,
) -> Block:
    states: list[Loaded] = []
    skipped: dict[str, str] = {}
    for checkpoint in part:
        try:
            states.append((checkpoint, load(checkpoint)))
        except CheckpointError as error:
            skipped[checkpoint.name] = str(error)
    if not states:
        return Block((), (), (), skipped)
    read = tuple(checkpoint for checkpoint, _ in states)
    try:
        network = stack(states)
    except CheckpointError as error:
        # Only of one alone is more asked than its architecture, which is that of the series.
        return Block((), (), (), {**skipped, **dict.fromkeys((checkpoint.name for checkpoint in read), str(error))})
    # The network has weights of its own by now.
    states.clear()
    return Block(read, network.layers, tuple(_outcomes(network, measures, probe, seed, layers)), skipped)


def _outcomes(
    network: Network, measures: Sequence[Measure], probe: Probe, seed: int, layers: Sequence[int] | None
) -> Iterator[tuple[Measure, Mapping[str, Estimate], int]]:
    for measure in measures:
        sample = probe.sampled(measure.samples, seed)
        try:
            found = measured(measure, network, sample, RandomStreams(seed), layers)
        except (MemoryError, RuntimeError) as error:
            if network.size == 1:
                found = _each_layer(measure, network, sample, RandomStreams(seed), layers, error)
            else:
                # One of the stack spoils it for all: each alone.
                each = (network.alone(k) for k in range(network.size))
                alone = (next(_outcomes(one, [measure], probe, seed, layers)) for one in each)
                found = _stacked([estimates for _, estimates, _ in alone])
        yield measure, found, len(sample.x)


def measured(
    measure: Measure, network: Network, sample: Probe, streams: RandomStreams, layers: Sequence[int] | None = None
) -> Mapping[str, Estimate]:
    """Return what a measure finds, on one thread where layers are too narrow for two.

    Args:
        measure: What to measure.
        network: C checkpoints.
        sample: Rows of the probe the measure uses.
        streams: Random numbers.
        layers: Which layers are wanted; None for all.
    """
    keep_freed()
    narrow = max(layer.width for layer in network.layers) < THREADED_WIDTH and len(sample.x) <= 1024
    with _threads(1 if narrow else torch.get_num_threads()), torch.no_grad():
        return measure(network, sample, streams, layers)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _each_layer(
    measure: Measure,
    network: Network,
    sample: Probe,
    streams: RandomStreams,
    layers: Sequence[int] | None,
    error: Exception,
) -> Mapping[str, Estimate]:
    """Return what a measure finds of each layer alone, once it has met an error: what one meets takes no other."""
    among = range(len(network.layers)) if layers is None else layers
    if len(among) == 1 or not any(quantity.per_layer for quantity in measure.quantities):
        return _unmeasured(measure, network, misfortune(error), dict.fromkeys(among, _brief(error)))
    found: dict[int, Mapping[str, Estimate]] = {}
    spoilt: set[int] = set()
    for layer in among:
        try:
            found[layer] = measured(measure, network, sample, streams, [layer])
        except (MemoryError, RuntimeError) as own:
            found[layer] = _unmeasured(measure, network, misfortune(own), {layer: _brief(own)})
            spoilt.add(layer)
    parts = {quantity.key: quantity.per_layer for quantity in measure.quantities}
    # Some quantities are there only where there is something to say: what failed does not add them.
    there = {key for layer, one in found.items() if layer not in spoilt for key in one} or parts.keys()
    others = next(iter(found.values()))
    by_layer = [
        {key: _of_layer(one, layer) for key, one in found.get(layer, others).items() if parts[key] and key in there}
        for layer in range(len(network.layers))
    ]
    return _stacked(by_layer, axis=1) | {
        key: one for each in found.values() for key, one in each.items() if not parts[key]
    }


def _of_layer(estimate: Estimate, layer: int) -> Estimate:
    """Cut an estimate down to one layer, arrays (C, 1, ...)."""
    reasons = {k: said for k, said in (estimate.reasons or {}).items() if k == layer} or None
    return dataclasses.replace(estimate.mapped(lambda array: array[:, [layer]]), reasons=reasons)


def _brief(error: Exception) -> str:
    """Return why a cell has no number: what foreign code asked for, and where, its message tells."""
    said = str(error).partition("\n")[0]
    return said if isinstance(error, OutOfMemory) else f"{type(error).__name__.lstrip('_')}{': ' if said else ''}{said}"


def _unmeasured(measure: Measure, network: Network, status: Status, reasons: Mapping[int, str]) -> dict[str, Estimate]:
    """Return NaN and the status for every quantity whose shape is known without measuring; one has the reasons."""
    layered = {quantity.key: quantity.per_layer for quantity in measure.quantities}
    found = {}
    for key, estimate in blank(measure, network, status).items():
        told = reasons if layered[key] and estimate.status is not None else {}
        found[key] = Estimate(estimate.value, estimate.status, reasons=told or None)
        reasons = {} if told else reasons
    return found


def _stacked(alone: Sequence[Mapping[str, Estimate]], axis: int = 0) -> dict[str, Estimate]:
    """Put findings of single checkpoints, or layers, together again; what a failed one lacks is NaN."""
    stacked = {}
    for key in dict.fromkeys(key for found in alone for key in found):
        # A failed one has fewer arrays than its neighbours: take the shapes of one that has them all.
        fullest = max((found[key] for found in alone if key in found), key=_arrays)
        members = [found.get(key) for found in alone]
        arrays: dict[str, Any] = {name: _column(members, fullest, name, axis) for name in ARRAYS}
        value = arrays.pop("value")
        assert value is not None
        reasons = {layer: said for one in members if one is not None for layer, said in (one.reasons or {}).items()}
        stacked[key] = Estimate(value, **arrays, reasons=reasons or None)
    return stacked


def _arrays(estimate: Estimate) -> int:
    return sum(getattr(estimate, name) is not None for name in Estimate.COMPANIONS)


def _column(members: Sequence[Estimate | None], fullest: Estimate, name: str, axis: int) -> Array | None:
    like = getattr(fullest, name)
    if like is None:
        return None
    fill = Status.NOT_MEASURED if name == "status" else np.nan if like.dtype.kind == "f" else -1
    arrays = [None if member is None else getattr(member, name) for member in members]
    return np.concatenate([np.full_like(like, fill) if array is None else array for array in arrays], axis)
