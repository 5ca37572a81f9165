"""Information of a layer of one unit with the noise of one other unit before it, by quadrature over both noises.

p(t|x) = int N(z; 0, 1) N(t; S(z), 1) dz in units of the layer's noise. The z-axis of every input is halved where halves
and wholes disagree: steep layers and kinks get the panels they need, and nothing has to be known of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ibscan.numerics.channels.paths import Passes
from ibscan.numerics.tiling import cuts, mapped

Array = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["LineInformation", "Segments", "line_of_passes"]

# The z-axis: panels to begin with, of Gauss-Lobatto points: a step near an end or the middle of a panel, where it has a
# point, cannot hide from both halves and whole. Beyond REACH lies 1e-15 of a Gaussian.
PANELS, POINTS, REACH = 16, 9, 8.0
# A panel is accepted if whole and halves agree on E exp(i w S) at these w, each weighted as the layer's own noise damps
# it, to this share of the panel's weight. Values of a float32 network cannot agree as closely: then the next is tried.
FREQUENCIES, ACCURACIES = (1.0, 2.0, 4.0), (1e-7, 1e-5)
# Farthest that S may move in a panel, in noises: beyond it, halves could agree by chance.
MOST_MOVE = 2.0
# Weight below which a panel cannot matter: this, or this share of the accuracy per unit of the z-axis.
LEAST_WEIGHT, LEAST_SHARE = 1e-12, 1e-3
# The t-axis: cells per noise. The trapezoidal rule converges geometrically: at 8 only 1e-12 is left.
CELLS_PER_NOISE = 8
# Every S is spread to the cells near it with a deviation of NARROW noises, then all cells together with the rest of the
# noise: sampled Gaussians add up to 1e-12 if they are no narrower. Cells that each of the two reaches.
NARROW, SPREAD, BLUR = 0.15, 9, 64
# Cells blurred by one row of a matrix product.
BLOCK = 128
# Largest |S|: beyond it, places are not accurate.
LARGEST = 1e7
# Inputs of a tile, and the first few, which show whether an accuracy can be had.
TOGETHER, FEW = 256, 16
# What may be spent: points on the z-axes of all inputs and of one tile, and cells on the t-axes.
MOST_POINTS, TILE_POINTS, MOST_CELLS = 2**25, 2**22, 2**24


@dataclass(frozen=True)
class LineInformation:
    """I(X;T) and I(T;Y) in nats, and the variance of the layer before its noise, in units of the noise's.

    `change` is the largest change of a value when all steps of the z-axis are halved. The values are those of the
    halves: their own error is a small part of it.
    """

    xt: float
    ty: float
    variance: float
    change: float


@dataclass(frozen=True)
class Segments:
    """The integers that any of some ranges covers, as disjoint segments, numbered through from 0."""

    first: torch.Tensor  # (s,), ascending
    length: torch.Tensor  # (s,)
    start: torch.Tensor  # number of the first integer of each segment, (s,)

    @staticmethod
    def covering(first: torch.Tensor, last: torch.Tensor) -> Segments:
        """Join ranges from `first` to `last` inclusive, (n,), where they overlap or touch."""
        order = first.argsort()
        first, reached = first[order], last[order].cummax(0).values
        begins = torch.ones_like(first, dtype=torch.bool)
        begins[1:] = first[1:] > reached[:-1] + 1
        ends = begins.roll(-1)
        first = first[begins]
        length = reached[ends] + 1 - first
        return Segments(first, length, length.cumsum(0) - length)

    @property
    def size(self) -> int:
        """How many integers are covered."""
        return int(self.length.sum())

    def integers(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the covered integers of some numbers."""
        segment = torch.searchsorted(self.start, numbers, right=True) - 1
        return numbers - self.start[segment] + self.first[segment]

    def numbers(self, integers: torch.Tensor) -> torch.Tensor:
        """Return the numbers of covered integers."""
        segment = torch.searchsorted(self.first, integers, right=True) - 1
        return integers - self.first[segment] + self.start[segment]


