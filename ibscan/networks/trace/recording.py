"""One forward pass of a model recorded: every operation on activity, that is, on tensors that depend on the input.

Operations are numbered as Python calls them, those on parameters alone left out, so that the numbers are the same in
training mode and under torch.func's transforms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError
from ibscan.networks.trace.dependence import dependence
from ibscan.networks.trace.graph import INPUT, LAYERS, UNSEEN, Graph, Operation, Place, Taps
from ibscan.networks.trace.operations import (
    CONSTANT,
    PRODUCTS,
    address,
    in_place,
    is_default,
    leading,
    made,
    operands,
    operation_label,
    operation_name,
    parameter_names,
    unit,
)
from ibscan.networks.trace.replay import tapped
from ibscan.networks.trace.taps import taps_of
from ibscan.networks.trace.trees import Function, Tree, main_tensor, replaced, tensors
from ibscan.networks.trace.unfollowed import LEAVING, Constants, entry, permuted, varying

__all__ = ["recorded"]


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, x: torch.Tensor, entries: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.entries = entries
        self.constants = Constants()
        # Nodes whose numbers were handed to code that is not followed.
        self.left: set[int] = set()
        self.graph = Graph()
        self.nodes: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self.nodes[x] = 0
        self.graph.units[0] = unit(x)
        self.rows = len(x)
        self.parameters = parameter_names(model)
        self.inside: list[int] = []
        self.aliases: list[Operation] = []
        self.count = 0
        # Storages changed in place, by address; held, so that no other tensor gets their address.
        self.changed: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        kwargs = kwargs or {}
        name = operation_name(func)
        given = operands(name, args, kwargs)
        before = [self.nodes[t] for t in given if t in self.nodes]
        self._refuse_stale(given)
        label = operation_label(name, given, self.parameters)
        if not before and label in self.entries:
            before = [self.emerged(given[k]) for k in self.entries[label]]
            label = entry(label, self.entries[label])
        elif not before:
            self.constants.note(name, label, given)
        result = func(*args, **kwargs)
        results = made(name, args, result)
        if name in LEAVING:
            self.left.update(before)
        if not before or not results or name in CONSTANT:
            return result
        graph, outputs = self.graph, []
        weights = [t for t in given if isinstance(t, nn.Parameter)] if name.startswith(PRODUCTS) else []
        graph.products.update({id(t): name for t in weights})
        joins = bool(weights)
        for slot, tensor in enumerate(results):
            changes = any(tensor is t for t in given)
            if changes and not in_place(name, kwargs):
                # Dropout in eval mode returns its very input, in training it does not: two nodes, two tensors.
                changes, fresh = False, tensor.view_as(tensor)
                result, tensor = replaced(result, tensor, fresh), fresh
            joins = joins or (changes and tensor not in self.nodes)
            outputs.append(self._node(tensor, (self.count, slot)))
            if changes:
                self._aliased(tensor, outputs[-1])
        layer = self.inside[0] if self.inside else None
        default = is_default(func, name, args, kwargs)
        graph.operations.append(Operation(name, tuple(before), tuple(outputs), layer, default, joins, label))
        self.count += 1
        graph.operations += self.aliases
        self.aliases = []
        return result

    def emerged(self, tensor: torch.Tensor) -> int:
        """Return a new node for what comes out of code that is not followed: made of what went into it, in some way."""
        if tensor in self.nodes:
            return self.nodes[tensor]
        taken = {n for op in self.graph.operations for n in op.inputs}
        inside = self.left or set(range(len(self.graph.places))) - taken
        node = self._node(tensor, None)
        self.graph.operations.append(Operation(UNSEEN, tuple(sorted(inside)), (node,), joins=True))
        return node

    def _node(self, tensor: torch.Tensor, place: Place | None) -> int:
        self.graph.places.append(place)
        self.graph.sizes.append(tensor.numel() // self.rows)
        self.graph.lengths.append(leading(tensor))
        self.graph.units.append(unit(tensor))
        self.nodes[tensor] = len(self.graph.places) - 1
        return len(self.graph.places) - 1

    def _aliased(self, tensor: torch.Tensor, node: int) -> None:
        """Give a new node to every other tensor that an in-place operation changed through a common storage."""
        storage = tensor.untyped_storage()
        self.changed[storage.data_ptr()] = storage
        others = [t for t in self.nodes if t is not tensor and address(t) == storage.data_ptr()]
        base = tensor._base
        if base is not None and base not in self.nodes:
            others.append(base)
        for other in others:
            before = (self.nodes[other], node) if other in self.nodes else (node,)
            self.aliases.append(Operation("alias", before, (self._node(other, None),)))

    def _refuse_stale(self, given: Sequence[torch.Tensor]) -> None:
        if self.changed and any(t not in self.nodes and address(t) in self.changed for t in given):
            raise InputError(
                "the model writes what depends on its input into a tensor through a view of it, which cannot be "
                "followed; write to the tensor itself."
            )


def recorded(
    model: nn.Module,
    x: torch.Tensor,
    extra: Sequence[str] = (),
    *,
    named: Mapping[str, torch.Tensor] | None = None,
    run: Callable[[], Tree] | None = None,
) -> Taps:
    """Run the model once and return where its layers are.

    Args:
        model: In eval mode.
        x: A few rows, shape (n, ...).
        extra: Paths of modules to tap although they are no Linear or Conv; they come after the layers.
        named: What the model takes besides, by the names of its arguments, one entry a row.
        run: How to run it on these rows, where that is more than model(x).

    Returns:
        The taps.

    Raises:
        InputError: No layer is called, an output that holds no tensor of the input, or in-place changes that cannot
            be followed.

    Source:
        The guide, models.md, "What is a layer".
    """
    recorder, result = _recorded(model, x, extra, named or {}, run, {})
    main = main_tensor(result)
    if run is None and (main not in recorder.nodes or any(node < 0 for _, _, node in recorder.graph.calls)):
        recorder, result = _through(recorder, result, model, x, extra, named or {})
        main = main_tensor(result)
    graph = recorder.graph
    if main not in recorder.nodes:
        raise InputError(
            "the model's output does not depend on its input, or holds no tensor that does; expected a network of the "
            "probe's rows."
        )
    for path, _, node in graph.extra:
        if node < 0:
            raise InputError(f"'{path}' returns nothing that depends on the probe's rows; expected a tensor.")
    ends = {recorder.nodes[t] for t in tensors(result) if t in recorder.nodes}
    # Where noise is added is the same however a tensor lies; what is measured is measured row by row.
    lying = set() if run is not None else _lying(model, graph, x, named or {})
    taps = taps_of(model, graph, recorder.nodes[main], ends, lying)
    found = dependence(graph, whole=bool((x == x.round()).all()))
    nodes = [[graph.places.index(place) for place in places] for places in zip(taps.pre, taps.post, strict=True)]
    ids = frozenset(k for k, (pre, _) in enumerate(nodes) if pre in found.ids)
    return replace(taps, ids=ids, units=tuple((found.units[pre], found.units[post]) for pre, post in nodes))


def _through(
    recorder: _Recorder,
    result: Tree,
    model: nn.Module,
    x: torch.Tensor,
    extra: Sequence[str],
    named: Mapping[str, torch.Tensor],
) -> tuple[_Recorder, Tree]:
    """Return the pass followed through parts that torch's functions do not show, if it has any."""
    other, changed = _recorded(model, permuted(x), extra, named, None, {})
    entries = varying(recorder.constants, other.constants)
    mains = main_tensor(result), main_tensor(changed)
    emerges = mains[0] not in recorder.nodes and all(isinstance(main, torch.Tensor) for main in mains)
    emerges = emerges and mains[0].shape == mains[1].shape and not torch.equal(*mains)
    if entries:
        recorder, result = _recorded(model, x, extra, named, None, entries)
    if emerges:
        recorder.emerged(main_tensor(result))
    return recorder, result


