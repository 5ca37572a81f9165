"""Locate the layers in a recorded pass: where their pre and post are, and which layers they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import nn

from ibscan.core.records import Layer
from ibscan.errors import InputError
from ibscan.networks.activations import ACTIVATIONS
from ibscan.networks.trace.graph import INPUT, LAYERS, UNSEEN, Graph, Head, Operation, Place, Trace

__all__ = ["locate_layers"]

# Operations that change neither the values nor their range.
NEUTRAL = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "clone", "unflatten",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "swapaxes", "movedim",
    "T.__get__", "mT.__get__", "to", "double", "float", "type", "view_as", "reshape_as", "identity", "detach",
}  # fmt: skip
# Operations that reorder or select the numbers of a row.
REORDERING = {
    "permute", "transpose", "swapaxes", "movedim", "T.__get__", "mT.__get__", "flip", "fliplr", "roll", "rot90",
    "__getitem__", "select", "index_select", "narrow", "chunk", "split", "unbind", "gather", "take_along_dim",
}  # fmt: skip
# Operations that combine values without leaving their range.
POOLING = {
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "avg_pool1d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "boolean_dispatch",
}  # fmt: skip


def locate_layers(model: nn.Module, graph: Graph, main: int, ends: set[int], not_row_first: set[int]) -> Trace:
    """Return the trace of a recorded pass.

    Args:
        model: What was run.
        graph: The pass.
        main: Node of the network's output.
        ends: Nodes of all tensors that the model returned.
        not_row_first: Nodes whose first dimension is not the rows, which cannot be a post.

    Raises:
        InputError: There is no layer, or one whose output is changed through a view.

    Source:
        The guide, models.md, "What is a layer".
    """
    # A layer called inside another (a subclass with layers of its own) is part of it.
    outer = [k for k, (_, _, node) in enumerate(graph.calls) if node >= 0 and k not in graph.inner]
    if not outer:
        raise InputError("no Linear or Conv module was called on the probe's rows, so there is no layer to measure.")
    starts = [graph.calls[k][2] for k in outer]
    inputs = [
        {n for op in graph.operations if op.layer == k for n in op.inputs} - _inner_nodes(graph, k) for k in outer
    ]
    reach = [_reached(graph, start) for start in starts]
    end_of = partial(_post, graph, live=_live(graph, ends), not_row_first=not_row_first, ends=ends)
    post = [end_of(start) for start in starts]
    if main in reach[-1] and graph.places[main] is not None:
        post[-1] = main
    reaches = [[bool(reach[a] & inputs[b]) for b in range(len(outer))] for a in range(len(outer))]
    layers = _layers(graph, outer, post, reaches)
    chained = all(inputs[k] == {post[k - 1]} for k in range(1, len(outer)))
    plain = inputs[0] <= _region(graph, 0) and chained and main in reach[-1]
    name, head = _head(graph, main, starts, reach, reaches)
    starts += [start for _, _, start in graph.extra]
    post += [end_of(start) for _, _, start in graph.extra]
    layers += _other_modules(graph, layers, post)
    return Trace(
        graph.labels,
        tuple(layers),
        tuple(_place(graph, start, layer.name) for start, layer in zip(starts, layers, strict=True)),
        tuple(_place(graph, node, layer.name) for node, layer in zip(post, layers, strict=True)),
        name,
        plain,
        tuple(_unmeasured(model, graph)),
        tuple(outer),
        _first_input(graph, inputs[0]),
        head,
    )


def _layers(graph: Graph, calls: Sequence[int], post: Sequence[int], reaches: Sequence[Sequence[bool]]) -> list[Layer]:
    """Return the layers, one a call; `reaches[a][b]` says whether layer b depends on layer a."""
    names = _numbered([graph.calls[call][0] for call in calls])
    layers = []
    for k, (path, call) in enumerate(zip(names, calls, strict=True)):
        _, module, start = graph.calls[call]
        others = [j for j in range(len(calls)) if j != k]
        first, output = not any(reaches[j][k] for j in others), not any(reaches[k][j] for j in others)
        width, span = graph.sizes[start], _span(graph, start, post[k])
        layers.append(Layer(path or "linear", type(module).__name__, width, span, first=first, output=output))
    return layers


def _other_modules(graph: Graph, layers: Sequence[Layer], post: Sequence[int]) -> list[Layer]:
    """Return the modules asked for by name as layers; `post` has the nodes of the layers' posts, then theirs."""
    names = _numbered([path for path, _, _ in graph.extra])
    noisy = {node for node, layer in zip(post, layers, strict=False) if not layer.output}
    others = []
    for path, (_, module, start), end in zip(names, graph.extra, post[len(layers) :], strict=True):
        first = not any(end in _reached(graph, node) for node in noisy - {end})
        kind, width = type(module).__name__, graph.sizes[start]
        others.append(Layer(path, kind, width, _span(graph, start, end), first=first, noisy=False))
    return others


