"""Check on one row that a mode differentiates the layers, and that the result agrees with central differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ibscan.errors import InputError
from ibscan.networks.jacobians.derivatives import Outputs, vjp
from ibscan.networks.jacobians.rounding import RoundingNoise

__all__ = ["failure"]

NOT_THE_FUNCTIONS = (
    "the derivative its operations declare is not that of what they compute, by central differences on a row (a "
    "straight-through or reversed gradient, or a backward that leaves something out?)"
)
# Distance of neighbouring points, in units of the row: the row itself may be at a kink or step of the function.
DISTANCE = 1e-3
NEIGHBOURS = 2
# Allowed relative disagreement, and factor on the rounding of the values. Coarse numbers need large steps, within
# which the function may bend, so that only large disagreements count.
SHARE, SAFETY = 1e-3, 20.0
COARSE, COARSE_SHARE = 1e-10, 0.3
# With coarser rounding there is nothing to compare.
COARSEST = 1e-5


def failure(outputs: Outputs, *, reverse: bool, unit: float) -> str:
    """Return why a mode does not give the derivatives of some layers, the empty string if it does.

    The derivative along a random direction is compared with central differences; it is rejected only if it disagrees
    at the row, at all neighbours, and with all step sizes.

    Args:
        outputs: Layers as a function of one row.
        reverse: Whether the mode takes gradients.
        unit: Relative rounding of the coarsest numbers on the way to the values.
    """
    draws = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)

    row = outputs.variable
    size = float(row.to(torch.float64).square().mean().sqrt())
    # Values that are not finite are reported elsewhere.
    scale = size if 0.0 < size < torch.inf else 1.0
    for k in range(1 + NEIGHBOURS):
        point = replace(outputs, variable=row if k == 0 else row + DISTANCE * scale * drawn(row))
        try:
            if _agrees(point, scale * drawn(row), reverse=reverse, unit=unit):
                return ""
        except InputError as error:
            # A neighbour that cannot be computed proves nothing.
            return str(error).rstrip(".") if k == 0 else ""
    return NOT_THE_FUNCTIONS


def _agrees(outputs: Outputs, direction: torch.Tensor, *, reverse: bool, unit: float) -> bool:
    """Return whether a direction's derivatives agree with central differences at some step, or cannot be compared."""
    alone = replace(outputs, columns=lambda _: direction, size=1, tangents=1)
    images = [] if reverse else [image[0, :, 0] for image in alone.images(slice(0, 1))]
    gradients = [_gradient(outputs, k) for k in range(len(outputs.widths))] if reverse else []
    if unit > COARSEST:
        return True
    open_ = set(range(len(outputs.widths)))
    for differences, noise in _differences(outputs, direction, unit):
        for k in tuple(open_):
            if reverse:
                weights, gradient = gradients[k]
                found, declared = (weights * differences[k]).sum(), (gradient * direction).sum().to(torch.float64)
                least = gradient.norm() * direction.norm() / direction.numel() ** 0.5
            else:
                found, declared, least = differences[k], images[k], torch.zeros(())
            error = (found - declared).norm()
            size = torch.stack([found.norm(), declared.norm(), least.to(found)]).max()
            slack = (SHARE if unit < COARSE else COARSE_SHARE) * size + noise[k]
            # `not ... >`: NaN is not rejected.
            if not bool(error > slack):
                open_.discard(k)
    return not open_


def _gradient(outputs: Outputs, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random weights (D,) of a layer's units, and the gradient of the weighted sum."""
    draws = torch.Generator().manual_seed(layer)
    weights = torch.randn(outputs.widths[layer], generator=draws, dtype=torch.float64).to(outputs.variable)
    return weights.to(torch.float64), vjp(outputs, layer, outputs.variable, weights.unsqueeze(0))


def _differences(
    outputs: Outputs, direction: torch.Tensor, unit: float
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Yield the central differences of every layer, (D,), and their rounding errors in norm, for some steps.

    NaN where the model fails or takes another path.
    """

    def values(step: float) -> list[torch.Tensor]:
        try:
            found = outputs.values(outputs.variable + step * direction)
        except InputError:
            found = [torch.full((1, width), torch.nan) for width in outputs.widths]
        return [value[0].to(torch.float64) for value in found]

    with RoundingNoise(0):
        other = values(0.0)
    still = values(0.0)
    # Rounding inside the model may be much larger than that of the values themselves.
    noise = [torch.maximum(unit * a.norm(), (a - b).norm()) for a, b in zip(still, other, strict=True)]
    for step in (unit ** (1 / 3), unit ** (1 / 2), unit ** (2 / 3)):
        pairs = zip(values(step), values(-step), strict=True)
        yield [(ahead - behind) / (2 * step) for ahead, behind in pairs], [SAFETY * one / step for one in noise]
