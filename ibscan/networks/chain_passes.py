"""Noisy passes of a plain chain up to one layer, with their derivative in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.networks.activations import ACTIVATIONS, activated
from ibscan.numerics.spectra.jacobian import softmax_carried
from ibscan.numerics.tiling import mapped, tiles

__all__ = ["ChainPasses"]


@dataclass(frozen=True)
class ChainPasses:
    """Noisy passes of some rows of one chain: what is random starts after the first layer.

    Attributes:
        clean: Post of the first layer, (n, units), in the dtype of the pass.
        weights: (out, in) of each layer after the first, up to the one wanted.
        biases: (1, out) of these, None where a layer has none.
        activations: Their names.
        noise: Standard deviation of what is added to the input of each of them.
        exact: The same passes in float64, which are differentiated; None if these are in float64.
    """

    clean: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    activations: tuple[str, ...]
    noise: tuple[float, ...]
    exact: ChainPasses | None = None

    @property
    def width(self) -> int:
        """D, the units of the layer."""
        return len(self.weights[-1]) if self.weights else self.clean.shape[1]

    @property
    def units(self) -> int:
        """m, the units of all layers before it."""
        return sum(weight.shape[1] for weight in self.weights)

    @property
    def differentiable(self) -> bool:
        """Always True: every layer has a derivative."""
        return True

    @property
    def concurrent(self) -> bool:
        """Always True: passes change nothing."""
        return True

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's post before its own noise, (q, K, D) float64.

        Args:
            inputs: Which rows, (q,).
            z: Standard normals of K passes of each, (q, K, m), float64.
        """
        paths, count = z.flatten(0, 1), z.shape[1]
        found = torch.empty(len(paths), self.width, dtype=torch.float64, device=z.device)

        @torch.inference_mode()
        def fill(part: slice) -> None:
            owner = torch.arange(part.start, part.stop, device=z.device) // count
            post = self.clean.index_select(0, inputs.index_select(0, owner))
            for k in range(len(self.weights)):
                post = self._step(k, post, paths[part])[1]
            found[part] = post

        mapped(fill, tiles(len(paths), self.units + self._widest(), z.device), z.device)
        return found.view(*z.shape[:2], self.width)

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's post before its own noise, (q, D), and its derivative by z, (q, D, m), float64.

        Args:
            inputs: Which rows, (q,).
            z: Standard normals of one pass of each, (q, m), float64.
        """
        if self.exact is not None:
            return self.exact.linearised(inputs, z)
        values = torch.empty(len(z), self.width, dtype=torch.float64, device=z.device)
        derivative = torch.empty(len(z), self.width, self.units, dtype=torch.float64, device=z.device)

        @torch.inference_mode()
        def fill(part: slice) -> None:
            values[part], derivative[part] = self._linearised(inputs[part], z[part])

        mapped(fill, tiles(len(z), self.width * (self.units + self._widest()), z.device), z.device)
        return values, derivative

    def _step(self, k: int, post: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pre and post of layer k + 1 from the post of layer k, (n, units), and its normals among z (n, m)."""
        weight, bias = self.weights[k], self.biases[k]
        noisy = torch.add(post, z[:, self._part(k)].to(post.dtype), alpha=self.noise[k])
        pre = noisy @ weight.mT if bias is None else torch.addmm(bias, noisy, weight.mT)
        return pre, activated(self.activations[k], pre)

    def _linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        post, pres = self.clean.index_select(0, inputs), []
        for k in range(len(self.weights)):
            pre, post = self._step(k, post, z)
            pres.append(pre)
        found = torch.empty(self.units, self.width, len(z), dtype=torch.float64, device=z.device)
        # Rows last: what is the same for all units of the wanted layer, the slopes, lies side by side.
        carried = torch.empty(0)
        for k in reversed(range(len(self.weights))):
            weight = self.weights[k]
            if k + 1 < len(self.weights):
                through = carried * self._slope(k, pres[k]).unsqueeze(1)
                carried = (weight.mT @ through.flatten(1)).view(-1, self.width, len(z))
            elif self.activations[k] == "softmax":
                carried = softmax_carried(post.unsqueeze(0), weight[None, None])[0].permute(2, 1, 0)
            else:
                carried = weight.mT.unsqueeze(-1) * self._slope(k, pres[k])
            torch.mul(carried, self.noise[k], out=found[self._part(k)])
        return post, found.permute(2, 1, 0)

    def _slope(self, k: int, pre: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.activations[k]].slope(pre).mT.contiguous()

    def _part(self, k: int) -> slice:
        """Return where in z the normals of layer k are."""
        start = sum(weight.shape[1] for weight in self.weights[:k])
        return slice(start, start + self.weights[k].shape[1])

    def _widest(self) -> int:
        return max([self.clean.shape[1], *map(len, self.weights)])
