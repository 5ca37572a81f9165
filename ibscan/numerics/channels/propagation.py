"""Information through a channel known only by its samples: mixtures of replicas, queried from inside and outside.

Input i of weight w_i reaches the layer as p(t|i), which is unknown; g_i replaces it: Gaussians of the channel's noise
at K replicas of the layer, that is, K noisy passes of one input. The marginal at a draw t of input i is w_i g_i(t) plus
the other inputs' mixtures of fewer replicas. Densities are kept as logarithms relative to that of the replica that made
the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import mapped, tiles

__all__ = ["Budget", "Queries", "bracket_terms", "gaussian_exponents", "grouped", "others_density", "replica_sums"]

# Exponentials below e^-300 of the largest, whose squares are still normal numbers, change no sum.
LEAST_EXPONENT = -300.0
LARGEST = 1e300
# Groups of the other inputs' replicas, for a jackknife over them.
GROUPS = 4


@dataclass(frozen=True)
class Budget:
    """How exponents are made.

    |a|^2 + |b|^2 - 2 a.b loses about 1e-16 max|s|^2: up to `expansion`, the ratio of that to noise^2, the exponent is
    right to 1e-8. A block of draws and replicas may hold so many `exponents`.
    """

    expansion: float = 1e8
    exponents: int = 2**22


USUAL = Budget()


@dataclass(frozen=True)
class Queries:
    """Draws t = s + z of m rows, M each, made by replica `own[k]` in draw k.

    `points` (m, M, D) and what they are compared with are in units of the noise; `energy` (m, M) is |z|^2 / 2.
    """

    points: torch.Tensor
    energy: torch.Tensor
    own: tuple[int, ...]


def replica_sums(queries: Queries, replicas: range, values: torch.Tensor, budget: Budget = USUAL) -> torch.Tensor:
    """Return ln sum_k N(t; s_k) / N(t; s_own) over the replicas of the draw's own input, its own one left out.

    Args:
        queries: Draws of m rows.
        replicas: Which replicas these are.
        values: s_k of every row, shape (R, m, D), in units of the noise.
        budget: How exponents are made; the sums depend on it by rounding alone.

    Returns:
        Shape (m, M); -inf where no other replica is among them.
    """
    size = max(1, budget.exponents // queries.energy.numel())
    if len(values) > size:
        parts = [slice(k, min(k + size, len(values))) for k in range(0, len(values), size)]
        return torch.stack([replica_sums(queries, replicas[part], values[part], budget) for part in parts]).logsumexp(0)
    points, centres = queries.points, values.transpose(0, 1)
    # Centred per input: replicas of one input lie together, far from the origin.
    middle = centres.mean(1, keepdim=True)
    points, centres = points - middle, centres - middle
    if float(centres.square().sum(-1).max()) > budget.expansion:
        distance = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        exponent = distance.square_().mul_(-0.5)
    else:
        rest = -0.5 * points.square().sum(-1, keepdim=True)
        exponent = torch.baddbmm(rest - 0.5 * centres.square().sum(-1).unsqueeze(1), points, centres.mT)
    exponent += queries.energy.unsqueeze(-1)
    for draw, own in enumerate(queries.own):
        if own in replicas:
            exponent[:, draw, own - replicas.start] = -torch.inf
    return torch.logsumexp(exponent, -1)


def others_density(
    queries: Queries, owner: torch.Tensor, centres: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithm of the other inputs' density by class, and how many of their replicas make it.

    Args:
        queries: Draws of m rows.
        owner: The input each row is, shape (m,): its own replicas are left out.
        centres: s_j^r, shape (R, n, D), in units of the noise.
        weights: Joint weights of input and class, shape (n, C).

    Returns:
        ln of sum_j W[j, c] N(t; s_j^r) / N(t; s_own) by groups of replicas as `grouped` has them, (m, M, V, C); and the
        effective number of centres, (sum a)^2 / sum a^2 of their shares a, (m, M).
    """
    replicas, inputs, width = centres.shape
    flat = centres.reshape(-1, width)
    # Not about the mean, which follows one input that is far away and costs the others their digits.
    middle = flat.median(0).values
    exponents = gaussian_exponents(flat - middle)
    rows, draws = queries.energy.shape
    points = (queries.points - middle).reshape(-1, width)
    shift, own = queries.energy.reshape(-1), owner.repeat_interleave(draws)
    shares = weights.sum(1)
    kinds, classes = min(GROUPS, replicas) + 2, weights.shape[1]
    found = torch.empty(rows * draws, kinds, classes, dtype=flat.dtype, device=flat.device)
    effective = torch.empty(rows * draws, dtype=flat.dtype, device=flat.device)

    def fill(part: slice) -> None:
        exponent = exponents(points[part], shift[part]).view(-1, replicas, inputs)
        exponent.scatter_(2, own[part].view(-1, 1, 1).expand(-1, replicas, 1), -torch.inf)
        # By the largest of each draw: others may be nearer than the own replica, or farther by any factor. Where there
        # is no other input the largest is -inf, and nothing is subtracted from it.
        top = exponent.view(len(exponent), -1).amax(1).clamp(min=-LARGEST).view(-1, 1, 1)
        exponent = exponent.sub_(top).clamp_(min=LEAST_EXPONENT).exp_().view(-1, inputs)
        density = (exponent @ weights).view(-1, replicas, classes)
        total = density.sum((1, 2))
        found[part] = grouped(density.log_()) + top
        effective[part] = total.square() / (exponent.square_() @ shares.square()).view(-1, replicas).sum(1)

    mapped(fill, tiles(rows * draws, replicas * inputs, flat.device), flat.device)
    return found.view(rows, draws, kinds, classes), effective.view(rows, draws)


