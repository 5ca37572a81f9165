"""The spectrum of a layer's covariance over the probe, and the numbers that sum it up; none depends on the scale."""

from __future__ import annotations

import math

import torch

from ibscan.numerics.geometry.distances import in_range

__all__ = ["covariance_roots", "decay_exponent", "participation_ratio", "spectral_entropy"]

# Least points of a straight line.
LEAST_POINTS = 3


def covariance_roots(points: torch.Tensor) -> torch.Tensor:
    """Return square roots of the eigenvalues of the covariance, up to a common factor, in descending order.

    Through the singular values of the centred rows, not a covariance matrix, which would lose half the digits.

    Args:
        points: Shape (n, d), finite, float64, of any size.

    Returns:
        Shape (min(n, d),), >= 0.
    """
    points, _ = in_range(points)
    centred = points - points.mean(0)
    centred -= centred.mean(0)
    if len(centred) > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r")[1]
    roots: torch.Tensor = torch.linalg.svdvals(centred)
    # What rounding leaves of a direction that is not there is none.
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

    The slope of -ln lambda_i on ln i by least squares, from a tenth to a half of the places whose lambda is not 0: the
    first few are the classes' own, the last are the sample's. NaN, with the places, where these are fewer than three.

    Args:
        roots: Square roots of lambda_i, in descending order, shape (k,).

    Source:
        Stringer et al. 2019; Agrawal et al. 2022 (alpha-ReQ), arXiv 2202.05808.
    """
    held = int((roots > 0).sum())
    first, last = max(1, math.ceil(held / 10)), math.ceil(held / 2)
    if last - first + 1 < LEAST_POINTS:
        return math.nan, first, last
    place = torch.arange(first, last + 1, dtype=roots.dtype, device=roots.device).log()
    fall = -2.0 * (roots[first - 1 : last] / roots[0]).log()
    place = place - place.mean()
    return float((place @ fall) / place.square().sum()), first, last


def _shares(roots: torch.Tensor) -> torch.Tensor:
    # Divided first: squares of very small or large values would under- or overflow.
    share = (roots / torch.where(roots[:1] > 0, roots[:1], 1.0)).square()
    return share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
