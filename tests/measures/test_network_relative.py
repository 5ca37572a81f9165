"""Relative noise in the network channel: every layer's noise is a share of its own spread without noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import nets, oracles
from support.oracles import Parameters, line_ty, line_xt, network_of, probe_of, random_chain
from torch import nn

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import Network
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.driver import layer_values
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.measures.spread import layer_spreads
from ibscan.networks.admission import traced_network
from ibscan.networks.budget import ChainBudget
from ibscan.numerics.channels.mixture import Mixture

SIX = np.array([[-2.5], [-1.5], [-0.4], [0.3], [1.2], [2.6]])
THIRDS = np.array([0, 1, 2, 0, 1, 2])
SIDES = ("xt", "ty", "xt_given_y", "cap")
FIELDS = ("value", "status", *Estimate.COMPANIONS)


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(network: Network, probe: Probe, seed: int = 0, **settings: Any) -> Mapping[str, Estimate]:
    usual: dict[str, Any] = {"noise": (), "rel_noise": (0.3,), "tolerance": 0.1, "max_replicas": 512}
    return NetworkInformation(**usual | {"max_draws": 2**12} | settings)(network, probe, RandomStreams(seed))


def alike(one: Estimate, other: Estimate, tolerance: float = 0.0) -> None:
    """Everything two estimates hold, compared."""
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def share(n: int) -> torch.Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


# The spread --------------------------------------------------------------------------------------------------------


def layers_apart(parameters: Sequence[Parameters], x: np.ndarray, activation: str) -> np.ndarray:
    """The spread as the read-out has it, layer by layer."""
    network, joint = network_of(parameters, activation), share(len(x)).unsqueeze(1)
    found = [
        [Mixture.of(values, joint).rms_radius for values in layer_values(network, x, layer, "post")]
        for layer in range(len(network.layers))
    ]
    return np.array(found).T


@pytest.mark.parametrize("block", [None, 1, 7])
@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e155])
def test_the_spread_is_the_rms_radius_of_the_readout(scale: float, block: int | None) -> None:
    x = scale * rows_of(20, 3)
    made = [([*w], [None] * 3) for w in (random_chain((3, 4, 5, 2), seed)[0] for seed in (1, 2))]
    network = network_of(made, "relu")
    if block is not None:
        network = dataclasses.replace(network, budget=ChainBudget(activations=block * 2 * 5))
    found = layer_spreads(network, x, share(20)).numpy()
    np.testing.assert_allclose(found, layers_apart(made, x, "relu"), rtol=1e-12)


def test_the_spread_weighs_rows_and_knows_neither_offset_nor_rounding() -> None:
    weights = [torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)]
    bias = torch.tensor([2.0**30, 1e9, 0.0], dtype=torch.float64)
    x = np.array([[1.0], [2.0], [4.0]])
    network = network_of([(weights, [bias, None])], "identity")
    w = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    variance = float(w @ torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64)) - 4.0
    assert float(layer_spreads(network, x, w)[0, 0]) == pytest.approx(math.sqrt(2 * variance), rel=1e-12)
    # What varies by the last bits alone is constant.
    barely = 1.0 + 1e-13 * x
    assert float(layer_spreads(network, barely, w)[0, 0]) == pytest.approx(0.0, abs=0.0)


def test_a_layer_that_is_not_finite_has_no_spread() -> None:
    weights, biases = random_chain((3, 2, 2, 2), 1)
    weights[1] = weights[1].clone()
    weights[1][0, 0] = float("nan")
    found = layer_spreads(network_of([(weights, biases)], "relu"), rows_of(8, 3), share(8))[0]
    assert torch.isfinite(found).tolist() == [True, False, False]


# Known answers -----------------------------------------------------------------------------------------------------


def test_it_is_absolute_noise_where_all_layers_have_one_spread() -> None:
    same = [torch.eye(3, dtype=torch.float64)] * 4, [None] * 4
    network, probe = network_of([same], "identity"), probe_of(rows_of(12, 3), np.arange(12) % 2)
    found = measured(network, probe)
    noise = found["mi_network_noise_absolute"]
    assert len(set(noise.value[0, :3, 0])) == 1
    other = measured(network, probe, noise=(float(noise.value[0, 0, 0]),), rel_noise=())
    for side in SIDES:
        alike(found[f"mi_network_rel_{side}"], other[f"mi_network_{side}"])


@pytest.mark.slow
def test_each_layer_s_noise_is_its_own_share() -> None:
    """A line of gains g: T_l is x with l times the variance of the first layer's noise, whatever the gains are."""
    weights = [torch.full((1, 1), w, dtype=torch.float64) for w in (0.5, -8.0, 0.1, 1.0)]
    network = network_of([(weights, [None] * 4)], "identity")
    found = measured(network, probe_of(SIX, THIRDS), rel_noise=(0.2, 0.6), max_draws=2**13)
    radius, joint = float(SIX.std()), np.eye(3)[THIRDS] / 6
    for k, part in enumerate((0.2, 0.6)):
        for layer, scale in enumerate((0.5, 4.0, 0.4)):
            place, noise = (0, layer, k), part * radius * math.sqrt(layer + 1)
            truths = line_xt(SIX[:, 0], [1] * 6, noise), line_ty(SIX[:, 0], joint, noise)
            for side, truth in zip(("xt", "ty"), truths, strict=True):
                one = found[f"mi_network_rel_{side}"]
                slack = 2.04 * one.stderr[place] + 1e-9
                assert one.lower[place] - slack <= truth <= one.upper[place] + slack
            absolute = found["mi_network_noise_absolute"].value[place]
            assert absolute == pytest.approx(part * scale * radius, rel=1e-12)


