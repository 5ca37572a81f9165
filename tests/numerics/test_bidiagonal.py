"""Singular values of many tiny matrices at once, against the library's one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ibscan.numerics.spectra.bidiagonal import stacked_values
from ibscan.numerics.spectra.spectrum import MANY, TINY, singular_values

# Of the largest singular value: what two backward stable ways may differ by.
BOUND = 1e-14


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(sigma: Sequence[float], number: int, seed: int = 0) -> torch.Tensor:
    """Square matrices with given singular values, shape (number, n, n)."""
    q = [torch.linalg.qr(gauss(number, len(sigma), len(sigma), seed=seed + k)).Q for k in range(2)]
    return q[0] @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ q[1]


def assert_right(matrix: torch.Tensor) -> torch.Tensor:
    found, certain = stacked_values(matrix)
    expected = torch.linalg.svdvals(matrix)
    assert found.shape == expected.shape
    assert certain.shape == matrix.shape[:-2]
    off = ((found - expected).abs() / expected[..., :1]).amax(-1)
    assert (off[certain] <= BOUND).all()
    assert (found[certain].diff(dim=-1) <= 0.0).all()
    return certain


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2), (3, 2), (3, 3), (5, 12), (8, 8), (12, 7)])
def test_nearly_all_random_matrices_are_certain_and_right(shape: tuple[int, int]) -> None:
    assert assert_right(gauss(4, 500, *shape)).double().mean() > 0.93


@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0, 14))
def test_falling_values_are_right_where_certain(size: int, seed: int, falling: float) -> None:
    sigma = [10 ** (-falling * k / max(1, size - 1)) for k in range(size)]
    assert_right(with_values(sigma, 20, seed))


@pytest.mark.parametrize(
    "sigma", [[1.0] * 7, [1.0] * 4 + [1e-7] * 3, [1.0, 1.0 - 1e-9, 0.5, 0.5, 1e-9], [1.0, 0.5, 0.0, 0.0], [0.0] * 3]
)
def test_equal_or_zero_values_are_right_where_certain(sigma: Sequence[float]) -> None:
    assert_right(with_values(sigma, 200))


def test_structured_matrices_are_right_or_uncertain() -> None:
    """Zero rows, zero columns, diagonal and triangular matrices: right or left to the library, never wrong."""
    matrix = gauss(600, 5, 6)
    matrix[:100, 2], matrix[100:200, :, 3], matrix[200:300, 0] = 0.0, 0.0, 0.0
    matrix[300:400] = torch.diag_embed(matrix[300:400, :, 0]) @ torch.eye(5, 6, dtype=torch.float64)
    matrix[400:500] = matrix[400:500].tril()
    matrix[500:] = matrix[500:].triu()
    assert_right(matrix)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-80, 1e-60, 1e60, 1e80, 1e160, 1e300])
def test_squares_that_leave_the_range_are_uncertain_or_right(scale: float) -> None:
    assert assert_right(gauss(300, 4, 5) * scale).any() == (1e-70 < scale < 1e70)


def test_other_matrices_of_the_stack_do_not_matter() -> None:
    matrix = gauss(200, 6, 7)
    spoiled = matrix.clone()
    spoiled[::2] = torch.tensor([0.0, torch.nan, torch.inf, 1e300], dtype=torch.float64).repeat(25)[:, None, None]
    (found, certain), (other, still) = stacked_values(matrix), stacked_values(spoiled)
    assert torch.equal(found[1::2], other[1::2])
    assert torch.equal(certain[1::2], still[1::2])
    assert not still[::2].any()


def test_many_tiny_matrices_are_those_of_the_library() -> None:
    """Some of them not certain, in both orders of memory."""
    matrix = gauss(2, MANY, TINY, TINY + 2)
    matrix[0, :50] = 0.0
    matrix[1, :50, 3] = matrix[1, :50, 4]
    assert not stacked_values(matrix)[1].all()
    expected = torch.linalg.svdvals(matrix)
    for one in (matrix, matrix.movedim(1, -1).contiguous().movedim(-1, 1)):
        torch.testing.assert_close(singular_values(one), expected, rtol=0.0, atol=1e-14 * float(expected.max()))
