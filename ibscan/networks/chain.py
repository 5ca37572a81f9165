"""A plain chain of Linear layers, weights stacked over checkpoints, Jacobians in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ibscan.core.network import JacobianSpec, Scores, Visit, VisitFactor, VisitGram, Weight
from ibscan.core.records import Array, Layer
from ibscan.networks.activations import ACTIVATIONS, activated
from ibscan.networks.chain_passes import ChainPasses
from ibscan.numerics.spectra.jacobian import row_factor, softmax_carried
from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite, spectral_norm
from ibscan.numerics.spectra.sweep import Carried, carried_on, carried_post, exactly_on, started
from ibscan.numerics.tiling import aligned, cuts, mapped

__all__ = ["Chain"]

# Numbers a block of rows may hold at one layer: constants, not free memory, so that a run can be repeated bit for bit.
ACTIVATION_BUDGET = 2**24
FACTOR_BUDGET = 2**23
# Blocks of the Gram sweep run side by side on a CPU; a GPU needs large ones to be busy.
SWEEP_BUDGET = {"cpu": 2**22, "cuda": 2**28}
# Columns of a subspace's basis made at a time.
COLUMNS = 256


@dataclass(frozen=True)
class Chain:
    """C chains of one architecture: p_1 = W_1 x + b_1, p_{l+1} = W_{l+1} phi(p_l) + b_{l+1}.

    Attributes:
        layers: Layers in order.
        weights: (C, out, in) each, in the dtype of the forward pass.
        biases: (C, 1, out) each, None where a layer has none.
        activation: Name of phi.
        output: Name of the last layer's activation.
        exact: The same chain in float64, whose derivatives are taken; None if this one is in float64.
    """

    layers: tuple[Layer, ...]
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    activation: str
    output: str
    exact: Chain | None = None

    @property
    def size(self) -> int:
        """C, the number of checkpoints stacked."""
        return self.weights[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weights[0].device

    @property
    def plain(self) -> bool:
        """Always True: the input of every layer is the post of the one before."""
        return True

    @property
    def hidden(self) -> int | None:
        """The layer before the last."""
        return len(self.layers) - 2 if len(self.layers) > 1 else None

    @property
    def inputs(self) -> int:
        """Numbers in one row of the probe."""
        return self.weights[0].shape[2]

    def inputs_of(self, x: Array) -> int:  # noqa: ARG002
        """Return how many numbers of a row are the input: all."""
        return self.inputs

    def alone(self, checkpoint: int) -> Chain:
        """Return the chain of one of the stacked checkpoints (C = 1)."""
        one = slice(checkpoint, checkpoint + 1)
        biases = tuple(None if bias is None else bias[one] for bias in self.biases)
        exact = None if self.exact is None else self.exact.alone(checkpoint)
        return replace(self, weights=tuple(weight[one] for weight in self.weights), biases=biases, exact=exact)

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for every block of rows, layers in order.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Takes the layer's index, pre and post of shape (C, n, D), float64, and the rows as a slice.
        """
        for rows in cuts(0, len(x), ACTIVATION_BUDGET // (self.size * self._widest())):
            for layer, pre, post in self._forward(self._block(x, rows)):
                visit(layer, pre.to(torch.float64), post.to(torch.float64), rows)

    def scores(self, x: Array, visit: Scores) -> None:
        """Call visit(output, logits, rows) for every block of rows, (C, n, units) each, float64.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Takes the output, its logits (the output itself if that is no softmax or sigmoid), and the rows.
        """

        def last(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
            if layer + 1 == len(self.layers):
                visit(post, pre if self.output in ("softmax", "sigmoid") else post, rows)

        self.walk(x, last)

    def affine(self, x: Array) -> tuple[bool, ...]:  # noqa: ARG002 - on any rows
        """Return True for every layer: its pre is its weight times its input plus its bias."""
        return (True,) * len(self.layers)

    def weight(self, layer: int) -> Weight:
        """Return the layer's weight, as stored."""
        if self.exact is not None:
            return self.exact.weight(layer)
        return Weight(self.weights[layer].to(torch.float64))

    def undefined(self, spec: JacobianSpec) -> Mapping[int, str]:  # noqa: ARG002
        """Return nothing: every layer has a derivative."""
        return {}

    def rounding(self, x: Array, spec: JacobianSpec) -> Mapping[int, float]:  # noqa: ARG002
        """Return nothing: Jacobians are float64 throughout."""
        return {}

    def grams(self, x: Array, visit: VisitGram, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, gram, rows) for every block of rows: the sweep of `numerics.spectra.sweep`.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Takes the layer's index, its Gram matrices and the rows as a slice; called in parallel.
            spec: Which Jacobians.

        Returns:
            Nothing: every layer has a derivative.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        if self.exact is not None:
            return self.exact.grams(x, visit, spec)
        end = self._end(spec)
        if end < 0:
            return {}
        factor, start = self._first(spec)
        initial = started(factor)
        weights = {layer: self.weights[layer].to(torch.float64) for layer in range(start + 1, end + 1)}
        norms = {k: spectral_norm(made_finite(weight, finite_matrices(weight))) for k, weight in weights.items()}

        def swept(rows: slice) -> None:
            state = initial
            for layer, pre, post in self._forward(self._block(x, rows), start):
                # relu'(NaN) = 0 would hide a NaN, so track finiteness explicitly.
                state = replace(state, finite=state.finite & _finite_rows(pre))
                slope = self._slope(layer, pre.to(torch.float64), state.finite)
                if spec.wants(layer):
                    if spec.at == "pre":
                        visit(layer, state.counted(shared=layer == start), rows)
                    else:
                        visit(layer, self._at_post(state, slope, post).counted(), rows)
                if layer == end:
                    break
                assert slope is not None
                state = carried_on(state, slope, weights[layer + 1], norms[layer + 1])

        mapped(swept, self._cuts(len(x), factor, SWEEP_BUDGET[self.device.type]), self.device)
        return {}

    @torch.inference_mode()  # without counting versions and views, a tenth of the time of so many short operations
    def jacobians(self, x: Array, visit: VisitFactor, spec: JacobianSpec) -> Mapping[int, str]:
        """Call visit(layer, factor, input_factor, rows): matrices with the singular values of the Jacobians.

        Args:
            x: Probe rows, shape (N, ...), flattened here.
            visit: Takes the layer's index, a factor of its Jacobian of shape (C, n, D, k), or (C, 1, D, k) if it is
                the same for every row, float64, a factor of the Jacobian of its input, and the rows as a slice.
            spec: Which Jacobians.

        Returns:
            Nothing: every layer has a derivative.

        Source:
            Patel and Shwartz-Ziv 2024, section 2; the first layer's row space is factored out once for all rows.
        """
        if self.exact is not None:
            return self.exact.jacobians(x, visit, spec)
        end = self._end(spec)
        if end < 0:
            return {}
        first, start = self._first(spec)
        for rows in self._cuts(len(x), first, FACTOR_BUDGET):
            factor = first.unsqueeze(1)
            input_factor = torch.ones(self.size, 1, 1, 1, dtype=torch.float64, device=self.device)
            for layer, pre, post in self._forward(self._block(x, rows), start):
                finite = _finite_rows(pre)
                slope = self._slope(layer, pre.to(torch.float64), finite)
                if not bool(finite.all()):
                    factor = torch.where(finite[..., None, None], factor, torch.nan)
                if spec.wants(layer):
                    at_layer = factor if spec.at == "pre" else self._factor_at_post(factor, slope, post)
                    visit(layer, at_layer, input_factor if spec.feeds else None, rows)
                if layer == end:
                    break
                assert slope is not None
                factor, input_factor = exactly_on(factor, slope, self.weights[layer + 1].to(torch.float64))
        return {}

    def spectral_norms(self, x: Array, spec: JacobianSpec) -> Array:
        """Return the largest singular value of every layer's Jacobian on the whole input, (C, L, n)."""
        found = np.full((self.size, len(self.layers), len(x)), np.nan)

        def note(layer: int, factor: torch.Tensor, _: torch.Tensor | None, rows: slice) -> None:
            finite = finite_matrices(factor)
            norms = spectral_norm(made_finite(factor, finite))
            found[:, layer, rows] = torch.where(finite, norms, torch.nan).cpu().numpy()

        self.jacobians(x, note, replace(spec, directions=None, basis=None))
        return found

    def noisy_passes(self, x: Array, layer: int, noise: Sequence[float]) -> ChainPasses:
        """Return the noisy passes of some rows up to a layer, of one checkpoint (C = 1).

        Args:
            x: Probe rows, shape (n, ...), flattened here.
            layer: Index of the layer wanted; those before it are noisy.
            noise: Standard deviation of every layer, activation units.

        Source:
            Goldfeld et al. 2019, section 2: T_l = f_l(T_{l-1}) + Z_l.
        """
        assert self.size == 1
        clean = self._layer(0, self._block(x, slice(0, len(x))).unsqueeze(0))[1]
        after = range(1, layer + 1)
        return ChainPasses(
            clean[0],
            tuple(self.weights[k][0] for k in after),
            tuple(None if bias is None else bias[0] for bias in self.biases[1 : layer + 1]),
            tuple(map(self._activation, after)),
            tuple(noise[:layer]),
            None if self.exact is None else self.exact.noisy_passes(x, layer, noise),
        )

    def _forward(self, block: torch.Tensor, start: int = 0) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield (layer, pre, post) from layer `start` on."""
        post = block.expand(self.size, *block.shape)
        for layer in range(len(self.layers)):
            pre, post = self._layer(layer, post)
            if layer >= start:
                yield layer, pre, post

    def _layer(self, layer: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self.weights[layer], self.biases[layer]
        pre = values @ weight.mT if bias is None else torch.baddbmm(bias, values, weight.mT)
        return pre, activated(self._activation(layer), pre)

    def _activation(self, layer: int) -> str:
        return self.activation if layer + 1 < len(self.layers) else self.output

    def _slope(self, layer: int, pre: torch.Tensor, finite: torch.Tensor) -> torch.Tensor | None:
        """Return the slopes, zero at rows that are not finite; None for softmax, which is not elementwise."""
        name = self._activation(layer)
        if name == "softmax":
            return None
        slope = ACTIVATIONS[name].slope(pre)
        return slope if bool(finite.all()) else torch.where(finite.unsqueeze(-1), slope, 0.0)

    def _factor_at_post(self, factor: torch.Tensor, slope: torch.Tensor | None, post: torch.Tensor) -> torch.Tensor:
        if slope is None:
            return softmax_carried(post.to(torch.float64), factor)
        return slope.unsqueeze(-1) * factor

    def _at_post(self, state: Carried, slope: torch.Tensor | None, post: torch.Tensor) -> Carried:
        if slope is None:
            post = torch.where(state.finite.unsqueeze(-1), post.to(torch.float64), 0.0)
            # diag(q) - q q^T is a covariance matrix of numbers in [0, 1].
            return carried_post(state, softmax_carried(post, state.factor), torch.ones_like(state.error))
        return carried_post(state, slope.unsqueeze(-1) * state.factor, slope.abs().amax(-1).square())

    def _first(self, spec: JacobianSpec) -> tuple[torch.Tensor, int]:
        """Return a factor of the Jacobian of the first layer after the origin, (C, d, k), and that layer's index."""
        start = 0 if spec.origin is None else spec.origin + 1
        weight = self.weights[start].to(torch.float64)
        if spec.directions is not None and spec.basis is not None:
            basis, parts = spec.basis, cuts(0, spec.directions, COLUMNS)
            columns = (torch.as_tensor(basis(weight.shape[-1], part)).to(weight) for part in parts)
            weight = torch.cat([weight @ column for column in columns], -1)
        return row_factor(weight), start

    def _end(self, spec: JacobianSpec) -> int:
        """Return the last layer wanted, -1 where there is none."""
        return max((layer for layer in range(len(self.layers)) if spec.wants(layer)), default=-1)

    def _cuts(self, rows: int, factor: torch.Tensor, budget: int) -> list[slice]:
        return cuts(0, rows, budget // (self.size * self._widest() * factor.shape[-1]))

    def _block(self, x: Array, rows: slice) -> torch.Tensor:
        return aligned(x[rows].reshape(rows.stop - rows.start, -1)).to(self.device, self.weights[0].dtype)

    def _widest(self) -> int:
        return max(self.inputs, *(layer.width for layer in self.layers))


def _finite_rows(pre: torch.Tensor) -> torch.Tensor:
    """Return which rows are finite, (C, n); a finite sum proves it for all at once."""
    if bool(torch.isfinite(pre.sum())):
        return torch.ones(pre.shape[:-1], dtype=torch.bool, device=pre.device)
    return torch.isfinite(pre).all(-1)
