"""Where the layers of any network are: one forward pass recorded as a graph, and later passes tapped by it.

A pass is a sequence of operations on activity, that is, on tensors that depend on the input. Operations are numbered as
Python calls them, those on parameters alone left out, so that the numbers are the same in training mode and under
torch.func's transforms. A layer's pre and post are outputs of numbered operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError
from ibscan.networks.activations import ACTIVATIONS
from ibscan.types import Layer

__all__ = ["Place", "Reached", "Taps", "main_tensor", "recorded", "tapped"]

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
    """A recorded pass: names of the operations in order, and for every layer where its pre and post are.

    `noisy` are the layers that get noise, `upstream` those of them that feed each layer; `output` names what follows
    the last layer; `untapped` lists layers that are none here, with the reason.
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
    layer: int | None  # the layer call it is part of
    default: bool  # an activation with torch's default parameters
    weighted: bool = False  # a product with a parameter: a layer in all but name


@dataclass
class _Graph:
    """Nodes are numbered; 0 is the input. `places` says where each came from, None for an alias."""

    operations: list[_Operation] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=lambda: [INPUT])
    sizes: list[int] = field(default_factory=lambda: [0])
    calls: list[tuple[str, nn.Module, int]] = field(default_factory=list)  # layer path, module, node of its output
    extra: list[tuple[str, nn.Module, int]] = field(default_factory=list)
    inner: set[str] = field(default_factory=set)
    products: dict[int, str] = field(default_factory=dict)  # id of a parameter: the operation that took it


class _Recorder(TorchFunctionMode):
    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.graph = _Graph()
        self.nodes: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self.nodes[x] = 0
        self.inside: list[int] = []
        self.count = 0

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        given = list(_tensors((args, kwargs or {})))
        before = [self.nodes[t] for t in given if t in self.nodes]
        result = func(*args, **(kwargs or {}))
        if not before:
            return result
        name, made = _name(func), _made(func, args, result)
        if not made:
            return result
        graph = self.graph
        weights = [t for t in given if isinstance(t, nn.Parameter)] if name.startswith(PRODUCTS) else []
        graph.products.update({id(t): name for t in weights})
        outputs = []
        for slot, tensor in enumerate(made):
            changed = any(tensor is t for t in given)
            outputs.append(self._node(tensor, (self.count, slot)))
            if changed and _changes(name, func, kwargs or {}):
                self._aliased(tensor, outputs[-1])
        layer = self.inside[-1] if self.inside else None
        plain = len(args) <= 1 and not {k for k in kwargs or {} if k not in ("input", "inplace", "dim", "_stacklevel")}
        default = plain or _default(func, name, args, kwargs or {})
        graph.operations.append(_Operation(name, tuple(before), tuple(outputs), layer, default, bool(weights)))
        self.count += 1
        return result

    def _node(self, tensor: torch.Tensor, place: Place | None) -> int:
        self.graph.places.append(place)
        self.graph.sizes.append(tensor[0].numel() if tensor.ndim else 0)
        self.nodes[tensor] = len(self.graph.places) - 1
        return len(self.graph.places) - 1

    def _aliased(self, tensor: torch.Tensor, node: int) -> None:
        """Give a new node to every other tensor that an in-place operation changed through a common storage."""
        storage = tensor.untyped_storage().data_ptr()
        for other in list(self.nodes):
            if other is not tensor and other.untyped_storage().data_ptr() == storage:
                before = self.nodes[other]
                made = self._node(other, None)
                self.graph.operations.append(_Operation("alias", (before, node), (made,), None, False))


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
    recorder = _Recorder(x)
    graph = recorder.graph
    handles = []

    def entered(path: str, module: nn.Module) -> None:
        if recorder.inside:
            graph.inner.add(path)
        graph.calls.append((path, module, -1))
        recorder.inside.append(len(graph.calls) - 1)

    def left(path: str, module: nn.Module, output: Tree) -> None:
        call = recorder.inside.pop()
        graph.calls[call] = (path, module, _node_of(recorder, output, path))

    def passed(path: str, module: nn.Module, output: Tree) -> None:
        graph.extra.append((path, module, _node_of(recorder, output, path)))

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
    return _taps(model, graph, recorder.nodes[main], ends)


