"""A plain chain of Linear layers, weights stacked over checkpoints, Jacobian in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ibscan.networks.activations import ACTIVATIONS
from ibscan.networks.resolve import ChainSpec
from ibscan.numerics.jacobian import carried, row_factor, softmax_carried
from ibscan.types import Array, At, Layer, Normals, Visit, VisitFactor

__all__ = ["Chain", "stacked_chain"]

# Numbers a block of rows may hold at one layer: constants, not free memory, so that a run can be repeated bit for bit.
ACTIVATION_BUDGET = 2**24
FACTOR_BUDGET = 2**23
NOISY_BUDGET = 2**21


@dataclass(frozen=True)
class Chain:
    """C chains of one architecture: p_1 = W_1 x + b_1, p_{l+1} = W_{l+1} phi(p_l) + b_{l+1}.

    `weights` holds (C, out, in), `biases` (C, 1, out) or None where a layer has none, both in the dtype of the
    forward pass; what is visited is float64.
    """

    layers: tuple[Layer, ...]
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    activation: str
    output: str

    @property
    def size(self) -> int:
        """C, the number of checkpoints stacked."""
        return self.weights[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights[0].device

    @property
    def plain(self) -> bool:
        """Every layer is fed by the one before it alone."""
        return True

    @property
    def inputs(self) -> int:
        """Numbers in one row of the probe."""
        return self.weights[0].shape[2]

    def alone(self, checkpoint: int) -> Chain:
        """Return the chain of one of the stacked checkpoints (C = 1)."""
        one = slice(checkpoint, checkpoint + 1)
        biases = tuple(None if bias is None else bias[one] for bias in self.biases)
        return replace(self, weights=tuple(weight[one] for weight in self.weights), biases=biases)

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for every block of rows, layers in order.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Is given the layer's index, pre and post of shape (C, n, D), float64, and the rows as a slice.
        """
        for rows, block in self._blocks(x, ACTIVATION_BUDGET // (self.size * self._widest())):
            for layer, pre, post in self._forward(block):
                visit(layer, pre.to(torch.float64), post.to(torch.float64), rows)

    def jacobians(self, x: Array, visit: VisitFactor, *, at: At) -> None:
        """Call visit(layer, factor, rows) with a matrix that has the singular values of d layer / d x.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Is given the layer's index, a factor of shape (C, n, D, k), or (C, 1, D, k) where it is the same
                for every row, float64, and the rows as a slice.
            at: `pre` for the pre-activation, `post` for what follows it.

        Source:
            Patel and Shwartz-Ziv 2024, section 2; the first layer's row space is factored out once for all rows.
        """
        weights = [weight.to(torch.float64) for weight in self.weights]
        first = row_factor(weights[0]).unsqueeze(1)
        cost = self.size * self._widest() * first.shape[-1]
        for rows, block in self._blocks(x, FACTOR_BUDGET // cost):
            factor = first
            for layer, pre, post in self._forward(block):
                slope = self._slope(layer, pre.to(torch.float64))
                # The slope of relu at a NaN is 0, a number like any other: what is not finite must not end there.
                sound = torch.isfinite(pre).all(-1)
                if not bool(sound.all()):
                    factor = torch.where(sound[..., None, None], factor, torch.nan)
                if at == "pre":
                    visit(layer, factor, rows)
                elif slope is None:
                    visit(layer, softmax_carried(post.to(torch.float64), factor), rows)
                else:
                    visit(layer, slope.unsqueeze(-1) * factor, rows)
                if slope is not None and layer + 1 < len(weights):
                    factor = carried(weights[layer + 1], slope, factor)

    def noisy_walk(
        self, x: Array, layer: int, noise: float, normals: Normals, replicas: range
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Yield (replicas, S) in blocks of replicas, S of shape (C, R, n, D): the layer's post before its own noise.

        Args:
            x: Probe rows, shape (n, ...), flattened here.
            layer: Index of the layer wanted; those before it are noisy.
            noise: Standard deviation, activation units.
            normals: Standard normals (n, D) of (layer index, replica).
            replicas: Which replicas to make.

        Source:
            Goldfeld et al. 2019, section 2: T_l = f_l(T_{l-1}) + Z_l.
        """
        rows = torch.as_tensor(x.reshape(len(x), -1)).to(self.device, self.weights[0].dtype)
        # What feeds the first noise is the same in every replica.
        clean = self._layer(0, rows.expand(self.size, *rows.shape))[1]
        widest = max(one.width for one in self.layers[: layer + 1])
        size = max(1, NOISY_BUDGET // (self.size * len(x) * widest))
        for start in range(replicas.start, replicas.stop, size):
            block = range(start, min(start + size, replicas.stop))
            post = clean.unsqueeze(1).expand(-1, len(block), -1, -1)
            for before in range(layer):
                z = torch.as_tensor(np.stack([normals(before, replica) for replica in block]))
                noisy = post + noise * z.to(self.device, post.dtype)
                _, post = self._layer(before + 1, noisy.flatten(1, 2))
                post = post.reshape(self.size, len(block), len(x), -1)
            yield block, post.to(torch.float64)

    def _forward(self, block: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        post = block.expand(self.size, *block.shape)
        for layer in range(len(self.layers)):
            pre, post = self._layer(layer, post)
            yield layer, pre, post

    def _layer(self, layer: int, fed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self.weights[layer], self.biases[layer]
        pre = fed @ weight.mT if bias is None else torch.baddbmm(bias, fed, weight.mT)
        return pre, self._value(layer)(pre)

    def _value(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        name = self.activation if layer + 1 < len(self.layers) else self.output
        return _softmax if name == "softmax" else ACTIVATIONS[name].value

    def _slope(self, layer: int, pre: torch.Tensor) -> torch.Tensor | None:
        name = self.activation if layer + 1 < len(self.layers) else self.output
        return None if name == "softmax" else ACTIVATIONS[name].slope(pre)

    def _blocks(self, x: Array, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        flat = x.reshape(len(x), -1)
        size = max(1, size)
        for start in range(0, len(flat), size):
            rows = slice(start, min(start + size, len(flat)))
            yield rows, torch.as_tensor(flat[rows]).to(self.device, self.weights[0].dtype)

    def _widest(self) -> int:
        return max(self.inputs, *(layer.width for layer in self.layers))


def _softmax(p: torch.Tensor) -> torch.Tensor:
    return torch.softmax(p, dim=-1)


def stacked_chain(
    spec: ChainSpec,
    order: Sequence[str],
    states: Sequence[Mapping[str, torch.Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Chain:
    """Stack the tensors of C checkpoints into one chain.

    Args:
        spec: Activations.
        order: Layer names in order of call, as `chain_order` gives them.
        states: One mapping from state-dict name to tensor for each checkpoint.
        device: Where to measure.
        dtype: Of the forward pass; what is measured is float64 all the same.

    Returns:
        The network.
    """

    def stack(key: str) -> torch.Tensor:
        return torch.stack([state[key].to(dtype) for state in states]).to(device)

    prefixes = [f"{name}." if name else "" for name in order]
    weights = tuple(stack(f"{prefix}weight") for prefix in prefixes)
    biases = tuple(stack(f"{prefix}bias").unsqueeze(1) if f"{prefix}bias" in states[0] else None for prefix in prefixes)
    spans = [ACTIVATIONS[spec.activation].span] * (len(order) - 1)
    spans.append((0.0, 1.0) if spec.output == "softmax" else ACTIVATIONS[spec.output].span)
    layers = tuple(
        Layer(name or "linear", "Linear", weight.shape[1], span, first=k == 0, output=k + 1 == len(order))
        for k, (name, weight, span) in enumerate(zip(order, weights, spans, strict=True))
    )
    return Chain(layers, weights, biases, spec.activation, spec.output)
