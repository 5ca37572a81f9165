"""Close the bracket of one layer of one noisy network: choose how to estimate, then how many rows and draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from ibscan.measures.noisy_channel import NEARBY, Channel, Effort, Found, Inside
from ibscan.numerics.channels.bracket import LEAST_DRAWS
from ibscan.numerics.channels.paths import GAUSS_NEWTON, STARTS
from ibscan.numerics.channels.replicas import Replicas

__all__ = ["ClosedBracket", "close_bracket"]

# The bracket is first closed on few rows (the pilot); the values need more rows, or, of few rows, more draws.
PILOT_ROWS, PILOT_DRAWS = 512, 1024
# Share of the tolerance that the pilot must reach, so that the whole sample reaches the tolerance.
MARGIN = 0.8
# Replicas (of one row, and more of few rows), weighted paths and pairs to begin with, and doublings that one step may
# ask for.
REPLICAS, REPLICAS_IN_ALL, PATHS, PAIRS, STEP = 64, 2**15, 8, 16, 3
MOST_REPLICAS = 256
# Replicas of all inputs that cost a draw less than its pairs.
CHEAP_CENTRES = 2**14
# Cost of one density of a draw at a replica, and of the linearisations of a draw, in noisy passes.
KERNEL, LINES = 0.03, 6.0
# A bracket that needs more than so many times the largest effort is given up; looking thoroughly for likely paths may
# save a factor. Where one linearisation has so many numbers, a few rows say first whether there is hope.
HOPE, THOROUGH = 2.0, 32.0
LARGE_SLOPE, GLANCE_ROWS = 2**12, 64
# Multiply-adds that the weighted paths of all draws may take when more are asked for, unless the user set the budget:
# some seconds.
AFFORDABLE = 6e9
# Gaps are all the same beyond this.
LARGEST_GAP = 300.0
# Evaluations of a search at most: a guard, as each is asked for more than the one before.
MOST_TRIES = 24
# Numbers the draws of one cell may hold: rows times draws times units.
DRAWN_BUDGET = 2**26


@dataclass(frozen=True)
class ClosedBracket:
    """A bracket as narrow as the tolerance asks or the budget allows.

    `rows` and `draws` are the rows visited and the draws of each; `reached` says whether its width is within the
    tolerance.
    """

    found: Found
    effort: Effort
    rows: int
    draws: int
    reached: bool


def close_bracket(channel: Channel, inner: torch.Tensor, most_inner: int) -> ClosedBracket:
    """Close the bracket on few rows first, then take as many rows and draws as their spread needs.

    Args:
        channel: The layer.
        inner: First replicas of every distinct input, (K, n, D); more are made if they matter.
        most_inner: Replicas of every distinct input at most.

    Raises:
        MemoryError, RuntimeError: From the network.
    """
    budget, population = channel.budget, channel.population.size
    numbers = channel.units + channel.width + 32 * channel.population.joint.shape[1]
    most = max(2, min(budget.max_draws, DRAWN_BUDGET // numbers))
    rows = min(PILOT_ROWS, population, most // 2)
    # Where every row is visited the pilot has all draws that are needed at least.
    pilot_draws = PILOT_DRAWS if rows < population else LEAST_DRAWS
    draws = max(2, min(pilot_draws, most, rows * budget.max_replicas) // rows)
    # Draws of a row share its replicas: more of them than replicas would be counted as new.
    replicas = min(max(REPLICAS, draws, min(REPLICAS_IN_ALL // rows, MOST_REPLICAS)), budget.max_replicas)
    first = Effort(0, replicas, 0, Replicas(inner, channel.population.joint))
    search = _Search(channel, most_inner, rows, draws, first)
    is_pilot = rows < population
    while True:
        search.close(budget.tolerance * (MARGIN if is_pilot else 1.0))
        bracket = search.found.bracket
        # More draws cannot close a bracket that is wide with the largest effort; near the tolerance they decide
        # whether it is.
        reached = bracket.width <= budget.tolerance
        if not bracket.finite or (bracket.width > 2 * budget.tolerance and not budget.patient):
            break
        if reached and not is_pilot and 1.96 * max(bracket.error[:2]) <= budget.tolerance:
            break
        aim = budget.tolerance if reached or budget.patient else math.inf
        effort = search.effort
        wanted = bracket.sample(aim, population, most, most if effort.paths else budget.max_replicas)
        if wanted[0] * wanted[1] <= search.rows * search.draws:
            break
        is_pilot, (search.rows, search.draws) = False, wanted
        search.look(effort if effort.paths else replace(effort, replicas=max(effort.replicas, search.draws)))
    return ClosedBracket(search.found, search.effort, search.rows, search.draws, reached)


@dataclass
class _Search:
    """A search for the least effort that closes a bracket on some rows."""

    channel: Channel
    most_inner: int
    rows: int
    draws: int
    effort: Effort
    found: Found = field(init=False)
    densities: Inside | None = None  # given the input, of the last effort
    by_pairs: Found | None = None  # what the first pairs found, where replicas did better

    def __post_init__(self) -> None:
        self.look(self.effort)

    def look(self, effort: Effort) -> None:
        """Take an effort, and what it finds."""
        self.effort, self.found = effort, self.channel.bracketed(self.rows, self.draws, effort, self.densities)
        self.densities = self.found.densities

    def close(self, target: float) -> None:
        """Raise the effort until the width is within the target, or until more would not be enough."""
        for _ in range(MOST_TRIES):
            bracket, tolerance = self.found.bracket, self.channel.budget.tolerance
            common = 2 * 1.96 * math.sqrt(bracket.common)
            if not bracket.finite or (bracket.width <= target and common <= tolerance):
                return
            inside = _excess(self.found.inside, target)
            outside = max(_excess(self.found.outside, target), common / tolerance)
            # Each may take half of the width, or what the other leaves.
            inside, outside = inside / max(0.5, 0.9 - outside), outside / max(0.5, 0.9 - inside)
            if not (self._more_inside(inside) if inside >= outside else self._more_outside(outside)):
                return

    def _more_inside(self, factor: float) -> bool:
        """Estimate p(t|x) by so many times as many paths, weighted where that costs less; return whether it helps."""
        effort, budget = self.effort, self.channel.budget
        if effort.paths:
            if not effort.search:
                thorough = replace(effort, search=True)
                affordable = budget.patient or self._operations(thorough) <= AFFORDABLE
                return affordable and self._look_thoroughly(effort.paths * factor, thorough)
            more = replace(effort, paths=self._raised(effort.paths, factor, budget.max_replicas))
            while not budget.patient and more.paths > effort.paths and self._operations(more) > AFFORDABLE:
                more = replace(more, paths=more.paths // 2)
            if more.paths > effort.paths:
                self.look(more)
            return more.paths > effort.paths
        count = self._raised(effort.replicas, factor, budget.max_replicas)
        cost = effort.replicas * max(1.0, factor) * (1 + KERNEL * self.draws)
        if self.channel.steerable and (not count or cost > NEARBY + self.draws * (2 * PATHS + LINES)):
            most = budget.max_replicas
            weighted = replace(effort, paths=min(PATHS, most), replicas=min(NEARBY, most))
            if not self._worth(weighted):
                return False
            self.look(weighted)
            return True
        if count:
            self.look(replace(effort, replicas=count))
        return count > 0

    def _look_thoroughly(self, wanted: float, effort: Effort) -> bool:
        """Take an effort that looks thoroughly for likely paths, if `wanted` paths or pairs are not far too many."""
        budget = self.channel.budget
        if wanted > THOROUGH * HOPE * budget.max_replicas and not budget.patient:
            return False
        self.look(effort)
        return True

    def _operations(self, effort: Effort) -> float:
        """Return about how many multiply-adds the weighted paths of all draws take."""
        slope, side = self.channel.width * self.channel.units, min(self.channel.width, self.channel.units)
        laws = 1 + STARTS * (1 + GAUSS_NEWTON) if effort.search else 3
        return float(self.rows * self.draws * slope * (laws * side + 2 * (2 + effort.search * STARTS) * effort.paths))

    def _worth(self, effort: Effort) -> bool:
        """Return whether an effort of weighted paths may close the bracket, by few rows where it costs much."""
        channel, budget = self.channel, self.channel.budget
        if budget.patient or self.rows <= GLANCE_ROWS or channel.width * channel.units < LARGE_SLOPE:
            return True
        glance = channel.bracketed(GLANCE_ROWS, self.draws, effort)
        return effort.paths * _excess(glance.inside, budget.tolerance) <= THOROUGH * HOPE * budget.max_replicas

    def _more_outside(self, factor: float) -> bool:
        """Estimate p(t, y) by so many times as many replicas or pairs; return whether it helps."""
        effort, most = self.effort, self.channel.budget.max_replicas
        if effort.pairs:
            if not effort.pair_search:
                return self._look_thoroughly(effort.pairs * factor, replace(effort, pair_search=True))
            count = self._raised(effort.pairs, factor, most)
            if count:
                self.look(replace(effort, pairs=count))
            return count > 0
        inner = effort.inner.centres
        # Few cost so little that more are tried even if they will not be enough.
        cheap = min(self.most_inner, CHEAP_CENTRES // inner.shape[1], len(inner) << _doublings(factor))
        cheap = cheap if cheap > len(inner) else 0
        if not cheap and self.by_pairs is None and self.channel.inputs is not None:
            before = self.found
            self.look(replace(effort, pairs=min(PAIRS, most)))
            if self.found.outside >= before.outside:
                self.by_pairs, self.effort, self.found = self.found, effort, before
            return True
        count = cheap or self._raised(len(inner), factor, self.most_inner)
        if count:
            more = self.channel.marginal(range(len(inner), count))
            self.look(replace(effort, inner=Replicas(torch.cat((inner, more)), effort.inner.weights)))
        elif self.by_pairs is not None:
            factor *= self.by_pairs.outside / max(self.found.outside, 1e-9)
            count = self._raised(PAIRS, factor, most)
            if count:
                self.look(replace(effort, pairs=count))
        return count > 0

    def _raised(self, count: int, factor: float, most: int) -> int:
        """Return a larger count, 0 if the largest allowed would not be enough or is reached.

        Gaps close like 1 / count once paths are dense, and more slowly before.
        """
        if count >= most or (count * factor > HOPE * most and not self.channel.budget.patient):
            return 0
        return min(most, count << _doublings(factor))


def _excess(gap: float, target: float) -> float:
    """Return by which factor too few paths leave a gap (half the distance of the ends) beyond a target.

    Ends are apart by about ln(1 + v / K), v the relative variance of the weights of K paths.
    """
    return math.expm1(2.0 * min(gap, LARGEST_GAP)) / (2.0 * target)


def _doublings(factor: float) -> int:
    return min(STEP, max(1, math.ceil(math.log2(max(factor, 1.0)))))