def _live(graph: Graph, ends: set[int]) -> set[int]:
    """Return the nodes that the model's results depend on."""
    live = set(ends)
    for op in reversed(graph.operations):
        if live & set(op.outputs):
            live |= set(op.inputs)
    return live


def _place(graph: Graph, node: int, name: str) -> Place:
    place = graph.places[node]
    if place is None:
        raise InputError(
            f"'{name}': an in-place operation changes its output through a view, which cannot be followed; write the "
            "operation without in-place."
        )
    if place == INPUT:
        raise InputError(f"'{name}' passes the probe's rows on as they are; there is nothing to measure.")
    return place


def _first_input(graph: Graph, inputs: set[int]) -> Place | None:
    if len(inputs) != 1:
        return None
    (node,) = inputs
    neutral = all(op is not None and op.kind in NEUTRAL for op in _between(graph, 0, node))
    return INPUT if neutral else graph.places[node]


def _inner_nodes(graph: Graph, call: int) -> set[int]:
    return {n for op in graph.operations if op.layer == call for n in op.outputs}


def _reached(graph: Graph, start: int, without: int = -1, within: set[int] | None = None) -> set[int]:
    """Return `start` and the nodes that depend on it along paths that avoid `without` and stay within a set."""
    found = {start} - {without}
    for op in graph.operations:
        if found & set(op.inputs):
            found |= {n for n in op.outputs if n != without and (within is None or n in within)}
    return found


def _region(graph: Graph, start: int) -> set[int]:
    """Return the nodes computed from `start` alone, up to the next layer or product with a parameter."""
    found = {start}
    for op in graph.operations:
        if op.layer is None and not op.joins and set(op.inputs) <= found:
            found |= set(op.outputs)
    return found


def _post(graph: Graph, start: int, live: set[int], not_row_first: set[int], ends: set[int]) -> int:
    """Return the last node computed from `start` alone that every path from it to an output passes through."""
    region = _region(graph, start)
    used = ends | {
        n for op in graph.operations if not set(op.outputs) & region and set(op.outputs) & live for n in op.inputs
    }
    for node in sorted((region & live) - not_row_first, reverse=True):
        around = _reached(graph, start, node, region) & region & live
        if not around & used:
            return node
    return start


def _between(graph: Graph, start: int, end: int) -> Iterator[Operation | None]:
    """Yield the operations back from `end` to `start`, and None last if they do not form a simple path."""
    node = end
    while node != start:
        operation = next((op for op in graph.operations if node in op.outputs), None)
        yield operation
        if operation is None:
            return
        if len(set(operation.inputs)) > 1:
            yield None
            return
        node = operation.inputs[0]


def _span(graph: Graph, start: int, end: int) -> tuple[float, float] | None:
    for op in _between(graph, start, end):
        name = "" if op is None else op.kind
        if name in NEUTRAL | POOLING:
            continue
        if name == "softmax":
            return (0.0, 1.0)
        return ACTIVATIONS[name].span if name in ACTIVATIONS else None
    return None


