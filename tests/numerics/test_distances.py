"""Histograms of pairwise distances against a double loop; counts are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ibscan.numerics.geometry import distances
from ibscan.numerics.geometry.distances import Budget, distance_histogram


def points_of(n: Any, d: Any, seed: Any, classes: int = 3) -> Any:
    g = np.random.default_rng(seed)
    return torch.from_numpy(g.normal(size=(n, d))), torch.from_numpy(g.integers(0, classes, n))


def loop(points: Any, labels: Any) -> Any:
    """Return within and between distances of unordered pairs by a double loop."""
    found: dict[bool, list[float]] = {True: [], False: []}
    rows, marks = points.numpy(), labels.tolist()
    for i in range(len(rows)):
        for j in range(i):
            found[marks[i] == marks[j]].append(math.sqrt(float(((rows[i] - rows[j]) ** 2).sum())))
    return np.array(found[True]), np.array(found[False])


@pytest.mark.parametrize("bins", [1, 7, 100])
def test_counts_are_those_of_a_double_loop(bins: Any) -> None:
    points, labels = points_of(60, 3, 1)
    within, between = loop(points, labels)
    result = distance_histogram(points, labels, bins)
    edges = np.linspace(0, max(within.max(), between.max()), bins + 1)
    np.testing.assert_allclose(result.edges.numpy(), edges, rtol=1e-12, atol=1e-300)
    # Continuous data: no distance lies on an inner edge; numpy closes the last cell above.
    assert result.within.tolist() == np.histogram(within, edges)[0].tolist()
    assert result.between.tolist() == np.histogram(between, edges)[0].tolist()
    assert result.within.dtype == result.between.dtype == torch.int64
    assert result.within_mean == pytest.approx(within.mean(), rel=1e-10)
    assert result.between_mean == pytest.approx(between.mean(), rel=1e-10)


def test_there_are_a_hundred_bins_by_default() -> None:
    points, labels = points_of(10, 2, 3)
    assert len(distance_histogram(points, labels).within) == 100


@pytest.mark.parametrize("scale", [1.0, 0.25, 3 * 2.0**-13])
def test_lattice_distances_lie_on_edges(scale: Any) -> None:
    """Points 0 .. 10 on a line, ten bins: distance k is on edge k and belongs to cell [k, k + 1), 10 to the last.

    11 - k pairs are at distance k; distances and edges are exact in float64 at these scales.
    """
    points = torch.arange(11, dtype=torch.float64)[:, None] * scale
    result = distance_histogram(points, torch.zeros(11, dtype=torch.int64), 10)
    assert result.within.tolist() == [0, 10, 9, 8, 7, 6, 5, 4, 3, 2 + 1]
    assert result.between.tolist() == [0] * 10
    assert math.isnan(result.between_mean)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 7e-5])
def test_rounded_lattices_follow_the_stored_edges(scale: Any) -> None:
    """Where rounding puts a distance beside its edge, the edges that are stored decide: edge_k <= d < edge_k+1."""
    points = torch.arange(11, dtype=torch.float64)[:, None] * scale
    labels = torch.arange(11) % 2
    result = distance_histogram(points, labels, 10)
    inner = result.edges.numpy()[1:-1]
    for found, got in zip(loop(points, labels), (result.within, result.between), strict=True):
        cells = np.searchsorted(inner, found, side="right")
        assert got.tolist() == np.bincount(cells, minlength=10).tolist()


def test_saturated_corners_do_not_jitter() -> None:
    """The 16 corners of {-1,1}^4, 8 bins of [0, 4]: distance 2 sqrt(h) at Hamming distance h, 16 C(4,h)/2 pairs."""
    corners = torch.tensor([[1.0 if k >> b & 1 else -1.0 for b in range(4)] for k in range(16)], dtype=torch.float64)
    result = distance_histogram(corners, torch.arange(16) % 2, 8)  # the label is the first unit's sign
    total = (result.within + result.between).tolist()
    # Cells of width 0.5: 2 -> 4, 2.83 -> 5, 3.46 -> 6, 4 -> 7 (closed).
    assert total == [0, 0, 0, 0, 32, 48, 32, 8]
    # Same first unit: 2 C(8,2) = 56 pairs at Hamming distances of {-1,1}^3: 24, 24, 8.
    assert result.within.tolist() == [0, 0, 0, 0, 24, 24, 8, 0]


def test_equal_points_are_at_zero() -> None:
    result = distance_histogram(torch.full((12, 3), 0.1, dtype=torch.float64), torch.arange(12) % 2, 5)
    assert (result.within + result.between).sum() == 66
    assert result.within.sum() == 2 * 15
    assert (result.within_mean, result.between_mean) == (0.0, 0.0)
    assert torch.isfinite(result.edges).all()


def test_duplicates_among_others_are_in_the_first_cell() -> None:
    points, labels = points_of(20, 4, 5)
    points = torch.cat([points, points])
    result = distance_histogram(points, torch.cat([labels, labels]), 1000)
    assert result.within[0] == 20  # every row and its copy, nothing else so near


def test_one_row_has_no_pairs() -> None:
    result = distance_histogram(torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), 4)
    assert result.within.tolist() == result.between.tolist() == [0] * 4
    assert math.isnan(result.within_mean)
    assert math.isnan(result.between_mean)


@pytest.mark.parametrize("labels", [[0, 0], [0, 1]])
def test_two_rows_are_one_pair(labels: Any) -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    result = distance_histogram(points, torch.tensor(labels), 4)
    same = labels[0] == labels[1]
    assert result.within.tolist() == ([0, 0, 0, 1] if same else [0] * 4)
    assert result.between.tolist() == ([0] * 4 if same else [0, 0, 0, 1])
    assert result.edges.tolist() == [0, 1.25, 2.5, 3.75, 5]
    assert (result.within_mean if same else result.between_mean) == pytest.approx(5.0, rel=4e-16)


@pytest.mark.parametrize("offset", [1e6, -1e9])
def test_an_offset_changes_nothing(offset: Any) -> None:
    """Points are multiples of 2^-10, so that the sums are exact in float64 and every digit is owed."""
    points, labels = points_of(50, 4, 8)
    points = torch.round(points * 1024) / 1024
    base, moved = distance_histogram(points, labels, 30), distance_histogram(points + offset, labels, 30)
    assert torch.equal(base.within, moved.within)
    assert torch.equal(base.between, moved.between)
    assert (moved.within_mean, moved.between_mean) == pytest.approx((base.within_mean, base.between_mean), rel=1e-10)


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
def test_tile_boundaries_do_not_matter(rows: Any) -> None:
    points, labels = points_of(64, 3, 9)
    whole = distance_histogram(points, labels, 20)
    cut = distance_histogram(points, labels, 20, Budget(block=(rows, 2 * rows - 1)))
    assert torch.equal(cut.within, whole.within)
    assert torch.equal(cut.between, whole.between)
    assert (cut.within_mean, cut.between_mean) == pytest.approx((whole.within_mean, whole.between_mean), rel=1e-12)


def test_many_rows_count_every_pair_once() -> None:
    """n = 1500 spans several blocks; scipy's pdist is the reference."""
    from scipy.spatial.distance import pdist

    points, labels = points_of(1500, 2, 10)
    result = distance_histogram(points, labels, 50)
    assert int((result.within + result.between).sum()) == 1500 * 1499 // 2
    all_pairs = pdist(points.numpy())
    assert (result.within + result.between).tolist() == np.histogram(all_pairs, 50, (0, all_pairs.max()))[0].tolist()
    sizes = torch.bincount(labels).tolist()
    assert int(result.within.sum()) == sum(s * (s - 1) // 2 for s in sizes)


def test_permutation_and_rotation_do_not_matter() -> None:
    points, labels = points_of(60, 3, 11)
    base = distance_histogram(points, labels, 20)
    order = torch.from_numpy(np.random.default_rng(1).permutation(60))
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(2).normal(size=(3, 3))))[0]
    other = distance_histogram((points @ rotation)[order], labels[order], 20)
    assert torch.equal(other.within, base.within)
    assert torch.equal(other.between, base.between)
    assert (other.within_mean, other.between_mean) == pytest.approx((base.within_mean, base.between_mean), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_extreme_scales_do_not_change_counts(scale: Any) -> None:
    """Squares overflow or vanish; distances do not."""
    points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64) * scale
    result = distance_histogram(points, torch.tensor([0, 0, 1]), 3)
    assert result.within.tolist() == [0, 1, 0]
    assert result.between.tolist() == [0, 0, 2]
    assert result.between_mean == pytest.approx(2.5 * scale, rel=1e-10)


