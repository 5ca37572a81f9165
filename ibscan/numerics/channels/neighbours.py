"""Control variates for wide layers, from a Gaussian fitted to the neighbours of each centre."""

from __future__ import annotations

import torch

from ibscan.numerics.channels.controls import gaussian, near_enough
from ibscan.numerics.channels.mixture import Mixture

__all__ = ["NeighbourControls"]

# Added to a covariance, relative to its trace, so that its Cholesky factor exists.
RIDGE = 1e-12


class NeighbourControls:
    """Controls of draws t = s + noise z at centres s, in units of the noise.

    -ln N(t; mean, covariance + I) less its mean over z, with mean and covariance of the group of neighbours that the
    centre is in. Its quadratic and linear parts are two controls, as a group may end inside a cluster, where they need
    different coefficients.
    """

    def __init__(self, mixture: Mixture, noise: float, owner: torch.Tensor) -> None:
        """Fit Gaussians to the groups of the centres `owner` (m,) that draws will come from, at a noise > 0."""
        order, real = mixture.groups.order, mixture.groups.real
        # A far centre would dominate its group's covariance.
        near = near_enough(torch.linalg.vector_norm(mixture.centres, dim=1))
        share = torch.where(real & near[order], mixture.share[order], 0.0).unsqueeze(1)
        # Groups of only padding or far centres have no weight, and their controls are not used.
        share /= share.sum(2, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        offsets = torch.where(near.unsqueeze(1), mixture.centres, 0.0)[order].div_(noise)
        offsets -= share @ offsets
        covariance = offsets.mT @ (offsets * share.mT)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal += 1.0 + RIDGE * diagonal.sum(1, keepdim=True)
        self._precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        # slot[i]: flat index of centre i in the (group, slot) table.
        slot = torch.empty(len(mixture.centres), dtype=torch.int64, device=owner.device)
        slot[order[real]] = real.flatten().nonzero().squeeze(1)
        slots, size = slot[owner], order.shape[1]
        by_group = slots.argsort()
        counts = torch.bincount(slots // size, minlength=len(order)).tolist()
        self._parts = torch.split(by_group, counts)
        self._offsets = torch.split(offsets.flatten(0, 1)[slots[by_group]], counts)
        self._is_near = near[owner].unsqueeze(1)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Return the controls of standard normals z (draws, m, d), shape (draws, m, 2)."""
        found = z.new_empty(*z.shape[:2], 2)
        for part, offset, precision in zip(self._parts, self._offsets, self._precision, strict=True):
            if len(part):
                found[:, part] = torch.stack(gaussian(z.index_select(1, part), offset, precision), -1)
        return found.mul_(self._is_near)
