"""Combine densities from above and below into a bracket of information, and say how many more draws are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ibscan.numerics.channels.controls import CAUTION
from ibscan.numerics.channels.paths import Both
from ibscan.numerics.channels.readout import UNSEEN
from ibscan.numerics.channels.visits import never_visited, visits_for

__all__ = ["LEAST_DRAWS", "Bracket", "crossed_ends", "paired_ends"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Fewest draws whose spread is trusted: that of a handful may be small by luck.
LEAST_DRAWS = 2048
# Iterations of the number of rows, as the error due to rows never visited depends on it.
HIDDEN_STEPS = 6
# Variances of the terms are unbounded: clamp them, so that arithmetic with them stays finite.
LARGEST = 1e100


def crossed_ends(
    inside: Both, outside: Both, given: torch.Tensor, prior: torch.Tensor, broad: torch.Tensor, floor: float
) -> torch.Tensor:
    """Return terms of draws whose means are upper and lower ends of I(X;T), I(T;Y) and I(X;T|Y).

    An end takes one density from above and the other from below, so that it holds whatever made the two. Densities from
    below are mixed with a share `floor` of a broader density, which is a density too: on average over t its logarithm
    is still too small, but no path that was missed makes it minus a hundred.

    Args:
        inside: ln p(t|x), shape (q,).
        outside: ln p(t, y), shape (V, q, classes).
        given: P(Y | X = x) of each draw's input, shape (q, classes).
        prior: P(Y), shape (classes,).
        broad: ln of a density at t that is nowhere far below p(t), shape (q,).
        floor: Its share, in (0, 1); an end moves by no more than that.

    Returns:
        Shape (2, 3, V, q): upper and lower; the three quantities; nats.

    Source:
        Gibbs' inequality: E ln q(t) <= E ln p(t) under p.
    """
    total = Both(outside.own.logsumexp(-1), _mixed(outside.fresh.logsumexp(-1), broad, floor))
    by_class = _mixed(outside.fresh - prior.log(), total.fresh.unsqueeze(-1), floor)
    label = Both(_of_label(outside.own - prior.log(), given), _of_label(by_class, given))
    fresh = _mixed(inside.fresh, total.fresh, floor)
    return torch.stack(
        (
            torch.stack((inside.own - total.fresh, label.own - total.fresh, inside.own - label.fresh)),
            torch.stack((fresh - total.own, label.fresh - total.own, fresh - label.own)),
        )
    )


def paired_ends(inside: Both, outside: Both, given: torch.Tensor, prior: torch.Tensor, floor: float) -> torch.Tensor:
    """Return the ends as `crossed_ends`, from densities of the same paths, as many for the owner as for other inputs.

    Errors cancel. Own less own is I(X; T and the paths), of paths that are drawn given T with one exchanged for that
    which made T; fresh less fresh is the mean of ln r(x|t) / P(x) of a law r that is guessed from the paths, and mixed
    with a share `floor` of P(x).

    Source:
        Barber and Agakov 2003 (below); data processing (above): the guide, methods.md, section 4.
    """

    def ratios(x: torch.Tensor, joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, by_class = joint.logsumexp(-1), joint - prior.log()
        return x - total, by_class - total.unsqueeze(-1), x.unsqueeze(-1) - by_class

    above = ratios(inside.own, outside.own)
    below = [_mixed(ratio, torch.zeros_like(ratio), floor) for ratio in ratios(inside.fresh, outside.fresh)]
    return torch.stack([torch.stack((x, _of_label(y, given), _of_label(z, given))) for x, y, z in (above, below)])


def _mixed(log_density: torch.Tensor, broad: torch.Tensor, floor: float) -> torch.Tensor:
    return torch.logaddexp(log_density + math.log1p(-floor), broad + math.log(floor))


def _of_label(by_class: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the mean over the labels of each draw's input, (..., q), of (..., q, classes)."""
    return torch.where(given > 0, given * by_class, 0.0).sum(-1)


