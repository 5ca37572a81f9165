"""Layers to measure noisy information on: the fixture's, and wide ones with fixed seeds; float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ibscan.core.records import Probe
from ibscan.measures.driver import input_weights, layer_values
from ibscan.networks.chain import Chain
from ibscan.networks.resolve import ChainSpec
from ibscan.networks.stacked import stacked_chain

SERIES = Path(__file__).parents[2] / "fixtures" / "szt-tanh"
# Hidden layers of the fixture, whose output is not noisy; its rows.
HIDDEN, ROWS = 5, 4096
# How far rows of a cluster are apart, by width: so that noise of 0.05 blurs them, as it does a trained layer.
SPREAD = {64: 0.05, 512: 0.02}


@dataclass(frozen=True)
class Values:
    """A layer's values (n, d), the joint weights of rows and classes, and H(X)."""

    name: str
    points: torch.Tensor
    joint: torch.Tensor
    ceiling: float


def series(names: Sequence[str], device: torch.device, run: Path = SERIES) -> Chain:
    states = [load_file(run / name) for name in names]
    order = [f"fc{k}" for k in range(1, HIDDEN + 2)]
    return stacked_chain(ChainSpec("tanh", "softmax"), order, states, device=device, dtype=torch.float64)


def inputs(rows: int, run: Path = SERIES) -> Probe:
    stored = np.load(run / "probe.npz")
    return Probe(stored["x"], stored["y"], (0, 1), "0" * 64, "benchmark").sampled(rows, 0)


def szt_layers(epoch: int, rows: int) -> list[Values]:
    """Return the hidden layers of one checkpoint, as a command measures them."""
    probe = inputs(rows)
    weights, ceiling = input_weights(probe)
    network = series([f"epoch-{epoch:05d}.safetensors"], torch.device("cpu"))
    joint = torch.from_numpy(weights)
    found = [layer_values(network, probe.x, layer, "post")[0] for layer in range(HIDDEN)]
    return [Values(f"SZT {epoch}, fc{k} x {v.shape[1]}", v, joint, ceiling) for k, v in enumerate(found, 1)]


def unlabelled(name: str, points: torch.Tensor) -> Values:
    rows = len(points)
    return Values(name, points, torch.full((rows, 1), 1 / rows, dtype=torch.float64), math.log(rows))


def plain(rows: int, width: int) -> Values:
    """Return tanh units of a random map of twelve normal inputs: as before training, every row far from the others."""
    g = torch.Generator().manual_seed(rows + width)
    x, weight = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((rows, 12), (12, width)))
    return unlabelled(f"plain {rows} x {width}", (x @ weight / math.sqrt(12)).tanh_())


def clustered(rows: int, width: int) -> Values:
    """Return tanh units about ten centres, rows of one apart along four directions: as a trained layer has them."""
    g = torch.Generator().manual_seed(rows + width)
    shapes = ((10, width), (rows, 4), (4, width))
    middle, place, directions = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    member = torch.randint(10, (rows,), generator=g)
    return unlabelled(f"clusters {rows} x {width}", (middle[member] + SPREAD[width] / 2 * place @ directions).tanh_())
