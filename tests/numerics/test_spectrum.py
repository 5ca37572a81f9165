"""Ranks and spectra against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibscan.numerics.spectra.spectrum import effective_rank, numerical_rank, singular_values, stable_rank

LAWS = settings(max_examples=25, deadline=None, derandomize=True)


def double(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)


def matrix_with(sigma: Any, rows: Any, columns: Any, seed: Any) -> Any:
    g = np.random.default_rng(seed)
    u = np.linalg.qr(g.normal(size=(rows, rows)))[0][:, : len(sigma)]
    v = np.linalg.qr(g.normal(size=(columns, columns)))[0][:, : len(sigma)]
    return torch.from_numpy(u @ np.diag(sigma) @ v.T)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (9, 4), (4, 9), (1, 3), (3, 1)])
def test_singular_values_of_a_constructed_matrix(rows: Any, columns: Any) -> None:
    sigma = sorted(np.random.default_rng(rows).uniform(0.1, 3, min(rows, columns)), reverse=True)
    got = singular_values(matrix_with(sigma, rows, columns, 3))
    np.testing.assert_allclose(got.numpy(), sigma, rtol=1e-10)


def test_small_singular_values_survive() -> None:
    """1e-12 beside 1: a Gram matrix would give 1e-8 of noise. Absolute error of an SVD: some 1e-16 sigma_max."""
    sigma = [1.0, 1e-4, 1e-8, 1e-12]
    got = singular_values(matrix_with(sigma, 6, 4, 1)).numpy()
    np.testing.assert_allclose(got, sigma, rtol=0, atol=4e-15)
    assert numerical_rank(torch.from_numpy(got), double([1e-14, 1e-10, 1e-6])).tolist() == [4, 3, 2]


def test_batches_have_the_values_of_single_matrices() -> None:
    stack = torch.stack([torch.stack([matrix_with([2.0 + i + j, 1.0], 3, 2, i) for j in range(2)]) for i in range(4)])
    got = singular_values(stack)
    assert got.shape == (4, 2, 2)
    np.testing.assert_allclose(got[..., 0].numpy(), 2.0 + np.add.outer(np.arange(4), np.arange(2)), rtol=1e-10)
    assert singular_values(torch.zeros(0, 3, 2, dtype=torch.float64)).shape == (0, 2)


def test_rank_is_strict_at_equality() -> None:
    """sigma > eps: equality does not count, the next float does; a zero matrix has rank 0 at eps = 0."""
    above = math.nextafter(0.5, 1)
    sigma = double([2.0, 0.5, 0.0])
    assert numerical_rank(sigma, double([0.0, math.nextafter(0.5, 0), 0.5, above, 2.0])).tolist() == [2, 2, 1, 1, 0]
    assert numerical_rank(torch.zeros(3, dtype=torch.float64), double([0.0])).tolist() == [0]
    assert numerical_rank(sigma, double([0.0])).dtype == torch.int64


def test_rank_of_many_rows_and_own_thresholds() -> None:
    sigma = double([[3.0, 2.0, 1.0], [0.3, 0.2, 0.1]])
    assert numerical_rank(sigma, double([0.15, 1.5])).tolist() == [[3, 2], [2, 0]]
    own = sigma[:, :1] * double([0.5, 0.99])  # relative thresholds: each matrix has its own
    assert numerical_rank(sigma, own).tolist() == [[2, 1], [2, 1]]


@LAWS
@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_rank_is_a_count(sigma: Any, eps: Any) -> None:
    expected = [sum(s > e for s in sigma) for e in sorted(eps)]
    assert numerical_rank(double(sigma), double(sorted(eps))).tolist() == expected
    assert expected == sorted(expected, reverse=True)


def test_effective_and_stable_rank_have_their_closed_forms() -> None:
    """k equal values: both k. (2, 1): stable 5/4; effective exp(H(2/3, 1/3)) = 3 / 2^(2/3)."""
    for k in (1, 2, 7):
        sigma = double([0.3] * k + [0.0] * 3)
        assert float(effective_rank(sigma)) == pytest.approx(k, rel=1e-12)
        assert float(stable_rank(sigma)) == pytest.approx(k, rel=1e-12)
    assert float(stable_rank(double([2.0, 1.0]))) == pytest.approx(1.25, rel=1e-14)
    assert float(effective_rank(double([2.0, 1.0]))) == pytest.approx(3 / 2 ** (2 / 3), rel=1e-12)


def test_zero_matrices_among_others_have_rank_0() -> None:
    sigma = double([[1.0, 1.0], [0.0, 0.0], [5.0, 0.0]])
    assert effective_rank(sigma).tolist() == pytest.approx([2, 0, 1], abs=1e-12)
    assert stable_rank(sigma).tolist() == pytest.approx([2, 0, 1], abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_scale_does_not_matter(scale: Any) -> None:
    """At 1e-200 the square underflows to zero, at 1e200 it overflows: dividing first avoids both."""
    sigma = double([3.0, 2.0, 0.5])
    assert float(effective_rank(sigma * scale)) == pytest.approx(float(effective_rank(sigma)), rel=1e-12)
    assert float(stable_rank(sigma * scale)) == pytest.approx(13.25 / 9, rel=1e-12)


@LAWS
@given(st.lists(st.floats(1e-3, 100), min_size=1, max_size=8))
def test_soft_ranks_lie_between_one_and_the_rank(values: Any) -> None:
    sigma = double(sorted(values, reverse=True))
    for rank in (effective_rank(sigma), stable_rank(sigma)):
        assert 1 - 1e-12 <= float(rank) <= len(values) + 1e-9
    p = np.array(values) / sum(values)
    assert float(effective_rank(sigma)) == pytest.approx(math.exp(-np.sum(p * np.log(p))), rel=1e-10)
    assert float(stable_rank(sigma)) == pytest.approx(sum(v * v for v in values) / max(values) ** 2, rel=1e-10)
