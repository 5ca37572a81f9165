"""Where the layers of any network are: one forward pass recorded as a graph, and later passes tapped by it.

A pass is a sequence of operations on activity, that is, on tensors that depend on the input. Operations are numbered as
Python calls them, those on parameters alone left out, so that the numbers are the same in training mode and under
torch.func's transforms. A layer's pre and post are outputs of numbered operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError
from ibscan.networks.activations import ACTIVATIONS
from ibscan.types import Layer

__all__ = ["Place", "Reached", "Taps", "attached", "main_tensor", "recorded", "tapped"]

# An output of an operation: its number, and which of its tensors.
Place: TypeAlias = tuple[int, int]
# What a function or a model takes and returns: tensors in containers of any kind.
Tree: TypeAlias = Any
Function: TypeAlias = Callable[..., Any]
# Given a tensor at a place, what goes on in its stead.
Tapper: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

INPUT = (-1, 0)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
# Operations by a matrix: where one of these takes a parameter, that is a layer in all but name.
PRODUCTS = ("linear", "matmul", "__matmul__", "bmm", "einsum", "multi_head_attention_forward", "lstm", "gru", "conv")
# Tensors shaped like another, or placed where it is, but not computed from its values.
CONSTANT = (
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
)  # fmt: skip
# What changes neither the values nor their range.
NEUTRAL = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "clone", "unflatten",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "swapaxes", "movedim",
    "T.__get__", "mT.__get__", "to", "double", "float", "type", "view_as", "reshape_as", "identity", "detach",
}  # fmt: skip
# What mixes values without leaving their range.
POOLING = {
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "avg_pool1d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "boolean_dispatch",
}  # fmt: skip
ACTIVATION_NAMES = {
    "tanh": "tanh", "relu": "relu", "leaky_relu": "leaky_relu", "sigmoid": "sigmoid", "gelu": "gelu", "silu": "silu",
    "softplus": "softplus", "elu": "elu", "softmax": "softmax", "log_softmax": "log_softmax",
}  # fmt: skip


class Reached(Exception):  # noqa: N818 - no error: the pass has given all that was wanted
    """Ends a forward pass early."""


@dataclass(frozen=True)
class Taps:
    """A recorded pass: its operations in order with the parameters they take, and where the layers' pre and post are.

    `output` names what follows the last layer; `plain` says that every layer is fed by the one before it alone;
    `untapped` lists layers that are none here, with the reason.
    """

    operations: tuple[str, ...]
    layers: tuple[Layer, ...]
    pre: tuple[Place, ...]
    post: tuple[Place, ...]
    output: str
    plain: bool
    untapped: tuple[tuple[str, str], ...]

    @property
    def noisy(self) -> tuple[int, ...]:
        """Layers that get noise in the noisy network."""
        return tuple(k for k, layer in enumerate(self.layers) if layer.noisy and not layer.output)


@dataclass(frozen=True)
class _Operation:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: int | None = None  # the layer call it is part of
    default: bool = False  # an activation with torch's default parameters
    joins: bool = False  # a product with a parameter, or a write into a tensor that does not depend on the input
    label: str = ""  # its name and the parameters it takes; empty for an alias, which is no operation of its own


@dataclass
class _Graph:
    """Nodes are numbered; 0 is the input. `places` says where each came from, None for an alias."""

    operations: list[_Operation] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=lambda: [INPUT])
    sizes: list[int] = field(default_factory=lambda: [0])  # numbers of one row
    lengths: list[int] = field(default_factory=lambda: [0])  # of the first dimension
    calls: list[tuple[str, nn.Module, int]] = field(default_factory=list)  # layer path, module, node of its output
    extra: list[tuple[str, nn.Module, int]] = field(default_factory=list)
    inner: set[int] = field(default_factory=set)  # calls within other calls
    products: dict[int, str] = field(default_factory=dict)  # id of a parameter: the operation that took it


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        self.graph = _Graph()
        self.nodes: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self.nodes[x] = 0
        self.rows = len(x)
        self.parameters = _parameters(model)
        self.inside: list[int] = []
        self.aliases: list[_Operation] = []
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
        given = list(_tensors((args, kwargs)))
        before = [self.nodes[t] for t in given if t in self.nodes]
        self._refuse_stale(given)
        result = func(*args, **kwargs)
        name = _name(func)
        made = _made(name, args, result)
        if not before or not made or name in CONSTANT:
            return result
        graph, outputs = self.graph, []
        weights = [t for t in given if isinstance(t, nn.Parameter)] if name.startswith(PRODUCTS) else []
        graph.products.update({id(t): name for t in weights})
        joins = bool(weights)
        for slot, tensor in enumerate(made):
            changes = any(tensor is t for t in given)
            if changes and not _in_place(name, kwargs):
                # Dropout in eval mode returns its very input, in training it does not: two nodes, two tensors.
                changes, fresh = False, tensor.view_as(tensor)
                result, tensor = _replaced(result, tensor, fresh), fresh
            joins = joins or (changes and tensor not in self.nodes)
            outputs.append(self._node(tensor, (self.count, slot)))
            if changes:
                self._aliased(tensor, outputs[-1])
        layer = self.inside[0] if self.inside else None
        default, label = _default(func, name, args, kwargs), _label(name, given, self.parameters)
        graph.operations.append(_Operation(name, tuple(before), tuple(outputs), layer, default, joins, label))
        self.count += 1
        graph.operations += self.aliases
        self.aliases = []
        return result

    def _node(self, tensor: torch.Tensor, place: Place | None) -> int:
        self.graph.places.append(place)
        self.graph.sizes.append(tensor.numel() // self.rows)
        self.graph.lengths.append(_length(tensor))
        self.nodes[tensor] = len(self.graph.places) - 1
        return len(self.graph.places) - 1

    def _aliased(self, tensor: torch.Tensor, node: int) -> None:
        """Give a new node to every other tensor that an in-place operation changed through a common storage."""
        storage = tensor.untyped_storage()
        self.changed[storage.data_ptr()] = storage
        others = [t for t in self.nodes if t is not tensor and _address(t) == storage.data_ptr()]
        base = tensor._base
        if base is not None and base not in self.nodes:
            others.append(base)
        for other in others:
            before = (self.nodes[other], node) if other in self.nodes else (node,)
            self.aliases.append(_Operation("alias", before, (self._node(other, None),)))

    def _refuse_stale(self, given: Sequence[torch.Tensor]) -> None:
        if self.changed and any(t not in self.nodes and _address(t) in self.changed for t in given):
            raise InputError(
                "the model writes what depends on its input into a tensor through a view of it, which cannot be "
                "followed; write to the tensor itself."
            )


def recorded(
    model: nn.Module, x: torch.Tensor, extra: Sequence[str] = (), *, run: Callable[[], Tree] | None = None
) -> Taps:
    """Run the model once and return where its layers are.

    Args:
        model: In eval mode.
        x: A few rows, shape (n, ...).
        extra: Paths of modules to tap although they are no Linear or Conv; they come after the layers.
        run: How to run it on these rows, where that is more than model(x).

    Returns:
        The taps.

    Raises:
        InputError: No layer is called, an output that holds no tensor of the input, or in-place changes that cannot
            be followed.

    Source:
        The README, "Layers, pre and post".
    """
    recorder = _Recorder(model, x)
    graph = recorder.graph
    handles = []

    def entered(path: str, module: nn.Module) -> None:
        if recorder.inside:
            graph.inner.add(len(graph.calls))
        graph.calls.append((path, module, -1))
        recorder.inside.append(len(graph.calls) - 1)

    def left(path: str, module: nn.Module, output: Tree) -> None:
        graph.calls[recorder.inside.pop()] = (path, module, _node_of(recorder, output))

    def passed(path: str, module: nn.Module, output: Tree) -> None:
        node = _node_of(recorder, output)
        if node < 0:
            raise InputError(f"'{path}' returns nothing that depends on the probe's rows; expected a tensor.")
        graph.extra.append((path, module, node))

    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_pre_hook(lambda m, _, p=path: entered(p, m)))
            handles.append(module.register_forward_hook(lambda m, _, out, p=path: left(p, m, out)))
        elif path in extra:
            handles.append(module.register_forward_hook(lambda m, _, out, p=path: passed(p, m, out)))
    try:
        with recorder:
            result = model(x) if run is None else run()
    finally:
        for handle in handles:
            handle.remove()
    main = main_tensor(result)
    if main not in recorder.nodes:
        raise InputError("the model's output does not depend on its input; expected a network of the probe's rows.")
    ends = {recorder.nodes[t] for t in _tensors(result) if t in recorder.nodes}
    # Where noise is added is the same however a tensor lies; what is measured is measured row by row.
    lying = set() if run is not None else _lying(model, graph, x)
    return _taps(model, graph, recorder.nodes[main], ends, lying)


def _lying(model: nn.Module, graph: _Graph, x: torch.Tensor) -> set[int]:
    """Return the nodes that do not have rows, or parts of rows, first: one row more makes them longer elsewhere."""
    longer: dict[Place, int] = {}

    def note(place: Place, value: torch.Tensor) -> torch.Tensor:
        longer[place] = _length(value)
        return value

    more = torch.cat([x, x[:1]])
    operations = tuple(op.label for op in graph.operations if op.label)
    places = [place for place in graph.places if place not in (None, INPUT)]
    with tapped(operations, model, more, {place: partial(note, place) for place in places if place}):
        model(more)
    return {
        node
        for node, place in enumerate(graph.places)
        if place in longer and graph.lengths[node] * len(more) != longer[place] * len(x)
    }


def _taps(model: nn.Module, graph: _Graph, main: int, ends: set[int], lying: set[int]) -> Taps:
    # A layer called inside another (a subclass with layers of its own) is part of it.
    outer = [k for k, (_, _, node) in enumerate(graph.calls) if node >= 0 and k not in graph.inner]
    names = _numbered([graph.calls[k][0] for k in outer])
    if not outer:
        raise InputError("no Linear or Conv module was called on the probe's rows, so there is no layer to measure.")
    starts = [graph.calls[k][2] for k in outer]
    fed = [{n for op in graph.operations if op.layer == k for n in op.inputs} - _made_in(graph, k) for k in outer]
    reach = [_reached(graph, start) for start in starts]
    live = set(ends)
    for op in reversed(graph.operations):
        if live & set(op.outputs):
            live |= set(op.inputs)
    post = [_post(graph, start, live, lying, ends) for start in starts]
    if main in reach[-1]:
        post[-1] = main
    feeds = [[bool(reach[a] & fed[b]) for b in range(len(outer))] for a in range(len(outer))]
    layers = []
    for k, (name, call) in enumerate(zip(names, outer, strict=True)):
        kind, width = type(graph.calls[call][1]).__name__, graph.sizes[starts[k]]
        others = [j for j in range(len(outer)) if j != k]
        span = _span(graph, starts[k], post[k])
        first, output = not any(feeds[j][k] for j in others), not any(feeds[k][j] for j in others)
        layers.append(Layer(name or "linear", kind, width, span, first=first, output=output))
    alone = _region(graph, 0)
    plain = fed[0] <= alone and all(fed[k] == {post[k - 1]} for k in range(1, len(outer))) and main in reach[-1]
    named = _numbered([path for path, _, _ in graph.extra])
    for name, (_, module, start) in zip(named, graph.extra, strict=True):
        starts.append(start)
        post.append(_post(graph, start, live, lying, ends))
        kind, width = type(module).__name__, graph.sizes[start]
        noise = {post[k] for k in range(len(outer)) if not layers[k].output} - {post[-1]}
        first = not any(post[-1] in _reached(graph, node) for node in noise)
        layers.append(Layer(name, kind, width, _span(graph, start, post[-1]), first=first, noisy=False))
    last = len(outer) - 1
    return Taps(
        tuple(op.label for op in graph.operations if op.label),
        tuple(layers),
        tuple(_place(graph, start, layer.name) for start, layer in zip(starts, layers, strict=True)),
        tuple(_place(graph, node, layer.name) for node, layer in zip(post, layers, strict=True)),
        _output_name(graph, starts[last], post[last]) if main in reach[last] else "apart",
        plain,
        tuple(_untapped(model, graph)),
    )


def _place(graph: _Graph, node: int, name: str) -> Place:
    place = graph.places[node]
    if place is None:
        raise InputError(
            f"'{name}': an in-place operation changes its output through a view, which cannot be followed; write the "
            "operation without in-place."
        )
    if place == INPUT:
        raise InputError(f"'{name}' passes the probe's rows on as they are; there is nothing to measure.")
    return place


def _made_in(graph: _Graph, call: int) -> set[int]:
    return {n for op in graph.operations if op.layer == call for n in op.outputs}


def _reached(graph: _Graph, start: int, without: int = -1, within: set[int] | None = None) -> set[int]:
    """Return the nodes computed from `start`, itself included, on ways that avoid a node and stay within a set."""
    found = {start} - {without}
    for op in graph.operations:
        if found & set(op.inputs):
            found |= {n for n in op.outputs if n != without and (within is None or n in within)}
    return found


def _region(graph: _Graph, start: int) -> set[int]:
    """Return the nodes computed from `start` alone, before any layer or what is like one."""
    found = {start}
    for op in graph.operations:
        if op.layer is None and not op.joins and set(op.inputs) <= found:
            found |= set(op.outputs)
    return found


def _post(graph: _Graph, start: int, live: set[int], lying: set[int], ends: set[int]) -> int:
    """Return the last node computed from `start` alone through which all that is used of it passes."""
    region = _region(graph, start)
    used = ends | {
        n for op in graph.operations if not set(op.outputs) & region and set(op.outputs) & live for n in op.inputs
    }
    for node in sorted((region & live) - lying, reverse=True):
        around = _reached(graph, start, node, region) & region & live
        if not around & used:
            return node
    return start


def _between(graph: _Graph, start: int, end: int) -> Iterator[_Operation | None]:
    """Yield the operations back from one node to another, and None where they are no line of single steps."""
    node = end
    while node != start:
        made = next((op for op in graph.operations if node in op.outputs), None)
        yield made
        if made is None:
            return
        if len(set(made.inputs)) > 1:
            yield None
            return
        node = made.inputs[0]


def _span(graph: _Graph, start: int, end: int) -> tuple[float, float] | None:
    for op in _between(graph, start, end):
        name = "" if op is None else op.name.rstrip("_")
        if name in NEUTRAL | POOLING:
            continue
        if name == "softmax":
            return (0.0, 1.0)
        return ACTIVATIONS[name].span if name in ACTIVATIONS else None
    return None


def _output_name(graph: _Graph, start: int, end: int) -> str:
    line = list(_between(graph, start, end))
    if None in line:
        return "other"
    rest = [op for op in line if op is not None and op.name.rstrip("_") not in NEUTRAL]
    if all(op.name in POOLING for op in rest):
        return "identity"
    known = ACTIVATION_NAMES.get(rest[0].name.rstrip("_")) if len(rest) == 1 and rest[0].default else None
    return known or "other"


def _numbered(paths: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names


def _untapped(model: nn.Module, graph: _Graph) -> Iterator[tuple[str, str]]:
    alone = {path for k, (path, _, _) in enumerate(graph.calls) if k not in graph.inner}
    measured = {path for k, (path, _, node) in enumerate(graph.calls) if k not in graph.inner and node >= 0}
    inner = {graph.calls[k][0] for k in graph.inner}
    for path, module in model.named_modules():
        if path in measured:
            continue
        own = list(module.named_parameters(recurse=False))
        taken = {key: graph.products[id(p)] for key, p in own if id(p) in graph.products}
        if path in alone:
            yield path, "its output does not depend on the probe's rows"
        elif path in inner:
            yield path, "it is called inside another layer, and counts as part of that"
        elif taken and not isinstance(module, LAYERS):
            key, name = next(iter(taken.items()))
            yield f"{path}.{key}".lstrip("."), f"its weights are used by {name} without a layer being called"
        elif taken:
            yield path, f"its weights are used by {next(iter(taken.values()))} without the layer being called"
        elif isinstance(module, LAYERS):
            yield path, "it is never called on the probe"


class tapped(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """A pass in which tensors at given places are seen, and may be replaced, by a function each.

    Args:
        operations: Those of the recorded pass; another sequence is refused.
        model: What is run.
        x: The pass's own input tensor.
        at: What to call at which place; it returns the tensor that goes on.

    Raises:
        InputError: The pass takes another way than the recorded one.
    """

    def __init__(
        self, operations: Sequence[str], model: nn.Module, x: torch.Tensor, at: Mapping[Place, Tapper]
    ) -> None:
        super().__init__()
        self.operations = operations
        self.at: dict[int, dict[int, Tapper]] = {}
        for (operation, slot), tapper in at.items():
            self.at.setdefault(operation, {})[slot] = tapper
        # Activity, and what goes on in its stead, or None: a value that is its own key would never be freed.
        self.known: MutableMapping[torch.Tensor, torch.Tensor | None] = WeakTensorKeyDictionary()
        self.known[x] = None
        self.parameters = _parameters(model)
        self.count = 0

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        known = [t for t in given if t in self.known]
        if any(self.known[t] is not None for t in known):
            # A tensor that was replaced may still be at hand under its old name (an in-place activation's input).
            args, kwargs = self._current(args), self._current(kwargs)
        result = func(*args, **kwargs)
        name = _name(func)
        made = _made(name, args, result)
        if not known or not made or name in CONSTANT:
            return result
        self._follow(_label(name, given, self.parameters))
        here = self.at.get(self.count - 1, {})
        changes = _in_place(name, kwargs)
        for slot, tensor in enumerate(made):
            fresh = here[slot](tensor) if slot in here else tensor
            base = tensor._base if changes else None
            if base is not None and base not in self.known:
                self.known[base] = None
            self.known[fresh] = None
            if fresh is not tensor:
                self.known[tensor] = fresh
                result = _replaced(result, tensor, fresh)
        return result

    def finish(self) -> None:
        """Hold the pass, now at its end, against the recorded one.

        Raises:
            InputError: It has done less.
        """
        if self.count < len(self.operations):
            self._follow("its end")

    def _follow(self, label: str) -> None:
        """Count an operation."""
        recorded = self.operations[self.count] if self.count < len(self.operations) else "its end"
        self.count += 1
        if recorded != label:
            raise InputError(
                f"the model takes another way through its operations than on its first rows (step {self.count} is "
                f"{label}, and was {recorded}): the layers of a network that changes with its input cannot be followed."
            )

    def _current(self, tree: Tree) -> Tree:
        if isinstance(tree, torch.Tensor):
            fresh = self.known.get(tree)
            return tree if fresh is None else fresh
        return _mapped(tree, self._current)


class attached(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """A pass through which derivatives flow as through the function it computes, whatever the model detaches.

    A detached branch, and one under no_grad or in inference mode, depends on the input like any other.
    """

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        with torch.inference_mode(False), torch.enable_grad():
            if _name(func) in ("detach", "data.__get__"):
                given = next(_tensors((args, kwargs or {})))
                return given.view_as(given)
            return func(*args, **(kwargs or {}))


def main_tensor(result: Tree) -> torch.Tensor:
    """Return the network's output: the tensor, what is called `logits`, or the first tensor there is.

    Raises:
        InputError: There is none.
    """
    found = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(found, torch.Tensor):
        return found
    first = next(iter(_tensors(result)), None)
    if first is None:
        raise InputError(f"the model returned a {type(result).__name__} without a tensor; expected its output.")
    return first


def _node_of(recorder: _Recorder, output: Tree) -> int:
    """Return the node of what a module returns, -1 where it does not depend on the input."""
    tensor = next(iter(_tensors(output)), None)
    return -1 if tensor is None else recorder.nodes.get(tensor, -1)


def _length(tensor: torch.Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _parameters(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _address(tensor: torch.Tensor) -> int | None:
    # Sparse tensors have no one storage.
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else None


def _label(name: str, given: Sequence[torch.Tensor], parameters: Mapping[int, str]) -> str:
    """Return an operation's name and the names of the parameters it takes: two layers of a kind are two operations."""
    return " ".join([name, *(parameters[id(t)] for t in given if id(t) in parameters)])


