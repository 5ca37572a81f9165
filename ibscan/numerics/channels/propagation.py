"""Information through a channel known only by samples (sample propagation): mixtures of Gaussians at replicas.

The density p(t|i) of the layer given input i of weight w_i is unknown. It is approximated by g_i: Gaussians of the
channel's noise at K replicas of the layer, that is, K noisy passes of the input. The marginal at a draw t of input i is
w_i g_i(t) plus the other inputs' mixtures of fewer replicas. Densities are logarithms relative to that of the replica
that made the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import mapped, tiles

__all__ = ["Budget", "Queries", "bracket_terms", "gaussian_exponents", "grouped", "others_density", "replica_sums"]

# Exponents are clamped at e^-300 of the largest, which changes no sum, and whose square is still a normal number.
LEAST_EXPONENT = -300.0
LARGEST = 1e300
# Groups of the other inputs' replicas in the jackknife.
GROUPS = 4


@dataclass(frozen=True)
class Budget:
    """How exponents are computed.

    |a|^2 + |b|^2 - 2 a.b has an error of about 1e-16 max|s|^2: it is used up to `expansion`, the ratio of max|s|^2 to
    noise^2, where exponents are right to 1e-8. A block holds at most `exponents` numbers.
    """

    expansion: float = 1e8
    exponents: int = 2**22


USUAL = Budget()


@dataclass(frozen=True)
class Queries:
    """M draws t = s + z for each of m rows, draw k at replica `own[k]`.

    `points` are t, (m, M, D), in units of the noise; `energy` (m, M) is |z|^2 / 2.
    """

    points: torch.Tensor
    energy: torch.Tensor
    own: tuple[int, ...]


def replica_sums(queries: Queries, replicas: range, values: torch.Tensor, budget: Budget = USUAL) -> torch.Tensor:
    """Return ln sum_k N(t; s_k) / N(t; s_own) over replicas k of the draw's input, without the draw's own replica.

    Args:
        queries: Draws of m rows.
        replicas: Numbers of the replicas.
        values: s_k of every row, shape (K, m, D), in units of the noise.
        budget: How exponents are computed; sums depend on it only by rounding.

    Returns:
        Shape (m, M); -inf if there is no other replica.
    """
    size = max(1, budget.exponents // queries.energy.numel())
    if len(values) > size:
        parts = [slice(k, min(k + size, len(values))) for k in range(0, len(values), size)]
        return torch.stack([replica_sums(queries, replicas[part], values[part], budget) for part in parts]).logsumexp(0)
    points, centres = queries.points, values.transpose(0, 1)
    # Centre for each input: its replicas are close together, far from the origin.
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
    """Return the logarithm of the other inputs' density by class, and the effective number of centres behind it.

    Args:
        queries: Draws of m rows.
        owner: The input of each row, shape (m,), whose replicas are left out.
        centres: s_j^r, shape (K, n, D), in units of the noise.
        weights: Joint weights W of inputs and classes, shape (n, classes).

    Returns:
        ln sum_j W[j, c] N(t; s_j^r) / N(t; s_own) averaged over replicas as in `grouped`, (m, M, V, classes); and
        (sum a)^2 / sum a^2 of the contributions a of centres, (m, M).
    """
    replicas, inputs, width = centres.shape
    flat = centres.reshape(-1, width)
    # Centre about the median: the mean follows a single far input, which would cost the others digits.
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
        # Relative to the largest of each draw, as others may be far nearer than the own replica, or farther. If there
        # is no other input the largest is -inf: clamp it, so that it can be subtracted.
        top = exponent.view(len(exponent), -1).amax(1).clamp(min=-LARGEST).view(-1, 1, 1)
        exponent = exponent.sub_(top).clamp_(min=LEAST_EXPONENT).exp_().view(-1, inputs)
        density = (exponent @ weights).view(-1, replicas, classes)
        total = density.sum((1, 2))
        found[part] = grouped(density.log_()) + top
        effective[part] = total.square() / (exponent.square_() @ shares.square()).view(-1, replicas).sum(1)

    mapped(fill, tiles(rows * draws, replicas * inputs, flat.device), flat.device)
    return found.view(rows, draws, kinds, classes), effective.view(rows, draws)


def grouped(density: torch.Tensor) -> torch.Tensor:
    """Return log means over all replicas, over half, and over all but each group: (q, K, classes) to (q, V, classes).

    The groups are interleaved, so that more replicas go to all of them.
    """
    replicas = density.shape[1]
    groups = min(GROUPS, replicas)
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
    """Return the terms whose means bracket I(X;T) and I(T;Y), with the draw's own replica in its mixture and without.

    At draws where the other inputs' few replicas may miss inputs (`unseen`), the fresh term is the smaller of two: with
    all replicas of the own input, and with only as many as each other input has.

    Args:
        others: ln sum of the K - 1 other replicas' densities over the own replica's, shape (m, M).
        count: K.
        rest: ln of the other inputs' density by class over the own replica's, shape (m, M, V, classes).
        joint: W[i, c] of each row's input, shape (m, classes).
        prior: P(Y = c), shape (classes,).
        fair: ln mean density of as many replicas of the own input as each other input has, shape (m, M).
        unseen: Where too few centres make up `rest`, shape (m, M), bool.

    Returns:
        Shape (3, 2, V, m, M): own, fresh, and fresh without regard to `unseen`; I(X;T) then I(T;Y); nats.

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
    inner, outer, cautious = found
    return torch.stack(
        (inner, torch.where(unseen.unsqueeze(-1), torch.minimum(outer, cautious), outer), outer)
    ).permute(0, 1, 4, 2, 3)


def gaussian_exponents(centres: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function (a, shift) -> shift_i - ||a_i - c_j||^2 / 2, float64.

    It is one matrix product with two more columns, a . c - |c|^2/2 + (shift - |a|^2/2), if that is right to 1e-8, else
    computed from differences.

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
