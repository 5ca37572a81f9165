"""Histograms and means of pairwise Euclidean distances, in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ibscan.numerics.equal_rows import all_differ
from ibscan.numerics.tiling import block_shape, cuts, mapped

__all__ = ["Budget", "DistanceHistogram", "distance_histogram", "in_range"]

EPSILON = 2.0**-52
# Proven relative error of distances in the means; nearer pairs are computed from differences.
PRECISION = 1e-12
# Roundings beside those of D terms, in units of EPSILON: centring, scaling, roots, edges.
SPARE = 8
# Up to this width differences cost no more than a matrix product.
NARROW = 4
DIFFERENCES = "donot_use_mm_for_euclid_dist"
# The search for the farthest pair starts from so many rows and takes at most so many steps.
STARTS, STEPS = 64, 4
# Squared distances, distances and cells of a block.
_Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """How pairs are counted; no count depends on it.

    If more than the share `many` of a block's pairs need differences, the whole block is computed from them. Otherwise
    `gathered` numbers are computed at a time. `block` is its rows and columns; None for what suits the device.
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
    """Counts of unordered pairs of rows by distance, `within` classes and `between` them, with the mean distances.

    Counts are int64 of shape (B,), `edges` has shape (B + 1,). A mean over no pair is NaN.
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

    Pairs are counted as if every distance were computed from differences in float64: equal points are at 0, and exact
    values of saturated layers (-1 and 1) do not jitter across edges. For most pairs a matrix product suffices, whose
    error is bounded: only pairs within that error of an edge, or too near for it, are computed again from differences.
    Equal rows of one class are merged into one with a weight.

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
    points, labels, weights = _sorted_distinct(points.add_(0.0), labels)  # which turns -0.0 into 0.0
    sizes = torch.unique_consecutive(labels, return_counts=True)[1].tolist()
    strips = _strips(sizes, budget.shape(points.device)[0])
    largest, found = 0.0, _largest_found(points)
    sums: dict[bool, _Sum] = {}
    spare: list[_Buffers] = []
    # The search nearly always finds the farthest pair. If not, counting has met it: count again up to there.
    while found > largest or not sums:
        largest = found
        edges = torch.linspace(0.0, largest, bins + 1, dtype=points.dtype, device=points.device)
        kinds = (_Pairs.of(points, weights, sizes, edges, budget, same) for same in (True, False))
        sums = {pairs.same: _count_pairs(pairs, strips, spare) for pairs in kinds}  # one kind in buffers at a time
        found = max(part.largest for part in sums.values())
    # Copies of a row are at 0 from one another.
    sums[True].count[0] += 0 if weights is None else (weights * (weights - 1) / 2).sum().to(torch.int64)
    assert int(sums[True].count.sum() + sums[False].count.sum()) == number * (number - 1) // 2
    # Scale back in two steps: the power of two may be out of range where distances are not.
    steps = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    within, between = (sums[same].mean() * steps[0] * steps[1] for same in (True, False))
    return DistanceHistogram(sums[True].count, sums[False].count, edges * steps[0] * steps[1], within, between)


def in_range(points: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return points / 2^exponent and the exponent, so that squares of differences neither overflow nor underflow.

    The division is exact. Units that are constant over the rows are set to zero.

    Args:
        points: Shape (n, d), finite, float64.
    """
    highest, lowest = points.amax(0), points.amin(0)
    # Halve first: the difference itself may overflow.
    exponent = max(-1000, math.frexp(float((highest / 2.0 - lowest / 2.0).amax()))[1] + 1)
    # A unit that differs at all is less than 2^54 times its differences.
    return torch.where(highest > lowest, points, 0.0) * 2.0**-exponent, exponent


@dataclass(frozen=True)
class _Strip:
    """A block of rows of one class, with the columns of their pairs within the class and with later classes."""

    rows: slice
    within: slice
    between: slice

    def columns(self, *, same: bool) -> slice:
        return self.within if same else self.between


