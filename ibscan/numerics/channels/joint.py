"""The density of a draw under all inputs, ln p(t, y), by importance-weighted pairs of an input and a path.

p(t, y) = sum_j W[j, y] E_z N(t; S_j(z), I). A pair (j, z) has weight W[j, y] N(t; S_j(z), I) N(z; 0, I) / q(j, z | t),
with q from linearised passes: a few dozen pairs a draw find the inputs in reach, however many they are. The bounds are
those of one input's paths (`paths`): the pair that made t is a draw from p(j, z | t, y).
"""

from __future__ import annotations

import math

import torch

from ibscan.numerics.channels.pair_laws import ByLines, BySteps, ByWeight, Inputs, PairLaw
from ibscan.numerics.channels.paths import GAUSS_NEWTON, PRIOR_SHARE, Both, Passes, normals

__all__ = ["MOST_UNITS", "joint_densities"]

# Quadratic forms of all inputs at a draw are one matrix product, which pays up to this width.
MOST_UNITS = 12
# Likely inputs whose passes are linearised anew for each draw, and the share of pairs that are theirs.
CANDIDATES, FEW, STEP_SHARE = 8, 2, 0.4


def joint_densities(
    passes: Passes,
    inputs: Inputs,
    points: torch.Tensor,
    owner: torch.Tensor,
    made: torch.Tensor,
    fresh_own: torch.Tensor,
    count: int,
    generator: torch.Generator,
    *,
    thorough: bool = True,
) -> Both:
    """Return ln p(t, y) of draws from above and below, by `count` weighted pairs of an input and a path.

    Each law has a fixed number of pairs, the k-th of them from the k-th part of its distribution function, so that
    pairs spread over the inputs in reach; a pair's weight is by the whole mixture. The pair that made t takes the place
    of one of a law, with the probability that it came from that law, in that law's part that is its input's.

    Args:
        passes: Noisy passes, in units of the noise.
        inputs: All inputs.
        points: t, shape (q, d).
        owner: Index of the input that made each t, shape (q,).
        made: The path that made it, shape (q, m).
        fresh_own: ln p(t|owner) from below, of more paths; takes the place of the owner's pairs in the lower estimate.
        count: K >= 2, pairs a draw.
        generator: Of the normals.
        thorough: Whether to linearise many likely inputs anew by several steps; else few, by none.

    Returns:
        ln p(t, y) + (d/2) ln 2 pi, shape (q, classes).

    Source:
        As in `path_densities`; why a pair may come from a part of the distribution: the guide, methods.md, section 4.
    """
    rows, width = points.shape
    shares = _numbers(count)
    laws = _laws(passes, inputs, points, shares, thorough=thorough)
    drawn = []
    for law, number in zip(laws, shares, strict=False):
        part = torch.arange(number, dtype=points.dtype, device=points.device)
        place = (part + _uniforms(generator, points, rows, number)) / number
        z, noise = (normals(generator, points, rows, number, size) for size in (passes.units, width))
        drawn.append(law.pairs(points, place, z, noise))
    chosen = torch.cat([one for one, _ in drawn] + [owner.unsqueeze(1)], 1)
    z = torch.cat([one for _, one in drawn] + [made.unsqueeze(1)], 1)
    passed = passes.values(chosen.flatten(), z.flatten(0, 1).unsqueeze(1)).view(rows, count + 1, width)
    kernel = -0.5 * (points.unsqueeze(1) - passed).square_().sum(-1)
    of_laws = torch.stack(
        [law.log_ratio(points, chosen, z) + math.log(n / count) for law, n in zip(laws, shares, strict=False)], -1
    )
    weights, chosen = (kernel - of_laws.logsumexp(-1)).split((count, 1), 1), chosen[:, :-1]
    at = _exchanged(laws, shares, points, owner, made, of_laws[:, -1].softmax(-1), generator)
    own = _by_class(weights[0].scatter(1, at, weights[1]), chosen.scatter(1, at, owner.unsqueeze(1)), inputs.weights)
    others = weights[0].masked_fill(chosen == owner.unsqueeze(1), -torch.inf)
    own_part = fresh_own.unsqueeze(1) + inputs.weights[owner].log()
    return Both(own, torch.logaddexp(_by_class(others, chosen, inputs.weights), own_part))


def _laws(
    passes: Passes, inputs: Inputs, points: torch.Tensor, shares: tuple[int, ...], *, thorough: bool
) -> list[PairLaw]:
    """Return the laws of pairs, that by steps only if it has a share."""
    log_shares = inputs.log_shares(points)
    steps: list[PairLaw] = []
    if shares[2]:
        few, number = (CANDIDATES, GAUSS_NEWTON) if thorough else (FEW, 0)
        steps = [BySteps.of(passes, inputs, points, log_shares, few, number)]
    # Last, as it overwrites the shares.
    return [ByWeight.of(inputs), ByLines.of(inputs, log_shares), *steps]


def _uniforms(generator: torch.Generator, like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def _numbers(count: int) -> tuple[int, int, int]:
    """Return how many pairs are by weight, by lines and by steps.

    Example:
        >>> _numbers(16), _numbers(2)
        ((3, 7, 6), (1, 1, 0))
    """
    prior = max(1, round(PRIOR_SHARE * count))
    steps = round(STEP_SHARE * count) if count >= 4 else 0
    return prior, count - prior - steps, steps


def _exchanged(
    laws: list[PairLaw],
    shares: tuple[int, ...],
    points: torch.Tensor,
    owner: torch.Tensor,
    made: torch.Tensor,
    likely: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return which pair the one that made t takes the place of, (q, 1), by the probability of each law, (q, laws)."""
    draw = _uniforms(generator, points, len(points), 3)
    which = (likely.cumsum(-1) < draw[:, :1]).sum(-1).clamp_(max=len(laws) - 1)
    places = []
    for k, (law, number) in enumerate(zip(laws, shares, strict=False)):
        place = law.place(points, owner, made, draw[:, 1:])
        places.append(sum(shares[:k]) + (place * number).long().clamp_(max=number - 1))
    return torch.stack(places, 1).gather(1, which.unsqueeze(1))


def _by_class(weights: torch.Tensor, chosen: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
    """Return ln of the mean of W[j, y] / w_j times the weights of pairs (q, K), (q, classes)."""
    top = weights.amax(1, keepdim=True).clamp(min=-1e300)
    given = (joint / joint.sum(1, keepdim=True))[chosen]
    sums = ((weights - top).exp().unsqueeze(1) @ given).squeeze(1)
    return sums.log() + top - math.log(weights.shape[1])