def line_of_passes(passes: Passes, joint: torch.Tensor, most: float) -> LineInformation | None:
    """Return the information of a layer of one unit whose passes have one normal each.

    Args:
        passes: With `units` and `width` 1.
        joint: Joint weights of inputs and classes, (n, classes), which sum to 1.
        most: Largest allowed change of the values at half the step on the z-axis, nats.

    Returns:
        Values right to about 1e-8 where the network is smooth between kinks and runs in float64; None where a value is
        not finite, or the change or the cost would be too large.

    Raises:
        MemoryError, RuntimeError: From the network.
    """
    for accuracy in ACCURACIES:
        laws = _laws(passes, joint, accuracy)
        found = None if laws is None else _information(laws, joint)
        if found is not None and found.change <= most:
            return found
    return None


# The z-axis --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Points:
    """Points of panels: whose (p,), with S and its weight, (p, k)."""

    owner: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor

    def only(self, chosen: torch.Tensor) -> _Points:
        return _Points(self.owner[chosen], self.places[chosen], self.weights[chosen])

    @staticmethod
    def joined(parts: list[_Points]) -> _Points:
        """Return all points in one row, (P,) each."""
        owner = torch.cat([one.owner.repeat_interleave(one.places.shape[1]) for one in parts])
        places, weights = (torch.cat([getattr(one, name).flatten() for one in parts]) for name in ("places", "weights"))
        return _Points(owner, places, weights)


def _points(passes: Passes, inputs: torch.Tensor, accuracy: float, most: int) -> tuple[_Points, _Points] | None:
    """Return points of inputs (q,) at the accepted panels, in halves and whole; None if not finite or too many."""
    nodes, shares = (torch.from_numpy(array).to(inputs.device) for array in _lobatto(POINTS))

    def sampled(owner: torch.Tensor, left: torch.Tensor, width: float) -> _Points:
        z = left.unsqueeze(1) + width * (nodes + 1) / 2
        weights = torch.exp(-0.5 * z.square()) * (shares * width / (2 * math.sqrt(2 * math.pi)))
        return _Points(owner, passes.values(inputs[owner], z.unsqueeze(2)).squeeze(2), weights)

    width, halves, wholes = 2 * REACH / PANELS, [], []
    owner = torch.arange(len(inputs), device=inputs.device).repeat_interleave(PANELS)
    left = (torch.arange(PANELS, device=inputs.device, dtype=torch.float64) * width - REACH).repeat(len(inputs))
    whole = sampled(owner, left, width)
    seen = whole.places.numel()
    while len(left):
        seen += 2 * whole.places.numel()
        if seen > most:
            return None
        width /= 2
        left = torch.stack((left, left + width), 1).flatten()
        half = sampled(whole.owner.repeat_interleave(2), left, width)
        if not bool((half.places.abs() <= LARGEST).all()):
            return None
        accepted = _accepted(whole, half, accuracy, width)
        both = accepted.repeat_interleave(2)
        halves.append(half.only(both))
        wholes.append(whole.only(accepted))
        whole, left = half.only(~both), left[~both]
    return _Points.joined(halves), _Points.joined(wholes)


def _lobatto(count: int) -> tuple[Array, Array]:
    """Return nodes in [-1, 1], both ends among them, and weights of the Gauss-Lobatto rule."""
    polynomial = np.polynomial.Legendre.basis(count - 1)
    nodes = np.concatenate(([-1.0], polynomial.deriv().roots(), [1.0]))
    return nodes, 2 / (count * (count - 1) * polynomial(nodes) ** 2)


