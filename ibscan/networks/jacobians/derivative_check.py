"""One row's derivative tried before it is relied on: whether a mode leads to it, and whether it is the function's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ibscan.errors import InputError
from ibscan.networks.jacobians.derivatives import Outputs, vjp
from ibscan.networks.jacobians.rounding import RoundingNoise

__all__ = ["differentiation_failure"]

NOT_THE_FUNCTIONS = (
    "the derivative its operations declare is not that of what they compute, by central differences on a row (a "
    "straight-through or reversed gradient, or a backward that leaves something out?)"
)
# Points of a row's neighbourhood are this far from it, in units of the row: a row itself may lie where there is no
# derivative (a kink at 0, a step at whole numbers).
APART = 1e-3
NEIGHBOURS = 2
# Differences may disagree by this share, and by the rounding of the values with a factor to spare. Of coarse numbers
# only large steps can be compared, which bends and kinks are within: there what is wrong has to be so by much.
SHARE, SAFETY = 1e-3, 20.0
COARSE, COARSE_SHARE = 1e-10, 0.3
# Coarser than this, rounding leaves nothing to compare.
COARSEST = 1e-5


def differentiation_failure(outputs: Outputs, *, reverse: bool, unit: float) -> str:
    """Return why a mode does not give the derivatives of some layers, the empty string where it does.

    A direction's image is held against central differences. Where the two disagree at a row they may still agree beside
    it; what torch declares is rejected only where it is wrong at every point and step tried.

    Args:
        outputs: Layers as a function of one row.
        reverse: From gradients.
        unit: Rounding of the coarsest numbers the values are made of, relative.
    """
    draws = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=draws, dtype=torch.float64).to(like)

    row = outputs.variable
    size = float(row.to(torch.float64).square().mean().sqrt())
    # Values that are not finite are told apart elsewhere.
    scale = size if 0.0 < size < torch.inf else 1.0
    for k in range(1 + NEIGHBOURS):
        beside = replace(outputs, variable=row if k == 0 else row + APART * scale * drawn(row))
        try:
            if _agrees(beside, scale * drawn(row), reverse=reverse, unit=unit):
                return ""
        except InputError as error:
            # A neighbour that cannot be computed decides nothing.
            return str(error).rstrip(".") if k == 0 else ""
    return NOT_THE_FUNCTIONS


def _agrees(outputs: Outputs, direction: torch.Tensor, *, reverse: bool, unit: float) -> bool:
    """Return whether the images of a direction are its central differences at some step, or that cannot be told."""
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
                found, told = (weights * differences[k]).sum(), (gradient * direction).sum().to(torch.float64)
                least = gradient.norm() * direction.norm() / direction.numel() ** 0.5
            else:
                found, told, least = differences[k], images[k], torch.zeros(())
            apart = (found - told).norm()
            size = torch.stack([found.norm(), told.norm(), least.to(found)]).max()
            slack = (SHARE if unit < COARSE else COARSE_SHARE) * size + noise[k]
            # Written so that what is not finite is not rejected.
            if not bool(apart > slack):
                open_.discard(k)
    return not open_


def _gradient(outputs: Outputs, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random weights of a layer's units, (D,), and the gradient of their sum."""
    draws = torch.Generator().manual_seed(layer)
    weights = torch.randn(outputs.widths[layer], generator=draws, dtype=torch.float64).to(outputs.variable)
    return weights.to(torch.float64), vjp(outputs, layer, outputs.variable, weights.unsqueeze(0))


def _differences(
    outputs: Outputs, direction: torch.Tensor, unit: float
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Yield the central differences of every layer, (D,), and what rounding makes of their norm, for some steps.

    What cannot be computed, as the model takes another way there, is NaN.
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
    # Rounding inside may be much more than that of the values themselves.
    noise = [torch.maximum(unit * a.norm(), (a - b).norm()) for a, b in zip(still, other, strict=True)]
    for step in (unit ** (1 / 3), unit ** (1 / 2), unit ** (2 / 3)):
        pairs = zip(values(step), values(-step), strict=True)
        yield [(ahead - behind) / (2 * step) for ahead, behind in pairs], [SAFETY * one / step for one in noise]
