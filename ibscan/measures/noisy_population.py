"""What a cell of the network channel is measured on: the rows as a population, and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ibscan.core.network import NoisyNetwork
from ibscan.core.records import Array, Probe
from ibscan.measures.driver import distinct_rows, input_weights
from ibscan.numerics.channels.mixture import entropy
from ibscan.numerics.tiling import aligned

__all__ = ["Budget", "Population"]


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
    distinct: Array  # the distinct inputs among x, (n, ...)
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
        return Population(probe.x, probe.x[first], owner, rows, joint, ceiling)

    @property
    def size(self) -> int:
        """N, the number of rows."""
        return len(self.owner)

    @cached_property
    def share(self) -> torch.Tensor:
        """Weights of the distinct inputs, (n,)."""
        return self.joint.sum(1)

    @cached_property
    def entropies(self) -> tuple[float, float]:
        """H(X) and H(Y), nats."""
        return self.ceiling, entropy(self.joint.sum(0))
