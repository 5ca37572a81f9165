"""Tell from a recorded pass which nodes have no derivative by the input, and how exact the derivatives are."""

from __future__ import annotations

from dataclasses import dataclass

from ibscan.networks.trace.graph import Graph

__all__ = ["Dependence", "dependence"]

# Operations that map integers to integers: moving, cutting, joining, integer arithmetic.
COPYING = {
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "view", "view_as", "reshape", "reshape_as",
    "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "T.__get__", "mT.__get__", "contiguous",
    "clone", "detach", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "narrow",
    "select", "__getitem__", "unbind", "split", "chunk", "tensor_split", "cat", "concat", "stack", "hstack", "vstack",
    "roll", "flip", "data.__get__", "round", "trunc", "floor", "ceil", "abs", "clamp", "clip", "add", "sub", "mul",
    "__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "where", "masked_fill", "pad", "__iter__",
}  # fmt: skip
# Operations whose integers are positions among computed values, not values of the input.
COMPUTED = {"argmax", "argmin", "argsort", "sort", "topk", "max", "min", "searchsorted", "bucketize", "nonzero"}
# Operations with a derivative of zero between steps.
STEPS = {"sign", "sgn", "round", "trunc", "fix", "floor", "ceil", "heaviside", "floor_divide", "__floordiv__"}
# Operations that take integers as indices.
INDEXING = {
    "embedding", "embedding_bag", "one_hot", "__getitem__", "__setitem__", "gather", "take", "take_along_dim",
    "index_select", "index_put", "index_add", "index_copy", "index_fill", "scatter", "scatter_add", "bincount", "eq",
    "__eq__",
}  # fmt: skip


@dataclass(frozen=True)
class Dependence:
    """How nodes depend on the input.

    Attributes:
        ids: Nodes that depend on it through integers used as indices alone.
        units: For each node, the relative rounding of the coarsest numbers on the way from the input, 0 where no
            derivative flows.
    """

    ids: frozenset[int]
    units: tuple[float, ...]


def dependence(graph: Graph, *, whole: bool) -> Dependence:
    """Return how the nodes of a recorded pass depend on the input.

    A step or a comparison has a derivative, of zero; only integers used as indices have none.

    Args:
        graph: The pass.
        whole: Whether all numbers of the input are integers.
    """
    nodes = len(graph.places)
    units = [graph.units[0], *[0.0] * (nodes - 1)]
    integers, ids, indexed = [[whole and node == 0 for node in range(nodes)], [False] * nodes, [False] * nodes]
    for op in graph.operations:
        name = op.name if op.name.endswith("__") else op.name.rstrip("_")
        flowing = 0.0 if name in STEPS else max((units[n] for n in op.inputs), default=0.0)
        as_index = any(ids[n] for n in op.inputs) or (name in ("eq", "__eq__") and any(integers[n] for n in op.inputs))
        from_input = name not in COMPUTED and any(integers[n] or ids[n] for n in op.inputs)
        for node in op.outputs:
            # Integers and booleans carry no derivative.
            if graph.units[node] and flowing:
                units[node] = max(units[node], flowing, graph.units[node])
            integers[node] |= name in COPYING and all(integers[n] for n in op.inputs)
            ids[node] |= not graph.units[node] and from_input
            indexed[node] |= any(indexed[n] for n in op.inputs) or (as_index and name in INDEXING)
    return Dependence(frozenset(n for n in range(nodes) if indexed[n] and not units[n]), tuple(units))
