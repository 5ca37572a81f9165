"""Which rows draws come from, and what those that none comes from may hide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.mixture import Mixture, entropy

__all__ = ["Visits", "never_visited", "visits_for"]

# Rows of which a sample without replacement has none in 5 of 100 cases: (1 - m/n)^MISSED = 1/20, in rows times
# -ln(1 - m/n).
MISSED = math.log(20.0)


def never_visited(visited: int, rows: int) -> float:
    """Return the largest share of rows that a sample without replacement misses whole in 5 of 100 cases.

    Example:
        >>> never_visited(100, 100), round(never_visited(100, 10**6), 3), round(never_visited(50, 100), 3)
        (0.0, 0.03, 0.043)
    """
    if visited >= rows:
        return 0.0
    return min(1.0 - visited / rows, MISSED / (-math.log1p(-visited / rows) * rows))


def visits_for(share: float, rows: int) -> int:
    """Return how many of the rows to visit, at least one, so that no larger share is missed (`never_visited`).

    Example:
        >>> visits_for(0.03, 10**6), visits_for(0.0, 100), visits_for(math.inf, 100)
        (100, 100, 1)
    """
    return max(1, math.ceil(rows * -math.expm1(-MISSED / (share * rows)))) if share > 0 else rows


@dataclass(frozen=True)
class Visits:
    """The rows that draws come from, `every` one or a sample, and what is known of all rows without draws.

    `known` (3, strata) is subtracted from the terms of each row visited, `mean` (3,) its mean over all rows; both are 0
    where every row is. `hidden` (3,) are standard errors of what rows never visited may hide.
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
        # Midpoints (k + 1/2) / m through the cumulative weights: rows come in a random order already.
        size = max(2, max_draws // 2)
        steps = (torch.arange(size, dtype=rows.dtype, device=rows.device) + 0.5) / size
        sample = owner[torch.searchsorted(rows.cumsum(0), steps).clamp(max=len(owner) - 1)]
        pairs, share = mixture.pairwise(noise), mixture.share
        known = torch.cat((pairs, torch.zeros_like(pairs[:1])))
        missed, most = never_visited(size, len(owner)), -math.log(float(share[share > 0].amin()))
        # The terms of I(X;T) lie between 0 and what pairs say. Those of I(T;Y) differ from it by what other centres add
        # to a draw's own at most: where pairs say that it is nothing, by no more than the bounds leave open.
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
    """Return the sum over that part of the population of which the values are largest."""
    order = values.argsort(descending=True)
    before = share[order].cumsum(0) - share[order]
    return float((part - before).clamp(min=0.0).minimum(share[order]) @ values[order])
