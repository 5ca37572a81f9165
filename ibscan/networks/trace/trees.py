"""Find and replace tensors in nested containers: what functions and models take and return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

from ibscan.errors import InputError

__all__ = ["Function", "Tree", "main_tensor", "mapped", "replaced", "tensors"]

# Tensors in nested containers.
Tree: TypeAlias = Any
Function: TypeAlias = Callable[..., Any]


def main_tensor(result: Tree) -> torch.Tensor:
    """Return the network's output: the result's `logits`, else its first tensor.

    Raises:
        InputError: There is no tensor.
    """
    found = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(found, torch.Tensor):
        return found
    first = next(iter(tensors(result)), None)
    if first is None:
        raise InputError(f"the model returned a {type(result).__name__} without a tensor; expected its output.")
    return first


def tensors(tree: Tree) -> Iterator[torch.Tensor]:
    """Yield the tensors in tuples, lists, mappings and dataclasses, however nested."""
    if isinstance(tree, torch.Tensor):
        yield tree
    else:
        for part in _parts(tree):
            yield from tensors(part)


def _parts(tree: Tree) -> Iterable[Any]:
    if isinstance(tree, Mapping):
        return tree.values()
    if isinstance(tree, tuple | list):
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, one.name) for one in dataclasses.fields(tree)]
    return ()


def mapped(tree: Tree, change: Callable[[Any], Any]) -> Tree:
    """Apply a function to every part of a tuple, list or dict; return anything else as it is."""
    if isinstance(tree, dict):
        return {key: change(value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(change(part) for part in tree)
    return tree


def replaced(result: Tree, old: torch.Tensor, new: torch.Tensor) -> Tree:
    """Return an operation's result with one tensor replaced by another."""
    if result is old:
        return new
    if isinstance(result, tuple) and type(result) is not tuple:  # torch's own named results
        return type(result)([new if part is old else part for part in result])
    return mapped(result, lambda part: new if part is old else part)
