"""Slow obvious references for the read-out channel, and networks whose layers' values are given outright."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ibscan.core.estimate import Estimate
from ibscan.core.records import Layer
from ibscan.core.streams import RandomStreams
from ibscan.measures.readout import ReadoutInformation
from support import oracles
from support.calibration import Given
from support.oracles import probe_of


class Several(Given):
    """A network whose layers' values are given: checkpoints, each a list of values (n, D)."""

    def __init__(self, *checkpoints: Sequence[np.ndarray]) -> None:
        self.device, self.size = oracles.DEVICE, len(checkpoints)
        stacks = [np.stack(values) for values in zip(*checkpoints, strict=True)]
        self.stacks = [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in stacks]
        self.layers = tuple(Layer(f"l{k}", "Given", v.shape[2], first=k == 0) for k, v in enumerate(stacks))

    def walk(self, x: np.ndarray, visit: Callable[..., Any]) -> None:
        rows = torch.as_tensor(x[:, 0].astype(np.int64), device=self.device)
        for k, values in enumerate(self.stacks):
            visit(k, values[:, rows], values[:, rows], slice(0, len(x)))


def told(
    *checkpoints: Sequence[np.ndarray],
    noise: tuple[float, ...] = (),
    rel_noise: tuple[float, ...] = (),
    labels: np.ndarray | None = None,
    inputs: np.ndarray | None = None,
    **settings: Any,
) -> Mapping[str, Estimate]:
    """Return the estimates of layers whose values are given; inputs are row numbers unless given."""
    network: Any = Several(*checkpoints)
    inputs = np.arange(network.stacks[0].shape[1]) if inputs is None else inputs
    probe = probe_of(inputs[:, None], labels)
    return ReadoutInformation(noise=noise, rel_noise=rel_noise, **settings)(network, probe, RandomStreams(0))


def rms_radius(values: np.ndarray) -> float:
    """Root-mean-square distance from the mean."""
    return math.sqrt(sum(float(((row - values.mean(0)) ** 2).sum()) for row in values) / len(values))


def sampled(values: np.ndarray, noise: float, draws: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """I and the slope E||S - E[S|T]||^2 / noise^2 of equal rows, then their errors, of plain draws."""
    rng, found = np.random.default_rng(1), np.empty((draws, 2))
    for m in range(draws):
        own = values[rng.integers(len(values))]
        t = own + noise * rng.standard_normal(len(own))
        exponent = (((t - own) ** 2).sum() - ((t - values) ** 2).sum(1)) / (2 * noise**2)
        top = exponent.max()
        share = np.exp(exponent - top)
        guess = share @ values / share.sum()
        found[m] = -top - math.log(share.mean()), ((own - guess) ** 2).sum() / noise**2
    return found.mean(0), found.std(0) / math.sqrt(draws)


def on_a_line(
    points: np.ndarray | Sequence[float], weights: np.ndarray | Sequence[float], noise: float
) -> tuple[float, float]:
    """I and -dI/d ln noise of points on a line: a fine grid, and central differences of it."""

    def information(s: float) -> float:
        t = np.arange(min(points) - 14 * s, max(points) + 14 * s, s / 60)
        density = sum(w * np.exp(-0.5 * ((t - p) / s) ** 2) for p, w in zip(points, weights, strict=True))
        density /= s * math.sqrt(2 * math.pi)
        entropy = -(density * np.log(np.maximum(density, 1e-300))).sum() * s / 60
        return entropy - 0.5 * math.log(2 * math.pi * math.e * s**2)

    step = 1e-3
    slope = (information(noise * math.exp(-step)) - information(noise * math.exp(step))) / (2 * step)
    return information(noise), slope