def _taps(model: nn.Module, graph: _Graph, main: int, ends: set[int]) -> Taps:
    # A layer called inside another (a subclass with layers of its own) is part of it.
    outer = [k for k, (path, _, _) in enumerate(graph.calls) if path not in graph.inner]
    names = _numbered([graph.calls[k][0] for k in outer])
    if not outer:
        raise InputError("no Linear or Conv module was called on the probe, so there is no layer to measure.")
    starts = [graph.calls[k][2] for k in outer]
    fed = [{n for op in graph.operations if op.layer == k for n in op.inputs} - _made_in(graph, k) for k in outer]
    reach = [_reached(graph, start) for start in starts]
    live = set(ends)
    for op in reversed(graph.operations):
        if live & set(op.outputs):
            live |= set(op.inputs)
    post = [_post(graph, start, live, ends, names[k]) for k, start in enumerate(starts)]
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
        post.append(_post(graph, start, live, ends, name))
        kind, width = type(module).__name__, graph.sizes[start]
        layers.append(Layer(name, kind, width, _span(graph, start, post[-1]), noisy=False))
    last = len(outer) - 1
    return Taps(
        tuple(op.name for op in graph.operations if op.name != "alias"),
        tuple(layers),
        tuple(_place(graph, start, layer.name) for start, layer in zip(starts, layers, strict=True)),
        tuple(_place(graph, node, layer.name) for node, layer in zip(post, layers, strict=True)),
        _output_name(graph, starts[last], post[last]),
        plain,
        tuple(_untapped(model, graph)),
    )


def _place(graph: _Graph, node: int, name: str) -> Place:
    place = graph.places[node]
    if place is None:
        raise InputError(
            f"'{name}': an in-place operation changes its output through a view, which cannot be followed."
        )
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
    """Return the nodes computed from `start` alone, before any layer."""
    found = {start}
    for op in graph.operations:
        if op.layer is None and not op.weighted and set(op.inputs) <= found and max(op.inputs) >= start:
            found |= set(op.outputs)
    return found


def _post(graph: _Graph, start: int, live: set[int], ends: set[int], name: str) -> int:
    """Return the last node computed from `start` alone through which all that is used of it passes."""
    region = _region(graph, start)
    used = ends | {
        n for op in graph.operations if not set(op.outputs) & region and set(op.outputs) & live for n in op.inputs
    }
    for node in sorted(region & live, reverse=True):
        around = _reached(graph, start, node, region) & region & live
        if not around & used:
            if graph.places[node] is None:
                raise InputError(
                    f"'{name}': an in-place operation changes its output through a view, which cannot be followed; "
                    "write the operation without in-place."
                )
            return node
    return start


def _between(graph: _Graph, start: int, end: int) -> list[_Operation] | None:
    """Return the operations from one node to another if they form one line of single steps, else None."""
    line: list[_Operation] = []
    node = end
    while node != start:
        made = next((op for op in graph.operations if node in op.outputs), None)
        if made is None or len(set(made.inputs)) != 1:
            return None
        line.insert(0, made)
        node = made.inputs[0]
    return line


def _span(graph: _Graph, start: int, end: int) -> tuple[float, float] | None:
    for op in reversed(_between(graph, start, end) or []):
        name = op.name.rstrip("_")
        if name in NEUTRAL | POOLING:
            continue
        if name == "softmax":
            return (0.0, 1.0)
        return ACTIVATIONS[name].span if name in ACTIVATIONS else None
    return None