def by_differences(points: Any, labels: Any, edges: Any) -> Any:
    """Counts within and between, and mean distances, from float64 differences in blocks, and a search of the edges."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    i, j = torch.triu_indices(len(points), len(points), 1)
    flat, same = distance[i, j], labels[i] == labels[j]
    cells = torch.searchsorted(edges[1:-1].contiguous(), flat, right=True)
    counts = [torch.bincount(cells[kind], minlength=len(edges) - 1).tolist() for kind in (same, ~same)]
    return counts, [float(flat[kind].mean()) for kind in (same, ~same)], float(flat.max())


def layer_like(kind: Any, g: Any) -> Any:
    """Values as layers have them, and some that a product of matrices cannot tell apart."""
    y = g.integers(0, 4, 300)
    centre = g.normal(size=(4, 24))[y]
    values = {
        "normal": g.normal(size=(300, 24)),
        "narrow": g.normal(size=(300, 2)),
        "saturated": np.sign(g.normal(size=(300, 24))),
        "few patterns": np.sign(g.normal(size=(300, 4))),
        "nearly saturated": np.tanh(20 * g.normal(size=(300, 6))),
        "relu": np.maximum(g.normal(size=(300, 3)) @ g.normal(size=(3, 24)) - 0.5, 0),
        "tenths": g.integers(0, 4, (300, 9)) * 0.1,
        "collapsed": centre + 1e-7 * g.normal(size=(300, 24)),
        "collapsed at an offset": centre + 1e-7 * g.normal(size=(300, 24)) + 1000,
        "one class far away": centre + 1e6 * (y == 2)[:, None] + 1e-3 * g.normal(size=(300, 24)),
        "one row far away": g.normal(size=(300, 24)) * np.where(np.arange(300) == 7, 1e8, 1)[:, None],
        "equidistant": np.eye(300),
    }[kind]
    return torch.from_numpy(values), torch.from_numpy(y)


KINDS = (
    *("normal", "narrow", "saturated", "few patterns", "nearly saturated", "relu", "tenths", "collapsed"),
    *("collapsed at an offset", "one class far away", "one row far away", "equidistant"),
)


@pytest.mark.slow
@pytest.mark.parametrize("bins", [1, 10, 100, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_is_in_the_cell_of_its_differences(kind: Any, bins: Any) -> None:
    points, labels = layer_like(kind, np.random.default_rng(bins))
    result = distance_histogram(points, labels, bins)
    (within, between), means, largest = by_differences(points, labels, result.edges)
    assert float(result.edges[-1]) == largest
    assert result.within.tolist() == within
    assert result.between.tolist() == between
    assert (result.within_mean, result.between_mean) == pytest.approx(means, rel=1e-12)


@pytest.mark.parametrize("kind", ["normal", "saturated", "few patterns", "equidistant"])
@pytest.mark.parametrize("share", [0.3, 1 - 1e-15])
def test_a_missed_farthest_pair_is_counted_again(kind: Any, share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs are counted again up to the largest distance that the first count met."""
    points, labels = layer_like(kind, np.random.default_rng(5))
    expected = distance_histogram(points, labels)
    found = distances._largest_found
    monkeypatch.setattr(distances, "_largest_found", lambda rows: share * found(rows))
    result = distance_histogram(points, labels)
    assert torch.equal(result.edges, expected.edges)
    assert torch.equal(result.within, expected.within)
    assert torch.equal(result.between, expected.between)
    assert (result.within_mean, result.between_mean) == (expected.within_mean, expected.between_mean)


