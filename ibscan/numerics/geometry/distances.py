"""Histograms and means of pairwise Euclidean distances, in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import block_shape, cuts, mapped

__all__ = ["Budget", "DistanceHistogram", "distance_histogram", "in_range"]

EPSILON = 2.0**-52
# Distances enter the means with a certified relative error of this at most; nearer pairs are done from differences.
PRECISION = 1e-12
# Roundings beside those of d terms, in units of EPSILON: centring, scaling, roots, edges.
SPARE = 8
# Up to this width differences cost no more than a product and its doubtful pairs.
NARROW = 4
DIFFERENCES = "donot_use_mm_for_euclid_dist"
# Rows from which the search for the farthest pair starts, and steps it takes at most.
STARTS, STEPS = 64, 4
# Squared distances, distances and cells of a block.
_Memory = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """How pairs are counted; no count depends on it.

    Above the share `many` of doubtful pairs a whole block from differences is cheaper than its pairs one by one, for
    which so many numbers are `gathered` at a time. `block` is its rows and columns; None for what suits the device.
    """

    many: float = 1 / 8
    gathered: int = 2**22
    block: tuple[int, int] | None = None

    def shape(self, device: torch.device) -> tuple[int, int]:
        """Return rows and columns of a block."""
        return self.block or block_shape(device)


USUAL = Budget()


@dataclass(frozen=True)
class DistanceHistogram:
    """Unordered pairs of rows by distance, same label and other label, with the mean distance of each kind.

    `within` and `between` are int64 counts of shape (bins,); `edges` has shape (bins + 1,). A mean over no pair is
    NaN.
    """

    within: torch.Tensor
    between: torch.Tensor
    edges: torch.Tensor
    within_mean: float
    between_mean: float


def distance_histogram(
    points: torch.Tensor, labels: torch.Tensor, bins: int = 100, budget: Budget = USUAL
) -> DistanceHistogram:
    """Return the histogram over `bins` equal cells from 0 to the largest distance, the last closed above.

    The distance of two rows is that of their differences in float64, so that equal points are at 0 and lattices of
    exact numbers, which saturated layers are (-1 and 1), do not jitter across the edges. Most pairs need no
    differences: a float64 matrix product gives their distance with a proven error, and only pairs within that error of
    an edge, or too near for it, are done again. Equal rows of one class are counted once, with their number.

    Args:
        points: Shape (n, d), finite, float64.
        labels: Class of each row, shape (n,), int64.
        bins: Number of cells.
        budget: How pairs are counted.

    Returns:
        Counts that sum to n (n - 1) / 2 exactly, edges and means; infinite where distances leave the range of float64.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 5 (pairwise distances within and between classes); the error of
        a product: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    number = len(points)
    points, exponent = in_range(points)
    points, labels, weights = _merged(points.add_(0.0), labels)  # which turns -0.0 into 0.0
    sizes = torch.unique_consecutive(labels, return_counts=True)[1].tolist()
    strips = _strips(sizes, budget.shape(points.device)[0])
    largest, found = 0.0, _far(points)
    sums: dict[bool, _Sum] = {}
    spare: list[_Memory] = []
    while found > largest or not sums:
        largest = found
        edges = torch.linspace(0.0, largest, bins + 1, dtype=points.dtype, device=points.device)
        kinds = (_Pairs.of(points, weights, sizes, edges, budget, same) for same in (True, False))
        sums = {pairs.same: _counted(pairs, strips, spare) for pairs in kinds}  # one kind in memory at a time
        # The search finds the farthest pair nearly always. Where it did not, all pairs have been seen by now.
        found = max(part.largest for part in sums.values())
    # Copies of a row are at 0 from one another.
    sums[True].count[0] += 0 if weights is None else (weights * (weights - 1) / 2).sum().to(torch.int64)
    assert int(sums[True].count.sum() + sums[False].count.sum()) == number * (number - 1) // 2
    # In two steps: the power of two may be out of range where distances are not. Those beyond it are infinite.
    steps = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    within, between = (sums[same].mean() * steps[0] * steps[1] for same in (True, False))
    return DistanceHistogram(sums[True].count, sums[False].count, edges * steps[0] * steps[1], within, between)