@dataclass(frozen=True)
class _Pairs:
    """The rows whose pairs within classes (`same`), or between them, are counted.

    `right` has rows (a, |a|^2, 1) of centred points a; `weights` are multiplicities of rows, None if all are distinct.
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
        """Centre rows sorted by class, and prepare their products."""
        # Within classes about the class mean, as the error of a product is relative to the norms of its rows.
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
        """Cells per unit of distance; 0 if all distances are 0."""
        return self.bins / self.top if self.top else 0.0

    def straddles(self, rows: slice, columns: slice) -> bool:
        """Return whether the diagonal runs through a block."""
        return self.same and columns.start == rows.start


@dataclass(frozen=True)
class _Sum:
    """Counts by cell and summed distances of some pairs; `largest` is the largest distance beyond the last edge."""

    count: torch.Tensor
    length: float
    largest: float

    def mean(self) -> float:
        pairs = int(self.count.sum())
        return self.length / pairs if pairs else float("nan")


def _sorted_distinct(
    points: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return distinct rows sorted by label, their labels and multiplicities (None if all rows are distinct)."""
    if all_differ(points):
        order = torch.argsort(labels, stable=True)
        return points[order], labels[order], None
    rows, count = torch.unique(torch.cat((labels.unsqueeze(1).to(points.dtype), points), 1), dim=0, return_counts=True)
    return rows[:, 1:].contiguous(), rows[:, 0].to(labels.dtype), count.to(points.dtype)


def _strips(sizes: Sequence[int], height: int) -> list[_Strip]:
    """Return strips that together contain every unordered pair of sorted rows once."""
    found, start, number = [], 0, sum(sizes)
    for size in sizes:
        stop = start + size
        for rows in cuts(start, stop, height):
            found.append(_Strip(rows, slice(rows.start, stop), slice(stop, number)))
        start = stop
    return found


def _largest_found(points: torch.Tensor) -> float:
    """Search for the farthest pair and return its distance: from rows far from the mean to the row farthest from each.

    One step already reaches half the largest distance.
    """
    centred = points - points.mean(0)
    squared = centred.square().sum(1)
    rows = squared.topk(min(STARTS, len(points)))[1]
    found = 0.0
    for _ in range(STEPS):
        far = torch.addmm(squared, centred[rows], centred.mT, alpha=-2.0).argmax(1)
        distance = float(_rowwise_distances(points[rows], points[far]).max())
        if distance <= found:
            break
        found, rows = distance, torch.unique(far)
    return found


def _count_pairs(pairs: _Pairs, strips: Sequence[_Strip], spare: list[_Buffers]) -> _Sum:
    """Count the pairs of all strips."""
    pieces = [(strip.rows, strip.columns(same=pairs.same)) for strip in strips]
    wanted = [piece for piece in pieces if piece[1].start < piece[1].stop]
    found = mapped(lambda piece: _count_strip(pairs, *piece, spare), wanted, pairs.points.device)
    count = torch.zeros(pairs.bins, dtype=torch.int64, device=pairs.points.device)
    for strip in found:
        count += strip.count
    return _Sum(count, math.fsum(strip.length for strip in found), max((strip.largest for strip in found), default=0.0))


