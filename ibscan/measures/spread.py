"""The spread of every layer over the rows of a probe, in one pass of the network without noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.core.network import LayeredNetwork
from ibscan.core.records import Array
from ibscan.measures.driver import ROUNDING

__all__ = ["layer_spreads"]


def layer_spreads(network: LayeredNetwork, x: Array, share: torch.Tensor) -> torch.Tensor:
    """Return the root-mean-square distance of each layer's post from its mean over the rows, (C, L) float64.

    It is `Mixture.rms_radius` of all layers at once. Units that vary by rounding alone count as constant; a layer that
    is not finite has NaN.

    Args:
        network: C checkpoints of L layers.
        x: Rows, shape (n, ...).
        share: Their weights, shape (n,), summing to 1.
    """
    found: dict[int, _Moments] = {}

    def add(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:  # noqa: ARG001
        values, known = post.flatten(2), found.get(layer)
        # From the first row, as an offset would cost digits.
        origin = values[:, :1].clone() if known is None else known.origin
        moments = _Moments.of(values - origin, share[rows], origin)
        found[layer] = moments if known is None else known.joined(moments)

    network.walk(x, add)
    return torch.stack([found[layer].spread for layer in range(len(network.layers))], 1)


@dataclass(frozen=True)
class _Moments:
    """Moments of some rows of one layer less the `origin` (C, 1, D), unit by unit, (C, D); `weight` is the rows'."""

    origin: torch.Tensor
    weight: float
    mean: torch.Tensor
    deviation: torch.Tensor  # root-mean-square distance from the mean
    lowest: torch.Tensor
    highest: torch.Tensor

    @staticmethod
    def of(values: torch.Tensor, share: torch.Tensor, origin: torch.Tensor) -> _Moments:
        """Reduce values (C, n, D) less their origin, of rows with weights (n,)."""
        weight = float(share.sum())
        shares = (share / weight).unsqueeze(1)
        mean, (lowest, highest) = (shares * values).sum(1), values.aminmax(dim=1)
        deviation = _root_of_squares(values - mean.unsqueeze(1), shares)
        return _Moments(origin, weight, mean, deviation, lowest, highest)

    def joined(self, other: _Moments) -> _Moments:
        """Return the moments of the rows of both.

        Source:
            Chan, Golub, LeVeque 1983, Algorithms for computing the sample variance.
        """
        weight = self.weight + other.weight
        a, b = self.weight / weight, other.weight / weight
        within = torch.hypot(a**0.5 * self.deviation, b**0.5 * other.deviation)
        return _Moments(
            self.origin,
            weight,
            a * self.mean + b * other.mean,
            torch.hypot(within, (a * b) ** 0.5 * (self.mean - other.mean)),
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
        )

    @property
    def spread(self) -> torch.Tensor:
        """Root-mean-square distance of all units together, (C,)."""
        origin = self.origin.squeeze(1)
        size = torch.maximum((self.lowest + origin).abs(), (self.highest + origin).abs())
        constant = self.highest - self.lowest <= ROUNDING * size
        units = torch.where(constant, 0.0, self.deviation)
        return _root_of_squares(units, torch.ones_like(units))


def _root_of_squares(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return the root of the sum over dimension 1 of `share` times the squares of values."""
    # Scale by the largest, whose square may leave the range of float64.
    largest = values.abs().amax(1, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    return largest.squeeze(1) * (share * scaled.square()).sum(1).sqrt()
