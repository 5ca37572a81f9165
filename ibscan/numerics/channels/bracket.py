"""Combine own and fresh draws into a value with errors and a bracket, and say how many more draws are needed."""

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

# Fewest draws whose spread is trusted: that of a handful may be small by luck.
LEAST_DRAWS = 2048
# Iterations of the number of rows, as the error due to rows never visited depends on it.
HIDDEN_STEPS = 6
# Variances of fresh terms are unbounded: clamp them, so that arithmetic with them stays finite.
LARGEST = 1e100


@dataclass(frozen=True)
class Bracket:
    """A bracket of I(X;T) and I(T;Y), in this order, nats, with the variances that decide how to narrow it.

    `value` is the mean of own and fresh, `lower` fresh - 1.96 `error` - bias, `upper` own + 1.96 `error` + bias.
    `between` and `within` are variances of the draws between and within rows, (2, 2) for own and fresh; `common` is the
    variance of the marginal, which all draws share.
    """

    value: tuple[float, ...]
    error: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    gap: float  # half of own less fresh
    unseen_gap: float  # the part of it due to draws where the marginal's few replicas may miss other inputs
    bias: float  # of the marginal
    width: float  # half width of the bracket without the errors
    half_change: float  # change of the values with half the replicas of the marginal
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
            terms: Shape (3, 2, V, m, M): own, fresh, and fresh without regard to unseen inputs; I(X;T), I(T;Y);
                marginals as in `grouped`; rows; draws of each row on different replicas.
            population: N, of which the m rows are a sample without replacement.
            replicas: K of every mixture.
            entropies: H(X) and H(Y), nats, upper bounds on the two.

        Source:
            Two-stage sampling: Cochran 1977, Sampling Techniques, section 10.4; the jackknife over replicas: the
            guide, methods.md, section 4.
        """
        pair = _Means.of(terms, population, np.array(entropies))
        given = _Means.of(terms[:, :1] - terms[:, 1:], population, np.array(entropies[:1]))
        half = (pair.own - pair.fresh) / 2
        value, error, lower, upper = pair.ends()
        return Bracket(
            value,
            error,
            lower,
            upper,
            float(half.max()),
            float(((pair.fresh_if_seen - pair.fresh) / 2).max()),
            float(pair.bias.max()),
            float((half + pair.bias).max()),
            float(pair.half_change.max()),
            pair.between,
            pair.within,
            float(pair.common.max()),
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
        # Aim below the tolerance, so that one attempt suffices. `common` contains some of the draws' own spread, which
        # more draws reduce: leave at least a quarter of the target for them.
        target = (0.85 * tolerance / 1.96) ** 2
        target = max(target - self.common, target / 4)
        # Visit so many rows that those never visited take at most half of that. More rows leave more for the spread.
        least = visits_for(1.96 * math.sqrt(target / 2) / max(math.log(population), 1e-9), population)
        rows, spread = float(max(least, min(LEAST_DRAWS // 2, population))), self.between / population
        for _ in range(HIDDEN_STEPS):
            variance = (target - min(target / 2, _hidden(round(rows), population) ** 2)) / CAUTION**2
            for_rows = variance + spread - self.within / (population * self.draws)
            rows = min(max(least, float(np.max(self.between / np.maximum(for_rows, 1e-300)))), population)
        draws = self.draws
        if rows >= population:
            draws = max(draws, math.ceil(min(1e9, float(self.within.max()) / (population * variance))))
        # Too few draws may have a small spread by luck, which would end the sampling.
        rows = max(2 if population > 1 else 1, math.ceil(rows), min(LEAST_DRAWS // 2, population))
        rows = min(rows, max(1, most // 2))
        return rows, max(1, min(max(draws, math.ceil(min(LEAST_DRAWS, most) / rows)), replicas, most // rows))


@dataclass(frozen=True)
class _Means:
    """Own and fresh means of some quantities, with their errors, arrays (quantities,)."""

    own: Array
    fresh: Array
    fresh_if_seen: Array  # fresh without regard to unseen inputs
    error: Array
    bias: Array
    half_change: Array
    common: Array
    between: Array
    within: Array

    @staticmethod
    def of(terms: torch.Tensor, population: int, most: Array) -> _Means:
        """Reduce terms (3, quantities, V, m, M), as `Bracket.of` takes them; no quantity exceeds `most`."""
        rows, draws = terms.shape[-2:]
        means = terms.mean((-2, -1)).cpu().numpy()
        full = terms[:2, :, 0]
        by_row = full.mean(-1)
        # One row says nothing of the spread between rows: assume the range of the terms.
        unknown = torch.full_like(by_row[..., 0], math.log(population) ** 2)
        between = (by_row.var(-1) if rows > 1 else unknown).clamp(max=LARGEST).cpu().numpy()
        within = full.var(-1).mean(-1).clamp(max=LARGEST).cpu().numpy()
        # The marginal's replicas are few and common to all draws: estimate their bias and error by a jackknife.
        groups = means.shape[-1] - 2
        fresh_if_seen, means = means[2, :, 0], means[:2]
        left_out = means[..., 2:]
        bias = np.abs((groups - 1) * (left_out.mean(-1) - means[..., 0])).max(0)
        common = (groups - 1) / groups * ((left_out - left_out.mean(-1, keepdims=True)) ** 2).sum(-1)
        variance = _variance(between, within, rows, draws, population) + common
        own, fresh = means[0, :, 0], means[1, :, 0]
        middle = (own + fresh) / 2
        # Errors that the spread does not show: overlaps never drawn, and rows never visited. A value outside its range
        # is off by at least its distance from it.
        unseen = np.hypot(UNSEEN / (rows * draws), np.minimum(_hidden(rows, population), most))
        outside = np.maximum(-middle, middle - most) / 1.96
        error = np.maximum(np.hypot(CAUTION * np.sqrt(variance).max(0), unseen), outside)
        half_change = np.abs(means[..., 0] - means[..., 1])
        return _Means(own, fresh, fresh_if_seen, error, bias, half_change, common, between, within)

    def ends(self) -> tuple[tuple[float, ...], ...]:
        """Return values, errors, lower and upper ends."""
        middle = (self.own + self.fresh) / 2
        low, high = self.fresh - 1.96 * self.error - self.bias, self.own + 1.96 * self.error + self.bias
        return tuple(tuple(end.tolist()) for end in (middle, self.error, low, high))


def _hidden(rows: int, population: int) -> float:
    """Return the standard error, nats, due to rows never visited, whose terms may be as large as ln N."""
    return never_visited(rows, population) * math.log(population) / 1.96


def _variance(between: Array, within: Array, rows: int, draws: int, population: int) -> Array:
    """Return the variance of a mean in two-stage sampling: rows without replacement, and draws within rows."""
    share = rows / population
    variance: Array = (1 - share) * between / rows + share * within / (rows * draws)
    return variance
