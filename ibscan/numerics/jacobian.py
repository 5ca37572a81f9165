"""Factors of the input Jacobian of a chain: matrices with its singular values, carried from layer to layer."""

from __future__ import annotations

import torch

__all__ = ["carried", "row_factor", "softmax_carried"]


def row_factor(weight: torch.Tensor) -> torch.Tensor:
    """Return a factor A with W = A Q for some Q with orthonormal rows: W's singular values, min(out, in) columns.

    Args:
        weight: W, shape (..., out, in), float64.

    Returns:
        A, shape (..., out, min(out, in)); W itself where it is not wider than tall, NaN where W is not finite.

    Source:
        Singular values are invariant under right multiplication by orthonormal rows; QR of W^T gives Q.
    """
    out, width = weight.shape[-2:]
    if width <= out:
        return weight
    # Non-finite weights would make LAPACK raise, for every matrix of a stack: each is factored as if it were zero.
    sound = torch.isfinite(weight).flatten(-2).all(-1)[..., None, None]
    upper: torch.Tensor = torch.linalg.qr(torch.where(sound, weight, 0.0).mT, mode="r").R
    return torch.where(sound, upper.mT, torch.nan)


def carried(weight: torch.Tensor, slope: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return W diag(slope) A: the factor of the next pre-activation.

    Args:
        weight: W, shape (C, out, in).
        slope: phi'(p) at every row, shape (C, n, in).
        factor: A, shape (C, n, in, k), or (C, 1, in, k) where it is the same for every row.

    Returns:
        Shape (C, n, out, k).

    Source:
        Patel and Shwartz-Ziv 2024, section 2: J_{l+1} = W_{l+1} diag(phi'(p_l)) J_l.
    """
    return weight.unsqueeze(1) @ (slope.unsqueeze(-1) * factor)


def softmax_carried(probability: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return (diag(q) - q q^T) A: the factor after a softmax with values q.

    Args:
        probability: q, shape (C, n, D), rows on the simplex.
        factor: A, shape (C, n or 1, D, k).

    Returns:
        Shape (C, n, D, k).
    """
    q = probability.unsqueeze(-1)
    mean = (q * factor).sum(-2, keepdim=True)
    return q * (factor - mean)
