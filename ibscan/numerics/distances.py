"""Histograms and means of pairwise Euclidean distances, in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ibscan.numerics.mixture import tiles

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

    Distances come from differences and not from a^2 + b^2 - 2ab, so that equal points are at 0 and lattices, which
    saturated layers are, do not jitter across the edges.

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
    largest = max((float(d.max()) for d, _ in _triangle(points, labels) if len(d)), default=0.0)
    edges = torch.linspace(0.0, largest, bins + 1, dtype=points.dtype, device=points.device)
    counts = torch.zeros(2, bins, dtype=torch.int64, device=points.device)
    total = torch.zeros(2, dtype=points.dtype, device=points.device)
    for distance, same in _triangle(points, labels):
        cell = _cells(distance, edges)
        counts[int(same)] += torch.bincount(cell, minlength=bins)
        total[int(same)] += distance.sum()
    mean = total / counts.sum(1)
    return DistanceHistogram(counts[1], counts[0], edges, float(mean[1]), float(mean[0]))


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


def _triangle(points: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yield the distances of the upper triangle in flat pieces, each within one class or between two."""
    classes = torch.unique_consecutive(labels, return_counts=True)[1].tolist()
    starts = [sum(classes[:c]) for c in range(len(classes) + 1)]
    for c, first in enumerate(starts[:-1]):
        for rows in tiles(classes[c], len(points) - first, points.device):
            low, high = first + rows.start, first + rows.stop
            inside = _distances(points[low:high], points[low : starts[c + 1]])
            above = torch.ones(high - low, high - low, dtype=torch.bool, device=points.device).triu_(1)
            # Only the leading square straddles the diagonal; what is right of it counts whole.
            yield inside[:, : high - low][above], True
            yield inside[:, high - low :].flatten(), True
            if starts[c + 1] < len(points):
                yield _distances(points[low:high], points[starts[c + 1] :]).flatten(), False


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
