"""One forward pass of a model recorded: every operation on activity, that is, on tensors that depend on the input.

Operations are numbered as Python calls them, those on parameters alone left out, so that the numbers are the same in
training mode and under torch.func's transforms.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError
from ibscan.networks.trace import operations as ops
from ibscan.networks.trace.graph import LAYERS, UNSEEN, Graph, Operation, Place
from ibscan.networks.trace.trees import Function, Tree, replaced, tensors

__all__ = ["Recorder", "watch"]


class Recorder(TorchFunctionMode):
    """A pass whose operations on activity make `graph`, and whose other operands are noted in `constants`.

    Args:
        model: What is run.
        x: The pass's own input tensor.
        entries: Where activity comes out of unseen code.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, entries: Mapping[int, ops.Entry]) -> None:
        super().__init__()
        self.entries = entries
        self.constants: ops.Constants = {}
        self.repeats: Counter[tuple[int, str]] = Counter()
        # Of calls of layers, hashes of the outputs that are no activity.
        self.outputs: dict[int, list[int]] = {}
        self.graph = Graph()
        self.nodes: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self.nodes[x] = 0
        self.graph.units[0] = ops.unit(x)
        self.rows = len(x)
        self.parameters = ops.parameter_names(model)
        self.inside: list[int] = []
        self.aliases: list[Operation] = []
        self.count = 0
        # Storages changed in place, by address; kept alive, so that no other tensor gets their address.
        self.changed: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        kwargs = kwargs or {}
        name = ops.operation_name(func)
        given = ops.operands(name, args, kwargs)
        self._refuse_stale(given)
        label = ops.operation_label(name, given, self.parameters)
        product = ops.is_product(name, given)
        key, hashes = (self.count, label, 0), {}
        if (product or any(t in self.nodes for t in given)) and name not in ops.CONSTANT:
            skipped = self.repeats[self.count, label]
            self.repeats[self.count, label] += 1
            entry = self.entries.get(self.count)
            key = self.count, label, skipped
            if entry is not None and entry[:2] == (label, skipped):
                for k in entry[2]:
                    self.enter(given[k], (self.count, ~k))
                label = ops.entry_label(entry)
            # Before the operation, which may change them in place.
            hashes = ops.constant_hashes({k: t for k, t in enumerate(given) if t not in self.nodes})
        before = [self.nodes[t] for t in given if t in self.nodes]
        result = func(*args, **kwargs)
        results = ops.results_of(name, args, result)
        if hashes and results:
            self.constants[key] = hashes
        if not before or not results or name in ops.CONSTANT:
            return result
        graph, outputs = self.graph, []
        weights = [t for t in given if isinstance(t, nn.Parameter)] if product else []
        graph.products.update({id(t): name for t in weights})
        joins = bool(weights)
        for slot, tensor in enumerate(results):
            changes = any(tensor is t for t in given)
            if changes and not ops.in_place(name, kwargs):
                # Dropout returns its input itself in eval mode alone: make it two tensors, for two nodes.
                changes, fresh = False, tensor.view_as(tensor)
                result, tensor = replaced(result, tensor, fresh), fresh
            joins = joins or (changes and tensor not in self.nodes)
            outputs.append(self._node(tensor, (self.count, slot)))
            if changes:
                self._aliased(tensor, outputs[-1])
        layer = self.inside[0] if self.inside else None
        default = ops.is_default(func, name, args, kwargs)
        graph.operations.append(Operation(name, tuple(before), tuple(outputs), layer, default, joins, label))
        self.count += 1
        graph.operations += self.aliases
        self.aliases = []
        return result

    def enter(self, tensor: torch.Tensor, place: Place) -> None:
        """Give a node to a tensor that comes out of unseen code, and is used at a place."""
        if tensor not in self.nodes:
            node = self._node(tensor, None)
            self.graph.entries[node] = place
            self.graph.operations.append(Operation(UNSEEN, (), (node,), joins=True))

    def _node(self, tensor: torch.Tensor, place: Place | None) -> int:
        self.graph.places.append(place)
        self.graph.sizes.append(tensor.numel() // self.rows)
        self.graph.lengths.append(ops.leading(tensor))
        self.graph.units.append(ops.unit(tensor))
        self.nodes[tensor] = len(self.graph.places) - 1
        return len(self.graph.places) - 1

    def _aliased(self, tensor: torch.Tensor, node: int) -> None:
        """Give a new node to every other tensor that an in-place operation changed through a common storage."""
        storage = tensor.untyped_storage()
        self.changed[storage.data_ptr()] = storage
        others = [t for t in self.nodes if t is not tensor and ops.address(t) == storage.data_ptr()]
        base = tensor._base
        if base is not None and base not in self.nodes:
            others.append(base)
        for other in others:
            before = (self.nodes[other], node) if other in self.nodes else (node,)
            self.aliases.append(Operation("alias", before, (self._node(other, None),)))

    def _refuse_stale(self, given: Sequence[torch.Tensor]) -> None:
        if self.changed and any(t not in self.nodes and ops.address(t) in self.changed for t in given):
            raise InputError(
                "the model writes what depends on its input into a tensor through a view of it, which cannot be "
                "followed; write to the tensor itself."
            )


@contextlib.contextmanager
def watch(model: nn.Module, recorder: Recorder, extra: Sequence[str]) -> Iterator[None]:
    """Add every call of a layer, and of the modules `extra`, to the recorder's graph while the block runs."""
    graph, handles = recorder.graph, []

    def entered(path: str, module: nn.Module) -> None:
        if recorder.inside:
            graph.inner.add(len(graph.calls))
        graph.calls.append((path, module, -1))
        recorder.inside.append(len(graph.calls) - 1)

    def left(path: str, module: nn.Module, output: Tree) -> None:
        call = recorder.inside.pop()
        graph.calls[call] = (path, module, _node_of(recorder, output))
        recorder.outputs[call] = [ops.tensor_hash(t) for t in tensors(output) if t not in recorder.nodes]

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


def _node_of(recorder: Recorder, output: Tree) -> int:
    """Return the node of what a module returns, -1 where it does not depend on the input."""
    tensor = next(iter(tensors(output)), None)
    return -1 if tensor is None else recorder.nodes.get(tensor, -1)
