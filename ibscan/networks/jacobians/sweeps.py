"""Forward-mode sweeps over a module: which layers go together, in what blocks of rows, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch

from ibscan.core.boundary import is_out_of_memory
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
    "memory_budget",
    "run_sweep",
]

# `reverse`: from gradients, for few and narrow layers, and where forward mode does not lead. `plain`: from gradients as
# training has them, what the model detaches left detached, for what cannot bear anything else.
Mode: TypeAlias = Literal["forward", "reverse", "plain"]
# Directions of the input carried through one pass.
TANGENTS = 256
# Numbers the Jacobians of one row may hold, the values of one pass at its widest layer, and several rows' Jacobians:
# less where memory is short. A CPU takes blocks of more than 32 MiB anew each time, and the system clears them; a GPU
# needs larger ones to be busy.
ROW_BUDGET = {"cpu": 2**27, "cuda": 2**31}
PASS_BUDGET = {"cpu": 2**22, "cuda": 2**29}
BLOCK_BUDGET = {"cpu": 2**22, "cuda": 2**28}
# A unit's gradient costs as much as so many directions in forward mode.
GRADIENT_COST = 2
# Squares of numbers beyond these leave the range in which they are exact to rounding.
LEAST, MOST = 1e-120, 1e120


@dataclass(frozen=True)
class Sweep:
    """Layers whose Jacobians are found together.

    `widths` are the sizes on one row of the layers wanted, then those of the inputs of some of them; `input_index` maps
    a layer to the index of its input in `widths`, to None where that is the variable itself. `mode` says how they are
    found.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    input_index: Mapping[int, int | None] = field(default_factory=dict)
    mode: Mode = "forward"

    @property
    def reverse(self) -> bool:
        """Whether they come from gradients."""
        return self.mode != "forward"

    def part(self, layers: Sequence[int], mode: Mode, *, with_inputs: bool = True) -> Sweep:
        """Return the sweep of some of the layers, with what feeds them or without."""
        own = [self.widths[self.layers.index(layer)] for layer in layers]
        fed: dict[int, int | None] = {
            layer: self.input_index[layer] for layer in layers if with_inputs and layer in self.input_index
        }
        for layer, place in fed.items():
            if place is not None:
                fed[layer] = len(own)
                own.append(self.widths[place])
        return Sweep(tuple(layers), tuple(own), fed, mode)

    def input_factor(self, layer: int, found: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return a factor of the Jacobian of what feeds a layer, (1, n, s, k), None where that is not known."""
        if layer not in self.input_index:
            return None
        place = self.input_index[layer]
        if place is None:
            return torch.ones(1, 1, 1, 1, dtype=found[0].dtype, device=found[0].device)
        # Beside a layer too wide to be held there is nothing else.
        return found[place].unsqueeze(0) if place < len(found) else None


def group_layers(widths: Mapping[int, int], feeds: Mapping[int, int | None], size: int, budget: int) -> Iterator[Sweep]:
    """Yield sweeps of as many layers, in order, as may be held together for one row.

    Args:
        widths: Size on one row of every layer wanted.
        feeds: Of the layers fed by one before them alone the size of what feeds them; None for the variable itself.
        size: Directions.
        budget: Numbers that may be held.
    """

    def made(layers: Sequence[int]) -> Sweep:
        fed = [layer for layer in layers if feeds.get(layer) is not None]
        places: dict[int, int | None] = {layer: None for layer in layers if layer in feeds}
        places.update({layer: len(layers) + k for k, layer in enumerate(fed)})
        sizes = (*(widths[k] for k in layers), *(feeds[k] or 0 for k in fed))
        return Sweep(tuple(layers), sizes, places, "reverse" if GRADIENT_COST * sum(sizes) < size else "forward")

    group: list[int] = []
    for layer in widths:
        if group and size * sum(made([*group, layer]).widths) > budget:
            yield made(group)
            group = []
        group.append(layer)
    if group:
        yield made(group)


def choose_modes(sweep: Sweep, differentiation_failure: Callable[[Sweep], str]) -> tuple[list[Sweep], dict[int, str]]:
    """Return sweeps of the layers of one that can be differentiated, by modes that can, and of the others the reason.

    As it is where that works; else every layer is tried by each mode.

    Args:
        sweep: Which layers, and the mode that costs less.
        differentiation_failure: Tries a sweep: what stands in its way, or the empty string.
    """
    if not differentiation_failure(sweep):
        return [sweep], {}
    modes: tuple[Mode, ...] = ("reverse", "forward", "plain") if sweep.reverse else ("forward", "reverse", "plain")
    # What feeds a layer may be out of reach where the layer is not; its bound is then left out.
    ways: dict[tuple[Mode, bool], list[int]] = {(mode, fed): [] for fed in (True, False) for mode in modes}
    reasons: dict[int, str] = {}
    for layer in sweep.layers:
        said: dict[Mode, str] = {}
        for mode, fed in ways:
            said[mode] = differentiation_failure(sweep.part([layer], mode, with_inputs=fed))
            if not said[mode]:
                ways[mode, fed].append(layer)
                break
        else:
            # What training would meet tells more than what other modes lack.
            reasons[layer] = said["plain"]
    return [sweep.part(layers, mode, with_inputs=fed) for (mode, fed), layers in ways.items() if layers], reasons


def run_sweep(
    sweep: Sweep,
    rows: int,
    outputs: Callable[[Sweep, slice, int], Outputs],
    compute: Callable[[Outputs], list[torch.Tensor]],
    budget: int,
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield (rows, what is computed of their outputs) in blocks that fit; halved where memory runs out all the same.

    Args:
        sweep: Which layers.
        rows: How many there are.
        outputs: The layers' values on some rows, with so many tangents a pass.
        compute: What is wanted of them.
        budget: Numbers that may be held.
    """
    first = outputs(sweep, slice(0, 1), 1)
    device = first.variable.device.type
    block = max(1, min(BLOCK_BUDGET[device], budget) // (first.size * sum(sweep.widths)))
    passed = min(PASS_BUDGET[device], budget) // (min(block, rows) * max(sweep.widths))
    tangents = max(1, min(TANGENTS, passed))
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
            # Whoever still holds the list must not hold a block's Jacobians beside the next one's.
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
    """Return the smaller Gram matrix of every layer's Jacobian, then of each whether a row's Jacobian is not zero.

    Of a layer too wide for its Jacobian to be held, by pairs of blocks of directions.
    """
    wide = _too_wide(sweep, outputs, budget)
    if sweep.reverse:
        return gram_from_gradients(outputs, budget) if wide else [*_grams_of(full_jacobians(outputs, reverse=True))]
    return gram_by_blocks(outputs, budget) if wide else grams(outputs)


def layer_factors(sweep: Sweep, budget: int, outputs: Outputs) -> list[torch.Tensor]:
    """Return every layer's Jacobian, or of one too wide for that a triangle in its stead, and those of what feeds."""
    if _too_wide(sweep, outputs, budget):
        return [qr_factor(_first(outputs), budget, reverse=sweep.reverse)]
    return full_jacobians(outputs, reverse=sweep.reverse)


def as_gram(values: torch.Tensor, positive: torch.Tensor, size: int, finite: torch.Tensor) -> Gram:
    """Return Gram matrices (n, m, m) as what is layer_grams from: no bound for numbers whose squares are not exact.

    Args:
        values: Gram matrices.
        positive: Whether J is not zero, (n,), which an underflow would hide.
        size: Length of the sums they are made of.
        finite: Whether the layer's values are finite, (n,).
    """
    norm = values.flatten(1).norm(dim=1)
    usable = torch.isfinite(norm) & (norm > LEAST) & (norm < MOST)
    error = torch.where(usable, rounding(size) * norm, torch.where(positive, torch.inf, 0.0))
    whole = torch.where((usable & finite)[:, None, None], values, 0.0)
    one = torch.ones_like(norm)
    return Gram(whole.unsqueeze(0), error.unsqueeze(0), one.unsqueeze(0), finite.unsqueeze(0))


def _grams_of(jacobians: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from map(gram, jacobians)
    yield from (jacobian.flatten(1).any(1) for jacobian in jacobians)


def memory_budget(device: torch.device) -> int:
    """Return how many numbers the Jacobians of one row may take."""
    return available_floats(device, ROW_BUDGET[device.type])


def _too_wide(sweep: Sweep, outputs: Outputs, budget: int) -> bool:
    """Whether a layer, alone in its sweep, has more units than directions and a Jacobian that cannot be held."""
    width = outputs.widths[0]
    return len(sweep.layers) == 1 and width > outputs.size and width * outputs.size * outputs.rows > budget


def _first(outputs: Outputs) -> Outputs:
    return replace(outputs, widths=outputs.widths[:1], values=lambda x: outputs.values(x)[:1])
