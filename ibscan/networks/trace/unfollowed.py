"""Parts of a pass that torch's Python functions do not show (numpy, scripted code): where activity comes out of them.

A tensor that comes out of such a part looks like a constant. Where it is fed to a layer, and is another for other rows
of the probe, it is activity again: from there on the pass is followed as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ibscan.networks.trace.operations import PRODUCTS

__all__ = ["ENTRY", "LEAVING", "Constants", "entries_of", "entry", "permuted", "varying"]

# By what a tensor's numbers are handed to code that is not followed.
LEAVING = ("numpy", "__array__", "tolist", "item")
# Between the label of an operation and the positions of its tensors that are activity again.
ENTRY = " from unseen code: "


@dataclass
class Constants:
    """What products with parameters were given in a pass beside those parameters, and no activity, by their labels."""

    given: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def note(self, name: str, label: str, given: Sequence[torch.Tensor]) -> None:
        """Keep a copy of what a product with a parameter is given, the first time."""
        if name.startswith(PRODUCTS) and any(isinstance(tensor, nn.Parameter) for tensor in given):
            self.given.setdefault(label, [tensor.detach().clone() for tensor in given])


def varying(once: Constants, other: Constants) -> dict[str, tuple[int, ...]]:
    """Return the positions of tensors that two passes over different rows did not give alike, by operations' labels."""
    found = {}
    for label, tensors in once.given.items():
        pairs = zip(tensors, other.given.get(label, ()), strict=False)
        positions = tuple(k for k, (a, b) in enumerate(pairs) if a.shape == b.shape and not torch.equal(a, b))
        if positions:
            found[label] = positions
    return found


def permuted(x: torch.Tensor) -> torch.Tensor:
    """Return rows with the same numbers in other places: other inputs, of which ids are still ids."""
    return x.roll(1, 0).flatten(1).roll(1, 1).reshape(x.shape)


def entry(label: str, positions: Sequence[int]) -> str:
    """Return the label of an operation at which activity comes back."""
    return f"{label}{ENTRY}{' '.join(str(k) for k in positions)}"


def entries_of(operations: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Return where activity comes back in a recorded pass: positions of tensors by the operations' labels."""
    split = (label.partition(ENTRY) for label in operations)
    return {label: tuple(int(k) for k in places.split()) for label, found, places in split if found}
