"""The network channel: oracles against each other, known answers, brackets that hold, statuses, laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.network_grids import Noisy, grid_information
from support.network_oracles import exact_information, linear_information, own_and_fresh, replica_information, replicas
from support.oracles import (
    Parameters,
    brute_information,
    line_ty,
    line_xt,
    network_of,
    probe_of,
    random_chain,
    weight_entropy,
    with_idle_unit,
)

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation

FOUR = np.array([[-3.0], [-1], [1], [3]])
LAST = np.array([0, 0, 0, 1])
SIX = np.array([[-2.5], [-1.5], [-0.4], [0.3], [1.2], [2.6]])
THIRDS = np.array([0, 1, 2, 0, 1, 2])
XT, TY, CAP = "mi_network_xt", "mi_network_ty", "mi_network_cap"


def scalars(*steps: tuple[float, float]) -> Parameters:
    """A chain of scalar layers w t + b and an output layer."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return [w * one for w, _ in steps] + [one], [b * one[0] for _, b in steps] + [None]


# The network of methods.md 2.4.
TWO = scalars((0.5, 0.0), (3.0, 0.3))
DRAWN = with_idle_unit(TWO)


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def rotation(d: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]


def population(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct rows and the joint law (n, C) of input and label."""
    distinct, of = np.unique(x, axis=0, return_inverse=True)
    joint = np.zeros((len(distinct), int(np.max(y)) + 1))
    np.add.at(joint, (of.ravel(), y), 1 / len(x))
    return torch.from_numpy(distinct), torch.from_numpy(joint)


@cache
def quadrature(name: str, noise: float) -> list[tuple[float, float]]:
    chain, activation, x, y = NETS[name]
    if name.startswith("plane"):
        return exact_information(chain, activation, *population(x, y), noise)
    weights, biases = (tuple(part.numpy() for part in parts[:-1] if part is not None) for parts in chain)
    distinct, joint = (part.numpy() for part in population(x, y))
    net = Noisy(weights, biases, activation, noise)
    found = [grid_information(net, distinct, joint, layer, 2.0) for layer in range(len(weights))]
    return [(xt, ty) for xt, ty in found]


def measured(
    chains: Sequence[Parameters],
    probe: Probe,
    activation: str = "tanh",
    seed: int = 0,
    **settings: Any,
) -> Mapping[str, Estimate]:
    # A twentieth of a nat takes some 750 draws of such nets: a budget of ten times that is what a sound stop needs.
    usual: dict[str, Any] = {"noise": (0.3,), "tolerance": 0.05, "max_replicas": 512, "max_draws": 2**13}
    return NetworkInformation(**usual | settings)(network_of(chains, activation), probe, RandomStreams(seed))


def without_derivative(network: Any) -> Any:
    """The network, whose passes say that they have no derivative: replicas are all there is."""

    class Passes:
        differentiable = False
        concurrent = True

        def __init__(self, passes: Any) -> None:
            self.passes, self.width, self.units = passes, passes.width, passes.units

        def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return cast("torch.Tensor", self.passes.values(inputs, z))

    class Network:
        def __getattr__(self, name: str) -> Any:
            return getattr(network, name)

        def alone(self, checkpoint: int) -> Any:
            return without_derivative(network.alone(checkpoint))

        def noisy_passes(self, *arguments: Any) -> Any:
            return Passes(network.noisy_passes(*arguments))

    return Network()


def half(found: Estimate, place: tuple[int, int, int]) -> float:
    """Half the bracket."""
    return (found.upper[place] - found.lower[place]) / 2


def check(found: Estimate, place: tuple[int, int, int], truth: float, rounding: float = 1e-9) -> None:
    """The house's rule for Monte Carlo, four standard errors, on the value and on both ends of the bracket.

    Where one unit follows the noise of one unit at most it is integrated, with no error but rounding.
    """
    value, error = found.value[place], found.stderr[place] + rounding
    # The ends already lie 1.96 errors out; in one case of twenty that is not enough, in one of 15,000 four are not.
    assert found.lower[place] - 2.04 * error <= truth <= found.upper[place] + 2.04 * error, (place, truth, value, error)
    assert abs(value - truth) <= 4 * error + half(found, place), (place, truth, value, error)


def check_status(result: Mapping[str, Estimate], place: tuple[int, int, int], tolerance: float) -> None:
    """Unresolved where a bracket or an error, of I(X;T) or of I(T;Y), is wider than was asked for."""
    unresolved = False
    for found in (result[XT], result[TY]):
        error = 1.96 * found.stderr[place]
        unresolved |= bool(half(found, place) - error > tolerance or error > tolerance)
    assert (result[XT].status[place] == Status.UNRESOLVED) == unresolved, (
        half(result[XT], place),
        half(result[TY], place),
    )


# The oracles -------------------------------------------------------------------------------------------------------


def test_quadrature_of_one_layer_is_that_of_the_readout() -> None:
    _, joint = population(FOUR, LAST)
    for noise in (0.05, 0.3, 1.0):
        (found,) = exact_information(scalars((1.0, -2.0)), "tanh", torch.from_numpy(FOUR), joint, noise)
        points = np.tanh(FOUR[:, 0] - 2)
        expected = line_xt(points, [1] * 4, noise), line_ty(points, joint.numpy(), noise)
        assert found == pytest.approx(expected, rel=1e-8)


def test_quadrature_of_a_linear_scalar_net_is_one_line_with_more_noise() -> None:
    chain, x, joint = scalars((0.7, 0.2), (-1.5, 1.0), (2.0, 0.0)), *population(SIX, THIRDS)
    found = exact_information(chain, "identity", x, joint, 0.4)
    points, variance = x[:, 0].numpy(), 0.0
    for (xt, ty), w in zip(found, (0.7, -1.5, 2.0), strict=True):
        points, variance = w * points, w**2 * variance + 0.4**2
        assert xt == pytest.approx(line_xt(points, [1] * 6, math.sqrt(variance)), rel=1e-8)
        assert ty == pytest.approx(line_ty(points, joint.numpy(), math.sqrt(variance)), rel=1e-8)


@pytest.mark.slow
def test_quadrature_in_the_plane_is_the_linear_law_and_has_converged() -> None:
    chain = random_chain((2, 2, 2, 1), 3, scale=1.5)
    x, joint = population(rows_of(6, 2), THIRDS)
    exact = exact_information(chain, "identity", x, joint, 0.5)[-1]
    mean, error = linear_information(chain, x, joint, 0.5, 3000)
    assert (np.abs(mean - exact) <= 4 * error).all()
    for activation in ("tanh", "relu"):
        coarse, fine = (exact_information(chain, activation, x, joint, 0.5, p)[-1] for p in (3, 4))
        # The kink of relu costs a trapezoidal rule its exponential convergence.
        assert coarse == pytest.approx(fine, abs=1e-3 if activation == "relu" else 1e-6)


def test_one_replica_is_the_readout() -> None:
    x, joint = population(rows_of(6, 3), THIRDS)
    chain, g = random_chain((3, 4, 2, 2), 1), torch.Generator().manual_seed(0)
    centres = replicas(chain, "tanh", x, 1, 0.3, g, 1)
    normals = [torch.randn(6, 2, generator=g, dtype=torch.float64) for _ in range(5)]
    found = replica_information(centres, joint, 0.3, [centres[0] + 0.3 * z for z in normals])
    assert found == pytest.approx(brute_information(centres[0], joint, 0.3, normals), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "repeats", "own", "fresh"),
    [(1, 600, 0.7561, 0.1197), (2, 400, 0.7046, 0.4076), (10, 80, 0.6469, 0.5664), (30, 20, 0.6304, 0.6033)],
)
def test_own_and_fresh_enclose_the_truth(count: int, repeats: int, own: float, fresh: float) -> None:
    """methods.md 2.4, the network of two layers; the table here is of a million own and fresh passes, error 0.001."""
    x, joint = population(FOUR, LAST)
    xt, ty = exact_information(TWO, "tanh", x, joint, 0.3)[1]
    assert (xt, ty) == pytest.approx((0.619409, 0.218239), abs=1e-6)
    mean, error = own_and_fresh(TWO, "tanh", x, joint, 1, 0.3, count, repeats)
    assert (np.abs(mean[:, 0] - (own, fresh)) <= 4 * error[:, 0] + 0.001).all()
    assert (mean[0] >= np.array([xt, ty]) - 4 * error[0]).all()
    assert (mean[1] <= np.array([xt, ty]) + 4 * error[1]).all()


# Known answers -----------------------------------------------------------------------------------------------------

TIMES = np.array([1, 2, 3, 1, 1, 2])
REPEATED = np.repeat(SIX, TIMES, axis=0)
NETS = {
    "methods": (TWO, "tanh", FOUR, LAST),
    "tanh": (scalars((1.0, -2.0), (2.0, 1.0)), "tanh", FOUR, LAST),
    "relu": (scalars((1.0, 0.5), (-1.0, 2.0)), "relu", SIX, THIRDS),
    "sigmoid": (scalars((2.0, 0.0), (4.0, -2.0)), "sigmoid", SIX, THIRDS),
    "three tanh": (scalars((0.6, 0.0), (2.0, 0.5), (2.5, -0.3)), "tanh", SIX, THIRDS),
    "three relu": (scalars((1.0, 1.0), (1.5, -1.0), (1.0, 0.5)), "relu", SIX, THIRDS),
    "weights": (scalars((0.6, 0.1), (2.0, -0.5)), "tanh", REPEATED, np.arange(10) % 3),
    "plane": (random_chain((3, 2, 2, 2), 7, scale=2.0), "tanh", rows_of(6, 3), THIRDS),
    "plane of relu": (random_chain((3, 1, 2, 2), 4, scale=2.0), "relu", rows_of(6, 3), THIRDS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_information_is_that_of_quadrature(name: str, noise: float) -> None:
    chain, activation, x, y = NETS[name]
    result = measured([chain], probe_of(x, y), activation, noise=(noise,))
    for layer, truths in enumerate(quadrature(name, noise)):
        for key, truth in zip((XT, TY), truths, strict=True):
            check(result[key], (0, layer, 0), truth)
        if layer:
            check_status(result, (0, layer, 0), 0.05)
        assert result[XT].status[0, layer, 0] in (Status.OK, Status.SATURATED)


@pytest.mark.parametrize("tolerance", [0.5, 0.05, 1e-7])
def test_one_unit_behind_one_noisy_unit_has_no_error(tolerance: float) -> None:
    """Nothing is drawn, whatever the budget and the seed: ends, value and truth are one."""
    results = [measured([TWO], probe_of(FOUR, LAST), seed=seed, tolerance=tolerance, max_draws=2) for seed in (0, 1)]
    for key, truth in ((XT, 0.619409), (TY, 0.218239), ("mi_network_xt_given_y", 0.619409 - 0.218239)):
        for found in (result[key] for result in results):
            assert found.value[0, 1, 0] == pytest.approx(truth, abs=2e-6)
            assert found.stderr[0, 1, 0] == 0.0
            assert found.lower[0, 1, 0] < found.value[0, 1, 0] < found.upper[0, 1, 0]
            assert found.upper[0, 1, 0] - found.lower[0, 1, 0] < 1e-5
            assert found.status[0, 1, 0] == Status.OK
            assert found.value[0, 1, 0] == results[0][key].value[0, 1, 0]
    xt = results[0][XT]
    used = [float(array[0, 1, 0]) for array in (xt.draws, xt.replicas, xt.inputs, xt.paths) if array is not None]
    assert used == [0.0, 1.0, 4.0, 0.0]


def test_an_integrated_cell_is_what_draws_say() -> None:
    for chain in (TWO, NETS["relu"][0], NETS["weights"][0]):
        activation, x, y = next(net[1:] for net in NETS.values() if net[0] is chain)
        exact, drawn = (measured([c], probe_of(x, y), activation) for c in (chain, with_idle_unit(chain)))
        for key in (XT, TY):
            assert drawn[key].stderr[0, 1, 0] > exact[key].stderr[0, 1, 0] == 0.0
            check(drawn[key], (0, 1, 0), float(exact[key].value[0, 1, 0]))
        np.testing.assert_allclose(exact[CAP].value[0, 1, 0], drawn[CAP].value[0, 1, 0], rtol=0.1)


def test_what_quadrature_cannot_afford_is_drawn() -> None:
    """A gain of 1e6 noises: no grid of the budget follows it."""
    weights = [torch.full((1, 1), w, dtype=torch.float64) for w in (1.0, 1e6, 1.0)]
    found = measured([(weights, [None] * 3)], probe_of(SIX, THIRDS), "identity", noise=(1.0,))[XT]
    assert found.draws[0, 1, 0] > 0
    check(found, (0, 1, 0), exact_linear_line(SIX[:, 0], 1e6))


@pytest.mark.slow
def test_the_two_layers_of_methods_to_a_finer_tolerance() -> None:
    result = measured([DRAWN], probe_of(FOUR, LAST), tolerance=0.01, max_draws=2**16, max_replicas=2**13)
    for key, truth in ((XT, 0.619409), (TY, 0.218239)):
        found = result[key]
        check(found, (0, 1, 0), truth)
        assert found.status[0, 1, 0] == Status.OK
        assert abs(found.value[0, 1, 0] - truth) <= 0.02
    # One replica a draw: the error, not the bracket, asks for this many.
    assert result[XT].replicas[0, 1, 0] * 4 == result[XT].draws[0, 1, 0]


def test_the_value_is_the_middle_of_its_bracket() -> None:
    result = measured([NETS["plane"][0]], probe_of(*NETS["plane"][2:]), noise=(0.1, 0.5))
    for key in (XT, TY):
        found = result[key]
        middle = (found.lower[:, 1] + found.upper[:, 1]) / 2
        np.testing.assert_allclose(found.value[:, 1], middle, atol=1e-9)
        assert (found.lower[:, 1] < found.value[:, 1]).all()


@pytest.mark.slow
def test_a_wider_net_agrees_with_brute_force() -> None:
    chain, x, y = random_chain((3, 4, 3, 5, 2), 5, scale=1.5), rows_of(10, 3), np.arange(10) % 2
    result = measured([chain], probe_of(x, y), noise=(0.4,))
    for layer in (1, 2):
        mean, error = own_and_fresh(chain, "tanh", torch.from_numpy(x), population(x, y)[1], layer, 0.4, 96, 2)
        for column, key in enumerate((XT, TY)):
            found, place = result[key], (0, layer, 0)
            # The reference's own error is from two repeats, hence 0.05 more.
            assert found.lower[place] - 2 * found.stderr[place] <= mean[0, column] + 0.05, (mean, error)
            assert found.upper[place] + 2 * found.stderr[place] >= mean[1, column] - 0.05, (mean, error)
            assert abs(found.value[place] - mean[:, column].mean()) <= 4 * found.stderr[place] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2])
def test_linear_gaussian_of_few_dimensions_is_resolved(d: int) -> None:
    weights = [1.5 * rotation(d, 1), 2.0 * rotation(d, 2), torch.ones(1, d, dtype=torch.float64)]
    chain, x, y = (weights, [None] * 3), rows_of(30, d), np.arange(30) % 2
    result = measured([chain], probe_of(x, y), "identity", noise=(1.0,))
    exact = exact_information(chain, "identity", *population(x, y), 1.0)[1]
    for key, truth in zip((XT, TY), exact, strict=True):
        check(result[key], (0, 1, 0), truth)
    assert result[XT].status[0, 1, 0] == Status.OK


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_linear_gaussian_of_seven_dimensions_is_resolved_by_weighted_paths_alone(weighted: bool) -> None:
    """methods.md 2.2: with 4 and with 8 replicas own is ln n to 0.02 nats where the truth is 3.9."""
    weights = [1.5 * rotation(7, 1), 6.0 * rotation(7, 2), torch.ones(1, 7, dtype=torch.float64)]
    chain, x = (weights, [None] * 3), rows_of(1024, 7)
    joint = torch.full((1024, 1), 1 / 1024, dtype=torch.float64)
    (truth, _), (error, _) = linear_information(chain, torch.from_numpy(x), joint, 1.0, 4)
    assert truth == pytest.approx(3.85, abs=0.1)
    assert error < 0.05
    network = network_of([chain], "identity")
    measure = NetworkInformation(noise=(1.0,), max_replicas=8, max_draws=8192)
    found = measure(network if weighted else without_derivative(network), probe_of(x), RandomStreams(0))[XT]
    place = (0, 1, 0)
    assert found.lower[place] <= truth <= found.upper[place]
    assert (found.paths[place] > 0) == weighted
    assert found.status[place] == (Status.OK if weighted else Status.UNRESOLVED)
    # Own and fresh of few replicas hardly differ between 4 and 8 of them, and are far apart.
    assert weighted or found.upper[place] - found.lower[place] > 3
    assert np.isfinite(found.value[place])


@pytest.mark.slow
def test_intervals_cover_the_truth_over_seeds() -> None:
    xt, ty = exact_information(TWO, "tanh", *population(FOUR, LAST), 0.3)[1]
    results = [measured([DRAWN], probe_of(FOUR, LAST), seed=seed) for seed in range(40)]
    for key, truth in ((XT, xt), (TY, ty)):
        found = [result[key] for result in results]
        inside = sum(bool(f.lower[0, 1, 0] <= truth <= f.upper[0, 1, 0]) for f in found)
        assert inside >= 36
        # Strata are inputs: an error that forgot that the centres are random would be too small.
        values, errors = (np.array([getattr(f, a)[0, 1, 0] for f in found]) for a in ("value", "stderr"))
        assert values.std(ddof=1) <= 1.5 * errors.mean()


def test_draws_beyond_the_replicas_are_not_counted_as_new() -> None:
    """64 replicas, each asked many times: the error is that of 64 replicas, whatever the draws."""
    results = [
        measured([DRAWN], probe_of(FOUR, LAST), seed=s, max_replicas=64, tolerance=0.005, max_draws=2**12)
        for s in range(16)
    ]
    for key in (XT, TY):
        values, errors = (np.array([getattr(r[key], a)[0, 1, 0] for r in results]) for a in ("value", "stderr"))
        assert values.std(ddof=1) <= 1.5 * errors.mean()


# The first layer, the last layer, caps -----------------------------------------------------------------------------


@pytest.mark.slow
def test_first_layer_is_the_readout() -> None:
    """Errors to rounding: one channel's sums are of all threads, the other's of one, and groups of terms differ."""
    chains, y = [random_chain((5, 6, 4, 3), seed) for seed in (1, 2)], np.arange(40) % 3
    probe, noise = probe_of(rows_of(40, 5), y), (1e-5, 0.1, 0.5)
    network = measured(chains, probe, noise=noise)
    readout = ReadoutInformation(noise=noise, tolerance=0.05, max_draws=2**13)(
        network_of(chains), probe, RandomStreams(0)
    )
    for part in ("xt", "ty", "cap"):
        ours, theirs = network[f"mi_network_{part}"], readout[f"mi_readout_{part}"]
        np.testing.assert_allclose(ours.value[:, 0], theirs.value[:, 0], rtol=1e-12)
        np.testing.assert_array_equal(ours.status[:, 0], theirs.status[:, 0])
        if part != "cap":
            np.testing.assert_allclose(ours.stderr[:, 0], theirs.stderr[:, 0], rtol=1e-10, atol=1e-15)


@pytest.mark.slow
def test_the_output_layer_is_not_measured() -> None:
    chains = [random_chain((3, 2, 2, 4), seed) for seed in (1, 2)]
    result = measured(chains, probe_of(rows_of(8, 3), np.arange(8) % 2), noise=(0.1, 0.5, 1.0))
    for key in (XT, TY, CAP):
        assert result[key].value.shape == (2, 3, 3)
    for key in (XT, TY):
        found = result[key]
        assert (found.status[:, 2] == Status.NOT_MEASURED).all()
        for part in ("value", "stderr", "lower", "upper"):
            assert np.isnan(getattr(found, part)[:, 2]).all()
            assert np.isfinite(getattr(found, part)[:, 1]).all()
    assert (result[XT].draws[:, :2] > 0).all()
    assert (result[XT].replicas[:, 1] <= 512).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three tanh", "three relu", "weights", "plane"])
def test_caps_bound_values_and_fall_from_layer_to_layer(name: str) -> None:
    chain, activation, x, y = NETS[name]
    hidden, share = len(chain[0]) - 1, population(x, y)[1].sum(1)
    result = measured([chain], probe_of(x, y), activation, noise=(0.05, 0.1, 0.5))
    cap, xt, ty = (result[key] for key in (CAP, XT, TY))
    ceiling = weight_entropy(share)
    for k, noise in enumerate((0.05, 0.1, 0.5)):
        for layer in range(hidden):
            place, before = (0, layer, k), (0, max(0, layer - 1), k)
            assert cap.value[place] <= min(ceiling, cap.value[before]) + 1e-12
            # The covariance is that of sampled centres.
            assert quadrature(name, noise)[layer][0] <= 1.05 * cap.value[place] + 0.02
            assert xt.value[place] <= ceiling + 4 * xt.stderr[place] + 1e-9
            assert xt.upper[place] <= ceiling + 4 * xt.stderr[place] + 0.05
            assert ty.value[place] <= xt.value[place] + 4 * (xt.stderr[place] + ty.stderr[place]) + half(xt, place)
            for found in (xt, ty):
                slack = 4 * (found.stderr[place] + found.stderr[before]) + half(found, place) + half(found, before)
                assert found.value[place] <= found.value[before] + slack


# Statuses ----------------------------------------------------------------------------------------------------------


def test_one_distinct_row_tells_nothing() -> None:
    result = measured([random_chain((3, 4, 3, 2), 1)], probe_of(np.ones((5, 3)), np.array([0, 1, 0, 1, 0])))
    for key in (XT, TY):
        assert (result[key].status[0, :2] == Status.DEAD).all()
        np.testing.assert_allclose(result[key].value[0, :2], 0, atol=1e-12)
        assert (result[key].status[0, 2] == Status.NOT_MEASURED).all()


@pytest.mark.parametrize("dead", [0, 1])
def test_a_layer_of_zeros_tells_nothing_nor_do_those_behind_it(dead: int) -> None:
    weights, biases = random_chain((3, 2, 2, 2, 2), 2)
    weights[dead] = torch.zeros_like(weights[dead])
    result = measured([(weights, biases)], probe_of(rows_of(8, 3), np.arange(8) % 2))
    for key in (XT, TY):
        found = result[key]
        assert (found.status[0, :dead] == Status.OK).all()
        assert found.status[0, dead, 0] == Status.DEAD
        for layer in range(dead, 3):
            assert found.status[0, layer, 0] in (Status.DEAD, Status.OK)
            assert found.lower[0, layer, 0] - 1e-9 <= 0 <= found.upper[0, layer, 0] + 1e-9
            assert abs(found.value[0, layer, 0]) <= 0.1


@pytest.mark.slow
def test_nan_weights_are_nonfinite_only_where_they_reach() -> None:
    chains = [random_chain((3, 2, 2, 2, 2), seed) for seed in (1, 2)]
    probe = probe_of(rows_of(8, 3), np.arange(8) % 2)
    clean = measured(chains, probe)
    chains[1][0][1][0, 0] = float("nan")
    result = measured(chains, probe)
    for key in (XT, TY):
        found = result[key]
        assert (found.status[1, 1:3] == Status.NONFINITE).all()
        assert np.isnan(found.value[1, 1:]).all()
        for place in ((0, slice(None)), (1, 0)):
            np.testing.assert_array_equal(found.status[place], clean[key].status[place])
            np.testing.assert_allclose(found.value[place], clean[key].value[place], rtol=1e-9)


@pytest.mark.slow
def test_what_overflows_is_nonfinite_and_nan_in_the_output_harms_nothing() -> None:
    weights, biases = random_chain((3, 2, 2, 2), 1)
    probe = probe_of(10 * np.abs(rows_of(8, 3)), np.arange(8) % 2)
    huge = measured([([weights[0].abs(), torch.full_like(weights[1], 1e308), weights[2]], biases)], probe, "relu")
    assert huge[XT].status[0, 1, 0] == Status.NONFINITE
    assert huge[XT].status[0, 0, 0] in (Status.OK, Status.SATURATED)
    clean = measured([(weights, biases)], probe)
    spoiled = measured([([*weights[:2], weights[2] * float("nan")], biases)], probe)
    np.testing.assert_array_equal(clean[XT].value[0, :2], spoiled[XT].value[0, :2])
    assert spoiled[XT].status[0, 2, 0] in (Status.NONFINITE, Status.NOT_MEASURED)


@pytest.mark.slow
def test_saturated_where_the_lower_end_is_ln_n() -> None:
    chain, x, y = random_chain((3, 4, 3, 2), 3), rows_of(6, 3), THIRDS
    result = measured([chain], probe_of(x, y), noise=(1e-3, 2.0))
    for key, value in ((XT, math.log(6)), (TY, math.log(3))):
        found = result[key]
        assert found.status[0, 1, 0] == Status.SATURATED
        assert found.status[0, 1, 1] == Status.OK
        assert found.value[0, 1, 0] == pytest.approx(value, abs=0.02)
    assert result[XT].lower[0, 1, 0] >= math.log(6) - 0.1


def test_tiny_budgets_are_unresolved_and_keep_their_value() -> None:
    chain, x, y = random_chain((3, 4, 4, 2), 3, scale=2.0), rows_of(30, 3), np.arange(30) % 2
    budgets: list[dict[str, Any]] = [{"max_draws": 100}, {"max_replicas": 2}]
    for settings in budgets:
        result = measured([chain], probe_of(x, y), noise=(0.5,), tolerance=1e-3, **settings)
        assert result[XT].status[0, 1, 0] == Status.UNRESOLVED
        assert result[TY].status[0, 1, 0] == Status.UNRESOLVED
        assert np.isfinite(result[XT].value[0, 1, 0])
        assert np.isfinite(result[TY].value[0, 1, 0])
        assert result[XT].replicas[0, 1, 0] <= settings.get("max_replicas", 512)


def test_without_labels_ty_is_not_measured() -> None:
    result = measured([TWO], probe_of(FOUR))
    assert (result[TY].status == Status.NOT_MEASURED).all()
    for part in ("value", "stderr", "lower", "upper"):
        assert np.isnan(getattr(result[TY], part)).all()
    assert result[XT].status[0, :2, 0].tolist() == [Status.OK, Status.OK]
    labelled = measured([TWO], probe_of(FOUR, LAST))
    np.testing.assert_array_equal(result[XT].status, labelled[XT].status)


def test_one_input_with_two_labels_tells_nothing_of_them() -> None:
    x = np.repeat(rows_of(5, 3), 2, axis=0)
    found = measured([random_chain((3, 2, 2, 2), 4)], probe_of(x, np.arange(10) % 2))[TY]
    assert np.abs(found.value[:, :2]).max() < 1e-10


# Laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_order_and_repetition_of_rows_change_the_draws_alone() -> None:
    chain, activation, x, y = NETS["three tanh"]
    order = np.random.default_rng(1).permutation(6)
    probes = (
        probe_of(x[order], y[order]),
        probe_of(np.repeat(x, 2, 0), np.repeat(y, 2)),
        probe_of(np.tile(x, (3, 1)), np.tile(y, 3)),
    )
    for probe in probes:
        result = measured([chain], probe, activation)
        for layer, truths in enumerate(quadrature("three tanh", 0.3)):
            for key, truth in zip((XT, TY), truths, strict=True):
                check(result[key], (0, layer, 0), truth)
            assert result[CAP].value[0, layer, 0] <= math.log(6) + 1e-12


@pytest.mark.slow
def test_a_big_bias_of_a_linear_layer_changes_nothing() -> None:
    """1024 on every unit costs 1e-13 of a unit in the noisy centres: 1e-12 of the noise, hence 1e-9."""
    x = np.round(rows_of(8, 2) * 1024) / 1024
    weights = [torch.round(w * 1024) / 1024 for w in random_chain((2, 2, 2, 2), 5)[0]]
    zero = torch.zeros(2, dtype=torch.float64)
    probe = probe_of(x, np.arange(8) % 2)
    near, far = (measured([(weights, [zero, zero + b, zero])], probe, "identity") for b in (0.0, 1024.0))
    for key in (XT, TY, CAP):
        np.testing.assert_allclose(far[key].value[:, :2], near[key].value[:, :2], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [4.0, 0.3])
def test_scaling_activations_and_noise_together_changes_nothing(factor: float) -> None:
    weights, biases = random_chain((3, 2, 2, 2), 6)
    scaled = [factor * weights[0], *weights[1:]], [factor * b for b in biases]
    probe = probe_of(rows_of(8, 3), np.arange(8) % 2)
    near = measured([(weights, biases)], probe, "relu", noise=(0.4,))
    far = measured([scaled], probe, "relu", noise=(0.4 * factor,))
    for key in (XT, TY, CAP):
        np.testing.assert_allclose(far[key].value[:, :2], near[key].value[:, :2], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_rotating_a_linear_layer_changes_the_draws_alone() -> None:
    weights, biases = random_chain((2, 2, 2, 2), 8, scale=2.0)
    x, y = rows_of(8, 2), np.arange(8) % 2
    turned = [weights[0], rotation(2, 4) @ weights[1], weights[2]], [biases[0], rotation(2, 4) @ biases[1], biases[2]]
    truths = exact_information((weights, biases), "identity", *population(x, y), 0.5)[1]
    for chain in ((weights, biases), turned):
        result = measured([chain], probe_of(x, y), "identity", noise=(0.5,))
        for key, truth in zip((XT, TY), truths, strict=True):
            check(result[key], (0, 1, 0), truth)


def same(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], place: Any = ..., other: Any = ..., rtol: float = 0.0
) -> None:
    """Everything two results hold, compared."""
    for key, found in a.items():
        for part in ("value", "status", "stderr", "lower", "upper", "draws"):
            ours, theirs = getattr(found, part), getattr(b[key], part)
            assert (ours is None) == (theirs is None)
            # Of relative noise there is no level.
            if ours is not None and ours.size:
                np.testing.assert_allclose(ours[place], theirs[other], rtol=rtol, atol=rtol, err_msg=f"{key} {part}")


def test_repeated_calls_are_the_same_to_the_last_bit() -> None:
    probe = probe_of(rows_of(12, 3), np.arange(12) % 2)
    a, b = (measured([random_chain((3, 4, 3, 2), 1)], probe) for _ in range(2))
    same(a, b)


@pytest.mark.slow
def test_stacked_checkpoints_are_as_alone() -> None:
    chains = [random_chain((3, 3, 2, 2), seed, scale=1.0 + seed) for seed in range(3)]
    probe = probe_of(rows_of(12, 3), np.arange(12) % 2)
    stacked = measured(chains, probe)
    for c, chain in enumerate(chains):
        same(stacked, measured([chain], probe), c, 0, rtol=1e-9)


@pytest.mark.slow
def test_other_noise_levels_do_not_matter() -> None:
    probe, chain = probe_of(rows_of(12, 3), np.arange(12) % 2), random_chain((3, 3, 2, 2), 1)
    one, three = (measured([chain], probe, noise=noise) for noise in ((0.3,), (0.1, 0.3, 1.0)))
    same(one, three, (..., 0), (..., 1))


@pytest.mark.slow
def test_deeper_layers_do_not_matter() -> None:
    """A layer's number depends on its own place, not on what follows it."""
    weights, biases = random_chain((3, 2, 2, 2, 2), 1)
    probe = probe_of(rows_of(12, 3), np.arange(12) % 2)
    long, short = (measured([(weights[:k], biases[:k])], probe) for k in (4, 3))
    same(long, short, (0, slice(0, 2)), (0, slice(0, 2)), rtol=1e-12)


@pytest.mark.slow
def test_threads_do_not_matter(threads: Callable[[int], None]) -> None:
    probe, chain = probe_of(rows_of(40, 3), np.arange(40) % 2), random_chain((3, 4, 3, 2), 1)
    results = []
    for number in (1, 2):
        threads(number)
        results.append(measured([chain], probe, noise=(0.5,)))
    same(results[0], results[1], rtol=1e-9)


@pytest.mark.slow
def test_single_precision_of_the_forward_pass_is_enough() -> None:
    chain, activation, x, y = NETS["three tanh"]
    network = network_of([chain], activation, dtype=torch.float32)
    measure = NetworkInformation(noise=(0.3,), tolerance=0.05, max_replicas=512, max_draws=2**13)
    result = measure(network, probe_of(x, y), RandomStreams(0))
    for layer, truths in enumerate(quadrature("three tanh", 0.3)):
        for key, truth in zip((XT, TY), truths, strict=True):
            check(result[key], (0, layer, 0), truth, rounding=1e-6)


# Other inputs that few replicas do not show ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("gain", "tolerance"), [(100.0, 0.05), (16.0, 0.2), (3.0, 0.2)])
def test_brackets_hold_where_clouds_of_inputs_overlap_unseen(gain: float, tolerance: float, weighted: bool) -> None:
    """Pairs of inputs that only the noise before a large gain confuses: replicas of the partner are never near a draw.

    The truth is ln(n / 2), and nothing about the label. Weighted paths find the partner; replicas alone do not, and the
    bracket stays open.
    """
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 20.0
    x, y = np.concatenate([grid, grid + np.array([1e-3, 0])]), np.repeat([0, 1], 100)
    order = np.random.default_rng(0).permutation(200)
    identity = torch.eye(2, dtype=torch.float64)
    network = network_of([([identity, gain * identity, torch.ones(1, 2, dtype=torch.float64)], [None] * 3)], "identity")
    measure = NetworkInformation(noise=(1.0,), tolerance=tolerance, max_replicas=512, max_draws=2**13)
    result = measure(
        network if weighted else without_derivative(network), probe_of(x[order], y[order]), RandomStreams(0)
    )
    for key, truth in ((XT, math.log(100)), (TY, 0.0)):
        assert result[key].lower[0, 1, 0] <= truth <= result[key].upper[0, 1, 0]
    assert result[XT].status[0, 1, 0] != Status.SATURATED
    if weighted or gain >= 10:
        assert result[XT].status[0, 1, 0] == (Status.OK if weighted else Status.UNRESOLVED)


def test_an_input_nearer_than_the_first_replicas_is_found() -> None:
    """A scalar net of so large a gain that sixteen replicas leave gaps of many noises; the other inputs fill them."""
    weights = [torch.full((1, 1), w, dtype=torch.float64) for w in (1.0, 200.0, 1.0)]
    x = np.linspace(-1.5, 1.5, 256)[np.random.default_rng(1).permutation(256), None]
    chain = with_idle_unit((weights, [None] * 3))
    result = measured([chain], probe_of(x), "identity", noise=(1.0,), tolerance=0.2, max_draws=512)
    exact = exact_linear_line(x[:, 0], 200.0)
    assert result[XT].lower[0, 1, 0] <= exact <= result[XT].upper[0, 1, 0]
    assert result[XT].value[0, 1, 0] == pytest.approx(exact, abs=0.3) or result[XT].status[0, 1, 0] == Status.UNRESOLVED


def exact_linear_line(points: np.ndarray, gain: float) -> float:
    """I(X; g (x + Z) + Z') of points on a line."""
    return line_xt(gain * points, [1] * len(points), math.sqrt(gain**2 + 1))


def test_the_budget_of_draws_is_kept() -> None:
    for most in (2, 10, 100):
        result = measured([DRAWN], probe_of(SIX, THIRDS), max_draws=most)
        assert result[XT].draws[0, 1, 0] <= most
        assert result[XT].status[0, 1, 0] == Status.UNRESOLVED
