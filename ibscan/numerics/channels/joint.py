"""The density of a draw under all inputs, ln p(t, y), by importance-weighted pairs of an input and a path.

p(t, y) = sum_j W[j, y] E_z N(t; S_j(z), I). A pair (j, z) has weight W[j, y] N(t; S_j(z), I) N(z; 0, I) / q(j, z | t),
with q from the inputs' linearised Gaussians at t: a few dozen pairs a draw find those in reach, however many they are.
The bounds are those of one input's paths (`paths`): the pair that made t is a draw from p(j, z | t, y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.linearised import Linearised
from ibscan.numerics.channels.paths import PRIOR_SHARE, Both, Passes

__all__ = ["MOST_UNITS", "Inputs", "joint_densities"]

# Quadratic forms of all inputs at a draw are one matrix product, which pays up to this width.
MOST_UNITS = 12
# Squared distances from the middle, in squared noises, up to which the forms are right to 1e-6.
FARTHEST = 1e10


@dataclass(frozen=True)
class Inputs:
    """All n inputs, linearised about the path without noise, with joint weights W (n, classes).

    `form` (f, n) are the coefficients of ln w_j N(t; offset_j, I + A_j A_j^T) on the monomials of t - `middle`.
    """

    weights: torch.Tensor
    clean: Linearised
    middle: torch.Tensor
    form: torch.Tensor

    @staticmethod
    def of(passes: Passes, weights: torch.Tensor, block: int) -> Inputs:
        """Linearise every input, `block` at a time."""
        parts = []
        for inputs in torch.arange(len(weights), device=weights.device).split(max(1, block)):
            none = torch.zeros(len(inputs), passes.units, dtype=weights.dtype, device=weights.device)
            parts.append(Linearised.of(*passes.linearised(inputs, none), none))
        clean = Linearised(
            *(torch.cat([getattr(part, k) for part in parts]) for k in ("offset", "slope", "gain", "log_det"))
        )
        middle = clean.offset.median(0).values
        offset = clean.offset - middle
        width = offset.shape[1]
        precision = torch.eye(width, dtype=offset.dtype, device=offset.device) - clean.slope @ clean.gain
        first, second = torch.triu_indices(width, width, device=offset.device)
        twice = torch.where(first == second, 1.0, 2.0)
        linear = (precision @ offset.unsqueeze(-1)).squeeze(-1)
        constant = weights.sum(1).log() - clean.log_det - 0.5 * (offset * linear).sum(1)
        form = torch.cat((-0.5 * twice * precision[:, first, second], linear, constant.unsqueeze(1)), 1)
        return Inputs(weights, clean, middle, form.mT.contiguous())

    @property
    def sound(self) -> bool:
        """Whether the quadratic forms are right to 1e-6: they lose digits far from the middle."""
        return float((self.clean.offset - self.middle).square().sum(1).max()) <= FARTHEST

    def log_shares(self, points: torch.Tensor) -> torch.Tensor:
        """Return ln w_j N(t; offset_j, I + A_j A_j^T) + (d/2) ln 2 pi of every input at t (q, d), (q, n)."""
        t = points - self.middle
        first, second = torch.triu_indices(t.shape[1], t.shape[1], device=t.device)
        monomials = torch.cat((t[:, first] * t[:, second], t, torch.ones_like(t[:, :1])), 1)
        return monomials @ self.form


def joint_densities(
    passes: Passes,
    inputs: Inputs,
    points: torch.Tensor,
    owner: torch.Tensor,
    made: torch.Tensor,
    fresh_own: torch.Tensor,
    count: int,
    generator: torch.Generator,
) -> Both:
    """Return ln p(t, y) of draws from above and below, by `count` weighted pairs of an input and a path.

    Pairs are of two laws: an input by its linearised Gaussian at t and a path given t and that input, or an input by
    its weight and a path from the prior. Within a law the k-th pair has its input from the k-th part of the law's
    distribution function, so that pairs spread over the inputs in reach.

    Args:
        passes: Noisy passes, in units of the noise.
        inputs: All inputs.
        points: t, shape (q, d).
        owner: Index of the input that made each t, shape (q,).
        made: The path that made it, shape (q, m).
        fresh_own: ln p(t|owner) from below, of more paths; takes the place of the owner's pairs in the lower estimate.
        count: K >= 2, pairs a draw.
        generator: Of the normals.

    Returns:
        ln p(t, y) + (d/2) ln 2 pi, shape (q, classes).

    Source:
        As in `path_densities`; why a pair may come from a part of the distribution: the guide, methods.md, section 4.
    """
    rows, width = points.shape
    options = {"dtype": points.dtype, "device": points.device}

    def uniform(number: int) -> torch.Tensor:
        # The k-th of `number` lies in the k-th part of the unit interval.
        place = torch.arange(number, **options) + torch.rand(rows, number, generator=generator, **options)
        return place / number

    prior = max(1, round(PRIOR_SHARE * count))
    found = count - prior
    shares = inputs.weights.sum(1)
    by_weight = shares.cumsum(0)
    log_share = inputs.log_shares(points)
    top = log_share.amax(1, keepdim=True)
    by_density = log_share.sub_(top).exp_().cumsum_(1)
    total = by_density[:, -1:]
    log_total = total.log() + top
    last = len(shares) - 1
    near = torch.searchsorted(by_density, uniform(found) * total).clamp_(max=last)
    any_input = torch.searchsorted(by_weight, uniform(prior) * by_weight[-1]).clamp_(max=last)
    chosen = torch.cat((near, any_input, owner.unsqueeze(1)), 1)
    z = torch.randn(rows, count, passes.units, generator=generator, **options)
    noise = torch.randn(rows, found, width, generator=generator, **options)
    of_found = inputs.clean.taken(near)
    given = of_found.paths(points.unsqueeze(1), z[:, :found].unsqueeze(2), noise.unsqueeze(2)).squeeze(2)
    z = torch.cat((given, z[:, found:], made.unsqueeze(1)), 1)
    passed = passes.values(chosen.flatten(), z.flatten(0, 1).unsqueeze(1)).view(rows, count + 1, width)
    kernel = -0.5 * (points.unsqueeze(1) - passed).square_().sum(-1)
    # Over w_j N(z; 0, I): the share of each law times its density.
    line = inputs.clean.offset[chosen] + (inputs.clean.slope[chosen] * z.unsqueeze(2)).sum(-1)
    by_line = -0.5 * (points.unsqueeze(1) - line).square_().sum(-1) - log_total + math.log(found / count)
    by_prior = torch.full_like(by_line, math.log(prior / count))
    mixture = torch.logaddexp(by_line, by_prior)
    weights = kernel - mixture
    # The place of the pair that made t: of a law by probability, within it by the owner's part of the distribution.
    draw = torch.rand(rows, 2, generator=generator, **options)
    is_near = draw[:, 0].log() < by_line[:, -1] - mixture[:, -1]
    in_near = _part(by_density, owner, draw[:, 1]) / total[:, 0]
    in_prior = _part(by_weight.expand(rows, -1), owner, draw[:, 1]) / by_weight[-1]
    place = torch.where(
        is_near,
        (in_near * found).long().clamp_(max=found - 1),
        found + (in_prior * prior).long().clamp_(max=prior - 1),
    ).unsqueeze(1)
    own_weights = weights[:, :-1].scatter(1, place, weights[:, -1:])
    own_chosen = chosen[:, :-1].scatter(1, place, owner.unsqueeze(1))
    others = weights[:, :-1].masked_fill(chosen[:, :-1] == owner.unsqueeze(1), -torch.inf)
    by_class = _by_class(others, chosen[:, :-1], inputs.weights)
    own_part = fresh_own.unsqueeze(1) + inputs.weights[owner].log()
    return Both(_by_class(own_weights, own_chosen, inputs.weights), torch.logaddexp(by_class, own_part))


def _part(cumulative: torch.Tensor, owner: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Return a point, at `draw` in [0, 1], in each owner's part of a cumulative sum (q, n), shape (q,)."""
    end = cumulative.gather(1, owner.unsqueeze(1)).squeeze(1)
    start = cumulative.gather(1, (owner - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    start = torch.where(owner > 0, start, 0.0)
    return start + (end - start) * draw


def _by_class(weights: torch.Tensor, chosen: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
    """Return ln of the mean of W[j, y] / w_j times the weights of pairs (q, K), (q, classes)."""
    top = weights.amax(1, keepdim=True).clamp(min=-1e300)
    given = (joint / joint.sum(1, keepdim=True))[chosen]
    sums = ((weights - top).exp().unsqueeze(1) @ given).squeeze(1)
    return sums.log() + top - math.log(weights.shape[1])
