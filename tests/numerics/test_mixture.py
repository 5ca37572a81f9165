"""The read-out channel against methods.md 2.4, quadrature, and brute-force log-sum-exp over the same draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import (
    brute_information,
    line_entropy,
    line_ty,
    line_xt,
    loop_bound,
    two_point_table,
    weight_entropy,
)

from ibscan.numerics.channels import mixture, tree
from ibscan.numerics.channels.mixture import Mixture, collapsed, entropy, principal_components
from ibscan.numerics.channels.readout import draw_terms, readout_information
from ibscan.numerics.channels.visits import never_visited, visits_for
from ibscan.numerics.tiling import mapped, tiles

LAWS = settings(max_examples=15, deadline=None, derandomize=True)
FOUR = [-3.0, -1.0, 1.0, 3.0]
# methods.md 2.4, the example of Goldfeld et al.: noise -> I(X; tanh(w x + b) + noise Z) for (w, b) in NEURONS.
NEURONS = [(0.1, 0.0), (1.0, -2.0), (2.0, -4.0), (5.0, -10.0)]
NEURON_TABLE = {
    0.005: [1.3863, 1.0926, 1.0394, 0.5624],
    0.05: [1.2828, 1.0226, 0.6031, 0.5623],
    0.1: [0.8243, 0.8450, 0.5730, 0.5623],
    1.0: [0.0232, 0.2094, 0.2569, 0.2656],
}


def column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def uniform(n: int, classes: int = 1) -> torch.Tensor:
    joint = torch.zeros(n, classes, dtype=torch.float64)
    joint[torch.arange(n), torch.arange(n) % classes] = 1 / n
    return joint


def gauss(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def draws_of(shape: Any, seed: int = 0) -> Any:
    return lambda m: torch.from_numpy(np.random.default_rng([seed, m]).standard_normal(shape))


def pairwise_bounds(centres: Any, weights: Any, noise: Any, budget: mixture.Budget = mixture.USUAL) -> Any:
    return Mixture.of(centres, weights[:, None], budget).bounds(noise)


def gaussian_cap(centres: Any, weights: Any, noise: Any) -> Any:
    return mixture.gaussian_cap(principal_components(centres, weights)[0], noise)


def measured(
    centres: Any,
    joint: Any,
    noise: Any,
    *,
    seed: int = 0,
    tolerance: float = 1e-300,
    max_draws: Any = 2**11,
    budget: mixture.Budget = mixture.USUAL,
) -> Any:
    population, normals = Mixture.of(centres, joint, budget), draws_of(tuple(centres.shape), seed)
    lower, upper = population.bounds(noise)
    bounds = lower, min(upper, entropy(joint.sum(1)))
    return readout_information(
        population,
        noise,
        lambda m: normals(m)[:, population.units],
        tolerance=tolerance,
        max_draws=max_draws,
        bounds=bounds,
    )


def assert_within(value: Any, truth: Any, se: Any, slack: float = 1e-12) -> None:
    assert abs(value - truth) <= 4 * se + slack, (value, truth, se)


def unseen(result: Any, n: Any) -> Any:
    """What events too rare to be drawn once in N draws may add: 3 / N times a nat (rule of three), beside 4 se.

    Near ln n the whole difference from it is such events, and no sample's spread can know of them.
    """
    return 3 / (result.draws * n)


def corners(d: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=torch.float64)


def clusters(n: int = 60, d: int = 5, seed: int = 3) -> torch.Tensor:
    """Points in three well separated clumps: the case in which expanding the square fails."""
    return gauss((n, d), seed) * 0.1 + 3.0 * gauss((3, d), seed + 1)[torch.arange(n) % 3]


# Known answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "known"), two_point_table().items())
def test_two_points_at_distance_2a(ratio: Any, known: Any) -> None:
    """methods.md 2.4; its table has six decimals, hence 1e-6."""
    noise = 0.3
    points = [-ratio * noise, ratio * noise]
    assert line_xt(points, [1, 1], noise) == pytest.approx(known, abs=1e-6)
    result = measured(column(points), uniform(2, 2), noise)
    assert result.xt_se > 0
    slack = 1e-6 + unseen(result, 2)
    assert_within(result.xt, known, result.xt_se, slack)
    assert_within(result.ty, known, result.ty_se, slack)  # each point is a class of its own


@pytest.mark.parametrize(("noise", "known"), [(0.25, 1.386154), (0.5, 1.295654), (1.0, 0.845233)])
def test_four_points_have_their_known_information(noise: Any, known: Any) -> None:
    """methods.md 2.4, six decimals."""
    assert line_xt(FOUR, [1] * 4, noise) == pytest.approx(known, abs=1e-6)
    result = measured(column(FOUR), uniform(4), noise)
    assert_within(result.xt, known, result.xt_se, 1e-6 + unseen(result, 4))
    assert result.ty == pytest.approx(0.0, abs=1e-12)  # one class tells nothing


@pytest.mark.parametrize(
    ("noise", "w", "b", "known"),
    [(s, *wb, v) for s, row in NEURON_TABLE.items() for wb, v in zip(NEURONS, row, strict=True)],
)
def test_one_neuron_has_its_known_information(noise: Any, w: Any, b: Any, known: Any) -> None:
    """methods.md 2.4: the 16 values have four decimals, hence 5e-5."""
    points = [math.tanh(w * x + b) for x in FOUR]
    assert line_xt(points, [1] * 4, noise) == pytest.approx(known, abs=5e-5)
    joint = torch.zeros(4, 2, dtype=torch.float64)
    joint[[0, 1, 2], 0], joint[3, 1] = 0.25, 0.25  # label 1 iff x = 3
    result = measured(column(points), joint, noise)
    assert_within(result.xt, line_xt(points, [1] * 4, noise), result.xt_se, unseen(result, 4))
    assert_within(result.ty, line_ty(points, joint.numpy(), noise), result.ty_se, unseen(result, 4))


@pytest.mark.parametrize("d", [2, 4, 7])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_corners_are_a_product_channel(d: Any, ratio: Any) -> None:
    """I = d times that of two points at distance 2 (methods.md 2.4)."""
    result = measured(corners(d), uniform(2**d), 1 / ratio)
    assert_within(result.xt, d * two_point_table()[ratio], result.xt_se, d * 1e-6)


def test_one_centre_and_equal_centres_have_no_information() -> None:
    for centres in (torch.ones(1, 3, dtype=torch.float64), torch.full((9, 3), -0.7, dtype=torch.float64)):
        result = measured(centres, uniform(len(centres), min(2, len(centres))), 0.1, tolerance=1e-3)
        assert result.xt == pytest.approx(0.0, abs=1e-12)
        assert result.ty == pytest.approx(0.0, abs=1e-12)
        assert result.xt_se == pytest.approx(0.0, abs=1e-12)
        assert result.resolved


def test_vanishing_noise_gives_ln_n() -> None:
    """n distinct centres, noise -> 0: ln n; labels: H(Y)."""
    joint = uniform(24, 3)
    result = measured(gauss((24, 4), 1), joint, 1e-6)
    assert result.xt == pytest.approx(math.log(24), rel=1e-10)
    assert result.ty == pytest.approx(math.log(3), rel=1e-10)
    assert measured(gauss((24, 4), 1), joint, 1e-6, tolerance=1e-3).resolved


def test_vanishing_noise_with_weights_gives_the_entropy() -> None:
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    result = measured(column(FOUR), weights[:, None], 1e-6)
    assert result.xt == pytest.approx(weight_entropy(weights), rel=1e-10)


def test_duplicates_never_exceed_the_entropy_of_distinct_rows() -> None:
    """Six copies of one point and two of another: at any noise I <= H(3/4, 1/4), reached as noise -> 0."""
    rows = column([0.0] * 6 + [1.0] * 2)
    cap = weight_entropy([0.75, 0.25])
    for noise in (1e-4, 0.1, 0.5, 2.0):
        for centres, joint in ((rows, uniform(8)), collapsed(rows, uniform(8))[:2]):
            result = measured(centres, joint, noise)
            assert result.xt <= cap + 4 * result.xt_se + 1e-12
            truth = line_xt([0.0, 1.0], [0.75, 0.25], noise)
            assert_within(result.xt, truth, result.xt_se, unseen(result, len(centres)))


def test_linear_gaussian_is_approached_from_below() -> None:
    """(1/2) ln det(I + W C W^T / noise^2) = 3.920788 (methods.md 2.4).

    Samples are whitened to have exactly that covariance, so that the Gaussian cap equals the closed form and
    bounds every sample, not just their mean. 0.15 at n = 1024: four times the finite-sample bias of about
    exp(3.92) / (2 * 1024) = 0.025, plus 4 se.
    """
    w = torch.tensor([[1.0, 2], [0, 1], [1, -1]], dtype=torch.float64)
    c = torch.tensor([[1.0, 0.5], [0.5, 2]], dtype=torch.float64)
    values, errors = [], []
    for n in (64, 256, 1024):
        x = gauss((n, 2), 5)
        x = x - x.mean(0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T @ torch.linalg.cholesky(c).T
        s = x @ w.T
        assert gaussian_cap(s, torch.full((n,), 1 / n, dtype=torch.float64), 0.3) == pytest.approx(3.920788, abs=1e-6)
        result = measured(s, uniform(n), 0.3, max_draws=4 * n)
        values.append(result.xt)
        errors.append(result.xt_se)
    assert values[0] < values[1] < values[2] <= 3.920788 + 4 * errors[2]
    assert values[2] > 3.920788 - 0.15


# The same draws, brute force ---------------------------------------------------------------------------------------

CASES = {
    "line": (column([-3.0, -1, 0.2, 1, 3]), 0.5),
    "cube": (corners(4), 1.0),
    "cloud": (gauss((40, 6), 7), 0.4),
    "clusters": (clusters(), 0.05),
    "wide": (gauss((30, 100), 9), 3.0),
    "far clusters at noise 0.005": (clusters(48, 3, 11) * 3, 0.005),
    "tiny scale": (gauss((20, 3), 13) * 1e-8, 3e-9),
    "duplicates": (gauss((8, 2), 14)[torch.arange(24) % 8], 0.3),
}


def soft_joint(n: Any, classes: Any, seed: Any) -> Any:
    raw = np.random.default_rng(seed).uniform(0.05, 1.0, (n, classes))
    return torch.from_numpy(raw / raw.sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("labels", ["one", "hard", "soft"])
def test_equals_brute_force_on_the_same_draws(case: Any, labels: Any) -> None:
    centres, noise = CASES[case]
    n = len(centres)
    joint = {"one": uniform(n), "hard": uniform(n, 3), "soft": soft_joint(n, 3, 1)}[labels]
    population, normals = Mixture.of(centres, joint), draws_of(tuple(centres.shape))
    z = torch.stack([normals(m)[:, population.units] for m in range(4)])
    found = draw_terms(population, noise, z, population.owner).mean(1) @ population.rows
    # Rows of one centre are one input, whose label is that of any of them.
    mixed = (population.weights / population.share[:, None])[population.owner] * population.rows[:, None]
    xt, ty = brute_information(centres, mixed, noise, [normals(m) for m in range(4)])
    assert float(found[0]) == pytest.approx(xt, rel=1e-10, abs=1e-12)
    assert float(found[1]) == pytest.approx(ty, rel=1e-10, abs=1e-12)


def test_tile_size_does_not_matter() -> None:
    centres, joint = gauss((37, 4), 21), soft_joint(37, 2, 4)
    whole = measured(centres, joint, 0.5, max_draws=37 * 4)
    bounds = pairwise_bounds(centres, joint.sum(1), 0.5)
    for dense in (0.0, 1.0):  # never, and always, looking for what is within reach
        budget = mixture.Budget(tree.Budget(3, dense=dense), block=(5, 1000))
        cut = measured(centres, joint, 0.5, max_draws=37 * 4, budget=budget)
        assert (cut.xt, cut.ty, cut.slope) == pytest.approx((whole.xt, whole.ty, whole.slope), rel=1e-11)
        assert (cut.xt_se, cut.ty_se) == pytest.approx((whole.xt_se, whole.ty_se), rel=1e-9)
        assert pairwise_bounds(centres, joint.sum(1), 0.5, budget) == pytest.approx(bounds, rel=1e-11)


def test_equal_centres_with_different_labels_are_merged() -> None:
    """Two points, each with both labels at 3:1 and 1:3: I(T;Y) is that of soft labels, by quadrature."""
    rows = column([-1.0] * 4 + [1.0] * 4)
    joint = torch.zeros(8, 2, dtype=torch.float64)
    joint[[0, 1, 2, 4], 0] = 1 / 8
    joint[[3, 5, 6, 7], 1] = 1 / 8
    soft = np.array([[3, 1], [1, 3]]) / 8
    for noise in (0.01, 0.7):
        truth = line_ty([-1.0, 1.0], soft, noise)
        merged = collapsed(rows, joint)
        for centres, weights in ((rows, joint), merged[:2]):
            result = measured(centres, weights, noise)
            slack = unseen(result, len(centres))
            assert_within(result.ty, truth, result.ty_se, slack)
            assert_within(result.xt, line_xt([-1.0, 1.0], [1, 1], noise), result.xt_se, slack)


@pytest.mark.slow
@LAWS
@given(st.integers(0, 10_000), st.integers(2, 25), st.integers(1, 6), st.floats(0.02, 5.0), st.integers(1, 4))
def test_information_obeys_its_bounds(seed: Any, n: Any, d: Any, noise: Any, classes: Any) -> None:
    """0 <= I(T;Y) <= min(H(Y), I(X;T)) and I(X;T) <= min(H(X), Gaussian cap, upper), >= lower: methods.md 2.2."""
    centres, joint = gauss((n, d), seed), soft_joint(n, classes, seed)
    weights = joint.sum(1)
    result = measured(centres, joint, noise, max_draws=40 * n)
    low, high = pairwise_bounds(centres, weights, noise)
    slack = 4 * result.xt_se + 1e-10
    assert low - slack <= result.xt <= min(high, weight_entropy(weights), gaussian_cap(centres, weights, noise)) + slack
    assert -4 * result.ty_se - 1e-10 <= result.ty
    assert result.ty <= weight_entropy(joint.sum(0)) + 4 * result.ty_se + 1e-10
    assert result.ty <= result.xt + 4 * math.hypot(result.xt_se, result.ty_se) + 1e-10


# Honest errors and budgets -----------------------------------------------------------------------------------------

HONEST = {
    # centres, joint weights, noise, budget, exact I(X;T) and I(T;Y)
    "line": (column(FOUR), uniform(4, 2), 0.7, 4 * 100),
    "unequal weights": (column([-1.0, 0.0, 2.0]), torch.diag(torch.tensor([0.6, 0.1, 0.3])).double(), 0.8, 3 * 100),
    "centres not all visited": (column(list(np.linspace(-2, 2, 301) ** 3)), uniform(301, 3), 0.5, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HONEST)
def test_standard_errors_are_honest(case: Any) -> None:
    """60 seeds: hits ~ Binomial(60, 0.95), fewer than 50 has probability 0.0009.

    The root mean square error against the mean reported error: relative deviation 1 / sqrt(120) = 0.09, times 4.
    A sample of the centres may report too wide an error (systematic sampling beats independent draws), never too
    small a one: its ratio has no lower limit but that it is positive.
    """
    centres, joint, noise, budget = HONEST[case]
    points = centres[:, 0].numpy()
    truths = line_xt(points, joint.sum(1).numpy(), noise), line_ty(points, joint.numpy(), noise)
    runs = []
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(len(points))  # as every probe is: the sample relies on it
        runs.append(measured(centres[order], joint[order], noise, seed=seed, max_draws=budget))
    for truth, name in zip(truths, ("xt", "ty"), strict=True):
        errors = np.array([getattr(r, name) - truth for r in runs])
        reported = np.array([getattr(r, f"{name}_se") for r in runs])
        assert np.sum(np.abs(errors) <= 1.96 * reported) >= 50
        ratio = math.sqrt(np.mean(errors**2)) / reported.mean()
        assert (0.64 if len(points) * 2 <= budget else 0.0) < ratio < 1.36
        assert abs(errors.mean()) <= 4 * errors.std() / math.sqrt(60)


def test_spread_between_centres_is_no_error() -> None:
    """Two far points of unequal weight: every term is exactly -ln w_i, so the error is zero, not sd(ln w)."""
    joint = torch.tensor([[0.9], [0.1]], dtype=torch.float64)
    result = measured(column([0.0, 100.0]), joint, 0.1, tolerance=1e-6)
    assert result.xt == pytest.approx(weight_entropy(joint), rel=1e-10)
    assert result.xt_se < 1e-10
    assert result.resolved


@pytest.mark.parametrize("tolerance", [0.2, 0.02])
def test_stops_at_the_tolerance(tolerance: Any) -> None:
    result = measured(gauss((20, 2), 2), uniform(20, 2), 0.5, tolerance=tolerance, max_draws=2**18)
    assert result.resolved
    assert 1.96 * max(result.xt_se, result.ty_se) <= tolerance


def test_a_wide_tolerance_costs_fewer_draws() -> None:
    few, many = (measured(gauss((20, 2), 2), uniform(20), 0.5, tolerance=t, max_draws=2**18) for t in (0.1, 0.005))
    assert 2 <= few.draws < many.draws


@pytest.mark.slow
def test_a_lucky_start_does_not_end_the_sampling() -> None:
    """Few centres and a wide tolerance: two draws a centre are no basis for a spread, yet may seem to be within it.

    Two points at a/s = 1 (truth 0.336831), tolerance 0.1: an interval that ends the sampling holds in 95 of 100
    cases; of 30 seeds, fewer than 24 hold with probability 0.003, and an error of twice the half width is one of
    3.9 standard errors.
    """
    centres, joint = column([-1.0, 1.0]), uniform(2, 2)
    runs = [measured(centres, joint, 1.0, seed=seed, tolerance=0.1, max_draws=2**16) for seed in range(30)]
    errors = np.array([r.xt - two_point_table()[1.0] for r in runs])
    assert np.sum(np.abs(errors) <= 1.96 * np.array([r.xt_se for r in runs])) >= 24
    assert np.abs(errors).max() < 0.2


@pytest.mark.parametrize("noise", [0.25, 0.3, 0.35, 0.5])
def test_errors_cover_rare_overlaps(noise: Any) -> None:
    """Two clusters of 32 rows, four to two noises apart: few draws meet the other cluster, most samples none at all.

    Within 4 of the reported errors of the exact value of two points, in every one of eight seeds.
    """
    centres = torch.cat((torch.full((32, 1), -1.0), torch.full((32, 1), 1.0))).double()
    truth = line_xt([-1.0, 1.0], [1, 1], noise)
    for seed in range(8):
        found = measured(centres, uniform(64), noise, seed=seed, tolerance=0.05, max_draws=2**16)
        assert abs(found.xt - truth) <= 4 * found.xt_se


def test_exhausted_budget_is_unresolved_and_within_the_budget() -> None:
    result = measured(gauss((20, 2), 2), uniform(20), 0.5, tolerance=1e-4, max_draws=300)
    assert not result.resolved
    assert 2 <= result.draws <= 15  # 300 draws over 20 centres
    assert 1.96 * result.xt_se > 1e-4


@pytest.mark.parametrize("budget", [1, 2, 7, 50])
def test_a_budget_below_two_draws_a_centre_still_answers(budget: Any) -> None:
    calls = []

    def normals(m: Any) -> Any:
        calls.append(m)
        return draws_of((60, 2))(m)

    centres = gauss((60, 2), 4)
    population = Mixture.of(centres, uniform(60, 2))
    result = readout_information(population, 0.5, normals, tolerance=1e-6, max_draws=budget)
    assert not result.resolved
    assert calls
    for value in (result.xt, result.xt_se, result.ty, result.ty_se):
        assert math.isfinite(value)
    assert result.xt_se > 0
    assert result.xt <= math.log(60) + 1e-12  # every term is <= -ln w_i


@pytest.mark.slow
def test_a_sampled_budget_is_honest_for_unequal_weights() -> None:
    """Half the weight on one row: a sample that ignored weights would miss it. Truth by quadrature."""
    points = list(np.linspace(-3, 3, 200))
    weights = np.full(200, 0.5 / 199)
    weights[0] = 0.5
    truth = line_xt(points, weights, 0.3)
    joint = torch.from_numpy(weights)[:, None]
    runs = []
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(200)
        runs.append(measured(column(points)[order], joint[order], 0.3, seed=seed, max_draws=80))
    assert sum(abs(r.xt - truth) <= 1.96 * r.xt_se for r in runs) >= 50  # Binomial(60, 0.95), as above
    mean = np.mean([r.xt for r in runs])
    assert abs(mean - truth) <= 4 * np.std([r.xt for r in runs]) / math.sqrt(60)


# Arithmetic: methods.md 2.3 ----------------------------------------------------------------------------------------


def answers(centres: Any, joint: Any, noise: Any, seed: int = 0) -> Any:
    result = measured(centres, joint, noise, seed=seed, max_draws=8 * len(centres))
    weights = joint.sum(1)
    return [result.xt, result.ty, *pairwise_bounds(centres, weights, noise), gaussian_cap(centres, weights, noise)]


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.5])
def test_a_constant_on_every_unit_changes_nothing(noise: Any) -> None:
    """Centres are multiples of 2^-20, so that adding 1000 loses no digit and 1e-10 relative is owed in full."""
    centres = torch.round(clusters() * 2**20) / 2**20
    joint = soft_joint(len(centres), 3, 2)
    for offset in (1000.0, -4096.0):
        moved = answers(centres + offset, joint, noise)
        assert moved == pytest.approx(answers(centres, joint, noise), rel=1e-10)


@LAWS
@given(st.floats(1e-6, 1e6), st.integers(0, 1000))
def test_scaling_activations_and_noise_together_changes_nothing(scale: Any, seed: Any) -> None:
    centres, joint = gauss((20, 3), seed), soft_joint(20, 2, seed)
    scaled = answers(centres * scale, joint, 0.3 * scale)
    assert scaled == pytest.approx(answers(centres, joint, 0.3), rel=1e-10)


@LAWS
@given(st.integers(0, 1000))
def test_rotation_and_permutation_do_not_matter(seed: Any) -> None:
    """Exact quantities 1e-10; Monte-Carlo ones within 4 standard errors of the difference."""
    centres, joint = gauss((24, 4), seed), soft_joint(24, 2, seed)
    rotation = torch.linalg.qr(gauss((4, 4), seed + 1))[0]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(24))
    first = measured(centres, joint, 0.5, seed=seed, max_draws=400)
    for c, j in ((centres @ rotation, joint), (centres[order], joint[order])):
        other = measured(c, j, 0.5, seed=seed + 1, max_draws=400)
        assert_within(other.xt, first.xt, math.hypot(first.xt_se, other.xt_se))
        assert_within(other.ty, first.ty, math.hypot(first.ty_se, other.ty_se))
        exact = [*pairwise_bounds(c, j.sum(1), 0.5), gaussian_cap(c, j.sum(1), 0.5)]
        base = [*pairwise_bounds(centres, joint.sum(1), 0.5), gaussian_cap(centres, joint.sum(1), 0.5)]
        assert exact == pytest.approx(base, rel=1e-10)


def test_exponents_of_minus_a_million_are_finite() -> None:
    """Noise 0.005 and distances of 10: exp(-2e6) underflows; pairs 0.004 apart do not."""
    points = [-5.0, -4.996, 0.0, 5.0, 5.004]
    result = measured(column(points), uniform(5, 2), 0.005)
    assert_within(result.xt, line_xt(points, [1] * 5, 0.005), result.xt_se)
    assert_within(result.ty, line_ty(points, uniform(5, 2).numpy(), 0.005), result.ty_se)
    low, high = pairwise_bounds(column(points), torch.full((5,), 0.2, dtype=torch.float64), 0.005)
    assert low == pytest.approx(loop_bound(column(points), [0.2] * 5, 8 * 0.005**2), rel=1e-10)
    assert high == pytest.approx(loop_bound(column(points), [0.2] * 5, 2 * 0.005**2), rel=1e-10)


# Bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pairwise_bounds_equal_a_double_loop(case: Any) -> None:
    centres, noise = CASES[case]
    weights = soft_joint(len(centres), 1, 5)[:, 0]
    low, high = pairwise_bounds(centres, weights, noise)
    assert low == pytest.approx(loop_bound(centres, weights, 8 * noise**2), rel=1e-10)
    assert high == pytest.approx(loop_bound(centres, weights, 2 * noise**2), rel=1e-10)
    assert low == pytest.approx(pairwise_bounds(centres, weights, 2 * noise)[1], rel=1e-12)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 4.0])
def test_the_truth_lies_between_the_bounds(noise: Any) -> None:
    """Truth by quadrature; Kolchinsky and Tracey 2017."""
    points, weights = np.random.default_rng(1).normal(size=30), np.random.default_rng(2).dirichlet(np.ones(30))
    low, high = pairwise_bounds(column(list(points)), torch.from_numpy(weights), noise)
    truth = line_xt(points, weights, noise)
    assert 0 < low <= truth <= high <= weight_entropy(weights) + 1e-12
    assert truth <= gaussian_cap(column(list(points)), torch.from_numpy(weights), noise)


@pytest.mark.parametrize(("n", "d"), [(50, 3), (5, 20), (2, 1), (40, 40)])
def test_gaussian_cap_is_a_log_determinant(n: Any, d: Any) -> None:
    centres, weights = gauss((n, d), n) + 3.0, soft_joint(n, 1, n)[:, 0]
    covariance = np.cov(centres.numpy().T, aweights=weights.numpy(), ddof=0).reshape(d, d)
    for noise in (0.01, 1.0):
        expected = 0.5 * np.linalg.slogdet(np.eye(d) + covariance / noise**2)[1]
        # 1e-10 relative; at noise 0.01 slogdet itself sees a condition number of 1e5, which still leaves 1e-11.
        assert gaussian_cap(centres, weights, noise) == pytest.approx(expected, rel=1e-10)


def test_caps_of_a_single_point_are_zero() -> None:
    point, one = torch.ones(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert gaussian_cap(point, one, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert pairwise_bounds(point, one, 0.1) == pytest.approx((0.0, 0.0), abs=1e-12)


# Small functions ---------------------------------------------------------------------------------------------------


def test_entropy_counts_nothing_for_zeros() -> None:
    weights = torch.tensor([[0.5, 0.0], [0.125, 0.375]], dtype=torch.float64)
    assert entropy(weights) == pytest.approx(weight_entropy(weights), rel=1e-14)
    assert entropy(torch.tensor([1.0, 0.0], dtype=torch.float64)) == 0.0
    assert entropy(torch.full((1000,), 1e-3, dtype=torch.float64)) == pytest.approx(math.log(1000), rel=1e-12)


def test_collapsed_sums_weights_and_says_where_rows_went() -> None:
    rows = torch.tensor([[2.0, 1], [0, 0], [2, 1], [5, 5], [0, 0], [2, 1]], dtype=torch.float64)
    joint = torch.arange(12, dtype=torch.float64).reshape(6, 2) / 66
    centres, weights, owner = collapsed(rows, joint)
    assert torch.equal(centres[owner], rows)
    assert len(centres) == 3
    for row, expected in ((0, joint[[0, 2, 5]].sum(0)), (1, joint[[1, 4]].sum(0)), (3, joint[3])):
        torch.testing.assert_close(weights[owner[row]], expected, rtol=1e-14, atol=0)


def test_collapsed_takes_minus_zero_for_zero() -> None:
    centres, weights, owner = collapsed(column([0.0, -0.0, 1.0, -0.0]), uniform(4))
    assert len(centres) == 2
    assert owner[0] == owner[1] == owner[3] != owner[2]
    assert sorted(weights[:, 0].tolist()) == pytest.approx([0.25, 0.75], rel=1e-14)


def test_collapsed_keeps_rows_that_differ_in_the_last_bit() -> None:
    centres, _, owner = collapsed(column([1.0, math.nextafter(1.0, 2.0)]), uniform(2))
    assert len(centres) == len(owner) == 2


@LAWS
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=30))
def test_collapsed_is_that_of_a_dictionary(rows: Any) -> None:
    joint = soft_joint(len(rows), 2, len(rows))
    points = torch.tensor(rows, dtype=torch.float64)
    centres, weights, owner = collapsed(points, joint)
    expected: dict[Any, Any] = {}
    for index, row in enumerate(rows):
        expected[row] = expected.get(row, 0) + joint[index].numpy()
    assert torch.equal(centres[owner], points)
    assert len(centres) == len(expected)
    for centre, weight in zip(centres.tolist(), weights.numpy(), strict=True):
        np.testing.assert_allclose(weight, expected[tuple(int(v) for v in centre)], rtol=1e-12)


def test_rows_of_a_heavy_centre_are_strata_of_their_own() -> None:
    """Half of the rows at one point, the others spread: drawn by rows or by centres, one value, each within its errors.

    An error seen in two draws of the heavy centre alone would say nothing: of 40 seeds at least 33 hold (binomial
    with 0.95: fewer has probability 0.007), and the mean over seeds hits the oracle's value.
    """
    rows = torch.cat((torch.zeros(32, 2, dtype=torch.float64), gauss((32, 2), 5)))
    joint = uniform(64)
    centres, weights, _ = collapsed(rows, joint)
    truth = measured(centres, weights, 0.4, tolerance=1e-9, max_draws=33 * 2_000)
    held = 0
    for seed in range(40):
        found = measured(rows, joint, 0.4, seed=seed + 1, tolerance=10.0, max_draws=128)
        held += abs(found.xt - truth.xt) <= 1.96 * found.xt_se + 4 * truth.xt_se
    assert held >= 33


@given(st.integers(0, 5000), st.integers(1, 10_000_000))
@LAWS
def test_tiles_cover_every_row_once(rows: Any, columns: Any) -> None:
    got = list(tiles(rows, columns, torch.device("cpu")))
    assert [k for piece in got for k in range(rows)[piece]] == list(range(rows))
    assert all(len(range(rows)[piece]) * columns <= 2**19 or len(range(rows)[piece]) == 1 for piece in got)


def test_mapped_keeps_the_order_and_passes_errors_on(threads: Callable[[int], None]) -> None:
    threads(2)
    assert mapped(lambda k: k * k, range(50), torch.device("cpu")) == [k * k for k in range(50)]
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        mapped(lambda k: 1 // k, range(50), torch.device("cpu"))
    assert torch.get_num_threads() == 2


def test_line_oracle_knows_a_gaussian() -> None:
    """The quadrature itself: h of one Gaussian is (1/2) ln(2 pi e s^2)."""
    assert line_entropy([4.0], [1], 0.3) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.09), rel=1e-10)


# What is known without draws -----------------------------------------------------------------------------------------


def test_pairs_of_centres_bound_every_term() -> None:
    """Jensen's inequality centre by centre; their mean is the pairwise upper bound."""
    centres, joint = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 3))), uniform(40, 3)
    population = Mixture.of(centres, joint)
    pairs = population.pairwise(0.7)
    assert float(pairs[0] @ population.share) == pytest.approx(population.bounds(0.7)[1], abs=1e-12)
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((4000, 40, 3)))
    terms = draw_terms(population, 0.7, z, torch.arange(40))
    error = terms[0].std(0) / math.sqrt(4000)
    assert (terms[0].mean(0) <= pairs[0] + 4 * error).all()
    # Far apart, or all at one place, there is nothing else to know.
    for scale in (1e3, 1e-6):
        population = Mixture.of(scale * centres, joint)
        terms = draw_terms(population, 0.7, z[:100], torch.arange(40))
        assert torch.allclose(population.pairwise(0.7), terms.mean(1), rtol=0, atol=1e-5)


