"""Plan and run sweeps over a model's layers: which layers together, in which mode, in what blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch

from ibscan.core.boundary import is_out_of_memory
from ibscan.networks.budget import ModuleBudget
from ibscan.networks.jacobians.derivatives import (
    Outputs,
    full_jacobians,
    gram,
    gram_by_blocks,
    gram_from_gradients,
    grams,
    qr_factor,
)
from ibscan.numerics.memory import available_floats
from ibscan.numerics.spectra.counting import Gram, rounding
from ibscan.numerics.tiling import cuts

__all__ = [
    "Sweep",
    "as_gram",
    "choose_modes",
    "group_layers",
    "layer_factors",
    "layer_grams",
    "run_sweep",
    "within_memory",
]

# `reverse`: gradients, for few and narrow layers, and where forward mode fails. `plain`: gradients as in training,
# where what the model detaches stays detached, if all else fails.
Mode: TypeAlias = Literal["forward", "reverse", "plain"]
# Cost of a unit's gradient, in directions of forward mode.
GRADIENT_COST = 2
# Norms of Gram matrices outside this range may have under- or overflowed.
LEAST, MOST = 1e-120, 1e120


@dataclass(frozen=True)
class Sweep:
    """Layers whose Jacobians are computed together.

    `widths` are the sizes on one row of the layers wanted, then those of the inputs of some of them; `input_index` maps
    a layer to the index of its input in `widths`, or to None if it is the variable itself. `mode` is how they are
    differentiated.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    input_index: Mapping[int, int | None] = field(default_factory=dict)
    mode: Mode = "forward"

    @property
    def reverse(self) -> bool:
        """Whether the mode takes gradients."""
        return self.mode != "forward"

    def part(self, layers: Sequence[int], mode: Mode, *, with_inputs: bool = True) -> Sweep:
        """Return the sweep of some of the layers, with or without the layers' inputs."""
        own = [self.widths[self.layers.index(layer)] for layer in layers]
        input_index: dict[int, int | None] = {}
        for layer in layers if with_inputs else ():
            if layer in self.input_index:
                index = self.input_index[layer]
                input_index[layer] = None if index is None else len(own)
                own += [] if index is None else [self.widths[index]]
        return Sweep(tuple(layers), tuple(own), input_index, mode)

    def input_factor(self, layer: int, found: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return a factor of the Jacobian of a layer's input, (1, n, s, k), None if it was not computed."""
        if layer not in self.input_index:
            return None
        index = self.input_index[layer]
        if index is None:
            return torch.ones(1, 1, 1, 1, dtype=found[0].dtype, device=found[0].device)
        # A layer too wide to be held is computed without its input.
        return found[index].unsqueeze(0) if index < len(found) else None


def group_layers(
    widths: Mapping[int, int], input_widths: Mapping[int, int | None], size: int, budget: int
) -> Iterator[Sweep]:
    """Yield sweeps of as many layers, in order, as fit into memory together for one row.

    Args:
        widths: Size on one row of every layer wanted.
        input_widths: Size of the inputs of layers that have a single one; None if it is the variable itself.
        size: Number of directions.
        budget: Numbers that may be held in memory.
    """

    def sweep(layers: Sequence[int]) -> Sweep:
        inputs = [layer for layer in layers if input_widths.get(layer) is not None]
        indices: dict[int, int | None] = {layer: None for layer in layers if layer in input_widths}
        indices.update({layer: len(layers) + k for k, layer in enumerate(inputs)})
        sizes = (*(widths[k] for k in layers), *(input_widths[k] or 0 for k in inputs))
        return Sweep(tuple(layers), sizes, indices, "reverse" if GRADIENT_COST * sum(sizes) < size else "forward")

    group: list[int] = []
    for layer in widths:
        if group and size * sum(sweep([*group, layer]).widths) > budget:
            yield sweep(group)
            group = []
        group.append(layer)
    if group:
        yield sweep(group)


def choose_modes(sweep: Sweep, failure: Callable[[Sweep], str]) -> tuple[list[Sweep], dict[int, str]]:
    """Return sweeps, in modes that work, of the layers that can be differentiated, and the reasons for the others.

    The sweep itself if that works; otherwise every layer is tried in each mode.

    Args:
        sweep: Which layers, and the mode that costs less.
        failure: Tries a sweep; returns why it fails, or the empty string.
    """
    if not failure(sweep):
        return [sweep], {}
    modes: tuple[Mode, ...] = ("reverse", "forward", "plain") if sweep.reverse else ("forward", "reverse", "plain")
    # If only the layer's input cannot be differentiated, its bound on the rank is left out.
    ways: dict[tuple[Mode, bool], list[int]] = {(mode, inputs): [] for inputs in (True, False) for mode in modes}
    reasons: dict[int, str] = {}
    for layer in sweep.layers:
        said: dict[Mode, str] = {}
        for mode, inputs in ways:
            said[mode] = failure(sweep.part([layer], mode, with_inputs=inputs))
            if not said[mode]:
                ways[mode, inputs].append(layer)
                break
        else:
            # The error that training would raise is the most telling.
            reasons[layer] = said["plain"]
    return [sweep.part(layers, mode, with_inputs=inputs) for (mode, inputs), layers in ways.items() if layers], reasons


def run_sweep(
    sweep: Sweep,
    rows: int,
    outputs: Callable[[Sweep, slice, int], Outputs],
    compute: Callable[[Outputs], list[torch.Tensor]],
    budget: ModuleBudget,
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield (rows, result) for blocks of rows that fit into memory; a block is halved if memory runs out.

    Args:
        sweep: Which layers.
        rows: Number of rows.
        outputs: Returns the layers' values on some rows, for a number of tangents a pass.
        compute: Computes the result from them.
        budget: Numbers that may be held, `within_memory`.
    """
    first = outputs(sweep, slice(0, 1), 1)
    block = max(1, budget.block // (first.size * sum(sweep.widths)))
    tangents = max(1, min(budget.tangents, budget.one_pass // (min(block, rows) * max(sweep.widths))))
    left = cuts(0, rows, block)[::-1]
    while left:
        part = left.pop()
        count = part.stop - part.start
        try:
            found = compute(outputs(sweep, part, tangents))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or count == tangents == 1:
                raise
        else:
            yield part, found
            # Free this block's Jacobians before the next block's, even if the caller keeps the list.
            found.clear()
            continue
        torch.cuda.empty_cache()
        if count > 1:
            middle = part.start + count // 2
            left += [slice(middle, part.stop), slice(part.start, middle)]
        else:
            tangents //= 2
            left.append(part)


def layer_grams(sweep: Sweep, budget: int, outputs: Outputs) -> list[torch.Tensor]:
    """Return the smaller Gram matrix of every layer's Jacobian, then for each layer whether it is not zero, by row."""
    wide = _too_wide(sweep, outputs, budget)
    if sweep.reverse:
        return gram_from_gradients(outputs, budget) if wide else _grams_of(full_jacobians(outputs, reverse=True))
    return gram_by_blocks(outputs, budget) if wide else grams(outputs)


def layer_factors(sweep: Sweep, budget: int, outputs: Outputs) -> list[torch.Tensor]:
    """Return the Jacobians of the layers and then of their inputs; of a layer too wide, the QR factor alone."""
    if _too_wide(sweep, outputs, budget):
        alone = replace(outputs, widths=outputs.widths[:1], values=lambda x: outputs.values(x)[:1])
        return [qr_factor(alone, budget, reverse=sweep.reverse)]
    return full_jacobians(outputs, reverse=sweep.reverse)


def as_gram(values: torch.Tensor, positive: torch.Tensor, size: int, finite: torch.Tensor) -> Gram:
    """Return Gram matrices with bounds on their error: infinite where squares under- or overflow.

    Args:
        values: Gram matrices (n, m, m).
        positive: Whether J is not zero, (n,), which an underflow would hide.
        size: Number of terms in their sums.
        finite: Whether the layer's values are finite, (n,).
    """
    norm = values.flatten(1).norm(dim=1)
    usable = torch.isfinite(norm) & (norm > LEAST) & (norm < MOST)
    error = torch.where(usable, rounding(size) * norm, torch.where(positive, torch.inf, 0.0))
    whole = torch.where((usable & finite)[:, None, None], values, 0.0)
    one = torch.ones_like(norm)
    return Gram(whole.unsqueeze(0), error.unsqueeze(0), one.unsqueeze(0), finite.unsqueeze(0))


def _grams_of(jacobians: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [*map(gram, jacobians), *(jacobian.flatten(1).any(1) for jacobian in jacobians)]


def within_memory(budget: ModuleBudget, device: torch.device) -> ModuleBudget:
    """Return the budget with no more numbers of Jacobians than there is memory for now."""
    row = available_floats(device, budget.row)
    return replace(budget, row=row, one_pass=min(budget.one_pass, row), block=min(budget.block, row))


def _too_wide(sweep: Sweep, outputs: Outputs, budget: int) -> bool:
    """Return whether a layer, alone in its sweep, has more units than directions and too large a Jacobian to hold."""
    width = outputs.widths[0]
    return len(sweep.layers) == 1 and width > outputs.size and width * outputs.size * outputs.rows > budget
