"""One layer of one noisy network at one noise level, asked for replicas, brackets and at last a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from ibscan.core.network import NoisyNetwork
from ibscan.core.records import Array, Probe
from ibscan.measures.driver import ROUNDING, distinct_rows, input_weights
from ibscan.numerics.channels.bracket import Bracket
from ibscan.numerics.channels.controls import ReplicaControls, controlled
from ibscan.numerics.channels.mixture import entropy
from ibscan.numerics.channels.propagation import Queries, bracket_terms, others_density, replica_sums
from ibscan.numerics.tiling import aligned

__all__ = ["Budget", "Channel", "Closed", "Population", "RowNormals", "closed"]

# Standard normals (rows, D) of (rows, layer index, replica).
RowNormals: TypeAlias = Callable[[int, int, int], "Array"]
# Replicas of the other inputs: as many as make so many centres (or numbers) in all, at least four; doubled, up to the
# most, while half of them give another value, or they may be blind, or their error or bias takes much of the tolerance.
MARGINAL_CENTRES, MARGINAL_BUDGET, MARGINAL_REPLICAS, MARGINAL_DOUBLINGS = 2**12, 2**22, 4, 3
MOST_CENTRES, MOST_NUMBERS = 2**17, 2**24
# A sum over fewer centres than these, in effect, may miss what replicas happen not to show.
SEEN_CENTRES = 16.0
# The bracket is first closed on few rows, on which many replicas cost little; the values need more rows.
PILOT_ROWS, PILOT_DRAWS, LEAST_REPLICAS = 256, 1024, 16
# What the pilot must reach of the tolerance, so that the whole sample reaches all of it.
MARGIN = 0.8
# Noises under which a layer is looked at before it is said to tell nothing.
INDEPENDENT_REPLICAS, SURELY_INDEPENDENT_REPLICAS = 16, 1024
# From here on a bracket is judged by how it closes.
HOPE_REPLICAS = 64
# Numbers the draws of one cell may hold, rows, draws and units together.
DRAWN_BUDGET = 2**26


@dataclass(frozen=True)
class Budget:
    """What may be spent on a cell, and for which half width: as in `NetworkInformation`."""

    tolerance: float
    max_replicas: int
    max_draws: int
    patient: bool


@dataclass(frozen=True)
class Population:
    """The probe as a population: N rows, the distinct inputs among them, and their joint weights with the classes."""

    x: Array
    first: Array  # the row each distinct input is met at first, (n,)
    owner: torch.Tensor  # the distinct input each row is, (N,)
    rows: torch.Tensor  # joint weights of rows and classes, (N, C)
    joint: torch.Tensor  # of distinct inputs and classes, (n, C)
    ceiling: float

    @staticmethod
    def of(probe: Probe, network: NoisyNetwork) -> Population:
        """Collapse equal rows."""
        weights, ceiling = input_weights(probe)
        first, member, _ = distinct_rows(probe.x)
        owner = torch.as_tensor(member, device=network.device)
        rows = aligned(weights).to(network.device)
        joint = torch.zeros(len(first), rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, owner, rows)
        return Population(probe.x, first, owner, rows, joint, ceiling)

    @property
    def share(self) -> torch.Tensor:
        """Weights of the distinct inputs, (n,)."""
        return self.joint.sum(1)

    @property
    def entropies(self) -> tuple[float, float]:
        """H(X) and H(Y), nats."""
        return self.ceiling, entropy(self.joint.sum(0))


@dataclass(frozen=True)
class Channel:
    """One layer of one noisy network at one noise level, asked for replicas and brackets."""

    network: NoisyNetwork
    population: Population
    layer: int
    noise: float
    normals: RowNormals
    budget: Budget

    def is_input_independent(self, replicas: int) -> bool:
        """Return whether the layer is the same for every input, given the noise before it: it tells nothing of them."""
        count = min(replicas, self.budget.max_replicas)
        x = self.population.x[self.population.first]

        def normals(layer: int, replica: int) -> Array:
            noise = self.normals(1, layer, replica)
            return np.broadcast_to(noise, (len(x), noise.shape[1]))

        walk = self.network.noisy_walk(x, self.layer, self.noise, normals, range(count))
        found = [(values.amax((0, 2)) - values.amin((0, 2)), values.abs().amax((0, 1, 2))) for _, values in walk]
        # Each unit by the rounding of its own values.
        scale = torch.stack([largest for _, largest in found]).amax(0)
        return all(bool((spread <= ROUNDING * scale).all()) for spread, _ in found)

    def marginal(self, replicas: range) -> torch.Tensor:
        """Return replicas of every distinct input, shape (R, n, D)."""
        first = self.population.first

        def normals(layer: int, replica: int) -> Array:
            return self.normals(len(self.population.x), layer, replica)[first]

        walk = self.network.noisy_walk(self.population.x[first], self.layer, self.noise, normals, replicas)
        return torch.cat([values[0] for _, values in walk])

    def others(self) -> tuple[torch.Tensor, int]:
        """Return replicas of every distinct input to begin with, (R, n, D), and how many there may be of each."""
        first = self.marginal(range(1))
        inputs, width = first.shape[1:]
        most = self.budget.max_replicas
        count = min(max(MARGINAL_REPLICAS, min(MARGINAL_CENTRES, MARGINAL_BUDGET // width) // inputs), most)
        largest = min(MOST_CENTRES, MOST_NUMBERS // width) // inputs
        inner = torch.cat((first, self.marginal(range(1, count))))
        return inner, min(max(count << MARGINAL_DOUBLINGS, largest), most)

    def bracketed(self, rows: int, draws: int, start: int, inner: torch.Tensor, target: float) -> Bracket:
        """Return the bracket of the first `rows` rows, replicas doubled from `start` until it is within the target."""
        x = self.population.x[:rows]
        normals = partial(self.normals, rows)

        def replicas(block: range) -> Sequence[tuple[range, torch.Tensor]]:
            walk = self.network.noisy_walk(x, self.layer, self.noise, normals, block)
            return ((part, values[0] / self.noise) for part, values in walk)  # type: ignore[return-value]

        # Every draw on a replica of its own: those of one replica would tell the same again.
        own = tuple(range(draws))
        made = torch.cat([values for _, values in replicas(range(draws))])
        noise = aligned(np.stack([normals(self.layer, draw) for draw in range(draws)])).to(made.device)
        points = made + noise
        queries = Queries(points.transpose(0, 1), 0.5 * noise.square().sum(-1).mT, own)
        joint, owner = self.population.joint, self.population.owner[:rows]
        others = torch.full(queries.energy.shape, -torch.inf, dtype=torch.float64, device=made.device)
        rest, effective = others_density(queries, owner, inner / self.noise, joint)
        # The own input seen by as few replicas as the others are.
        few, fair = range(len(inner)), others.clone()
        first_ones = torch.tensor([draw < len(few) for draw in own], device=made.device)
        follow = ReplicaControls(noise, made)
        count, goal, before = 0, max(start, draws), math.inf
        while True:
            for block, values in replicas(range(count, goal)):
                others = torch.logaddexp(others, replica_sums(queries, block, values))
                follow.add(values)
                if block.start in few:
                    part = block[: len(few) - block.start]
                    fair = torch.logaddexp(fair, replica_sums(queries, part, values[: len(part)]))
            count = goal
            seen = (min(count, len(few)) - first_ones.to(fair.dtype)).clamp(min=1.0)
            terms = bracket_terms(
                others, count, rest, joint[owner], joint.sum(0), fair - seen.log(), effective < SEEN_CENTRES
            )
            terms = controlled(terms.flatten(0, 2), follow.follow()).view(terms.shape)
            found = Bracket.of(terms, len(self.population.x), count, self.population.entropies)
            # A bracket closes like 1/K once replicas are dense, more slowly before: one that this could not close
            # within the budget is left open at once.
            # What the marginal's bias and blindness take is not these replicas' to mend.
            gap, most = found.gap - found.unseen_gap, self.budget.max_replicas
            hopeless = not self.budget.patient and count >= HOPE_REPLICAS and gap * count / most > target
            enough = gap <= max(target - found.bias, target / 2)
            if enough or count >= most or (hopeless and 2 * gap > before):
                return found
            goal, before = min(2 * count, most), gap


@dataclass(frozen=True)
class Closed:
    """A bracket that came as near to the tolerance as the budget allowed.

    `inner` are the replicas of the other inputs behind it, (R, n, D); `draws` how many there were in all; `reached`
    says whether what the bracket leaves open is within the tolerance.
    """

    bracket: Bracket
    inner: torch.Tensor
    draws: int
    reached: bool


def closed(channel: Channel, inner: torch.Tensor, most: int) -> Closed:
    """Close the bracket on few rows first; then take as many rows, and draws of each, as the spread between them needs.

    Args:
        channel: The layer.
        inner: Replicas of every distinct input, (R, n, D), of which more are made where they decide.
        most: How many there may be of each.
    """
    budget, rows = channel.budget, len(channel.population.x)
    numbers_a_draw = inner.shape[-1] + 32 * channel.population.joint.shape[1]
    most_draws = max(2, min(budget.max_draws, DRAWN_BUDGET // numbers_a_draw))
    replicas = min(LEAST_REPLICAS, budget.max_replicas)
    size = min(PILOT_ROWS, rows, most_draws // 2)
    draws = min(max(2, min(PILOT_DRAWS, most_draws) // size), budget.max_replicas)
    few = True
    while True:
        target = budget.tolerance * (MARGIN if few else 1.0)
        found = channel.bracketed(size, draws, replicas, inner, target)
        replicas = found.replicas
        share = max(found.bias, found.unseen_gap, 1.96 * math.sqrt(found.common))
        # More of the others' replicas cost little on few rows: what is settled there is not found out later.
        coarse = max(found.half_change, (4 if few else 2) * share, found.width) > budget.tolerance
        if coarse and found.gap - found.unseen_gap <= budget.tolerance and 2 * len(inner) <= most:
            inner = torch.cat((inner, channel.marginal(range(len(inner), 2 * len(inner)))))
            continue
        # More draws cannot mend a bracket that the largest number of replicas leaves open; near the tolerance they
        # settle whether it does.
        reached = found.width <= budget.tolerance
        if found.width > 2 * budget.tolerance and not budget.patient:
            break
        aim = budget.tolerance if reached or budget.patient else math.inf
        wanted = found.sample(aim, rows, most_draws, budget.max_replicas)
        if wanted[0] * wanted[1] <= size * draws:
            break
        few, (size, draws) = False, wanted
    return Closed(found, inner, size * draws, reached)
