"""Replicas and brackets of one layer of one noisy network at one noise level."""

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

__all__ = ["Budget", "Channel", "ClosedBracket", "Population", "RowNormals", "close_bracket"]

# Standard normals (rows, D) of (rows, layer index, replica).
RowNormals: TypeAlias = Callable[[int, int, int], "Array"]
# Replicas of the other inputs, for the marginal: at first as many as make so many centres (or numbers) in all, at least
# four. They are doubled, up to MOST, while half of them give another value, or their error takes much of the tolerance.
MARGINAL_CENTRES, MARGINAL_BUDGET, MARGINAL_REPLICAS, MARGINAL_DOUBLINGS = 2**12, 2**22, 4, 3
MOST_CENTRES, MOST_NUMBERS = 2**17, 2**24
# A density made by fewer centres than these, effectively, may miss centres that the replicas do not show.
SEEN_CENTRES = 16.0
# The bracket is first closed on few rows (the pilot), where many replicas cost little; the values need more rows.
PILOT_ROWS, PILOT_DRAWS, LEAST_REPLICAS = 256, 1024, 16
# Share of the tolerance that the pilot must reach, so that the whole sample reaches the tolerance.
MARGIN = 0.8
# Draws of noise under which a layer must be the same for every input to be called independent of the input.
INDEPENDENT_REPLICAS, SURELY_INDEPENDENT_REPLICAS = 16, 1024
# From this number of replicas on, give up on a bracket that closes too slowly.
HOPE_REPLICAS = 64
# Numbers the draws of one cell may hold: rows times draws times units.
DRAWN_BUDGET = 2**26


@dataclass(frozen=True)
class Budget:
    """The tolerance of a cell and what may be spent on it, as in `NetworkInformation`."""

    tolerance: float
    max_replicas: int
    max_draws: int
    patient: bool


