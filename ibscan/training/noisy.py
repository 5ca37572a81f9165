"""Train a model as the noisy network of Goldfeld et al.: with noise after every hidden layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import nn

from ibscan.errors import UsageError
from ibscan.networks.trace.graph import Place, Trace
from ibscan.networks.trace.recording import record
from ibscan.networks.trace.replay import Replay

__all__ = ["noisy"]


@contextlib.contextmanager
def noisy(model: nn.Module, noise: float) -> Iterator[nn.Module]:
    """Add noise to the hidden layers in every forward pass of a model inside the block.

    Gaussian noise, fresh for every pass, row, layer and unit, is added to the post of every hidden layer, where all
    its consumers see it; output layers get none. Gradients flow through. The model keeps its mode, training or eval.
    Before the first pass the model is run on that pass's rows, in eval mode and without gradients, to find its layers;
    torch's random state is restored after that.

    Args:
        model: Any nn.Module that is called with its rows first.
        noise: Standard deviation, > 0, activation units.

    Yields:
        The model. After the block it is as it was.

    Raises:
        UsageError: The noise is no finite number > 0, or the model is compiled or spread over devices.
        InputError: Its layers cannot be followed.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 2: T_l = f_l(T_{l-1}) + Z_l.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> x = torch.zeros(4, 3)
        >>> with noisy(net, noise=0.1):
        ...     a, b = net(x), net(x)
        >>> bool((a == b).any()), bool((net(x) == net(x)).all())
        (False, True)
    """
    if isinstance(noise, bool) or not isinstance(noise, Real) or not (math.isfinite(noise) and noise > 0):
        raise UsageError(f"ibscan.noisy: noise is {noise!r}; expected a finite number > 0.")
    if type(model).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
        raise UsageError(
            f"ibscan.noisy: the model is wrapped in {type(model).__name__}, whose operations cannot be followed; give "
            "the model itself, and compile or spread nothing while noise is on."
        )
    passes = _NoisyPasses(float(noise))
    hooks = [
        model.register_forward_pre_hook(passes.before, with_kwargs=True),
        # Also after an exception, so that no pass outlives itself.
        model.register_forward_hook(passes.after, always_call=True),
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _NoisyPasses:
    """Hooks that add noise to a model's passes.

    `running` has one entry for every unfinished call of the model, None while the layers are being found.
    """

    noise: float
    trace: Trace | None = None
    running: list[Replay | None] = field(default_factory=list)

    def add(self, value: torch.Tensor) -> torch.Tensor:
        """Return a post with its noise."""
        return value + self.noise * torch.randn_like(value)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a pass; the first one finds the layers."""
        if self.running:  # a model that calls itself is one pass
            self.running.append(self.running[-1])
            return
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        if x is None:
            raise UsageError("ibscan.noisy: the model was called without a tensor; expected its rows.")
        if self.trace is None:
            self.running.append(None)
            try:
                self.trace = _trace(module, x, args, kwargs)
            finally:
                self.running.pop()
        at: dict[Place, Any] = {self.trace.post[layer]: self.add for layer in self.trace.noisy}
        mode = Replay(self.trace.operations, module, x, at)
        self.running.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401, ARG002 - torch's hook
        """End a pass, also one that an exception ended."""
        # Empty if the pass failed before it started.
        mode = self.running.pop() if self.running else None
        if mode is not None and mode not in self.running:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if output is not None:  # as it is after an exception
                mode.finish()


def _trace(model: nn.Module, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            # Not eval(), which a model may override.
            module.training = False

        # forward() skips the hooks of this block, which would record without end.
        def run(rows: torch.Tensor) -> Any:  # noqa: ANN401
            positional = (rows if a is x else a for a in args)
            return model.forward(*positional, **{key: rows if a is x else a for key, a in kwargs.items()})

        with torch.no_grad():
            return record(model, x, run=run)
    finally:
        for module, training in modes.items():
            module.training = training
