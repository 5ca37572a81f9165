"""The ends of a bracket from densities, and its statistics, against obvious references and repetitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ibscan.numerics.channels.bracket import Bracket, crossed_ends, paired_ends
from ibscan.numerics.channels.controls import CAUTION
from ibscan.numerics.channels.paths import Both
from ibscan.numerics.channels.readout import UNSEEN
from ibscan.numerics.channels.visits import never_visited

# No entropy caps a quantity.
UNCAPPED = (math.inf, math.inf)
FLOOR = 1e-3


def terms(draws: Any, groups: int = 0) -> torch.Tensor:
    """Terms (2, 3, V, m, M), all the same draws (m, M)."""
    return torch.from_numpy(np.broadcast_to(draws, (2, 3, 1 + groups, *np.shape(draws))).copy())


# Ends --------------------------------------------------------------------------------------------------------------


def densities(kinds: int = 2, draws: int = 4, classes: int = 3) -> tuple[Both, Both, torch.Tensor, torch.Tensor]:
    """Densities given the input, and under all of each class, of P(Y | X = x) and P(Y) that no class is certain in."""
    rng = np.random.default_rng(0)
    inside = Both(*(torch.from_numpy(rng.standard_normal(draws)) for _ in range(2)))
    outside = Both(*(torch.from_numpy(rng.standard_normal((kinds, draws, classes)) - 1) for _ in range(2)))
    given = torch.from_numpy(rng.dirichlet(np.ones(classes), draws))
    given[0] = torch.tensor([0.0, 1.0, 0.0])
    return inside, outside, given, torch.from_numpy(rng.dirichlet(np.ones(classes)))


def mixed(density: float, other: float, floor: float) -> float:
    return (1 - floor) * density + floor * other


@pytest.mark.parametrize("floor", [1e-12, FLOOR, 0.3])
def test_crossed_ends_take_one_density_from_above_and_one_from_below(floor: float) -> None:
    inside, outside, given, prior = densities()
    broad = torch.tensor([-1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = crossed_ends(inside, outside, given, prior, broad, floor)
    assert found.shape == (2, 3, 2, 4)
    own, fresh, own_x, fresh_x = (one.exp().numpy() for one in (outside.own, outside.fresh, inside.own, inside.fresh))
    for v in range(2):
        for q in range(4):
            total = own[v, q].sum()
            total_below = mixed(fresh[v, q].sum(), math.exp(broad[q]), floor)
            x_below = mixed(fresh_x[q], total_below, floor)
            classes = [y for y in range(3) if given[q, y] > 0]
            share = given[q].numpy()
            of_class = {y: own[v, q, y] / float(prior[y]) for y in classes}
            of_class_below = {y: mixed(fresh[v, q, y] / float(prior[y]), total_below, floor) for y in classes}
            label = sum(share[y] * math.log(of_class[y]) for y in classes)
            label_below = sum(share[y] * math.log(of_class_below[y]) for y in classes)
            upper = [math.log(own_x[q] / total_below), label - math.log(total_below), math.log(own_x[q]) - label_below]
            lower = [math.log(x_below / total), label_below - math.log(total), math.log(x_below) - label]
            assert found[0, :, v, q].tolist() == pytest.approx(upper, abs=1e-12)
            assert found[1, :, v, q].tolist() == pytest.approx(lower, abs=1e-12)


@pytest.mark.parametrize("floor", [1e-12, FLOOR, 0.3])
def test_paired_ends_are_ratios_of_the_same_side(floor: float) -> None:
    inside, outside, given, prior = densities()
    found = paired_ends(inside, outside, given, prior, floor)
    assert found.shape == (2, 3, 2, 4)
    for side, x, joint in ((0, inside.own, outside.own), (1, inside.fresh, outside.fresh)):
        least = floor if side else 0.0
        for v in range(2):
            for q in range(4):
                total = float(joint[v, q].exp().sum())
                of_class, of_x = (joint[v, q].exp() / prior).tolist(), math.exp(x[q])
                share = [(y, float(given[q, y])) for y in range(3) if given[q, y] > 0]
                expected = [
                    math.log(mixed(of_x / total, 1.0, least)),
                    sum(s * math.log(mixed(of_class[y] / total, 1.0, least)) for y, s in share),
                    sum(s * math.log(mixed(of_x / of_class[y], 1.0, least)) for y, s in share),
                ]
                assert found[side, :, v, q].tolist() == pytest.approx(expected, abs=1e-12)


def test_exact_densities_leave_no_gap_but_the_floor() -> None:
    inside, outside, given, prior = densities()
    exact_x, exact = Both(inside.own, inside.own), Both(outside.own, outside.own)
    broad = torch.zeros(4, dtype=torch.float64)
    for found in (
        crossed_ends(exact_x, exact, given, prior, broad, 1e-12),
        paired_ends(exact_x, exact, given, prior, 1e-12),
    ):
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)
        # I(X;T|Y) is what I(T;Y) leaves of I(X;T).
        torch.testing.assert_close(found[:, 2], found[:, 0] - found[:, 1], rtol=0, atol=1e-9)


def test_a_density_of_nothing_costs_no_more_than_the_floor() -> None:
    """Paths that miss a draw say nothing of it; a class without inputs in reach neither."""
    inside, outside, given, prior = densities()
    missed = Both(inside.own, torch.full_like(inside.fresh, -torch.inf))
    nowhere = Both(outside.own, torch.full_like(outside.fresh, -torch.inf))
    broad = torch.zeros(4, dtype=torch.float64)
    for found in (
        crossed_ends(missed, nowhere, given, prior, broad, FLOOR),
        crossed_ends(missed, outside, given, prior, broad, FLOOR),
        paired_ends(missed, outside, given, prior, FLOOR),
    ):
        assert found.isfinite().all()
    assert float(paired_ends(missed, outside, given, prior, FLOOR)[1, 0].min()) == pytest.approx(math.log(FLOOR))


# Statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 12, 20])
def test_the_error_is_the_spread_over_repetitions(rows: int) -> None:
    """20 rows of which some are visited, three draws each: what 2000 repetitions show, to a tenth."""
    rng, repetitions = np.random.default_rng(rows), 2000
    # Far above 0, which no information is below.
    level, spread = 9 + rng.standard_normal(20), rng.uniform(0.5, 2.0, 20)
    # What overlaps and rows that were not met may hide is no spread.
    unseen = math.hypot(UNSEEN / (rows * 3), never_visited(rows, 20) * math.log(20) / 1.96)
    means, errors = [], []
    for _ in range(repetitions):
        some = rng.permutation(20)[:rows]
        draws = level[some, None] + spread[some, None] * rng.standard_normal((rows, 3))
        bracket = Bracket.of([terms(draws)], 20, UNCAPPED)
        means.append(bracket.value[0])
        errors.append((bracket.error[0] ** 2 - unseen**2) / CAUTION**2)
    assert np.mean(means) == pytest.approx(level.mean(), abs=4 * float(np.std(means)) / math.sqrt(repetitions))
    assert math.sqrt(np.mean(errors)) == pytest.approx(np.std(means), rel=0.1)


def test_the_ends_are_means_and_the_value_is_their_middle() -> None:
    rng = np.random.default_rng(1)
    kind = torch.from_numpy(rng.standard_normal((2, 3, 1, 6, 4))) + torch.tensor([9.0, 5.0]).view(2, 1, 1, 1, 1)
    bracket = Bracket.of([kind], 6, UNCAPPED)
    high, low = kind.mean((-3, -2, -1)).numpy()
    np.testing.assert_allclose(bracket.value[:2], (high + low)[:2] / 2)
    assert bracket.value[2] == bracket.value[0] - bracket.value[1]
    np.testing.assert_allclose(np.array(bracket.upper) - 1.96 * np.array(bracket.error), high)
    np.testing.assert_allclose(np.array(bracket.lower) + 1.96 * np.array(bracket.error), low)
    assert bracket.width == pytest.approx((high - low)[:2].max() / 2)
    assert bracket.draws == 4
    assert bracket.finite
    np.testing.assert_allclose(bracket.within, kind[:, :2, 0].var(-1).mean(-1))
    np.testing.assert_allclose(bracket.between, kind[:, :2, 0].mean(-1).var(-1))
    assert bracket.common == 0


def test_of_several_kinds_the_nearest_ends_count_for_each_quantity() -> None:
    rng = np.random.default_rng(2)
    one, other = (torch.from_numpy(rng.standard_normal((2, 3, 1, 6, 4))) * 0.1 + 5 for _ in range(2))
    one[0] += torch.tensor([0.5, 2.0, 0.5]).view(3, 1, 1, 1)
    other[0] += torch.tensor([2.0, 0.5, 2.0]).view(3, 1, 1, 1)
    alone = [Bracket.of([kind], 6, UNCAPPED) for kind in (one, other)]
    both = Bracket.of([one, other], 6, UNCAPPED)
    for name in ("value", "error", "lower", "upper"):
        expected = [getattr(alone[k], name)[j] for j, k in enumerate((0, 1, 0))]
        if name == "value":
            expected[2] = expected[0] - expected[1]
        assert list(getattr(both, name)) == pytest.approx(expected, abs=1e-12)
    assert both.width == pytest.approx(
        max((b.upper[j] - b.lower[j]) / 2 - 1.96 * b.error[j] for j, b in enumerate(alone))
    )


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 4])
def test_replicas_that_all_draws_share_count_by_a_jackknife(groups: int) -> None:
    """Terms that are the mean over groups of replicas: the spread of that mean is the `common` one."""
    rng, repetitions = np.random.default_rng(groups), 4000
    means, common = [], []
    for _ in range(repetitions):
        group = rng.standard_normal(groups)
        left_out = (group.sum() - group) / (groups - 1)
        kinds = np.concatenate(([group.mean()], left_out)).reshape(1, 1, -1, 1, 1) + 9
        bracket = Bracket.of([torch.from_numpy(np.broadcast_to(kinds, (2, 3, 1 + groups, 5, 3)).copy())], 5, UNCAPPED)
        means.append(bracket.value[0])
        common.append(bracket.common)
    assert np.mean(common) == pytest.approx(np.var(means), rel=0.1)
    assert np.mean(common) == pytest.approx(1 / groups, rel=0.1)


def test_a_value_outside_its_range_is_off_by_its_distance() -> None:
    for level, distance in ((-0.5, 0.5), (3.0, 1.0), (1.0, 0.0)):
        bracket = Bracket.of([terms(np.full((40, 3), level))], 40, (2.0, 2.0))
        assert bracket.error[0] == pytest.approx(max(distance / 1.96, UNSEEN / 120))
        assert bracket.lower[0] <= min(max(level, 0.0), 2.0) + 1e-12
        assert bracket.upper[0] >= min(max(level, 0.0), 2.0) - 1e-12


def test_terms_that_are_not_numbers_make_no_finite_bracket() -> None:
    draws = np.ones((4, 3))
    draws[1, 1] = math.nan
    assert not Bracket.of([terms(draws)], 4, (math.log(4), math.log(2))).finite
    # Even if only one end of one quantity has them.
    one = terms(np.ones((4, 3)))
    one[0, 2, 0, 1, 1] = math.nan
    assert not Bracket.of([one], 4, (math.log(4), math.log(2))).finite


def test_one_row_or_one_draw_is_not_taken_for_certain() -> None:
    one_row = Bracket.of([terms(np.ones((1, 8)))], 20, UNCAPPED)
    assert one_row.between[0, 0] == pytest.approx(math.log(20) ** 2)
    rng = np.random.default_rng(0)
    one_draw = Bracket.of([terms(rng.standard_normal((20, 1)))], 20, UNCAPPED)
    np.testing.assert_allclose(one_draw.within, one_draw.between)


def test_the_suggested_sample_meets_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    for population, level in ((20, 1.0), (5000, 1.0), (5000, 0.01)):
        rows = min(population, 256)
        bracket = Bracket.of(
            [terms(level * rng.standard_normal((rows, 1)) + rng.standard_normal((rows, 2)))], population, UNCAPPED
        )
        rows, count = bracket.sample(0.05, population, 10**6, 10**6)
        share = rows / population
        variance = (1 - share) * (level**2 + 1 / count) / rows + share / (rows * count)
        hidden = never_visited(rows, population) * math.log(population)
        assert math.hypot(CAUTION * 1.96 * math.sqrt(variance), hidden) <= 0.06
        assert rows * count >= 2048
        # Where no tolerance is left to reach, some rows are visited all the same.
        assert min(bracket.sample(math.inf, population, 10**6, 10**6)) >= 1
        few = bracket.sample(0.001, population, 100, 7)
        assert few[0] * few[1] <= 100
        assert few[1] <= 7
