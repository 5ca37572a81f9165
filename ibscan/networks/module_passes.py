"""Noisy passes of a module up to one layer, and their derivative from torch, where that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ibscan.core.records import Array
from ibscan.networks.hooked import layer_hooks
from ibscan.networks.jacobians.derivative_check import failure
from ibscan.networks.jacobians.derivatives import Outputs, full_jacobians
from ibscan.networks.jacobians.sweeps import GRADIENT_COST, Mode, Sweep, choose_modes
from ibscan.networks.trace.replay import Reached, derivative_context
from ibscan.numerics.tiling import cuts

if TYPE_CHECKING:
    from ibscan.networks.module import Module

__all__ = ["ModulePasses"]


@dataclass(frozen=True)
class ModulePasses:
    """Noisy passes of the rows x (n, ...) of a module up to a layer.

    `noise` has the standard deviation of every layer, by index. A layer is noisy here if its post is computed before
    that of the layer wanted.
    """

    network: Module
    x: Array
    layer: int
    noise: tuple[float, ...]

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Numbers of the post of each noisy layer run before the layer, and of its own, by index."""
        trace = self.network.trace
        post = trace.post[self.layer]
        layers = sorted({k for k in trace.noisy if trace.post[k] < post} | {self.layer})
        model = self.network.hooked
        found = model.values([trace.post[k] for k in layers], model.rows(self.x[:1]))
        return {k: value.shape[1] for k, value in zip(layers, found, strict=True)}

    @cached_property
    def parts(self) -> dict[int, slice]:
        """Where in z the normals of each noisy layer are."""
        found, start = {}, 0
        for k, size in self.sizes.items():
            if k != self.layer:
                found[k] = slice(start, start + size)
                start += size
        return found

    @property
    def width(self) -> int:
        """D, the numbers of the layer's post."""
        return self.sizes[self.layer]

    @property
    def units(self) -> int:
        """m, the numbers of the posts of all noisy layers run before it."""
        return sum(self.sizes.values()) - self.width

    @property
    def differentiable(self) -> bool:
        """Whether torch differentiates the layer by the noise, as central differences on a row confirm."""
        return self._precise.mode is not None

    @property
    def concurrent(self) -> bool:
        """Always False: hooks and torch's default dtype are the process's."""
        return False

    @cached_property
    def mode(self) -> Mode | None:
        """How the layer is differentiated by the noise; None where no mode gives the derivative."""
        reverse = GRADIENT_COST * self.width < self.units
        ways, _ = choose_modes(
            Sweep((self.layer,), (self.width,), {}, "reverse" if reverse else "forward"), self._failure
        )
        return ways[0].mode if ways else None

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's post before its own noise, (q, K, D) float64.

        Args:
            inputs: Which rows, (q,).
            z: Standard normals of K passes of each, (q, K, m), float64.
        """
        paths, count = z.flatten(0, 1), z.shape[1]
        found = torch.empty(len(paths), self.width, dtype=torch.float64, device=z.device)
        for part in cuts(0, len(paths), self.network.limits.noisy // self.network.hooked.widest(self.x)):
            owner = torch.arange(part.start, part.stop, device=z.device) // count
            # Every pass of every row is a row of one batch.
            found[part] = self._post(self._rows[inputs[owner]], paths[part]).detach()
        return found.view(*z.shape[:2], self.width)

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's post before its own noise, (q, D), and its derivative by z, (q, D, m), float64.

        Args:
            inputs: Which rows, (q,).
            z: Standard normals of one pass of each, (q, m), float64.
        """
        return self._precise._linearised(inputs, z)

    def _linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.mode is not None
        values = torch.empty(len(z), self.width, dtype=torch.float64, device=z.device)
        derivative = torch.empty(len(z), self.width, self.units, dtype=torch.float64, device=z.device)
        numbers, budget = self.units + self.network.hooked.widest(self.x), self.network.limits.noisy
        for part in cuts(0, len(z), budget // (numbers * self.width)):
            rows = part.stop - part.start
            outputs = self._outputs(self.mode, inputs[part], z[part], max(1, budget // (numbers * rows)))
            values[part] = outputs.values(outputs.variable)[0].detach()
            if self.units:
                derivative[part] = full_jacobians(outputs, reverse=self.mode != "forward")[0]
        return values, derivative

    @cached_property
    def _rows(self) -> torch.Tensor:
        return self.network.hooked.rows(self.x)

    @cached_property
    def _precise(self) -> ModulePasses:
        """The passes that are differentiated: in float64 wherever the model can run in that."""
        precise = self.network.precise
        return self if precise is self.network else ModulePasses(precise, self.x, self.layer, self.noise)

    def _failure(self, sweep: Sweep) -> str:
        """Try a mode on the first row, at a draw of the noise; return why it fails, or the empty string."""
        failures, trace, key = self.network.failures, self.network.trace, ("noise", self.layer, sweep.mode)
        if key not in failures:
            device = self.network.device
            z = torch.randn(1, self.units, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
            outputs = self._outputs(sweep.mode, torch.zeros(1, dtype=torch.int64, device=device), z, 1)
            unit = max(torch.finfo(self.network.dtype).eps, trace.units[self.layer][1])
            failures[key] = failure(outputs, reverse=sweep.reverse, unit=unit) if self.units else ""
        return failures[key]

    def _outputs(self, mode: Mode, inputs: torch.Tensor, z: torch.Tensor, tangents: int) -> Outputs:
        """Return the layer as a function of the normals, (n, m), of one pass of each row."""
        network, rows = self.network, self._rows[inputs]

        def values(given: torch.Tensor) -> list[torch.Tensor]:
            repeated = rows.repeat(len(given) // len(rows), *[1] * (rows.ndim - 1))
            with derivative_context(network.trace.operations, network.device, plain=mode == "plain"):
                return [self._post(repeated, given)]

        def columns(part: slice) -> torch.Tensor:
            return torch.eye(self.units, device=z.device)[part].unsqueeze(1)

        return Outputs(values, z.to(network.dtype), (self.width,), columns, self.units, tangents)

    def _post(self, rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's post of some rows before its own noise, (n, D) float64, at z (n, m)."""
        found: list[torch.Tensor] = []

        def add(index: int, value: torch.Tensor) -> torch.Tensor:
            return value + self.noise[index] * z[:, self.parts[index]].to(value).reshape(value.shape)

        def keep(value: torch.Tensor) -> torch.Tensor:
            found.append(value.to(torch.float64, copy=True).reshape(len(rows), -1))
            raise Reached

        post = self.network.trace.post
        # The wanted layer first: one that comes later may have its post at the same place.
        hooks = [(post[self.layer], keep), *layer_hooks(post, add, list(self.parts))]
        self.network.hooked.run(rows, hooks)
        return found[0]
