"""How many numbers networks hold at once: constants, not free memory, so that a run can be repeated bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHAIN_BUDGETS", "MODULE_BUDGETS", "ChainBudget", "ModuleBudget"]


@dataclass(frozen=True)
class ChainBudget:
    """How many numbers a block of rows of a chain may hold at one layer.

    Attributes:
        activations: In a forward pass.
        factors: In factors of Jacobians.
        sweep: In the sweep of Gram matrices, whose blocks run side by side on a CPU.
    """

    activations: int = 2**24
    factors: int = 2**23
    sweep: int = 2**22


@dataclass(frozen=True)
class ModuleBudget:
    """How many numbers a module's blocks may hold; those of Jacobians are less where memory is short.

    On a CPU blocks over 32 MiB are allocated and cleared anew each time.

    Attributes:
        activations: A block of rows at its widest layer, in a forward pass.
        noisy: A block of noisy passes, at its widest layer, or of their derivatives.
        row: The Jacobians of one row.
        one_pass: One pass with tangents, or of gradients, at its widest layer.
        block: The Jacobians of a block of rows.
        tangents: Directions of the input carried through one pass, at most.
    """

    activations: int = 2**22
    noisy: int = 2**22
    row: int = 2**27
    one_pass: int = 2**22
    block: int = 2**22
    tangents: int = 256


# By type of device: a GPU needs large blocks to be busy.
CHAIN_BUDGETS = {"cpu": ChainBudget(), "cuda": ChainBudget(sweep=2**28)}
MODULE_BUDGETS = {"cpu": ModuleBudget(), "cuda": ModuleBudget(noisy=2**26, row=2**31, one_pass=2**29, block=2**28)}
