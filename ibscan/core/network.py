"""What measures ask of a network: narrow protocols, and the values they pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from ibscan.core.records import Array, At, Layer

if TYPE_CHECKING:
    import torch

__all__ = [
    "DecidingNetwork",
    "DifferentiableNetwork",
    "JacobianSpec",
    "LayeredNetwork",
    "Network",
    "NoisyNetwork",
    "NoisyPasses",
    "Scores",
    "VisitFactor",
    "VisitGram",
    "Weight",
    "WeightedNetwork",
]


@dataclass(frozen=True)
class JacobianSpec:
    """Choose Jacobians: of which layers, before or after the activation, and with respect to what.

    `origin` is the index of the layer whose post is the variable, None for the network's input. `layers` are those
    wanted, None for all. `directions` restricts the variable to a random orthonormal subspace of so many dimensions,
    whose basis `basis(d, part)` gives as an array (d, columns of the part).
    """

    at: At = "pre"
    origin: int | None = None
    layers: tuple[int, ...] | None = None
    directions: int | None = None
    basis: Callable[[int, slice], Array] | None = None

    def wants(self, layer: int) -> bool:
        """Whether the layer's Jacobian is asked for: layers up to the origin have none."""
        asked = self.layers is None or layer in self.layers
        return asked and (self.origin is None or layer > self.origin)

    @property
    def feeds(self) -> bool:
        """Whether the norm of the Jacobian of a layer's input bounds its rank: at pre, and on the whole input."""
        return self.at == "pre" and self.directions is None


@dataclass(frozen=True)
class Weight:
    """The weight of a layer as matrices (C, out, in), float64, and how the layer applies it.

    The layer multiplies `positions` parts of a row's input by the matrix. If these parts are `separate`, the singular
    values of the whole map are those of the matrix, each `positions` times; if they overlap (patches), its rank is at
    most `positions` times that of the matrix. `positions` is None where neither holds.
    """

    matrix: torch.Tensor
    positions: int | None = 1
    separate: bool = True


Visit: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor, slice], None]"
Scores: TypeAlias = "Callable[[torch.Tensor, torch.Tensor | None, slice], None]"
VisitFactor: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor | None, slice], None]"
VisitGram: TypeAlias = "Callable[[int, Any, slice], None]"


class LayeredNetwork(Protocol):
    """C checkpoints of one architecture that answer questions about every layer (C = 1 for large ones).

    Tensors given to a visitor are float64 whatever the `dtype` of the forward pass, on `device`, and reused afterwards:
    a visitor reduces or clones them. Layers are named by their index in `layers`, the order of first call.
    """

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers in the order of first call."""
        ...

    @property
    def size(self) -> int:
        """C, the number of checkpoints stacked."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    @property
    def plain(self) -> bool:
        """Whether every layer has the one before it as its only input, so that the data-processing inequality holds."""
        ...

    def alone(self, checkpoint: int) -> Self:
        """Return the network of one of the stacked checkpoints (C = 1)."""
        ...

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for blocks of rows of x (N, ...), each layer as soon as its post is known.

        pre and post are (C, n, ...), float64; `rows` is a slice.
        """
        ...


class DecidingNetwork(LayeredNetwork, Protocol):
    """A network whose output can be held against labels."""

    @property
    def output(self) -> str:
        """Name of the activation that makes the network's output (`identity`, `softmax`, `sigmoid`, ...).

        `other` where it has no name.
        """
        ...

    @property
    def hidden(self) -> int | None:
        """Index of the last hidden layer; None where there is none, or several layers make the output."""
        ...

    def scores(self, x: Array, visit: Scores) -> None:
        """Call visit(output, logits, rows) with (C, n, units) tensors, float64, for blocks of rows of x (N, ...).

        `logits` are the inputs of a softmax or sigmoid, unit by unit; None where their order differs or the output is
        normalised in parts. For any other output they are the output itself.
        """
        ...


class NoisyPasses(Protocol):
    """Noisy passes of some rows up to one layer, as a function of the standard normals on the way.

    All tensors live on the network's device; `z` is float64.
    """

    @property
    def width(self) -> int:
        """D, the numbers of the layer's post."""
        ...

    @property
    def units(self) -> int:
        """m, the standard normals of one pass: of the noisy layers run before, by index, each one's flattened post."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether `linearised` can be had."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether several threads may ask at once: a user's module may keep state between its hooks."""
        ...

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's post before its own noise, (q, K, D) float64, of rows `inputs` (q,), at z (q, K, m)."""
        ...

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the post (q, D) of the rows `inputs` (q,) at z (q, m), and its derivative by z (q, D, m), float64.

        Only where `differentiable`.
        """
        ...


class NoisyNetwork(LayeredNetwork, Protocol):
    """A network that can be run with Gaussian noise after its hidden layers."""

    def noisy_passes(self, x: Array, layer: int, noise: Sequence[float]) -> NoisyPasses:
        """Return the noisy passes of rows x (n, ...) up to a layer (C = 1).

        `noise` has every layer's standard deviation, by index; output layers and those that are not noisy ignore
        theirs.
        """
        ...


class WeightedNetwork(LayeredNetwork, Protocol):
    """A network that knows which of its layers are affine in their input."""

    def affine(self, x: Array) -> tuple[bool, ...]:
        """Tell for every layer whether, on these rows, its pre is its weight times its input, plus its bias.

        Its weight bounds its rank only then. False for modules asked for by name.
        """
        ...

    def weight(self, layer: int) -> Weight | None:
        """Return a layer's weight as stored, whatever the precision of a pass; None for modules that have none."""
        ...


class DifferentiableNetwork(WeightedNetwork, Protocol):
    """A network whose layers have Jacobians."""

    def inputs_of(self, x: Array) -> int:
        """Count the numbers of a row that Jacobians are taken with respect to, which leaves out masks and the like."""
        ...

    def undefined(self, spec: JacobianSpec) -> Mapping[int, str]:
        """Return the layers that cannot be differentiated with respect to the variable, with the reason."""
        ...

    def rounding(self, x: Array, spec: JacobianSpec) -> Mapping[int, float]:
        """Bound the relative rounding error of Jacobians, by layer, where they are not float64."""
        ...

    def grams(self, x: Array, visit: VisitGram, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, gram, rows) for every layer wanted, with a `numerics.spectra.counting.Gram`: the fast way.

        Blocks of rows of x (N, ...) may be visited side by side, each of a layer once. Returns the layers whose
        Jacobian cannot be computed, with the reason; some of their rows may have been visited.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        ...

    def jacobians(self, x: Array, visit: VisitFactor, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, factor, input_factor, rows) for blocks of rows, as far as `spec` wants the layer.

        `factor`, (C, n, D, k), has the singular values of the layer's Jacobian; n is 1 where that is the same at every
        row. `input_factor` is a factor of the Jacobian of the layer's input, None where it is not asked for
        (`spec.feeds`) or the input is not the output of the layer before it alone. Returns what `grams` does.
        """
        ...

    def spectral_norms(self, x: Array, spec: JacobianSpec) -> Array:
        """Return the largest singular value of every layer's Jacobian, (C, L, n), whatever `spec.directions` says.

        NaN where it is not finite, not wanted, or cannot be computed.
        """
        ...


class Network(DecidingNetwork, NoisyNetwork, DifferentiableNetwork, Protocol):
    """Everything that any measure asks for; chains and modules implement it."""
