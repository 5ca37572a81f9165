"""Control variates of wide layers: what a Gaussian of each centre's neighbours says of draws about it."""

from __future__ import annotations

import torch

from ibscan.numerics.channels.controls import gaussian, near_enough
from ibscan.numerics.channels.mixture import Mixture

__all__ = ["NeighbourControls"]

# Of the identity, as a share of a covariance's trace, so that its factor exists: far above rounding.
RIDGE = 1e-12


class NeighbourControls:
    """Controls of draws t = s + noise z at centres s, in units of the noise.

    ln N(t; mean, covariance + I), up to its sign, less its mean over z, mean and covariance being of the group of
    neighbours that the centre is in. Its quadratic and its linear part count on their own: a group may end in the midst
    of a cluster, where a Gaussian says too much of one and too little of the other.
    """

    def __init__(self, mixture: Mixture, noise: float, owner: torch.Tensor) -> None:
        """Look at the neighbours of the centres `owner` (m,) that draws will come from, at a noise > 0."""
        order, real = mixture.groups.order, mixture.groups.real
        # One centre far away would be most of its group's covariance, whatever its neighbours are like.
        near = near_enough(torch.linalg.vector_norm(mixture.centres, dim=1))
        share = torch.where(real & near[order], mixture.share[order], 0.0).unsqueeze(1)
        # Groups may hold fillers or far centres alone: they have no share, and their controls are not used.
        share /= share.sum(2, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        places = torch.where(near.unsqueeze(1), mixture.centres, 0.0)[order].div_(noise)
        places -= share @ places
        covariance = places.mT @ (places * share.mT)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal += 1.0 + RIDGE * diagonal.sum(1, keepdim=True)
        self._precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        # Of every centre its place among all places of groups; of draws, group by group, their numbers.
        place = torch.empty(len(mixture.centres), dtype=torch.int64, device=owner.device)
        place[order[real]] = real.flatten().nonzero().squeeze(1)
        places_of, size = place[owner], order.shape[1]
        by_group = places_of.argsort()
        counts = torch.bincount(places_of // size, minlength=len(order)).tolist()
        self._parts = torch.split(by_group, counts)
        self._apart = torch.split(places.flatten(0, 1)[places_of[by_group]], counts)
        self._near = near[owner].unsqueeze(1)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Return the controls of standard normals z (draws, m, d), shape (draws, m, 2)."""
        found = z.new_empty(*z.shape[:2], 2)
        for part, apart, precision in zip(self._parts, self._apart, self._precision, strict=True):
            if len(part):
                found[:, part] = torch.stack(gaussian(z.index_select(1, part), apart, precision), -1)
        return found.mul_(self._near)
