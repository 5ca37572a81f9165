"""The spectrum of a representation: closed forms first, then laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibscan.numerics.spectra.representation import (
    covariance_roots,
    decay_exponent,
    participation_ratio,
    spectral_entropy,
)
from ibscan.numerics.spectra.spectrum import effective_rank, numerical_rank, stable_rank

ALL: dict[str, Callable[[torch.Tensor], float]] = {
    "effective": lambda roots: float(effective_rank(roots)),
    "participation": participation_ratio,
    "stable": lambda roots: float(stable_rank(roots)),
    "entropy": lambda roots: math.exp(spectral_entropy(roots)),
}


def with_spectrum(roots: Any, rows: int, seed: int = 0) -> torch.Tensor:
    """Rows whose centred singular values are the given ones, turned at random and away from the origin."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(rows, len(roots)))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(len(roots), len(roots))))[0]
    return torch.from_numpy(left * np.asarray(roots) @ right + 5.0)


def power_law(alpha: float, count: int) -> np.ndarray[Any, Any]:
    return np.arange(1.0, count + 1) ** (-alpha / 2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("d", [1, 2, 7])
def test_of_d_equal_directions_every_rank_is_d(name: str, d: int) -> None:
    roots = covariance_roots(with_spectrum([3.0] * d, 40))
    assert ALL[name](roots) == pytest.approx(d, rel=1e-10)
    assert numerical_rank(roots, 0.5 * roots[:1]).item() == d


@pytest.mark.parametrize("name", ALL)
def test_of_one_direction_every_rank_is_one(name: str) -> None:
    line = torch.arange(20.0, dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, -2.0, 0.5]).double() + 1e3
    assert ALL[name](covariance_roots(line)) == pytest.approx(1.0, rel=1e-10)


def test_of_a_constant_every_rank_is_zero() -> None:
    roots = covariance_roots(torch.full((9, 4), 0.1, dtype=torch.float64))
    assert [rank(roots) for rank in ALL.values()] == [0.0, 0.0, 0.0, 1.0]
    assert math.isnan(decay_exponent(roots)[0])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("count", "first", "last"), [(5, 1, 3), (30, 3, 15), (64, 7, 32)])
def test_of_a_power_law_alpha_is_its_exponent(alpha: float, count: int, first: int, last: int) -> None:
    roots = covariance_roots(with_spectrum(power_law(alpha, count), 100))
    exponent, *components = decay_exponent(roots)
    assert exponent == pytest.approx(alpha, abs=1e-9)
    assert components == [first, last]


def test_of_a_power_law_the_others_are_their_sums() -> None:
    power = power_law(1.0, 30) ** 2
    roots = covariance_roots(with_spectrum(np.sqrt(power), 100))
    share, root = power / power.sum(), np.sqrt(power) / np.sqrt(power).sum()
    assert participation_ratio(roots) == pytest.approx(power.sum() ** 2 / (power**2).sum(), rel=1e-10)
    assert spectral_entropy(roots) == pytest.approx(-(share * np.log(share)).sum(), rel=1e-10)
    assert float(stable_rank(roots)) == pytest.approx(power.sum(), rel=1e-10)
    assert float(effective_rank(roots)) == pytest.approx(np.exp(-(root * np.log(root)).sum()), rel=1e-10)
    assert numerical_rank(roots, 0.5 * roots[:1]).item() == 3


def test_too_few_directions_have_no_exponent() -> None:
    assert math.isnan(decay_exponent(torch.tensor([1.0, 0.5, 0.25, 0.1, 0.0]).double())[0])


@pytest.mark.parametrize(("rows", "d"), [(50, 6), (6, 50)])
def test_roots_are_those_of_the_covariance(rows: int, d: int) -> None:
    points = np.random.default_rng(0).normal(size=(rows, d)) + 3.0
    found = covariance_roots(torch.from_numpy(points)).square().numpy()
    expected = np.sort(np.linalg.eigvalsh(np.cov(points.T, ddof=0)))[::-1][: len(found)]
    np.testing.assert_allclose(found / found[0], np.clip(expected / expected[0], 0, None), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(-1000, 1000), st.integers(2, 8))
def test_neither_size_nor_turning_nor_doubling_of_units_changes_anything(seed: int, exponent: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(30, d)) * rng.uniform(0.1, 3.0, d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    kinds = (np.ldexp(points, exponent), points @ turn + 7.0, np.concatenate((points, points), 1), points[::-1].copy())
    plain = covariance_roots(torch.from_numpy(points))
    for points in kinds:
        roots = covariance_roots(torch.from_numpy(points))
        for rank in ALL.values():
            assert rank(roots) == pytest.approx(rank(plain), rel=1e-9)
        assert decay_exponent(roots) == pytest.approx(decay_exponent(plain), rel=1e-8, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_ranks_keep_their_order(given_roots: list[float]) -> None:
    """Stable, participation, exp(entropy) of eigenvalues, effective rank of their roots, number: each no less."""
    roots = torch.tensor(sorted(given_roots, reverse=True), dtype=torch.float64)
    ranks = [1.0, *(ALL[name](roots) for name in ("stable", "participation", "entropy", "effective")), len(roots)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(ranks))