def _count_strip(pairs: _Pairs, rows: slice, columns: slice, spare: list[_Buffers]) -> _Sum:
    """Count the pairs of a strip, block by block."""
    points, weights, bins = pairs.points, pairs.weights, pairs.bins
    left, error = _left_factor(pairs, rows, columns)
    # Numbers whose squares differ by `error` differ by no more than that if one is at least 1.
    margin = error + SPARE * EPSILON * bins
    buffers = _buffers(points, spare, pairs.budget.shape(points.device))
    count = torch.zeros(bins, dtype=torch.int64, device=points.device)
    lengths, largest = [], 0.0
    for part in cuts(columns.start, columns.stop, pairs.budget.shape(points.device)[1]):
        shape = rows.stop - rows.start, part.stop - part.start
        squared, distance, cell = (place[: shape[0] * shape[1]].view(shape) for place in buffers)
        weight = None if weights is None else weights[rows].unsqueeze(1) * weights[part]
        if pairs.straddles(rows, part):  # count pairs above the diagonal only
            weight = (torch.ones_like(squared) if weight is None else weight).triu(1)
        _fill_distances(pairs, rows, part, left, error, (squared, distance, cell))
        lengths.append(float(distance.sum() if weight is None else torch.dot(distance.flatten(), weight.flatten())))
        _fill_cells(pairs, rows, part, margin, (squared, distance, cell))
        found = torch.bincount(cell.flatten(), None if weight is None else weight.flatten(), minlength=bins + 1)
        count += found[:bins].to(torch.int64)
        if len(found) > bins + 1 or float(found[bins]):
            index = (distance >= distance.amax() - 2.0 * margin).nonzero()
            largest = max(largest, float(_differences(pairs, rows, part, index).max()))
    spare.append(buffers)
    return _Sum(count, math.fsum(lengths) / pairs.unit if pairs.unit else 0.0, largest)


def _left_factor(pairs: _Pairs, rows: slice, columns: slice) -> tuple[torch.Tensor, float]:
    """Return the factor whose product with `right` is the squared distances in cells, and a bound on its error."""
    width, own = pairs.points.shape[1], pairs.right[rows]
    left = own[:, [*range(width), width + 1, width]].mul_(pairs.unit**2)
    left[:, :width] *= -2.0
    # |fl(a.b) - a.b| <= D u |a||b| for any order of sums, u half of EPSILON; the same for the squares in the product,
    # and for the squared differences it is compared with, relative to (|a| + |b|)^2.
    norms = float(own[:, width].amax().sqrt()) + float(pairs.right[columns, width].amax().sqrt())
    return left, (1.5 * width + SPARE) * EPSILON * (pairs.unit * norms) ** 2


def _buffers(points: torch.Tensor, spare: list[_Buffers], shape: tuple[int, int]) -> _Buffers:
    """Return buffers for one block, reused if possible: allocating them costs as much as the work in them."""
    try:
        return spare.pop()
    except IndexError:
        most = min(shape[0], len(points)) * min(shape[1], len(points))
        return (
            *torch.empty(2, most, dtype=points.dtype, device=points.device),
            torch.empty(most, dtype=torch.int32, device=points.device),
        )


def _fill_distances(pairs: _Pairs, rows: slice, part: slice, left: torch.Tensor, error: float, to: _Buffers) -> None:
    """Write the distances of a block, in cells; a row's distance from itself is replaced by one far from all edges."""
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
    # A reciprocal root and a product take half the time of a root. NaN for 0, which is computed again below.
    torch.rsqrt(squared, out=distance).mul_(squared)
    again = error / (2.0 * PRECISION)
    if float(squared.amin()) <= again:
        index = (squared <= again).nonzero()
        distance[index[:, 0], index[:, 1]] = pairs.unit * _differences(pairs, rows, part, index)


def _fill_cells(pairs: _Pairs, rows: slice, part: slice, margin: float, to: _Buffers) -> None:
    """Write the cells of a block's distances; those within `margin` of an edge are computed from differences."""
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
    """Return the distances of the pairs `index`, shape (pairs, 2), of a block, from differences."""
    a, b = pairs.points[rows], pairs.points[columns]
    if len(index) > pairs.budget.many * len(a) * len(b):
        return torch.cdist(a, b, compute_mode=DIFFERENCES)[index[:, 0], index[:, 1]]
    found = a.new_empty(len(index))
    for part in cuts(0, len(index), pairs.budget.gathered // a.shape[1]):
        found[part] = _rowwise_distances(a[index[part, 0]], b[index[part, 1]])
    return found


def _rowwise_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the distance of every row of `a` from the same row of `b`, with the bits that a block of `cdist` has."""
    return torch.cdist(a.unsqueeze(1), b.unsqueeze(1), compute_mode=DIFFERENCES)[:, 0, 0]