def _name(func: Function) -> str:
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"{getattr(getattr(func, '__self__', None), '__name__', '')}.{name}"
    return name


def _made(name: str, args: Sequence[Any], result: Tree) -> list[torch.Tensor]:
    return [args[0]] if name in ("__setitem__", "data.__set__") else list(_tensors(result))


def _in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation that gives one of its inputs back has changed it."""
    named = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "data.__set__")
    return named or name.startswith("__i") or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def _default(func: Function, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an activation was called with torch's default parameters, dimension last for a softmax."""
    if name in ("softmax", "log_softmax"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        tensor = args[0] if args else kwargs["input"]
        return dim in (-1, tensor.ndim - 1)
    known = ACTIVATIONS.get(name.rstrip("_"))
    if known is None:
        return False
    probe = torch.tensor([-2.5, -0.3, 0.7, 3.0], dtype=torch.float64)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "out")}
    return bool(torch.equal(func(probe.clone(), *args[1:], **rest), known.value(probe)))


def _tensors(tree: Tree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    else:
        for part in _parts(tree):
            yield from _tensors(part)


def _parts(tree: Tree) -> Iterable[Any]:
    if isinstance(tree, Mapping):
        return tree.values()
    if isinstance(tree, tuple | list):
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, one.name) for one in dataclasses.fields(tree)]
    return ()


def _mapped(tree: Tree, change: Callable[[Any], Any]) -> Tree:
    if isinstance(tree, dict):
        return {key: change(value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(change(part) for part in tree)
    return tree


def _replaced(result: Tree, old: torch.Tensor, new: torch.Tensor) -> Tree:
    """Return an operation's result with one tensor in another's place."""
    if result is old:
        return new
    if isinstance(result, tuple) and type(result) is not tuple:  # torch's own named results
        return type(result)([new if part is old else part for part in result])
    return _mapped(result, lambda part: new if part is old else part)
