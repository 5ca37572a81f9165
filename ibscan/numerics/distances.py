"""Histograms and means of pairwise Euclidean distances, in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import mapped, tiles

__all__ = ["DistanceHistogram", "distance_histogram"]

# In units of a cell; rounding of the scaled distance is below 1e-13.
EDGE_MARGIN = 1e-9


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


def distance_histogram(points: torch.Tensor, labels: torch.Tensor, bins: int = 100) -> DistanceHistogram:
    """Return the histogram over `bins` equal cells from 0 to the largest distance, the last closed above.

    Distances come from differences and not from a^2 + b^2 - 2ab, so that equal points are at 0 and lattices of exact
    numbers, which saturated layers are (-1 and 1), do not jitter across the edges.

    Args:
        points: Shape (n, d), finite, float64.
        labels: Class of each row, shape (n,), int64.
        bins: Number of cells.

    Returns:
        Counts that sum to n (n - 1) / 2 exactly, edges and means.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 5 (pairwise distances within and between classes).
    """
    order = torch.argsort(labels, stable=True)
    points, labels = points[order], labels[order]
    pieces = _triangle(labels)
    largest = max(mapped(lambda piece: _largest(points, piece), pieces, points.device), default=0.0)
    edges = torch.linspace(0.0, largest, bins + 1, dtype=points.dtype, device=points.device)
    counts = torch.zeros(2, bins, dtype=torch.int64, device=points.device)
    total = [0.0, 0.0]
    for piece, (count, length) in zip(
        pieces, mapped(lambda piece: _tally(points, piece, edges), pieces, points.device), strict=True
    ):
        counts[int(piece.same)] += count
        total[int(piece.same)] += length
    pairs = counts.sum(1).tolist()
    mean = [length / number if number else float("nan") for length, number in zip(total, pairs, strict=True)]
    return DistanceHistogram(counts[1], counts[0], edges, mean[1], mean[0])


@dataclass(frozen=True)
class _Piece:
    """A block of the upper triangle; `square` says that it straddles the diagonal, `same` that it is in one class."""

    rows: slice
    columns: slice
    same: bool
    square: bool = False


def _triangle(labels: torch.Tensor) -> list[_Piece]:
    """Return blocks that cover every unordered pair of sorted rows once, each within one class or between two."""
    sizes = torch.unique_consecutive(labels, return_counts=True)[1].tolist()
    pieces = []
    start = 0
    for size in sizes:
        stop = start + size
        for block in tiles(size, len(labels) - start, labels.device):
            rows = slice(start + block.start, start + block.stop)
            # Only the leading square straddles the diagonal; what is right of it counts whole.
            pieces.append(_Piece(rows, rows, same=True, square=True))
            pieces.append(_Piece(rows, slice(rows.stop, stop), same=True))
            pieces.append(_Piece(rows, slice(stop, len(labels)), same=False))
        start = stop
    return [piece for piece in pieces if piece.columns.start < piece.columns.stop]


def _largest(points: torch.Tensor, piece: _Piece) -> float:
    return float(_distances(points[piece.rows], points[piece.columns]).max())


def _tally(points: torch.Tensor, piece: _Piece, edges: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return how many distances of a block fall into each cell, and their sum."""
    block = _distances(points[piece.rows], points[piece.columns])
    if piece.square:
        distance = block[torch.ones(block.shape, dtype=torch.bool, device=block.device).triu_(1)]
    else:
        distance = block.flatten()
    count = torch.bincount(_cells(distance, edges), minlength=len(edges) - 1)
    return count, float(distance.sum())


def _cells(distance: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return the index of the cell [edge_k, edge_k+1) of each distance, the last closed, exactly."""
    bins = len(edges) - 1
    if float(edges[-1]) == 0.0:
        return torch.zeros(len(distance), dtype=torch.int64, device=distance.device)
    scaled = distance * (bins / edges[-1])
    cell = scaled.to(torch.int64).clamp_(max=bins - 1)
    # Truncation is five times quicker than a search, and wrong only within rounding of an edge: those are searched.
    near = ((scaled - scaled.round()).abs_() < EDGE_MARGIN).nonzero().squeeze(1)
    cell[near] = torch.bucketize(distance[near], edges[1:-1], right=True)
    return cell


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
