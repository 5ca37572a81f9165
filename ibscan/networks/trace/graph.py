"""A recorded forward pass as a graph, and where the layers of a network are in it.

Nodes are tensors that depend on the input, numbered; operations make nodes of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from ibscan.core.records import Layer

__all__ = ["INPUT", "LAYERS", "UNSEEN", "Graph", "Head", "Operation", "Place", "Taps"]

# An output of an operation: its number, and which of its tensors.
Place: TypeAlias = tuple[int, int]
INPUT = (-1, 0)
# What stands for a part of the pass that is not followed.
UNSEEN = "unseen"
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Taps:
    """A recorded pass: its operations in order with the parameters they take, and where the layers' pre and post are.

    `output` names what makes the network's output, and `head` says more of it; `plain` says that every layer is fed by
    the one before it alone; `untapped` lists layers that are none here, with the reason. `calls` numbers the layers
    among all calls of a Linear or Conv; `fed` is the place of what feeds the first layer, `INPUT` where that is the
    input in another shape, None where there is no one place. `ids` are the layers that depend on the input through
    ids alone; `units` is the rounding of the coarsest numbers that a layer's pre, and its post, are made of.
    """

    operations: tuple[str, ...]
    layers: tuple[Layer, ...]
    pre: tuple[Place, ...]
    post: tuple[Place, ...]
    output: str
    plain: bool
    untapped: tuple[tuple[str, str], ...]
    calls: tuple[int, ...]
    fed: Place | None
    head: Head
    ids: frozenset[int] = frozenset()
    units: tuple[tuple[float, float], ...] = ()

    @property
    def noisy(self) -> tuple[int, ...]:
        """Layers that get noise in the noisy network."""
        return tuple(k for k, layer in enumerate(self.layers) if layer.noisy and not layer.output)


@dataclass(frozen=True)
class Head:
    """What makes the network's output of so many `units`, and the last hidden layer before it, None where none is.

    `logits` is where the numbers are of which the output is a softmax or a sigmoid, one for one. `raw` says that it is
    no softmax or sigmoid, in whatever order, so that it may stand for logits itself.
    """

    units: int
    hidden: int | None
    logits: Place | None
    raw: bool


@dataclass(frozen=True)
class Operation:
    """What makes nodes, `outputs`, of nodes, `inputs`."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: int | None = None  # the layer call it is part of
    default: bool = False  # an activation with torch's default parameters
    joins: bool = False  # a product with a parameter, or a write into a tensor that does not depend on the input
    label: str = ""  # its name and the parameters it takes; empty for an alias, which is no operation of its own

    @property
    def kind(self) -> str:
        """Its name, without the underscore of its in-place form."""
        return self.name if self.name.endswith("__") else self.name.rstrip("_")


@dataclass
class Graph:
    """Nodes are numbered; 0 is the input. `places` says where each came from, None for an alias."""

    operations: list[Operation] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=lambda: [INPUT])
    sizes: list[int] = field(default_factory=lambda: [0])  # numbers of one row
    lengths: list[int] = field(default_factory=lambda: [0])  # of the first dimension
    units: list[float] = field(default_factory=lambda: [0.0])  # relative rounding of its numbers, 0 of whole ones
    calls: list[tuple[str, nn.Module, int]] = field(default_factory=list)  # layer path, module, node of its output
    extra: list[tuple[str, nn.Module, int]] = field(default_factory=list)
    inner: set[int] = field(default_factory=set)  # calls within other calls
    products: dict[int, str] = field(default_factory=dict)  # id of a parameter: the operation that took it
