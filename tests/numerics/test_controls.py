"""Control variates, quadrature at one unit, and skipping by a tree: each against the obvious lines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support.oracles import line_ty, line_xt

from ibscan.numerics.channels import mixture, tree
from ibscan.numerics.channels.controls import CAUTION, ReplicaControls, Residuals, controls, near_enough, quadratic
from ibscan.numerics.channels.mixture import Mixture
from ibscan.numerics.channels.neighbours import NeighbourControls
from ibscan.numerics.channels.readout import Information, draw_terms, line_information, readout_information
from ibscan.numerics.channels.tree import Tree


def gauss(shape: int | tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def shared(n: int, classes: int = 1) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.float64)[torch.arange(n) % classes] / n


# Controls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5, 12, 13, 40])
def test_controls_have_mean_zero_at_every_centre(d: int) -> None:
    """Exactly: under a rule of 2d points whose moments up to the second are those of a standard normal."""
    follow, places = controls(d, 10**9), gauss((3, d), d)
    root = math.sqrt(d)
    # +-sqrt(d) along each axis, all alike: mean 0, E z_k z_l = delta_kl.
    z = torch.cat([sign * root * torch.eye(d, dtype=torch.float64) for sign in (-1, 1)])
    for owner in range(3):
        found = follow(z, places[owner].expand(2 * d, -1))
        assert found.mean(0).abs().max() < 1e-12
    assert found.shape[1] == (d + d * (d + 1) if d <= 12 else 1)


def test_few_draws_have_few_controls() -> None:
    s, z = gauss((4, 3), 1), gauss((4, 3), 2)
    assert [controls(3, spare)(z, s).shape[1] for spare in (0, 7, 8, 119, 120)] == [0, 0, 1, 1, 15]


def test_quadratic_lists_every_pair_once() -> None:
    z = gauss((6, 3), 1)
    expected = [z[:, k] * z[:, m] - float(k == m) for k, m in itertools.combinations_with_replacement(range(3), 2)]
    torch.testing.assert_close(quadratic(z), torch.stack(expected, 1))


def test_residuals_are_those_of_two_least_squares_fits() -> None:
    """Each half's coefficients from the other half's differences within strata, by numpy's least squares."""
    strata, draws, p = 40, 5, 3
    share = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(strata)))
    follow = gauss((draws, strata, p), 2)
    terms = torch.stack((follow @ torch.tensor([1.0, -2, 0.5]).double(), follow[..., 0].square())) + gauss(
        (2, draws, strata), 3
    )
    tally = Residuals(share, stratified=True)
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        tally.add(terms[:, part], follow[part])
    value, error = tally.result()

    def within(part: torch.Tensor) -> torch.Tensor:
        return part - part.mean(0)

    for k in range(2):
        total = variance = 0.0
        for half in (0, 1):
            mine, other = slice(half, None, 2), slice(1 - half, None, 2)
            scale = share[other][None, :, None].numpy()
            x = (scale * within(follow[:, other]).numpy()).reshape(-1, p)
            y = (scale[..., 0] * within(terms[k][:, other]).numpy()).ravel()
            beta = np.linalg.lstsq(x, y, rcond=None)[0]
            left = terms[k][:, mine].numpy() - follow[:, mine].numpy() @ beta
            total += float(share[mine].numpy() @ left.mean(0))
            variance += float((share[mine].numpy() ** 2 * left.var(0, ddof=1)).sum()) / draws
        assert value[k] == pytest.approx(total, rel=1e-10)
        assert error[k] == pytest.approx(CAUTION * math.sqrt(variance), rel=1e-10)


@pytest.mark.parametrize("strata", [20, 80])
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("outer", [False, True])
def test_the_error_of_a_difference_is_that_of_the_differences(strata: int, stratified: bool, outer: bool) -> None:
    share = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(strata)))
    far = torch.arange(strata) < 2 if outer else None
    both, alone = Residuals(share, stratified, far), Residuals(share, stratified, far)
    for part in range(2):
        follow = gauss((3, strata, 3), part)
        terms = follow[..., 0] + gauss((3, 3, strata), 10 + part)
        both.add(terms, follow)
        alone.add(terms[:1] - terms[1:2], follow)
    assert both.difference() == pytest.approx(alone.result()[1][0], rel=1e-10)


