"""Count singular values from Gram matrices, with whether each count is certain: others need an SVD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ibscan.numerics.spectra.spectrum import spectral_norm

__all__ = [
    "Counts",
    "Gram",
    "bound_counts",
    "eigenvalue_counts",
    "elimination_counts",
    "gram_counts",
    "inertia_counts",
    "rounding",
]

# Up to FEW_THRESHOLDS one factorization for each is cheaper than all eigenvalues: LAPACK's from LEAST_SIZE on, one
# elimination of all matrices at once up to TINY_SIZE.
FEW_THRESHOLDS = 3
LEAST_SIZE = 24
TINY_SIZE = 8
# Factor by which an estimated distance to the nearest eigenvalue must exceed the error.
SAFETY = 10.0
EPS = torch.finfo(torch.float64).eps
# Relative widening of bounds on a norm, more than their rounding.
WIDENING = 1e-12


@dataclass(frozen=True)
class Gram:
    """G = A A^T or A^T A of A = J / scale, with a bound on its error.

    `values` is G (C, n, m, m); `error` (C, n) bounds the spectral norm of its error; `scale` (C, n) is a power of two.
    n is 1, and `shared` true, if all rows of the probe share them. `finite` (C, N) is False where J is not finite; G is
    zero there.
    """

    values: torch.Tensor
    error: torch.Tensor
    scale: torch.Tensor
    finite: torch.Tensor
    shared: bool = False


@dataclass(frozen=True)
class Counts:
    """How many singular values exceed each threshold, and whether that is certain, for M matrices and E thresholds.

    `number` (M, E) int64, absolute thresholds first; `certain` (M,); `positive` (M,) whether the matrix is not zero.
    """

    number: torch.Tensor
    certain: torch.Tensor
    positive: torch.Tensor


def rounding(size: int) -> float:
    """Return a bound on the rounding of a product or factorization with sums of length `size`, relative to the norms.

    Errors of a sum add up like a random walk, so the bound grows with the square root of its length.
    """
    return (4.0 + 2.0 * math.sqrt(size)) * EPS


def gram_counts(values: torch.Tensor, error: torch.Tensor, eps: torch.Tensor, relative: torch.Tensor) -> Counts:
    """Return counts by the cheapest of the methods below; arguments as in `eigenvalue_counts`."""
    if len(relative) == 0 and eps.shape[-1] <= FEW_THRESHOLDS:
        if values.shape[-1] <= TINY_SIZE:
            return elimination_counts(values, error, eps)
        if values.shape[-1] >= LEAST_SIZE:
            return inertia_counts(values, error, eps)
    return eigenvalue_counts(values, error, eps, relative)


def eigenvalue_counts(values: torch.Tensor, error: torch.Tensor, eps: torch.Tensor, relative: torch.Tensor) -> Counts:
    """Count from all eigenvalues of a Gram matrix.

    Certain if all eigenvalues are farther from the squared thresholds than the error of the matrix, which by Weyl's
    inequality moves no eigenvalue by more than its norm.

    Args:
        values: G, shape (M, m, m), float64, finite.
        error: Bound on the spectral norm of its error, shape (M,).
        eps: Absolute thresholds, shape (M, E).
        relative: Thresholds relative to the largest singular value, shape (R,).
    """
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(values)
    top = eigenvalues[:, -1].clamp(min=0.0)
    limits = torch.cat((eps.square(), top.unsqueeze(-1) * relative.square()), -1)
    bound = error + rounding(values.shape[-1]) * top
    # A relative threshold moves with the largest eigenvalue.
    slack = bound.unsqueeze(-1) * torch.cat((torch.ones_like(eps[0]), 1.0 + relative.square()))
    distance = (eigenvalues.unsqueeze(1) - limits.unsqueeze(-1)).abs().amin(-1)
    zero = (top == 0.0) & (error == 0.0)
    # Written so that a NaN is not certain.
    return Counts(
        (eigenvalues.unsqueeze(1) > limits.unsqueeze(-1)).sum(-1), (distance > slack).all(-1) | zero, (top > 0.0)
    )


def inertia_counts(values: torch.Tensor, error: torch.Tensor, eps: torch.Tensor) -> Counts:
    """Count from the signs of D in L D L^T = G - eps^2 I, one factorization for each threshold.

    Certain if inverse iteration finds no eigenvalue nearer to the threshold than the error of the matrix.

    Args:
        values: G, shape (M, m, m), float64, finite.
        error: Bound on the spectral norm of its error, shape (M,).
        eps: Thresholds, shape (M, E).

    Source:
        Sylvester's law of inertia; Bunch and Kaufman 1977: a block of two has one eigenvalue of either sign.
    """
    size, identity = values.shape[-1], torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
    scale = values.flatten(1).norm(dim=1)
    numbers, certain = [], torch.ones_like(scale, dtype=torch.bool)
    start = _start(size, values).expand(len(values), -1, -1)
    for limit in eps.square().unbind(-1):
        shifted = values - limit.view(-1, 1, 1) * identity
        compact, pivots, singular = torch.linalg.ldl_factor_ex(shifted)
        single = (pivots > 0) & (compact.diagonal(dim1=-2, dim2=-1) > 0.0)
        numbers.append(single.sum(-1) + (pivots < 0).sum(-1) // 2)
        once = torch.linalg.ldl_solve(compact, pivots, start)
        once = once / once.norm(dim=-2, keepdim=True)
        distance = 1.0 / torch.linalg.ldl_solve(compact, pivots, once).norm(dim=-2).amax(-1)
        bound = error + rounding(size) * torch.maximum(scale, limit)
        # Written so that a NaN is not certain.
        certain &= (distance > SAFETY * bound) & (singular == 0)
    zero = (scale == 0.0) & (error == 0.0)
    return Counts(torch.stack(numbers, -1), certain | zero, scale > 0.0)


def elimination_counts(values: torch.Tensor, error: torch.Tensor, eps: torch.Tensor) -> Counts:
    """Count from the signs of the pivots of Gaussian elimination in all matrices at once, for tiny ones.

    Each threshold is counted slightly below and slightly above it. Certain if both counts agree and no element grew so
    much, as there is no pivoting, that its rounding could reach the distance between them.

    Args:
        values: G, shape (M, m, m), float64, finite.
        error: Bound on the spectral norm of its error, shape (M,).
        eps: Thresholds, shape (M, E).

    Source:
        Sylvester's law of inertia; Higham 2002, theorem 9.3: the error is that of the growth of the elements.
    """
    size, limits = values.shape[-1], eps.square().T
    scale = values.flatten(1).norm(dim=1)
    distance = SAFETY * (error + rounding(size) * torch.maximum(scale, limits))
    shifts = torch.cat((limits - distance, limits + distance))
    # The batch last: every step is one operation on long rows.
    rest = values.permute(1, 2, 0).unsqueeze(2).repeat(1, 1, len(shifts), 1)
    rest.diagonal(dim1=0, dim2=1).sub_(shifts.unsqueeze(-1))
    number, largest = torch.zeros_like(shifts, dtype=torch.int64), torch.zeros_like(shifts)
    for _ in range(size):
        pivot, row = rest[0, 0], rest[0, 1:]
        number += pivot > 0.0
        rest = rest[1:, 1:] - (rest[1:, 0] / pivot).unsqueeze(1) * row
        if len(rest):
            largest = torch.maximum(largest, rest.abs().amax((0, 1)))
    below, above = number[: len(limits)], number[len(limits) :]
    grown = largest.view(2, len(limits), -1).amax(0)
    zero = (scale == 0.0) & (error == 0.0)
    # Written so that a NaN is not certain.
    certain = ((below == above) & (rounding(size) * size * grown < distance)).all(0)
    number = torch.where(zero, 0, above)
    return Counts(number.T.contiguous(), certain | zero, scale > 0.0)


def bound_counts(weight_values: torch.Tensor, input_factor: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return #{sigma(W) > eps / |B|}, which #{sigma(W B) > eps} does not exceed.

    The norm of B lies between that of its longest row and its Frobenius norm. Where the count differs between these, it
    is bounded by powers of a Gram matrix, and where it still differs, computed.

    Args:
        weight_values: Singular values of W, shape (C, d).
        input_factor: B, shape (C, n, s, k), finite.
        eps: Thresholds, shape (E,).

    Returns:
        Shape (C, n, E), int64.

    Source:
        Horn and Johnson, Topics in Matrix Analysis, theorem 3.3.16: sigma_k(W B) <= sigma_k(W) |B|.
    """
    limits = (eps.unsqueeze(-1) / weight_values.unsqueeze(1)).sort(-1).values
    # Rows of the probe last, as sums over inner dimensions are slow.
    lengths = input_factor.movedim(1, -1).square().sum(2)
    norms = torch.cat((lengths.sum(1).sqrt_().mul_(1 + WIDENING), lengths.amax(1).sqrt_().mul_(1 - WIDENING)), -1)
    found, least = _limits_below(limits, norms).chunk(2, 1)
    checkpoint, row = (found != least).any(-1).nonzero(as_tuple=True)
    if len(row):
        matrix, limits = input_factor[checkpoint, row], limits[checkpoint]
        norm, least_norm = _norm_bounds(matrix)
        differs = _limits_below(limits, norm * (1 + WIDENING)) != _limits_below(limits, least_norm * (1 - WIDENING))
        undecided = differs.flatten(1).any(1)
        norm[undecided] = spectral_norm(matrix[undecided]).unsqueeze(-1)
        found[checkpoint, row] = _limits_below(limits, norm).squeeze(1)
    return found


def _limits_below(limits: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return how many limits (C, E, d), in ascending order, are less than norms (C, n); shape (C, n, E)."""
    each = norm.unsqueeze(1).expand(-1, limits.shape[1], -1).contiguous()
    return torch.searchsorted(limits, each).movedim(1, -1)


def _norm_bounds(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return upper and lower bounds, (r, 1) each, on the spectral norms of nonzero matrices (r, s, k).

    With the eigenvalues g of the Gram matrix: sum g^4 / sum g^2 <= max g^2, and max g^4 <= sum g^4.
    """
    size = matrix.flatten(1).norm(dim=1).unsqueeze(-1)
    scaled = matrix / size.unsqueeze(-1)
    gram = scaled @ scaled.mT if scaled.shape[1] <= scaled.shape[2] else scaled.mT @ scaled
    second, fourth = (power.flatten(1).square().sum(1, keepdim=True) for power in (gram, gram @ gram))
    return size * fourth ** (1 / 8), size * (fourth / second) ** (1 / 4)


def _start(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return two fixed random directions to start inverse iteration from."""
    draw = torch.randn(size, 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return draw.to(like)
