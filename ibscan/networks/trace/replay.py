"""Run a model again along its recorded pass, with hooks at places and derivatives through everything."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ibscan.errors import InputError, Reached
from ibscan.networks.trace import operations as ops
from ibscan.networks.trace.graph import Place
from ibscan.networks.trace.trees import Function, Tree, mapped, replaced, tensors

__all__ = ["Hook", "Reached", "Replay", "derivative_context", "forward_context"]

# Takes the tensor at a place, and returns the one that the model goes on with.
Hook: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@contextlib.contextmanager
def forward_context(dtype: torch.dtype) -> Iterator[None]:
    """Use torch's plain attention, and create new tensors (a first state, a buffer) in the model's dtype.

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
    """A pass along a recorded one, in which hooks see, and may replace, the tensors at given places.

    Args:
        operations: Labels of the recorded pass; a pass with others is refused.
        model: What is run.
        x: The input tensor of this pass.
        hooks: What to call at which place.

    Raises:
        InputError: The pass takes another way than the recorded one.
    """

    def __init__(
        self, operations: Sequence[str], model: nn.Module, x: torch.Tensor, hooks: Mapping[Place, Hook]
    ) -> None:
        super().__init__()
        self.operations = operations
        self.hooks: dict[int, dict[int, Hook]] = {}
        for (operation, slot), hook in hooks.items():
            self.hooks.setdefault(operation, {})[slot] = hook
        # Activity, with its replacement or None: a value that is its own key would never be freed.
        self.activity: MutableMapping[torch.Tensor, torch.Tensor | None] = WeakTensorKeyDictionary()
        self.activity[x] = None
        self.parameters = ops.parameter_names(model)
        self.entries = ops.entries_of(operations)
        self.repeats: Counter[int] = Counter()
        self.count = 0

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        kwargs = kwargs or {}
        name = ops.operation_name(func)
        given = ops.operands(name, args, kwargs)
        active = [t for t in given if t in self.activity]
        label = ops.operation_label(name, given, self.parameters) if active or self.entries else ""
        entry = self.entries.get(self.count)
        if entry is not None and label == entry[0] and (active or ops.is_product(name, given)):
            if self.repeats[self.count] == entry[1]:
                label = self.operations[self.count]
                for k in entry[2]:
                    self._enter(given[k], (self.count, ~k))
                active = [t for t in given if t in self.activity]
            self.repeats[self.count] += 1
        if any(self.activity[t] is not None for t in active):
            # The model may still hold a tensor that was replaced (the input of an in-place activation).
            args, kwargs = self._current(args), self._current(kwargs)
        result = func(*args, **kwargs)
        results = ops.results_of(name, args, result)
        if not active or not results or name in ops.CONSTANT:
            return result
        self._follow(label)
        hooks = self.hooks.get(self.count - 1, {})
        changes = ops.in_place(name, kwargs)
        for slot, tensor in enumerate(results):
            fresh = hooks[slot](tensor) if slot in hooks else tensor
            base = tensor._base if changes else None
            if base is not None and base not in self.activity:
                self.activity[base] = None
            self.activity[fresh] = None
            if fresh is not tensor:
                self.activity[tensor] = fresh
                result = replaced(result, tensor, fresh)
        return result

    def _enter(self, tensor: torch.Tensor, place: Place) -> None:
        """Follow a tensor that comes out of unseen code, and show it to the hook of its place."""
        if tensor not in self.activity:
            self.activity[tensor] = None
        hook = self.hooks.get(place[0], {}).get(place[1])
        if hook is not None:
            hook(tensor)

    def finish(self) -> None:
        """Compare the finished pass with the recorded one.

        Raises:
            InputError: It has fewer operations.
        """
        if self.count < len(self.operations):
            self._follow("its end")

    def _follow(self, label: str) -> None:
        """Compare an operation with the recorded one, and count it."""
        recorded = self.operations[self.count] if self.count < len(self.operations) else "its end"
        self.count += 1
        if recorded != label:
            raise InputError(
                f"the model takes another way through its operations than on its first rows (step {self.count} is "
                f"{label}, and was {recorded}): the layers of a network that changes with its input cannot be followed."
            )

    def _current(self, tree: Tree) -> Tree:
        if isinstance(tree, torch.Tensor):
            fresh = self.activity.get(tree)
            return tree if fresh is None else fresh
        return mapped(tree, self._current)


class IgnoreDetach(TorchFunctionMode):
    """A pass whose derivatives are those of the function it computes: what the model detaches is not.

    Branches that are detached, under no_grad or in inference mode depend on the input like any other.
    """

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tree:
        with torch.inference_mode(False), torch.enable_grad():
            if ops.operation_name(func) in ("detach", "data.__get__"):
                given = next(tensors((args, kwargs or {})))
                return given.view_as(given)
            return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def derivative_context(operations: Sequence[str], device: torch.device, *, plain: bool) -> Iterator[None]:
    """Differentiate passes as the functions they compute, or, if `plain`, as training does.

    cuDNN is off for recurrent networks, which it differentiates in training mode alone.

    Args:
        operations: Labels of the recorded pass.
        device: Where it runs.
        plain: Whether what the model detaches stays detached.
    """
    recurrent = device.type == "cuda" and any(op.partition(" ")[0] in RECURRENT for op in operations)
    native: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if recurrent:
        native = torch.backends.cudnn.flags(enabled=False)
    with contextlib.nullcontext() if plain else IgnoreDetach(), native:
        yield
