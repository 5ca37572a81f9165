"""The read-out channel of whole layers: known answers, statuses, common random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import (
    Parameters,
    brute_information,
    forward,
    line_ty,
    line_xt,
    loop_bound,
    network_of,
    probe_of,
    random_chain,
    weight_entropy,
)

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.readout import ReadoutInformation

FOUR = np.array([[-3.0], [-1], [1], [3]])
LAST = np.array([0, 0, 0, 1])  # label 1 iff x = 3: the example of Goldfeld et al.


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def neuron(w: float, b: float) -> Parameters:
    one = torch.ones(1, 1, dtype=torch.float64)
    return [w * one, one], [b * one[0], None]


def measured(
    chains: Sequence[Parameters],
    probe: Probe,
    activation: str = "tanh",
    seed: int = 0,
    **settings: Any,
) -> Mapping[str, Estimate]:
    return ReadoutInformation(**settings)(network_of(chains, activation), probe, RandomStreams(seed))


@pytest.mark.parametrize(("w", "b"), [(0.1, 0.0), (1.0, -2.0), (2.0, -4.0), (5.0, -10.0)])
def test_information_of_one_neuron_is_that_of_quadrature(w: float, b: float) -> None:
    """methods.md 2.4, by quadrature (tests/numerics holds the table against it). 3 / N: see there.

    The tolerance is 0.02 nats, and where it is reached the answer is within four of its half widths.
    """
    noise = (0.05, 0.1, 1.0)
    result = measured([neuron(w, b)], probe_of(FOUR, LAST), noise=noise, tolerance=0.02, max_draws=2**14)
    points = np.tanh(w * FOUR[:, 0] + b)
    joint = np.eye(2)[LAST] / 4
    for k, s in enumerate(noise):
        for key, truth in (
            ("mi_readout_xt", line_xt(points, [1] * 4, s)),
            ("mi_readout_ty", line_ty(points, joint, s)),
        ):
            found = result[key]
            assert abs(found.value[0, 0, k] - truth) <= max(4 * found.stderr[0, 0, k], 0.04)


@pytest.mark.slow
def test_every_layer_is_within_its_bounds_and_cap() -> None:
    chains = [random_chain((5, 6, 4, 3), seed) for seed in (1, 2)]
    x, y = rows_of(40, 5), np.arange(40) % 3
    noise = (0.1, 0.5, 2.0)
    result = measured(chains, probe_of(x, y), noise=noise, tolerance=0.05)
    joint = torch.from_numpy(np.eye(3)[y] / 40)
    g = torch.Generator().manual_seed(1)
    for c, chain in enumerate(chains):
        for layer, (_, post) in enumerate(forward(*chain, "tanh", "identity", torch.from_numpy(x))):
            weights = np.full(40, 1 / 40)
            normals = [torch.randn(post.shape, generator=g, dtype=torch.float64) for _ in range(20)]
            for k, s in enumerate(noise):
                xt, ty, cap = (result[f"mi_readout_{key}"] for key in ("xt", "ty", "cap"))
                cell = (c, layer, k)
                batches = np.array([brute_information(post, joint, s, normals[m : m + 4]) for m in range(0, 20, 4)])
                reference, error = batches.mean(0), batches.std(0, ddof=1) / math.sqrt(5)
                # Our own draws: t with 4 degrees of freedom is wider than a normal, hence 8 of its errors.
                assert abs(xt.value[cell] - reference[0]) <= 4 * xt.stderr[cell] + 8 * error[0] + 1e-6
                assert abs(ty.value[cell] - reference[1]) <= 4 * ty.stderr[cell] + 8 * error[1] + 1e-6
                assert xt.lower[cell] == pytest.approx(loop_bound(post, weights, 8 * s**2), rel=1e-10)
                assert xt.upper[cell] == pytest.approx(loop_bound(post, weights, 2 * s**2), rel=1e-10)
                covariance = np.cov(post.numpy().T, ddof=0)
                gauss = 0.5 * np.linalg.slogdet(np.eye(len(covariance)) + covariance / s**2)[1]
                assert cap.value[cell] == pytest.approx(min(gauss, math.log(40), xt.upper[cell]), rel=1e-10)
                assert xt.value[cell] <= cap.value[cell] + 4 * xt.stderr[cell] + 1e-10
                assert ty.value[cell] <= min(math.log(3), xt.value[cell]) + 4 * (ty.stderr[cell] + xt.stderr[cell])
    for key in ("xt", "ty", "cap"):
        assert result[f"mi_readout_{key}"].value.shape == result[f"mi_readout_{key}"].status.shape == (2, 3, 3)


def test_pre_and_post_are_different_places() -> None:
    chain, probe = random_chain((3, 4, 2), 1, scale=3.0), probe_of(rows_of(30, 3))
    post, pre = (
        measured([chain], probe, at=at, noise=(0.5,), tolerance=0.02)["mi_readout_xt"] for at in ("post", "pre")
    )
    values = forward(*chain, "tanh", "identity", torch.from_numpy(rows_of(30, 3)))[0]
    for found, s in ((pre, values[0]), (post, values[1])):
        assert found.lower[0, 0, 0] == pytest.approx(loop_bound(s, [1 / 30] * 30, 8 * 0.25), rel=1e-10)
    assert pre.value[0, 0, 0] > post.value[0, 0, 0] + 0.1
    assert pre.value[0, 1, 0] == pytest.approx(post.value[0, 1, 0], rel=1e-12)  # an identity output


# Statuses ----------------------------------------------------------------------------------------------------------


def test_values_near_ln_n_are_saturated() -> None:
    """Distinct centres and little noise: the value is ln n and is kept; I(T;Y) has the same status."""
    result = measured([random_chain((4, 6, 3), 1)], probe_of(rows_of(30, 4), np.arange(30) % 2), noise=(1e-6, 3.0))
    for key, value in (("mi_readout_xt", math.log(30)), ("mi_readout_ty", math.log(2))):
        assert result[key].value[0, :, 0] == pytest.approx([value, value], rel=1e-10)
        assert (result[key].status[0, :, 0] == Status.SATURATED).all()
        assert (result[key].status[0, :, 1] == Status.OK).all()


def test_dead_layers_tell_nothing() -> None:
    weights, biases = random_chain((4, 5, 3, 2), 2)
    weights[1] = torch.zeros_like(weights[1])
    result = measured([(weights, biases)], probe_of(rows_of(20, 4), np.arange(20) % 2), noise=(0.3,))
    for key in ("mi_readout_xt", "mi_readout_ty"):
        found = result[key]
        assert found.status[0, 0, 0] == Status.OK
        assert (found.status[0, 1:] == Status.DEAD).all()
        assert found.value[0, 1:] == pytest.approx(np.zeros((2, 1)), abs=1e-12)


def test_nan_weights_are_nonfinite_only_where_they_reach() -> None:
    chains = [random_chain((4, 5, 3, 2), seed) for seed in (1, 2)]
    probe = probe_of(rows_of(20, 4), np.arange(20) % 2)
    clean = measured(chains, probe, noise=(0.3,))
    chains[1][0][1][0, 0] = float("nan")
    result = measured(chains, probe, noise=(0.3,))
    for key, found in result.items():
        if found.status is None:
            assert (found.value[1, 1:] == -1).all()
            continue
        assert (found.status[1, 1:] == Status.NONFINITE).all()
        assert np.isnan(found.value[1, 1:]).all()
        np.testing.assert_array_equal(found.status[0], clean[key].status[0])
        np.testing.assert_allclose(found.value[0], clean[key].value[0], rtol=1e-12)
        np.testing.assert_allclose(found.value[1, 0], clean[key].value[1, 0], rtol=1e-12)


def test_tiny_budget_is_unresolved_and_keeps_its_value() -> None:
    result = measured(
        [random_chain((3, 4, 2), 3)], probe_of(rows_of(50, 3)), noise=(0.5,), tolerance=1e-4, max_draws=200
    )
    found = result["mi_readout_xt"]
    assert (found.status == Status.UNRESOLVED).all()
    assert np.isfinite(found.value).all()
    assert (1.96 * found.stderr > 1e-4).all()
    # Bounds and caps are exact whatever the budget.
    assert (result["mi_readout_cap"].status == Status.OK).all()


def test_without_labels_ty_is_not_measured() -> None:
    result = measured([random_chain((3, 4, 2), 3)], probe_of(rows_of(20, 3)), noise=(0.5,))
    assert (result["mi_readout_ty"].status == Status.NOT_MEASURED).all()
    assert np.isnan(result["mi_readout_ty"].value).all()
    assert (result["mi_readout_xt"].status == Status.OK).all()


# Duplicates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-5, 0.05, 0.5])
def test_duplicates_never_exceed_the_entropy_of_distinct_rows(noise: float) -> None:
    """Rows repeated 1 to 5 times: the ceiling is H(X) of the distinct rows, not ln n."""
    times = np.array([1, 2, 3, 4, 5, 1, 2])
    x = np.repeat(rows_of(7, 3), times, axis=0)
    cap = weight_entropy(times / times.sum())
    found = measured([random_chain((3, 5, 2), 4)], probe_of(x), noise=(noise,))
    xt = found["mi_readout_xt"]
    assert (xt.value <= cap + 4 * xt.stderr + 1e-10).all()
    assert (xt.upper <= cap + 1e-10).all()
    assert (found["mi_readout_cap"].value <= cap + 1e-12).all()
    if noise == 1e-5:
        assert xt.value == pytest.approx(np.full((1, 2, 1), cap), rel=1e-9)
        assert (xt.status == Status.SATURATED).all()


def test_one_input_with_two_labels_limits_ty() -> None:
    """Every input once with either label: I(T;Y) = 0 at any noise, for H(Y | X) = H(Y)."""
    x = np.repeat(rows_of(10, 3), 2, axis=0)
    found = measured([random_chain((3, 5, 2), 4)], probe_of(x, np.arange(20) % 2), noise=(1e-4, 0.3))
    assert np.abs(found["mi_readout_ty"].value).max() < 1e-10


# Random numbers ----------------------------------------------------------------------------------------------------


def test_common_random_numbers_across_checkpoints() -> None:
    """The same weights twice give the same number twice, alone or stacked behind another checkpoint."""
    a, b = random_chain((3, 5, 2), 1), random_chain((3, 5, 2), 2)
    probe = probe_of(rows_of(40, 3), np.arange(40) % 2)
    twice, stacked, alone = (measured(c, probe, noise=(0.3,)) for c in ([a, a], [b, a], [a]))
    for key, found in alone.items():
        np.testing.assert_array_equal(twice[key].value[0], twice[key].value[1])
        np.testing.assert_allclose(stacked[key].value[1], found.value[0], rtol=1e-12)


def test_neither_other_noises_nor_other_layers_matter() -> None:
    chain, probe = random_chain((3, 5, 2), 1), probe_of(rows_of(40, 3))
    one, three = (measured([chain], probe, noise=n)["mi_readout_xt"] for n in ((0.3,), (0.1, 0.3, 1.0)))
    np.testing.assert_array_equal(one.value[:, :, 0], three.value[:, :, 1])
    np.testing.assert_array_equal(one.stderr[:, :, 0], three.stderr[:, :, 1])


def test_the_seed_moves_monte_carlo_and_nothing_else() -> None:
    chain, probe = random_chain((3, 5, 2), 1), probe_of(rows_of(40, 3))
    a, b = (measured([chain], probe, noise=(0.3,), seed=s)["mi_readout_xt"] for s in (0, 1))
    assert (a.value != b.value).all()
    assert (np.abs(a.value - b.value) <= 4 * np.hypot(a.stderr, b.stderr)).all()
    np.testing.assert_array_equal(a.lower, b.lower)
    np.testing.assert_array_equal(a.upper, b.upper)


def test_a_big_bias_changes_nothing() -> None:
    """A constant of 1024 on every unit of a linear layer; weights and rows are multiples of 2^-10, so it is exact."""
    x = np.round(rows_of(30, 3) * 1024) / 1024
    weights = [torch.round(w * 1024) / 1024 for w in random_chain((3, 4), 5)[0]]
    zero = torch.zeros(4, dtype=torch.float64)
    near, far = (measured([(weights, [zero + b])], probe_of(x), "identity", noise=(0.2,)) for b in (0.0, 1024.0))
    for key in ("mi_readout_xt", "mi_readout_cap"):
        np.testing.assert_allclose(far[key].value, near[key].value, rtol=1e-10)
