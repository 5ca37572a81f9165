"""The estimate of how long measures take: what it depends on, that no block is too long, that it is accurate."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, chain
from safetensors.torch import load_file
from torch import nn

import ibscan
from ibscan.core.measure import Measure, Sizes
from ibscan.core.records import Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.complete import planned
from ibscan.engine.plan import BLOCK_SECONDS
from ibscan.engine.request import Request, Silent
from ibscan.engine.scan import measure_layers, partition
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.measures.weight_rank import WeightRank
from ibscan.measures.work import seconds
from ibscan.networks.chain import Chain
from ibscan.networks.resolve import ChainSpec
from ibscan.networks.stacked import stacked_chain

MEASURES = (
    ProbeFit(),
    LocalRank(),
    WeightRank(),
    BinnedInformation(),
    ReadoutInformation(),
    NetworkInformation(),
    Clustering(),
)


def sizes(*widths: int, rows: int = 256) -> Sizes:
    last = len(widths) - 2
    layers = [
        Layer(f"fc{k}", "Linear", width, (-1.0, 1.0), first=k == 0, output=k == last)
        for k, width in enumerate(widths[1:])
    ]
    weights = sum(a * b + b for a, b in itertools.pairwise(widths))
    return Sizes(layers, layers, widths[0], rows, weights)


def test_every_measure_has_an_estimate_that_grows_with_the_work() -> None:
    """More rows, wider layers and more layers never take less; each is a finite number above zero."""
    small, larger = (8, 6, 4, 2), [(8, 60, 4, 2), (8, 6, 6, 4, 2), (800, 6, 4, 2)]
    for measure in MEASURES:
        least = seconds(measure, sizes(*small))
        assert 0 < least < math.inf
        assert seconds(measure, sizes(*small, rows=2048)) >= least
        for widths in larger:
            assert seconds(measure, sizes(*widths)) >= least


@pytest.mark.parametrize("kind", [ReadoutInformation, NetworkInformation])
def test_more_noises_and_larger_budgets_take_longer(kind: Any) -> None:
    work = sizes(12, 10, 7, 5, 2, rows=1024)
    one = seconds(kind(), work)
    assert seconds(kind(noise=(0.1, 0.2, 0.3)), work) == pytest.approx(3 * one, rel=0.05)
    assert seconds(kind(tolerance=0.001), work) > 2 * one
    assert seconds(kind(max_draws=64, tolerance=0.001), work) < one


def test_more_replicas_take_longer() -> None:
    work = sizes(12, 10, 7, 5, 2, rows=1024)
    five = NetworkInformation(noise=(0.02, 0.05, 0.1, 0.2, 0.5), max_replicas=65536)
    assert seconds(five, work) > 30
    few = NetworkInformation(max_replicas=16, max_draws=1024)
    assert seconds(few, work) < seconds(NetworkInformation(), work) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [{}, {"noise": (0.05, 0.1, 0.5)}, {"max_replicas": 65536}, {"tolerance": 0.01}], ids=str
)
@pytest.mark.parametrize("rows", [40, 512, None])
def test_no_block_takes_longer_than_half_a_minute(folder: Path, words: dict[str, Any], rows: int | None) -> None:
    """Unless the block is a single checkpoint; cheap work is still stacked."""
    for epoch in range(40):
        ibscan.save(folder, chain(6, 30, 20, 10, 2, seed=0), epoch=epoch)
    x = np.random.default_rng(0).normal(size=(3000, 6))
    np.savez(folder / "probe.npz", x=x, y=np.arange(3000) % 2)
    for verb in ("rank", "cluster", "mi", "scan"):
        given = words if verb in ("mi", "scan") else {}
        plan = planned(Request(verb, (folder,), device="cpu", options={"samples": rows, **given}), Silent())
        cut = partition(plan.series.checkpoints, 62, rows or 3000, 1_100, plan.most)
        longest = max(map(len, cut))
        assert longest == 1 or longest * plan.seconds <= BLOCK_SECONDS
        if verb == "rank" and rows == 40:
            assert longest == 40


# Seconds of this process, which other work on the machine hardly changes.
SZT = (12, 10, 7, 5, 4, 3, 2)
WORKLOADS: dict[str, tuple[Measure, tuple[int, ...], int]] = {
    "network": (NetworkInformation(), SZT, 256),
    "network, 1024 rows": (NetworkInformation(), SZT, 1024),
    "network, 40 units": (NetworkInformation(), (20, 40, 40, 40, 10), 256),
    "network, 20 units": (NetworkInformation(), (20, 20, 20, 20, 10), 1024),
    "network, 128 units": (NetworkInformation(noise=(0.5,)), (784, 256, 128, 10), 1024),
    "network, five noises": (NetworkInformation(noise=(0.02, 0.05, 0.1, 0.2, 0.5)), SZT, 256),
    "read-out": (ReadoutInformation(), SZT, 2048),
    "read-out, wide": (ReadoutInformation(), (100, 256, 128, 10), 1024),
    "clustering": (Clustering(), SZT, 4096),
    "local rank": (LocalRank(), (100, 256, 128, 10), 1024),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_estimate_is_right_within_a_factor_of_three(name: str, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--timed"):
        pytest.skip("times this machine: --timed")
    measure, widths, rows = WORKLOADS[name]
    network, probe = made(widths, rows)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.process_time()
        measure_layers(measure, network, probe, RandomStreams(0))
        took = time.process_time() - began
    finally:
        torch.set_num_threads(before)
    assert 1 / 3 < seconds(measure, sizes(*widths, rows=rows)) / took < 3, took


def made(widths: tuple[int, ...], rows: int) -> tuple[Chain, Probe]:
    """Return the trained net of the fixture on its words of bits, or a random net on normal rows."""
    draws = np.random.default_rng(0)
    if widths == SZT:
        state = load_file(FIXTURES / "szt-tanh" / "epoch-01000.safetensors")
        x = (draws.permutation(4096)[:rows, None] >> np.arange(12) & 1).astype(np.float64)
    else:
        torch.manual_seed(0)
        modules = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
        state = {f"fc{k}.{name}": t for k, one in enumerate(modules, 1) for name, t in one.state_dict().items()}
        x = draws.normal(size=(rows, widths[0]))
    order = [f"fc{k}" for k in range(1, len(widths))]
    spec = ChainSpec("tanh", "identity")
    network = stacked_chain(spec, order, [state], device=torch.device("cpu"), dtype=torch.float64)
    given: dict[str, Any] = {
        "x": x,
        "y": (x[:, 0] > 0.5).astype(np.int64),
        "labels": (0, 1),
        "source": "",
        "sha256": "",
    }
    return network, Probe(**given)
