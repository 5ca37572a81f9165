"""Sums over replicas, other inputs' densities, and the bracket's statistics, against obvious references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ibscan.numerics.channels.propagation import Budget, Queries, bracket_terms, grouped, others_density, replica_sums

from ibscan.numerics.channels.bracket import Bracket
from ibscan.numerics.channels.controls import CAUTION
from ibscan.numerics.channels.readout import UNSEEN
from ibscan.numerics.channels.visits import never_visited


def made(rows: int = 5, draws: int = 3, replicas: int = 7, width: int = 2, seed: int = 0, offset: float = 0.0) -> Any:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(replicas, rows, width, generator=g, dtype=torch.float64) * 2 + offset
    z = torch.randn(rows, draws, width, generator=g, dtype=torch.float64)
    points = values[:draws].transpose(0, 1) + z
    return Queries(points, 0.5 * z.square().sum(-1), tuple(range(draws))), values


def log_density(queries: Any, centre: Any) -> Any:
    """ln N(t; centre, I) / N(t; own, I), from differences; centre (m, D) of each row, or (D,)."""
    centre = centre if centre.ndim == 1 else centre.unsqueeze(1)
    return queries.energy - 0.5 * (queries.points - centre).square().sum(-1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("limit", [1e8, 0.0])
@pytest.mark.parametrize("exponents", [2**22, 20])
def test_replica_sums_leave_the_own_one_out(offset: Any, limit: Any, exponents: Any) -> None:
    budget = Budget(limit, exponents)
    queries, values = made(offset=offset)
    terms = torch.stack([log_density(queries, one) for one in values], -1)
    for draw in range(3):
        terms[:, draw, draw] = -math.inf
    found = replica_sums(queries, range(7), values, budget)
    torch.testing.assert_close(found, terms.logsumexp(-1), rtol=1e-10, atol=1e-10)
    # In blocks: what is added is the same, wherever the own replica lies.
    parts = [replica_sums(queries, range(a, b), values[a:b], budget) for a, b in ((0, 2), (2, 7))]
    torch.testing.assert_close(torch.logaddexp(*parts), terms.logsumexp(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("distance", [0.0, 1.0, 60.0])
def test_the_density_of_other_inputs_leaves_the_own_one_out(distance: Any) -> None:
    queries, _ = made()
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 3, 2, generator=g, dtype=torch.float64) + distance
    weights = torch.rand(3, 2, generator=g, dtype=torch.float64)
    owner = torch.tensor([0, 2, 1, 1, 0])
    found, effective = others_density(queries, owner, centres, weights)
    for row in range(5):
        kept = [j for j in range(3) if j != owner[row]]
        exponents = torch.stack([torch.stack([log_density(queries, c)[row] for c in one[kept]]) for one in centres])
        by_class = (exponents.unsqueeze(-1) + weights[kept].log()[None, :, None]).logsumexp(1)
        torch.testing.assert_close(found[row, :, 0], by_class.logsumexp(0) - math.log(4), rtol=1e-10, atol=1e-10)
        shares = torch.softmax((exponents + weights[kept].sum(1).log()[None, :, None]).flatten(0, 1), 0)
        torch.testing.assert_close(effective[row], 1 / shares.square().sum(0), rtol=1e-9, atol=0)


def test_terms_of_a_known_mixture_are_exact() -> None:
    """Two inputs of one class each: what is left of the weights; blind draws take the smaller term."""
    others = torch.log(torch.tensor([[3.0, 3.0]], dtype=torch.float64))  # K = 4 equal replicas
    rest = torch.log(torch.tensor([[[[1e-300, 0.2]]] * 2], dtype=torch.float64)).view(1, 2, 1, 2)
    joint, prior = torch.tensor([[0.4, 0.0]], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    fair = torch.log(torch.tensor([[0.1, 0.1]], dtype=torch.float64))
    found = bracket_terms(others, 4, rest, joint, prior, fair, torch.tensor([[False, True]]))
    assert found.shape == (3, 2, 1, 1, 2)
    expected = -math.log(0.6)
    assert found[0, 0].flatten().tolist() == pytest.approx([expected] * 2)
    assert found[1, 0].flatten().tolist() == pytest.approx([expected, math.log(0.1 / 0.24)])
    assert found[2, 0].flatten().tolist() == pytest.approx([expected] * 2)
    assert found[0, 1].flatten().tolist() == pytest.approx([expected] * 2)


def test_groups_are_means_of_replicas() -> None:
    density = torch.randn(6, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = grouped(density).exp()
    whole = density.exp()
    assert found.shape == (6, 6, 2)
    torch.testing.assert_close(found[:, 0], whole.mean(1))
    torch.testing.assert_close(found[:, 1], whole[:, [0, 1, 4, 5]].mean(1))
    torch.testing.assert_close(found[:, 2], whole[:, [1, 2, 3, 5, 6, 7]].mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 12, 20])
def test_the_error_is_the_spread_over_repetitions(rows: Any) -> None:
    """20 rows of which some are visited, three draws each: what 4000 repetitions show, to a tenth."""
    rng = np.random.default_rng(rows)
    # Far above 0, which no information is below.
    level, spread = 9 + rng.standard_normal(20), rng.uniform(0.5, 2.0, 20)
    # What overlaps and rows that were not met may hide is no spread.
    unseen = math.hypot(UNSEEN / (rows * 3), never_visited(rows, 20) * math.log(20) / 1.96)
    means, errors = [], []
    for _ in range(4000):
        some = rng.permutation(20)[:rows]
        draws = level[some, None] + spread[some, None] * rng.standard_normal((rows, 3))
        terms = torch.from_numpy(np.broadcast_to(draws, (3, 2, 6, rows, 3)).copy())
        bracket = Bracket.of(terms, 20, 8, (math.inf, math.inf))
        means.append(bracket.value[0])
        errors.append((bracket.error[0] ** 2 - unseen**2) / CAUTION**2)
    assert np.mean(means) == pytest.approx(level.mean(), abs=4 * float(np.std(means)) / math.sqrt(4000))
    assert math.sqrt(np.mean(errors)) == pytest.approx(np.std(means), rel=0.1)


def test_the_suggested_sample_meets_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    for population, level in ((20, 1.0), (5000, 1.0), (5000, 0.01)):
        draws = level * rng.standard_normal((min(population, 256), 1)) + rng.standard_normal((min(population, 256), 2))
        terms = torch.from_numpy(np.broadcast_to(draws, (3, 2, 6, *draws.shape)).copy())
        bracket = Bracket.of(terms, population, 8, (math.inf, math.inf))
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
