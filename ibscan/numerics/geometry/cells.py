"""Cells of a grid and the entropy of the cell a row falls into."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.channels.mixture import entropy
from ibscan.numerics.tiling import cuts

__all__ = ["Budget", "CellEntropy", "cell_entropy", "equal_cells", "grid_cells"]

EPSILON = 2.0**-52
# Beyond these, numbers of cells and products with them leave the range in which float64 is right to rounding.
LEAST_SPAN, MOST_SPAN = 2.0**-960, 2.0**960
# From here on whole numbers are further apart than 1, and so are values than cells.
FAR = 2.0**53


@dataclass(frozen=True)
class Budget:
    """How columns of cells are packed into keys.

    `keys` combined stay below their number, so that no product of ranges overflows int64. A column of a range larger
    than `column` is ranked first; two columns below it, or one and the rows' numbers, fit one key. So many `columns`
    are cut into cells at a time: in a wide layer the first few already tell all rows apart.
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
        values: Any shape, finite, float64.
        width: Cell width, > 0.

    Returns:
        Same shape, float64 whole numbers (int64 would overflow for |t| / width > 9e18). Where numbers are further apart
        than cells are wide (|t| / width >= 2^53), each number has a cell of its own, numbered from 2^53 on.
    """
    scaled = (values / width).masked_fill_(values == 0.0, 0.5)  # zeros, of which a ReLU has many, are in no doubt
    largest = float(scaled.abs().amax())
    if largest < FAR:
        # What is lost of a product, or of a quotient, below the least positive number is no more than that number.
        lost = 2.0**-1074 / width if width < LEAST_SPAN else 0.0
        return _settled(values, scaled, lambda cell: cell * width, 2.0 * EPSILON * largest + 2.0 * lost)
    far = scaled.abs() >= FAR
    rank = torch.unique(values[far], return_inverse=True)[1]
    cells = torch.empty_like(values)
    cells[far] = FAR + 2.0 * rank.to(cells.dtype)  # whole numbers of that size are even
    if not bool(far.all()):
        cells[~far] = grid_cells(values[~far], width)
    return cells


def equal_cells(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Return which of `bins` equal cells of the closed range [low, high] a value is in.

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
    # Of the quotient and of an edge, each in cells.
    error = EPSILON * bins * (4.0 + max(abs(low), abs(high)) / span)
    if not (LEAST_SPAN < span < MOST_SPAN / bins and error < 0.25):
        return _between_edges(values, low, high, bins)
    # The ends, where a saturated unit is, are in no doubt.
    scaled = (values - low).mul_(bins / span).clamp_(0.5, bins - 0.5)
    cells = _settled(values, scaled, lambda cell: (cell * span).div_(bins).add_(low), error, (low, high))
    return cells.clamp_(max=bins - 1)  # the last edge may be rounded below `high`


def _between_edges(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Return the number of inner edges at or below each value: cells of a range too small or large to divide by."""
    steps = torch.arange(1, bins, dtype=torch.float64, device=values.device)
    # Powers of two, which round nothing: the products stay in range, and halves of such numbers are exact.
    power = max(0, math.frexp(high / 2.0 - low / 2.0)[1] + bins.bit_length() - 960)
    span = math.ldexp(high, -power) - math.ldexp(low, -power)
    inner = (steps * span).div_(bins).add_(math.ldexp(low, -power))
    inner = torch.ldexp(inner, torch.tensor(power, device=values.device))
    inner = inner.cummax(0).values if len(inner) else inner
    # What shares a cell with an end is in the end cell, also where edges are rounded onto the end.
    first, last = torch.bucketize(values.new_tensor([low, high]), inner, right=True).tolist()
    cells = torch.bucketize(values, inner, right=True).to(values.dtype)
    return cells.masked_fill_(cells >= last, bins - 1.0).masked_fill_(cells <= first, 0.0)


