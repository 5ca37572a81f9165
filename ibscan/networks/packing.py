"""Pack named arguments of a model (masks, lengths) behind the numbers of x, row by row.

So they are sampled, cut, repeated and compared along with their row everywhere.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ibscan.core.records import Array

__all__ = ["Packing", "model_inputs", "named_arguments"]

DTYPES = {"b": torch.bool, "i": torch.int64, "u": torch.int64}


@dataclass(frozen=True)
class Packing:
    """The parts of packed rows.

    Attributes:
        x: Shape of one row of x.
        named: Name, shape of one row, and kind of dtype of the other arrays. The model gets floats in the dtype of the
            forward pass, integers as int64, booleans as they are.
    """

    x: tuple[int, ...]
    named: tuple[tuple[str, tuple[int, ...], str], ...]

    @staticmethod
    def of(x: Array, named: Mapping[str, Array]) -> Packing:
        """Return the packing of x and of named arrays with one entry a row."""
        return Packing(x.shape[1:], tuple((name, array.shape[1:], array.dtype.kind) for name, array in named.items()))

    @property
    def size(self) -> int:
        """Numbers of one row of x."""
        return math.prod(self.x)

    def packed(self, x: Array, named: Mapping[str, Array]) -> Array:
        """Return packed rows, (N, numbers of a row), float64.

        Args:
            x: Rows (N, ...).
            named: One entry a row; no integer beyond 2^53.
        """
        parts = [x, *(named[name] for name, _, _ in self.named)]
        return np.concatenate([part.reshape(len(x), -1).astype(np.float64) for part in parts], axis=1)


def model_inputs(
    rows: torch.Tensor, packing: Packing | None, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return x and the named arguments that a model is called with: copies, which it may change in place.

    Args:
        rows: Rows of x (n, ...), or packed, (n, numbers of a row).
        packing: How they are packed, None if they are x alone.
        dtype: Of the forward pass.
    """
    if packing is None:
        return rows.to(dtype, copy=True), {}
    sizes = [packing.size, *(math.prod(shape) for _, shape, _ in packing.named)]
    first, *others = torch.split(rows, sizes, dim=1)
    named = {
        name: part.reshape(len(rows), *shape).to(DTYPES.get(kind, dtype), copy=True)
        for (name, shape, kind), part in zip(packing.named, others, strict=True)
    }
    return first.reshape(len(rows), *packing.x).to(dtype, copy=True), named


def named_arguments(model: nn.Module) -> set[str]:
    """Return the names of the arguments of a model's forward, the first one left out."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # built in C, or without a signature
        return set()
    return {one.name for one in parameters[1:] if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