def test_the_units_of_a_layer_do_not_matter() -> None:
    weights, biases = random_chain((3, 4, 3, 4, 2), 6, scale=1.5)
    scaled, shifted, factors = list(weights), list(biases), (4.0, 0.3, 1e3)
    for k, a in enumerate(factors):
        scaled[k], shifted[k] = a * scaled[k], a * shifted[k]
        scaled[k + 1] = scaled[k + 1] / a
    probe = probe_of(rows_of(10, 3), np.arange(10) % 2)
    near, far = (measured(network_of([one], "relu"), probe) for one in ((weights, biases), (scaled, shifted)))
    for side in SIDES:
        alike(far[f"mi_network_rel_{side}"], near[f"mi_network_rel_{side}"], 1e-9)
    noise = [found["mi_network_noise_absolute"].value[0, :3, 0] for found in (near, far)]
    np.testing.assert_allclose(noise[1], noise[0] * factors, rtol=1e-12)


def test_the_first_layer_is_the_readout_and_every_noise_that_of_it() -> None:
    made = [random_chain((5, 6, 4, 3), seed) for seed in (1, 2)]
    network, probe = network_of(made), probe_of(rows_of(40, 5), np.arange(40) % 3)
    ours = measured(network, probe, rel_noise=(0.1, 0.5))
    theirs = ReadoutInformation(rel_noise=(0.1, 0.5), tolerance=0.1, max_draws=2**12)(network, probe, RandomStreams(0))
    for side in ("xt", "ty", "cap"):
        one, other = ours[f"mi_network_rel_{side}"], theirs[f"mi_readout_rel_{side}"]
        np.testing.assert_allclose(one.value[:, 0], other.value[:, 0], rtol=1e-9)
        np.testing.assert_array_equal(one.status[:, 0], other.status[:, 0])
    noise = ours["mi_network_noise_absolute"]
    np.testing.assert_allclose(noise.value[:, :2], theirs["noise_absolute"].value[:, :2], rtol=1e-12)
    assert (noise.status[:, :2] == Status.OK).all()
    assert (noise.status[:, 2] == Status.NOT_MEASURED).all()


def test_absolute_values_do_not_depend_on_relative_ones() -> None:
    network, probe = network_of([random_chain((3, 3, 2, 2), 1)]), probe_of(rows_of(12, 3), np.arange(12) % 2)
    alone, both = (measured(network, probe, noise=(0.3,), rel_noise=rel) for rel in ((), (0.2, 0.4)))
    other = measured(network, probe, rel_noise=(0.4,))
    for side in SIDES:
        alike(alone[f"mi_network_{side}"], both[f"mi_network_{side}"])
        name = f"mi_network_rel_{side}"
        assert alone[name].value.shape == (1, 3, 0)
        one = both[name].mapped(lambda array: array[..., 1:])
        alike(one, other[name])


