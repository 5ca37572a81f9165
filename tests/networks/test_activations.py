"""Slopes against autograd, and against mpmath where autograd's own formula has lost its digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from support.oracles import ACTIVATION

from ibscan.networks.activations import ACTIVATIONS, OUTPUTS

GRID = torch.from_numpy(np.concatenate([np.linspace(-6, 6, 241), [-0.0, 1e-300, -1e-300, 1e-9, -1e-9]]))
EXACT = {
    "tanh": lambda p: mpmath.sech(p) ** 2,
    "sigmoid": lambda p: mpmath.exp(-abs(p)) / (1 + mpmath.exp(-abs(p))) ** 2,
    "softplus": lambda p: 1 / (1 + mpmath.exp(-p)),
    "silu": lambda p: 1 / (1 + mpmath.exp(-p)) * (1 + p / (1 + mpmath.exp(p))),
    "elu": lambda p: mpmath.exp(p) if p < 0 else mpmath.mpf(1),
    "gelu": lambda p: mpmath.ncdf(p) + p * mpmath.npdf(p),
}


def autograd_slope(name: str, p: torch.Tensor) -> torch.Tensor:
    p = p.clone().requires_grad_(True)
    return torch.autograd.grad(ACTIVATION[name](p).sum(), p)[0]


def test_activations_are_named_as_in_torch() -> None:
    assert set(ACTIVATIONS) == set(ACTIVATION) - {"softmax"}
    assert set(OUTPUTS) == set(ACTIVATION)
    assert all(name == activation.name for name, activation in ACTIVATIONS.items())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_equal_torchs_functions(name: str) -> None:
    for p in (GRID, torch.tensor([-800.0, -30, 19.9, 20.0, 20.1, 800], dtype=torch.float64)):
        torch.testing.assert_close(ACTIVATIONS[name].value(p), ACTIVATION[name](p), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_agree_with_autograd(name: str) -> None:
    """Kinks included: relu'(0) = 0. Within |p| <= 6 autograd itself keeps ten digits (1 - tanh^2 loses five)."""
    torch.testing.assert_close(ACTIVATIONS[name].slope(GRID), autograd_slope(name, GRID), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "identity"])
def test_slopes_at_kinks_equal_autograd(name: str) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(ACTIVATIONS[name].slope(zero), autograd_slope(name, zero))


def test_softplus_is_the_identity_above_its_threshold() -> None:
    """torch switches to the identity above 20: slope exactly 1 there, the sigmoid at and below it."""
    p = torch.tensor([19.999, 20.0, 20.001, 25.0, 700.0], dtype=torch.float64)
    slope = ACTIVATIONS["softplus"].slope(p)
    torch.testing.assert_close(slope, autograd_slope("softplus", p), rtol=1e-14, atol=0)
    assert slope[2:].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("p", [-30.0, -12.0, -8.0, -5.0, -0.5, 0.3, 5.0, 12.0, 19.0, 30.0])
def test_saturated_slopes_keep_their_digits(name: str, p: float) -> None:
    """1 - tanh(30)^2 is 0 in float64 where the slope is 3.5e-26. tanh and sigmoid to 1e-12, the others to 1e-10.

    softplus above 20 is left out: torch defines it as the identity there.
    """
    if name == "softplus" and p > 20:
        p = 20.0
    with mpmath.workdps(50):
        expected = float(EXACT[name](mpmath.mpf(p)))
    got = float(ACTIVATIONS[name].slope(torch.tensor([p], dtype=torch.float64)))
    assert got == pytest.approx(expected, rel=1e-12 if name in ("tanh", "sigmoid") else 1e-10, abs=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_finite_for_large_arguments(name: str) -> None:
    """e^{2p} overflows at 400 and p^2/2 at 1e200; no slope may become NaN."""
    p = torch.tensor([-1e200, -800.0, -400.0, 400.0, 800.0, 1e200], dtype=torch.float64)
    limit = {"tanh": (0, 0), "sigmoid": (0, 0), "leaky_relu": (0.01, 1), "identity": (1, 1)}.get(name, (0, 1))
    expected = torch.tensor([limit[0]] * 3 + [limit[1]] * 3, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name].slope(p), expected, rtol=1e-12, atol=1e-100)


def test_spans_are_the_ranges_of_the_activations() -> None:
    """The closed range where the definition states a finite one: methods.md section 3."""
    assert {name: a.span for name, a in ACTIVATIONS.items() if a.span is not None} == {
        "tanh": (-1.0, 1.0),
        "sigmoid": (0.0, 1.0),
    }
