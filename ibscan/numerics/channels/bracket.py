"""What own and fresh draws say together: a value, its errors, its bracket, and how many more draws are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ibscan.numerics.channels.controls import CAUTION
from ibscan.numerics.channels.readout import UNSEEN
from ibscan.numerics.channels.visits import never_visited, visits_for

__all__ = ["Bracket"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Draws before the spread between them is trusted: one seen in a handful may be small by luck.
LEAST_DRAWS = 2048
# How often what hidden rows take of the tolerance is worked out anew, with the number of rows that it leads to.
HIDDEN_STEPS = 6
# Variances of fresh terms have no bound; beyond this they say no more, and arithmetic with them stays finite.
LARGEST = 1e100


@dataclass(frozen=True)
class Bracket:
    """Own and fresh estimates of I(X;T) and I(T;Y), in this order, nats, and what is needed to judge and improve them.

    `value` is the mean of the two, `lower` fresh - 1.96 `error` - bias, `upper` own + 1.96 `error` + bias. `between`
    and `within` are variances of the draws between and within rows, (2, 2) for own and fresh; `common` the variance of
    what all draws share.
    """

    value: tuple[float, ...]
    error: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    gap: float  # half of own less fresh
    unseen_gap: float  # the part of it that is due to draws at which other inputs may be unseen
    bias: float  # of the marginal
    width: float  # half of what the bracket leaves open beside the errors
    half_change: float  # between the marginal and that of half its replicas
    between: Array
    within: Array
    common: float
    replicas: int
    draws: int
    given: tuple[float, ...]  # I(X;T) - I(T;Y) of the same draws: value, error, lower and upper end

    @staticmethod
    def of(terms: torch.Tensor, population: int, replicas: int, entropies: tuple[float, float]) -> Bracket:
        """Reduce the terms of draws to a bracket.

        Args:
            terms: Shape (3, 2, V, m, M): own, fresh, and fresh as if nothing were unseen; I(X;T) then I(T;Y);
                marginals as `grouped` has them; rows; draws of each on different replicas.
            population: N, of which the m rows are a sample without replacement.
            replicas: K behind every mixture.
            entropies: H(X) and H(Y), nats, which the two cannot exceed.

        Source:
            Two-stage sampling: Cochran 1977, Sampling Techniques, section 10.4; the jackknife over replicas: the
            guide, methods.md, section 4.
        """
        both = _Sides.of(terms, population, np.array(entropies))
        given = _Sides.of(terms[:, :1] - terms[:, 1:], population, np.array(entropies[:1]))
        half = (both.own - both.fresh) / 2
        value, error, lower, upper = both.ends()
        return Bracket(
            value,
            error,
            lower,
            upper,
            float(half.max()),
            float(((both.plain - both.fresh) / 2).max()),
            float(both.bias.max()),
            float((half + both.bias).max()),
            float(both.half_change.max()),
            both.between,
            both.within,
            float(both.common.max()),
            replicas,
            terms.shape[-1],
            tuple(end[0] for end in given.ends()),
        )

    def sample(self, tolerance: float, population: int, most: int, replicas: int) -> tuple[int, int]:
        """Return how many rows, and draws of each (one a replica), bring 1.96 standard errors within the tolerance.

        Args:
            tolerance: Target half width, nats.
            population: N, rows in all.
            most: Draws of all rows at most.
            replicas: Draws of one row at most.
        """
        # More than is needed, so that one attempt suffices. What seems common to all draws is in part their own spread,
        # and more of them may do; beyond a quarter of the target they would not.
        target = (0.85 * tolerance / 1.96) ** 2
        target = max(target - self.common, target / 4)
        # So many rows that those never visited hide no more than half of that; the more rows, the less they hide, and
        # the more is left for the spread.
        least = visits_for(1.96 * math.sqrt(target / 2) / max(math.log(population), 1e-9), population)
        rows, spread = float(max(least, min(LEAST_DRAWS // 2, population))), self.between / population
        for _ in range(HIDDEN_STEPS):
            left = (target - min(target / 2, _hidden(round(rows), population) ** 2)) / CAUTION**2
            spare = left + spread - self.within / (population * self.draws)
            rows = min(max(least, float(np.max(self.between / np.maximum(spare, 1e-300)))), population)
        draws = self.draws
        if rows >= population:
            draws = max(draws, math.ceil(min(1e9, float(self.within.max()) / (population * left))))
        # A spread seen in a handful of draws may be small by luck and would end the sampling.
        rows = max(2 if population > 1 else 1, math.ceil(rows), min(LEAST_DRAWS // 2, population))
        rows = min(rows, max(1, most // 2))
        return rows, max(1, min(max(draws, math.ceil(min(LEAST_DRAWS, most) / rows)), replicas, most // rows))


@dataclass(frozen=True)
class _Sides:
    """Own and fresh means of some quantities, arrays (quantities,), and what is known of their errors."""

    own: Array
    fresh: Array
    plain: Array  # fresh as if nothing were unseen
    error: Array
    bias: Array
    half_change: Array
    common: Array
    between: Array
    within: Array

    @staticmethod
    def of(terms: torch.Tensor, population: int, most: Array) -> _Sides:
        """Reduce terms (3, quantities, V, m, M), as `Bracket.of` takes them; no quantity exceeds `most`."""
        rows, draws = terms.shape[-2:]
        means = terms.mean((-2, -1)).cpu().numpy()
        full = terms[:2, :, 0]
        by_row = full.mean(-1)
        # Of one row among several nothing is known of the others: they may differ by as much as terms do.
        alone = torch.full_like(by_row[..., 0], math.log(population) ** 2)
        between = (by_row.var(-1) if rows > 1 else alone).clamp(max=LARGEST).cpu().numpy()
        within = full.var(-1).mean(-1).clamp(max=LARGEST).cpu().numpy()
        # The other inputs' replicas are few and common to all draws: their bias and error by a jackknife over groups.
        groups = means.shape[-1] - 2
        plain, means = means[2, :, 0], means[:2]
        left_out = means[..., 2:]
        bias = np.abs((groups - 1) * (left_out.mean(-1) - means[..., 0])).max(0)
        common = (groups - 1) / groups * ((left_out - left_out.mean(-1, keepdims=True)) ** 2).sum(-1)
        variance = _variance(between, within, rows, draws, population) + common
        own, fresh = means[0, :, 0], means[1, :, 0]
        middle = (own + fresh) / 2
        # Of overlaps and of rows that were not met; and no value is off by less than it lies outside what it can be.
        unseen = np.hypot(UNSEEN / (rows * draws), np.minimum(_hidden(rows, population), most))
        outside = np.maximum(-middle, middle - most) / 1.96
        error = np.maximum(np.hypot(CAUTION * np.sqrt(variance).max(0), unseen), outside)
        half_change = np.abs(means[..., 0] - means[..., 1])
        return _Sides(own, fresh, plain, error, bias, half_change, common, between, within)

    def ends(self) -> tuple[tuple[float, ...], ...]:
        """Return values, errors, lower and upper ends."""
        middle = (self.own + self.fresh) / 2
        low, high = self.fresh - 1.96 * self.error - self.bias, self.own + 1.96 * self.error + self.bias
        return tuple(tuple(end.tolist()) for end in (middle, self.error, low, high))


def _hidden(rows: int, population: int) -> float:
    """Return the standard error, nats, of what rows never visited may hide: terms of up to ln N."""
    return never_visited(rows, population) * math.log(population) / 1.96


def _variance(
    between: Array,
    within: Array,
    rows: int,
    draws: int,
    population: int,
) -> Array:
    # Rows drawn without replacement, draws within them: the spread between rows is an error only of rows not visited.
    share = rows / population
    variance: Array = (1 - share) * between / rows + share * within / (rows * draws)
    return variance
