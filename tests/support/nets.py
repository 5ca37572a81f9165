"""Models under test: modules by name, and a forward pass written as a function of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ibscan.core.network import NoisyNetwork
from ibscan.core.records import Array


class Net(nn.Module):
    """Modules by name and a forward pass written as a function of them and the rows."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, *rows: int | torch.Tensor, **named: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Call the function."""
        return self.function(self, *rows, **named)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a module: which, only its name says."""


def noisy_posts(network: NoisyNetwork, x: Array, layer: int, noise: float, z: torch.Tensor) -> torch.Tensor:
    """Return a layer's posts (n, K, D) in K noisy passes of every row, at normals z (n, K, m)."""
    passes = network.noisy_passes(x, layer, (noise,) * len(network.layers))
    return passes.values(torch.arange(len(x)), z)