def _head(
    graph: Graph, main: int, starts: list[int], reach: list[set[int]], reaches: list[list[bool]]
) -> tuple[str, Head]:
    """Return the name of the operation that makes the network's output, and the head.

    The last hidden layer is the last one that the output layer depends on. An ensemble, whose output depends on several
    independent layers, has none.
    """
    ending = [k for k, reached in enumerate(reach) if main in reached]
    hidden = None
    if ending and all(reaches[k][ending[-1]] for k in ending[:-1]):
        hidden = max((k for k in range(ending[-1]) if reaches[k][ending[-1]]), default=None)
    name, logits, raw = _last_operation(graph, main)
    if not name:
        name = _output_name(graph, starts[ending[-1]], main) if ending else "other"
    return name, Head(graph.sizes[main], hidden, logits, raw)


def _last_operation(graph: Graph, main: int) -> tuple[str, Place | None, bool]:
    """Return name, place of the logits and `raw` of an output that ends in a softmax or sigmoid.

    The name is `other` if output and logits are not in the same order, "" if there is no softmax or sigmoid.
    """
    ordered = True
    for op in _between(graph, 0, main):
        if op is None:
            break
        name = op.kind
        if name in NEUTRAL | REORDERING:
            ordered = ordered and (name not in REORDERING or _single(graph, op))
        elif name in ("softmax", "log_softmax", "sigmoid"):
            logits = graph.places[op.inputs[0]]
            known = op.default and ordered and logits is not None
            return (name, logits, False) if known else ("other", None, False)
        elif name == UNSEEN:
            return "other", None, False
        else:
            break
    return "", None, True


def _single(graph: Graph, op: Operation) -> bool:
    """Return whether an operation has one number a row, before and after."""
    return all(graph.sizes[node] == 1 for node in (*op.inputs, *op.outputs))


def _output_name(graph: Graph, start: int, end: int) -> str:
    """Return the name of the single activation between a layer's output and the network's, else `other`."""
    path_back = list(_between(graph, start, end))
    if None in path_back:
        return "other"
    rest = [op for op in path_back if op is not None and op.kind not in NEUTRAL]
    rest = [op for op in rest if op.kind not in REORDERING or not _single(graph, op)]
    if all(op.kind in POOLING for op in rest):
        return "identity"
    name = rest[0].kind if len(rest) == 1 and rest[0].default else ""
    return name if name in ACTIVATIONS else "other"


def _numbered(paths: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names


def _unmeasured(model: nn.Module, graph: Graph) -> Iterator[tuple[str, str]]:
    alone = {path for k, (path, _, _) in enumerate(graph.calls) if k not in graph.inner}
    measured = {path for k, (path, _, node) in enumerate(graph.calls) if k not in graph.inner and node >= 0}
    inner, opaque = ({graph.calls[k][0] for k in calls} for calls in (graph.inner, graph.opaque))
    modules = list(model.named_modules())
    # The product with the matrix of a tied embedding belongs to the output layer.
    shared = {id(p) for path, module in modules if path in measured for p in module.parameters(recurse=False)}
    for path, module in modules:
        if path in measured:
            continue
        own = [(key, p) for key, p in module.named_parameters(recurse=False) if id(p) not in shared]
        used = {key: graph.products[id(p)] for key, p in own if id(p) in graph.products}
        if path in opaque:
            yield path, "its output is made by code that calls no function of torch"
        elif path in alone:
            yield path, "its output does not depend on the probe's rows"
        elif path in inner:
            yield path, "it is called inside another layer, and counts as part of that"
        elif used and not isinstance(module, LAYERS):
            key, name = next(iter(used.items()))
            yield f"{path}.{key}".lstrip("."), f"its weights are used by {name} without a layer being called"
        elif used:
            yield path, f"its weights are used by {next(iter(used.values()))} without the layer being called"
        elif isinstance(module, LAYERS):
            yield path, "it is never called on the probe"
