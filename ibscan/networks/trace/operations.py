"""Describe a call of a torch function: its name, its operands, its results, whether it changes them in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from ibscan.networks.activations import ACTIVATIONS
from ibscan.networks.trace.trees import Function, Tree, tensors

__all__ = [
    "CONSTANT",
    "Constants",
    "Entry",
    "address",
    "constant_hashes",
    "entries_of",
    "entry_label",
    "in_place",
    "is_default",
    "is_product",
    "leading",
    "operands",
    "operation_label",
    "operation_name",
    "parameter_names",
    "results_of",
    "tensor_hash",
    "unit",
]

# Products with a matrix: one that takes a parameter is a layer in all but name.
PRODUCTS = (
    *("linear", "bilinear", "matmul", "__matmul__", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "addbmm"),
    *("einsum", "tensordot", "inner", "multi_head_attention_forward", "lstm", "gru", "rnn_", "conv"),
)
# Results that have the shape or device of another tensor, but do not depend on its values.
CONSTANT = (
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
)  # fmt: skip
# Between the label of an operation and the positions of its operands that come out of unseen code.
ENTRY = " from unseen code: "
# Hashes of operands that are no activity, by position, by number and label of their operation, and how many operations
# with this label there were before it since the last on activity.
Constants: TypeAlias = dict[tuple[int, str, int], dict[int, int]]
# Where activity comes out of unseen code, by the number of the operation: its label, how many with this label to skip
# since the last operation on activity, the positions of the operands.
Entry: TypeAlias = tuple[str, int, tuple[int, ...]]
# Operations that use only shape, dtype or device of their second tensor.
ALIKE = ("to", "type_as", "view_as", "reshape_as", "expand_as")


def operands(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors whose values an operation uses."""
    given = list(tensors((args, kwargs)))
    return given[:1] if name in ALIKE else given


def operation_name(func: Function) -> str:
    """Return the name of a torch function; for a property, its name and `__get__`."""
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"{getattr(getattr(func, '__self__', None), '__name__', '')}.{name}"
    return name


def operation_label(name: str, given: Sequence[torch.Tensor], parameters: Mapping[int, str]) -> str:
    """Return an operation's name followed by the names of the parameters it takes."""
    return " ".join([name, *(parameters[id(t)] for t in given if id(t) in parameters)])


def is_product(name: str, given: Sequence[torch.Tensor]) -> bool:
    """Return whether an operation multiplies by a parameter."""
    return name.startswith(PRODUCTS) and any(isinstance(tensor, nn.Parameter) for tensor in given)


def entry_label(entry: Entry) -> str:
    """Return the label of an operation at which activity comes out of unseen code."""
    label, skipped, positions = entry
    return f"{label}{ENTRY}{' '.join(map(str, positions))}{f', skipping {skipped}' if skipped else ''}"


def entries_of(labels: Sequence[str]) -> dict[int, Entry]:
    """Return where activity comes out of unseen code in a recorded pass, by the number of the operation."""
    found = {}
    for number, (label, entry, rest) in enumerate(label.partition(ENTRY) for label in labels):
        if entry:
            positions, _, skipped = rest.partition(", skipping ")
            found[number] = (label, int(skipped or 0), tuple(map(int, positions.split())))
    return found


def constant_hashes(given: Mapping[int, torch.Tensor]) -> dict[int, int]:
    """Return hashes of the operands that are no activity, by their positions; parameters are left out."""
    return {k: tensor_hash(tensor) for k, tensor in given.items() if not isinstance(tensor, nn.Parameter)}


def tensor_hash(tensor: torch.Tensor) -> int:
    """Return a hash of a tensor's shape and numbers, the same of 0 and -0."""
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    numbers = real.to(torch.float64) + 0.0
    return hash((tuple(tensor.shape), numbers.cpu().contiguous().numpy().tobytes()))


def results_of(name: str, args: Sequence[Any], result: Tree) -> list[torch.Tensor]:
    """Return the tensors that an operation computes: its results, or the tensor it writes into."""
    return [args[0]] if name in ("__setitem__", "data.__set__") else list(tensors(result))


def in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation that returns one of its operands has changed it."""
    named = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "data.__set__")
    return named or name.startswith("__i") or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def is_default(func: Function, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an activation was called with default parameters, or a softmax over all numbers of a row."""
    if name in ("softmax", "log_softmax"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        tensor = args[0] if args else kwargs["input"]
        if not isinstance(dim, int) or dim % tensor.ndim == 0:
            return False
        return bool(tensor.shape[dim] * len(tensor) == tensor.numel())
    known = ACTIVATIONS.get(name.rstrip("_"))
    if known is None:
        return False
    probe = torch.tensor([-2.5, -0.3, 0.7, 3.0], dtype=torch.float64)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "out")}
    return bool(torch.equal(func(probe.clone(), *args[1:], **rest), known.value(probe)))


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's parameters by their `id`."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def leading(tensor: torch.Tensor) -> int:
    """Return the size of the first dimension, 1 where there is none."""
    return len(tensor) if tensor.ndim else 1


def unit(tensor: torch.Tensor) -> float:
    """Return the relative rounding of a tensor's dtype, 0 for integers."""
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0


def address(tensor: torch.Tensor) -> int | None:
    """Return the address of a tensor's storage, which its views share."""
    # Sparse tensors have no one storage.
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else None