def _output_name(graph: _Graph, start: int, end: int) -> str:
    line = _between(graph, start, end)
    if line is None:
        return "other"
    rest = [op for op in line if op.name.rstrip("_") not in NEUTRAL]
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
    called = {path for path, _, _ in graph.calls} - graph.inner
    for path, module in model.named_modules():
        if path in called:
            continue
        own = list(module.named_parameters(recurse=False))
        taken = {key: graph.products[id(p)] for key, p in own if id(p) in graph.products}
        if path in graph.inner:
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
        taps: The recorded pass; another sequence of operations is refused.
        x: The pass's own input tensor.
        at: What to call at which place; it returns the tensor that goes on.

    Raises:
        InputError: The pass takes another way than the recorded one.
    """

    def __init__(self, taps: Taps, x: torch.Tensor, at: Mapping[Place, Tapper]) -> None:
        super().__init__()
        self.taps = taps
        self.at: dict[int, dict[int, Tapper]] = {}
        for (operation, slot), tapper in at.items():
            self.at.setdefault(operation, {})[slot] = tapper
        self.known: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()
        self.known[x] = x
        self.count = 0

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        given = [t for t in _tensors((args, kwargs or {})) if t in self.known]
        if any(self.known[t] is not t for t in given):
            # A tensor that was replaced may still be at hand under its old name (an in-place activation's input).
            args, kwargs = self._current(args), self._current(kwargs or {})
        result = func(*args, **(kwargs or {}))
        if not given:
            return result
        made = _made(func, args, result)
        if not made:
            return result
        name = _name(func)
        if self.count >= len(self.taps.operations) or self.taps.operations[self.count] != name:
            raise InputError(
                f"the model takes another way through its operations than on the first rows (operation "
                f"{self.count + 1} is {name}): layers of a network that changes with its input cannot be followed."
            )
        here = self.at.get(self.count, {})
        self.count += 1
        for slot, tensor in enumerate(made):
            fresh = here[slot](tensor) if slot in here else tensor
            self.known[tensor] = fresh
            self.known[fresh] = fresh
            if fresh is not tensor:
                result = _replaced(result, tensor, fresh)
        return result

    def _current(self, tree: Tree) -> Tree:
        if isinstance(tree, torch.Tensor):
            return self.known.get(tree, tree)
        return _mapped(tree, self._current)


def main_tensor(result: Tree) -> torch.Tensor:
    """Return the network's output: the tensor, `logits` of a mapping, or the first tensor there is.

    Raises:
        InputError: There is none.
    """
    if isinstance(result, Mapping) and isinstance(result.get("logits"), torch.Tensor):
        found: torch.Tensor = result["logits"]
        return found
    first = next(iter(_tensors(result)), None)
    if first is None:
        raise InputError(f"the model returned a {type(result).__name__} without a tensor; expected its output.")
    return first


def _node_of(recorder: _Recorder, output: Tree, path: str) -> int:
    tensor = next(iter(_tensors(output)), None)
    if tensor is None or tensor not in recorder.nodes:
        raise InputError(f"'{path}' returns nothing that depends on the probe's rows; expected a tensor.")
    node: int = recorder.nodes[tensor]
    return node


def _name(func: Function) -> str:
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        return f"{getattr(getattr(func, '__self__', None), '__name__', '')}.__get__"
    return name


def _made(func: Function, args: Sequence[Any], result: Tree) -> list[torch.Tensor]:
    if getattr(func, "__name__", "") == "__setitem__":
        return [args[0]]
    return list(_tensors(result))


def _changes(name: str, func: Function, kwargs: Mapping[str, Any]) -> bool:
    inplace = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name.startswith("__i")
    return inplace or bool(kwargs.get("inplace")) or "inplace" in getattr(func, "__name__", "") or "out" in kwargs


def _default(func: Function, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an activation was called with torch's default parameters, dimension last for a softmax."""
    if name.rstrip("_") in ("softmax", "log_softmax"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        tensor = args[0] if args else kwargs["input"]
        return dim in (-1, tensor.ndim - 1)
    probe = torch.tensor([-2.5, -0.3, 0.7, 3.0], dtype=torch.float64)
    known = ACTIVATIONS.get(name.rstrip("_"))
    if known is None:
        return False
    rest = {k: v for k, v in kwargs.items() if k != "input"}
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
