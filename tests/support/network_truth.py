"""Families of noisy networks with known truths, for the calibration of the network channel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ibscan.core.records import Probe
from ibscan.networks.chain import Chain
from support.network_grids import Information, Noisy, grid_information, linear_information, linear_law
from support.oracles import network_of, probe_of

# Families ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Family:
    """A noisy net, rows x (N, in) of equal weight (equal rows are one input), a class a row, a layer from 0.

    With `parts` the family is these side by side, on all combinations of their rows, the class being that of the
    first part: I(X;T) is their sum, I(T;Y) that of the first.
    """

    name: str
    net: Noisy
    x: np.ndarray
    labels: np.ndarray
    layer: int = 1
    parts: tuple[Family, ...] = ()

    @cached_property
    def population(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct inputs (n, in) and their joint weights (n, classes) with the classes."""
        distinct, of = np.unique(self.x, axis=0, return_inverse=True)
        joint = np.zeros((len(distinct), int(self.labels.max()) + 1))
        np.add.at(joint, (of.ravel(), self.labels), 1 / len(self.x))
        return distinct, joint

    @cached_property
    def truth(self) -> Information:
        """I(X;T) and I(T;Y) of the layer, right to 1e-5 nats; computed at first use."""
        return self.computed(1.0)

    def computed(self, fineness: float) -> Information:
        """Compute the truth on grids of a fineness."""
        if self.parts:
            each = [part.computed(fineness) for part in self.parts]
            return Information(math.fsum(found.xt for found in each), each[0].ty)
        oracle = linear_information if self.net.activation == "identity" else grid_information
        return oracle(self.net, *self.population, self.layer, fineness)

    @cached_property
    def network(self) -> Chain:
        """The chain under test, one checkpoint, with an output layer of one unit behind the hidden ones."""
        weights = [torch.from_numpy(weight) for weight in self.net.weights]
        out = torch.ones(1, len(weights[-1]), dtype=torch.float64)
        biases = [torch.from_numpy(bias) for bias in self.net.biases]
        return network_of([([*weights, out], [*biases, None])], self.net.activation)

    @cached_property
    def probe(self) -> Probe:
        """The rows in their own order: what a seed of `Probe.sampled` mixes."""
        return probe_of(self.x, self.labels)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the layer is in the estimates' arrays (checkpoint, layer, noise) at this noise alone."""
        return 0, self.layer, 0


def scalars(activation: str, noise: float, *steps: tuple[float, float]) -> Noisy:
    """Layers of one unit, w t + b each."""
    return Noisy(
        tuple(np.array([[float(w)]]) for w, _ in steps),
        tuple(np.array([float(b)]) for _, b in steps),
        activation,
        noise,
    )


def dense(activation: str, noise: float, widths: Sequence[int], seed: int, scales: Sequence[float]) -> Noisy:
    """Layers of Gaussian weights of deviation scale / sqrt(in), a scale each, and biases of deviation 0.3."""
    rng, pairs = np.random.default_rng(seed), list(itertools.pairwise(widths))
    weights = [s * rng.standard_normal((o, i)) / math.sqrt(i) for s, (i, o) in zip(scales, pairs, strict=True)]
    return Noisy(tuple(weights), tuple(0.3 * rng.standard_normal(o) for _, o in pairs), activation, noise)


