"""The density of one input's draws, ln p(t|x), by importance-weighted paths: from above and from below.

p(t|x) = E_z N(t; S(z), I) over paths z ~ N(0, I), in units of the noise. For paths from any law q(z|t) of full support
the weights N(t; S(z), I) N(z; 0, I) / q(z|t) have mean p(t|x). The logarithm of their mean is too small on average
(`fresh`); with one of them exchanged for the path that made t, which is a draw from p(z|t, x), it is too large (`own`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ibscan.numerics.channels.linearised import Linearised

__all__ = ["GAUSS_NEWTON", "STARTS", "Both", "Passes", "likeliest", "normals", "path_densities", "shared_densities"]

# Share of paths from the prior: it bounds the weights by its reciprocal times the prior's own.
PRIOR_SHARE = 0.2
# Gauss-Newton steps to the likeliest path, and from how many replicas: the noise may have moved an input between
# clusters in several ways.
GAUSS_NEWTON, STARTS = 3, 4


class Passes(Protocol):
    """Noisy passes of some inputs up to one layer, in units of the layer's noise; m normals make a pass."""

    @property
    def units(self) -> int:
        """m, standard normals of one pass."""
        ...

    @property
    def width(self) -> int:
        """d, units of the layer."""
        ...

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return S (q, K, d) of inputs (q,) at paths z (q, K, m)."""
        ...

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return S (q, d) and dS/dz (q, d, m) at paths z (q, m)."""
        ...


@dataclass(frozen=True)
class Both:
    """Logarithms of a density estimated from above (`own`) and from below (`fresh`), in expectation."""

    own: torch.Tensor
    fresh: torch.Tensor


