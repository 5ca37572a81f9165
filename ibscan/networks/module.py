"""Any nn.Module as a network: values and Jacobians at the places of a recorded pass, through torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from ibscan.core.boundary import foreign, ours
from ibscan.core.network import JacobianSpec, Normals, Scores, Visit, VisitFactor, VisitGram, Weight
from ibscan.core.records import Array, Layer
from ibscan.networks.affine import affine_calls, weight_of
from ibscan.networks.jacobians.layer_jacobians import LayerJacobians
from ibscan.networks.jacobians.rounding import ROWS
from ibscan.networks.jacobians.sweeps import as_gram, layer_factors, layer_grams
from ibscan.networks.packing import Packing, model_inputs
from ibscan.networks.trace.graph import INPUT, LAYERS, Place, Trace
from ibscan.networks.trace.replay import Hook, Reached, Replay, forward_context
from ibscan.networks.trace.trees import main_tensor
from ibscan.numerics.tiling import aligned, cuts

__all__ = ["Module"]

BY_ID = (
    "the probe's numbers are ids there, and there is no derivative by an id (give a probe of their embeddings, or "
    "differentiate by a layer's values with --from LAYER)"
)
# Numbers a block of rows may hold: constants, not free memory, so that a run can be repeated bit for bit.
ACTIVATION_BUDGET = 2**22
NOISY_BUDGET = 2**22


@dataclass(frozen=True)
class Module:
    """One checkpoint of an nn.Module that answers for every layer it calls.

    `model` is in eval mode, without gradients, on `device` in `dtype`; `trace` says where its layers are; `packing` how
    rows hold what it is fed beside x, where it is. `exact` makes the same network in float64, whose derivatives
    are taken in place of its own; None where this one is in float64, or cannot run in that. `tried` keeps what stands
    in the way of sweeps, so that each is tried once.
    """

    model: nn.Module
    trace: Trace
    device: torch.device
    dtype: torch.dtype
    packing: Packing | None = None
    exact: Callable[[], Module] | None = None
    tried: dict[tuple[object, ...], str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def precise(self) -> Module:
        """The network whose derivatives are taken: in float64 wherever it can run in that."""
        return self if self.exact is None else self.exact()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers in the order of first call, then modules asked for by name."""
        return self.trace.layers

    @property
    def size(self) -> int:
        """One checkpoint."""
        return 1

    @property
    def output(self) -> str:
        """What makes the network's output."""
        return self.trace.output

    @property
    def hidden(self) -> int | None:
        """The last hidden layer."""
        return self.trace.head.hidden

    @property
    def plain(self) -> bool:
        """Whether every layer is fed by the one before it alone, and by nothing that lies beside x."""
        return self.trace.plain and self.packing is None

    def inputs_of(self, x: Array) -> int:
        """Return how many numbers of a row are the input: what is fed by name is not."""
        return int(x[0].size) if self.packing is None else self.packing.size

    def alone(self, checkpoint: int) -> Module:
        """Return this network, the only one."""
        assert checkpoint == 0
        return self

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for every block of rows, each layer as soon as its post is known.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the layer's index, pre and post of shape (1, n, ...), float64, and the rows as a slice.
        """
        for rows, block in self._blocks(x, ACTIVATION_BUDGET // self._widest(x)):
            held: dict[int, torch.Tensor] = {}

            def keep(
                layer: int, value: torch.Tensor, rows: int = len(block), held: dict[int, torch.Tensor] = held
            ) -> torch.Tensor:
                held[layer] = _kept(value, rows)
                return value

            def tell(
                layer: int, value: torch.Tensor, rows: slice = rows, held: dict[int, torch.Tensor] = held
            ) -> torch.Tensor:
                pre, post = held.pop(layer), _kept(value, rows.stop - rows.start)
                with ours():
                    visit(layer, pre, post, rows)
                return value

            self.passed(block, [*self.at(self.trace.pre, keep), *self.at(self.trace.post, tell)])

    def scores(self, x: Array, visit: Scores) -> None:
        """Call visit(output, logits, rows) for every block of rows, (1, n, units) each, float64.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the network's output, the logits it is made of (itself, where it is no softmax or sigmoid;
                None where they are not in its order), and the rows as a slice.
        """
        head = self.trace.head
        for rows, block in self._blocks(x, ACTIVATION_BUDGET // self._widest(x)):
            held: list[torch.Tensor] = []

            def keep(value: torch.Tensor, held: list[torch.Tensor] = held) -> torch.Tensor:
                held.append(value.clone())
                return value

            output = self.passed(block, [] if head.logits is None else [(head.logits, keep)])
            assert output is not None
            found, *logits = (_kept(value.reshape(len(block), -1), len(block)) for value in (output, *held))
            visit(found, found if head.raw else logits[0] if logits else None, rows)

    def noisy_walk(
        self, x: Array, layer: int, noise: float, normals: Normals, replicas: range
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Yield (replicas, S) in blocks of replicas, S of shape (1, R, n, D): the layer's post before its own noise.

        Args:
            x: Probe rows, shape (n, ...).
            layer: Index of the layer wanted.
            noise: Standard deviation, activation units.
            normals: Standard normals (n, D) of (layer index, replica).
            replicas: Which replicas to make.

        Source:
            Goldfeld et al. 2019, section 2: T_l = f_l(T_{l-1}) + Z_l.
        """
        rows = self.rows(x)
        size = max(1, NOISY_BUDGET // (len(x) * self._widest(x)))
        for start in range(replicas.start, replicas.stop, size):
            block = range(start, min(start + size, replicas.stop))
            found: list[torch.Tensor] = []

            def add(index: int, value: torch.Tensor, block: range = block) -> torch.Tensor:
                z = np.stack([normals(index, replica) for replica in block])
                return value + noise * torch.as_tensor(z).to(value).reshape(value.shape)

            def keep(index: int, value: torch.Tensor, found: list[torch.Tensor] = found) -> torch.Tensor:  # noqa: ARG001
                found.append(value.to(torch.float64, copy=True))
                raise Reached

            others = [k for k in self.trace.noisy if k != layer]
            # The wanted layer first: another may have its post at the same place.
            wanted = [*self.at(self.trace.post, keep, [layer]), *self.at(self.trace.post, add, others)]
            # Every replica of every row is a row of one batch.
            self.passed(rows.expand(len(block), *rows.shape).flatten(0, 1), wanted)
            yield block, found[0].reshape(1, len(block), len(x), -1)

    def affine(self, x: Array) -> tuple[bool, ...]:
        """Return of every layer whether, on these rows, its pre is its weight times what it is fed, plus its bias.

        Args:
            x: Probe rows, shape (N, ...).
        """
        if self.exact is not None:
            return self.precise.affine(x)
        held: list[list[bool]] = []
        for _, block in self._blocks(x, ACTIVATION_BUDGET // self._widest(x)):
            given, named = model_inputs(block, self.packing, self.dtype)
            with torch.no_grad(), foreign("the model"), forward_context(self.dtype):
                held.append(affine_calls(self.model, partial(self.model, given, **named)))
        called = tuple(all(call < len(one) and one[call] for one in held) for call in self.trace.calls)
        return called + (False,) * (len(self.layers) - len(called))

    def weight(self, layer: int) -> Weight | None:
        """Return the layer's weight, as stored; None for a module asked for by name that is no Linear or Conv."""
        if self.exact is not None:
            return self.precise.weight(layer)
        one = self.layers[layer]
        module = dict(self.model.named_modules()).get(one.name.partition("#")[0], self.model)
        return weight_of(module, one.width) if one.noisy and isinstance(module, LAYERS) else None

    def undefined(self, spec: JacobianSpec) -> Mapping[int, str]:
        """Return the layers that depend on the input through ids alone, where that is the variable."""
        return dict.fromkeys(sorted(self.trace.ids), BY_ID) if spec.origin is None else {}

    def grams(self, x: Array, visit: VisitGram, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, gram, rows) for every layer wanted, from one sweep a group of layers.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the layer's index, its Gram matrices and the rows as a slice.
            spec: Which Jacobians. The derivative is that of the function: what the model detaches for its training
                counts.

        Returns:
            Layers that torch cannot differentiate, with the reason.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        if self.exact is not None:
            return self.precise.grams(x, visit, spec)
        failed: dict[int, str] = {}
        asked = LayerJacobians(self, x, spec)
        for sweep, size, rows, found in asked.blocks({}, layer_grams, failed):
            finite = asked.finite(rows, sweep.layers)
            count = len(sweep.layers)
            for layer, values, positive, whole in zip(sweep.layers, found[:count], found[count:], finite, strict=True):
                visit(layer, as_gram(values, positive, max(size, self.layers[layer].width), whole), rows)
        return failed

    def jacobians(self, x: Array, visit: VisitFactor, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, J, fed, rows), J = d layer / d variable (1, n, D, directions), float64.

        Of a layer too wide for J to be held, the triangle of its QR decomposition.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the layer's index, J, that of what feeds the layer where it is fed by the one before it
                alone, and the rows as a slice.
            spec: Which Jacobians, as for `grams`.

        Returns:
            Layers that torch cannot differentiate, with the reason.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        if self.exact is not None:
            return self.precise.jacobians(x, visit, spec)
        failed: dict[int, str] = {}
        asked = LayerJacobians(self, x, spec)
        for sweep, _, rows, found in asked.blocks(asked.input_widths(), layer_factors, failed):
            finite = asked.finite(rows, sweep.layers)
            for layer, jacobian, whole in zip(sweep.layers, found, finite, strict=False):
                known = jacobian if bool(whole.all()) else torch.where(whole[:, None, None], jacobian, torch.nan)
                visit(layer, known.unsqueeze(0), sweep.input_factor(layer, found), rows)
        return failed

    def spectral_norms(self, x: Array, spec: JacobianSpec) -> Array:
        """Return the largest singular value of every layer's Jacobian on the whole variable, (1, L, n).

        NaN where torch cannot differentiate.
        """
        if self.exact is not None:
            return self.precise.spectral_norms(x, spec)
        return LayerJacobians(self, x, spec).norms()[None]

    def rounding(self, x: Array, spec: JacobianSpec) -> Mapping[int, float]:
        """Return how far rounding may have moved Jacobians, in units of their norm, of layers coarser than float64.

        Args:
            x: Probe rows, shape (N, ...), of which a few are looked at.
            spec: Which Jacobians.
        """
        if self.exact is not None:
            return self.precise.rounding(x, spec)
        return LayerJacobians(self, x[:ROWS], spec).rounding(self._widest(x))

    def rows(self, x: Array) -> torch.Tensor:
        """Return probe rows as the model is given them: on the device, and in its dtype unless they are packed."""
        # Packed integers may have more digits than the forward pass.
        return aligned(x).to(self.device, self.dtype if self.packing is None else torch.float64)

    def values(
        self, places: Sequence[Place], block: torch.Tensor, given: tuple[Place, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Return the values at some places, (n, D) each, as a function of the block, or of what a place is given."""
        found: dict[Place, torch.Tensor] = {}

        def keep(place: Place, value: torch.Tensor) -> torch.Tensor:
            found[place] = value.clone().reshape(len(block), -1)
            if len(found) == len(set(places)):
                raise Reached
            return value

        def put(value: torch.Tensor) -> torch.Tensor:
            assert given is not None
            return given[1].reshape(value.shape).clone()

        at: list[tuple[Place, Hook]] = [] if given is None else [(given[0], put)]
        self.passed(block, [*at, *((place, partial(keep, place)) for place in dict.fromkeys(places))])
        return [found[place] for place in places]

    def at(
        self,
        places: Sequence[Place],
        hook: Callable[[int, torch.Tensor], torch.Tensor],
        layers: Sequence[int] | None = None,
    ) -> list[tuple[Place, Hook]]:
        """Return each layer's place with a hook that is told the layer."""
        return [(places[k], partial(hook, k)) for k in (range(len(places)) if layers is None else layers)]

    def passed(self, block: torch.Tensor, at: Sequence[tuple[Place, Hook]]) -> torch.Tensor | None:
        """Run the model on a block of rows; None where a hook has seen enough."""
        hooks: dict[Place, Hook] = {}
        for place, hook in at:
            hooks[place] = _in_turn(hooks[place], hook) if place in hooks else hook
        try:
            x, named = model_inputs(block, self.packing, self.dtype)
            x = hooks.pop(INPUT)(x) if INPUT in hooks else x
            replay = Replay(self.trace.operations, self.model, x, hooks)
            with foreign("the model"), forward_context(self.dtype), replay:
                result = main_tensor(self.model(x, **named))
            replay.finish()
        except Reached as end:
            if end.cause is not None:
                raise end.cause from None
            return None
        return result

    def _widest(self, x: Array) -> int:
        return max(int(x[0].size), *(layer.width for layer in self.layers))

    def _blocks(self, x: Array, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in cuts(0, len(x), size):
            yield rows, self.rows(x[rows])


def _by_row(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a tensor of shape (n, ...), where parts of rows (words, patches) may be first, or units squeezed away."""
    return value if value.ndim > 1 and len(value) == rows else value.reshape(rows, -1)


def _kept(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a copy of shape (1, n, ...), float64: an in-place operation may overwrite the value."""
    return _by_row(value.to(torch.float64, copy=True), rows).unsqueeze(0)


def _in_turn(first: Hook, then: Hook) -> Hook:
    return lambda value: then(first(value))
