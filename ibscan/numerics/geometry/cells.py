"""Cut values into cells, and compute the entropy of the tuple of cells of a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.mixture import entropy
from ibscan.numerics.tiling import cuts

__all__ = ["Budget", "CellEntropy", "cell_entropy", "equal_cells", "grid_cells"]

EPSILON = 2.0**-52
# Ranges beyond these take products with numbers of cells out of the range of normal float64 numbers.
LEAST_SPAN, MOST_SPAN = 2.0**-960, 2.0**960
# From here on neighbouring float64 numbers differ by 1 or more, and every value in cells has a cell of its own.
ALL_INTEGERS_FROM = 2.0**53


@dataclass(frozen=True)
class Budget:
    """How columns of cells are packed into keys.

    The number of possible keys stays below `keys`, so that no product of ranges overflows int64. A column of a range
    larger than `column` is replaced by ranks first, so that two columns fit one key. `columns` are cut into cells at a
    time: in a wide layer the first few already distinguish all rows.
    """

    keys: int = 2**62
    column: int = 2**31
    columns: int = 32


USUAL = Budget()


@dataclass(frozen=True)
class CellEntropy:
    """H(cell) and I(cell; Y) in nats, and how many cells are occupied."""

    entropy: float
    label_information: float
    occupied: int


def grid_cells(values: torch.Tensor, width: float) -> torch.Tensor:
    """Return the cell on a grid with an edge at 0: the k with k * width <= t < (k + 1) * width, products in float64.

    Args:
        values: t, any shape, finite, float64.
        width: Cell width, > 0.

    Returns:
        Same shape, whole numbers as float64 (int64 would overflow for |t| / width > 9e18). Where neighbouring numbers
        are further apart than cells are wide (|t| / width >= 2^53), each has a cell of its own, numbered from 2^53 on.
    """
    scaled = (values / width).masked_fill_(values == 0.0, 0.5)  # 0 is an edge, but exact: place it off the edge
    largest = float(scaled.abs().amax())
    if largest < ALL_INTEGERS_FROM:
        # A product or quotient that underflows is off by at most the smallest positive number.
        lost = 2.0**-1074 / width if width < LEAST_SPAN else 0.0
        return _corrected(values, scaled, lambda cell: cell * width, 2.0 * EPSILON * largest + 2.0 * lost)
    far = scaled.abs() >= ALL_INTEGERS_FROM
    rank = torch.unique(values[far], return_inverse=True)[1]
    cells = torch.empty_like(values)
    cells[far] = ALL_INTEGERS_FROM + 2.0 * rank.to(cells.dtype)  # whole numbers of that size are even
    if not bool(far.all()):
        cells[~far] = grid_cells(values[~far], width)
    return cells


def equal_cells(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Return which of `bins` equal cells of the closed range [low, high] each value is in.

    Edge k is low + (high - low) * k / bins in float64 and belongs to cell k, the top edge to the last cell; values
    outside go to the end cells.

    Args:
        values: Any shape, finite, float64.
        low: Lower edge of the first cell.
        high: Upper edge of the last; equal to `low` for a constant layer, which is then one cell.
        bins: Number of cells, >= 1.

    Returns:
        Cells 0 .. bins - 1 as float64 of the same shape.

    Example:
        >>> equal_cells(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), -1.0, 1.0, 2)
        tensor([0., 1., 1., 1.], dtype=torch.float64)
    """
    if high <= low:
        return torch.zeros_like(values)
    span = high - low
    # Error of the quotient and of an edge, in cells.
    error = EPSILON * bins * (4.0 + max(abs(low), abs(high)) / span)
    if not (LEAST_SPAN < span < MOST_SPAN / bins and error < 0.25):
        return _between_edges(values, low, high, bins)
    # Clamped to the middle of the end cells, so that values of saturated units need no correction.
    scaled = (values - low).mul_(bins / span).clamp_(0.5, bins - 0.5)
    cells = _corrected(values, scaled, lambda cell: (cell * span).div_(bins).add_(low), error, (low, high))
    return cells.clamp_(max=bins - 1)  # the last edge may be rounded below `high`