def normals(generator: torch.Generator, like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return standard normals of a shape, made where `like` lives and of its kind."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def path_densities(
    passes: Passes,
    inputs: torch.Tensor,
    points: torch.Tensor,
    made: torch.Tensor,
    replicas: torch.Tensor,
    count: int,
    generator: torch.Generator,
    *,
    thorough: bool = True,
) -> tuple[Both, torch.Tensor]:
    """Return ln p(t|x) of draws from above and below, by `count` weighted paths each.

    The law of the paths is a mixture: the prior, and the paths given t where passes are linear about the path without
    noise, or about the likeliest path that Gauss-Newton steps find from the replica, of a part of them, whose pass is
    nearest to t. Each law has a fixed number of paths, and a path's weight is by the whole mixture (the balance
    heuristic). The path that made t takes the place of one of each law in turn, with the probability that it came from
    that law.

    Args:
        passes: Noisy passes, in units of the noise.
        inputs: Of r rows, shape (r,).
        points: t of M draws of each row, shape (r, M, d).
        made: The path that made each, shape (r, M, m).
        replicas: Paths from the prior, independent of those that made t, to look for a nearby one, shape (r, R, m).
        count: K >= 2, paths a draw.
        generator: Of the normals.
        thorough: Whether to start from several replicas, and take several steps; else from one, and take one.

    Returns:
        ln p(t|x) + (d/2) ln 2 pi, shape (r, M); and the passes of the replicas, (r, R, d).

    Source:
        Burda et al. 2016 (below); Grosse et al. 2015, Sobolev and Vetrov 2019 (above); Veach and Guibas 1995 (the
        balance heuristic); why both hold for fixed numbers of paths: the guide, methods.md, section 4.
    """
    rows, draws, width = points.shape
    seen = passes.values(inputs, replicas)
    each = inputs.repeat_interleave(draws)
    t, z0 = points.reshape(-1, width), made.reshape(-1, passes.units)
    none = torch.zeros(rows, passes.units, dtype=t.dtype, device=t.device)
    clean = Linearised.of(*passes.linearised(inputs, none), none)
    laws = [clean.taken(torch.arange(rows, device=t.device).repeat_interleave(draws))]
    starts, steps = (STARTS, GAUSS_NEWTON) if thorough else (1, 1)
    for some, passed in zip(replicas.chunk(starts, 1), seen.chunk(starts, 1), strict=True):
        nearest = torch.cdist(points, passed, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        path = some.gather(1, nearest.unsqueeze(-1).expand(-1, -1, passes.units)).flatten(0, 1)
        laws.append(likeliest(passes, each, t, path, steps))
    found = mixture_density(passes, each, t, z0, laws, count, generator)
    return Both(found.own.view(rows, draws), found.fresh.view(rows, draws)), seen


def likeliest(passes: Passes, inputs: torch.Tensor, points: torch.Tensor, path: torch.Tensor, steps: int) -> Linearised:
    """Linearise inputs (q,) about their likeliest paths given t (q, d), by Gauss-Newton steps from paths (q, m)."""
    for _ in range(steps):
        path = Linearised.of(*passes.linearised(inputs, path), path).mean_path(points)
    return Linearised.of(*passes.linearised(inputs, path), path)


def mixture_density(
    passes: Passes,
    inputs: torch.Tensor,
    points: torch.Tensor,
    made: torch.Tensor,
    laws: Sequence[Linearised],
    count: int,
    generator: torch.Generator,
) -> Both:
    """Return `path_densities` of draws t (q, d) of inputs (q,), given the laws of their paths beside the prior."""
    shares = path_counts(count, len(laws))
    rows, width = points.shape

    paths = [normals(generator, points, rows, shares[0], passes.units)]
    for law, number in zip(laws, shares[1:], strict=True):
        if number:
            z, noise = (normals(generator, points, rows, number, size) for size in (passes.units, width))
            paths.append(law.paths(points, z, noise))
    z = torch.cat((*paths, made.unsqueeze(1)), 1)
    kernel = -0.5 * (points.unsqueeze(1) - passes.values(inputs, z)).square_().sum(-1)
    # ln of each law's share times its density over the prior's, (q, K + 1, laws).
    terms = [torch.full_like(kernel, math.log(shares[0] / count))]
    for law, number in zip(laws, shares[1:], strict=True):
        if number:
            # Not a number where both are 0, far outside the range of float64.
            ratio = (law.log_kernel(points, z) - law.log_density(points).unsqueeze(1)).nan_to_num_(
                0.0, None, -torch.inf
            )
            terms.append(ratio + math.log(number / count))
    stacked = torch.stack(terms, -1)
    mixture = stacked.logsumexp(-1)
    weights = kernel - mixture
    fresh = weights[:, :-1].logsumexp(1) - math.log(count)
    # Where the path that made t stands: the last place of a law, with the probability that it is of that law.
    own, place = torch.zeros_like(fresh), -1
    likely = (stacked[:, -1] - mixture[:, -1:]).exp()
    for k, number in enumerate(number for number in shares if number):
        place += number
        exchanged = weights[:, :-1].clone()
        exchanged[:, place] = weights[:, -1]
        own += likely[:, k] * (exchanged.logsumexp(1) - math.log(count))
    return Both(own, fresh)


def path_counts(count: int, laws: int) -> list[int]:
    """Return how many of `count` paths are of the prior and of each law; the last laws first, as they look at t.

    Example:
        >>> path_counts(16, 3), path_counts(2, 3), path_counts(5, 0)
        ([3, 4, 4, 5], [1, 0, 0, 1], [5])
    """
    prior = count if not laws else max(1, round(PRIOR_SHARE * count))
    left = count - prior
    return [prior, *((left + k) // laws for k in range(laws))]


def shared_densities(seen: torch.Tensor, points: torch.Tensor, energy: torch.Tensor, numbers: int = 2**22) -> Both:
    """Return ln p(t|x) of draws from above and below by replicas: paths of the prior, shared by an input's draws.

    Args:
        seen: Passes of K >= 2 replicas of every row, shape (r, K, d), in units of the noise.
        points: t of M draws of each row, which the replicas did not make, shape (r, M, d).
        energy: |t - s|^2 / 2 of the pass s that made t, shape (r, M).
        numbers: Exponents held together.

    Returns:
        ln p(t|x) + (d/2) ln 2 pi, shape (r, M).

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 3 (sample propagation).
    """
    # Centre for each input: its replicas are close together, far from the origin.
    middle = seen.mean(1, keepdim=True)
    points, seen = points - middle, seen - middle

    def kernels(part: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(points, part, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_().mul_(-0.5).logsumexp(-1)

    parts = torch.split(seen[:, :-1], max(1, numbers // max(1, energy.numel())), 1)
    others, count = torch.stack([kernels(part) for part in parts]).logsumexp(0), math.log(seen.shape[1])
    return Both(torch.logaddexp(others, -energy) - count, torch.logaddexp(others, kernels(seen[:, -1:])) - count)