def cloud(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def grouped(n: int, d: int, groups: int, spread_of: float, seed: int) -> np.ndarray:
    """Rows of so many tight clusters in turn."""
    rng = np.random.default_rng(seed)
    return 1.5 * rng.standard_normal((groups, d))[np.arange(n) % groups] + spread_of * rng.standard_normal((n, d))


def centred(net: Noisy, x: np.ndarray) -> Noisy:
    """Shift the last layer's biases so that its median pre-activation over the rows, without noise, is zero."""
    t = x
    for k in range(len(net.weights) - 1):
        t = net.post(k, t)
    shift = np.median(t @ net.weights[-1].T, 0)
    return Noisy(net.weights, (*net.biases[:-1], -shift), net.activation, net.noise)


def block_diagonal(blocks: Sequence[np.ndarray], order: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Put weights side by side, units in an order, inputs in the order of the layer before."""
    ends = np.cumsum([0] + [b.shape[1] for b in blocks])
    rows = [np.pad(b, ((0, 0), (a, ends[-1] - a - b.shape[1]))) for a, b in zip(ends, blocks, strict=False)]
    joined = np.concatenate(rows)[order]
    return joined if before is None else joined[:, before]


def side_by_side(name: str, parts: Sequence[Family], seed: int) -> Family:
    """Join families of one activation, noise and depth that do not touch each other, with the units mixed up."""
    rng, weights, biases, before = np.random.default_rng(seed), [], [], None
    first = parts[0].net
    for k in range(len(first.weights)):
        order = rng.permutation(sum(len(p.net.weights[k]) for p in parts))
        weights.append(block_diagonal([p.net.weights[k] for p in parts], order, before))
        biases.append(np.concatenate([p.net.biases[k] for p in parts])[order])
        before = order
    rows = list(itertools.product(*(range(len(p.x)) for p in parts)))
    x = np.array([np.concatenate([p.x[i] for p, i in zip(parts, row, strict=True)]) for row in rows])
    labels = np.array([parts[0].labels[row[0]] for row in rows])
    net = Noisy(tuple(weights), tuple(biases), first.activation, first.noise)
    return Family(name, net, x, labels, parts[0].layer, tuple(parts))


def corners(name: str, net: Noisy, layer: int) -> Family:
    """Give a linear net all corners of a cube, so turned that its whitened means are a grid of right angles.

    Each direction is then a channel of its own, of one unit and two inputs. The class is the weakest direction's.
    """
    d = net.weights[0].shape[1]
    mean, covariance = linear_law(net, np.vstack((np.zeros(d), np.eye(d))), layer)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (mean[1:] - mean[0]).T)
    _, values, turn = (part[::-1] for part in np.linalg.svd(white, full_matrices=False))
    ends, two = np.array(list(itertools.product((-1.0, 1.0), repeat=d))), np.array([[-1.0], [1.0]])
    parts = [
        Family(f"direction {k}", scalars("identity", net.noise, (net.noise * v, 0)), two, np.arange(2), layer=0)
        for k, v in enumerate(values)
    ]
    return Family(name, net, ends @ turn, (ends[:, 0] > 0).astype(np.int64), layer, tuple(parts))


SIX = np.array([[-2.5], [-1.5], [-0.4], [0.3], [1.2], [2.6]])
FOUR = np.array([[-3.0], [-1.0], [1.0], [3.0]])
# The second layer's threshold is at T_1 = 0, the first one's noise 0.05: three inputs are far from it.
STRADDLING = np.array([[-0.9], [-0.5], [-0.1], [-0.06], [-0.03], [0.0], [0.02], [0.05], [0.11], [0.7]])
# The threshold is at T_1 = 0.01, the noise 0.005: two inputs of four are near.
LATE, LATE_NET = np.array([[-0.4], [0.001], [0.004], [0.5]]), scalars("tanh", 0.005, (4.0, 0.0), (60.0, -0.6))
DEEP_NET = scalars("tanh", 0.005, (4.0, 0.0), (60.0, -0.6), (3.0, 0.2))
# Both units of the first layer are off where both inputs are well below zero.
HALF_DEAD_NET = Noisy(
    (np.array([[1.0, 0.3], [-0.2, 1.0]]), np.array([[1.2, -0.8], [-0.5, 1.3]])),
    (np.zeros(2), np.array([-0.2, 0.1])),
    "relu",
    0.3,
)
HALF_DEAD = np.concatenate((cloud(5, 2, 15) - 4.0, cloud(5, 2, 16) + 1.5))
NEAR_KINKS = np.array([[-0.2], [-0.1], [-0.02], [0.03], [0.1], [0.25], [0.6], [1.2]])
# Six inputs, once to eight times; a row's class is no function of its input.
OFTEN = np.repeat(SIX, (1, 2, 8, 4, 2, 1), axis=0)


def of(name: str, net: Noisy, x: np.ndarray, labels: np.ndarray, at_median: bool = False) -> Family:
    """Make a family of the last hidden layer, with its thresholds in the middle of the rows if so asked."""
    return Family(name, centred(net, x) if at_median else net, x, labels, len(net.weights) - 1)


def row(*values: int) -> np.ndarray:
    return np.array(values)


FAMILIES: tuple[Family, ...] = (
    of("plain", scalars("tanh", 0.2, (0.8, 0.1), (2.0, -0.3)), np.linspace(-3, 3, 12)[:, None], np.arange(12) // 4),
    of("saturated", scalars("tanh", 0.1, (6.0, 0.5), (2.5, 0.2)), np.linspace(-3, 3, 10)[:, None], np.arange(10) % 2),
    of("straddling", scalars("tanh", 0.05, (1.0, 0.0), (40.0, 0.0)), STRADDLING, np.arange(10) // 5),
    of("straddling, wide", dense("tanh", 0.1, (3, 5, 1), 1, (1.5, 25.0)), cloud(16, 3, 2), np.arange(16) % 2, True),
    of("straddling, 2-2", dense("tanh", 0.15, (2, 2, 2), 3, (2.0, 6.0)), cloud(8, 2, 4), np.arange(8) % 2, True),
    of("near kinks", scalars("relu", 0.1, (1.0, 0.0), (2.0, -0.2)), NEAR_KINKS, np.arange(8) // 4),
    of("half dead", HALF_DEAD_NET, HALF_DEAD, np.arange(10) % 2),
    of("linear 2-3-2", dense("identity", 0.5, (2, 3, 2), 7, (1.5, 1.5)), cloud(24, 2, 8), np.arange(24) % 3),
    corners("linear 5-7", dense("identity", 0.5, (5, 5, 7), 9, (1.2, 1.2)), 1),
    of("two and two", dense("tanh", 0.3, (3, 2, 2), 10, (2.0, 2.0)), cloud(10, 3, 10), np.arange(10) % 2),
    of("one and two", dense("tanh", 0.2, (2, 1, 2), 17, (1.5, 3.0)), cloud(14, 2, 18), np.arange(14) % 2),
    of(
        "three layers",
        scalars("tanh", 0.2, (0.6, 0.0), (2.0, 0.5), (2.5, -0.3)),
        np.linspace(-3, 3, 9)[:, None],
        np.arange(9) // 5,
    ),
    of(
        "three layers, 6-1-2",
        dense("tanh", 0.25, (4, 6, 1, 2), 19, (1.5, 2.0, 3.0)),
        cloud(12, 4, 20),
        np.arange(12) % 2,
    ),
    # Spreads of hundredths to a third of the noise, one of the four about the second layer's threshold.
    of(
        "four clusters",
        dense("tanh", 0.1, (4, 7, 1), 42, (1.5, 2.0)),
        grouped(64, 4, 4, 0.02, 11),
        np.arange(64) % 4 // 2,
    ),
    of(
        "one far",
        scalars("relu", 0.3, (1.0, 1.0), (1.5, -0.5)),
        np.vstack((cloud(19, 1, 14), [[60.0]])),
        np.arange(20) % 2,
    ),
    of(
        "rare class",
        dense("tanh", 0.25, (5, 8, 2), 22, (1.5, 2.0)),
        cloud(32, 5, 12),
        (np.arange(32) == 17).astype(int),
    ),
    of("unequal weights", scalars("tanh", 0.3, (0.6, 0.1), (2.0, -0.5)), OFTEN, np.arange(18) % 2),
    side_by_side(
        "three chains",
        (
            of("a", scalars("tanh", 0.3, (0.8, 0.0), (2.0, 0.2)), FOUR, row(0, 0, 0, 1)),
            of("b", scalars("tanh", 0.3, (0.5, 0.3), (3.0, -0.4)), FOUR, row(0, 0, 1, 1)),
            of("c", scalars("tanh", 0.3, (1.5, -2.0), (1.0, 0.0)), FOUR, row(0, 1, 0, 1)),
        ),
        23,
    ),
    side_by_side(
        "three chains, late",
        tuple(of(str(k), LATE_NET, places, row(0, 0, 1, 1)) for k, places in enumerate((LATE, LATE + 0.001, -LATE))),
        24,
    ),
    side_by_side(
        "two pairs",
        tuple(
            of(str(k), dense("tanh", 0.3, (2, 2, 2), k, (2.0, 2.5)), cloud(6, 2, k), np.arange(6) % 2) for k in (27, 28)
        ),
        25,
    ),
    side_by_side(
        "two deep chains",
        (
            of("a", scalars("tanh", 0.15, (0.8, 0.0), (3.0, 0.3), (2.0, -0.2)), SIX, np.arange(6) // 3),
            of("b", scalars("tanh", 0.15, (2.0, 0.5), (1.5, 0.0), (4.0, 0.4)), SIX, np.arange(6) % 2),
        ),
        26,
    ),
    # 24 rows in four groups narrower than the noise, one of them about the second layer's threshold.
    of("late, three layers", DEEP_NET, (LATE + 5e-4 * np.arange(6)).reshape(-1, 1), np.arange(24) // 12),
)
