"""Statuses and weights that every measure of values shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.oracles import forward, network_of, probe_of, random_chain, weight_entropy

from ibscan.core.estimate import Status
from ibscan.core.records import At
from ibscan.measures.driver import input_weights, is_saturated, layer_status, layers_in_turn


def test_layers_in_turn_yields_all_values_of_every_layer() -> None:
    chains = [random_chain((4, 5, 3), seed) for seed in (1, 2)]
    x = np.random.default_rng(0).normal(size=(9, 4))
    places: tuple[At, ...] = ("pre", "post")
    for k, at in enumerate(places):
        found = {
            layer: values.clone() for layer, values in layers_in_turn(network_of(chains, "relu", "softmax"), x, at)
        }
        assert list(found) == [0, 1]
        for c, chain in enumerate(chains):
            expected = forward(*chain, "relu", "softmax", torch.from_numpy(x))
            for layer in (0, 1):
                assert found[layer].dtype == torch.float64
                torch.testing.assert_close(found[layer][c], expected[layer][k], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([[1.0, 2], [1, 3]], Status.OK),
        ([[1.0, 2], [1, 2]], Status.DEAD),
        ([[1.0, 2], [1, math.nextafter(2, 3)]], Status.OK),
        ([[math.nan, 2], [1, 2]], Status.NONFINITE),
        ([[math.inf, 2], [math.inf, 2]], Status.NONFINITE),  # precedence: nonfinite before dead
        ([[0.0, 2], [-0.0, 2]], Status.DEAD),
    ],
)
def test_a_layer_is_dead_or_not_finite_by_its_values(values: Sequence[Sequence[float]], status: int) -> None:
    assert layer_status(torch.tensor(values, dtype=torch.float64)) == status


def test_each_unit_is_constant_by_its_own_scale() -> None:
    """A constant of 1e6 beside a signal of 1e-7, and a unit whose values differ by rounding alone, made constant."""
    weights = torch.tensor([[0.0, 0.0], [1e-7, 0.0], [1e-9, 0.0]], dtype=torch.float64)
    bias = torch.tensor([1e6, 0.0, 1e5], dtype=torch.float64)
    x = np.random.default_rng(0).normal(size=(9, 2))
    ((_, values),) = layers_in_turn(network_of([([weights], [bias])]), x, "pre")
    assert (values[0, :, 0] == 1e6).all()
    torch.testing.assert_close(values[0, :, 1], torch.tensor(1e-7 * x[:, 0]), rtol=1e-12, atol=0)
    assert len(values[0, :, 2].unique()) == 1
    assert layer_status(values[0]) is Status.OK
    assert layer_status(values[0, :, [0, 2]]) is Status.DEAD


def test_without_labels_weights_have_one_class() -> None:
    """-0.0 and 0.0 are one input: H(X) = H(1/2, 1/4, 1/4)."""
    weights, entropy = input_weights(probe_of([[0.0, 1], [-0.0, 1], [2, 1], [3, 1]]))
    assert np.asarray(weights).shape == (4, 1)
    np.testing.assert_allclose(np.asarray(weights)[:, 0], 0.25, rtol=1e-14)
    assert entropy == pytest.approx(weight_entropy([0.5, 0.25, 0.25]), rel=1e-12)


def test_with_labels_weights_are_joint_and_inputs_count_once() -> None:
    """One input with two labels is one input: H(X) = ln 3 counts x alone."""
    weights, entropy = input_weights(probe_of([[0.0], [0], [1], [1], [2], [2]], [0, 1, 1, 1, 0, 2]))
    expected = np.zeros((6, 3))
    expected[range(6), [0, 1, 1, 1, 0, 2]] = 1 / 6
    np.testing.assert_allclose(np.asarray(weights), expected, rtol=1e-14)
    assert entropy == pytest.approx(math.log(3), rel=1e-12)


def test_images_count_as_rows() -> None:
    x = np.zeros((3, 2, 2))
    x[1, 1, 1] = 1.0
    assert input_weights(probe_of(x))[1] == pytest.approx(weight_entropy([2 / 3, 1 / 3]), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "entropy", "expected"),
    [
        (8.25, 8.318, True),
        (8.21, 8.318, False),
        (0.19, 0.19, False),  # H(X) < 0.2: nothing could ever be seen, so nothing is said
        (0.15, 0.2, True),
        (0.0, 8.318, False),
    ],
)
def test_saturated_is_near_an_entropy_that_is_not_small(value: float, entropy: float, expected: bool) -> None:
    """methods.md 2.2: within 0.1 nat of H(X), and H(X) >= 0.2."""
    assert bool(is_saturated(value, entropy)) is expected