def test_larger_shares_are_missed_in_fewer_than_one_case_of_twenty() -> None:
    """By counting: so many rows at the given share are missed by that share of samples."""
    rows, visited = 300, 40
    share = never_visited(visited, rows)
    hidden = round(share * rows)
    rng = np.random.default_rng(0)
    missed = np.mean([(rng.permutation(rows)[:visited] >= hidden).all() for _ in range(4000)])
    assert missed == pytest.approx(0.05, abs=0.015)
    assert visits_for(share, rows) == pytest.approx(visited, abs=1)
    assert never_visited(visited, visited) == 0.0


def test_a_value_is_in_its_bounds_and_no_surer_than_it_was_wrong() -> None:
    """With few draws and bounds that coincide the value is the bounds', whatever the draws give."""
    rng = np.random.default_rng(0)
    centres = 1e-3 * rng.standard_normal((500, 2))
    centres[:5] += 100.0 * np.arange(1, 6)[:, None]
    population = Mixture.of(torch.from_numpy(centres), uniform(500, 1))
    bounds = population.bounds(1.0)
    for seed in range(5):
        normals = draws_of((500, 2), seed)
        found = readout_information(population, 1.0, normals, tolerance=0.05, max_draws=40, bounds=bounds)
        assert min(bounds) <= found.xt <= max(bounds)
        assert found.xt_se <= bounds[1] - bounds[0] + 1e-15
        assert found.resolved
        assert (found.ty, found.ty_se) == pytest.approx((0.0, 0.0), abs=1e-12)
