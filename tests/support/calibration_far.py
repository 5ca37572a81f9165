"""Cases for the calibration of intervals in which few rows matter: far ones, rare classes, rows that are not visited.

Their truths are exact. Rows are a grid of two lines (or one line), turned into any number of units, and perhaps one
row more, so far away that it shares no density: information of independent coordinates adds up, that of each is a
trapezoidal rule on the line, and the far row adds the entropy of whether it is the one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from support.calibration import Case
from support.oracles import Parameters, line_ty, line_xt, weight_entropy

# Noises of a far row beyond all others: nothing of its density is among them.
APART = 30.0


@dataclass(frozen=True)
class Grid:
    """Rows (a, b) of two lines in `units` units, class by a; with `far` one more row, so many noises away.

    The class of a row is whether a is above its `quantile`; `alone` gives the far row a class of its own.
    """

    name: str
    first: np.ndarray
    second: np.ndarray
    noise: float
    units: int
    far: float | None = None
    quantile: float = 0.5
    alone: bool = False
    tolerance: float = 0.05
    max_draws: int = 65536
    slow: bool = False

    def __post_init__(self) -> None:
        assert self.far is None or self.far >= APART
        assert self.units > 1 or len(self.second) == 1

    @cached_property
    def plane(self) -> np.ndarray:
        rows = np.array([(a, b) for a in self.first for b in self.second])
        if self.far is None:
            return rows
        return np.vstack((rows, rows.max(0) + self.far * self.noise * np.array((0.6, 0.8))))

    @cached_property
    def labels(self) -> np.ndarray:
        above = self.first > np.quantile(self.first, self.quantile)
        labels = np.repeat(above, len(self.second)).astype(np.int64)
        return labels if self.far is None else np.append(labels, 2 if self.alone else 1)

    @cached_property
    def values(self) -> np.ndarray:
        if self.units == 1:
            return self.plane[:, :1]
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((self.units, 2)))[0]
        return self.plane @ turn.T

    @property
    def case(self) -> Case:
        return Case(self.name, self.values, self.labels, self.noise, self.tolerance, self.max_draws)

    def truth(self, noise: float | None = None) -> tuple[float, float]:
        """Return I(X;T+Z) and I(T+Z;Y) at a noise, by default the case's own."""
        noise = noise or self.noise
        ones = [np.ones(len(line)) for line in (self.first, self.second)]
        xt = sum(line_xt(line, one, noise) for line, one in zip((self.first, self.second), ones, strict=True))
        above = self.first > np.quantile(self.first, self.quantile)
        ty = line_ty(self.first, np.stack((~above, above), 1) / len(above), noise)
        if self.far is None:
            return float(xt), float(ty)
        n = len(self.plane)
        most, shares = (n - 1) / n, np.bincount(self.labels) / n
        among = np.bincount(self.labels[:-1]) / (n - 1)
        known = weight_entropy(shares) - most * weight_entropy(among)
        return float(most * xt + weight_entropy([most, 1 / n])), float(known + most * ty)


