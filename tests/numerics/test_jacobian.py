"""Factors of the chain rule against explicit matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ibscan.numerics.spectra.jacobian import row_factor, softmax_carried


def gauss(shape: Any, seed: Any) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (4, 4), (1, 5), (2, 3, 9), (2, 9, 3)])
def test_row_factor_keeps_the_gram_matrix(shape: Any) -> None:
    """W = A Q with orthonormal rows of Q: A A^T = W W^T, and no more columns than min(out, in)."""
    weight = gauss(shape, 1)
    factor = row_factor(weight)
    assert factor.shape == (*shape[:-1], min(shape[-2:]))
    torch.testing.assert_close(factor @ factor.mT, weight @ weight.mT, rtol=1e-10, atol=1e-12)
    sigma = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(factor), sigma, rtol=1e-10, atol=1e-13)


def test_row_factor_leaves_a_narrow_weight_alone() -> None:
    weight = gauss((6, 2), 2)
    assert torch.equal(row_factor(weight), weight)


def test_row_factor_of_deficient_weights_is_finite() -> None:
    """Rank 1 and rank 0: a QR of a singular matrix must not divide by zero."""
    one = gauss((3, 1), 3) @ gauss((1, 8), 4)
    assert torch.linalg.matrix_rank(row_factor(one)) == 1
    assert torch.equal(row_factor(torch.zeros(3, 8, dtype=torch.float64)), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("shared", [True, False])
def test_softmax_carried_is_that_of_autograd(shared: Any) -> None:
    logits, factor = gauss((2, 6, 4), 4) * 3, gauss((2, 1 if shared else 6, 4, 3), 5)
    got = softmax_carried(torch.softmax(logits, -1), factor)
    assert got.shape == (2, 6, 4, 3)
    for c in range(2):
        for row in range(6):
            jacobian = torch.func.jacrev(lambda p: torch.softmax(p, -1))(logits[c, row])
            expected = jacobian @ factor[c, 0 if shared else row]
            torch.testing.assert_close(got[c, row], expected, rtol=1e-10, atol=1e-13)


def test_softmax_has_no_slope_along_the_constant() -> None:
    q = torch.softmax(gauss((1, 3, 5), 6), -1)
    flat = torch.ones(1, 1, 5, 1, dtype=torch.float64)
    assert softmax_carried(q, flat).abs().max() < 1e-15
