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
    """All n inputs, linearised about R paths each, the first without noise, with joint weights W (n, classes).

    `lines` are those of input 0, then of input 1, and so on, n R in all; `form` (f, n R) has the coefficients of
    ln w_j N(t; offset, I + A A^T) / R on the monomials of t - `middle`.
    """

    weights: torch.Tensor
    lines: Linearised
    middle: torch.Tensor
    form: torch.Tensor

    @staticmethod
    def of(passes: Passes, weights: torch.Tensor, paths: torch.Tensor, block: int) -> Inputs:
        """Linearise every input about its paths (n, R, m), `block` inputs at a time."""
        count, parts = paths.shape[1], []
        for inputs in torch.arange(len(weights), device=weights.device).split(max(1, block)):
            about = paths[inputs].flatten(0, 1)
            parts.append(Linearised.of(*passes.linearised(inputs.repeat_interleave(count), about), about))
        lines = Linearised(
            *(torch.cat([getattr(part, k) for part in parts]) for k in ("offset", "slope", "gain", "log_det"))
        )
        middle = lines.offset.median(0).values
        offset = lines.offset - middle
        width = offset.shape[1]
        precision = torch.eye(width, dtype=offset.dtype, device=offset.device) - lines.slope @ lines.gain
        first, second = torch.triu_indices(width, width, device=offset.device)
        twice = torch.where(first == second, 1.0, 2.0)
        linear = (precision @ offset.unsqueeze(-1)).squeeze(-1)
        share = (weights.sum(1) / count).log().repeat_interleave(count)
        constant = share - lines.log_det - 0.5 * (offset * linear).sum(1)
        form = torch.cat((-0.5 * twice * precision[:, first, second], linear, constant.unsqueeze(1)), 1)
        return Inputs(weights, lines, middle, form.mT.contiguous())

    @property
    def count(self) -> int:
        """R, lines of one input."""
        return len(self.lines.offset) // len(self.weights)

    @property
    def sound(self) -> bool:
        """Whether the quadratic forms are right to 1e-6: they lose digits far from the middle."""
        return float((self.lines.offset - self.middle).square().sum(1).max()) <= FARTHEST

    def log_shares(self, points: torch.Tensor) -> torch.Tensor:
        """Return ln w_j N(t; offset, I + A A^T) / R + (d/2) ln 2 pi of every line at t (q, d), (q, n R)."""
        t = points - self.middle
        first, second = torch.triu_indices(t.shape[1], t.shape[1], device=t.device)
        monomials = torch.cat((t[:, first] * t[:, second], t, torch.ones_like(t[:, :1])), 1)
        return monomials @ self.form

    def log_kernels(self, chosen: torch.Tensor, points: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return -|t - offset - A z|^2 / 2 of all lines of inputs (q, k) at t (q, d) and paths (q, k, m), (q, k, R)."""
        found = []
        for line in range(self.count):
            at = chosen * self.count + line
            predicted = self.lines.offset[at] + (self.lines.slope[at] * paths.unsqueeze(2)).sum(-1)
            found.append(-0.5 * (points.unsqueeze(1) - predicted).square_().sum(-1))
        return torch.stack(found, -1)


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

    Pairs are of two laws: a line by its Gaussian at t and a path given t by that line, or an input by its weight and a
    path from the prior. Within a law the k-th pair is from the k-th part of the law's distribution function, so that
    pairs spread over the inputs in reach.

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
    prior = max(1, round(PRIOR_SHARE * count))
    by_line = count - prior
    shares = _Shares.of(inputs, points)
    place = torch.rand(rows, count, generator=generator, **options)
    near = shares.lines_at((torch.arange(by_line, **options) + place[:, :by_line]) / by_line)
    any_input = shares.inputs_at((torch.arange(prior, **options) + place[:, by_line:]) / prior)
    chosen = torch.cat((near // inputs.count, any_input, owner.unsqueeze(1)), 1)
    z = torch.randn(rows, count, passes.units, generator=generator, **options)
    noise = torch.randn(rows, by_line, width, generator=generator, **options)
    law = inputs.lines.taken(near)
    given = law.paths(points.unsqueeze(1), z[:, :by_line].unsqueeze(2), noise.unsqueeze(2)).squeeze(2)
    z = torch.cat((given, z[:, by_line:], made.unsqueeze(1)), 1)
    passed = passes.values(chosen.flatten(), z.flatten(0, 1).unsqueeze(1)).view(rows, count + 1, width)
    kernel = -0.5 * (points.unsqueeze(1) - passed).square_().sum(-1)
    # Over w_j N(z; 0, I): the share of each law times its density.
    lines = inputs.log_kernels(chosen, points, z)
    of_lines = lines.logsumexp(-1) - math.log(inputs.count) - shares.log_total + math.log(by_line / count)
    mixture = torch.logaddexp(of_lines, torch.full_like(of_lines, math.log(prior / count)))
    weights = kernel - mixture
    # The place of the pair that made t: of a law by probability, and in the owner's part of its distribution.
    draw = torch.rand(rows, 3, generator=generator, **options)
    is_near = draw[:, 0].log() < of_lines[:, -1] - mixture[:, -1]
    line = (lines[:, -1].softmax(-1).cumsum(-1) < draw[:, 1:2]).sum(-1).clamp_(max=inputs.count - 1)
    in_lines, in_inputs = shares.line_part(owner * inputs.count + line, draw[:, 2]), shares.input_part(owner, draw[:, 2])
    at = torch.where(
        is_near,
        (in_lines * by_line).long().clamp_(max=by_line - 1),
        by_line + (in_inputs * prior).long().clamp_(max=prior - 1),
    ).unsqueeze(1)
    own_weights = weights[:, :-1].scatter(1, at, weights[:, -1:])
    own_chosen = chosen[:, :-1].scatter(1, at, owner.unsqueeze(1))
    others = weights[:, :-1].masked_fill(chosen[:, :-1] == owner.unsqueeze(1), -torch.inf)
    by_class = _by_class(others, chosen[:, :-1], inputs.weights)
    own_part = fresh_own.unsqueeze(1) + inputs.weights[owner].log()
    return Both(_by_class(own_weights, own_chosen, inputs.weights), torch.logaddexp(by_class, own_part))


@dataclass(frozen=True)
class _Shares:
    """Distribution functions at some draws: of the lines, by their Gaussians there (q, n R), and of the inputs (n,)."""

    of_lines: torch.Tensor
    log_total: torch.Tensor
    of_inputs: torch.Tensor

    @staticmethod
    def of(inputs: Inputs, points: torch.Tensor) -> _Shares:
        log_share = inputs.log_shares(points)
        top = log_share.amax(1, keepdim=True)
        of_lines = log_share.sub_(top).exp_().cumsum_(1)
        total = of_lines[:, -1:].clone()
        of_inputs = inputs.weights.sum(1).cumsum(0)
        return _Shares(of_lines.div_(total), total.log_().add_(top), of_inputs / of_inputs[-1])

    def lines_at(self, place: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.of_lines, place).clamp_(max=self.of_lines.shape[1] - 1)

    def inputs_at(self, place: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.of_inputs, place).clamp_(max=len(self.of_inputs) - 1)

    def line_part(self, line: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Return a place, at `draw` in [0, 1], in the part of the distribution that is a line's, (q,)."""
        return _part(self.of_lines, line, draw)

    def input_part(self, owner: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Return a place in the part of the distribution that is an input's, (q,)."""
        return _part(self.of_inputs.expand(len(owner), -1), owner, draw)


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
