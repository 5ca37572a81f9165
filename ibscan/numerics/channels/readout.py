"""Information through Gaussian noise at one layer: by Monte Carlo with control variates, by quadrature on one unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.controls import QUADRATIC_WIDTH, Residuals, controls, near_enough
from ibscan.numerics.channels.line import Segments
from ibscan.numerics.channels.mixture import Mixture, entropy
from ibscan.numerics.channels.neighbours import NeighbourControls
from ibscan.numerics.channels.visits import Visits
from ibscan.numerics.tiling import cuts, mapped

__all__ = ["LEAST_SHARE", "Information", "draw_terms", "line_information", "readout_information"]

# Fewest draws, counted by the weight of their strata, whose spread is trusted.
LEAST_DRAWS = 8192
# Overlaps of probability below 3/N are missed by N draws in 5 % of cases or more (the rule of three), and each moves a
# term by a nat or two: an error of 3/N that the spread between draws does not show, and the main one if centres hardly
# overlap. If all centres overlap there is nothing to miss.
UNSEEN = 3.0
# Relative contribution of other centres to a draw's density below which they are ignored.
ALONE = 1e-13
# Numbers processed together.
NUMBERS = {"cpu": 2**19, "cuda": 2**28}
# In layers wider than this the slope is estimated on a part of the strata, at least LEAST_STRATA.
SLOPE_WIDTH, LEAST_STRATA = 64, 256
# In wider layers, the matrices of neighbour controls cost more than the draws they save.
NEIGHBOUR_WIDTH = 64
# Limit of noise / RMS radius, so that squares stay in the range of float64.
LARGEST_BLUR = 1e150
# Smallest divisor.
TINY = torch.finfo(torch.float64).tiny
# Draws times strata made together, and numbers in them: fewer would cost calls, more memory.
TOGETHER, TOGETHER_NUMBERS = 2**13, 2**22
# Quadrature: points per noise, and reach from the centres in noises. The trapezoidal rule converges geometrically: at
# 12 points only rounding is left. Beyond nine noises lies 1e-18 of a Gaussian.
STEPS, REACH = 12, 9.0
# Smallest noise, as a share of the RMS radius, for which positions on the grid are accurate enough.
LEAST_SHARE = 1e-7


@dataclass(frozen=True)
class Information:
    """I(X; T+Z) and I(T+Z; Y) in nats, -dI(X; T+Z)/d ln noise, and their standard errors.

    `draws` are those of each of the strata, 0 by quadrature, whose errors are 0. `given_se` is the standard error of
    I(X; T+Z) - I(T+Z; Y).
    """

    xt: float
    xt_se: float
    ty: float
    ty_se: float
    slope: float
    slope_se: float
    draws: int
    strata: int
    resolved: bool
    given_se: float = 0.0


def readout_information(
    mixture: Mixture,
    noise: float,
    normals: Callable[[int], torch.Tensor],
    *,
    tolerance: float,
    max_draws: int,
    bounds: tuple[float, float] = (0.0, math.inf),
) -> Information:
    """Return I(X; S + Z) and I(S + Z; Y) of the discrete population, Z ~ N(0, noise^2 I), by Monte Carlo.

    Every draw t = s_i + z gives ln p(t|i) - ln p(t): the conditional density is exact, and ||z||^2 cancels between
    the two. Control variates of mean zero (`controls`, `NeighbourControls`) are subtracted, with coefficients fitted on
    the other half of the strata. The rows are the strata: each has two draws or more, so that the spread between rows
    is no error. Draws are added until 1.96 standard errors of both values are within `tolerance`.

    If the budget does not allow two draws for each row, a systematic sample of the rows, which must come in random
    order, is visited. The draws then estimate the difference of the terms from a prediction that is known for every row
    (`Mixture.pairwise`). The error includes the spread between rows, and the largest differences that the rows never
    visited may have (`never_visited`).

    Near ln n the terms are constant but for rare draws between centres. For those that were missed the error includes
    3 over the number of draws, or the distance of the bounds if that is less, times the share of the centres' variance
    that a draw resolves. I(X; S + Z) is clipped to its bounds, and no error is less than the distance it was moved.

    Args:
        mixture: The population of N rows.
        noise: Standard deviation, > 0, in the units of the centres.
        normals: Standard normals of draw m, shape (N, d), the same for the same m.
        tolerance: Half width of the 95 % interval that ends the sampling, nats, > 0.
        max_draws: Draws over all strata at most; two are always made.
        bounds: Proven lower and upper bound on I(X; S + Z), nats: no draw or row that was not met can move it by more
            than lies between them.

    Returns:
        Values, standard errors, draws a stratum, and whether the tolerance was reached.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 4 and arXiv 1810.11589 (sample propagation with the exact
        conditional); Guo, Shamai, Verdu 2005 (the slope); pairing, strata and controls as in the guide,
        methods.md, section 3.
    """
    gap = max(0.0, bounds[1] - bounds[0])
    visits = Visits.of(mixture, noise, max_draws, gap)
    budget = max(2, max_draws // len(visits.owner))
    # Too few draws may have a small spread by luck, which would end the sampling.
    goal = min(budget, max(2, math.ceil(LEAST_DRAWS * float(visits.share.square().sum()))))
    # If the bounds nearly meet, neighbour controls have nothing to explain.
    draws = _Draws.of(mixture, noise, normals, visits, goal, neighbours=gap > tolerance)
    while True:
        draws.until(goal)
        found = draws.information(bounds, tolerance)
        excess = 1.96 * max(found.xt_se, found.ty_se) / tolerance
        if excess > 1.0:
            goal = min(budget, max(draws.done + 1, math.ceil(draws.done * min(excess, 1e4) ** 2)))
        if draws.done >= goal:
            return found


@dataclass
class _Draws:
    """Sums over the draws of one cell, with controls subtracted."""

    mixture: Mixture
    noise: float
    normals: Callable[[int], torch.Tensor]
    visits: Visits
    follow: Callable[[torch.Tensor], torch.Tensor]
    sums: Residuals
    slopes: Residuals | None
    kept: slice  # strata on which `slopes` is estimated
    done: int = 0

    @staticmethod
    def of(
        mixture: Mixture,
        noise: float,
        normals: Callable[[int], torch.Tensor],
        visits: Visits,
        goal: int,
        *,
        neighbours: bool,
    ) -> _Draws:
        """Begin without draws, with controls for `goal` draws of every stratum, and `neighbours`' if allowed."""
        owner, share, width = visits.owner, visits.share, mixture.centres.shape[1]
        common, places, near = controls(width, len(owner) * (goal - 1)), None, None
        if width <= QUADRATIC_WIDTH:
            # Scale to 1, so that controls are comparable when linearly dependent ones are dropped.
            places = mixture.centres.div(max(mixture.rms_radius / math.sqrt(width), TINY))[owner]
        elif width <= NEIGHBOUR_WIDTH and neighbours:
            near = NeighbourControls(mixture, noise, owner)
        far = None if places is None else ~near_enough(torch.linalg.vector_norm(places, dim=1))
        if far is not None and not bool(far.any()):
            far = None

        def follow(z: torch.Tensor) -> torch.Tensor:
            return common(z, places) if near is None else torch.cat((common(z, places), near(z)), -1)

        # The slope of a wide layer is expensive and has no target error: use every `step`-th stratum.
        step = -(-width // SLOPE_WIDTH)
        kept = slice(None, None, step if len(owner) >= LEAST_STRATA * step else 1)
        sums, slopes = Residuals(share, visits.every, far), None
        if kept.step > 1:
            slopes = Residuals(share[kept] / share[kept].sum(), stratified=False)
        return _Draws(mixture, noise, normals, visits, follow, sums, slopes, kept)

    def until(self, goal: int) -> None:
        """Draw until there are `goal` of every stratum."""
        owner, width = self.visits.owner, self.mixture.centres.shape[1]
        most = TOGETHER_NUMBERS if owner.device.type == "cpu" else TOGETHER_NUMBERS * 64
        together = max(1, min(TOGETHER // len(owner), most // (len(owner) * width)))
        while self.done < goal:
            size = min(together, goal - self.done)
            made = [self.normals(draw)[: len(owner)] for draw in range(self.done, self.done + size)]
            z = torch.stack(made) if size > 1 else made[0].unsqueeze(0)
            followed = self.follow(z)
            terms = draw_terms(self.mixture, self.noise, z, owner, slope=self.slopes is None)
            self.sums.add(terms - self.visits.known[: len(terms)].unsqueeze(1), followed)
            if self.slopes is not None:
                part = draw_terms(self.mixture, self.noise, z[:, self.kept], owner[self.kept], slope=True)
                self.slopes.add(part[2:], followed[:, self.kept])
            self.done += size

    def information(self, bounds: tuple[float, float], tolerance: float) -> Information:
        """Return values and errors of the draws, with errors they cannot show, clipped to the bounds."""
        mixture, visits = self.mixture, self.visits
        label_entropy, gap = entropy(mixture.weights.sum(0)), max(0.0, bounds[1] - bounds[0])
        value, errors = self.sums.result()
        if self.slopes is not None:
            value, errors = (a + b for a, b in zip((value, errors), self.slopes.result(), strict=True))
        value = [known + found for known, found in zip(visits.mean, value, strict=True)]
        # A missed draw between two far centres would move the slope by up to 2 ln N.
        drawn = self.done * len(visits.owner)
        blur = min(self.noise / mixture.rms_radius, LARGEST_BLUR) if mixture.rms_radius > 0 else None
        open_share = 1.0 if blur is None else min(1.0, value[2] * blur**2)
        unseen = min(gap, UNSEEN / drawn * (1.0 - open_share))
        missed = (unseen, min(unseen, label_entropy), unseen * 2 * math.log(drawn))
        errors = [math.hypot(*kinds) for kinds in zip(errors, missed, visits.hidden, strict=True)]
        # Missed draws move both values in the same direction, so their difference by no more.
        given = math.hypot(self.sums.difference(), unseen, visits.hidden[0] + visits.hidden[1])
        before = value[0]
        value, errors = _bounded(value, errors, bounds, label_entropy)
        given = max(given, abs(value[0] - before), (value[1] - value[0]) / 1.96)
        numbers = (value[0], errors[0], value[1], errors[1], value[2], errors[2])
        resolved = 1.96 * max(errors[:2]) <= tolerance
        return Information(*numbers, self.done, len(visits.owner), resolved, given)


def _bounded(
    value: list[float], errors: list[float], bounds: tuple[float, float], label_entropy: float
) -> tuple[list[float], list[float]]:
    """Return values and errors consistent with I(X;T) within its bounds and 0 <= I(T;Y) <= min(H(Y), I(X;T))."""
    xt = min(max(value[0], bounds[0]), max(bounds))
    outside = max(0.0, -value[1], value[1] - min(label_entropy, max(bounds)))
    # An error is at least the distance outside the bounds, and that of I(X;T) at most the distance between them.
    xt_error = min(max(errors[0], abs(value[0] - xt)), max(0.0, bounds[1] - bounds[0]))
    return [xt, *value[1:]], [xt_error, max(errors[1], outside / 1.96), *errors[2:]]


def draw_terms(
    mixture: Mixture, noise: float, normals: torch.Tensor, owner: torch.Tensor, *, slope: bool = False
) -> torch.Tensor:
    """Return the terms of draws t = s_i + noise z, whose means are I(X;T), I(T;Y) and the slope.

    Args:
        mixture: The population.
        noise: Standard deviation, > 0.
        normals: z, shape (draws, m, d).
        owner: i of every stratum, shape (m,).
        slope: Whether to compute the slope, which needs the mean of the centres given t.

    Returns:
        ln p(t|i) - ln p(t), E_Y|i [ln p(t|Y) - ln p(t)], and ||s_i - E[S|t]||^2 / noise^2 where it is wanted; shape
        (2 or 3, draws, m).
    """
    centres, weights = mixture.centres, mixture.weights
    classes, prior = weights.shape[1], weights.sum(0).log()
    given = weights / mixture.share.unsqueeze(1)
    columns = torch.cat((weights, mixture.share.unsqueeze(1) * centres), 1) if slope else weights
    size = mixture.rms_radius / noise if slope else 1.0
    draws, strata, width = normals.shape
    terms = torch.empty(3 if slope else 2, draws, strata, dtype=centres.dtype, device=centres.device)
    sums = mixture.sums(columns, noise, size)

    def fill(part: slice) -> None:
        z, i = normals[:, part], owner[part]
        own = centres.index_select(0, i).div_(noise)
        at = own + z
        # Densities are relative to that of the centre that made the draw: no running maximum is needed, and its own
        # term is exactly its weight. Recompute z from t - s_i, as the sum rounds far from the origin.
        energy = 0.5 * torch.linalg.vector_norm(at - own, dim=-1).square_()
        found = sums(at.flatten(0, 1), energy.flatten()).view(draws, len(i), -1)
        joint, moment = found[..., :classes], found[..., classes:]
        total = joint.sum(-1, keepdim=True)
        ratio = joint.log() - total.log() - prior
        terms[0, :, part] = -total.log().squeeze(-1)
        terms[1, :, part] = torch.where(given[i] > 0, given[i] * ratio, 0.0).sum(-1)
        if slope:
            distance = moment.div_(noise * total).sub_(own).square_().sum(-1)
            # If no other centre contributes, the mean is the own centre, and the distance only rounding.
            alone = total.squeeze(-1) <= mixture.share[i] * (1.0 + ALONE)
            terms[2, :, part] = torch.where(alone, 0.0, distance)

    # In wide layers take fewer strata at a time, to fit a core's cache.
    numbers = NUMBERS.get(centres.device.type, NUMBERS["cuda"])
    mapped(fill, cuts(0, strata, numbers // (draws * width)), centres.device)
    return terms


def line_information(mixture: Mixture, noise: float) -> Information:
    """Return the information of a layer of one unit by quadrature: the trapezoidal rule around the centres.

    Args:
        mixture: The population, of one unit.
        noise: Standard deviation, > 0.

    Returns:
        Values right to about 1e-10 if the noise is at least 1e-7 of the RMS radius; standard errors 0.
    """
    centres = mixture.centres[:, 0].sort().values
    step = noise / STEPS
    reach = math.ceil(REACH * STEPS)
    middle = (centres / step).round().long()
    grid = Segments.covering(middle - reach, middle + reach)
    columns = torch.cat((mixture.weights, mixture.share.unsqueeze(1) * mixture.centres), 1)
    prior, sums = mixture.weights.sum(0).log(), mixture.sums(columns, noise, mixture.rms_radius / noise)
    found = torch.zeros(3, dtype=centres.dtype, device=centres.device)
    for part in cuts(0, grid.size, NUMBERS.get(centres.device.type, NUMBERS["cuda"])):
        place = torch.arange(part.start, part.stop, device=centres.device)
        t = grid.integers(place).to(centres.dtype) * step
        right = torch.searchsorted(centres, t).clamp(1 if len(centres) > 1 else 0, len(centres) - 1)
        left = (right - 1).clamp(min=0)
        near = torch.where(t - centres[left] < centres[right] - t, centres[left], centres[right])
        shift = 0.5 * ((t - near) / noise).square()
        both = sums(t.unsqueeze(1) / noise, shift)
        joint, moment = both[:, :-1], both[:, -1]
        total = joint.sum(1)
        density = torch.exp(-shift) / (STEPS * math.sqrt(2 * math.pi))
        ratio = joint.log() - total.log().unsqueeze(1) - prior
        found[0] += (density * total) @ (shift - total.log())
        found[1] += density @ torch.where(joint > 0, joint * ratio, 0.0).sum(1)
        # E[(T - E[S|T])^2] is noise^4 times the Fisher information; noise^2 minus it is E[(S - E[S|T])^2].
        found[2] += (density * total) @ ((t - moment / total) / noise).square()
    xt, ty, slope = (found - torch.tensor([0.5, 0.0, 1.0], dtype=found.dtype, device=found.device)).tolist()
    slope = -slope
    return Information(xt, 0.0, ty, 0.0, slope, 0.0, 0, len(mixture.owner), resolved=True)