@dataclass(frozen=True)
class Line:
    """Rows on one line through so many units, one of them `far` spreads out: it may share density with the others."""

    name: str
    places: np.ndarray
    noise: float
    units: int
    tolerance: float = 0.05
    max_draws: int = 65536
    slow: bool = False

    @property
    def labels(self) -> np.ndarray:
        return (self.places > 0).astype(np.int64)

    @property
    def values(self) -> np.ndarray:
        along = np.random.default_rng(0).standard_normal(self.units)
        return self.places[:, None] * along / np.linalg.norm(along)

    @property
    def case(self) -> Case:
        return Case(self.name, self.values, self.labels, self.noise, self.tolerance, self.max_draws)

    def truth(self, noise: float | None = None) -> tuple[float, float]:
        noise, joint = noise or self.noise, np.eye(2)[self.labels] / len(self.places)
        return float(line_xt(self.places, joint.sum(1), noise)), float(line_ty(self.places, joint, noise))


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def heavy(degrees: int, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(degrees, n)


def rectified(n: int, seed: int) -> np.ndarray:
    return np.maximum(normal(n, seed), 0.0)


def with_far(n: int, far: float, seed: int) -> np.ndarray:
    return np.append(normal(n - 1, seed), far)


ONE = np.zeros(1)
READ_OUT = {
    case.name: case
    for case in (
        Grid("far 30, 1 unit", normal(500, 1), ONE, noise=0.3, units=1, far=30.0),
        Grid("far 30, 2 units", normal(25, 2), normal(20, 3), noise=0.3, units=2, far=30.0),
        Grid("far 1000, 2 units", normal(25, 2), normal(20, 3), noise=1.0, units=2, far=1000.0, alone=True),
        Grid("far 300, 5 units", normal(50, 4), normal(40, 5), noise=0.3, units=5, far=300.0, slow=True),
        Grid("far 1000, 12 units", normal(100, 6), normal(50, 7), noise=0.5, units=12, far=1000.0, slow=True),
        Grid("far 1e5, 5 units", normal(25, 2), normal(20, 3), noise=0.1, units=5, far=1e5),
        Grid("far 100, 13 units", normal(25, 2), normal(20, 3), noise=0.3, units=13, far=100.0),
        Grid("far 1000, 64 units", normal(25, 2), normal(20, 3), noise=0.3, units=64, far=1000.0, slow=True),
        Line("far 10, sharing", with_far(500, 10.0, 8), noise=3.0, units=2),
        Line("far 6, sharing", with_far(2000, 6.0, 9), noise=1.5, units=4, slow=True),
        Grid("t(1)", heavy(1, 25, 10), heavy(1, 20, 11), noise=0.5, units=2),
        Grid("t(1), 13 units", heavy(1, 50, 12), heavy(1, 40, 13), noise=2.0, units=13, slow=True),
        Grid("t(2)", heavy(2, 25, 14), heavy(2, 20, 15), noise=0.3, units=5),
        Grid("relu, one row x 100", rectified(30, 16), rectified(20, 17), noise=0.1, units=5, far=1000.0),
        Grid("sampled", normal(40, 18), normal(40, 19), noise=0.2, units=2, max_draws=600),
        Grid("sampled, far", normal(40, 18), normal(40, 19), noise=0.2, units=5, far=500.0, max_draws=2000),
        Grid("sampled, rare class", normal(40, 18), normal(40, 19), noise=0.2, units=2, quantile=0.97, max_draws=400),
    )
}
NETWORK = {
    case.name: case
    for case in (
        Grid("far, a class alone", normal(25, 2), normal(20, 3), noise=0.5, units=2, far=1000.0, alone=True),
        Grid("far, 1 unit", normal(2000, 4), ONE, noise=0.5, units=1, far=40.0, alone=True),
        Grid("far, 5 units", normal(25, 2), normal(20, 3), noise=1.0, units=5, far=100.0, slow=True),
        Grid("t(1)", heavy(1, 25, 10), heavy(1, 20, 11), noise=0.5, units=2),
        Grid("t(2)", heavy(2, 25, 14), heavy(2, 20, 15), noise=0.3, units=2, slow=True),
        Grid("relu, one row x 100", rectified(30, 16), rectified(20, 17), noise=0.3, units=2, far=1000.0),
        Grid("sampled, far", normal(40, 18), normal(40, 19), noise=0.5, units=2, far=500.0, max_draws=2000),
        Grid("sampled, rare class", normal(40, 18), normal(40, 19), noise=0.5, units=2, quantile=0.97, max_draws=1000),
    )
}


def identity_chain(units: int) -> Parameters:
    """Return a linear chain whose second layer is its input with the noise of two layers on it: sqrt(2) of one."""
    one = torch.eye(units, dtype=torch.float64)
    return [one, one, torch.ones(2, units, dtype=torch.float64)], [None, None, None]
