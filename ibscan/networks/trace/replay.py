"""Forward passes after the recorded one: Replay where the layers are, and differentiable throughout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError, Reached
from ibscan.networks.trace.graph import Place
from ibscan.networks.trace.operations import (
    CONSTANT,
    entries_of,
    in_place,
    is_product,
    made,
    operands,
    operation_label,
    operation_name,
    parameter_names,
)
from ibscan.networks.trace.trees import Function, Tree, mapped, replaced, tensors

__all__ = ["Hook", "IgnoreDetach", "Reached", "Replay", "forward_context"]

# Given a tensor at a place, what goes on in its stead.
Hook: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def forward_context(dtype: torch.dtype) -> Iterator[None]:
    """Run a model with attention in its plain form, and tensors that it makes (a first state, a buffer) in its dtype.

    Args:
        dtype: Of the forward pass.
    """
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(kept)


class Replay(TorchFunctionMode):
    """A pass in which tensors at given places are seen, and may be replaced, by a function each.

    Args:
        operations: Those of the recorded pass; another sequence is refused.
        model: What is run.
        x: The pass's own input tensor.
        at: What to call at which place; it returns the tensor that goes on.

    Raises:
        InputError: The pass takes another way than the recorded one.
    """

    def __init__(self, operations: Sequence[str], model: nn.Module, x: torch.Tensor, at: Mapping[Place, Hook]) -> None:
        super().__init__()
        self.operations = operations
        self.at: dict[int, dict[int, Hook]] = {}
        for (operation, slot), hook in at.items():
            self.at.setdefault(operation, {})[slot] = hook
        # Activity, and what goes on in its stead, or None: a value that is its own key would never be freed.
        self.known: MutableMapping[torch.Tensor, torch.Tensor | None] = WeakTensorKeyDictionary()
        self.known[x] = None
        self.parameters = parameter_names(model)
        self.entries = entries_of(operations)
        self.count = 0

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        kwargs = kwargs or {}
        name = operation_name(func)
        given = operands(name, args, kwargs)
        known = [t for t in given if t in self.known]
        label = operation_label(name, given, self.parameters) if known or self.entries else ""
        entry, positions = self.entries.get(self.count, ("", ()))
        if positions and label == entry and (known or is_product(name, given)):
            label = self.operations[self.count]
            for k in positions:
                self._enter(given[k], (self.count, ~k))
            known = [t for t in given if t in self.known]
        if any(self.known[t] is not None for t in known):
            # A tensor that was replaced may still be at hand under its old name (an in-place activation's input).
            args, kwargs = self._current(args), self._current(kwargs)
        result = func(*args, **kwargs)
        results = made(name, args, result)
        if not known or not results or name in CONSTANT:
            return result
        self._follow(label)
        here = self.at.get(self.count - 1, {})
        changes = in_place(name, kwargs)
        for slot, tensor in enumerate(results):
            fresh = here[slot](tensor) if slot in here else tensor
            base = tensor._base if changes else None
            if base is not None and base not in self.known:
                self.known[base] = None
            self.known[fresh] = None
            if fresh is not tensor:
                self.known[tensor] = fresh
                result = replaced(result, tensor, fresh)
        return result

    def _enter(self, tensor: torch.Tensor, place: Place) -> None:
        """Follow a tensor that comes out of unseen code, and show it to the hook of its place."""
        if tensor not in self.known:
            self.known[tensor] = None
        hook = self.at.get(place[0], {}).get(place[1])
        if hook is not None:
            hook(tensor)

    def finish(self) -> None:
        """Hold the pass, now at its end, against the recorded one.

        Raises:
            InputError: It has done less.
        """
        if self.count < len(self.operations):
            self._follow("its end")

    def _follow(self, label: str) -> None:
        """Count an operation."""
        recorded = self.operations[self.count] if self.count < len(self.operations) else "its end"
        self.count += 1
        if recorded != label:
            raise InputError(
                f"the model takes another way through its operations than on its first rows (step {self.count} is "
                f"{label}, and was {recorded}): the layers of a network that changes with its input cannot be followed."
            )

    def _current(self, tree: Tree) -> Tree:
        if isinstance(tree, torch.Tensor):
            fresh = self.known.get(tree)
            return tree if fresh is None else fresh
        return mapped(tree, self._current)


class IgnoreDetach(TorchFunctionMode):
    """A pass through which derivatives flow as through the function it computes, whatever the model detaches.

    A detached branch, and one under no_grad or in inference mode, depends on the input like any other.
    """

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        with torch.inference_mode(False), torch.enable_grad():
            if operation_name(func) in ("detach", "data.__get__"):
                given = next(tensors((args, kwargs or {})))
                return given.view_as(given)
            return func(*args, **(kwargs or {}))
