"""Run a traced model on probe rows, with hooks at places of its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.core.records import Array
from ibscan.networks.packing import Packing, model_inputs
from ibscan.networks.trace.graph import INPUT, Place, Trace
from ibscan.networks.trace.replay import Hook, Reached, Replay, forward_context
from ibscan.networks.trace.trees import main_tensor
from ibscan.numerics.tiling import aligned, cuts

__all__ = ["HookedModel", "layer_hooks"]


@dataclass(frozen=True)
class HookedModel:
    """A model in eval mode on `device` in `dtype`, its trace, and how its rows are packed (None: they are x alone).

    A block of rows may hold `budget` numbers at its widest layer.
    """

    model: nn.Module
    trace: Trace
    device: torch.device
    dtype: torch.dtype
    packing: Packing | None
    budget: int

    def rows(self, x: Array) -> torch.Tensor:
        """Return probe rows as a tensor on the device, in the model's dtype unless they are packed."""
        # Packed integers may have more digits than the forward pass.
        return aligned(x).to(self.device, self.dtype if self.packing is None else torch.float64)

    def blocks(self, x: Array) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield blocks of rows whose activations fit into the budget."""
        for rows in cuts(0, len(x), self.budget // self.widest(x)):
            yield rows, self.rows(x[rows])

    def widest(self, x: Array) -> int:
        """Return the largest number of values that one row has at the input or at a layer."""
        return max(int(x[0].size), *(layer.width for layer in self.trace.layers))

    def inputs(self, block: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return copies of x and of the named arguments that the model is called with for a block of rows."""
        return model_inputs(block, self.packing, self.dtype)

    def run(self, block: torch.Tensor, hooks: Sequence[tuple[Place, Hook]]) -> torch.Tensor | None:
        """Return the model's output for a block of rows, None if a hook ended the pass by raising `Reached`.

        Args:
            block: Rows as `rows` returns them.
            hooks: What to call at which place; several at one place are called in this order.
        """
        at: dict[Place, Hook] = {}
        for place, hook in hooks:
            at[place] = partial(_in_turn, at[place], hook) if place in at else hook
        try:
            x, named = self.inputs(block)
            x = at.pop(INPUT)(x) if INPUT in at else x
            replay = Replay(self.trace.operations, self.model, x, at)
            with user_code("the model"), forward_context(self.dtype), replay:
                result = main_tensor(self.model(x, **named))
            replay.finish()
        except Reached as end:
            if end.cause is not None:
                raise end.cause from None
            return None
        return result

    def values(
        self, places: Sequence[Place], block: torch.Tensor, replacement: tuple[Place, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Return the values at some places, (n, D) each; a pass ends as soon as it has them all.

        Args:
            places: Where.
            block: Rows as `rows` returns them.
            replacement: A place and the values that are put there.
        """
        found: dict[Place, torch.Tensor] = {}

        def keep(place: Place, value: torch.Tensor) -> torch.Tensor:
            found[place] = value.clone().reshape(len(block), -1)
            if len(found) == len(set(places)):
                raise Reached
            return value

        hooks: list[tuple[Place, Hook]] = []
        if replacement is not None:
            hooks.append((replacement[0], lambda value: replacement[1].reshape(value.shape).clone()))
        self.run(block, [*hooks, *((place, partial(keep, place)) for place in dict.fromkeys(places))])
        return [found[place] for place in places]


def layer_hooks(
    places: Sequence[Place], hook: Callable[[int, torch.Tensor], torch.Tensor], layers: Sequence[int] | None = None
) -> list[tuple[Place, Hook]]:
    """Return hooks at the places of all layers, or of some, each given its layer's index."""
    return [(places[k], partial(hook, k)) for k in (range(len(places)) if layers is None else layers)]


def _in_turn(first: Hook, then: Hook, value: torch.Tensor) -> torch.Tensor:
    return then(first(value))
