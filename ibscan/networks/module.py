"""Any nn.Module as a network: values and Jacobians of its layers, from hooked passes and torch.func."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import nn

from ibscan.core.boundary import foreign, ours
from ibscan.core.network import JacobianSpec, Scores, Visit, VisitFactor, VisitGram, Weight
from ibscan.core.records import Array, Layer
from ibscan.networks.affine import affine_calls, weight_of
from ibscan.networks.hooked import HookedModel, layer_hooks
from ibscan.networks.jacobians.layer_jacobians import LayerJacobians
from ibscan.networks.jacobians.rounding import ROWS
from ibscan.networks.jacobians.sweeps import as_gram, layer_factors, layer_grams
from ibscan.networks.module_passes import ModulePasses
from ibscan.networks.packing import Packing
from ibscan.networks.trace.graph import LAYERS, Trace
from ibscan.networks.trace.replay import forward_context

__all__ = ["Module"]

BY_ID = (
    "the probe's numbers are ids there, and there is no derivative by an id (give a probe of their embeddings, or "
    "differentiate by a layer's values with --from LAYER)"
)


@dataclass(frozen=True)
class Module:
    """One checkpoint of an nn.Module, measured at every layer it calls (C = 1).

    Attributes:
        model: In eval mode, without gradients, on `device` in `dtype`.
        trace: Where its layers are.
        device: Where it is.
        dtype: Of the forward pass.
        packing: How rows hold the arguments beside x; None where there are none.
        exact: Makes the same network in float64, whose derivatives are taken; None if this one is in float64, or
            cannot be.
        failures: Why sweeps tried before cannot be differentiated, the empty string where they can.
    """

    model: nn.Module
    trace: Trace
    device: torch.device
    dtype: torch.dtype
    packing: Packing | None = None
    exact: Callable[[], Module] | None = None
    failures: dict[tuple[object, ...], str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def precise(self) -> Module:
        """The network whose derivatives are taken: in float64 wherever it can run in that."""
        return self if self.exact is None else self.exact()

    @cached_property
    def hooked(self) -> HookedModel:
        """The model as it is run."""
        return HookedModel(self.model, self.trace, self.device, self.dtype, self.packing)

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
        """Name of the operation that makes the network's output."""
        return self.trace.output

    @property
    def hidden(self) -> int | None:
        """The last hidden layer."""
        return self.trace.head.hidden

    @property
    def plain(self) -> bool:
        """Whether the input of every layer is the post of the one before it, and x is the only argument."""
        return self.trace.plain and self.packing is None

    def inputs_of(self, x: Array) -> int:
        """Return how many numbers of a row are x, the named arguments left out."""
        return int(x[0].size) if self.packing is None else self.packing.size

    def alone(self, checkpoint: int) -> Module:
        """Return this network, the only one."""
        assert checkpoint == 0
        return self

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for every block of rows, each layer as soon as its post is known.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Takes the layer's index, pre and post of shape (1, n, ...), float64, and the rows as a slice.
        """
        for rows, block in self.hooked.blocks(x):
            pres: dict[int, torch.Tensor] = {}

            def keep(layer: int, value: torch.Tensor, pres: dict[int, torch.Tensor] = pres) -> torch.Tensor:
                pres[layer] = value.to(torch.float64, copy=True)
                return value

            def show(
                layer: int, value: torch.Tensor, rows: slice = rows, pres: dict[int, torch.Tensor] = pres
            ) -> torch.Tensor:
                pre, post = (_by_row(one, rows) for one in (pres.pop(layer), value.to(torch.float64, copy=True)))
                with ours():
                    visit(layer, pre, post, rows)
                return value

            self.hooked.run(block, [*layer_hooks(self.trace.pre, keep), *layer_hooks(self.trace.post, show)])

    def scores(self, x: Array, visit: Scores) -> None:
        """Call visit(output, logits, rows) for every block of rows, (1, n, units) each, float64.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Takes the network's output, its logits (the output itself if that is no softmax or sigmoid; None if
                they are not in its order), and the rows as a slice.
        """
        head = self.trace.head
        for rows, block in self.hooked.blocks(x):
            kept: list[torch.Tensor] = []

            def keep(value: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                kept.append(value.clone())
                return value

            output = self.hooked.run(block, [] if head.logits is None else [(head.logits, keep)])
            assert output is not None
            found, *logits = (one.reshape(1, len(block), -1).to(torch.float64, copy=True) for one in (output, *kept))
            visit(found, found if head.raw else logits[0] if logits else None, rows)

    def noisy_passes(self, x: Array, layer: int, noise: Sequence[float]) -> ModulePasses:
        """Return the noisy passes of some rows up to a layer.

        Args:
            x: Probe rows, shape (n, ...).
            layer: Index of the layer wanted.
            noise: Standard deviation of every layer, activation units.

        Source:
            Goldfeld et al. 2019, section 2: T_l = f_l(T_{l-1}) + Z_l.
        """
        return ModulePasses(self, x, layer, tuple(noise))

    def affine(self, x: Array) -> tuple[bool, ...]:
        """Return for every layer whether, on these rows, its pre is its weight times its input plus its bias.

        Args:
            x: Probe rows, shape (N, ...).
        """
        model = self.precise.hooked
        blocks: list[list[bool]] = []
        for _, block in model.blocks(x):
            given, named = model.inputs(block)
            with torch.no_grad(), foreign("the model"), forward_context(model.dtype):
                blocks.append(affine_calls(model.model, partial(model.model, given, **named)))
        called = tuple(all(call < len(one) and one[call] for one in blocks) for call in model.trace.calls)
        return called + (False,) * (len(self.layers) - len(called))

    def weight(self, layer: int) -> Weight | None:
        """Return the layer's weight, as stored; None for a module asked for by name that is no Linear or Conv."""
        one, model = self.layers[layer], self.precise.model
        module = dict(model.named_modules()).get(one.name.partition("#")[0], model)
        return weight_of(module, one.width) if one.noisy and isinstance(module, LAYERS) else None

    def undefined(self, spec: JacobianSpec) -> Mapping[int, str]:
        """Return the layers without a derivative by the input, as they depend on it through indices alone."""
        return dict.fromkeys(sorted(self.trace.ids), BY_ID) if spec.origin is None else {}

    def grams(self, x: Array, visit: VisitGram, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, gram, rows) for every layer wanted, from one sweep a group of layers.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Takes the layer's index, its Gram matrices and the rows as a slice.
            spec: Which Jacobians. The derivative is that of the function: what the model detaches for its training
                counts.

        Returns:
            Layers that torch cannot differentiate, with the reason.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        failed: dict[int, str] = {}
        jacobians = LayerJacobians(self.precise, x, spec)
        for sweep, size, rows, found in jacobians.blocks({}, layer_grams, failed):
            finite = jacobians.finite(rows, sweep.layers)
            count = len(sweep.layers)
            for layer, values, positive, whole in zip(sweep.layers, found[:count], found[count:], finite, strict=True):
                visit(layer, as_gram(values, positive, max(size, self.layers[layer].width), whole), rows)
        return failed

    def jacobians(self, x: Array, visit: VisitFactor, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, J, factor, rows), J = d layer / d variable (1, n, D, directions), float64.

        If a layer is too wide for J to be held in memory, J is replaced by R of its QR decomposition.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Takes the layer's index, J, that of the layer's input where this is the post of the layer before,
                and the rows as a slice.
            spec: Which Jacobians, as for `grams`.

        Returns:
            Layers that torch cannot differentiate, with the reason.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        failed: dict[int, str] = {}
        jacobians = LayerJacobians(self.precise, x, spec)
        for sweep, _, rows, found in jacobians.blocks(jacobians.input_widths(), layer_factors, failed):
            finite = jacobians.finite(rows, sweep.layers)
            for layer, jacobian, whole in zip(sweep.layers, found, finite, strict=False):
                known = jacobian if bool(whole.all()) else torch.where(whole[:, None, None], jacobian, torch.nan)
                visit(layer, known.unsqueeze(0), sweep.input_factor(layer, found), rows)
        return failed

    def spectral_norms(self, x: Array, spec: JacobianSpec) -> Array:
        """Return the largest singular value of every layer's Jacobian on the whole variable, (1, L, n).

        NaN where torch cannot differentiate.
        """
        return LayerJacobians(self.precise, x, spec).norms()[None]

    def rounding(self, x: Array, spec: JacobianSpec) -> Mapping[int, float]:
        """Return how far rounding may have moved Jacobians, in units of their norm, of layers coarser than float64.

        Args:
            x: Probe rows, shape (N, ...), of which a few are looked at.
            spec: Which Jacobians.
        """
        return LayerJacobians(self.precise, x[:ROWS], spec).rounding(self.hooked.widest(x))


def _by_row(value: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return a value as (1, n, ...): parts of rows (words, patches) may be first, or units squeezed away."""
    count = rows.stop - rows.start
    return (value if value.ndim > 1 and len(value) == count else value.reshape(count, -1)).unsqueeze(0)