def _accepted(whole: _Points, half: _Points, accuracy: float, width: float) -> torch.Tensor:
    """Return which panels (p,) are fine enough, from whole ones (p, k) and halves (2 p, k) of a width."""
    middle = whole.places.mean(1, keepdim=True)
    places, weights = half.places.view(len(middle), -1) - middle, half.weights.view(len(middle), -1)
    weight, error = weights.sum(1), torch.zeros_like(middle[:, 0])
    for frequency in FREQUENCIES:
        parts = [
            (half_weights * turn(frequency * at)).sum(1) - (whole.weights * turn(frequency * whole_at)).sum(1)
            for turn in (torch.cos, torch.sin)
            for half_weights, at, whole_at in ((weights, places, whole.places - middle),)
        ]
        error += math.exp(-0.5 * frequency**2) * torch.hypot(*parts)
    near = places.amax(1) - places.amin(1) <= MOST_MOVE
    share = 2 * width / (2 * REACH)
    little = weight <= max(LEAST_WEIGHT, LEAST_SHARE * accuracy * share)
    return (near & (error <= accuracy * (weight + share))) | little


# The t-axis --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Laws:
    """p(t|x) of q inputs on cells of their own, one input after the other: by halves and by whole panels, (2, cells).

    Cells of an input are `first` to `first + length - 1`, (q,); t = 0 is in cell 0. `mean`, `variance` (q,) are of S.
    """

    first: torch.Tensor
    length: torch.Tensor
    density: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def last(self) -> torch.Tensor:
        """The last cell of each input, (q,)."""
        return self.first + self.length - 1


def _laws(passes: Passes, joint: torch.Tensor, accuracy: float) -> list[_Laws] | None:
    """Return the laws of all inputs, tile by tile; None if not finite or too expensive."""
    inputs = torch.arange(len(joint), device=joint.device)
    tiles = cuts(0, len(joint), TOGETHER)

    def law(part: slice) -> _Laws | None:
        share = (part.stop - part.start) / len(joint)
        found = _points(passes, inputs[part], accuracy, int(min(TILE_POINTS, MOST_POINTS * share)))
        return None if found is None else _law(found, part.stop - part.start, int(MOST_CELLS * share))

    if len(tiles) > 1 and law(slice(0, FEW)) is None:
        return None
    made = [one for one in mapped(law, tiles, joint.device) if one is not None]
    return made if len(made) == len(tiles) else None


def _law(points: tuple[_Points, _Points], inputs: int, most: int) -> _Laws | None:
    """Return the laws of the inputs that points belong to; None if they have more than so many cells."""
    halves = points[0]
    lowest = halves.places.new_full((inputs,), math.inf).scatter_reduce_(0, halves.owner, halves.places, "amin")
    highest = halves.places.new_full((inputs,), -math.inf).scatter_reduce_(0, halves.owner, halves.places, "amax")
    # A whole panel may have a point beyond all those of its halves.
    reach = SPREAD + BLUR + math.ceil(MOST_MOVE * CELLS_PER_NOISE)
    first = (lowest * CELLS_PER_NOISE).floor().long() - reach
    length = (highest * CELLS_PER_NOISE).ceil().long() + reach + 1 - first
    start, total = length.cumsum(0) - length, int(length.sum())
    if total > most:
        return None
    spread = torch.stack([_spread(one, start - first, total) for one in points])
    mass = torch.zeros_like(lowest).index_add_(0, halves.owner, halves.weights)
    mean = torch.zeros_like(mass).index_add_(0, halves.owner, halves.weights * halves.places) / mass
    square = (halves.places - mean[halves.owner]).square()
    variance = torch.zeros_like(mass).index_add_(0, halves.owner, halves.weights * square) / mass
    return _Laws(first, length, _blurred(spread), mean, variance)


def _spread(points: _Points, shift: torch.Tensor, total: int) -> torch.Tensor:
    """Return the points' weights, each spread over the cells near it, (total,); `shift` (q,) leads to an input's."""
    place = points.places * CELLS_PER_NOISE
    cell = place.round()
    rest, at = place - cell, cell.long() + shift[points.owner]
    deviation = NARROW * CELLS_PER_NOISE
    found = torch.zeros(total, dtype=place.dtype, device=place.device)
    for k in range(-SPREAD, SPREAD + 1):
        kernel = torch.exp(-0.5 * ((k - rest) / deviation).square()).mul_(points.weights)
        # Points of whole panels of no weight may be anywhere.
        found.index_add_(0, (at + k).clamp_(0, total - 1), kernel)
    return found / (deviation * math.sqrt(2 * math.pi))


