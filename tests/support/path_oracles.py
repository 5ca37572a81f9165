"""Noisy passes with known densities, and the obvious float64 versions of what weighted paths compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.distributions import MultivariateNormal

from ibscan.numerics.channels.linearised import Linearised
from ibscan.numerics.channels.paths import path_counts

# Nodes of the trapezoid rule on [-REACH, REACH] of each normal, by the number of normals: right to 1e-5 at kinks too.
REACH, NODES = 8.0, {1: 3001, 2: 65}
# ln p is right to this at kinks, and for steep passes.
QUADRATURE = 1e-4

FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "linear": (lambda u: u, torch.ones_like),
    "tanh": (torch.tanh, lambda u: 1 - torch.tanh(u).square()),
    "step": (lambda u: torch.tanh(20 * u), lambda u: 20 * (1 - torch.tanh(20 * u).square())),
    "relu": (torch.relu, lambda u: (u > 0).to(u.dtype)),
}


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class OneLayer:
    """S_j(z) = scale f(place_j + mixing z), places (n, d), mixing (d, m), in units of the noise; keeps paths it ran."""

    function: str
    places: torch.Tensor
    mixing: torch.Tensor
    scale: float = 1.0
    ran: list[torch.Tensor] = field(default_factory=list)

    @staticmethod
    def scalar(function: str, places: Sequence[float], mixing: float, scale: float = 1.0) -> OneLayer:
        """Make passes of one unit from one normal."""
        return OneLayer(function, tensor(places).view(-1, 1), tensor([[mixing]]), scale)

    @property
    def units(self) -> int:
        return self.mixing.shape[1]

    @property
    def width(self) -> int:
        return self.mixing.shape[0]

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        self.ran.append(z)
        return self.scale * FUNCTIONS[self.function][0](self.places[inputs].unsqueeze(-2) + z @ self.mixing.mT)

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.places[inputs] + z @ self.mixing.mT
        post, slope = FUNCTIONS[self.function]
        return self.scale * post(u), self.scale * slope(u).unsqueeze(-1) * self.mixing

    def log_density(self, inputs: torch.Tensor, points: torch.Tensor, block: int = 256) -> torch.Tensor:
        """ln p(t|x) + (d/2) ln 2 pi of points (q, d) under inputs (q,), by quadrature over all normals."""
        line = torch.linspace(-REACH, REACH, NODES[self.units], dtype=torch.float64)
        z = torch.stack(torch.meshgrid(*[line] * self.units, indexing="ij"), -1).view(-1, self.units)
        mass = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) + self.units * math.log(float(line[1] - line[0]))
        nodes = self.mixing @ z.mT
        found = []
        for j, t in zip(inputs.split(block), points.split(block), strict=True):
            u = self.places[j].unsqueeze(-1) + nodes
            distance = (t.unsqueeze(-1) - self.scale * FUNCTIONS[self.function][0](u)).square().sum(1)
            found.append((mass - 0.5 * distance).logsumexp(-1))
        return torch.cat(found)

    def log_joint(self, weights: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """ln p(t, y) + (d/2) ln 2 pi of points (q, d) with joint weights (n, classes), (q, classes)."""
        every = torch.stack([self.log_density(torch.full((len(points),), j), points) for j in range(len(weights))], -1)
        return (every.unsqueeze(-1) + weights.log()).logsumexp(1)

    def drawn(self, inputs: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return draws t (q, d) of inputs (q,), and the paths (q, m) that made them."""
        made = torch.randn(len(inputs), self.units, generator=generator, dtype=torch.float64)
        noise = torch.randn(len(inputs), self.width, generator=generator, dtype=torch.float64)
        return self.values(inputs, made.unsqueeze(1))[:, 0] + noise, made


def gaussian_log(points: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """ln N(t; mean, covariance) + (d/2) ln 2 pi, by torch's own law."""
    law = MultivariateNormal(mean, covariance, validate_args=False)
    log: torch.Tensor = law.log_prob(points)
    return log + 0.5 * points.shape[-1] * math.log(2 * math.pi)


def log_posterior(law: Linearised, points: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """ln N(z; B (t - offset), I - B A) + (m/2) ln 2 pi of paths z (q, K, m), with B and I - B A solved densely."""
    slope, eye = law.slope, torch.eye(law.slope.shape[-1], dtype=torch.float64)
    covariance = torch.linalg.inv(eye + slope.mT @ slope)
    mean = (covariance @ slope.mT @ (points - law.offset).unsqueeze(-1)).squeeze(-1)
    return gaussian_log(z, mean.unsqueeze(1), covariance.unsqueeze(1))


def placed_densities(
    kernel: torch.Tensor, points: torch.Tensor, z: torch.Tensor, laws: Sequence[Linearised]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what weights of K paths and of the path that made t, the last of z (q, K + 1, m), say of ln p(t|x).

    From below (q,); from above with that path in the last place of each law that has one (q, laws); and the
    probability of each such place (q, laws). `kernel` (q, K + 1) is -|t - S(z)|^2 / 2.
    """
    count = z.shape[1] - 1
    counts = path_counts(count, len(laws))
    prior = -0.5 * z.square().sum(-1)
    logs = [prior, *(log_posterior(law, points, z) for law in laws)]
    terms = torch.stack([log + math.log(n / count) for log, n in zip(logs, counts, strict=True) if n], -1)
    weights = (kernel + prior - terms.logsumexp(-1)).exp()
    above, place = [], 0
    for n in filter(None, counts):
        place += n
        exchanged = torch.cat((weights[:, : place - 1], weights[:, place:]), 1)
        above.append(exchanged.mean(1).log())
    return weights[:, :-1].mean(1).log(), torch.stack(above, -1), terms[:, -1].softmax(-1)


def assert_mean(values: torch.Tensor, expected: float, errors: float = 4.0, slack: float = 0.0) -> None:
    """Assert that the mean of independent values is what is expected, to so many standard errors."""
    mean, error = standard(values)
    assert abs(mean - expected) <= errors * error + slack, (mean, expected, error)


def assert_at_least(values: torch.Tensor, least: float, slack: float = 0.0) -> None:
    """Assert that the mean of independent values is not below what is expected, to four standard errors."""
    mean, error = standard(values)
    assert mean >= least - 4 * error - slack, (mean, least, error)


def assert_exchanged(above: torch.Tensor, below: torch.Tensor, truth: torch.Tensor, slack: float = 0.0) -> None:
    """Assert that estimates ln p^ from above have density p^/p with respect to those from below, p given.

    For every g the mean of g(p^) from above is that of g(p^) p^/p from below. g = 1 says that the mean of p^ from below
    is p, and g = p / p^ that the mean of p / p^ from above is 1, which a few draws decide where p^ may be tiny.
    g = p / (p + p^) is bounded, as is g p^ / p.
    """
    assert_mean((truth - above).sigmoid() - (below - truth).sigmoid(), 0.0, slack=slack)


def standard(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean of independent values and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())
