"""Code inside a model that calls no function of torch's Python interface (numpy, lists, scripted functions).

What it computes looks like a constant to the recorder. An operand that differs between passes over different rows is no
constant: it depends on the input, and the pass is followed again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.errors import InputError
from ibscan.networks.trace.graph import INPUT, Graph, Place
from ibscan.networks.trace.operations import Constants, Entry, tensor_hash
from ibscan.networks.trace.replay import Hook, Replay
from ibscan.networks.trace.trees import Tree, main_tensor

__all__ = ["Run", "first_varying", "other_rows", "unseen_inputs"]

# One pass of a model over rows.
Run: TypeAlias = Callable[[torch.Tensor], Tree]


def other_rows(x: torch.Tensor) -> torch.Tensor:
    """Return the same rows in another order; of equal rows, the numbers of each in another order."""
    rolled = x.roll(1, 0)
    return x.flatten().roll(1).reshape(x.shape) if torch.equal(rolled, x) else rolled


def first_varying(once: Constants, again: Constants) -> tuple[int, Entry] | None:
    """Return the first operation with operands that differ between two passes, and its number."""
    for (number, label, skipped), hashes in once.items():
        others = again.get((number, label, skipped), hashes)
        positions = tuple(k for k, value in hashes.items() if others.get(k, value) != value)
        if positions:
            return number, (label, skipped, positions)
    return None


def unseen_inputs(model: nn.Module, graph: Graph, run: Run, x: torch.Tensor) -> Mapping[int, set[int]]:
    """Return the nodes that unseen code reads, by the node that it makes.

    Every node is changed in turn while all that visible operations make of it is kept: what changes nevertheless was
    computed from that node by unseen code.
    """
    labels = graph.labels
    kept: dict[Place, torch.Tensor] = {}

    def keep(place: Place, value: torch.Tensor) -> torch.Tensor:
        kept[place] = value.clone()
        return value

    def hashes(rows: torch.Tensor, hooks: Mapping[Place, Hook]) -> dict[int, int]:
        """Run the model; return hashes of what unseen code made."""
        found: dict[int, int] = {}

        def note(node: int, value: torch.Tensor) -> torch.Tensor:
            found[node] = tensor_hash(value)
            return value

        given = rows.clone()
        at = {place: partial(note, node) for node, place in graph.entries.items()}
        with Replay(labels, model, given, {**hooks, **at}):
            result = run(given)
        return {node: found.get(node, tensor_hash(main_tensor(result))) for node in graph.entries}

    places = {node: place for node, place in enumerate(graph.places) if place is not None}
    before = hashes(x, {place: partial(keep, place) for place in places.values() if place != INPUT})
    sources: dict[int, set[int]] = {node: set() for node in graph.entries}
    for node, place in places.items():
        children = [places[n] for op in graph.operations if node in op.inputs for n in op.outputs if n in places]
        hooks: dict[Place, Hook] = {one: partial(_instead, kept[one]) for one in children if one in kept}
        if place != INPUT:
            hooks[place] = _changed
        try:
            with user_code("the model"):
                after = hashes(other_rows(x) if place == INPUT else x, hooks)
        except InputError:
            # A model that cannot run on other numbers has read them.
            after = {}
        for entered, read in sources.items():
            if node < entered and after.get(entered) != before[entered]:
                read.add(node)
    return {node: read or {0} for node, read in sources.items()}


def _instead(kept: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return kept.clone()


def _changed(value: torch.Tensor) -> torch.Tensor:
    """Return other numbers of the same kind; whole numbers may be indices, and keep their range."""
    rolled = value.flatten().roll(1).reshape(value.shape)
    return rolled + 1.0 if value.is_floating_point() or value.is_complex() else rolled
