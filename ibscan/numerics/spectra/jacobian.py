"""Factors of the input Jacobian of a chain at its ends: of the first weight, and after a softmax."""

from __future__ import annotations

import torch

from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite

__all__ = ["row_factor", "softmax_carried"]


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
    finite = finite_matrices(weight)
    upper: torch.Tensor = torch.linalg.qr(made_finite(weight, finite).mT, mode="r").R
    return upper.mT if bool(finite.all()) else torch.where(finite[..., None, None], upper.mT, torch.nan)


def softmax_carried(probability: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return (diag(q) - q q^T) A: the factor after a softmax with values q.

    Args:
        probability: q, shape (C, n, D), rows on the simplex.
        factor: A, shape (C, n or 1, D, k).

    Returns:
        Shape (C, n, D, k).
    """
    q = probability.unsqueeze(-1)
    # Adding one row to all changes nothing. Less that of the likeliest class its own is zero, and its difference from
    # the mean no longer cancels, which would leave rounding for a singular value once the softmax is saturated.
    likeliest = probability.argmax(-1)[..., None, None].expand(*probability.shape[:-1], 1, factor.shape[-1])
    factor = factor - factor.expand(*probability.shape, -1).gather(-2, likeliest)
    return q * (factor - (q * factor).sum(-2, keepdim=True))
