"""Choose the rows that draws come from, and bound the error due to rows that are never visited."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.mixture import Mixture, entropy

__all__ = ["Visits", "never_visited", "visits_for"]

# A sample of m of n rows misses k given rows with probability (1 - m/n)^k = 1/20 if -k ln(1 - m/n) is this.
MISSED = math.log(20.0)


def never_visited(visited: int, rows: int) -> float:
    """Return the largest share of rows that a sample without replacement misses entirely with probability 5 %.

    Example:
        >>> never_visited(100, 100), round(never_visited(100, 10**6), 3), round(never_visited(50, 100), 3)
        (0.0, 0.03, 0.043)
    """
    if visited >= rows:
        return 0.0
    return min(1.0 - visited / rows, MISSED / (-math.log1p(-visited / rows) * rows))


def visits_for(share: float, rows: int) -> int:
    """Return how many rows to visit, at least one, so that `never_visited` is no more than `share`.

    Example:
        >>> visits_for(0.03, 10**6), visits_for(0.0, 100), visits_for(math.inf, 100)
        (100, 100, 1)
    """
    return max(1, math.ceil(rows * -math.expm1(-MISSED / (share * rows)))) if share > 0 else rows


@dataclass(frozen=True)
class Visits:
    """The centres that draws come from (`owner`), of `every` row or of a sample, with their weights (`share`).

    `known` (3, strata), a prediction without draws, is subtracted from the terms of each row visited, and its mean over
    all rows, `mean` (3,), added to the result; both are 0 if every row is visited. `hidden` (3,) are standard errors
    due to rows never visited.
    """

    owner: torch.Tensor
    share: torch.Tensor
    every: bool
    known: torch.Tensor
    mean: tuple[float, ...]
    hidden: tuple[float, ...]

    @staticmethod
    def of(mixture: Mixture, noise: float, max_draws: int, gap: float) -> Visits:
        """Visit every row if each can have two draws, else as many as can; `gap` is between the bounds on I(X;T)."""
        owner, rows = mixture.owner, mixture.rows
        if 2 * len(owner) <= max_draws:
            return Visits(owner, rows, True, rows.new_zeros(3, 1), (0.0,) * 3, (0.0,) * 3)
        # A systematic sample, at midpoints (k + 1/2) / m of the cumulative weights: rows are in random order already.
        size = max(2, max_draws // 2)
        steps = (torch.arange(size, dtype=rows.dtype, device=rows.device) + 0.5) / size
        sample = owner[torch.searchsorted(rows.cumsum(0), steps).clamp(max=len(owner) - 1)]
        pairs, share = mixture.pairwise(noise), mixture.share
        known = torch.cat((pairs, torch.zeros_like(pairs[:1])))
        missed, most = never_visited(size, len(owner)), -math.log(float(share[share > 0].amin()))
        # Terms of I(X;T) lie between 0 and their prediction from pairs. Terms of I(T;Y) differ from it by at most what
        # other centres add to the density of a draw's own.
        hidden = (
            min(gap, _largest(pairs[0], share, missed)),
            min(
                entropy(mixture.weights.sum(0)),
                missed * most,
                _largest(-pairs[0] - share.log(), share, missed) + gap,
            ),
            2 * missed * most,
        )
        return Visits(
            sample,
            torch.full((size,), 1.0 / size, dtype=rows.dtype, device=rows.device),
            False,
            known[:, sample],
            tuple((known @ share).tolist()),
            tuple(error / 1.96 for error in hidden),
        )


def _largest(values: torch.Tensor, share: torch.Tensor, part: float) -> float:
    """Return the weighted sum of values over the part of the population with the largest ones."""
    order = values.argsort(descending=True)
    before = share[order].cumsum(0) - share[order]
    return float((part - before).clamp(min=0.0).minimum(share[order]) @ values[order])
