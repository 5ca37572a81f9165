"""Factors of a chain's input Jacobian at its first weight and after a softmax."""

from __future__ import annotations

import torch

from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite

__all__ = ["row_factor", "softmax_carried"]


def row_factor(weight: torch.Tensor) -> torch.Tensor:
    """Return a factor A of W = A Q, Q with orthonormal rows: it has W's singular values and min(out, in) columns.

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
    # One matrix that is not finite makes LAPACK raise for the whole stack: factor zeros in its place.
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
    # Subtracting one row of A from all rows changes nothing. With that of the likeliest class, its difference from the
    # mean does not cancel: in a saturated softmax, cancellation would leave rounding in place of a singular value.
    likeliest = probability.argmax(-1)[..., None, None].expand(*probability.shape[:-1], 1, factor.shape[-1])
    factor = factor - factor.expand(*probability.shape, -1).gather(-2, likeliest)
    return q * (factor - (q * factor).sum(-2, keepdim=True))