@dataclass(frozen=True)
class Population:
    """The probe as a population: N rows, the distinct inputs among them, and their joint weights with the classes."""

    x: Array
    first: Array  # index of the first row of each distinct input, (n,)
    owner: torch.Tensor  # index of the distinct input each row is, (N,)
    rows: torch.Tensor  # joint weights of rows and classes, (N, classes)
    joint: torch.Tensor  # joint weights of distinct inputs and classes, (n, classes)
    ceiling: float  # H(X), nats

    @staticmethod
    def of(probe: Probe, network: NoisyNetwork) -> Population:
        """Make the population of a probe, with equal rows merged."""
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
    """One layer of one noisy network at one noise level."""

    network: NoisyNetwork
    population: Population
    layer: int
    noise: float
    normals: RowNormals
    budget: Budget

    def is_input_independent(self, replicas: int) -> bool:
        """Return whether, under each of `replicas` draws of noise, the layer is the same for every input."""
        count = min(replicas, self.budget.max_replicas)
        x = self.population.x[self.population.first]

        def normals(layer: int, replica: int) -> Array:
            noise = self.normals(1, layer, replica)
            return np.broadcast_to(noise, (len(x), noise.shape[1]))

        walk = self.network.noisy_walk(x, self.layer, self.noise, normals, range(count))
        found = [(values.amax((0, 2)) - values.amin((0, 2)), values.abs().amax((0, 1, 2))) for _, values in walk]
        # A unit varies only by rounding if it does so relative to its own values.
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
        """Return the first replicas of every distinct input, (K, n, D), and how many there may be of each."""
        first = self.marginal(range(1))
        inputs, width = first.shape[1:]
        most = self.budget.max_replicas
        count = min(max(MARGINAL_REPLICAS, min(MARGINAL_CENTRES, MARGINAL_BUDGET // width) // inputs), most)
        largest = min(MOST_CENTRES, MOST_NUMBERS // width) // inputs
        inner = torch.cat((first, self.marginal(range(1, count))))
        return inner, min(max(count << MARGINAL_DOUBLINGS, largest), most)

    def bracketed(self, rows: int, draws: int, start: int, inner: torch.Tensor, target: float) -> Bracket:
        """Return the bracket of the first `rows` rows, doubling replicas until it is within the target.

        Args:
            rows: How many rows are queried.
            draws: Draws of each row.
            start: Replicas of each row at first.
            inner: Replicas of every distinct input for the marginal, (K, n, D).
            target: Half width to reach, nats.
        """
        x = self.population.x[:rows]
        normals = partial(self.normals, rows)

        def replicas(block: range) -> Sequence[tuple[range, torch.Tensor]]:
            walk = self.network.noisy_walk(x, self.layer, self.noise, normals, block)
            return ((part, values[0] / self.noise) for part, values in walk)  # type: ignore[return-value]

        # Each draw on a replica of its own: draws of one replica would be correlated.
        own_replica = tuple(range(draws))
        made = torch.cat([values for _, values in replicas(range(draws))])
        noise = aligned(np.stack([normals(self.layer, draw) for draw in range(draws)])).to(made.device)
        points = made + noise
        queries = Queries(points.transpose(0, 1), 0.5 * noise.square().sum(-1).mT, own_replica)
        joint, owner = self.population.joint, self.population.owner[:rows]
        others = torch.full(queries.energy.shape, -torch.inf, dtype=torch.float64, device=made.device)
        rest, effective = others_density(queries, owner, inner / self.noise, joint)
        # The density of the own input as `fair` as the others': from as few replicas as each of them has.
        fair_replicas, fair = range(len(inner)), others.clone()
        is_fair_replica = torch.tensor([draw < len(inner) for draw in own_replica], device=made.device)
        follow = ReplicaControls(noise, made)
        count, goal, before = 0, max(start, draws), math.inf
        while True:
            for block, values in replicas(range(count, goal)):
                others = torch.logaddexp(others, replica_sums(queries, block, values))
                follow.add(values)
                if block.start in fair_replicas:
                    part = block[: len(inner) - block.start]
                    fair = torch.logaddexp(fair, replica_sums(queries, part, values[: len(part)]))
            count = goal
            fair_count = (min(count, len(inner)) - is_fair_replica.to(fair.dtype)).clamp(min=1.0)
            terms = bracket_terms(
                others, count, rest, joint[owner], joint.sum(0), fair - fair_count.log(), effective < SEEN_CENTRES
            )
            terms = controlled(terms.flatten(0, 2), follow.follow()).view(terms.shape)
            found = Bracket.of(terms, len(self.population.x), count, self.population.entropies)
            # A bracket closes like 1/K once replicas are dense, and more slowly before: give up on one that this rate
            # cannot close within the budget. More replicas of the own input do not reduce `unseen_gap`.
            gap, most = found.gap - found.unseen_gap, self.budget.max_replicas
            cannot_close = not self.budget.patient and count >= HOPE_REPLICAS and gap * count / most > target
            enough = gap <= max(target - found.bias, target / 2)
            if enough or count >= most or (cannot_close and 2 * gap > before):
                return found
            goal, before = min(2 * count, most), gap


@dataclass(frozen=True)
class ClosedBracket:
    """A bracket as narrow as the tolerance asks or the budget allows.

    `inner` are the replicas for its marginal, (K, n, D); `draws` counts all draws; `reached` says whether its width is
    within the tolerance.
    """

    bracket: Bracket
    inner: torch.Tensor
    draws: int
    reached: bool


def close_bracket(channel: Channel, inner: torch.Tensor, most: int) -> ClosedBracket:
    """Close the bracket on few rows first, then take as many rows and draws as their spread needs.

    Args:
        channel: The layer.
        inner: First replicas of every distinct input, (K, n, D); more are made if they matter.
        most: Replicas of each input at most.
    """
    budget, rows = channel.budget, len(channel.population.x)
    numbers_a_draw = inner.shape[-1] + 32 * channel.population.joint.shape[1]
    most_draws = max(2, min(budget.max_draws, DRAWN_BUDGET // numbers_a_draw))
    replicas = min(LEAST_REPLICAS, budget.max_replicas)
    size = min(PILOT_ROWS, rows, most_draws // 2)
    draws = min(max(2, min(PILOT_DRAWS, most_draws) // size), budget.max_replicas)
    pilot = True
    while True:
        target = budget.tolerance * (MARGIN if pilot else 1.0)
        found = channel.bracketed(size, draws, replicas, inner, target)
        replicas = found.replicas
        share = max(found.bias, found.unseen_gap, 1.96 * math.sqrt(found.common))
        # More replicas for the marginal cost little on few rows: settle here what would be expensive later.
        coarse = max(found.half_change, (4 if pilot else 2) * share, found.width) > budget.tolerance
        if coarse and found.gap - found.unseen_gap <= budget.tolerance and 2 * len(inner) <= most:
            inner = torch.cat((inner, channel.marginal(range(len(inner), 2 * len(inner)))))
            continue
        # More draws cannot close a bracket that is wide at the largest number of replicas; near the tolerance they
        # decide whether it is.
        reached = found.width <= budget.tolerance
        if found.width > 2 * budget.tolerance and not budget.patient:
            break
        aim = budget.tolerance if reached or budget.patient else math.inf
        wanted = found.sample(aim, rows, most_draws, budget.max_replicas)
        if wanted[0] * wanted[1] <= size * draws:
            break
        pilot, (size, draws) = False, wanted
    return ClosedBracket(found, inner, size * draws, reached)