def _between_edges(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Return the same for a range too small or large to divide by: the number of inner edges at or below each value."""
    steps = torch.arange(1, bins, dtype=torch.float64, device=values.device)
    # Scale by a power of two, which is exact, so that products stay in range.
    power = max(0, math.frexp(high / 2.0 - low / 2.0)[1] + bins.bit_length() - 960)
    span = math.ldexp(high, -power) - math.ldexp(low, -power)
    inner = (steps * span).div_(bins).add_(math.ldexp(low, -power))
    inner = torch.ldexp(inner, torch.tensor(power, device=values.device))
    inner = inner.cummax(0).values if len(inner) else inner
    # Inner edges may be rounded onto an end of the range, whose cell is the first or last all the same.
    first, last = torch.bucketize(values.new_tensor([low, high]), inner, right=True).tolist()
    cells = torch.bucketize(values, inner, right=True).to(values.dtype)
    return cells.masked_fill_(cells >= last, bins - 1.0).masked_fill_(cells <= first, 0.0)


def _corrected(
    values: torch.Tensor,
    scaled: torch.Tensor,
    edge: Callable[[torch.Tensor], torch.Tensor],
    error: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> torch.Tensor:
    """Return the cells with edge(cell) <= value < edge(cell + 1), given values in units of cells up to an error.

    Values at the limits or beyond are not corrected.
    """
    cells = torch.floor(scaled)
    lowest, highest = torch.sub(scaled, cells, out=scaled).aminmax()
    if float(lowest) > error and float(highest) < 1.0 - error:
        return cells
    while True:  # more than once only if cells are narrower than rounding
        below, above = values < edge(cells), values >= edge(cells + 1.0)
        within = (values > limits[0]) & (values < limits[1])
        below, above = below & within, above & within
        if not (below | above).any():
            return cells
        moved = cells - below.to(cells.dtype) + above.to(cells.dtype)
        if torch.equal(moved, cells):  # beyond 2^53 adding 1 changes nothing
            return cells
        cells = moved


def cell_entropy(
    values: torch.Tensor,
    labels: torch.Tensor | None,
    classes: int,
    cut: Callable[[torch.Tensor], torch.Tensor] | None = None,
    budget: Budget = USUAL,
) -> CellEntropy:
    """Return the entropy of the tuple of cells over the rows, and its information about the label.

    Plug-in entropies of the empirical distribution: the rows are the population, so there is no bias to correct.

    Args:
        values: Shape (N, D), float64: the tuple of a row is one symbol.
        labels: Class of each row, shape (N,), int64, or None.
        classes: Number of classes; 1 without labels.
        cut: Function from some rows and columns of `values` to cells; None if the values are cells. It is not called
            for columns that are not needed to distinguish rows.
        budget: How columns are packed; the numbers do not depend on it.

    Returns:
        H(cell), H(cell) - sum_y p(y) H(cell | y) (0 without labels), occupied cells.

    Source:
        Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 (the quantity); Goldfeld et al. 2019 (what it means).
    """
    number = len(values)
    rows, symbol, counts = _rows_sharing_cells(values, cut, budget)
    alone = number - len(rows)
    # A row alone in its cell contributes ln(N) / N, with or without its label.
    base = alone / number * math.log(number)
    total = base + entropy(counts.double() / number)
    occupied = alone + len(counts)
    if labels is None:
        return CellEntropy(total, 0.0, occupied)
    pairs = torch.unique(symbol * classes + labels[rows], return_counts=True)[1]
    prior = entropy(torch.bincount(labels).double() / number)
    # As H(cell) + H(Y) - H(cell, Y), which is shorter to compute.
    return CellEntropy(total, total + prior - base - entropy(pairs.double() / number), occupied)


def _rows_sharing_cells(
    values: torch.Tensor, cut: Callable[[torch.Tensor], torch.Tensor] | None, budget: Budget
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows that share their tuple of cells with others, a number for each one's tuple, and counts by number.

    Columns are packed into one int64 key until the next would overflow. Then keys are numbered, and rows with a key of
    their own are dropped: further columns cannot make them equal to another row.
    """
    rows = torch.arange(len(values), device=values.device)
    symbol = torch.zeros_like(rows)
    counts = torch.tensor([len(rows)], device=values.device)
    for block in cuts(0, values.shape[1], budget.columns):
        if not len(rows):
            break
        part = values[:, block] if len(rows) == len(values) else values[rows, block]
        columns, ranges = _ranges(part if cut is None else cut(part), budget.column)
        first = 0
        while first < len(ranges) and len(rows):
            key, span = symbol.clone(), len(counts)
            while first < len(ranges) and span * ranges[first] <= budget.keys:
                key.mul_(ranges[first]).add_(columns[:, first])
                span, first = span * ranges[first], first + 1
            symbol, counts = torch.unique(key, return_inverse=True, return_counts=True)[1:]
            several = counts > 1
            if not several.all():
                kept = several[symbol]
                rows, columns = rows[kept], columns[kept]
                symbol, counts = (several.cumsum(0) - 1)[symbol[kept]], counts[several]
    return rows, symbol, counts


def _ranges(cells: torch.Tensor, most: int) -> tuple[torch.Tensor, list[int]]:
    """Return cells counted from 0 in every column, int64, and the range of each column; wide ranges become ranks."""
    lowest, highest = torch.aminmax(cells, dim=0)
    ranges = (highest - lowest + 1.0).tolist()
    wide = [k for k, size in enumerate(ranges) if not size < most]
    ranks = [torch.unique(cells[:, k], return_inverse=True)[1] for k in wide]
    columns = (cells - lowest).to(torch.int64)
    for k, rank in zip(wide, ranks, strict=True):
        columns[:, k] = rank
        ranges[k] = float(rank.amax() + 1)
    return columns, [int(size) for size in ranges]
