"""Record a model's forward pass and find its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.errors import InputError
from ibscan.networks.trace.dependence import dependence
from ibscan.networks.trace.graph import INPUT, UNSEEN, Graph, Place, Trace
from ibscan.networks.trace.layers import locate_layers
from ibscan.networks.trace.operations import Entry, leading, tensor_hash
from ibscan.networks.trace.recorder import Recorder, watch
from ibscan.networks.trace.replay import Replay
from ibscan.networks.trace.trees import Tree, main_tensor, tensors
from ibscan.networks.trace.unseen import Run, first_varying, other_rows, unseen_inputs

__all__ = ["record"]


def record(
    model: nn.Module,
    x: torch.Tensor,
    extra: Sequence[str] = (),
    *,
    named: Mapping[str, torch.Tensor] | None = None,
    run: Run | None = None,
) -> Trace:
    """Run the model on a few rows and return where its layers are.

    Args:
        model: In eval mode.
        x: A few rows, shape (n, ...).
        extra: Paths of modules to measure although they are no Linear or Conv; they come after the layers.
        named: What the model takes besides, by the names of its arguments, one entry a row.
        run: Runs the model on rows, if not by model(x, **named).

    Raises:
        InputError: No layer is called, an output that holds no tensor of the input, or in-place changes that cannot
            be followed.

    Source:
        The guide, models.md, "What is a layer".
    """
    named = named or {}
    recorder, result = _record_all(model, x, extra, partial(_same_draws, run or partial(_call, model, named)))
    graph, main = recorder.graph, main_tensor(result)
    if main not in recorder.nodes:
        raise InputError(
            "the model's output does not depend on its input, or holds no tensor that does; expected a network of the "
            "probe's rows."
        )
    for path, _, node in graph.extra:
        if node < 0:
            raise InputError(f"'{path}' returns nothing that depends on the probe's rows; expected a tensor.")
    ends = {recorder.nodes[t] for t in tensors(result) if t in recorder.nodes}
    # Measures need the rows first; `run` is given by training, which adds noise whatever the layout.
    not_row_first = set() if run is not None else _not_row_first(model, graph, x, named)
    trace = locate_layers(model, graph, recorder.nodes[main], ends, not_row_first)
    found = dependence(graph, whole=bool((x == x.round()).all()))
    nodes = [[graph.places.index(place) for place in places] for places in zip(trace.pre, trace.post, strict=True)]
    ids = frozenset(k for k, (pre, _) in enumerate(nodes) if pre in found.ids)
    return replace(trace, ids=ids, units=tuple((found.units[pre], found.units[post]) for pre, post in nodes))


def _call(model: nn.Module, named: Mapping[str, torch.Tensor], rows: torch.Tensor) -> Tree:
    # Copies: the model may change its arguments in place.
    return model(rows, **{name: value.clone() for name, value in named.items()})


def _same_draws(run: Run, rows: torch.Tensor) -> Tree:
    # What is random does not depend on the input: every pass starts from the same random state.
    with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
        return run(rows)


def _record_all(model: nn.Module, x: torch.Tensor, extra: Sequence[str], run: Run) -> tuple[Recorder, Tree]:
    """Record a pass, through unseen code too: entry after entry, until two passes over different rows agree."""
    entries: dict[int, Entry] = {}
    while True:
        recorder, result = _record_pass(model, x, extra, run, entries)
        graph = recorder.graph
        try:
            with user_code("the model"):
                other, changed = _record_pass(model, other_rows(x), extra, run, entries)
        except InputError:
            # Rows in another order may not fit the named arguments.
            break
        varying = first_varying(recorder.constants, other.constants)
        if varying is None or varying[0] in entries:
            graph.opaque = {k for k, hashes in recorder.outputs.items() if other.outputs.get(k, hashes) != hashes}
            main = main_tensor(result)
            if main not in recorder.nodes and tensor_hash(main) != tensor_hash(main_tensor(changed)):
                recorder.enter(main, (recorder.count, -1))
            break
        entries[varying[0]] = varying[1]
    if graph.entries:
        read = unseen_inputs(model, graph, run, x)
        graph.operations = [
            replace(op, inputs=tuple(sorted(read[op.outputs[0]]))) if op.name == UNSEEN else op
            for op in graph.operations
        ]
    return recorder, result


def _record_pass(
    model: nn.Module, x: torch.Tensor, extra: Sequence[str], run: Run, entries: Mapping[int, Entry]
) -> tuple[Recorder, Tree]:
    """Run the model once on a copy of the rows; return what was recorded, and its result."""
    rows = x.clone()
    recorder = Recorder(model, rows, entries)
    with watch(model, recorder, extra), recorder:
        return recorder, run(rows)


def _not_row_first(model: nn.Module, graph: Graph, x: torch.Tensor, named: Mapping[str, torch.Tensor]) -> set[int]:
    """Return the nodes that do not have rows, or parts of rows, first: one row more makes them longer elsewhere."""
    longer: dict[Place, int] = {}

    def note(place: Place, value: torch.Tensor) -> torch.Tensor:
        longer[place] = leading(value)
        return value

    more = torch.cat([x, x[:1]])
    others = {name: torch.cat([value, value[:1]]) for name, value in named.items()}
    places = [place for place in graph.places if place not in (None, INPUT)]
    with Replay(graph.labels, model, more, {place: partial(note, place) for place in places if place}):
        model(more, **others)
    return {
        node
        for node, place in enumerate(graph.places)
        if place in longer and graph.lengths[node] * len(more) != longer[place] * len(x)
    }
