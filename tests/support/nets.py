"""Models under test: modules by name, and a forward pass written as a function of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


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
            """Return the module of that name."""
