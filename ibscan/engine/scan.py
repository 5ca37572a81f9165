"""Measure a series block by block: load some checkpoints, stack them into one network, run every measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure
from ibscan.core.network import Network
from ibscan.core.records import Array, Checkpoint, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.models import Loaded
from ibscan.errors import CheckpointError, OutOfMemory
from ibscan.measures.driver import blank_estimates, failure_status
from ibscan.numerics.memory import keep_freed

__all__ = ["Block", "Watch", "blocks", "measure_layers", "partition"]

# Activations (checkpoints x rows x units) a stacked block may hold. Small networks on few rows are limited by the
# number of calls and gain from stacking; larger ones do not, and are written after every checkpoint.
STACKED_ACTIVATIONS = 2**18
LARGEST_BLOCK = 128
# Weights a block may hold: 32 MB of float64.
STACKED_WEIGHTS = 2**22
# Narrower layers run faster on one thread than on two.
THREADED_WIDTH = 64
ARRAYS = ("value", "status", *Estimate.COMPANIONS)
BROKEN = (Status.FAILED, Status.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Block:
    """Measured checkpoints with their estimates, and the names of unreadable ones with the reason (`skipped`).

    `outcomes` holds (measure, estimates by quantity key, rows used), arrays (C, L, ...).
    """

    checkpoints: tuple[Checkpoint, ...]
    layers: tuple[Layer, ...]
    outcomes: tuple[tuple[Measure, Mapping[str, Estimate], int], ...]
    skipped: Mapping[str, str]

    def sentences(self) -> Iterator[tuple[str, bool]]:
        """Yield a message for every reason that layers were not measured, and whether it is a failure."""
        for measure, estimates, _ in self.outcomes:
            for estimate in estimates.values():
                reasons = estimate.reasons or {}
                for reason in dict.fromkeys(reasons.values()):
                    layers = [layer for layer, other in reasons.items() if other == reason]
                    assert estimate.status is not None
                    status = Status(int(estimate.status[:, layers].max()))
                    names = ", ".join(repr(self.layers[layer].name) for layer in layers)
                    word = status.name.lower()
                    yield f"{measure.name} of {names} is {word}: {reason.rstrip('.')}.", status in BROKEN


class Watch(Protocol):
    """Hears what a scan has in hand."""

    def block(self, checkpoints: Sequence[Checkpoint], /) -> None:
        """Note that these checkpoints come next."""
        ...

    def measure(self, measure: Measure | None, /) -> None:
        """Note that a measure begins on them, and that the one before has ended; None for the end of the last."""
        ...

    def layer(self, index: int | None, /) -> None:
        """Note which layer it has in hand, None for all of them."""
        ...


@dataclass(frozen=True)
class _Told:
    """Layers that tell which of them is in hand as a measure goes through them."""

    indices: Collection[int]
    tell: Callable[[int | None], None]

    def __iter__(self) -> Iterator[int]:
        for index in self.indices:
            self.tell(index)
            yield index
        self.tell(None)

    def __len__(self) -> int:
        return len(self.indices)

    def __contains__(self, index: object) -> bool:
        return index in self.indices


def partition(
    checkpoints: Sequence[Checkpoint], units: int, rows: int, weights: int, most: int | None = None
) -> list[tuple[Checkpoint, ...]]:
    """Cut a series into blocks, in order.

    Their size depends on the sizes of the work alone, so that a resumed run forms the same blocks and gives the same
    bits.

    Args:
        checkpoints: In order.
        units: Units of all layers together.
        rows: Largest number of probe rows any measure uses.
        weights: Numbers one checkpoint holds.
        most: Largest block the network allows, None for any.
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
    watch: Watch | None = None,
) -> Iterator[Block]:
    """Measure every block and yield it, in order.

    Args:
        parts: The series, cut by `partition`.
        load: Reads the tensors of a checkpoint.
        stack: Makes a network of C checkpoints with their tensors.
        measures: What to measure.
        probe: The whole probe; each measure takes its own sample of it.
        seed: Of samples and random streams.
        layers: Indices of the layers wanted; None for all.
        guard: Goes around every block, as the user's code may run.
        watch: Hears what is in hand.
    """
    for part in parts:
        with guard():
            # In a function of its own, so that a block's tensors are freed before the next is loaded.
            block = _measure_block(part, load, stack, measures, probe, seed, layers, watch)
        yield block
        del block


