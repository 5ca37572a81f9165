"""What is read off singular values: counts above a threshold, effective rank, stable rank."""

from __future__ import annotations

import torch

from ibscan.numerics.spectra.bidiagonal import stacked_values

__all__ = [
    "effective_rank",
    "finite_matrices",
    "made_finite",
    "numerical_rank",
    "singular_values",
    "spectral_norm",
    "stable_rank",
]

# From MANY matrices of at most TINY rows or columns on, operations on all of them are faster than LAPACK one by one on
# a CPU. On a GPU the library is batched already.
MANY, TINY = 2**11, 8


def finite_matrices(matrix: torch.Tensor) -> torch.Tensor:
    """Return which matrices (..., D, k) are finite, shape (...)."""
    # If the sum is finite, so are all terms; one sum is many times faster than one for each matrix.
    if bool(torch.isfinite(matrix.sum())):
        return torch.ones(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
    return torch.isfinite(matrix).flatten(-2).all(-1)


def made_finite(matrix: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Return the matrices with zeros in place of those that are not finite, at which LAPACK would raise."""
    return matrix if bool(finite.all()) else torch.where(finite[..., None, None], matrix, 0.0)


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Return singular values in descending order.

    By an SVD, not from a Gram matrix, whose smallest eigenvalues lose half the digits: counts are right down to
    eps = 1e-14 sigma_max. Many tiny matrices are decomposed together (`stacked_values`), uncertain ones by LAPACK.

    Args:
        matrix: Shape (..., D, k), finite, float64.

    Returns:
        Shape (..., min(D, k)), >= 0.
    """
    least = min(matrix.shape[-2:])
    if 0 < least <= TINY and matrix.shape[:-2].numel() >= MANY and matrix.device.type == "cpu":
        sigma, certain = stacked_values(matrix)
        if not bool(certain.all()):
            sigma[~certain] = torch.linalg.svdvals(matrix[~certain])
        return sigma
    own: torch.Tensor = torch.linalg.svdvals(matrix)
    return own


def numerical_rank(sigma: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return how many singular values exceed each threshold (strictly: a zero matrix has rank 0 at eps = 0).

    Args:
        sigma: Singular values, shape (..., k).
        eps: Thresholds, shape (E,) or (..., E) where each matrix has its own.

    Returns:
        Counts, shape (..., E), int64.

    Source:
        Patel and Shwartz-Ziv 2024, definition of the robust local rank.

    Example:
        >>> numerical_rank(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor([2, 1])
    """
    each = eps.expand(*sigma.shape[:-1], -1) if eps.dim() == 1 else eps
    # Thresholds first, so that comparisons keep the memory order of the singular values.
    return (sigma > each.movedim(-1, 0).unsqueeze(-1)).sum(-1).movedim(0, -1)


def effective_rank(sigma: torch.Tensor) -> torch.Tensor:
    """Return exp of the entropy of the singular values normalised to sum 1; 0 for a zero matrix.

    Args:
        sigma: Singular values, shape (..., k).

    Returns:
        Shape (...), between 1 and the rank.

    Source:
        Roy and Vetterli 2007, "The effective rank", definition 1.

    Example:
        >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
        tensor(2.)
    """
    total = sigma.sum(-1)
    share = sigma / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    # 0 ln 0 = 0: clamp, so that the logarithm stays finite.
    logarithm = share.clamp(min=torch.finfo(share.dtype).tiny).log_()
    return torch.where(total > 0, logarithm.mul_(share).sum(-1).neg_().exp_(), 0.0)


def stable_rank(sigma: torch.Tensor) -> torch.Tensor:
    """Return the squared Frobenius norm over the squared spectral norm; 0 for a zero matrix.

    Args:
        sigma: Singular values in descending order, shape (..., k).

    Returns:
        Shape (...), between 1 and the rank.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0]))
        tensor(1.2500)
    """
    top = sigma[..., :1]
    # Divide before squaring, which could under- or overflow.
    return (sigma / torch.where(top > 0, top, 1.0)).square_().sum(-1)


def spectral_norm(matrix: torch.Tensor) -> torch.Tensor:
    """Return the largest singular value, from the smaller Gram matrix, whose largest eigenvalue is accurate.

    Args:
        matrix: Shape (..., D, k), finite, float64.

    Returns:
        Shape (...).
    """
    largest = matrix.abs().amax((-2, -1))
    scale = torch.where(largest > 0.0, largest, 1.0)
    # Scale before squaring, which could under- or overflow.
    scaled = matrix / scale[..., None, None]
    tall = scaled if scaled.shape[-2] >= scaled.shape[-1] else scaled.mT
    top: torch.Tensor = torch.linalg.eigvalsh(tall.mT @ tall)[..., -1]
    return top.clamp(min=0.0).sqrt() * scale
