"""Slow obvious references, float64, at most ten lines each; written from the definitions, not from the code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from ibscan.core.records import At, Probe
from ibscan.networks.chain import Chain
from ibscan.networks.resolve import ChainSpec
from ibscan.networks.stacked import stacked_chain

# Where networks under test live, and the dtype of forward passes that state none: pytest --device, --dtype.
DEVICE = torch.device("cpu")
DTYPE = torch.float64

# Weights and biases of a chain, layer by layer.
Parameters = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor | None]]
Chained = tuple[list[torch.Tensor], list[torch.Tensor | None]]

ACTIVATION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda p: p,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda p: torch.softmax(p, -1),
}


def two_point_table() -> dict[float, float]:
    """Half distance over noise -> I(X;T) in nats: methods.md 2.4."""
    return {0.5: 0.111421, 1.0: 0.336831, 1.5: 0.526777, 2.0: 0.632720, 3.0: 0.689298, 4.0: 0.693054}


def weight_entropy(weights: ArrayLike) -> float:
    """-sum w ln w by a loop."""
    return -sum(float(w) * math.log(float(w)) for w in np.ravel(weights) if w > 0)


def line_entropy(points: ArrayLike, weights: ArrayLike, noise: float) -> float:
    """h(S + Z) of a one-dimensional mixture by the trapezoidal rule (spectral accuracy)."""
    points, masses = np.asarray(points, dtype=float), np.asarray(weights, dtype=float)
    masses = masses / masses.sum()
    t = np.arange(points.min() - 12 * noise, points.max() + 12 * noise, noise / 40)
    density = np.zeros_like(t)
    for point, weight in zip(points, masses, strict=True):
        density += weight * np.exp(-0.5 * ((t - point) / noise) ** 2) / (noise * math.sqrt(2 * math.pi))
    return -np.sum(np.where(density > 0, density * np.log(np.maximum(density, 1e-300)), 0.0)) * noise / 40


def line_xt(points: ArrayLike, weights: ArrayLike, noise: float) -> float:
    """I(X; S + Z) in one dimension: h(T) - h(Z)."""
    return line_entropy(points, weights, noise) - 0.5 * math.log(2 * math.pi * math.e * noise**2)


def line_ty(points: ArrayLike, joint: ArrayLike, noise: float) -> float:
    """I(S + Z; Y) in one dimension: h(T) - sum_y p(y) h(T | y)."""
    joint = np.asarray(joint, dtype=float)
    given = sum(joint[:, c].sum() * line_entropy(points, joint[:, c], noise) for c in range(joint.shape[1]))
    return line_entropy(points, joint.sum(1), noise) - given


def brute_information(
    centres: torch.Tensor, joint: torch.Tensor, noise: float, normals: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Return I(X;T), I(T;Y) averaged over the given draws: log-sum-exp over all centres from differences."""
    weights, xt, ty = joint.sum(1), 0.0, 0.0
    for z in normals:
        t = centres + noise * z
        exponent = -((t[:, None, :] - centres[None, :, :]) ** 2).sum(-1) / (2 * noise**2)
        marginal = torch.logsumexp(exponent + torch.log(weights), 1)
        of_class = torch.logsumexp(exponent[:, :, None] + torch.log(joint / joint.sum(0)), 1)
        xt += float((weights * (exponent.diagonal() - marginal)).sum())
        ty += float((joint * (of_class - marginal[:, None])).sum())
    return xt / len(normals), ty / len(normals)


def loop_bound(centres: torch.Tensor, weights: np.ndarray | Sequence[float], scale: float) -> float:
    """-sum_i w_i ln sum_j w_j exp(-d_ij^2 / scale): Kolchinsky and Tracey with scale 8 s^2 (lower), 2 s^2 (upper)."""
    total = 0.0
    for i in range(len(centres)):
        squares = np.array([float(((centres[i] - centres[j]) ** 2).sum()) for j in range(len(centres))])
        total -= float(weights[i]) * math.log(float(np.sum(np.asarray(weights) * np.exp(-squares / scale))))
    return total


def symbol_entropy(rows: Sequence[Any] | np.ndarray) -> tuple[float, int]:
    """Entropy of a list of symbols by counting in a dictionary."""
    counts: dict[tuple[float, ...], int] = {}
    for row in rows:
        key = tuple(float(v) + 0.0 for v in np.atleast_1d(row))
        counts[key] = counts.get(key, 0) + 1
    return -math.fsum(c / len(rows) * math.log(c / len(rows)) for c in counts.values()), len(counts)


def forward(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    activation: Any,
    output: str,
    x: torch.Tensor,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return [(pre, post), ...] of a chain: W p + b, the activation, the output's activation last."""
    values, h = [], x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        pre = h @ weight.T + (0 if bias is None else bias)
        h = ACTIVATION[activation if layer < len(weights) - 1 else output](pre)
        values.append((pre, h))
    return values


def full_jacobian(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    names: tuple[str, str],
    x: torch.Tensor,
    layer: Any,
    at: At,
) -> torch.Tensor:
    """d layer / d x at every row by torch.func.jacrev, shape (n, D, d_in); `names` is (activation, output)."""

    def value(row: torch.Tensor) -> torch.Tensor:
        return forward(weights, biases, *names, row)[layer][at == "post"]

    return torch.stack([torch.func.jacrev(value)(row) for row in x])


def random_chain(widths: Sequence[int], seed: int, bias: bool = True, scale: float = 1.0) -> Chained:
    """Weights and biases of one chain, Gaussian with deviation scale / sqrt(in), float64."""
    g = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(widths))
    weights = [torch.randn(o, i, generator=g, dtype=torch.float64) * scale / math.sqrt(i) for i, o in pairs]
    biases = [torch.randn(o, generator=g, dtype=torch.float64) * 0.3 if bias else None for _, o in pairs]
    return weights, biases


def state(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """State dict fc1.weight, fc1.bias, ... of one chain."""
    named = {f"fc{k}.weight": w for k, w in enumerate(weights, 1)}
    return named | {f"fc{k}.bias": b for k, b in enumerate(biases, 1) if b is not None}


def network_of(
    chains: Sequence[Parameters],
    activation: Any = "tanh",
    output: str = "identity",
    dtype: torch.dtype = torch.float64,
) -> Chain:
    """The network under test, of one (weights, biases) pair a checkpoint."""
    order = tuple(f"fc{k}" for k in range(1, len(chains[0][0]) + 1))
    states = [state(*c) for c in chains]
    return stacked_chain(ChainSpec(activation, output), order, states, device=DEVICE, dtype=dtype)


def probe_of(x: Any, y: ArrayLike | None = None) -> Probe:
    """A probe of rows and, if given, labels 0 .. C - 1."""
    x = np.asarray(x, dtype=float)
    labels = () if y is None else tuple(range(int(np.max(y)) + 1))
    return Probe(x=x, y=None if y is None else np.asarray(y), labels=labels, sha256="0" * 64, source="test")


def with_idle_unit(chain: Parameters) -> Parameters:
    """The same chain of scalar layers with one more unit in the first, read by none: such cells are not integrated."""
    (first, second, *weights), (bias, *biases) = chain
    zero = torch.zeros(1, 1, dtype=torch.float64)
    row = torch.zeros(1, first.shape[1], dtype=torch.float64)
    widened = None if bias is None else torch.cat((bias, zero[0]))
    return [torch.cat((first, row)), torch.cat((second, zero), 1), *weights], [widened, *biases]
