"""The activations of a chain: value, slope, range. Their names are known without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ACTIVATIONS", "OUTPUTS", "Activation", "activated"]

ROOT_TWO = math.sqrt(2.0)
ROOT_TWO_PI = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class Activation:
    """An elementwise activation with torch's default parameters.

    `slope` agrees with torch's autograd, also at kinks (relu'(0) = 0). `span` is the closed range of values, None if
    it is not bounded.
    """

    name: str
    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]
    span: tuple[float, float] | None = None


def _tanh_slope(p: torch.Tensor) -> torch.Tensor:
    # 1 - tanh(p)^2 cancels once the unit saturates; 4 e / (1 + e)^2 with e = exp(-2|p|) keeps every digit.
    e = p.abs().mul_(-2.0).exp_()
    return (4.0 * e).div_(e.add_(1.0).square_())


def _sigmoid_slope(p: torch.Tensor) -> torch.Tensor:
    e = p.abs().neg().exp()
    return e / (1.0 + e).square()


def _gelu_slope(p: torch.Tensor) -> torch.Tensor:
    import torch

    # erfc rather than 1 + erf: far on the negative side the sum would cancel to zero.
    below: torch.Tensor = torch.special.erfc(-p / ROOT_TWO)
    return 0.5 * below + p * (-0.5 * p.square()).exp() / ROOT_TWO_PI


def _silu_slope(p: torch.Tensor) -> torch.Tensor:
    return p.sigmoid() + p * _sigmoid_slope(p)


def _softplus_slope(p: torch.Tensor) -> torch.Tensor:
    import torch

    # torch's softplus is the identity beyond its threshold of 20.
    return torch.where(p > 20.0, torch.ones_like(p), p.sigmoid())


def _elu_slope(p: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(p > 0.0, torch.ones_like(p), p.clamp(max=0.0).exp())


def _leaky_relu_slope(p: torch.Tensor) -> torch.Tensor:
    import torch

    # torch.where of Python floats is float32, whose 0.01 is wrong in the eighth digit.
    one = torch.ones_like(p)
    return torch.where(p > 0.0, one, 0.01 * one)


def _functional(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function of torch.nn.functional of that name."""

    def value(p: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        found: torch.Tensor = getattr(functional, name)(p)
        return found

    return value


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("tanh", lambda p: p.tanh(), _tanh_slope, (-1.0, 1.0)),
        Activation("relu", lambda p: p.relu(), lambda p: (p > 0.0).to(p.dtype)),
        Activation("leaky_relu", _functional("leaky_relu"), _leaky_relu_slope),
        Activation("sigmoid", lambda p: p.sigmoid(), _sigmoid_slope, (0.0, 1.0)),
        Activation("gelu", _functional("gelu"), _gelu_slope),
        Activation("silu", _functional("silu"), _silu_slope),
        Activation("softplus", _functional("softplus"), _softplus_slope),
        Activation("elu", _functional("elu"), _elu_slope),
        Activation("identity", lambda p: p, lambda p: p.new_ones(p.shape)),
    )
}

OUTPUTS = (*ACTIVATIONS, "softmax")


def activated(name: str, pre: torch.Tensor) -> torch.Tensor:
    """Return the values of an activation of `OUTPUTS` at (..., units)."""
    return pre.softmax(-1) if name == "softmax" else ACTIVATIONS[name].value(pre)
