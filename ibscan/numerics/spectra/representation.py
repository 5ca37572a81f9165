"""The spectrum of a layer's covariance over the probe, and statistics of it that do not depend on the scale."""

from __future__ import annotations

import math

import torch

from ibscan.numerics.geometry.distances import in_range

__all__ = ["covariance_roots", "decay_exponent", "participation_ratio", "spectral_entropy"]

# Fewest points a line is fitted to.
LEAST_POINTS = 3


def covariance_roots(points: torch.Tensor) -> torch.Tensor:
    """Return square roots of the eigenvalues of the covariance, up to a common factor, in descending order.

    They are the singular values of the centred rows: a covariance matrix would lose half the digits.

    Args:
        points: Shape (N, D), finite, float64, of any scale.

    Returns:
        Shape (min(N, D),), >= 0.
    """
    points, _ = in_range(points)
    centred = points - points.mean(0)
    centred -= centred.mean(0)
    if len(centred) > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r")[1]
    roots: torch.Tensor = torch.linalg.svdvals(centred)
    # Values below rounding are 0.
    return torch.where(roots > max(points.shape) * torch.finfo(roots.dtype).eps * roots[:1], roots, 0.0)


def participation_ratio(roots: torch.Tensor) -> float:
    """Return (sum lambda)^2 / sum lambda^2 of lambda = roots^2: d where d are equal; 0 where all are 0.

    Example:
        >>> round(participation_ratio(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
        3.0
    """
    share = _shares(roots)
    return 1.0 / float(share.square().sum()) if float(share.sum()) > 0 else 0.0


def spectral_entropy(roots: torch.Tensor) -> float:
    """Return -sum p ln p of p = lambda / sum lambda, lambda = roots^2, nats: ln d where d are equal.

    Source:
        Skean et al. 2025, arXiv 2502.02013 (matrix entropy, in the limit of order 1).
    """
    return max(0.0, float(torch.special.entr(_shares(roots)).sum()))


def decay_exponent(roots: torch.Tensor) -> tuple[float, int, int]:
    """Return alpha of lambda_i ~ i^-alpha, and the first and last place i of the spectrum it was fitted on.

    The least-squares slope of -ln lambda_i on ln i for i from r/10 to r/2, r the number of lambda that are not 0: the
    first ones are due to the classes, the last ones to the sample. NaN for fewer than three places.

    Args:
        roots: Square roots of lambda_i, in descending order, shape (k,).

    Source:
        Stringer et al. 2019; Agrawal et al. 2022 (alpha-ReQ), arXiv 2202.05808.
    """
    rank = int((roots > 0).sum())
    first, last = max(1, math.ceil(rank / 10)), math.ceil(rank / 2)
    if last - first + 1 < LEAST_POINTS:
        return math.nan, first, last
    log_index = torch.arange(first, last + 1, dtype=roots.dtype, device=roots.device).log()
    decay = -2.0 * (roots[first - 1 : last] / roots[0]).log()
    log_index = log_index - log_index.mean()
    return float((log_index @ decay) / log_index.square().sum()), first, last


def _shares(roots: torch.Tensor) -> torch.Tensor:
    """Return lambda / sum lambda, all 0 if they are."""
    # Divide before squaring, which could under- or overflow.
    share = (roots / torch.where(roots[:1] > 0, roots[:1], 1.0)).square()
    return share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
