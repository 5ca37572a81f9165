"""What a recorded pass says of derivatives by the input: where there are none, as of ids, and how exact they are."""

from __future__ import annotations

from dataclasses import dataclass

from ibscan.networks.trace.graph import Graph

__all__ = ["Dependence", "dependence"]

# What hands numbers on: moved, cut, joined, or counted from elsewhere, whole numbers remaining whole.
COPYING = {
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "view", "view_as", "reshape", "reshape_as",
    "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "T.__get__", "mT.__get__", "contiguous",
    "clone", "detach", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "narrow",
    "select", "__getitem__", "unbind", "split", "chunk", "tensor_split", "cat", "concat", "stack", "hstack", "vstack",
    "roll", "flip", "data.__get__", "round", "trunc", "floor", "ceil", "abs", "clamp", "clip", "add", "sub", "mul",
    "__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "where", "masked_fill", "pad", "__iter__",
}  # fmt: skip
# Whole numbers that are no numbers of the input: places and counts of what was computed.
COMPUTED = {"argmax", "argmin", "argsort", "sort", "topk", "max", "min", "searchsorted", "bucketize", "nonzero"}
# What is flat between steps.
STEPS = {"sign", "sgn", "round", "trunc", "fix", "floor", "ceil", "heaviside", "floor_divide", "__floordiv__"}
# What takes whole numbers for places.
INDEXING = {
    "embedding", "embedding_bag", "one_hot", "__getitem__", "__setitem__", "gather", "take", "take_along_dim",
    "index_select", "index_put", "index_add", "index_copy", "index_fill", "scatter", "scatter_add", "bincount", "eq",
    "__eq__",
}  # fmt: skip


@dataclass(frozen=True)
class Dependence:
    """How nodes depend on the input.

    `ids` are those that depend on it through ids alone: whole numbers of the input that stand for places of a table.
    `units` is the relative rounding of the coarsest numbers on the way from the input, 0 where no derivative flows.
    """

    ids: frozenset[int]
    units: tuple[float, ...]


def dependence(graph: Graph, *, whole: bool) -> Dependence:
    """Read off a recorded pass how its nodes depend on the input.

    A step or a comparison has a derivative, of zero; that there is none is said only of whole numbers used as indices.

    Args:
        graph: The pass.
        whole: Whether the input holds whole numbers alone.
    """
    nodes = len(graph.places)
    units = [graph.units[0], *[0.0] * (nodes - 1)]
    copies, ids, indexed = [[whole and node == 0 for node in range(nodes)], [False] * nodes, [False] * nodes]
    for op in graph.operations:
        name = op.name if op.name.endswith("__") else op.name.rstrip("_")
        flowing = 0.0 if name in STEPS else max((units[n] for n in op.inputs), default=0.0)
        places = any(ids[n] for n in op.inputs) or (name in ("eq", "__eq__") and any(copies[n] for n in op.inputs))
        known = name not in COMPUTED and any(copies[n] or ids[n] for n in op.inputs)
        for node in op.outputs:
            # Whole numbers and truth values carry no derivative.
            if graph.units[node] and flowing:
                units[node] = max(units[node], flowing, graph.units[node])
            copies[node] |= name in COPYING and all(copies[n] for n in op.inputs)
            ids[node] |= not graph.units[node] and known
            indexed[node] |= any(indexed[n] for n in op.inputs) or (places and name in INDEXING)
    return Dependence(frozenset(n for n in range(nodes) if indexed[n] and not units[n]), tuple(units))