def test_dependent_and_constant_controls_do_no_harm() -> None:
    share = torch.full((30,), 1 / 30, dtype=torch.float64)
    plain, doubled = Residuals(share, stratified=True), Residuals(share, stratified=True)
    for draw in range(4):
        one, term = gauss((1, 30, 1), draw), gauss((1, 1, 30), 10 + draw)
        plain.add(term, one)
        doubled.add(term, torch.cat((one, 2 * one, torch.zeros(1, 30, 1)), 2))
    for a, b in zip(plain.result(), doubled.result(), strict=True):
        assert a == pytest.approx(b, rel=1e-9)


def test_controls_shrink_the_error_and_keep_the_mean() -> None:
    """Two noises from each other the integrand is nearly quadratic: a tenth of the variance at most is left."""
    population, noise = Mixture.of(gauss((64, 4), 1), shared(64, 2)), 2.0
    normals = [gauss((64, 4), 100 + m) for m in range(40)]
    found = readout_information(population, noise, lambda m: normals[m], tolerance=1e-9, max_draws=64 * 40)
    terms = draw_terms(population, noise, torch.stack(normals), population.owner)
    plain = (terms[0].var(0).mean() / 64 / 40).sqrt()
    assert found.xt_se < 0.3 * plain
    assert abs(found.xt - terms[0].mean()) < 4 * plain


def test_the_replica_control_is_a_fitted_gaussian() -> None:
    """The last control against torch's own density, whose mean over z is that of points with moments 0 and 1."""
    rows, d = 3, 2
    s, replicas = gauss((4, rows, d), 1) + 100, gauss((50, rows, d), 2) + 100
    nodes = math.sqrt(d) * torch.cat([sign * torch.eye(d, dtype=torch.float64) for sign in (-1, 1)])
    z = gauss((4, rows, d), 3)
    follow = ReplicaControls(z, s)
    for part in replicas.split(20):
        follow.add(part)
    found = follow.follow()[..., -1]
    for row in range(rows):
        own = replicas[:, row]
        law = torch.distributions.MultivariateNormal(own.mean(0), torch.cov(own.T, correction=0) + torch.eye(d))
        for draw in range(4):
            mean = law.log_prob(s[draw, row] + nodes).mean()
            expected = mean - law.log_prob(s[draw, row] + z[draw, row])
            assert float(found[row, draw]) == pytest.approx(float(expected), abs=1e-9)


