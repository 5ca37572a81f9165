"""The density of a draw under all inputs, ln p(t, y), by replicas: a few noisy passes of every input, for all draws.

p(t, y) is nearly the mean of N(t; s, I) W[j, y] over the passes s of every input j. It costs little a pass, and its
errors average where many inputs are in reach. With one of the owner's passes exchanged for the one that made t it is
too large on average, else too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ibscan.numerics.channels.mixture import LARGEST_EXPONENT, NEGLIGIBLE, Mixture, Sums
from ibscan.numerics.channels.paths import Both, shared_densities

__all__ = ["GROUPS", "Replicas", "Replicated", "replica_densities"]

# Groups in the jackknife.
GROUPS = 4
# Exponents that the owner's replicas may be below the pass that made a draw, e^-300 of which is nothing.
FARTHEST = 300.0
# Distances beyond this are all the same; exponents held together where draws are far from all.
LARGEST, EXPONENTS = 1e300, 2**22


@dataclass(frozen=True)
class Replicated:
    """ln p(t, y) by replicas, (V, q, classes), for all replicas and for all but each group of them (the jackknife).

    `crossed.fresh` takes the owner's density from elsewhere, of more paths. `paired` has as many passes of the owner as
    of every other input, and `owner` (q,) is the owner's density by these: their differences are bounds too.
    """

    crossed: Both
    paired: Both
    owner: Both


@dataclass(frozen=True)
class Replicas:
    """Passes of K replicas of n inputs, (K, n, d), in units of the noise, none of which made a draw.

    `weights` W (n, classes) are the joint weights of the inputs.
    """

    centres: torch.Tensor
    weights: torch.Tensor

    @cached_property
    def middle(self) -> torch.Tensor:
        """The median of all passes, (d,): the mean follows a single far input, which would cost the others digits."""
        return self.centres.flatten(0, 1).median(0).values

    @cached_property
    def group(self) -> torch.Tensor:
        """The group of each pass, (K, n), of at most four: of replicas, so that more of them go to all groups.

        Of single replicas groups are of inputs, whose differences then count as errors of the replicas too.
        """
        replicas, inputs = (torch.arange(size, device=self.centres.device) for size in self.centres.shape[:2])
        number = replicas.unsqueeze(1) if len(replicas) > 1 else inputs.unsqueeze(0)
        return (number % GROUPS).expand(len(replicas), len(inputs))

    @cached_property
    def sums(self) -> tuple[Sums, ...]:
        """Of each group the function (t, shift) -> sum exp(shift - |t - s|^2 / 2) W, at t less the middle."""
        found = []
        for k in range(int(self.group.max()) + 1):
            replica, owner = (self.group == k).nonzero(as_tuple=True)
            weights = self.weights[owner]
            every = torch.arange(len(weights), device=weights.device)
            mixture = Mixture(self.centres[replica, owner] - self.middle, weights, every, weights.sum(1), every[:0])
            found.append(mixture.sums(weights, 1.0))
        return tuple(found)

    @cached_property
    def averages(self) -> torch.Tensor:
        """Factors of the groups' sums in p(t, y), (V, groups): by all of them, and by all but each."""
        one_hot = self.group.unsqueeze(-1) == torch.arange(int(self.group.max()) + 1, device=self.group.device)
        size = (one_hot * self.weights.sum(1, keepdim=True)).sum((0, 1))
        kept = torch.cat((torch.ones_like(size).unsqueeze(0), 1.0 - torch.eye(len(size)).to(size)))
        kept = kept[: 1 if len(size) == 1 else None] * self.weights.sum()
        return kept / ((kept > 0).to(size) @ size).unsqueeze(1)

    def broad(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return ln of a Gaussian with twice the variances of the units, + (d/2) ln 2 pi, at points (q, d)."""
        share = self.weights.sum(1)
        mean = share @ self.centres.mean(0)
        offsets = self.centres - mean
        # Scale by the largest first, whose square may leave the range of float64.
        largest = offsets.abs().amax().clamp(min=1.0)
        spread = largest * (share @ (offsets / largest).square_().mean(0) * 2.0 + largest**-2).sqrt()
        return lambda points: -0.5 * ((points - mean) / spread).square().sum(1) - spread.log().sum()


def replica_densities(
    replicas: Replicas, points: torch.Tensor, energy: torch.Tensor, owner: torch.Tensor, fresh_own: torch.Tensor
) -> Replicated:
    """Return ln p(t, y) + (d/2) ln 2 pi of draws from above and below, by replicas of every input.

    Args:
        replicas: Of every input.
        points: t, shape (q, d).
        energy: |t - s|^2 / 2 of the pass s that made t, shape (q,).
        owner: Index of the input that made each t, shape (q,).
        fresh_own: ln p(t|owner) from below, of more paths, shape (q,).

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 3; the bounds: the guide, methods.md, section 4.
    """
    weights, seen = replicas.weights, replicas.centres.transpose(0, 1)[owner]
    exponent = -0.5 * (points.unsqueeze(1) - seen).square_().sum(-1)
    # What is left out of sums is nothing beside the owner's density, from above or from below: sums are relative to the
    # owner's nearest replica, or to the pass that made t if that is farther.
    nearest = torch.maximum(energy, -exponent.amax(1))
    shift = nearest.minimum(energy + FARTHEST)
    others = _of_others(replicas, points, exponent, owner, shift)
    # Where that is nothing, whose replicas are nearer is still to be told.
    far = ((nearest > shift) & (others.amax(2).amin(0) + shift < math.log(NEGLIGIBLE))).nonzero().squeeze(1)
    for part in far.split(max(1, EXPONENTS // replicas.group.numel())):
        others[:, part] = _of_far_others(replicas, points[part], owner[part])
    inside = weights[owner].log()
    own = shared_densities(seen, points.unsqueeze(1), energy.unsqueeze(1))
    own = Both(own.own.squeeze(1), own.fresh.squeeze(1))

    def with_owner(density: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(others, density.unsqueeze(1) + inside)

    above = with_owner(own.own)
    return Replicated(Both(above, with_owner(fresh_own)), Both(above, with_owner(own.fresh)), own)


def _of_others(
    replicas: Replicas, points: torch.Tensor, exponent: torch.Tensor, owner: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Return ln of the part of p(t, y) that is not the owner's, (V, q, classes).

    Args:
        replicas: Of every input.
        points: t, shape (q, d).
        exponent: -|t - s|^2 / 2 of the owner's replicas, shape (q, K).
        owner: Index of the input that made each t, shape (q,).
        shift: Added to exponents, so that what matters neither overflows nor vanishes, shape (q,).
    """
    kernel = (exponent + shift.unsqueeze(1)).clamp_(max=LARGEST_EXPONENT).exp_()
    group, moved, parts = replicas.group.mT[owner], points - replicas.middle, []
    for k, sums in enumerate(replicas.sums):
        mine = (kernel * (group == k)).sum(1, keepdim=True) * replicas.weights[owner]
        # Rounding of the difference is small beside the owner's part, which is added again from elsewhere.
        parts.append((sums(moved, shift) - mine).clamp_(min=0.0))
    averaged: torch.Tensor = torch.tensordot(replicas.averages, torch.stack(parts), 1)
    return averaged.log_() - shift.unsqueeze(1)


def _of_far_others(replicas: Replicas, points: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Return `_of_others`, relative to the nearest of the others: terms below e^-300 of that count as e^-300."""
    count, inputs, width = replicas.centres.shape
    flat = replicas.centres.reshape(-1, width)
    exponent = torch.cdist(points, flat, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(-0.5)
    exponent = exponent.view(-1, count, inputs)
    exponent.scatter_(2, owner.view(-1, 1, 1).expand(-1, count, 1), -torch.inf)
    # Finite, so that it can be taken from itself where every pass is farther than numbers go.
    top = exponent.flatten(1).amax(1).clamp_(min=-LARGEST).view(-1, 1, 1)
    kernel = exponent.sub_(top).clamp_(min=-FARTHEST).exp_()
    groups = range(len(replicas.averages[0]))
    parts = torch.stack([(kernel * (replicas.group == k)).sum(1) @ replicas.weights for k in groups])
    averaged: torch.Tensor = torch.tensordot(replicas.averages, parts, 1)
    return averaged.log_() + top.view(-1, 1)
