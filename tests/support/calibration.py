"""Cases with known truths for the calibration of the noisy channels' intervals.

The truths are numbers that `python tests/support/calibration_oracle.py [NAME ...]` prints anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ibscan.core.records import Layer, Probe
from support import oracles
from support.oracles import Chained, Parameters, probe_of, random_chain, with_idle_unit


@dataclass(frozen=True)
class Case:
    """Values of one layer at n distinct inputs, their classes, and what the estimator is asked for.

    `exact` names the quantities whose standard error is to be under 1e-9, and the error with it; the intervals of the
    others are counted. Of those in `rare` all may hold: overlaps that most runs do not meet once are most of the error,
    and what is allowed for them is too much wherever none was missed.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray
    noise: float
    tolerance: float = 0.05
    max_draws: int = 65536
    exact: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()

    @property
    def probe(self) -> Probe:
        """Inputs are row numbers: distinct, whatever the values."""
        return probe_of(np.arange(len(self.values))[:, None], self.labels)

    @cached_property
    def network(self) -> Any:
        return Given(self.values)


class Given:
    """A network of one layer whose value at input k is row k of the values."""

    size, output, plain = 1, "identity", True

    def __init__(self, values: np.ndarray) -> None:
        self.device = oracles.DEVICE
        self.values = torch.as_tensor(values, dtype=torch.float64, device=self.device)
        self.layers: tuple[Layer, ...] = (Layer("given", "Given", values.shape[1], first=True),)

    def alone(self, checkpoint: Any) -> Any:
        assert checkpoint == 0
        return self

    def walk(self, x: np.ndarray, visit: Callable[..., Any]) -> None:
        found = self.values[torch.as_tensor(x[:, 0].astype(np.int64), device=self.device)][None]
        visit(0, found, found, slice(0, len(x)))


# Layers as training leaves them ------------------------------------------------------------------------------------


