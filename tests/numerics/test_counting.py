"""Counts from Gram matrices: equal to the SVD's wherever they are certain, and uncertain near thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ibscan.numerics.spectra.counting import (
    bound_counts,
    eigenvalue_counts,
    elimination_counts,
    gram_counts,
    inertia_counts,
    rounding,
)

NONE = torch.zeros(0, dtype=torch.float64)


def matrices(number: Any, size: Any, seed: Any, falling: float = 1.0) -> Any:
    """Square matrices with singular values from 1 down to 10^-falling."""
    g = torch.Generator().manual_seed(seed)
    q = [torch.linalg.qr(torch.randn(number, size, size, generator=g, dtype=torch.float64)).Q for _ in range(2)]
    sigma = 10 ** (-falling * torch.linspace(0, 1, size, dtype=torch.float64))
    return q[0] @ torch.diag(sigma) @ q[1], sigma


def counted(sigma: Any, eps: Any) -> Any:
    return (sigma.unsqueeze(-2) > eps.unsqueeze(-1)).sum(-1)


ROUTES = {
    "eigenvalues": lambda values, error, eps: eigenvalue_counts(values, error, eps, NONE),
    "inertia": inertia_counts,
    "elimination": elimination_counts,
}


@pytest.mark.slow
@pytest.mark.parametrize("route", list(ROUTES))
@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(0, 12), st.floats(-8, 1))
def test_certain_counts_are_those_of_the_svd(route: Any, size: Any, seed: Any, falling: Any, power: Any) -> None:
    size = min(size, 8) if route == "elimination" else size
    a, sigma = matrices(3, size, seed, falling)
    eps = torch.full((3, 1), 10.0**power, dtype=torch.float64)
    error = torch.full((3,), rounding(size), dtype=torch.float64)
    found = ROUTES[route](a @ a.mT, error, eps)
    expected = counted(sigma.expand(3, -1), eps)
    assert torch.equal(found.number[found.certain], expected[found.certain])
    # Far from every squared singular value nothing is in doubt: above the floor of a Gram matrix, at depth one.
    clear = ((sigma**2 - eps[0] ** 2).abs() > 1e-11).all()
    # Elimination without pivoting may lose more.
    assert found.certain.all() or not clear or route == "elimination"


@pytest.mark.parametrize(("route", "size"), [("eigenvalues", 30), ("inertia", 30), ("elimination", 8)])
def test_a_threshold_on_a_singular_value_is_in_doubt(route: Any, size: Any) -> None:
    a, sigma = matrices(1, size, 0)
    error = torch.full((1,), rounding(size), dtype=torch.float64)
    for k in (0, 3, size - 1):
        assert not ROUTES[route](a @ a.mT, error, sigma[k].view(1, 1)).certain.any()
        assert ROUTES[route](a @ a.mT, error, sigma[k].view(1, 1) * (1 + 1e-6)).number.item() == k


def test_elimination_that_lets_elements_grow_is_in_doubt() -> None:
    """A first pivot of 1e-13 beside entries of 1: the second is rounding."""
    value = torch.tensor([[[1.0 + 1e-13, 1.0, 0.5], [1.0, 1.0, 0.2], [0.5, 0.2, 2.0]]], dtype=torch.float64)
    found = elimination_counts(
        value, torch.full((1,), 1e-15, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    )
    assert not found.certain.any()
    good = elimination_counts(
        value, torch.full((1,), 1e-15, dtype=torch.float64), torch.full((1, 1), 0.7, dtype=torch.float64)
    )
    assert good.certain.all()
    assert good.number.item() == int((torch.linalg.eigvalsh(value)[0] > 0.49).sum())


def test_what_is_exactly_zero_is_certain_and_not_positive() -> None:
    zero, none = torch.zeros(2, 30, 30, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    eps = torch.full((2, 1), 1e-300, dtype=torch.float64)
    for found in (route(zero, none, eps) for route in ROUTES.values()):
        assert found.number.tolist() == [[0], [0]]
        assert found.certain.all()
        assert not found.positive.any()


def test_errors_that_are_not_numbers_are_never_certain() -> None:
    a, _ = matrices(2, 30, 1)
    eps = torch.full((2, 1), 0.3, dtype=torch.float64)
    for bad in (torch.nan, torch.inf):
        error = torch.full((2,), bad, dtype=torch.float64)
        assert not any(route(a @ a.mT, error, eps).certain.any() for route in ROUTES.values())


def test_relative_thresholds_follow_the_largest() -> None:
    a, sigma = matrices(2, 12, 2, 3.0)
    relative = torch.tensor([0.1, 0.01], dtype=torch.float64)
    error = torch.full((2,), rounding(12) * 1e4, dtype=torch.float64)
    found = gram_counts(1e4 * a @ a.mT, error, torch.full((2, 1), 20.0, dtype=torch.float64), relative)
    expected = [int((100 * sigma > t).sum()) for t in (20.0, 10.0, 1.0)]
    assert found.number.tolist() == [expected, expected]
    assert found.certain.all()


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_bounds_are_counts_above_eps_over_the_norm(seed: Any, rows: Any, columns: Any) -> None:
    g = torch.Generator().manual_seed(seed)
    own = torch.rand(2, 5, generator=g, dtype=torch.float64)
    fed = torch.randn(2, 4, rows, columns, generator=g, dtype=torch.float64)
    eps = torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)
    norm = torch.linalg.matrix_norm(fed, 2)
    expected = (own[:, None, None] > (eps / norm.unsqueeze(-1)).unsqueeze(-1)).sum(-1)
    assert torch.equal(bound_counts(own, fed, eps), expected)