# Statuses ----------------------------------------------------------------------------------------------------------


def test_a_constant_layer_is_dead_and_so_is_what_a_chain_makes_of_it() -> None:
    weights, biases = random_chain((3, 2, 2, 2, 2), 2)
    weights[1] = torch.zeros_like(weights[1])
    found = measured(network_of([(weights, biases)]), probe_of(rows_of(8, 3), np.arange(8) % 2))
    for key in (*(f"mi_network_rel_{side}" for side in SIDES), "mi_network_noise_absolute"):
        one = found[key]
        assert one.status[0, 0, 0] == Status.OK
        assert (one.status[0, 1:3, 0] == Status.DEAD).all()
        assert (one.value[0, 1:3, 0] == 0.0).all()
        assert one.status[0, 3, 0] == Status.NOT_MEASURED


def test_a_constant_layer_adds_no_noise_to_another() -> None:
    """A layer beside the first one whose ReLU is 0 on every row, but would not be under noise on its input."""

    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        first = torch.tanh(net.first(x))
        return net.out(torch.tanh(net.second(torch.cat((first, torch.relu(net.beside(x))), 1))))

    torch.manual_seed(0)
    layers = {"first": nn.Linear(2, 2), "beside": nn.Linear(2, 1), "second": nn.Linear(3, 2), "out": nn.Linear(2, 2)}
    for layer in layers.values():
        layer.double()
    with torch.no_grad():
        layers["beside"].weight.zero_()
        layers["beside"].bias.fill_(-1.0)
    x, y = rows_of(10, 2), np.arange(10) % 2
    net = traced_network(
        nets.Net(forward, **layers).eval().requires_grad_(False), x, (), device=oracles.DEVICE, dtype=torch.float64
    )
    found = measured(net, probe_of(x, y))
    assert found["mi_network_rel_xt"].status[0, :3, 0].tolist() == [Status.OK, Status.DEAD, Status.OK]
    # As if it were not there.
    with torch.no_grad():
        short = [layers["first"].weight, layers["second"].weight[:, :2], layers["out"].weight]
    biases = [layers[name].bias.detach() for name in ("first", "second", "out")]
    other = measured(network_of([([w.detach() for w in short], biases)]), probe_of(x, y))
    one, two = found["mi_network_rel_xt"], other["mi_network_rel_xt"]
    error = 4 * math.hypot(one.stderr[0, 2, 0], two.stderr[0, 1, 0])
    assert abs(one.value[0, 2, 0] - two.value[0, 1, 0]) <= error + 0.1
    noise = [r["mi_network_noise_absolute"].value[0, k, 0] for r, k in ((found, 2), (other, 1))]
    assert noise[0] == pytest.approx(noise[1], rel=1e-12)


def test_what_is_not_finite_stays_where_it_reaches() -> None:
    made = [random_chain((3, 2, 2, 2, 2), seed) for seed in (1, 2)]
    probe = probe_of(rows_of(8, 3), np.arange(8) % 2)
    clean = measured(network_of(made), probe)
    made[1][0][1][0, 0] = float("nan")
    found = measured(network_of(made), probe)
    for key in (*(f"mi_network_rel_{side}" for side in SIDES), "mi_network_noise_absolute"):
        assert (found[key].status[1, 1:3] == Status.NONFINITE).all()
        assert np.isnan(found[key].value[1, 1:]).all()
        for place in ((0, slice(None)), (1, 0)):
            np.testing.assert_array_equal(found[key].status[place], clean[key].status[place])
            np.testing.assert_allclose(found[key].value[place], clean[key].value[place], rtol=1e-9)


def test_companions_are_those_of_absolute_noise() -> None:
    quantities = {quantity.key: quantity for quantity in NetworkInformation.quantities}
    for side in SIDES:
        one, other = quantities[f"mi_network_{side}"], quantities[f"mi_network_rel_{side}"]
        assert one.companions == other.companions
        named = [Estimate.companion(one.key, suffix) for suffix in one.companions]
        assert [name.replace("mi_network_", "mi_network_rel_") for name in named] == [
            Estimate.companion(other.key, suffix) for suffix in other.companions
        ]
        assert (one.symbol, one.unit, one.table) == (other.symbol, other.unit, other.table)
