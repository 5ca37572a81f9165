"""Information through a channel known only by its samples: mixtures of replicas, queried from inside and outside.

Input i of weight w_i reaches the layer as p(t|i), which is unknown; g_i replaces it: Gaussians of the channel's noise
at K replicas of the layer, that is, K noisy passes of one input. The marginal at a draw t of input i is w_i g_i(t) plus
the other inputs' mixtures of fewer replicas. Densities are kept as logarithms relative to that of the replica that made
the draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ibscan.numerics.mixture import gaussian_exponents
from ibscan.numerics.tiling import mapped, tiles

__all__ = ["Queries", "bracket_terms", "others_density", "replica_sums"]

# Between e^-700 and e^700 every number is a normal one: nothing overflows, nothing takes the slow path of subnormals.
LARGEST_EXPONENT = 700.0
# |a|^2 + |b|^2 - 2 a.b loses about 1e-16 max|s|^2; up to this ratio to noise^2 the exponent is right to 1e-8.
EXPANSION_LIMIT = 1e8
# Numbers one block of draws and replicas may hold.
EXPONENTS = 2**22


@dataclass(frozen=True)
class Queries:
    """Draws t = s + z of m rows, M each, made by replica `own[k]` in draw k.

    `points` (m, M, D) and what they are compared with are in units of the noise; `energy` (m, M) is |z|^2 / 2.
    """

    points: torch.Tensor
    energy: torch.Tensor
    own: tuple[int, ...]


def replica_sums(queries: Queries, replicas: range, values: torch.Tensor) -> torch.Tensor:
    """Return ln sum_k N(t; s_k) / N(t; s_own) over the replicas of the draw's own input, its own one left out.

    Args:
        queries: Draws of m rows.
        replicas: Which replicas these are.
        values: s_k of every row, shape (R, m, D), in units of the noise.

    Returns:
        Shape (m, M); -inf where no other replica is among them.
    """
    size = max(1, EXPONENTS // queries.energy.numel())
    if len(values) > size:
        parts = [slice(k, min(k + size, len(values))) for k in range(0, len(values), size)]
        return torch.stack([replica_sums(queries, replicas[part], values[part]) for part in parts]).logsumexp(0)
    points, centres = queries.points, values.transpose(0, 1)
    # Centred per input: replicas of one input lie together, far from the origin.
    middle = centres.mean(1, keepdim=True)
    points, centres = points - middle, centres - middle
    if float(centres.square().sum(-1).max()) > EXPANSION_LIMIT:
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
    queries: Queries,
    reference: torch.Tensor,
    owner: torch.Tensor,
    centres: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return ln sum over the other inputs j of W[j, c] N(t; s_j^r) / N(t; s_own) for every replica index r.

    Args:
        queries: Draws of m rows.
        reference: Logarithm near the smallest density that matters beside it, shape (m, M): contributions below
            e^-700 of it are taken as that, ones above e^700 of it likewise.
        owner: The input each row is, shape (m,): its own replicas are left out.
        centres: s_j^r, shape (R, n, D), in units of the noise.
        weights: Joint weights of input and class, shape (n, C).

    Returns:
        Shape (m, M, R, C).
    """
    replicas, inputs, width = centres.shape
    flat = centres.reshape(-1, width)
    middle = flat.mean(0)
    exponents = gaussian_exponents(flat - middle)
    rows, draws = reference.shape
    points = (queries.points - middle).reshape(-1, width)
    shift, own = (queries.energy - reference).reshape(-1), owner.repeat_interleave(draws)
    found = torch.empty(rows * draws, replicas, weights.shape[1], dtype=flat.dtype, device=flat.device)

    def fill(part: slice) -> None:
        exponent = exponents(points[part], shift[part]).view(-1, replicas, inputs)
        exponent.clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp_()
        exponent[torch.arange(len(exponent), device=flat.device), :, own[part]] = 0.0
        found[part] = exponent @ weights

    mapped(fill, tiles(rows * draws, replicas * inputs, flat.device), flat.device)
    return found.log_().view(rows, draws, replicas, -1) + reference[..., None, None]


def bracket_terms(
    others: torch.Tensor, count: int, rest: torch.Tensor, joint: torch.Tensor, prior: torch.Tensor
) -> torch.Tensor:
    """Return the terms whose means bracket I(X;T) and I(T;Y): the draw's own replica in its mixture, and left out.

    Args:
        others: ln sum of the K - 1 other replicas' densities over the own one's, shape (m, M).
        count: K.
        rest: ln of the other inputs' density by class, over the own one's, shape (m, M, V, C) for V marginals.
        joint: W[i, c] of each row's input, shape (m, C).
        prior: P(Y = c), shape (C,).

    Returns:
        Shape (2, 2, V, m, M): own then fresh; I(X;T) then I(T;Y); nats.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 3; the bracket as in the README, "How the numbers are made".
    """
    own = torch.logaddexp(others, torch.zeros_like(others)) - math.log(count)
    fresh = others - math.log(count - 1)
    share = joint.sum(1, keepdim=True)
    given, inside = (joint / share)[:, None, None, :], joint.log()[:, None, None, :]
    found = []
    for density in (own, fresh):
        density = density[..., None, None]
        by_class = torch.logaddexp(density + inside, rest)
        total = by_class.logsumexp(-1)
        xt = density[..., 0] - total
        ratio = by_class - prior.log() - total.unsqueeze(-1)
        ty = torch.where(given > 0, given * ratio, 0.0).sum(-1)
        found.append(torch.stack((xt, ty)))
    return torch.stack(found).permute(0, 1, 4, 2, 3)