def _blurred(spread: torch.Tensor) -> torch.Tensor:
    """Return densities (2, cells) of spread weights: what is left of the noise is added to them."""
    cells, deviation = spread.shape[1], math.sqrt(1 - NARROW**2) * CELLS_PER_NOISE
    blocks = -(-cells // BLOCK)
    padded = torch.nn.functional.pad(spread, (BLUR, blocks * BLOCK - cells + BLUR))
    rows = torch.arange(BLOCK + 2 * BLUR, device=spread.device, dtype=spread.dtype)
    away = rows.unsqueeze(1) - BLUR - rows[:BLOCK]
    kernel = torch.where(away.abs() <= BLUR, torch.exp(-0.5 * (away / deviation).square()), 0.0)
    found = padded.unfold(1, BLOCK + 2 * BLUR, BLOCK) @ (
        kernel * CELLS_PER_NOISE / (deviation * math.sqrt(2 * math.pi))
    )
    return found.reshape(2, -1)[:, :cells]


# Information -------------------------------------------------------------------------------------------------------


def _information(laws: list[_Laws], joint: torch.Tensor) -> LineInformation | None:
    """Return the information of inputs with these laws and joint weights; None if it takes too many numbers."""
    first, last, mean, variance = (
        torch.cat([getattr(one, name) for one in laws]) for name in ("first", "last", "mean", "variance")
    )
    segments, classes = Segments.covering(first, last), joint.shape[1]
    paired = int(((joint > 0).sum(1) * (last - first + 1)).sum())
    if max(segments.size * classes, paired) > MOST_CELLS:
        return None
    begin = segments.numbers(first)
    parts = [_Part.of(*one) for one in zip(laws, begin.split(_sizes(laws)), joint.split(_sizes(laws)), strict=True)]
    together = joint.new_zeros(2, segments.size * classes)
    for part in parts:
        together.index_add_(1, part.cell * classes + part.label, part.density * part.weight)
    together = together.view(2, segments.size, classes)
    marginal, prior, share = together.sum(2), joint.sum(0), joint.sum(1)
    logs = torch.where(marginal > 0, marginal, 1.0).log()
    xt = joint.new_zeros(2)
    for part in parts:
        terms = torch.xlogy(part.density, part.density) - part.density * logs[:, part.cell]
        xt += (terms * part.weight).sum(1)
    # Classes that no input has add nothing.
    rest = torch.xlogy(together, torch.where(prior > 0, prior, 1.0))
    ty = (torch.xlogy(together, together) - together * logs.unsqueeze(2) - rest).sum((1, 2))
    (xt_halves, xt_whole), (ty_halves, ty_whole) = ((kind / CELLS_PER_NOISE).tolist() for kind in (xt, ty))
    spread = float(share @ (variance + (mean - share @ mean).square()))
    return LineInformation(xt_halves, ty_halves, spread, max(abs(xt_halves - xt_whole), abs(ty_halves - ty_whole)))


def _sizes(laws: list[_Laws]) -> list[int]:
    return [len(one.first) for one in laws]


@dataclass(frozen=True)
class _Part:
    """Densities (2, c) of some inputs, once for each of their classes; cells of the common axis, class, weight (c,)."""

    density: torch.Tensor
    cell: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor

    @staticmethod
    def of(law: _Laws, begin: torch.Tensor, joint: torch.Tensor) -> _Part:
        """Lay out laws whose cells begin at `begin` on the common axis."""
        owner, label = joint.nonzero(as_tuple=True)
        length = law.length[owner]
        own = _ranges(law.length.cumsum(0)[owner] - length, length)
        weight = joint[owner, label]
        return _Part(
            law.density[:, own],
            _ranges(begin[owner], length),
            label.repeat_interleave(length),
            weight.repeat_interleave(length),
        )


def _ranges(first: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return the ranges of so many integers from each first one, joined."""
    before = (first - (length.cumsum(0) - length)).repeat_interleave(length)
    return before + torch.arange(len(before), device=first.device)