def in_range(points: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return points / 2^exponent, which rounds nothing: squares of their differences neither overflow nor vanish.

    Units that are the same at every row, in which nothing differs, are made zero: they may be of any size.

    Args:
        points: Shape (n, d), finite, float64.
    """
    highest, lowest = points.amax(0), points.amin(0)
    # Of halves: the difference itself may be beyond the largest number.
    exponent = max(-1000, math.frexp(float((highest / 2.0 - lowest / 2.0).amax()))[1] + 1)
    # A unit that differs at all is less than 2^54 times its differences.
    return torch.where(highest > lowest, points, 0.0) * 2.0**-exponent, exponent


@dataclass(frozen=True)
class _Strip:
    """A block of rows of one class, where that class ends, and the columns of pairs within and between."""

    rows: slice
    within: slice
    between: slice

    def columns(self, *, same: bool) -> slice:
        return self.within if same else self.between


@dataclass(frozen=True)
class _Pairs:
    """What the pairs within classes (`same`), or those between them, are counted from.

    `right` has rows (a, |a|^2, 1) of centred points a; `weights` numbers equal rows, None where no two are equal.
    """

    points: torch.Tensor
    right: torch.Tensor
    weights: torch.Tensor | None
    edges: torch.Tensor
    top: float  # the last edge
    same: bool
    budget: Budget

    @staticmethod
    def of(
        points: torch.Tensor,
        repeats: torch.Tensor | None,
        sizes: list[int],
        edges: torch.Tensor,
        budget: Budget,
        same: bool,
    ) -> _Pairs:
        """Centre rows sorted by class, of which each has so many, and add what products with them need."""
        # About the class's own mean within it: the error of a product is relative to the norms of its rows.
        right = points.new_ones(len(points), points.shape[1] + 2)
        start = 0
        for size in sizes if same else [len(points)]:
            part, place = points[start : start + size], right[start : start + size]
            centred = torch.sub(part, part.mean(0), out=place[:, :-2])
            torch.linalg.vecdot(centred, centred, out=place[:, -2])
            start += size
        return _Pairs(points, right, repeats, edges, float(edges[-1]), same, budget)

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    @property
    def unit(self) -> float:
        """Cells of a distance of 1; 0 where all distances are 0."""
        return self.bins / self.top if self.top else 0.0

    def straddles(self, rows: slice, columns: slice) -> bool:
        """Return whether the diagonal runs through a block."""
        return self.same and columns.start == rows.start


@dataclass(frozen=True)
class _Sum:
    """Counts by cell and the sum of the distances of some pairs; the largest distance where it is beyond the edges."""

    count: torch.Tensor
    length: float
    largest: float

    def mean(self) -> float:
        pairs = int(self.count.sum())
        return self.length / pairs if pairs else float("nan")


def _merged(points: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return rows sorted by label, equal ones of one label once, with their numbers; None where no two are equal."""
    # Equal rows have equal sums of their bits times odd numbers; integers, so in any order. Unequal sums are unequal
    # rows: mostly there is no need to sort whole rows.
    odd = torch.arange(1, points.shape[1] + 1, device=points.device) * 0x9E3779B97F4A7C1 % 2**61 * 2 + 1
    bits = [points[rows].view(torch.int64) for rows in cuts(0, len(points), block_shape(points.device)[0])]
    if len(torch.unique(torch.cat([((part ^ part >> 32) * odd).sum(1) for part in bits]))) == len(points):
        order = torch.argsort(labels, stable=True)
        return points[order], labels[order], None
    rows, count = torch.unique(torch.cat((labels.unsqueeze(1).to(points.dtype), points), 1), dim=0, return_counts=True)
    return rows[:, 1:].contiguous(), rows[:, 0].to(labels.dtype), count.to(points.dtype)


def _strips(sizes: Sequence[int], height: int) -> list[_Strip]:
    """Return strips that cover every unordered pair of sorted rows once."""
    found, start, number = [], 0, sum(sizes)
    for size in sizes:
        stop = start + size
        for rows in cuts(start, stop, height):
            found.append(_Strip(rows, slice(rows.start, stop), slice(stop, number)))
        start = stop
    return found


def _far(points: torch.Tensor) -> float:
    """Return the distance of two rows that are far apart: from rows far from the middle to the row farthest from each.

    One such step already reaches half the largest distance.
    """
    centred = points - points.mean(0)
    squared = centred.square().sum(1)
    rows = squared.topk(min(STARTS, len(points)))[1]
    found = 0.0
    for _ in range(STEPS):
        far = torch.addmm(squared, centred[rows], centred.mT, alpha=-2.0).argmax(1)
        distance = float(_apart(points[rows], points[far]).max())
        if distance <= found:
            break
        found, rows = distance, torch.unique(far)
    return found


def _counted(pairs: _Pairs, strips: Sequence[_Strip], spare: list[_Memory]) -> _Sum:
    """Count all pairs within classes, or all between them."""
    pieces = [(strip.rows, strip.columns(same=pairs.same)) for strip in strips]
    wanted = [piece for piece in pieces if piece[1].start < piece[1].stop]
    found = mapped(lambda piece: _strip_sum(pairs, *piece, spare), wanted, pairs.points.device)
    count = torch.zeros(pairs.bins, dtype=torch.int64, device=pairs.points.device)
    for strip in found:
        count += strip.count
    return _Sum(count, math.fsum(strip.length for strip in found), max((strip.largest for strip in found), default=0.0))


def _strip_sum(pairs: _Pairs, rows: slice, columns: slice, spare: list[_Memory]) -> _Sum:
    """Count the pairs of a strip, block by block."""
    points, weights, bins = pairs.points, pairs.weights, pairs.bins
    left, error = _left_factor(pairs, rows, columns)
    # Of two numbers whose squares differ by `error`, one being 1 or more, the difference is no more than that.
    margin = error + SPARE * EPSILON * bins
    memory = _memory(points, spare, pairs.budget.shape(points.device))
    count = torch.zeros(bins, dtype=torch.int64, device=points.device)
    lengths, largest = [], 0.0
    for part in cuts(columns.start, columns.stop, pairs.budget.shape(points.device)[1]):
        shape = rows.stop - rows.start, part.stop - part.start
        squared, distance, cell = (place[: shape[0] * shape[1]].view(shape) for place in memory)
        share = None if weights is None else weights[rows].unsqueeze(1) * weights[part]
        if pairs.straddles(rows, part):  # below the diagonal pairs come a second time, and on it are none
            share = (torch.ones_like(squared) if share is None else share).triu(1)
        _fill_distances(pairs, rows, part, left, error, (squared, distance, cell))
        lengths.append(float(distance.sum() if share is None else torch.dot(distance.flatten(), share.flatten())))
        _fill_cells(pairs, rows, part, margin, (squared, distance, cell))
        found = torch.bincount(cell.flatten(), None if share is None else share.flatten(), minlength=bins + 1)
        count += found[:bins].to(torch.int64)
        if len(found) > bins + 1 or float(found[bins]):
            index = (distance >= distance.amax() - 2.0 * margin).nonzero()
            largest = max(largest, float(_differences(pairs, rows, part, index).max()))
    spare.append(memory)
    return _Sum(count, math.fsum(lengths) / pairs.unit if pairs.unit else 0.0, largest)


def _left_factor(pairs: _Pairs, rows: slice, columns: slice) -> tuple[torch.Tensor, float]:
    """Return what times `right` is the squared distances in cells, and the error of that product."""
    width, own = pairs.points.shape[1], pairs.right[rows]
    left = own[:, [*range(width), width + 1, width]].mul_(pairs.unit**2)
    left[:, :width] *= -2.0
    # |fl(a.b) - a.b| <= d u |a||b| with any order of sums, u half of EPSILON: so much for the product, for the squares
    # that are part of it, and for those of the differences, all d of them against (|a| + |b|)^2.
    norms = float(own[:, width].amax().sqrt()) + float(pairs.right[columns, width].amax().sqrt())
    return left, (1.5 * width + SPARE) * EPSILON * (pairs.unit * norms) ** 2


def _memory(points: torch.Tensor, spare: list[_Memory], shape: tuple[int, int]) -> _Memory:
    """Return room for one block: what another strip left, since fresh memory costs as much as what is done in it."""
    try:
        return spare.pop()
    except IndexError:
        most = min(shape[0], len(points)) * min(shape[1], len(points))
        return (
            *torch.empty(2, most, dtype=points.dtype, device=points.device),
            torch.empty(most, dtype=torch.int32, device=points.device),
        )


def _fill_distances(pairs: _Pairs, rows: slice, part: slice, left: torch.Tensor, error: float, to: _Memory) -> None:
    """Write the distances of a block, in cells; pairs of a row with itself are put away from all edges."""
    points, straddles, away = pairs.points, pairs.straddles(rows, part), pairs.bins - 0.5
    squared, distance, _ = to
    if points.shape[1] <= NARROW:
        torch.mul(torch.cdist(points[rows], points[part], compute_mode=DIFFERENCES), pairs.unit, out=distance)
        if straddles:
            distance.diagonal().fill_(away)
        return
    torch.mm(left, pairs.right[part].mT, out=squared)
    if straddles:
        squared.diagonal().fill_(away**2)
    # Product and reciprocal root: half the time of a root. NaN where rounding left nothing: done again.
    torch.rsqrt(squared, out=distance).mul_(squared)
    again = error / (2.0 * PRECISION)
    if float(squared.amin()) <= again:
        index = (squared <= again).nonzero()
        distance[index[:, 0], index[:, 1]] = pairs.unit * _differences(pairs, rows, part, index)


def _fill_cells(pairs: _Pairs, rows: slice, part: slice, margin: float, to: _Memory) -> None:
    """Write the cells of a block's distances; what is within `margin` of an edge is done from differences."""
    squared, distance, cell = to
    lowest, highest = torch.frac(distance, out=squared).aminmax()
    cell.copy_(distance)
    if float(lowest) <= margin or float(highest) >= 1.0 - margin:
        near = (distance - distance.round()).abs_() <= margin
        index = near.logical_and_(distance >= 1.0 - margin).nonzero()
        exact = _differences(pairs, rows, part, index)
        above = torch.bucketize(exact, pairs.edges[1:], right=True, out_int32=True).clamp_(max=pairs.bins - 1)
        cell[index[:, 0], index[:, 1]] = torch.where(exact > pairs.top, pairs.bins, above).to(cell.dtype)


def _differences(pairs: _Pairs, rows: slice, columns: slice, index: torch.Tensor) -> torch.Tensor:
    """Return the distances of the pairs `index`, shape (m, 2), of a block: roots of sums of squared differences."""
    a, b = pairs.points[rows], pairs.points[columns]
    if len(index) > pairs.budget.many * len(a) * len(b):
        return torch.cdist(a, b, compute_mode=DIFFERENCES)[index[:, 0], index[:, 1]]
    found = a.new_empty(len(index))
    for part in cuts(0, len(index), pairs.budget.gathered // a.shape[1]):
        found[part] = _apart(a[index[part, 0]], b[index[part, 1]])
    return found


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the distance of every row of `a` from that of `b`: to the last bit as a block of them would be."""
    return torch.cdist(a.unsqueeze(1), b.unsqueeze(1), compute_mode=DIFFERENCES)[:, 0, 0]