def _recorded(
    model: nn.Module,
    x: torch.Tensor,
    extra: Sequence[str],
    named: Mapping[str, torch.Tensor],
    run: Callable[[], Tree] | None,
    entries: Mapping[str, tuple[int, ...]],
) -> tuple[_Recorder, Tree]:
    """Run the model once; return what was recorded, and its result."""
    recorder = _Recorder(model, x, entries)
    with _watched(model, recorder, extra), recorder:
        return recorder, model(x, **named) if run is None else run()


@contextlib.contextmanager
def _watched(model: nn.Module, recorder: _Recorder, extra: Sequence[str]) -> Iterator[None]:
    """Have the recorder's graph told, inside the block, of every call of a layer and of the modules `extra`."""
    graph, handles = recorder.graph, []

    def entered(path: str, module: nn.Module) -> None:
        if recorder.inside:
            graph.inner.add(len(graph.calls))
        graph.calls.append((path, module, -1))
        recorder.inside.append(len(graph.calls) - 1)

    def left(path: str, module: nn.Module, output: Tree) -> None:
        graph.calls[recorder.inside.pop()] = (path, module, _node_of(recorder, output))

    def passed(path: str, module: nn.Module, output: Tree) -> None:
        graph.extra.append((path, module, _node_of(recorder, output)))

    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_pre_hook(lambda m, _, p=path: entered(p, m)))
            handles.append(module.register_forward_hook(lambda m, _, out, p=path: left(p, m, out)))
        elif path in extra:
            handles.append(module.register_forward_hook(lambda m, _, out, p=path: passed(p, m, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lying(model: nn.Module, graph: Graph, x: torch.Tensor, named: Mapping[str, torch.Tensor]) -> set[int]:
    """Return the nodes that do not have rows, or parts of rows, first: one row more makes them longer elsewhere."""
    longer: dict[Place, int] = {}

    def note(place: Place, value: torch.Tensor) -> torch.Tensor:
        longer[place] = leading(value)
        return value

    more = torch.cat([x, x[:1]])
    others = {name: torch.cat([value, value[:1]]) for name, value in named.items()}
    operations = tuple(op.label for op in graph.operations if op.label)
    places = [place for place in graph.places if place not in (None, INPUT)]
    with tapped(operations, model, more, {place: partial(note, place) for place in places if place}):
        model(more, **others)
    return {
        node
        for node, place in enumerate(graph.places)
        if place in longer and graph.lengths[node] * len(more) != longer[place] * len(x)
    }


def _node_of(recorder: _Recorder, output: Tree) -> int:
    """Return the node of what a module returns, -1 where it does not depend on the input."""
    tensor = next(iter(tensors(output)), None)
    return -1 if tensor is None else recorder.nodes.get(tensor, -1)
