"""Differentiate the layers of a module on some rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from ibscan.core.network import JacobianSpec, Weight
from ibscan.core.records import Array, Layer
from ibscan.errors import InputError
from ibscan.networks.budget import ModuleBudget
from ibscan.networks.hooked import HookedModel
from ibscan.networks.jacobians.derivative_check import failure
from ibscan.networks.jacobians.derivatives import Outputs, norms_from_gradients, spectral_norms
from ibscan.networks.jacobians.rounding import expected_rounding, rounding_effect
from ibscan.networks.jacobians.sweeps import Sweep, choose_modes, group_layers, run_sweep, within_memory
from ibscan.networks.packing import Packing
from ibscan.networks.trace.graph import INPUT, Place, Trace
from ibscan.networks.trace.replay import derivative_context

__all__ = ["LayerJacobians"]


class TracedModel(Protocol):
    """What of a network is needed to differentiate its layers: see `networks.module.Module`."""

    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def trace(self) -> Trace: ...
    @property
    def hooked(self) -> HookedModel: ...
    @property
    def packing(self) -> Packing | None: ...
    @property
    def plain(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def limits(self) -> ModuleBudget: ...
    @property
    def failures(self) -> dict[tuple[object, ...], str]: ...
    def weight(self, layer: int) -> Weight | None: ...


@dataclass(frozen=True)
class LayerJacobians:
    """The Jacobians of a network's layers that `spec` asks for, at the rows x (N, ...)."""

    network: TracedModel
    x: Array
    spec: JacobianSpec

    @property
    def wanted(self) -> list[int]:
        """The layers whose Jacobians are asked for."""
        return [layer for layer in range(len(self.network.layers)) if self.spec.wants(layer)]

    def blocks(
        self,
        input_widths: Mapping[int, int | None],
        compute: Callable[[Sweep, int, Outputs], list[torch.Tensor]],
        failed: dict[int, str],
    ) -> Iterator[tuple[Sweep, int, slice, list[torch.Tensor]]]:
        """Yield (sweep, number of directions, rows, result), as many layers together as memory holds for one row.

        Args:
            input_widths: As `input_widths` returns it; empty if the layers' inputs are not needed.
            compute: Computes the result of a sweep, given how many numbers may be held in memory.
            failed: Receives the layers that cannot be differentiated, with the reason.
        """
        widths = dict(zip(self.wanted, self._widths(), strict=True))
        directions = self.spec.directions
        size = self._variable(slice(0, 1))[0].numel() if directions is None else directions
        budget = within_memory(self.network.limits, self.network.device)
        for group in group_layers(widths, input_widths, size, budget.row):
            ways, reasons = choose_modes(group, self._failure)
            failed.update(reasons)
            for sweep in ways:
                try:
                    for rows, found in run_sweep(
                        sweep, len(self.x), self._outputs, partial(compute, sweep, budget.row), budget
                    ):
                        yield sweep, size, rows, found
                except InputError as error:
                    failed.update(dict.fromkeys(sweep.layers, str(error).rstrip(".")))

    def input_widths(self) -> dict[int, int | None]:
        """Return the sizes of layers' inputs that bound their rank: one layer's post, or None for x itself."""
        found: dict[int, int | None] = {}
        if not self.spec.feeds or not self.network.plain:
            return found
        for layer in self.wanted:
            weight = self.network.weight(layer)
            place = self._input_place(layer)
            if weight is not None and weight.separate and place is not None:
                found[layer] = None if place == INPUT else self._values([place], slice(0, 1))[0].shape[1]
        return found

    def finite(self, rows: slice, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return for some layers at which rows their pre is finite, (n,) each."""
        # relu'(NaN) = 0 would hide a NaN, so track finiteness explicitly.
        values = self._values([self.network.trace.pre[layer] for layer in layers], rows)
        return [torch.isfinite(value).all(1) for value in values]

    def norms(self) -> Array:
        """Return the largest singular value of every layer's Jacobian on the whole variable, (L, n)."""
        found = np.full((len(self.network.layers), len(self.x)), np.nan)
        whole = replace(self.spec, directions=None, basis=None)

        def computed(sweep: Sweep, budget: int, outputs: Outputs) -> list[torch.Tensor]:
            if sweep.reverse:
                return norms_from_gradients(outputs, budget)
            draw = torch.randn(outputs.variable[:1].shape, generator=torch.Generator().manual_seed(0))
            return spectral_norms(outputs, draw.to(outputs.variable))

        for layer in self.wanted:
            alone = replace(self, spec=replace(whole, layers=(layer,)))
            for _, _, rows, norms in alone.blocks({}, computed, {}):
                found[layer, rows] = norms[0].cpu().numpy()
        return found

    def rounding(self, widest: int) -> dict[int, float]:
        """Return how far rounding may have moved Jacobians, in units of their norm, of layers coarser than float64."""
        trace = self.network.trace
        units = [units[self.spec.at == "post"] for units in trace.units]
        coarse = tuple(k for k in self.wanted if units[k] > torch.finfo(torch.float64).eps)
        found = {layer: expected_rounding(units[layer], widest, len(trace.operations)) for layer in coarse}

        def computed(sweep: Sweep, budget: int, outputs: Outputs) -> list[torch.Tensor]:
            whole = outputs.rows * outputs.size * sum(outputs.widths) <= budget
            return rounding_effect(outputs, reverse=sweep.reverse) if whole else []

        for sweep, _, _, changes in replace(self, spec=replace(self.spec, layers=coarse)).blocks({}, computed, {}):
            for layer, change in zip(sweep.layers, changes, strict=False):
                found[layer] = max(found[layer], float(change))
        return found

    def _failure(self, sweep: Sweep) -> str:
        """Try a sweep on the first row; return why it fails, or the empty string."""
        failures, spec = self.network.failures, self.spec
        key = (spec.at, spec.origin, sweep.layers, len(sweep.widths), sweep.mode)
        if key not in failures:
            outputs = self._outputs(sweep, slice(0, 1), 1)
            units = [self.network.trace.units[layer][spec.at == "post"] for layer in sweep.layers]
            unit = max(torch.finfo(self.network.dtype).eps, *units)
            failures[key] = failure(outputs, reverse=sweep.reverse, unit=unit)
        return failures[key]

    def _place(self, layer: int) -> Place:
        trace = self.network.trace
        return (trace.pre if self.spec.at == "pre" else trace.post)[layer]

    def _input_place(self, layer: int) -> Place | None:
        """Return where a layer's input is in a plain network: `INPUT` if it is the variable itself."""
        if layer - 1 == self.spec.origin:
            return INPUT
        return self.network.trace.post[layer - 1] if layer else self.network.trace.first_input

    def _widths(self) -> list[int]:
        places = [self._place(layer) for layer in self.wanted]
        return [value.shape[1] for value in self._values(places, slice(0, 1))] if places else []

    def _values(self, places: Sequence[Place], rows: slice) -> list[torch.Tensor]:
        return self.network.hooked.values(places, self.network.hooked.rows(self.x[rows]))

    def _variable(self, rows: slice) -> torch.Tensor:
        """Return the variable at some rows: x, or the flattened post of the origin."""
        if self.spec.origin is None:
            return self.network.hooked.inputs(self.network.hooked.rows(self.x[rows]))[0]
        return self._values([self.network.trace.post[self.spec.origin]], rows)[0].detach()

    def _outputs(self, sweep: Sweep, rows: slice, tangents: int) -> Outputs:
        """Return the layers of a sweep as a function of the variable."""
        network, spec = self.network, self.spec
        block, variable = network.hooked.rows(self.x[rows]), self._variable(rows)
        inputs = [self._input_place(layer) for layer in sweep.layers if sweep.input_index.get(layer) is not None]
        places = [*(self._place(layer) for layer in sweep.layers), *(place for place in inputs if place)]
        origin = INPUT if spec.origin is None else network.trace.post[spec.origin]

        def values(given: torch.Tensor) -> list[torch.Tensor]:
            with derivative_context(network.trace.operations, network.device, plain=sweep.mode == "plain"):
                if origin == INPUT and network.packing is None:
                    return network.hooked.values(places, given)
                repeated = block.repeat(len(given) // len(block), *[1] * (block.ndim - 1))
                return network.hooked.values(places, repeated, (origin, given))

        width = variable[0].numel()

        def columns(part: slice) -> torch.Tensor:
            if spec.basis is not None:
                found = torch.as_tensor(spec.basis(width, part)).to(variable).mT
            else:
                found = torch.zeros(part.stop - part.start, width, dtype=variable.dtype, device=variable.device)
                found[torch.arange(len(found)), torch.arange(part.start, part.stop)] = 1.0
            return found.reshape(len(found), 1, *variable.shape[1:])

        return Outputs(values, variable, sweep.widths, columns, spec.directions or width, tangents)
