"""The baseline of the network channel: a bracket from noisy passes of the prior (Goldfeld et al. 2019), float64.

What a careful user writes for I(X;T) of a layer T = S + noise of the noisy network: some inputs are visited, each has K
noisy passes shared by its draws, and p(t|x) is the mean of N(t; s, noise^2) over them; p(t) is the mean over Km passes
of every input. Squared distances come from a matrix product of centred values, sums from logarithms, in blocks that
stay in the cache. The draw's own pass among them makes a density too large on average, K fresh ones too small: crossed
they bracket I, and so do own less own, fresh less fresh, with Km passes of the owner in both.

Nothing is pruned, and there are no controls. K and Km are doubled on a pilot of visited inputs, whose gaps they are.
Inputs and draws are what brings the standard error, by ibscan's own rule, within its share of the width. Of all that
would do, the cheapest is taken, with hindsight: the search for it is not counted, nor the error of the passes of every
input, which all draws share. CPU seconds are measured for a pass, for a distance, and for one with the centres of the
marginal, on the layer itself, and multiplied by their numbers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.bracket import LEAST_DRAWS
from ibscan.numerics.channels.controls import CAUTION
from ibscan.numerics.channels.readout import UNSEEN
from ibscan.numerics.channels.visits import never_visited

# Inputs of the pilot, and draws of each; passes made at once.
PILOT, DRAWS, CHUNK = 128, 4, 64
# Most replicas that are run rather than extrapolated, of a visited input and of every input.
MOST, MOST_OF_ALL = 2**14, 32
# Shares of the width that standard errors may have; distances held at once.
SHARES, BLOCK = (0.2, 0.35, 0.5, 0.65, 0.8), 2**18


@dataclass(frozen=True)
class Net:
    """Weights (out, in) and biases of a tanh chain up to one layer, the rows (n, features), and the noise."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    x: torch.Tensor
    noise: float

    def passes(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Return the layer before its own noise of `count` noisy passes of rows (q,), in units of the noise."""
        (weight, bias), *others = self.layers
        post = torch.tanh(torch.addmm(bias, self.x[rows], weight.mT)).repeat_interleave(count, 0)
        for weight, bias in others:
            post = torch.tanh(torch.addmm(bias, post.add(torch.randn_like(post), alpha=self.noise), weight.mT))
        return (post / self.noise).view(len(rows), count, -1)


@dataclass(frozen=True)
class Plan:
    """What reaches a half width at the least CPU seconds, of which `inside` are for p(t|x)."""

    seconds: float
    inside: float
    replicas: float
    of_all: float
    rows: int
    draws: int

    @property
    def extrapolated(self) -> bool:
        """Whether more passes are needed than were run."""
        return self.replicas > MOST or self.of_all > MOST_OF_ALL


@dataclass(frozen=True)
class Ends:
    """Means of the terms of the pilot: upper and lower end, and variances between and within rows."""

    upper: float
    lower: float
    between: float
    within: float

    @staticmethod
    def of(upper: torch.Tensor, lower: torch.Tensor) -> Ends:
        """Reduce terms (rows, draws)."""
        middle = (upper + lower) / 2
        within = float(middle.var(1).mean())
        between = max(0.0, float(middle.mean(1).var()) - within / middle.shape[1])
        return Ends(float(upper.mean()), float(lower.mean()), between, within)

    @property
    def gap(self) -> float:
        """Half of the distance of the ends."""
        return max(0.0, self.upper - self.lower) / 2


@dataclass(frozen=True)
class Pilot:
    """Brackets of one layer by (K, Km), crossed, and by Km, paired; CPU seconds of a pass and of distances."""

    crossed: dict[tuple[int, int], Ends]
    paired: dict[int, Ends]
    of_pass: float
    of_distance: float
    of_centre: float
    population: int

    @property
    def best(self) -> tuple[Ends, float]:
        """The narrowest bracket, and the standard error of its middle."""
        ends = min([*self.crossed.values(), *self.paired.values()], key=lambda one: one.gap)
        visited = min(PILOT, self.population)
        return ends, math.sqrt((ends.between + ends.within / DRAWS) / visited)

    def plan(self, width: float) -> Plan:
        """Return the cheapest way to a half width, with hindsight."""
        found = []
        for share in SHARES:
            target = share * width / 1.96
            for replicas, of_all, ends in self._closed((1 - share) * width):
                for rows, draws in self._visits(ends, target):
                    inside = rows * replicas * (self.of_pass + draws * self.of_distance)
                    passes = self.population * of_all * self.of_pass
                    outside = passes + rows * draws * self.population * of_all * self.of_centre
                    found.append(Plan(inside + outside, inside, replicas, of_all, rows, draws))
        return min(found, key=lambda one: one.seconds)

    def _closed(self, gap: float) -> Iterator[tuple[float, float, Ends]]:
        """Yield (K, Km) that close the gap; at the largest ones run, K or Km times as many as a gap ~ 1/K needs."""
        for (replicas, of_all), ends in self.crossed.items():
            if ends.gap <= gap:
                yield replicas, of_all, ends
        largest, most = (max(one) for one in zip(*self.crossed, strict=True))
        for of_all in {of_all for _, of_all in self.crossed}:
            ends = self.crossed[largest, of_all]
            if ends.gap > gap:
                # What is left at this Km does not go away with K: both grow where Km is the largest.
                factor = ends.gap / gap
                yield largest * factor, of_all * (factor if of_all == most else 1.0), ends
        for of_all, ends in self.paired.items():
            if ends.gap <= gap or of_all == most:
                yield of_all * max(1.0, ends.gap / gap), of_all * max(1.0, ends.gap / gap), ends

    def _visits(self, ends: Ends, target: float) -> Iterator[tuple[int, int]]:
        """Yield inputs and draws of each that bring the standard error within a target."""
        n = self.population
        for draws in (1, 2, 4, 8, 16, 32, 64, 128):
            rows = min(n, LEAST_DRAWS // 2)
            while rows < n and _error(ends, rows, draws, n) > target:
                rows = min(n, math.ceil(1.1 * rows))
            if _error(ends, rows, draws, n) <= target:
                yield rows, max(draws, math.ceil(LEAST_DRAWS / rows))


def _error(ends: Ends, rows: int, draws: int, population: int) -> float:
    """Return the standard error by ibscan's rule: two-stage sampling, and what was never met."""
    variance = (1 - rows / population) * ends.between / rows + ends.within / (population * draws)
    missed = never_visited(rows, population) * math.log(population) / 1.96
    return math.sqrt(CAUTION**2 * variance + (UNSEEN / (rows * draws)) ** 2 + missed**2)


def pilot_of(net: Net, width: float) -> Pilot:
    """Run the pilot of a layer, until what is left of the gap is a fifth of the half width or all replicas are run."""
    n = len(net.x)
    rows = torch.arange(min(PILOT, n))  # The rows are in random order.
    made = net.passes(rows, DRAWS)
    points = made + torch.randn_like(made)
    energy = -0.5 * (points - made).square().sum(-1)
    start = time.process_time()
    every = torch.cat([net.passes(torch.arange(n), 1) for _ in range(MOST_OF_ALL)], 1)
    of_pass = (time.process_time() - start) / (n * MOST_OF_ALL)
    start = time.process_time()
    others, owner = _of_all(every, points, rows)
    of_centre = (time.process_time() - start) / (points[..., 0].numel() * n * MOST_OF_ALL)
    inside, of_distance = _inside(net, rows, points, energy, width)
    crossed, paired, share = {}, {}, -math.log(n)
    for of_all, total in others.items():
        own, fresh = _both(owner, energy, of_all)
        above, below = torch.logaddexp(total, own + share), torch.logaddexp(total, fresh + share)
        paired[of_all] = Ends.of(own - above, fresh - below)
        for count, (high, low) in inside.items():
            crossed[count, of_all] = Ends.of(high - torch.logaddexp(total, low + share), low - above)
    return Pilot(crossed, paired, of_pass, of_distance, of_centre, n)


def _both(kernels: torch.Tensor, energy: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ln p(t|x) from above and below by the first `count` exponents (rows, draws, K)."""
    fresh = kernels[..., :count].logsumexp(-1) - math.log(count)
    rest = kernels[..., : count - 1].logsumexp(-1) if count > 1 else torch.full_like(energy, -math.inf)
    return torch.logaddexp(rest, energy) - math.log(count), fresh


def _exponents(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return -|t - s|^2 / 2 by a matrix product, (..., q, n): both centred by the caller."""
    product = points @ centres.mT
    product -= 0.5 * centres.square().sum(-1).unsqueeze(-2)
    return product.sub_(0.5 * points.square().sum(-1, keepdim=True))


def _inside(
    net: Net, rows: torch.Tensor, points: torch.Tensor, energy: torch.Tensor, width: float
) -> tuple[dict[int, tuple[torch.Tensor, torch.Tensor]], float]:
    """Return ln p(t|x) from above and below by K, doubled, and CPU seconds of a distance."""
    fresh, own = torch.full_like(energy, -math.inf), energy.clone()
    done, spent, found = 0, 0.0, {}
    middle = points.mean(1, keepdim=True)
    while done < MOST:
        # Of the last pass of each K, own has the one that made t instead.
        count = max(1, min(CHUNK, done))
        passes = net.passes(rows, count) - middle
        start = time.process_time()
        kernels = _exponents(points - middle, passes)
        head = kernels[..., :-1].logsumexp(-1) if count > 1 else torch.full_like(energy, -math.inf)
        last = kernels[..., -1]
        before, spent = fresh, spent + time.process_time() - start
        fresh = torch.logaddexp(torch.logaddexp(before, head), last)
        own = torch.logaddexp(torch.logaddexp(before, head), energy)
        done += count
        if done & (done - 1) == 0:
            found[done] = own - math.log(done), fresh - math.log(done)
            if float((own - fresh).mean()) / 2 <= 0.1 * width:
                break
    return found, spent / (done * energy.numel())


def _of_all(
    every: torch.Tensor, points: torch.Tensor, rows: torch.Tensor
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Return, by Km, ln of the part of p(t) that is the other inputs', and exponents of the owner's passes."""
    n, most = every.shape[:2]
    middle = every.flatten(0, 1).mean(0)
    t = points.flatten(0, 1) - middle
    owner = torch.arange(len(rows)).repeat_interleave(points.shape[1])
    sums, size = [], max(1, BLOCK // len(t))
    for replica in range(most):
        parts = []
        for first in range(0, n, size):
            block = _exponents(t, every[first : first + size, replica] - middle)
            mine = ((owner >= first) & (owner < first + size)).nonzero().squeeze(1)
            block[mine, owner[mine] - first] = -math.inf
            parts.append(block.logsumexp(1))
        sums.append(torch.stack(parts).logsumexp(0))
    total = torch.stack(sums).view(most, *points.shape[:2])
    counts = itertools.takewhile(lambda count: count <= most, (2**k for k in range(20)))
    own = _exponents(points - middle, every[rows] - middle)
    return {k: total[:k].logsumexp(0) - math.log(k * n) for k in counts}, own
