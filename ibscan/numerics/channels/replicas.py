"""The density of a draw under all inputs, ln p(t, y), by replicas: a few noisy passes of every input, for all draws.

p(t, y) is nearly the mean of N(t; s, I) W[j, y] over the passes s of every input j. It costs little a pass, and its
errors average where many inputs are in reach. With one of the owner's passes exchanged for the one that made t it is
too large on average, else too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ibscan.numerics.channels.paths import Both, shared_densities
from ibscan.numerics.tiling import mapped, tiles

__all__ = ["Replicas", "Replicated", "gaussian_exponents", "replica_densities"]

# Exponents are clamped at e^-300 of the largest, which changes no sum.
LEAST_EXPONENT = -300.0
LARGEST = 1e300
# Groups of replicas in the jackknife.
GROUPS = 4
# |a|^2 + |b|^2 - 2 a.b has an error of about 1e-16 max|s|^2: it is used up to this ratio of max|s|^2 to noise^2, where
# exponents are right to 1e-8.
EXPANSION = 1e8


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
    """Passes of K replicas of every input, (K, n, d), in units of the noise, none of which made a draw."""

    centres: torch.Tensor

    @cached_property
    def middle(self) -> torch.Tensor:
        """The median of all passes, (d,): the mean follows a single far input, which would cost the others digits."""
        return self.centres.flatten(0, 1).median(0).values

    @cached_property
    def exponents(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """`gaussian_exponents` of all passes, about their middle."""
        return gaussian_exponents(self.centres.flatten(0, 1) - self.middle)

    def broad(self, share: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return ln of a Gaussian with twice the variances of the units, + (d/2) ln 2 pi, at points (q, d).

        Args:
            share: Weights of the inputs, (n,).
        """
        mean = share @ self.centres.mean(0)
        offsets = self.centres - mean
        # Scale by the largest first, whose square may leave the range of float64.
        largest = offsets.abs().amax().clamp(min=1.0)
        spread = largest * (share @ (offsets / largest).square_().mean(0) * 2.0 + largest**-2).sqrt()
        return lambda points: -0.5 * ((points - mean) / spread).square().sum(1) - spread.log().sum()


def replica_densities(
    replicas: Replicas,
    weights: torch.Tensor,
    points: torch.Tensor,
    energy: torch.Tensor,
    owner: torch.Tensor,
    fresh_own: torch.Tensor,
) -> Replicated:
    """Return ln p(t, y) + (d/2) ln 2 pi of draws from above and below, by replicas of every input.

    Args:
        replicas: Of every input.
        weights: Joint weights W of inputs and classes, (n, classes).
        points: t, shape (q, d).
        energy: |t - s|^2 / 2 of the pass s that made t, shape (q,).
        owner: Index of the input that made each t, shape (q,).
        fresh_own: ln p(t|owner) from below, of more paths, shape (q,).

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 3; the bounds: the guide, methods.md, section 4.
    """
    count, inputs, _ = replicas.centres.shape
    moved = points - replicas.middle
    groups = min(GROUPS, count)
    kinds = 1 + groups if groups > 1 else 1
    others = points.new_empty(kinds, len(points), weights.shape[1])
    # Interleaved, so that more replicas go to all groups.
    group = torch.arange(count, device=points.device) % groups
    members = torch.stack([torch.ones_like(group), *(group != k for k in range(kinds - 1))]).to(points.dtype)
    members /= members.sum(1, keepdim=True)

    def fill(part: slice) -> None:
        exponent = replicas.exponents(moved[part]).view(-1, count, inputs)
        exponent.scatter_(2, owner[part].view(-1, 1, 1).expand(-1, count, 1), -torch.inf)
        # Relative to the largest of each draw. If there is no other input it is -inf: clamp it before subtracting.
        top = exponent.view(len(exponent), -1).amax(1).clamp(min=-LARGEST).view(-1, 1, 1)
        exponent = exponent.sub_(top).clamp_(min=LEAST_EXPONENT).exp_().view(-1, inputs)
        density = (exponent @ weights).view(-1, count, weights.shape[1])
        others[:, part] = ((members @ density).log_() + top).transpose(0, 1)

    mapped(fill, tiles(len(points), count * inputs, points.device), points.device)
    inside = weights[owner].log()
    own = shared_densities(replicas.centres.transpose(0, 1)[owner], points.unsqueeze(1), energy.unsqueeze(1))
    own = Both(own.own.squeeze(1), own.fresh.squeeze(1))

    def with_owner(density: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(others, density.unsqueeze(1) + inside)

    above = with_owner(own.own)
    return Replicated(Both(above, with_owner(fresh_own)), Both(above, with_owner(own.fresh)), own)


def gaussian_exponents(centres: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function a -> -||a_i - c_j||^2 / 2, float64.

    It is one matrix product with two more columns, a . c - |c|^2/2 - |a|^2/2, if that is right to 1e-8, else computed
    from differences.

    Args:
        centres: c, shape (n, d), float64, centred, in units of the noise.

    Returns:
        A function of a (m, d), giving shape (m, n).
    """
    squared = centres.square().sum(1, keepdim=True)
    if float(squared.max()) > EXPANSION:

        def from_differences(a: torch.Tensor) -> torch.Tensor:
            return torch.cdist(a, centres, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(-0.5)

        return from_differences
    right = torch.cat((centres, -0.5 * squared, torch.ones_like(squared)), 1).mT.contiguous()

    def from_product(a: torch.Tensor) -> torch.Tensor:
        rest = -0.5 * a.square().sum(1, keepdim=True)
        return torch.cat((a, torch.ones_like(rest), rest), 1) @ right

    return from_product
