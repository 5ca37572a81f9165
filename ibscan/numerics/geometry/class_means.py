"""Statistics of class means: neural collapse and nearest-mean classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.numerics.geometry.distances import in_range

__all__ = ["ClassGeometry", "class_geometry", "self_duality"]

# Eigenvalues of Sigma_B below this share of the largest are rounding, and are not inverted.
PINV_CUTOFF = 1e-10


@dataclass(frozen=True)
class ClassGeometry:
    """NC1, the two parts of NC2 (dimensionless), and the class of the mean nearest to each row, shape (N,)."""

    nc1: float
    equinorm: float
    equiangle: float
    nearest: torch.Tensor


def class_geometry(points: torch.Tensor, labels: torch.Tensor, classes: int) -> ClassGeometry:
    """Return neural-collapse statistics of the class means.

    mu_c are the class means, mu_G their unweighted mean, Sigma_B the mean over classes of the outer products of
    mu_c - mu_G, Sigma_W the mean over classes of the within-class covariance with divisor n_c.

    Args:
        points: Shape (n, d), finite, float64.
        labels: Class of each row, 0 .. classes - 1, every one present, shape (n,).
        classes: C >= 2.

    Returns:
        NC1 = tr(Sigma_W pinv(Sigma_B)) / C, equinorm = std / mean of ||mu_c - mu_G||, equiangle = mean over pairs of
        |cos + 1/(C-1)|, all 0 for a simplex without spread, NaN where the class means coincide; nearest class.

    Source:
        Papyan, Han, Donoho 2020, arXiv 2008.08186, section 2.
    """
    points, member, mean, offset = _class_means(points, labels, classes)
    # Only the directions of Sigma_B matter, at most C - 1: project on them and never form a D x D matrix.
    _, sigma, directions = torch.linalg.svd(offset / classes**0.5, full_matrices=False)
    sigma, directions = sigma[: classes - 1], directions[: classes - 1]
    kept = sigma.square() > PINV_CUTOFF * sigma[0].square()
    spread = (points - mean[labels]) @ directions[kept].mT
    within = (member @ spread.square()).mean(0)
    nc1 = float((within / sigma[kept].square()).sum()) / classes if bool(kept.any()) else float("nan")
    length = offset.square().sum(1).sqrt()
    cosine = (offset @ offset.mT) / (length.unsqueeze(1) * length)
    off_diagonal = ~torch.eye(classes, dtype=torch.bool, device=points.device)
    equiangle = float((cosine[off_diagonal] + 1.0 / (classes - 1)).abs().mean())
    equinorm = float(length.std(correction=0) / length.mean())
    distance = torch.cdist(points, mean, compute_mode="donot_use_mm_for_euclid_dist")
    own = distance.gather(1, labels.unsqueeze(1)).squeeze(1)
    # A tie with the mean of the row's own class is no error.
    nearest = torch.where(own <= distance.amin(1), labels, distance.argmin(1))
    return ClassGeometry(nc1, equinorm, equiangle, nearest)


def self_duality(points: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> float:
    """Return NC3: the distance of the last layer's weight from the centred class means of its input, up to scale.

    Args:
        points: What feeds the layer, shape (n, d), finite, float64.
        labels: Class of each row, 0 .. C - 1, every one present, shape (n,).
        weight: Row c makes the score of class c, shape (C, d), float64.

    Returns:
        || W / ||W||_F - M / ||M||_F ||_F with rows mu_c - mu_G of M: 0 where one is a multiple of the other, 2 where it
        is a negative one. NaN where the class means coincide, or the weight is zero or not finite.

    Source:
        Papyan, Han, Donoho 2020, arXiv 2008.08186, section 2.
    """
    offset = _class_means(points, labels, len(weight))[3]
    weight = weight / weight.abs().max()
    return float(
        torch.linalg.vector_norm(weight / weight.square().sum().sqrt() - offset / offset.square().sum().sqrt())
    )


def _class_means(
    points: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return centred points, the matrix that averages rows by class (classes, N), class means, and centred means."""
    points, _ = in_range(points)
    # Class means that differ by less than this coincide: NC1 would be the inverse of rounding.
    rounding = 1e-12 * points.abs().amax(0)
    # Centre first, as a common offset would cost digits.
    points = points - points.mean(0)
    member = torch.zeros(classes, len(points), dtype=points.dtype, device=points.device)
    member[labels, torch.arange(len(points), device=points.device)] = 1.0
    member /= member.sum(1, keepdim=True)
    mean = member @ points
    offset = mean - mean.mean(0)
    return points, member, mean, torch.where(offset.abs().amax(0) > rounding, offset, 0.0)
