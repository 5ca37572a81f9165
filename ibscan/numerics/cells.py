"""Cells of a grid and the entropy of the cell a row falls into."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.numerics.mixture import entropy

__all__ = ["CellEntropy", "cell_entropy", "equal_cells", "grid_cells"]

# Keys of combined columns stay below this, so that no product of ranges overflows int64.
KEY_LIMIT = 2**62


@dataclass(frozen=True)
class CellEntropy:
    """H(cell) and I(cell; Y) in nats, and how many cells are occupied."""

    entropy: float
    label_information: float
    occupied: int


def grid_cells(values: torch.Tensor, width: float) -> torch.Tensor:
    """Return floor(t / width): the cell on a grid with an edge at 0.

    Args:
        values: Any shape, finite, float64.
        width: Cell width, > 0.

    Returns:
        Same shape, float64 whole numbers (int64 would overflow for |t| / width > 9e18).
    """
    return torch.floor(values / width)


def equal_cells(values: torch.Tensor, low: float, high: float, bins: int) -> tuple[torch.Tensor, float]:
    """Return which of `bins` equal cells of the closed range [low, high] a value is in, and the share outside.

    The top edge belongs to the last cell; values outside go to the end cells.

    Args:
        values: Any shape, finite, float64.
        low: Lower edge of the first cell.
        high: Upper edge of the last; equal to `low` for a constant layer, which is then one cell.
        bins: Number of cells, >= 1.

    Returns:
        Cells 0 .. bins - 1 as float64 of the same shape, and the share of values outside the range, 0 to 1.

    Example:
        >>> equal_cells(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), -1.0, 1.0, 2)
        (tensor([0., 1., 1., 1.], dtype=torch.float64), 0.25)
    """
    if high <= low:
        return torch.zeros_like(values), 0.0
    outside = float(((values < low) | (values > high)).to(torch.float64).mean())
    scaled = (values - low) / (high - low) * bins
    return torch.floor(scaled).clamp_(0, bins - 1), outside


def cell_entropy(cells: torch.Tensor, labels: torch.Tensor | None, classes: int) -> CellEntropy:
    """Return the entropy of the tuple of cells over the rows, and the information it has about the label.

    Plug-in entropies of the empirical law: the rows are the population, so there is no bias to correct.

    Args:
        cells: Whole numbers, shape (n, d): one symbol a row.
        labels: Class of each row, shape (n,), int64, or None.
        classes: Number of classes; 1 without labels.

    Returns:
        H(cell), H(cell) - sum_y p(y) H(cell | y) (0 without labels), occupied cells.

    Source:
        Shwartz-Ziv and Tishby 2017, arXiv 1703.00810 (the quantity); Goldfeld et al. 2019 (what it means).
    """
    symbol, occupied = _symbols(cells)
    joint = torch.zeros(occupied, classes, dtype=torch.float64, device=cells.device)
    column = torch.zeros_like(symbol) if labels is None else labels
    joint.index_put_(
        (symbol, column), torch.ones(len(symbol), dtype=torch.float64, device=cells.device), accumulate=True
    )
    joint /= len(symbol)
    total = entropy(joint.sum(1))
    # H(cell) + H(Y) - H(cell, Y) is the same number with less to add up.
    return CellEntropy(total, total + entropy(joint.sum(0)) - entropy(joint), occupied)


def _symbols(cells: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Number the distinct rows: exact, by packing columns into one int64 until the next would overflow."""
    count, width = cells.shape
    symbol = torch.zeros(count, dtype=torch.int64, device=cells.device)
    span = 1
    for k in range(width):
        column, extent = _ranked(cells[:, k])
        if span * extent > KEY_LIMIT:
            symbol, span = _ranked(symbol)
            if span == count:  # every row is alone already: no further column can split it
                return symbol, span
        symbol = symbol * extent + column
        span *= extent
    return _ranked(symbol)


def _ranked(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    distinct, inverse = torch.unique(values, return_inverse=True)
    return inverse, len(distinct)
