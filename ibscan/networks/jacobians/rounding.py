"""Estimate how far rounding may have moved Jacobians of a pass that is coarser than float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ibscan.networks.jacobians.derivatives import Outputs, full_jacobians
from ibscan.networks.trace.operations import in_place, operation_name, unit
from ibscan.networks.trace.trees import Function, Tree, replaced, tensors

__all__ = ["ROWS", "RoundingNoise", "expected_rounding", "rounding_effect"]

# Operations that round nothing.
VIEWS = {
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim",
    "T.__get__", "mT.__get__", "H.__get__", "mH.__get__", "real.__get__", "imag.__get__", "contiguous", "detach",
    "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "narrow", "select", "__getitem__", "unbind", "split",
    "chunk", "tensor_split", "diagonal", "as_strided", "unfold", "data.__get__", "t", "__iter__", "split_with_sizes",
}  # fmt: skip
# Rows on which the effect of rounding is measured, and a factor by which it may be larger elsewhere.
ROWS, SAFETY = 3, 10.0


class RoundingNoise(TorchFunctionMode):
    """A pass in which every result is perturbed by a random relative error of the size of its rounding.

    Args:
        seed: Seed of the errors.

    Source:
        Parker 1997, Monte Carlo arithmetic.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        # A torch generator would not work under vmap.
        self.draws = np.random.default_rng(seed)

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        given = {id(t) for t in tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        name = operation_name(func)
        # A perturbed copy would no longer share memory with other tensors.
        if name in VIEWS or in_place(name, kwargs or {}):
            return result
        for tensor in list(tensors(result)):
            if unit(tensor) and id(tensor) not in given:
                factor = 1.0 + unit(tensor) * self.draws.uniform(-1.0, 1.0, tuple(tensor.shape))
                result = replaced(result, tensor, tensor * torch.as_tensor(factor).to(tensor))
        return result


def expected_rounding(coarsest: float, widest: int, operations: int) -> float:
    """Return how far rounding may move a Jacobian, in units of its norm, if nothing amplifies it.

    Errors within sums of up to `widest` terms, and of successive operations, add up like random walks. `coarsest` is
    the relative rounding of the coarsest numbers.
    """
    return coarsest * (4.0 + 2.0 * math.sqrt(widest)) * math.sqrt(max(1, operations))


def rounding_effect(outputs: Outputs, *, reverse: bool) -> list[torch.Tensor]:
    """Return how far `RoundingNoise` moves each layer's Jacobian, in units of its norm: (1,) each, the worst row's."""

    def noisy_values(variable: torch.Tensor) -> list[torch.Tensor]:
        with RoundingNoise(0):
            return outputs.values(variable)

    found = []
    for still, other in zip(
        full_jacobians(outputs, reverse=reverse),
        full_jacobians(replace(outputs, values=noisy_values), reverse=reverse),
        strict=True,
    ):
        norm = still.flatten(1).norm(dim=1)
        change = (other - still).flatten(1).norm(dim=1) / torch.where(norm > 0.0, norm, 1.0)
        found.append(SAFETY * torch.nan_to_num(change, posinf=0.0).amax().unsqueeze(0))
    return found