@dataclass(frozen=True)
class Bracket:
    """A bracket of I(X;T), I(T;Y) and I(X;T|Y), in this order, nats, with the variances that decide how to narrow it.

    `value` is the middle of the two ends (of I(X;T|Y) the difference), `lower` and `upper` 1.96 `error` beyond them.
    `between` and `within` are variances of the draws between and within rows, (2, 2): ends, and the first two
    quantities; `common` is the variance of the replicas that all draws share.
    """

    value: tuple[float, ...]
    error: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    width: float  # half the distance of the ends of I(X;T) or I(T;Y), whichever is more
    between: Array
    within: Array
    common: float
    draws: int

    @staticmethod
    def of(ends: Sequence[torch.Tensor], population: int, entropies: tuple[float, float]) -> Bracket:
        """Reduce the terms of draws to a bracket; of several kinds, that with the nearest ends counts.

        Args:
            ends: Kinds of ends, each of shape (2, 3, V, m, M): upper and lower; quantities; all replicas, and all but
                each group of them (V = 1 where draws share none); rows; draws of each row.
            population: N, of which the m rows are a sample without replacement.
            entropies: H(X) and H(Y), nats, upper bounds on I(X;T) and I(T;Y).

        Source:
            Two-stage sampling: Cochran 1977, Sampling Techniques, section 10.4; the jackknife over replicas: the
            guide, methods.md, section 4.
        """
        kinds = [_Means.of(kind, population, np.array((*entropies, entropies[0]))) for kind in ends]
        with np.errstate(invalid="ignore"):  # Infinite ends are told by `finite`.
            nearest = np.argmin([kind.high - kind.low for kind in kinds], 0)

        def chosen(name: str) -> Array:
            return np.stack([getattr(kinds[k], name)[..., j] for j, k in enumerate(nearest)], -1)

        high, low, error = chosen("high"), chosen("low"), chosen("error")
        xt, ty, _ = ((high + low) / 2).tolist()
        return Bracket(
            (xt, ty, xt - ty),
            tuple(error.tolist()),
            tuple((low - 1.96 * error).tolist()),
            tuple((high + 1.96 * error).tolist()),
            float((high - low)[:2].max() / 2),
            chosen("between")[:, :2],
            chosen("within")[:, :2],
            float(chosen("common")[:, :2].max()),
            ends[0].shape[-1],
        )

    @property
    def finite(self) -> bool:
        """Whether all its numbers are finite."""
        return all(math.isfinite(number) for number in (*self.value, *self.error))

    def sample(self, tolerance: float, population: int, most: int, replicas: int) -> tuple[int, int]:
        """Return how many rows, and draws of each, bring 1.96 standard errors within the tolerance.

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
    """Means of the upper and lower terms of the quantities, with their errors, arrays (quantities,)."""

    high: Array
    low: Array
    error: Array
    common: Array  # (2, quantities), as are the next two
    between: Array
    within: Array

    @staticmethod
    def of(terms: torch.Tensor, population: int, most: Array) -> _Means:
        """Reduce terms (2, quantities, V, m, M), as `Bracket.of` takes them; no quantity exceeds `most`."""
        rows, draws = terms.shape[-2:]
        means = terms.mean((-2, -1)).cpu().numpy()
        full = terms[:, :, 0]
        by_row = full.mean(-1)
        # One row says nothing of the spread between rows: assume the range of the terms.
        unknown = torch.full_like(by_row[..., 0], math.log(population) ** 2)
        between = (by_row.var(-1) if rows > 1 else unknown).clamp(max=LARGEST).cpu().numpy()
        # One draw says nothing of the spread within rows, which is no more than that of the draws.
        within = full.var(-1).mean(-1).clamp(max=LARGEST).cpu().numpy() if draws > 1 else between
        # Replicas of the marginal are few and common to all draws: estimate their error by a jackknife.
        groups, left_out = means.shape[-1] - 1, means[..., 1:]
        spread = (left_out - left_out.mean(-1, keepdims=True)) ** 2 if groups else np.zeros((*means.shape[:2], 1))
        common = (groups - 1) / max(groups, 1) * spread.sum(-1)
        variance = _variance(between, within, rows, draws, population) + common
        high, low = means[0, :, 0], means[1, :, 0]
        middle = (high + low) / 2
        # Errors that the spread does not show: overlaps never drawn, and rows never visited. A value outside its range
        # is off by at least its distance from it.
        unseen = np.hypot(UNSEEN / (rows * draws), np.minimum(_hidden(rows, population), most))
        outside = np.maximum(-middle, middle - most) / 1.96
        error = np.maximum(np.hypot(CAUTION * np.sqrt(variance).max(0), unseen), outside)
        return _Means(high, low, error, common, between, within)


def _hidden(rows: int, population: int) -> float:
    """Return the standard error, nats, due to rows never visited, whose terms may be as large as ln N."""
    return never_visited(rows, population) * math.log(population) / 1.96


def _variance(between: Array, within: Array, rows: int, draws: int, population: int) -> Array:
    """Return the variance of a mean in two-stage sampling: rows without replacement, and draws within rows."""
    share = rows / population
    variance: Array = (1 - share) * between / rows + share * within / (rows * draws)
    return variance