def _settled(
    values: torch.Tensor,
    scaled: torch.Tensor,
    edge: Callable[[torch.Tensor], torch.Tensor],
    error: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> torch.Tensor:
    """Return the cells with edge(cell) <= value < edge(cell + 1), given values in cells up to an error.

    Values beyond the limits, or at them, keep the cell that they have.
    """
    cells = torch.floor(scaled)
    lowest, highest = torch.sub(scaled, cells, out=scaled).aminmax()
    if float(lowest) > error and float(highest) < 1.0 - error:
        return cells
    while True:  # once, unless the cells are narrower than rounding
        below, above = values < edge(cells), values >= edge(cells + 1.0)
        within = (values > limits[0]) & (values < limits[1])
        below, above = below & within, above & within
        if not (below | above).any():
            return cells
        moved = cells - below.to(cells.dtype) + above.to(cells.dtype)
        if torch.equal(moved, cells):  # beyond 2^53 whole numbers are further apart than 1
            return cells
        cells = moved


def cell_entropy(
    values: torch.Tensor,
    labels: torch.Tensor | None,
    classes: int,
    cut: Callable[[torch.Tensor], torch.Tensor] | None = None,
    budget: Budget = USUAL,
) -> CellEntropy:
    """Return the entropy of the tuple of cells over the rows, and the information it has about the label.

    Plug-in entropies of the empirical law: the rows are the population, so there is no bias to correct.

    Args:
        values: Shape (n, d), float64: one symbol a row.
        labels: Class of each row, shape (n,), int64, or None.
        classes: Number of classes; 1 without labels.
        cut: Gives the cells, whole numbers, of some columns of `values` of some rows; None if they are the cells. It is
            not called for columns that cannot tell more rows apart.
        budget: How columns are packed; the numbers do not depend on it.

    Returns:
        H(cell), H(cell) - sum_y p(y) H(cell | y) (0 without labels), occupied cells.

    Source:
        Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 (the quantity); Goldfeld et al. 2019 (what it means).
    """
    number = len(values)
    rows, symbol, counts = _shared(values, cut, budget)
    alone = number - len(rows)
    # A row alone in its cell has 1/n of ln n, with its label or without.
    base = alone / number * math.log(number)
    total = base + entropy(counts.double() / number)
    occupied = alone + len(counts)
    if labels is None:
        return CellEntropy(total, 0.0, occupied)
    pairs = torch.unique(symbol * classes + labels[rows], return_counts=True)[1]
    prior = entropy(torch.bincount(labels).double() / number)
    # H(cell) + H(Y) - H(cell, Y) is the same number with less to add up.
    return CellEntropy(total, total + prior - base - entropy(pairs.double() / number), occupied)


def _shared(
    values: torch.Tensor, cut: Callable[[torch.Tensor], torch.Tensor] | None, budget: Budget
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows that are not alone in their cell, the number of each one's cell, and rows by that number.

    Columns are packed into one int64 until the next would overflow; then those keys are numbered, and rows alone with
    theirs drop out: no further column can bring another row to them.
    """
    rows = torch.arange(len(values), device=values.device)
    symbol = torch.zeros_like(rows)
    counts = torch.tensor([len(rows)], device=values.device)
    for block in cuts(0, values.shape[1], budget.columns):
        if not len(rows):
            break
        part = values[:, block] if len(rows) == len(values) else values[rows, block]
        columns, extents = _ranges(part if cut is None else cut(part), budget.column)
        first = 0
        while first < len(extents) and len(rows):
            key, span = symbol.clone(), len(counts)
            while first < len(extents) and span * extents[first] <= budget.keys:
                key.mul_(extents[first]).add_(columns[:, first])
                span, first = span * extents[first], first + 1
            symbol, counts = torch.unique(key, return_inverse=True, return_counts=True)[1:]
            several = counts > 1
            if not several.all():
                kept = several[symbol]
                rows, columns = rows[kept], columns[kept]
                symbol, counts = (several.cumsum(0) - 1)[symbol[kept]], counts[several]
    return rows, symbol, counts


def _ranges(cells: torch.Tensor, most: int) -> tuple[torch.Tensor, list[int]]:
    """Return the cells from 0 in every column, int64, and how many there may be: in wide ranges, ranks of those met."""
    lowest, highest = torch.aminmax(cells, dim=0)
    extents = (highest - lowest + 1.0).tolist()
    wide = [k for k, extent in enumerate(extents) if not extent < most]
    ranks = [torch.unique(cells[:, k], return_inverse=True)[1] for k in wide]
    columns = (cells - lowest).to(torch.int64)
    for k, rank in zip(wide, ranks, strict=True):
        columns[:, k] = rank
        extents[k] = float(rank.amax() + 1)
    return columns, [int(extent) for extent in extents]
