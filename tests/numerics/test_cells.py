"""Cells and plug-in entropies against floor, dictionary counts and laws of methods.md section 3."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import symbol_entropy

from ibscan.numerics.cells import cell_entropy, equal_cells, grid_cells

LAWS = settings(max_examples=25, deadline=None, derandomize=True)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def test_grid_is_floor_with_an_edge_at_zero():
    """Width 0.25 is dyadic: the quotients are exact, edges belong to the cell above, -0.0 to cell 0."""
    values = double([-0.5, -0.3, -0.25, -1e-9, -0.0, 0.0, 0.2, 0.25, 0.49, 0.5, 7.0])
    assert grid_cells(values, 0.25).tolist() == [-2, -2, -1, -1, 0, 0, 0, 1, 1, 2, 28]


@LAWS
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-4, 10))
def test_grid_against_math_floor(values, width):
    assert grid_cells(double(values), width).tolist() == [math.floor(v / width) for v in values]


def test_grid_does_not_overflow():
    cells = grid_cells(double([[1e300], [-1e300], [2e300]]), 1e-6)
    assert torch.isfinite(cells).all()
    assert cell_entropy(cells, None, 1).occupied == 3


def test_equal_cells_of_the_closed_range():
    """Eight cells of [-1, 1] have width 0.25: each value by hand."""
    values = double([-1.0, -0.75, -0.7500001, -0.01, 0.0, 0.74, 0.75, 0.999999, 1.0])
    cells, outside = equal_cells(values, -1.0, 1.0, 8)
    assert cells.tolist() == [0, 1, 0, 3, 4, 6, 7, 7, 7]
    assert outside == 0.0


def test_values_outside_go_to_the_end_cells_and_are_counted():
    cells, outside = equal_cells(double([[-5.0, -1.0000001], [0.0, 1.0], [1.0000001, 1e9]]), -1.0, 1.0, 4)
    assert cells.tolist() == [[0, 0], [2, 3], [3, 3]]
    assert outside == 4 / 6


def test_saturated_tanh_with_thirty_bins():
    """Values of exactly +-1 are inside: the first and the last cell; -1 never wraps, 1 opens no 31st cell."""
    values = torch.tanh(double([-40.0, -20.0, 20.0, 40.0]))
    assert values.tolist() == [-1, -1, 1, 1]
    cells, outside = equal_cells(values, -1.0, 1.0, 30)
    assert cells.tolist() == [0, 0, 29, 29]
    assert outside == 0.0


def test_equal_range_is_one_cell():
    cells, outside = equal_cells(double([3.0, 3.0, 3.0]), 3.0, 3.0, 10)
    assert len(set(cells.tolist())) == 1
    assert 0 <= cells[0] <= 9
    assert outside == 0.0


@LAWS
@given(st.integers(1, 40), st.floats(-10, 10), st.floats(0.1, 10), st.integers(0, 99))
def test_equal_cells_against_searchsorted(bins, low, width, seed):
    """Away from edges (by 1e-9 of the range) the cell is the number of inner edges at or below the value."""
    high = low + width
    values = np.random.default_rng(seed).uniform(low - 0.2 * width, high + 0.2 * width, 50)
    edges = low + width * np.arange(1, bins) / bins
    clear = np.abs(values[:, None] - edges[None]).min(1, initial=np.inf) > 1e-9 * width
    cells, outside = equal_cells(double(values.tolist()), low, high, bins)
    assert (cells.numpy()[clear] == np.searchsorted(edges, values[clear], side="right")).all()
    assert outside == np.mean((values < low) | (values > high))


def test_one_cell_tells_nothing():
    result = cell_entropy(torch.zeros(20, 3, dtype=torch.float64), torch.arange(20) % 2, 2)
    assert result.entropy == pytest.approx(0.0, abs=1e-15)
    assert result.label_information == pytest.approx(0.0, abs=1e-15)
    assert result.occupied == 1


# d = 200 with 1000 symbols a unit: 1000^200 does not fit any integer, so packing must not overflow.
@pytest.mark.parametrize(("n", "d", "high"), [(1, 1, 2), (50, 1, 3), (500, 2, 4), (300, 12, 2), (200, 200, 1000)])
def test_entropy_against_a_dictionary(n, d, high):
    g = np.random.default_rng(n + d)
    cells = g.integers(-high, high, (n, d)).astype(float)
    cells[n // 2 :] = cells[: n - n // 2]  # repeated rows, so that wide symbols collide where they must
    labels = g.integers(0, 3, n)
    labels[: min(3, n)] = np.arange(min(3, n))
    classes = labels.max() + 1
    entropy, occupied = symbol_entropy(cells)
    given_label = sum((labels == c).mean() * symbol_entropy(cells[labels == c])[0] for c in range(classes))
    result = cell_entropy(double(cells.tolist()), torch.from_numpy(labels), int(classes))
    assert result.occupied == occupied
    assert result.entropy == pytest.approx(entropy, rel=1e-12, abs=1e-12)
    assert result.label_information == pytest.approx(entropy - given_label, rel=1e-12, abs=1e-12)
    bare = cell_entropy(double(cells.tolist()), None, 1)
    assert (bare.entropy, bare.label_information, bare.occupied) == (result.entropy, 0.0, occupied)


def test_wide_rows_that_differ_in_one_unit_stay_apart():
    """One row per unit, 200 units, the difference of one cell anywhere: ln 201."""
    cells = torch.cat([torch.zeros(1, 200), torch.eye(200)]).double() + 1e6
    result = cell_entropy(cells, None, 1)
    assert result.occupied == 201
    assert result.entropy == pytest.approx(math.log(201), rel=1e-12)


def test_huge_cells_stay_apart():
    """|t| / width beyond 2^63, as the docstring of grid_cells promises."""
    cells = double([[1e25, 0.0], [-1e25, 0.0], [2e25, 0.0], [1e25, 0.0]])
    assert cell_entropy(cells, None, 1).entropy == pytest.approx(symbol_entropy(cells.numpy())[0], rel=1e-12)


@LAWS
@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_laws_of_binned_entropy(seed, n, d, classes):
    """0 <= I(bin;Y) <= min(H(bin), H(Y)); H <= ln n; halving an aligned grid never lowers H; order is irrelevant."""
    g = np.random.default_rng(seed)
    values, labels = torch.from_numpy(g.normal(size=(n, d))), torch.from_numpy(g.integers(0, classes, n))
    last = -1.0
    for width in (4.0, 2.0, 1.0, 0.5, 0.25, 1e-12):
        result = cell_entropy(grid_cells(values, width), labels, classes)
        assert -1e-12 <= result.entropy <= math.log(n) + 1e-12
        assert result.entropy >= last - 1e-12
        last = result.entropy
        label_entropy = symbol_entropy(labels.numpy())[0]
        assert -1e-12 <= result.label_information <= min(result.entropy, label_entropy) + 1e-12
        order = torch.from_numpy(g.permutation(n))
        again = cell_entropy(grid_cells(values[order], width), labels[order], classes)
        assert again.entropy == pytest.approx(result.entropy, rel=1e-12, abs=1e-12)
        assert again.occupied == result.occupied
    assert last == pytest.approx(math.log(n), rel=1e-12, abs=1e-12)  # every row a cell of its own


def test_a_label_copied_by_the_cells():
    """The cell is the label: I = H = H(Y) by definition, weights 1/2, 1/3, 1/6."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    result = cell_entropy(labels[:, None].double(), labels, 3)
    expected = 0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6
    assert (result.entropy, result.label_information) == pytest.approx((expected, expected), rel=1e-12)