def grouped(density: torch.Tensor) -> torch.Tensor:
    """Return means over all replicas, over half, and over all but one group; logarithms, (q, R, C) to (q, V, C)."""
    replicas = density.shape[1]
    groups = min(GROUPS, replicas)
    # Interleaved, so that adding replicas changes every group alike.
    means = torch.stack([_log_mean(density[:, group::groups]) for group in range(groups)], 1)
    left_out = [_log_mean(means[:, [k for k in range(groups) if k != group]]) for group in range(groups)]
    return torch.stack([_log_mean(means), _log_mean(means[:, : groups // 2]), *left_out], 1)


def _log_mean(density: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(density, 1) - math.log(density.shape[1])


def bracket_terms(
    others: torch.Tensor,
    count: int,
    rest: torch.Tensor,
    joint: torch.Tensor,
    prior: torch.Tensor,
    fair: torch.Tensor,
    unseen: torch.Tensor,
) -> torch.Tensor:
    """Return the terms whose means bracket I(X;T) and I(T;Y): the draw's own replica in its mixture, and left out.

    The fresh term of a draw at which the other inputs' few replicas may be blind is the smaller of two: with the own
    input seen by all its replicas, and by as few as the others are seen by.

    Args:
        others: ln sum of the K - 1 other replicas' densities over the own one's, shape (m, M).
        count: K.
        rest: ln of the other inputs' density by class, over the own one's, shape (m, M, V, C) for V marginals.
        joint: W[i, c] of each row's input, shape (m, C).
        prior: P(Y = c), shape (C,).
        fair: ln mean density of as many replicas of the own input as each other one has, shape (m, M).
        unseen: Where too few centres make up the rest, shape (m, M), bool.

    Returns:
        Shape (3, 2, V, m, M): own, fresh, and fresh as if nothing were unseen; I(X;T) then I(T;Y); nats.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 3; the bracket as in the guide, methods.md, section 4.
    """
    own = torch.logaddexp(others, torch.zeros_like(others)) - math.log(count)
    fresh = others - math.log(count - 1)
    share = joint.sum(1, keepdim=True)
    given, inside = (joint / share)[:, None, None, :], joint.log()[:, None, None, :]
    found = []
    for density in (own, fresh, fair):
        density = density[..., None, None]
        by_class = torch.logaddexp(density + inside, rest)
        total = by_class.logsumexp(-1)
        xt = density[..., 0] - total
        ratio = by_class - prior.log() - total.unsqueeze(-1)
        ty = torch.where(given > 0, given * ratio, 0.0).sum(-1)
        found.append(torch.stack((xt, ty)))
    inner, outer, blind = found
    return torch.stack((inner, torch.where(unseen.unsqueeze(-1), torch.minimum(outer, blind), outer), outer)).permute(
        0, 1, 4, 2, 3
    )


def gaussian_exponents(centres: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function (a, shift) -> shift_i - ||a_i - c_j||^2 / 2, float64.

    One matrix product with two columns more, a . c - |c|^2/2 + (shift - |a|^2/2), where that is right to 1e-8; from
    differences elsewhere.

    Args:
        centres: c, shape (n, d), float64, centred, in units of the noise.

    Returns:
        A function of a (m, d) and shift (m,) or (1,), giving shape (m, n).
    """
    squared = centres.square().sum(1, keepdim=True)
    if float(squared.max()) > USUAL.expansion:

        def from_differences(a: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            distance = torch.cdist(a, centres, compute_mode="donot_use_mm_for_euclid_dist")
            return distance.square_().mul_(-0.5).add_(shift.unsqueeze(1))

        return from_differences
    right = torch.cat((centres, -0.5 * squared, torch.ones_like(squared)), 1).mT.contiguous()

    def from_product(a: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        rest = shift.unsqueeze(1) - 0.5 * a.square().sum(1, keepdim=True)
        return torch.cat((a, torch.ones_like(rest), rest), 1) @ right

    return from_product
