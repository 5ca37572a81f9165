"""Laws that pairs of an input and a path are drawn from, given a draw t: by weight, by fixed lines, by lines at t.

A law has a distribution function over what it chooses from, so that the k-th of some pairs can be taken from the k-th
part of it, and a density over w_j N(z; 0, I), of which a mixture of laws is weighted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from ibscan.numerics.channels.linearised import Linearised
from ibscan.numerics.channels.paths import Passes, likeliest

__all__ = ["ByLines", "BySteps", "ByWeight", "Inputs", "PairLaw"]

# Squared distances from the middle, in squared noises, up to which the quadratic forms are right to 1e-6.
FARTHEST = 1e10
# Of a line beside the likeliest.
LEAST_EXPONENT = -80.0


class PairLaw(Protocol):
    """A law of pairs (j, z) given each of q draws."""

    def pairs(
        self, points: torch.Tensor, place: torch.Tensor, z: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (q, k) and paths (q, k, m), at places (q, k) of the distribution function.

        `z` (q, k, m) and `noise` (q, k, d) are standard normals.
        """
        ...

    def log_ratio(self, points: torch.Tensor, chosen: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return ln of the law's density over w_j N(z; 0, I), at pairs (q, k), shape (q, k)."""
        ...

    def place(self, points: torch.Tensor, owner: torch.Tensor, made: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Return a place (q,) of the distribution function from which the pair (owner, made) may have been drawn.

        `draw` (q, 2) are uniform: where the pair may be from several parts, and where in the part.
        """
        ...


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


@dataclass(frozen=True)
class ByWeight:
    """An input by its weight, and a path from the prior: bounds the weights of any mixture it is part of."""

    cumulative: torch.Tensor

    @staticmethod
    def of(inputs: Inputs) -> ByWeight:
        """Make the law."""
        cumulative = inputs.weights.sum(1).cumsum(0)
        return ByWeight(cumulative / cumulative[-1])

    def pairs(
        self,
        points: torch.Tensor,  # noqa: ARG002
        place: torch.Tensor,
        z: torch.Tensor,
        noise: torch.Tensor,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and paths at places of the distribution function."""
        return torch.searchsorted(self.cumulative, place).clamp_(max=len(self.cumulative) - 1), z

    def log_ratio(self, points: torch.Tensor, chosen: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return zeros."""
        return torch.zeros(chosen.shape, dtype=paths.dtype, device=paths.device)

    def place(
        self,
        points: torch.Tensor,  # noqa: ARG002
        owner: torch.Tensor,
        made: torch.Tensor,  # noqa: ARG002
        draw: torch.Tensor,
    ) -> torch.Tensor:
        """Return a place in the owner's part."""
        return _part(self.cumulative.expand(len(owner), -1), owner, draw[:, 1])


@dataclass(frozen=True)
class ByLines:
    """A line by its Gaussian at t, and a path given t by that line."""

    inputs: Inputs
    cumulative: torch.Tensor  # (q, n R)
    log_total: torch.Tensor  # (q, 1)

    @staticmethod
    def of(inputs: Inputs, log_shares: torch.Tensor) -> ByLines:
        """Make the law from `Inputs.log_shares` at the draws, which are overwritten."""
        top = log_shares.amax(1, keepdim=True)
        # Exponentials that underflow are slow; what is clamped is nothing beside the largest.
        cumulative = log_shares.sub_(top).clamp_(min=LEAST_EXPONENT).exp_().cumsum_(1)
        total = cumulative[:, -1:].clone()
        return ByLines(inputs, cumulative.div_(total), total.log_().add_(top))

    def pairs(
        self, points: torch.Tensor, place: torch.Tensor, z: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and paths at places of the distribution function."""
        line = torch.searchsorted(self.cumulative, place).clamp_(max=self.cumulative.shape[1] - 1)
        law = self.inputs.lines.taken(line)
        paths = law.paths(points.unsqueeze(1), z.unsqueeze(2), noise.unsqueeze(2)).squeeze(2)
        return line // self.inputs.count, paths

    def log_ratio(self, points: torch.Tensor, chosen: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return ln of the density over w_j N(z; 0, I): that of t by all lines of the input, over the total."""
        found = self._kernels(points, chosen, paths).logsumexp(-1)
        return found - math.log(self.inputs.count) - self.log_total

    def place(self, points: torch.Tensor, owner: torch.Tensor, made: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Return a place in the part of one of the owner's lines, by probability."""
        count = self.inputs.count
        shares = self._kernels(points, owner.unsqueeze(1), made.unsqueeze(1))[:, 0].softmax(-1).cumsum(-1)
        line = (shares < draw[:, :1]).sum(-1).clamp_(max=count - 1)
        return _part(self.cumulative, owner * count + line, draw[:, 1])

    def _kernels(self, points: torch.Tensor, chosen: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return -|t - offset - A z|^2 / 2 by all lines of the chosen inputs, (q, k, R)."""
        count, lines = self.inputs.count, self.inputs.lines
        return torch.stack(
            [_log_kernel(lines, chosen * count + line, points, paths) for line in range(count)],
            -1,
        )


@dataclass(frozen=True)
class BySteps:
    """One of a few likely inputs, with lines about its likeliest path given t, by its Gaussian, and a path given t."""

    candidates: torch.Tensor  # (q, J)
    lines: Linearised  # (q J)
    cumulative: torch.Tensor  # (q, J)
    log_total: torch.Tensor  # (q, 1)

    @staticmethod
    def of(
        passes: Passes, inputs: Inputs, points: torch.Tensor, log_shares: torch.Tensor, count: int, steps: int
    ) -> BySteps:
        """Take Gauss-Newton steps from the best lines of the `count` likeliest inputs, by `Inputs.log_shares`."""
        if inputs.count > 1:
            best, line = log_shares.view(len(points), -1, inputs.count).max(-1)
        else:
            best, line = log_shares, None
        candidates = best.topk(min(count, best.shape[1]), 1).indices
        of_best = candidates if line is None else candidates * inputs.count + line.gather(1, candidates)
        start = inputs.lines.taken(of_best.flatten())
        each, owner = points.repeat_interleave(candidates.shape[1], 0), candidates.flatten()
        lines = likeliest(passes, owner, each, start.mean_path(each), steps)
        share = inputs.weights.sum(1).log()[candidates] + lines.log_density(each).view_as(candidates)
        log_total = share.logsumexp(1, keepdim=True)
        cumulative = (share - log_total).exp().cumsum(1)
        return BySteps(candidates, lines, cumulative / cumulative[:, -1:], log_total)

    def pairs(
        self, points: torch.Tensor, place: torch.Tensor, z: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and paths at places of the distribution function."""
        which = torch.searchsorted(self.cumulative, place).clamp_(max=self.candidates.shape[1] - 1)
        law = self.lines.taken(which + self._first(which))
        paths = law.paths(points.unsqueeze(1), z.unsqueeze(2), noise.unsqueeze(2)).squeeze(2)
        return self.candidates.gather(1, which), paths

    def log_ratio(self, points: torch.Tensor, chosen: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return ln of the density over w_j N(z; 0, I): zero, so -inf, for inputs that are no candidates."""
        same = chosen.unsqueeze(-1) == self.candidates.unsqueeze(1)
        at = same.int().argmax(-1)
        found = _log_kernel(self.lines, at + self._first(at), points, paths) - self.log_total
        return found.masked_fill_(~same.any(-1), -torch.inf)

    def place(
        self,
        points: torch.Tensor,  # noqa: ARG002
        owner: torch.Tensor,
        made: torch.Tensor,  # noqa: ARG002
        draw: torch.Tensor,
    ) -> torch.Tensor:
        """Return a place in the owner's part."""
        return _part(self.cumulative, (owner.unsqueeze(1) == self.candidates).int().argmax(1), draw[:, 1])

    def _first(self, like: torch.Tensor) -> torch.Tensor:
        """Return the index of each draw's first line, (q, 1)."""
        rows, count = self.candidates.shape
        return torch.arange(0, rows * count, count, device=like.device).unsqueeze(1)


def _log_kernel(lines: Linearised, at: torch.Tensor, points: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """Return -|t - offset - A z|^2 / 2 by lines at (q, k), t (q, d) and paths (q, k, m)."""
    predicted = lines.offset[at] + (lines.slope[at] * paths.unsqueeze(2)).sum(-1)
    return -0.5 * (points.unsqueeze(1) - predicted).square_().sum(-1)


def _part(cumulative: torch.Tensor, owner: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Return a point, at `draw` in [0, 1], in each owner's part of a cumulative sum (q, n), shape (q,)."""
    end = cumulative.gather(1, owner.unsqueeze(1)).squeeze(1)
    start = cumulative.gather(1, (owner - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    start = torch.where(owner > 0, start, 0.0)
    return start + (end - start) * draw
