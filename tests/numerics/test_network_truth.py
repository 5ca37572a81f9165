"""The oracle of the network channel itself: known answers, other oracles, laws, limits, refinement; its families."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.network_grids import (
    Information,
    Noisy,
    grid_information,
    grid_laws,
    linear_information,
    linear_law,
)
from support.network_oracles import exact_information, own_and_fresh
from support.network_oracles import linear_information as drawn_linear_information
from support.network_truth import FAMILIES, Family, cloud, corners, dense, of, scalars, side_by_side
from support.oracles import Parameters, line_ty, line_xt, two_point_table, weight_entropy

from ibscan.core.streams import RandomStreams
from ibscan.measures.network import NetworkInformation

FOUR = np.array([[-3.0], [-1.0], [1.0], [3.0]])
LAST = np.eye(2)[[0, 0, 0, 1]] / 4
TWO = scalars("tanh", 0.3, (0.5, 0.0), (3.0, 0.3))
UNEVEN = np.array([[0.1, 0.05], [0.2, 0.0], [0.0, 0.25], [0.02, 0.08], [0.05, 0.05], [0.1, 0.1]])
NAMED = {family.name: family for family in FAMILIES}
# Two-dimensional grids before the layer and of it: seconds at half the step.
SLOW = ("straddling, 2-2", "half dead", "two and two", "rare class", "two pairs")
QUICK = [pytest.param(family, id=family.name) for family in FAMILIES if family.name not in SLOW]
EVERY = QUICK + [pytest.param(NAMED[name], id=name, marks=pytest.mark.slow) for name in SLOW]
NARROW = {
    "1-1": dense("tanh", 0.3, (3, 1, 1), 1, (1.5, 3.0)),
    "2-1": dense("tanh", 0.3, (3, 2, 1), 2, (1.5, 2.0)),
    "1-2": dense("tanh", 0.3, (3, 1, 2), 3, (1.5, 2.0)),
    "2-2": dense("tanh", 0.4, (3, 2, 2), 4, (1.5, 1.5)),
    "1-1-1": dense("tanh", 0.3, (3, 1, 1, 1), 5, (1.5, 2.0, 2.0)),
    "1-1 relu": dense("relu", 0.3, (3, 1, 1), 6, (1.5, 2.0)),
    "2-2 relu": dense("relu", 0.4, (3, 2, 2), 7, (1.5, 1.5)),
}


def chain_of(net: Noisy) -> Parameters:
    """The net as the other oracles take it."""
    weights = [torch.from_numpy(w) for w in net.weights]
    out = torch.ones(1, len(weights[-1]), dtype=torch.float64)
    return [*weights, out], [*(torch.from_numpy(b) for b in net.biases), None]


def near(found: Information, expected: tuple[float, float], rounding: float = 1e-9) -> None:
    assert tuple(found) == pytest.approx(tuple(expected), abs=rounding)


# Known answers -----------------------------------------------------------------------------------------------------


def test_two_points_are_the_table() -> None:
    for apart, truth in two_point_table().items():
        net = scalars("identity", 0.5, (0.5 * apart, 3.0))
        near(grid_information(net, np.array([[-1.0], [1.0]]), np.eye(2) / 2, 0), (truth, truth), 1e-6)


def test_corners_of_a_square_are_twice_two_points() -> None:
    square = np.array([(a, b) for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    net = Noisy((np.eye(2),), (np.zeros(2),), "identity", 0.5)
    for apart, truth in two_point_table().items():
        found = grid_information(dataclasses.replace(net, noise=1 / apart), square, np.eye(2)[[0, 0, 1, 1]] / 4, 0)
        near(found, (2 * truth, truth), 2e-6)


@pytest.mark.parametrize(("noise", "truth"), [(0.25, 1.386154), (0.5, 1.295654), (1.0, 0.845233)])
def test_four_points_on_a_line(noise: float, truth: float) -> None:
    assert grid_information(scalars("identity", noise, (1, 0)), FOUR, LAST, 0).xt == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(
    ("noise", "row"),
    [
        (0.005, (1.3863, 1.0926, 1.0394, 0.5624)),
        (0.05, (1.2828, 1.0226, 0.6031, 0.5623)),
        (0.1, (0.8243, 0.8450, 0.5730, 0.5623)),
        (1.0, (0.0232, 0.2094, 0.2569, 0.2656)),
    ],
)
def test_one_neuron_of_four_points_is_the_table(noise: float, row: tuple[float, ...]) -> None:
    """methods.md 2.4, tanh(w x + b); the table has four digits."""
    for (w, b), truth in zip(((0.1, 0.0), (1.0, -2.0), (2.0, -4.0), (5.0, -10.0)), row, strict=True):
        found = grid_information(scalars("tanh", noise, (w, b)), FOUR, LAST, 0, fineness=2.0)
        assert found.xt == pytest.approx(truth, abs=5.1e-5)
        points = np.tanh(w * FOUR[:, 0] + b)
        near(found, (line_xt(points, np.ones(4), noise), line_ty(points, LAST, noise)), 1e-8)


def test_two_layers_of_methods() -> None:
    near(grid_information(TWO, FOUR, LAST, 1), (0.619409, 0.218239), 1e-6)


def test_a_linear_scalar_net_is_one_line_with_more_noise() -> None:
    net, x = scalars("identity", 0.4, (0.7, 0.2), (-1.5, 1.0), (2.0, 0.0)), cloud(6, 1, 0)
    points, variance = x[:, 0], 0.0
    for layer, w in enumerate((0.7, -1.5, 2.0)):
        points, variance = w * points, w**2 * variance + 0.4**2
        noise = math.sqrt(variance)
        expected = line_xt(points, UNEVEN.sum(1), noise), line_ty(points, UNEVEN, noise)
        near(grid_information(net, x, UNEVEN, layer), expected, 1e-8)
        near(linear_information(net, x, UNEVEN, layer), expected, 1e-8)


@pytest.mark.parametrize("widths", [(2, 3, 2), (2, 7, 2), (2, 5, 1), (2, 1, 2), (3, 5, 1, 2)])
def test_grids_of_a_linear_net_are_its_gaussian_law(widths: tuple[int, ...]) -> None:
    """What is seen through narrow layers only, whatever the width of those between."""
    net = dense("identity", 0.5, widths, 3, [1.5] * (len(widths) - 1))
    x, last = cloud(6, widths[0], 1), len(widths) - 2
    near(grid_information(net, x, UNEVEN, last), linear_information(net, x, UNEVEN, last), 1e-7)


def test_a_linear_net_of_many_units_is_what_draws_say() -> None:
    net, x = dense("identity", 0.7, (2, 5, 7), 4, (1.5, 1.5)), cloud(6, 2, 2)
    mean, error = drawn_linear_information(chain_of(net), torch.from_numpy(x), torch.from_numpy(UNEVEN), 0.7, 3000)
    assert (np.abs(mean - linear_information(net, x, UNEVEN, 1)) <= 4 * error).all(), (mean, error)


def test_corners_of_a_cube_are_what_draws_say() -> None:
    family = corners("", dense("identity", 0.5, (3, 4, 6), 5, (1.2, 1.2)), 1)
    x, joint = family.population
    mean, error = drawn_linear_information(
        chain_of(family.net), torch.from_numpy(x), torch.from_numpy(joint), family.net.noise, 3000
    )
    assert (np.abs(mean - family.truth) <= 4 * error).all(), (mean, error, family.truth)
    square = corners("", dense("identity", 0.5, (2, 4, 6), 6, (0.5, 1.0)), 1)
    near(square.truth, linear_information(square.net, *square.population, 1), 1e-7)


# Other oracles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
def test_narrow_nets_are_what_the_other_quadrature_says(name: str) -> None:
    net, x = NARROW[name], cloud(6, 3, 3)
    other = exact_information(chain_of(net), net.activation, torch.from_numpy(x), torch.from_numpy(UNEVEN), net.noise)
    for layer, expected in enumerate(other):
        # The other one has no regard for kinks.
        near(grid_information(net, x, UNEVEN, layer), expected, 5e-4 if net.activation == "relu" else 1e-6)


@pytest.mark.parametrize("part", [NAMED["straddling"], *NAMED["three chains, late"].parts], ids=lambda part: part.name)
def test_steep_layers_are_what_an_even_grid_says(part: Family) -> None:
    """Two layers of one unit; a step of the first one's noise moves the second by a third of its noise at most."""
    net, (x, joint) = part.net, part.population
    (w, v), (b, c) = (float(m[0, 0]) for m in net.weights), (float(m[0]) for m in net.biases)
    z = np.arange(-9, 9, 0.3 / v)
    mass = np.exp(-0.5 * z**2)
    second = np.tanh(v * (np.tanh(w * x + b) + net.noise * z) + c)
    t = np.arange(-1 - 9 * net.noise, 1 + 9 * net.noise, net.noise / 5)
    laws = np.array(
        [(mass @ np.exp(-0.5 * ((t - centres[:, None]) / net.noise) ** 2)) / (5 * 2 * math.pi) for centres in second]
    ) * (0.3 / v)
    marginal, of_class = joint.sum(1) @ laws, (joint / joint.sum(0)).T @ laws
    xt, ty = (
        float(share @ (p * (np.log(np.maximum(p, 1e-290)) - np.log(np.maximum(marginal, 1e-290)))).sum(1))
        for share, p in ((joint.sum(1), laws), (joint.sum(0), of_class))
    )
    near(part.truth, (xt, ty), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(3, 5, 2), (3, 8, 1)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_wide_layers_before_are_between_own_and_fresh(widths: tuple[int, ...], activation: str) -> None:
    net, x = dense(activation, 0.4, widths, 8, (1.5, 2.0)), cloud(6, 3, 4)
    population = torch.from_numpy(x), torch.from_numpy(UNEVEN)
    mean, error = own_and_fresh(chain_of(net), activation, *population, 1, net.noise, 150, 30)
    truth = np.array(grid_information(net, x, UNEVEN, 1))
    assert (mean[0] >= truth - 4 * error[0]).all(), (mean, error, truth)
    assert (mean[1] <= truth + 4 * error[1]).all(), (mean, error, truth)
    assert np.abs(mean.mean(0) - truth).max() <= 0.01 + 4 * error.max(), (mean, error, truth)


# Laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
def test_information_falls_from_layer_to_layer(name: str) -> None:
    net, x = NARROW[name], cloud(6, 3, 3)
    layers = [grid_information(net, x, UNEVEN, layer) for layer in range(len(net.weights))]
    for before, after in itertools.pairwise(layers):
        assert after.xt < before.xt
        assert after.ty < before.ty
    entropies = weight_entropy(UNEVEN.sum(1)), weight_entropy(UNEVEN.sum(0))
    for xt, ty in layers:
        assert 0 < ty < min(xt, entropies[1])
        assert xt < entropies[0]


def test_order_of_inputs_classes_and_units_and_signs_of_tanh_change_nothing() -> None:
    net, x = NARROW["2-2"], cloud(6, 3, 3)
    found = grid_information(net, x, UNEVEN, 1)
    order = np.array([3, 0, 5, 1, 2, 4])
    near(grid_information(net, x[order], UNEVEN[order][:, ::-1], 1), found)
    (first, second), (b, c) = net.weights, net.biases
    near(
        grid_information(Noisy((first[::-1], second[::-1, ::-1]), (b[::-1], c[::-1]), "tanh", 0.4), x, UNEVEN, 1), found
    )
    sign = np.array([1.0, -1.0])
    turned = Noisy((first * sign[:, None], -second * sign), (b * sign, -c), "tanh", 0.4)
    near(grid_information(turned, x, UNEVEN, 1), found)


def test_scale_of_a_relu_net_and_its_noise_changes_nothing() -> None:
    net, x = NARROW["1-1 relu"], cloud(6, 3, 3)
    scaled = Noisy((7 * net.weights[0], net.weights[1]), tuple(7 * b for b in net.biases), "relu", 7 * net.noise)
    near(grid_information(scaled, x, UNEVEN, 1), grid_information(net, x, UNEVEN, 1))


def test_units_that_nothing_follows_change_nothing() -> None:
    net, x = NARROW["1-2"], cloud(6, 3, 3)
    more = Noisy(
        (np.vstack((net.weights[0], cloud(3, 3, 9))), np.pad(net.weights[1], ((0, 0), (0, 3)))),
        (np.append(net.biases[0], np.ones(3)), net.biases[1]),
        "tanh",
        net.noise,
    )
    near(grid_information(more, x, UNEVEN, 1), grid_information(net, x, UNEVEN, 1))


def test_an_input_in_two_halves_tells_nothing_more() -> None:
    net, x = NARROW["2-1"], cloud(6, 3, 3)
    halves = np.vstack((UNEVEN, UNEVEN[2:3]))
    halves[[2, 6]] /= 2
    near(grid_information(net, np.vstack((x, x[2:3])), halves, 1), grid_information(net, x, UNEVEN, 1))


def test_nets_side_by_side_add_up() -> None:
    parts = [of(str(k), NARROW["1-1"], cloud(3, 3, k), np.array([0, 1, 1])) for k in (5, 6)]
    joined = side_by_side("", parts, 1)
    near(grid_information(joined.net, *joined.population, 1), joined.truth)
    relu = [of(str(k), NARROW["1-1 relu"], cloud(3, 3, k), np.array([0, 1, 0])) for k in (5, 6)]
    joined = side_by_side("", relu, 2)
    near(grid_information(joined.net, *joined.population, 1, fineness=2.0), joined.truth, 1e-5)


@pytest.mark.parametrize("widths", [(3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 7, 1), (3, 1, 1, 1)])
def test_no_noise_leaves_the_entropies(widths: tuple[int, ...]) -> None:
    net, x = dense("tanh", 1e-4, widths, 1, [0.7] * (len(widths) - 1)), cloud(4, 3, 3)
    joint = np.array([[0.1, 0.2], [0.3, 0.0], [0.0, 0.15], [0.25, 0.0]])
    mutual = weight_entropy(joint.sum(0)) + weight_entropy(joint.sum(1)) - weight_entropy(joint)
    near(grid_information(net, x, joint, len(net.weights) - 1), (weight_entropy(joint.sum(1)), mutual), 1e-6)


@pytest.mark.parametrize("name", NARROW)
def test_much_noise_leaves_nothing(name: str) -> None:
    net, x = dataclasses.replace(NARROW[name], noise=100.0), cloud(6, 3, 3)
    xt, ty = grid_information(net, x, UNEVEN, len(net.weights) - 1)
    assert -1e-9 < ty <= xt + 1e-9 < 1e-3


def test_equal_values_tell_nothing() -> None:
    dead = Noisy((np.zeros((2, 3)), np.ones((2, 2))), (np.ones(2), np.zeros(2)), "relu", 0.1)
    near(grid_information(dead, cloud(6, 3, 3), UNEVEN, 1), (0.0, 0.0))
    linear = dataclasses.replace(dead, activation="identity")
    near(linear_information(linear, cloud(6, 3, 3), UNEVEN, 1), (0.0, 0.0))


def test_laws_are_whole() -> None:
    for net in NARROW.values():
        masses = grid_laws(net, cloud(6, 3, 3), len(net.weights) - 1)
        # A kink that crosses a plane's grid costs five digits.
        np.testing.assert_allclose(masses.sum(1), 1, atol=1e-6 if net.activation == "relu" else 1e-12)


def test_too_wide_a_net_is_refused() -> None:
    with pytest.raises(ValueError, match="grids of 1 or 2"):
        grid_information(dense("tanh", 0.3, (3, 3, 3), 1, (1, 1)), cloud(6, 3, 3), UNEVEN, 1)
    with pytest.raises(ValueError, match="grids of 1 or 2"):
        linear_information(dense("identity", 0.3, (3, 3, 3), 1, (1, 1)), cloud(6, 3, 3), UNEVEN, 1)


# The families ------------------------------------------------------------------------------------------------------


def test_families_are_what_a_calibration_needs() -> None:
    assert len(NAMED) == len(FAMILIES) >= 10
    assert {family.net.activation for family in FAMILIES} == {"tanh", "relu", "identity"}
    for family in FAMILIES:
        assert 4 <= len(family.x) <= 64
        assert 1 <= family.layer == len(family.net.weights) - 1
        assert len(family.x) == len(family.labels)
        np.testing.assert_array_equal(np.unique(family.labels), np.arange(family.labels.max() + 1))
        assert family.population[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("family", EVERY)
def test_truths_of_families_do_not_change_at_half_the_step(family: Family) -> None:
    near(family.computed(2.0), family.truth, 1e-6)


@pytest.mark.parametrize("family", EVERY)
def test_truths_of_families_are_within_their_bounds(family: Family) -> None:
    joint = family.population[1]
    xt, ty = family.truth
    assert 0.05 < xt < weight_entropy(joint.sum(1)) - 0.1, "says something, and is not saturated"
    assert 0.001 < ty < min(xt, weight_entropy(joint.sum(0)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_network_of_a_family_is_its_net(family: Family) -> None:
    posts: dict[int, torch.Tensor] = {}

    def visit(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:  # noqa: ARG001
        posts[layer] = post

    family.network.walk(family.probe.x, visit)
    t = family.x
    for k in range(len(family.net.weights)):
        t = family.net.post(k, t)
        np.testing.assert_allclose(posts[k][0].cpu(), t, atol=1e-12)
    assert family.probe.x.shape == family.x.shape


@pytest.mark.parametrize("name", ["plain", "unequal weights"])
def test_a_family_can_be_measured(name: str) -> None:
    """Its first layer of one unit is integrated by the measure: both agree to rounding."""
    family = NAMED[name]
    net = family.net
    measure: Any = NetworkInformation(noise=(net.noise,), tolerance=0.2, max_replicas=64, max_draws=512, samples=None)
    result = measure(family.network, family.probe.sampled(None, 1), RandomStreams(1))
    found = result["mi_network_xt"].value[0, 0, 0], result["mi_network_ty"].value[0, 0, 0]
    near(Information(*found), grid_information(net, *family.population, 0), 1e-6)
    assert np.isfinite(result["mi_network_xt"].value[family.place])


def test_clusters_are_tighter_than_the_noise() -> None:
    family = NAMED["four clusters"]
    t = family.net.post(1, family.net.post(0, family.x))[:, 0]
    assert max(t[k::4].std() for k in range(4)) < family.net.noise


def test_the_covariance_of_a_linear_layer_is_that_of_draws() -> None:
    net, rng = NAMED["linear 5-7"].net, np.random.default_rng(0)
    t = np.zeros((200_000, 5))
    for k in range(2):
        t = net.post(k, t)
        t += net.noise * rng.standard_normal(t.shape)
    mean, covariance = linear_law(net, np.zeros((1, 5)), 1)
    assert np.abs(t.mean(0) - mean).max() < 0.02
    assert np.abs(np.cov(t.T) - covariance).max() < 0.02 * covariance.max()