def _measure_block(
    part: Sequence[Checkpoint],
    load: Callable[[Checkpoint], Mapping[str, torch.Tensor]],
    stack: Callable[[Sequence[Loaded]], Network],
    measures: Sequence[Measure],
    probe: Probe,
    seed: int,
    layers: Sequence[int] | None,
    watch: Watch | None,
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
        # Can only happen to a block of one: stacked checkpoints need nothing but the architecture of the series.
        return Block((), (), (), {**skipped, **dict.fromkeys((checkpoint.name for checkpoint in read), str(error))})
    # Free the tensors as read: the network has copied them.
    states.clear()
    if watch is None:
        return Block(read, network.layers, tuple(_outcomes(network, measures, probe, seed, layers)), skipped)
    watch.block(read)
    outcomes: list[tuple[Measure, Mapping[str, Estimate], int]] = []
    told = _Told(range(len(network.layers)) if layers is None else layers, watch.layer)
    for measure in measures:
        watch.measure(measure)
        outcomes += _outcomes(network, [measure], probe, seed, told)
    watch.measure(None)
    return Block(read, network.layers, tuple(outcomes), skipped)


def _outcomes(
    network: Network, measures: Sequence[Measure], probe: Probe, seed: int, layers: Layers | None
) -> Iterator[tuple[Measure, Mapping[str, Estimate], int]]:
    """Yield (measure, estimates, rows used); after an error measure checkpoints, then layers, one at a time."""
    for measure in measures:
        sample = probe.sampled(measure.samples, seed)
        try:
            found = measure_layers(measure, network, sample, RandomStreams(seed), layers)
        except (MemoryError, RuntimeError) as error:
            if network.size == 1:
                found = _layer_by_layer(measure, network, sample, RandomStreams(seed), layers, error)
            else:
                single = (network.alone(k) for k in range(network.size))
                outcomes = (next(_outcomes(one, [measure], probe, seed, layers)) for one in single)
                found = _concatenated([estimates for _, estimates, _ in outcomes])
        yield measure, found, len(sample.x)


def measure_layers(
    measure: Measure, network: Network, sample: Probe, streams: RandomStreams, layers: Layers | None = None
) -> Mapping[str, Estimate]:
    """Run a measure and return its estimates, arrays (C, L, ...); on one thread if layers are narrow.

    Args:
        measure: What to measure.
        network: C checkpoints of L layers.
        sample: N rows, already sampled.
        streams: Random numbers.
        layers: Indices of the layers wanted; None for all.
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


def _layer_by_layer(
    measure: Measure,
    network: Network,
    sample: Probe,
    streams: RandomStreams,
    layers: Layers | None,
    error: Exception,
) -> Mapping[str, Estimate]:
    """Return the estimates of each layer measured alone, after an `error`, so that it costs only the layer it is of."""
    wanted = range(len(network.layers)) if layers is None else layers
    if len(wanted) == 1 or not any(quantity.per_layer for quantity in measure.quantities):
        return _without_values(measure, network, failure_status(error), dict.fromkeys(wanted, _reason(error)))
    found: dict[int, Mapping[str, Estimate]] = {}
    failed: set[int] = set()
    for layer in wanted:
        try:
            found[layer] = measure_layers(measure, network, sample, streams, [layer])
        except (MemoryError, RuntimeError) as own:
            found[layer] = _without_values(measure, network, failure_status(own), {layer: _reason(own)})
            failed.add(layer)
    per_layer = {quantity.key: quantity.per_layer for quantity in measure.quantities}
    # Some quantities are returned only if they apply: do not add them for a layer that failed.
    present = {key for layer, one in found.items() if layer not in failed for key in one} or per_layer.keys()
    # A layer that is not wanted is `not_measured` in the estimates of any other.
    others = next(iter(found.values()))
    by_layer = [
        {
            key: _of_layer(one, layer)
            for key, one in found.get(layer, others).items()
            if per_layer[key] and key in present
        }
        for layer in range(len(network.layers))
    ]
    return _concatenated(by_layer, axis=1) | {
        key: one for each in found.values() for key, one in each.items() if not per_layer[key]
    }


def _of_layer(estimate: Estimate, layer: int) -> Estimate:
    """Return the estimate of one layer alone, arrays (C, 1, ...)."""
    reasons = {k: reason for k, reason in (estimate.reasons or {}).items() if k == layer} or None
    return dataclasses.replace(estimate.mapped(lambda array: array[:, [layer]]), reasons=reasons)


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, with its type unless it is ours."""
    line = str(error).partition("\n")[0]
    return line if isinstance(error, OutOfMemory) else f"{type(error).__name__.lstrip('_')}{': ' if line else ''}{line}"


def _without_values(
    measure: Measure, network: Network, status: Status, reasons: Mapping[int, str]
) -> dict[str, Estimate]:
    """Return NaN and the status for every quantity of known shape; the first one a layer has gets the reasons."""
    per_layer = {quantity.key: quantity.per_layer for quantity in measure.quantities}
    found = {}
    for key, estimate in blank_estimates(measure, network, status).items():
        own = reasons if per_layer[key] and estimate.status is not None else {}
        found[key] = Estimate(estimate.value, estimate.status, reasons=own or None)
        reasons = {} if own else reasons
    return found


def _concatenated(members: Sequence[Mapping[str, Estimate]], axis: int = 0) -> dict[str, Estimate]:
    """Concatenate the estimates of single checkpoints, or layers; what one of them lacks is filled with NaN."""
    whole = {}
    for key in dict.fromkeys(key for member in members for key in member):
        estimates = [member.get(key) for member in members]
        present = [one for one in estimates if one is not None]
        # One that failed has fewer arrays than the others: take the shapes from one that has them all.
        like = max(present, key=lambda one: sum(getattr(one, name) is not None for name in Estimate.COMPANIONS))
        arrays: dict[str, Any] = {name: _concatenated_array(estimates, like, name, axis) for name in ARRAYS}
        value = arrays.pop("value")
        assert value is not None
        reasons = {layer: reason for one in present for layer, reason in (one.reasons or {}).items()}
        whole[key] = Estimate(value, **arrays, reasons=reasons or None)
    return whole


def _concatenated_array(estimates: Sequence[Estimate | None], like: Estimate, name: str, axis: int) -> Array | None:
    filler = getattr(like, name)
    if filler is None:
        return None
    fill = Status.NOT_MEASURED if name == "status" else np.nan if filler.dtype.kind == "f" else -1
    arrays = [None if one is None else getattr(one, name) for one in estimates]
    return np.concatenate([np.full_like(filler, fill) if array is None else array for array in arrays], axis)