def test_neighbour_controls_are_a_fitted_gaussian() -> None:
    """Both parts together against torch's own density; d nodes either way have the moments of z."""
    d, noise = 14, 0.5
    population = Mixture.of(gauss((90, d), 1) + 10, shared(90, 1))
    z, owner = gauss((3, 90, d), 2), population.owner
    found = NeighbourControls(population, noise, owner)(z).sum(-1)
    nodes = math.sqrt(d) * torch.cat([sign * torch.eye(d, dtype=torch.float64) for sign in (-1, 1)])
    groups, real = population.groups.order, population.groups.real
    assert len(groups) > 1
    for members, there in zip(groups, real, strict=True):
        places = population.centres[members[there]] / noise
        law = torch.distributions.MultivariateNormal(
            places.mean(0), torch.cov(places.T, correction=0) + torch.eye(d, dtype=torch.float64)
        )
        for row in (owner == members[0]).nonzero().flatten().tolist():
            s = population.centres[owner[row]] / noise
            expected = law.log_prob(s + nodes).mean() - law.log_prob(s + z[:, row])
            assert torch.allclose(found[:, row], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("d", [13, 20, 33])
def test_groups_of_only_padding_have_controls_of_zero(d: int) -> None:
    """At this number of rows the halving of rectified points leaves groups without one."""
    rows = 10_000
    population = Mixture.of(gauss((rows, d), rows).clamp(min=0.0), shared(rows, 2))
    assert (~population.groups.real.any(1)).any()
    found = NeighbourControls(population, 0.5, population.owner)(gauss((1, rows, d), 2))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("far", [1e3, 1e12, 1e200])
@pytest.mark.parametrize("rows", [100, 2000])
def test_a_far_row_has_no_controls_and_leaves_those_of_the_others(far: float, rows: int) -> None:
    values = gauss((rows, 14), 1)
    z, others = gauss((2, rows, 14), 2), slice(0, rows - 1)
    alone = NeighbourControls(Mixture.of(values, shared(rows)), 0.5, torch.arange(rows))
    values[-1] = far
    population = Mixture.of(values, shared(rows))
    found = NeighbourControls(population, 0.5, population.owner)(z)
    assert (found[:, -1] == 0).all()
    assert torch.isfinite(found).all()
    assert found[:, others].std() == pytest.approx(float(alone(z)[:, others].std()), rel=0.1)


@pytest.mark.parametrize("crowd", ["normal", "one place", "two places", "heavy"])
def test_only_a_few_strata_are_ever_too_far(crowd: str) -> None:
    rng = np.random.default_rng(0)
    places = {
        "normal": rng.standard_normal((4000, 3)),
        "one place": 1e-9 * rng.standard_normal((4000, 3)),
        "two places": np.sign(rng.standard_normal((4000, 1))) * np.ones(3),
        "heavy": rng.standard_t(1, (4000, 3)),
    }[crowd]
    assert near_enough(torch.from_numpy(places).norm(dim=1)).sum() >= 4000 - 64
    if crowd != "heavy":
        assert near_enough(torch.from_numpy(places).norm(dim=1)).all()
        places[7] = 50.0
        assert near_enough(torch.from_numpy(places).norm(dim=1)).logical_not().nonzero().tolist() == [[7]]


# The quantiles of Student's t at 0.975, of draws - 1 degrees of freedom.
@pytest.mark.parametrize(
    ("draws", "quantile"), [(2, 12.706204736174705), (3, 4.302652729749462), (10, 2.2621571627982055)]
)
def test_errors_of_far_strata_have_students_factor(draws: int, quantile: float) -> None:
    """All strata but one are constant: the error can only be estimated from that stratum's few draws."""
    strata, far = 100, torch.arange(100) == 3
    share = torch.full((strata,), 1 / strata, dtype=torch.float64)
    terms = torch.zeros(1, draws, strata, dtype=torch.float64)
    terms[0, :, 3] = gauss(draws, draws)
    sums = Residuals(share, True, far)
    sums.add(terms, torch.zeros(draws, strata, 0, dtype=torch.float64))
    spread = float(terms[0, :, 3].std()) / math.sqrt(draws) / strata
    assert sums.result()[1][0] == pytest.approx(CAUTION * spread * quantile / 1.96, rel=1e-9)


# Slope -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("d", [1, 3])
def test_slope_is_the_derivative(noise: float, d: int) -> None:
    """-dI/d ln noise by a central difference of values from the same draws (or integrals)."""
    population = Mixture.of(gauss((50, d), 3) * torch.tensor([1.0, 0.3, 2.0]).double()[:d], shared(50, 2))
    step = 1e-3

    def at(factor: float) -> Information:
        if d == 1:
            return line_information(population, noise * factor)
        return readout_information(
            population, noise * factor, lambda m: gauss((50, d), 50 + m), tolerance=1e-9, max_draws=2**16
        )

    here, up, down = at(1.0), at(math.exp(step)), at(math.exp(-step))
    derivative = (down.xt - up.xt) / (2 * step)
    assert here.slope == pytest.approx(derivative, abs=1e-5 if d == 1 else 6 * here.slope_se + 1e-3)


# One unit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.005, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("case", ["even", "clustered", "far", "heavy", "shifted"])
def test_a_line_is_integrated_to_1e_9(noise: float, case: str) -> None:
    rng = np.random.default_rng(2)
    points = {
        "even": np.linspace(-1, 1, 33),
        "clustered": np.concatenate((-1 + 1e-3 * rng.random(12), 1 - 1e-9 * rng.random(12), [0.3])),
        "far": np.array([0.0, 20.0, 20.01, -4.0]),
        "heavy": np.repeat([0.0, 0.2, 5.0], [7, 2, 1]),
        "shifted": 1000.0 + rng.standard_normal(20),
    }[case]
    joint = np.eye(2)[rng.integers(2, size=len(points))] / len(points)
    found = line_information(Mixture.of(torch.from_numpy(points)[:, None], torch.from_numpy(joint)), noise)
    # The oracle's own grid is rounded where it is far from 0.
    distinct, owner = np.unique(points - points.mean(), return_inverse=True)
    merged = np.zeros((len(distinct), 2))
    np.add.at(merged, owner, joint)
    assert found.xt == pytest.approx(line_xt(distinct, merged.sum(1), noise), abs=1e-9)
    assert found.ty == pytest.approx(line_ty(distinct, merged, noise), abs=1e-9)
    assert (found.xt_se, found.ty_se, found.draws, found.resolved) == (0.0, 0.0, 0, True)


# Skipping ----------------------------------------------------------------------------------------------------------

CLOUDS = {
    "line": gauss((70, 1), 1),
    "cloud": gauss((300, 5), 2),
    "corners": torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64),
    "clusters": gauss((200, 3), 3) * 0.01 + torch.randint(0, 3, (200, 1), generator=torch.Generator().manual_seed(1)),
    "wide": gauss((150, 40), 4) * torch.logspace(0, -3, 40, dtype=torch.float64),
    "one": gauss((1, 4), 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("leaf", [1, 4, 64])
def test_every_leaf_that_is_within_reach_is_named(cloud: str, leaf: int) -> None:
    points, asked = CLOUDS[cloud], CLOUDS[cloud] + 0.1 * gauss(CLOUDS[cloud].shape, 9)
    built = Tree.of(points, budget=tree.Budget(leaf, leaf, 1.0))
    assert sorted(built.order[built.real].tolist()) == list(range(len(points)))
    for reach in (1e-6, 0.3, 3.0):
        squared = torch.full((len(asked),), reach**2, dtype=torch.float64)
        found = built.reached(asked, squared)
        if found is None:
            assert len(built.order) == 1
            continue
        named = {(leaf, int(k)) for leaf, part in enumerate(found[0].split(found[1])) for k in part}
        apart = (asked[:, None] - points[None]).square().sum(-1)
        for leaf_index, members in enumerate(built.order):
            near = (apart[:, members] <= squared[:, None]).any(1).nonzero().squeeze(1)
            assert {(leaf_index, int(k)) for k in near} <= named


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("noise", [1e-4, 0.02, 0.5, 20.0])
@pytest.mark.parametrize("limit", [0.0, 1e6])
def test_sums_are_those_over_all_centres(cloud: str, noise: float, limit: float) -> None:
    """Left out is less than 1e-12 of the smallest weight; own-centre shifts as the draws have them."""
    budget = mixture.Budget(tree.Budget(leaf=8), limit)
    population = Mixture.of(CLOUDS[cloud], shared(len(CLOUDS[cloud]), 3), budget)
    z = gauss((len(population.owner), len(population.units)), 11)
    points = population.centres[population.owner] + noise * z
    shift = 0.5 * z.square().sum(1)
    found = population.sums(population.weights, noise)(points / noise, shift)
    apart = (points[:, None] - population.centres[None]).square().sum(-1) / (2 * noise**2)
    expected = torch.exp(shift[:, None] - apart) @ population.weights
    smallest = float(population.share.min())
    assert ((found - expected).abs() <= 1e-12 * smallest + 1e-9 * expected).all()