def cloud(n: int, d: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((n, d))


def clusters(n: int, d: int, count: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Late in training: tight groups at saturated places, the class a function of the group but for a few rows."""
    rng = np.random.default_rng(seed)
    places, group = np.tanh(1.5 * rng.standard_normal((count, d))), rng.integers(count, size=n)
    labels = np.where(rng.random(n) < 0.05, 1 - group % 2, group % 2)
    return places[group] + spread * rng.standard_normal((n, d)), labels


def saturated_tanh(n: int, d: int, between: int, seed: int) -> np.ndarray:
    """Units within 1e-9 of -1 and 1, but for `between` rows."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n, d)) < 0.5, -1.0, 1.0) * (1 - 1e-9 * rng.random((n, d)))
    values[:between] = np.tanh(rng.standard_normal((between, d)))
    return values


def dead_relu(n: int, d: int, dead: int, rare: int, seed: int) -> np.ndarray:
    """Rectified units; the first `dead` are constant, the next `rare` so but for three rows each."""
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.standard_normal((n, d)), 0.0)
    values[:, :dead] = 0.0
    for unit in range(dead, dead + rare):
        values[rng.permutation(n)[3:], unit] = 0.0
    return values


def repeated(n: int, d: int, distinct: int, heavy: int, seed: int) -> np.ndarray:
    """`distinct` places; the first is met at `heavy` inputs, the others at the rest in turn."""
    rng = np.random.default_rng(seed)
    of = np.where(np.arange(n) < heavy, 0, np.arange(n) % distinct)
    return np.tanh(rng.standard_normal((distinct, d)))[of]


def heavy_tails(n: int, d: int, seed: int) -> np.ndarray:
    """Rows of a Student t with 1.2 degrees of freedom: a few are hundreds away."""
    return np.random.default_rng(seed).standard_t(1.2, (n, d))


def signs(values: np.ndarray, share: float = 1.0, seed: int = 0) -> np.ndarray:
    """The class is the first unit's sign, but for a share of rows where it is tossed."""
    rng = np.random.default_rng(seed)
    return np.where(
        rng.random(len(values)) < share, values[:, 0] > np.median(values[:, 0]), rng.random(len(values)) < 0.5
    )


def made(name: str, values: np.ndarray, labels: np.ndarray | None = None, **settings: Any) -> Case:
    return Case(name, values, np.asarray(signs(values, 0.9) if labels is None else labels, dtype=np.int64), **settings)


BOTH = ("xt", "ty")
UNEQUAL = np.repeat(np.arange(5), (1, 3, 10, 40, 106))
CASES = {
    case.name: case
    for case in (
        made("line", np.tanh(cloud(64, 1, 1)), noise=0.1, exact=BOTH),
        made("line, small noise", *clusters(100, 1, 5, 0.01, 2), noise=0.005, exact=BOTH),
        made("line, 1000 away", 1000 + cloud(80, 1, 3), noise=0.3, exact=BOTH),
        made("plane", cloud(100, 2, 4), noise=0.2, tolerance=0.03),
        made("saturated tanh", saturated_tanh(150, 2, 15, 5), noise=0.05, tolerance=0.03, rare=("ty",)),
        made("saturated tanh, more noise", saturated_tanh(150, 2, 40, 5), noise=0.4, tolerance=0.03),
        made("heavy tails", heavy_tails(120, 2, 6), noise=0.3),
        made("heavy duplicates", repeated(120, 3, 40, 40, 7), np.arange(120) % 3, noise=0.3, tolerance=0.03),
        made("late, small noise", *clusters(160, 3, 12, 0.008, 8), noise=0.005),
        made("unequal classes", np.tanh(cloud(160, 3, 9)), UNEQUAL, noise=0.2),
        made("rows not all visited", np.tanh(cloud(1024, 3, 10)), noise=0.2, max_draws=600),
        made("many rows", np.tanh(cloud(1024, 5, 11)), noise=0.3),
        made("dead relu", dead_relu(100, 5, 2, 1, 12), noise=0.1),
        made("nearly ln n", cloud(100, 5, 13), noise=0.2, tolerance=0.01),
        # Ever rarer overlaps: a handful of draws in two thousand meets one, then one run of several.
        made("nearer ln n", cloud(100, 5, 13), noise=0.15),
        made("nearest ln n", cloud(100, 5, 13), noise=0.12, rare=BOTH),
        made("late", *clusters(120, 7, 16, 0.05, 14), noise=0.05),
        made("hardly anything", cloud(100, 7, 15, scale=0.05), noise=1.0, tolerance=0.01, rare=("xt",)),
        made("wider dead relu", dead_relu(100, 12, 4, 2, 16), noise=1.0),
        made("all apart", cloud(100, 12, 17), noise=0.005, exact=BOTH),
        made("thirteen", np.tanh(cloud(80, 13, 18, scale=0.5)), noise=0.3, tolerance=0.03),
        made("late, wide", *clusters(100, 64, 20, 0.1, 19), noise=0.3, tolerance=0.03),
        made("wide, 1000 away", 1000 + cloud(80, 64, 20, scale=0.25), noise=1.0),
        made("dead", np.full((50, 5), 0.3), np.arange(50) % 2, noise=0.1, exact=BOTH),
    )
}


@dataclass(frozen=True)
class Chain:
    """A chain, its inputs and their classes, and a layer (from 0) of the noisy network."""

    name: str
    chain: Parameters
    activation: str
    x: np.ndarray
    labels: np.ndarray
    noise: float
    layer: int = 1
    tolerance: float = 0.05

    @property
    def truth(self) -> tuple[float, float, float, float]:
        return TRUTHS[self.name]


def scalars(*steps: tuple[float, float], inputs: int = 1) -> Chained:
    """Scalar layers w t + b, of the first of so many inputs, and an output layer."""
    weights, biases = zip(*steps, strict=True)
    matrices = [torch.tensor([[w]], dtype=torch.float64) for w in (*weights, 1.0)]
    matrices[0] = torch.nn.functional.pad(matrices[0], (0, inputs - 1))
    return matrices, [torch.tensor([b], dtype=torch.float64) for b in (*biases, 0.0)]


def shifted(chain: Chained, layer: int, constant: float | torch.Tensor) -> Chained:
    """The chain with a constant added to every unit of a layer."""
    chain[1][layer] = chain[1][layer] + constant
    return chain


FOUR, SIX = np.array([[-3.0], [-1], [1], [3]]), np.array([[-2.5], [-1.5], [-0.4], [0.3], [1.2], [2.6]])
# Distinct inputs that the first layer cannot tell apart, one value of them four times.
ALIKE = np.column_stack((np.repeat(SIX[:, 0], (4, 1, 2, 1, 2, 2)), np.arange(12.0)))
CHAINS = {
    case.name: case
    for case in (
        # methods.md 2.4; with a unit that nothing reads, as it would be integrated otherwise.
        Chain(
            "two layers",
            with_idle_unit(scalars((0.5, 0.0), (3.0, 0.3))),
            "tanh",
            FOUR,
            np.array([0, 0, 0, 1]),
            noise=0.3,
        ),
        Chain(
            "duplicates",
            with_idle_unit(scalars((0.6, 0.1), (2.0, -0.5), inputs=2)),
            "tanh",
            ALIKE,
            np.arange(12) % 3,
            noise=0.3,
        ),
        Chain(
            "third layer",
            scalars((1.0, 1.0), (1.5, -1.0), (1.0, 0.5)),
            "relu",
            SIX,
            np.arange(6) % 3,
            noise=0.3,
            tolerance=0.1,
            layer=2,
        ),
        Chain(
            "a unit dead",
            shifted(random_chain((3, 2, 2, 1), 4, scale=2.0), 0, torch.tensor([0.0, -50.0])),
            "relu",
            cloud(8, 3, 31),
            np.arange(8) % 2,
            noise=0.3,
            tolerance=0.1,
        ),
        Chain(
            "linear, 1000 away",
            shifted(random_chain((3, 3, 3, 1), 7, scale=2.0), 0, 1000.0),
            "identity",
            cloud(24, 3, 32),
            np.arange(24) % 2,
            noise=0.5,
            tolerance=0.1,
        ),
        Chain(
            "wider tanh",
            random_chain((3, 2, 5, 1), 9, scale=2.0),
            "tanh",
            cloud(12, 3, 33),
            np.arange(12) % 2,
            noise=0.4,
        ),
    )
}

# I(X;T), its standard error, I(T;Y), its standard error: nats.
TRUTHS: dict[str, tuple[float, float, float, float]] = {
    "line": (1.6400065765173588, 1.0e-12, 0.5129229782065119, 1.0e-12),
    "line, small noise": (2.364042457324622, 1.0e-12, 0.4805746827719328, 1.0e-12),
    "line, 1000 away": (1.2938608636480016, 1.0e-12, 0.39966179015924075, 1.0e-12),
    "plane": (2.9663071553291114, 5.8e-05, 0.44225249701923014, 2.6e-05),
    "saturated tanh, more noise": (1.452169085486426, 5.4e-05, 0.3489377433164472, 1.1e-05),
    "saturated tanh": (1.8226791424493851, 2.3e-05, 0.4132761127543543, 5.7e-06),
    "heavy tails": (3.448319515987518, 5.1e-05, 0.4548790197030167, 2.6e-05),
    "heavy duplicates": (1.6025294543642852, 7.3e-05, 0.059852682815282145, 4.7e-05),
    "late, small noise": (3.963843867343613, 6.3e-05, 0.6022956557090657, 1.7e-05),
    "unequal classes": (3.196240695362291, 4.2e-05, 0.24864016785235235, 5.1e-05),
    "rows not all visited": (3.280423187352784, 1.3e-04, 0.4103497763212722, 4.3e-05),
    "many rows": (3.916464244514812, 2.5e-04, 0.4004260776937951, 1.1e-04),
    "dead relu": (2.470061090849131, 8.5e-05, 0.0830688325468974, 1.6e-05),
    "nearly ln n": (4.566050936816967, 8.8e-05, 0.6756349583021266, 5.2e-05),
    "nearer ln n": (4.599265768372056, 5.6e-05, 0.6846513144691786, 2.7e-05),
    "nearest ln n": (4.6043307194084075, 2.9e-05, 0.6858097808145857, 1.3e-05),
    "late": (4.121410607797392, 1.6e-04, 0.6199165164466006, 5.1e-05),
    "hardly anything": (0.008420228336895813, 5.5e-06, 0.0007632882420163333, 1.9e-06),
    "wider dead relu": (0.7484067876164041, 7.4e-05, 0.006481144491756836, 1.5e-05),
    "all apart": (4.605170185988082, 0.0e00, 0.6802920001921537, 0.0e00),
    "thirteen": (4.183514776402919, 2.2e-04, 0.6203500017700294, 1.6e-04),
    "late, wide": (4.3226136682590335, 3.5e-04, 0.6532470430587869, 1.4e-04),
    "wide, 1000 away": (1.7813025284719142, 2.7e-04, 0.10400901109927771, 1.7e-04),
    "dead": (-2.344587197999903e-19, 4.0e-19, 0.0, 0.0e00),
    "two layers": (0.6194086890206925, 1.0e-04, 0.21823882861343388, 1.0e-04),
    "duplicates": (0.5938672544851895, 1.0e-04, 0.024927353029906663, 1.0e-04),
    "third layer": (0.8730926715986741, 1.0e-04, 0.3232045165758946, 1.0e-04),
    "a unit dead": (1.020460697882297, 1.0e-04, 0.10230624759837628, 1.0e-04),
    "linear, 1000 away": (2.0147619641323065, 8.6e-05, 0.2593861479545143, 5.6e-05),
    "wider tanh": (0.6816074739963615, 8.4e-04, 0.06647471942929399, 2.9e-04),
}