@pytest.mark.slow
def test_the_same_bits_from_any_number_of_threads(threads: Callable[[int], None]) -> None:
    """Sums within a worker are never split by the library: which it did on some calls and not on others."""
    points, labels = layer_like("saturated", np.random.default_rng(5))
    found = set()
    for number in (1, *[2] * 30, 4):
        threads(number)
        result = distance_histogram(points, labels)
        found.add((result.within_mean, result.between_mean, *result.within.tolist()))
    assert len(found) == 1


@pytest.mark.parametrize("many", [0.0, 1.0])
def test_doubtful_pairs_count_alike_in_blocks_and_one_by_one(many: Any) -> None:
    """Both ways give the same to the last bit."""
    points, labels = layer_like("nearly saturated", np.random.default_rng(6))
    expected = distance_histogram(points, labels)
    result = distance_histogram(points, labels, budget=Budget(many, 20))
    assert torch.equal(result.within, expected.within)
    assert torch.equal(result.between, expected.between)
    assert (result.within_mean, result.between_mean) == (expected.within_mean, expected.between_mean)


def test_copies_count_as_often_as_they_occur() -> None:
    """Rows 2, 3 and 1 times in two classes: pairs of copies at 0, and between different rows the product of both."""
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-0.0, 0.0]], dtype=torch.float64)
    points, labels = rows[[0, 1, 1, 2, 1, 0]], torch.tensor([0, 0, 0, 0, 0, 1])
    result = distance_histogram(points, labels, 5)
    assert result.within.tolist() == [1 + 3, 0, 0, 0, 2 * 3]
    assert result.between.tolist() == [2, 0, 0, 0, 3]
    assert (result.within_mean, result.between_mean) == (3.0, 3.0)


def test_memory_does_not_grow_with_the_pairs() -> None:
    """No tensor is larger than the two places of a block: 3000 rows have 17 times as many pairs."""
    asked: list[Any] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
            made = function(*arguments, **(keywords or {}))
            asked.extend(
                part.numel() for part in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(part)
            )
            return made

    points, labels = points_of(3000, 4, 13, classes=2)
    with Sizes():  # type: ignore[no-untyped-call]
        distance_histogram(points, labels)
    assert max(asked) <= 2 * math.prod(distances.block_shape(points.device))
