"""Slow obvious references for the network channel, float64: noise at every hidden layer, X discrete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from support.oracles import ACTIVATION, Parameters, brute_information


def layer_of(chain: Parameters, k: int, activation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """f_k as a function of rows (P, in) -> (P, out)."""
    weight, bias = chain[0][k], chain[1][k]
    return lambda h: ACTIVATION[activation](h @ weight.T + (0 if bias is None else bias))


def noisy_grid(
    centres: torch.Tensor, masses: torch.Tensor, noise: float, per_noise: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nodes (P', d) and their masses (n, P') of centres (P, d), masses (n, P), plus noise; d = 1 or 2.

    The trapezoidal rule of a Gaussian at four steps a deviation is exact to rounding, up to 1e-4 at relu.
    """
    axes = [
        torch.arange(float(c.min()) - 9 * noise, float(c.max()) + 9 * noise, noise / per_noise, dtype=torch.float64)
        for c in centres.T
    ]
    norm = per_noise * math.sqrt(2 * math.pi)
    kernels = [torch.exp(-0.5 * ((a - c[:, None]) / noise) ** 2) / norm for a, c in zip(axes, centres.T, strict=True)]
    if len(axes) == 1:
        return axes[0][:, None], masses @ kernels[0]
    laws = torch.stack([(kernels[0] * m[:, None]).T @ kernels[1] for m in masses])
    return torch.cartesian_prod(*axes), laws.flatten(1)


def law_information(laws: torch.Tensor, joint: torch.Tensor) -> tuple[float, float]:
    """I(X;T), I(T;Y) of laws (n, P) of T given X and the joint law (n, C) of X and Y."""
    weights, marginal, of_class = joint.sum(1), joint.sum(1) @ laws, (joint / joint.sum(0)).T @ laws

    def divergence(p: torch.Tensor) -> torch.Tensor:
        return torch.where(p > 1e-280, p * torch.log(torch.where(p > 1e-280, p / marginal, 1.0)), 0.0).sum(-1)

    return float(weights @ divergence(laws)), float(joint.sum(0) @ divergence(of_class))


def exact_information(
    chain: Parameters,
    activation: str,
    x: torch.Tensor,
    joint: torch.Tensor,
    noise: float,
    per_noise: int = 4,
) -> list[tuple[float, float]]:
    """Return [(I(X;T_l), I(T_l;Y)), ...] of all hidden layers, each of width 1 or 2, by nested quadrature."""
    nodes, masses, found = x, torch.eye(len(x), dtype=torch.float64), []
    for k in range(len(chain[0]) - 1):
        nodes, masses = noisy_grid(layer_of(chain, k, activation)(nodes), masses, noise, per_noise)
        found.append(law_information(masses, joint))
        # What weighs nothing is left out, so that two-dimensional layers can follow one another.
        kept = masses.amax(0) > 1e-17
        nodes, masses = nodes[kept], masses[:, kept]
    return found


def linear_law(chain: Parameters, x: torch.Tensor, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (n, d) and covariance (d, d) of the last hidden layer given x, identity activations."""
    mean, covariance = x, torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for k in range(len(chain[0]) - 1):
        weight = chain[0][k]
        mean = layer_of(chain, k, "identity")(mean)
        covariance = weight @ covariance @ weight.T + noise**2 * torch.eye(len(weight), dtype=torch.float64)
    return mean, covariance


def linear_information(
    chain: Parameters,
    x: torch.Tensor,
    joint: torch.Tensor,
    noise: float,
    draws: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """I(X;T), I(T;Y) of the last hidden layer of a linear net: exact densities, noise whitened."""
    mean, covariance = linear_law(chain, x, noise)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), mean.T, upper=False).T
    g = torch.Generator().manual_seed(seed)
    normals = [torch.randn(white.shape, generator=g, dtype=torch.float64) for _ in range(draws)]
    each = np.array([brute_information(white, joint, 1.0, [z]) for z in normals])
    return each.mean(0), each.std(0, ddof=1) / math.sqrt(draws)


def replicas(
    chain: Parameters,
    activation: str,
    x: torch.Tensor,
    layer: int,
    noise: float,
    generator: torch.Generator,
    count: int,
) -> torch.Tensor:
    """S of `layer` (count, n, D) in `count` passes, fresh noise at every layer before."""
    found = []
    for _ in range(count):
        h = x
        for k in range(layer + 1):
            post = layer_of(chain, k, activation)(h)
            h = post + noise * torch.randn(post.shape, generator=generator, dtype=torch.float64)
        found.append(post)
    return torch.stack(found)


def replica_information(
    centres: torch.Tensor, joint: torch.Tensor, noise: float, queries: torch.Tensor | Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Mean of ln g_i - ln g and ln g_y - ln g over queries (R, n, D), g_i the mixture of the K of centres (K, n, D)."""
    count, weights, xt, ty = len(centres), joint.sum(1), 0.0, 0.0
    for t in queries:
        squares = ((t[:, None, None, :] - centres.transpose(0, 1)[None]) ** 2).sum(-1)
        of_input = torch.logsumexp(-squares / (2 * noise**2), 2) - math.log(count)
        marginal = torch.logsumexp(of_input + torch.log(weights), 1)
        of_class = torch.logsumexp(of_input[:, :, None] + torch.log(joint / joint.sum(0)), 1)
        xt += float((weights * (of_input.diagonal() - marginal)).sum()) / len(queries)
        ty += float((joint * (of_class - marginal[:, None])).sum()) / len(queries)
    return xt, ty


def own_and_fresh(
    chain: Parameters,
    activation: str,
    x: torch.Tensor,
    joint: torch.Tensor,
    layer: int,
    noise: float,
    count: int,
    repeats: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard errors (2, 2) over repeats: rows own and fresh, columns I(X;T) and I(T;Y)."""
    g, found = torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        centres, others = (replicas(chain, activation, x, layer, noise, g, count) for _ in range(2))
        z = noise * torch.randn(centres.shape, generator=g, dtype=torch.float64)
        found.append([replica_information(centres, joint, noise, t + z) for t in (centres, others)])
    each = np.array(found)
    return each.mean(0), each.std(0, ddof=1) / math.sqrt(repeats)
