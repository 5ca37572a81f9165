"""A recorded forward pass as a graph: its nodes are tensors that depend on the input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from ibscan.core.records import Layer

__all__ = ["INPUT", "LAYERS", "UNSEEN", "Graph", "Head", "Operation", "Place", "Trace"]

# One output of an operation: number of the operation, index of the output.
Place: TypeAlias = tuple[int, int]
INPUT = (-1, 0)
# Name of the operation that stands for unseen code.
UNSEEN = "unseen"
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Trace:
    """A recorded pass: its operations in order with the parameters they take, and where the layers' pre and post are.

    Attributes:
        operations: Labels of the operations on activity, in order.
        layers: Layers in the order of call, then modules asked for by name.
        pre: Where each layer's pre is.
        post: Where each layer's post is.
        output: Name of the operation that makes the network's output.
        plain: Whether the input of every layer is the post of the one before it.
        unmeasured: Layers that cannot be measured, with the reason.
        calls: Index of each layer among all calls of a Linear or Conv.
        first_input: Where the first layer's input is: `INPUT` if it is x in another shape, None if it has several.
        head: The output and its logits.
        ids: Layers that depend on the input through indices of embeddings alone.
        units: Of each layer's pre and post, the relative rounding of the coarsest numbers on the way to them.
    """

    operations: tuple[str, ...]
    layers: tuple[Layer, ...]
    pre: tuple[Place, ...]
    post: tuple[Place, ...]
    output: str
    plain: bool
    unmeasured: tuple[tuple[str, str], ...]
    calls: tuple[int, ...]
    first_input: Place | None
    head: Head
    ids: frozenset[int] = frozenset()
    units: tuple[tuple[float, float], ...] = ()

    @property
    def noisy(self) -> tuple[int, ...]:
        """Layers that get noise in the noisy network."""
        return tuple(k for k, layer in enumerate(self.layers) if layer.noisy and not layer.output)


@dataclass(frozen=True)
class Head:
    """The network's output.

    Attributes:
        units: Numbers of one row.
        hidden: The last hidden layer before it, None if there is no single one.
        logits: Where the logits are if the output is their softmax or sigmoid, in the same order.
        raw: Whether the output is no softmax or sigmoid, and can itself be read as logits.
    """

    units: int
    hidden: int | None
    logits: Place | None
    raw: bool


@dataclass(frozen=True)
class Operation:
    """An operation that computes the nodes `outputs` from the nodes `inputs`."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: int | None = None  # the layer call it is part of
    default: bool = False  # an activation with torch's default parameters
    joins: bool = False  # a product with a parameter, or a write into a tensor that does not depend on the input
    label: str = ""  # its name and the parameters it takes; empty for an alias, which is no operation of its own

    @property
    def kind(self) -> str:
        """Its name without the underscore of the in-place form."""
        return self.name if self.name.endswith("__") else self.name.rstrip("_")


@dataclass
class Graph:
    """Numbered nodes and the operations between them; node 0 is the input.

    `places` has the place of each node, None for an alias and for what unseen code makes.
    """

    operations: list[Operation] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=lambda: [INPUT])
    sizes: list[int] = field(default_factory=lambda: [0])  # numbers of one row
    lengths: list[int] = field(default_factory=lambda: [0])  # of the first dimension
    units: list[float] = field(default_factory=lambda: [0.0])  # relative rounding, 0 of integers
    calls: list[tuple[str, nn.Module, int]] = field(default_factory=list)  # layer path, module, node of its output
    extra: list[tuple[str, nn.Module, int]] = field(default_factory=list)
    inner: set[int] = field(default_factory=set)  # calls within other layer calls
    opaque: set[int] = field(default_factory=set)  # calls whose outputs are made by unseen code
    products: dict[int, str] = field(default_factory=dict)  # id of a parameter: the operation that took it
    entries: dict[int, Place] = field(default_factory=dict)  # nodes out of unseen code: the place of the operand

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the operations in order, aliases left out."""
        return tuple(op.label for op in self.operations if op.label)
