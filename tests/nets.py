"""Models under test: modules by name, and a forward pass written as a function of them."""

from __future__ import annotations

from torch import nn


class Net(nn.Module):
    """Modules by name and a forward pass written as a function of them and the rows."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, *rows, **named):
        return self.function(self, *rows, **named)
