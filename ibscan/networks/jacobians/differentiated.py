"""A module's layers, on some rows, as functions of what they are differentiated by, and the sweeps over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ibscan.core.network import JacobianSpec
from ibscan.core.records import Array
from ibscan.errors import InputError
from ibscan.networks.jacobians.derivatives import Outputs, exact_norms, spectral_norms
from ibscan.networks.jacobians.shaken import expected, moved
from ibscan.networks.jacobians.sweeps import Sweep, grouped, room_for, routed, swept
from ibscan.networks.jacobians.trial import obstacle
from ibscan.networks.packing import fed
from ibscan.networks.trace.graph import INPUT, Place
from ibscan.networks.trace.replay import attached

if TYPE_CHECKING:
    from ibscan.networks.module import Module

__all__ = ["Differentiated"]

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Differentiated:
    """A network, the rows (N, ...) it is on, and which of its Jacobians are meant."""

    network: Module
    x: Array
    spec: JacobianSpec

    @property
    def wanted(self) -> list[int]:
        """The layers whose Jacobians are meant."""
        return [layer for layer in range(len(self.network.layers)) if self.spec.wants(layer)]

    def swept(
        self,
        feeds: Mapping[int, int | None],
        compute: Callable[[Sweep, int, Outputs], list[torch.Tensor]],
        failed: dict[int, str],
    ) -> Iterator[tuple[Sweep, int, slice, list[torch.Tensor]]]:
        """Yield (sweep, directions, rows, what was computed): as many layers together as memory holds for one row.

        Args:
            feeds: As `feeds` returns it; empty where what feeds the layers does not matter.
            compute: What is wanted of the layers of a sweep, given how many numbers may be held.
            failed: Gets the layers that cannot be differentiated, at the first row or at a later one, with the reason.
        """
        widths = dict(zip(self.wanted, self._widths(), strict=True))
        directions = self.spec.directions
        size = self._variable(slice(0, 1))[0].numel() if directions is None else directions
        room = room_for(self.network.device)
        for group in grouped(widths, feeds, size, room):
            ways, reasons = routed(group, self._obstacle)
            failed.update(reasons)
            for sweep in ways:
                try:
                    for rows, found in swept(sweep, len(self.x), self._outputs, partial(compute, sweep, room), room):
                        yield sweep, size, rows, found
                except InputError as error:
                    failed.update(dict.fromkeys(sweep.layers, str(error).rstrip(".")))

    def feeds(self) -> dict[int, int | None]:
        """Return the size of what feeds a layer, where that is one layer's post, and a bound on its rank."""
        found: dict[int, int | None] = {}
        if not self.spec.feeds or not self.network.plain:
            return found
        for layer in self.wanted:
            weight = self.network.weight(layer)
            place = self._fed(layer)
            if weight is not None and weight.separate and place is not None:
                found[layer] = None if place == INPUT else self._values([place], slice(0, 1))[0].shape[1]
        return found

    def finite(self, rows: slice, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return of some layers at which rows their own output is finite, (n,) each."""
        # The slope of relu at a NaN is 0, a number like any other: what is not finite must not end there.
        values = self._values([self.network.taps.pre[layer] for layer in layers], rows)
        return [torch.isfinite(value).all(1) for value in values]

    def norms(self) -> Array:
        """Return the largest singular value of every layer's Jacobian on the whole variable, (L, n)."""
        found = np.full((len(self.network.layers), len(self.x)), np.nan)
        whole = replace(self.spec, directions=None, basis=None)

        def computed(sweep: Sweep, room: int, outputs: Outputs) -> list[torch.Tensor]:
            if sweep.reverse:
                return exact_norms(outputs, room)
            draw = torch.randn(outputs.variable[:1].shape, generator=torch.Generator().manual_seed(0))
            return spectral_norms(outputs, draw.to(outputs.variable))

        for layer in self.wanted:
            alone = replace(self, spec=replace(whole, layers=(layer,)))
            for _, _, rows, norms in alone.swept({}, computed, {}):
                found[layer, rows] = norms[0].cpu().numpy()
        return found

    def rounding(self, widest: int) -> dict[int, float]:
        """Return how far rounding may have moved Jacobians, in units of their norm, of layers coarser than float64.

        Args:
            widest: Length of the longest sums.
        """
        taps = self.network.taps
        units = [units[self.spec.at == "post"] for units in taps.units]
        coarse = tuple(k for k in self.wanted if units[k] > torch.finfo(torch.float64).eps)
        found = {layer: expected(units[layer], widest, len(taps.operations)) for layer in coarse}

        def computed(sweep: Sweep, room: int, outputs: Outputs) -> list[torch.Tensor]:
            whole = outputs.rows * outputs.size * sum(outputs.widths) <= room
            return moved(outputs, reverse=sweep.reverse) if whole else []

        for sweep, _, _, shares in replace(self, spec=replace(self.spec, layers=coarse)).swept({}, computed, {}):
            for layer, share in zip(sweep.layers, shares, strict=False):
                found[layer] = max(found[layer], float(share))
        return found

    def _obstacle(self, sweep: Sweep) -> str:
        """Try a sweep on the first row; return what stands in its way, or the empty string."""
        tried, spec = self.network.tried, self.spec
        key = (spec.at, spec.origin, sweep.layers, len(sweep.widths), sweep.mode)
        if key not in tried:
            outputs = self._outputs(sweep, slice(0, 1), 1)
            units = [self.network.taps.units[layer][spec.at == "post"] for layer in sweep.layers]
            unit = max(torch.finfo(self.network.dtype).eps, *units)
            tried[key] = obstacle(outputs, reverse=sweep.reverse, unit=unit)
        return tried[key]

    def _place(self, layer: int) -> Place:
        taps = self.network.taps
        return (taps.pre if self.spec.at == "pre" else taps.post)[layer]

    def _fed(self, layer: int) -> Place | None:
        """Return where what feeds a layer is, in a plain network: `INPUT` where that is the variable itself."""
        if layer - 1 == self.spec.origin:
            return INPUT
        return self.network.taps.post[layer - 1] if layer else self.network.taps.fed

    def _widths(self) -> list[int]:
        places = [self._place(layer) for layer in self.wanted]
        return [value.shape[1] for value in self._values(places, slice(0, 1))] if places else []

    def _values(self, places: Sequence[Place], rows: slice) -> list[torch.Tensor]:
        return self.network.values(places, self.network.rows(self.x[rows]))

    def _variable(self, rows: slice) -> torch.Tensor:
        """Return what is differentiated by: the rows, or the origin's post, flattened."""
        if self.spec.origin is None:
            return fed(self.network.rows(self.x[rows]), self.network.packing, self.network.dtype)[0]
        return self._values([self.network.taps.post[self.spec.origin]], rows)[0].detach()

    def _outputs(self, sweep: Sweep, rows: slice, tangents: int) -> Outputs:
        """Return the layers of a sweep as a function of the variable."""
        network, spec = self.network, self.spec
        block, variable = network.rows(self.x[rows]), self._variable(rows)
        feeding = [self._fed(layer) for layer in sweep.layers if sweep.fed.get(layer) is not None]
        places = [*(self._place(layer) for layer in sweep.layers), *(place for place in feeding if place)]
        origin = INPUT if spec.origin is None else network.taps.post[spec.origin]

        def values(given: torch.Tensor) -> list[torch.Tensor]:
            mode = contextlib.nullcontext() if sweep.mode == "plain" else attached()
            with mode, _native(network.taps.operations, network.device):
                if origin == INPUT and network.packing is None:
                    return network.values(places, given)
                repeated = block.repeat(len(given) // len(block), *[1] * (block.ndim - 1))
                return network.values(places, repeated, (origin, given))

        width = variable[0].numel()

        def columns(part: slice) -> torch.Tensor:
            if spec.basis is not None:
                found = torch.as_tensor(spec.basis(width, part)).to(variable).mT
            else:
                found = torch.zeros(part.stop - part.start, width, dtype=variable.dtype, device=variable.device)
                found[torch.arange(len(found)), torch.arange(part.start, part.stop)] = 1.0
            return found.reshape(len(found), 1, *variable.shape[1:])

        return Outputs(values, variable, sweep.widths, columns, spec.directions or width, tangents)


def _native(operations: Sequence[str], device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Keep a recurrent network from cuDNN, which has derivatives of it in training mode alone."""
    if device.type == "cuda" and any(op.partition(" ")[0] in RECURRENT for op in operations):
        found: contextlib.AbstractContextManager[object] = torch.backends.cudnn.flags(enabled=False)
        return found
    return contextlib.nullcontext()
