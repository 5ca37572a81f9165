"""I(X; T | Y) = I(X; T) - I(T; Y) of every channel: known answers, errors from the same draws, where it is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.network_oracles import exact_information
from support.oracles import line_ty, line_xt, network_of, probe_of, random_chain, symbol_entropy, two_point_table

from ibscan.core.estimate import Estimate, Status
from ibscan.core.streams import RandomStreams
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation

FOUR = np.array([[-3.0], [-1], [1], [3]])
LAST = np.array([0, 0, 0, 1])
CHANNELS = {
    "mi_binned": BinnedInformation(),
    "mi_readout": ReadoutInformation(noise=(0.5,), tolerance=0.2, max_draws=256),
    "mi_readout_rel": ReadoutInformation(noise=(0.5,), rel_noise=(0.5,), tolerance=0.2, max_draws=256),
    "mi_network": NetworkInformation(noise=(0.5,), tolerance=0.2, max_replicas=32, max_draws=256),
    "mi_network_rel": NetworkInformation(noise=(), rel_noise=(0.5,), tolerance=0.2, max_replicas=32, max_draws=256),
}
# Corners of a cube about 0, the label their first coordinate: of the others alone is anything left.
CORNERS = np.array([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])


def identity(width: int, layers: int = 2) -> Any:
    return [torch.eye(width, dtype=torch.float64)] * layers, [None] * layers


def read_out(points: np.ndarray[Any, Any], y: Any, seed: int = 0, **settings: Any) -> Mapping[str, Estimate]:
    chain = network_of([identity(points.shape[1])], "identity")
    return ReadoutInformation(**settings)(chain, probe_of(points, y), RandomStreams(seed))


@pytest.mark.parametrize("name", CHANNELS)
def test_it_is_the_difference_and_its_error_no_larger_than_both(name: str) -> None:
    rows, y = np.random.default_rng(0).standard_normal((30, 4)), np.arange(30) % 3
    chain = network_of([random_chain((4, 5, 4, 3), seed) for seed in (1, 2)])
    found = CHANNELS[name](chain, probe_of(rows, y), RandomStreams(0))
    xt, ty, given = (found[f"{name}_{side}"] for side in ("xt", "ty", "xt_given_y"))
    told = given.status != Status.NOT_MEASURED
    assert told[:, :2].all()
    np.testing.assert_array_equal(given.status, ty.status)
    np.testing.assert_allclose(given.value[told], (xt.value - ty.value)[told], rtol=1e-12, atol=1e-14)
    if given.stderr is not None:
        assert (given.stderr[told] <= (xt.stderr + ty.stderr)[told] * (1 + 1e-9)).all()
    if given.lower is not None:
        assert ((given.lower <= given.value) & (given.value <= given.upper))[told].all()


def test_of_a_line_it_is_what_quadrature_says() -> None:
    points = np.tanh(2.0 * FOUR - 1.0)
    joint = np.eye(2)[LAST] / 4
    found = read_out(points, LAST, noise=(0.05, 0.3, 1.0))["mi_readout_xt_given_y"]
    for k, noise in enumerate((0.05, 0.3, 1.0)):
        truth = line_xt(points[:, 0], [1] * 4, noise) - line_ty(points[:, 0], joint, noise)
        assert found.value[0, 0, k] == pytest.approx(truth, abs=1e-9)
        assert found.stderr[0, 0, k] == 0.0


@pytest.mark.parametrize(("noise", "one"), [(1.0 / a, value) for a, value in two_point_table().items() if a <= 2])
def test_of_a_cube_it_is_what_the_other_coordinates_tell(noise: float, one: float) -> None:
    found = read_out(CORNERS, (CORNERS[:, 0] > 0).astype(int), noise=(noise,), tolerance=0.01)
    given = found["mi_readout_xt_given_y"]
    assert abs(given.value[0, 0, 0] - 2 * one) <= 4 * given.stderr[0, 0, 0]
    assert given.stderr[0, 0, 0] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("budget", [400, 8])
def test_the_error_of_the_difference_covers_what_repetitions_show(budget: int) -> None:
    """Also where rows are a sample: of 100 seeds no fewer than 90 are within 1.96 errors."""
    rng = np.random.default_rng(3)
    points, y = rng.standard_normal((16, 2)), np.arange(16) % 2
    truth = read_out(points, y, noise=(0.7,), tolerance=0.002, max_draws=2**19)["mi_readout_xt_given_y"]
    assert truth.stderr[0, 0, 0] < 0.003
    within = []
    for seed in range(100):
        given = read_out(points, y, seed, noise=(0.7,), tolerance=1e-6, max_draws=budget)["mi_readout_xt_given_y"]
        within.append(abs(given.value[0, 0, 0] - truth.value[0, 0, 0]) <= 1.96 * given.stderr[0, 0, 0])
    assert np.mean(within) >= 0.9


@pytest.mark.slow
def test_of_the_noisy_network_it_is_what_quadrature_says() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    chain = [0.5 * one, 3.0 * one, one], [None, 0.3 * one[0], None]
    joint = torch.from_numpy(np.eye(2)[LAST] / 4)
    measure = NetworkInformation(noise=(0.3,), tolerance=0.02, max_draws=2**15)
    found = measure(network_of([chain], "tanh"), probe_of(FOUR, LAST), RandomStreams(0))["mi_network_xt_given_y"]
    for layer, (xt, ty) in enumerate(exact_information(chain, "tanh", torch.from_numpy(FOUR), joint, 0.3)):
        place = (0, layer, 0)
        assert found.lower[place] - 1e-9 <= xt - ty <= found.upper[place] + 1e-9
        assert abs(found.value[place] - (xt - ty)) <= 0.02
        assert found.stderr[place] <= 0.02
    assert found.status[0, 2, 0] == Status.NOT_MEASURED


def test_of_cells_it_is_their_entropy_within_classes() -> None:
    rows, y = np.random.default_rng(0).standard_normal((60, 3)), np.arange(60) % 3
    measure = BinnedInformation(bins=(), widths=(0.5, 2.0))
    found = measure(network_of([identity(3)], "identity"), probe_of(rows, y), RandomStreams(0))["mi_binned_xt_given_y"]
    for k, width in enumerate((0.5, 2.0)):
        expected = sum(symbol_entropy(np.floor(rows[y == c] / width))[0] / 3 for c in range(3))
        assert found.value[0, 0, k] == pytest.approx(expected, rel=1e-12)
    assert found.status[0, 0].tolist() == [Status.OK, Status.OK]


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("labels", ["alike", "apart", "none"])
def test_it_is_not_measured_where_equal_rows_have_different_labels(name: str, labels: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4))
    rows[1] = rows[0]
    y = None if labels == "none" else np.array([0, 0 if labels == "alike" else 1, *(np.arange(18) % 2)])
    chain = network_of([random_chain((4, 5, 4, 2), 1)])
    found = CHANNELS[name](chain, probe_of(rows, y), RandomStreams(0))
    given = found[f"{name}_xt_given_y"]
    if labels == "alike":
        assert np.isfinite(given.value[:, :2]).all()
        assert not (given.status[:, :2] == Status.NOT_MEASURED).any()
    else:
        assert (given.status == Status.NOT_MEASURED).all()
        assert np.isnan(given.value).all()
    assert (labels == "none") == bool((found[f"{name}_ty"].status == Status.NOT_MEASURED).all())


def test_dead_and_nonfinite_layers_have_their_status() -> None:
    dead, broken = random_chain((4, 5, 3, 2), 2), random_chain((4, 5, 3, 2), 3)
    dead[0][1].zero_()
    broken[0][1][0, 0] = math.nan
    rows, y = np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) % 2
    for name, measure in CHANNELS.items():
        found = measure(network_of([dead, broken]), probe_of(rows, y), RandomStreams(0))[f"{name}_xt_given_y"]
        assert (found.status[:, 1] == [[Status.DEAD], [Status.NONFINITE]]).all()
        assert (found.value[0, 1] == 0.0).all()
        assert np.isnan(found.value[1, 1]).all()
