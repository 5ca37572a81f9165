"""Cells and plug-in entropies against floor, dictionary counts and laws of methods.md section 3."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import symbol_entropy

from ibscan.numerics.geometry.cells import Budget, cell_entropy, equal_cells, grid_cells

LAWS = settings(max_examples=25, deadline=None, derandomize=True)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_grid_is_floor_with_an_edge_at_zero() -> None:
    """Width 0.25 is dyadic: the quotients are exact, edges belong to the cell above, -0.0 to cell 0."""
    values = double([-0.5, -0.3, -0.25, -1e-9, -0.0, 0.0, 0.2, 0.25, 0.49, 0.5, 7.0])
    assert grid_cells(values, 0.25).tolist() == [-2, -2, -1, -1, 0, 0, 0, 1, 1, 2, 28]


@LAWS
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-4, 10))
def test_grid_is_that_of_math_floor(values: Sequence[float], width: float) -> None:
    """Cell k is k * width <= t < (k + 1) * width; the quotient alone may round up to k."""
    for value, cell in zip(values, grid_cells(double(values), width).tolist(), strict=True):
        assert cell * width <= value < (cell + 1) * width
        assert abs(cell - math.floor(value / width)) <= 1


def beside(edge: float) -> list[float]:
    """The edge, and the numbers just below and above it."""
    return [math.nextafter(edge, -math.inf), edge, math.nextafter(edge, math.inf)]


@pytest.mark.parametrize("width", [0.07, 0.1, 1 / 3, 0.7, 1e-4, 3e5])
def test_edges_of_a_grid_belong_to_the_cell_above(width: float) -> None:
    for k in [*range(-60, 61), 10**6 + 7, -(10**6) - 7]:
        below, on, above = grid_cells(double(beside(k * width)), width).tolist()
        assert (below, on, above) == (k - 1, k, k)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 1.7), (1000.0, 1000.7), (-1e-9, 5.0)])
@pytest.mark.parametrize("bins", [1, 2, 3, 7, 30, 49, 100, 1000])
def test_edges_of_equal_cells_belong_to_the_cell_above(low: float, high: float, bins: int) -> None:
    """Edge k, low + (high - low) * k / bins in float64, is in cell k and the number just below it in cell k - 1."""
    for k in range(1, bins):
        below, on, above = equal_cells(double(beside(low + (high - low) * k / bins)), low, high, bins).tolist()
        assert (below, on, above) == (k - 1, k, k)
    ends = equal_cells(double([*beside(low), *beside(high)]), low, high, bins).tolist()
    assert ends == [0, 0, 0, bins - 1, bins - 1, bins - 1]


def test_cells_narrower_than_rounding_end() -> None:
    """Five numbers for thirty cells: every value lies between the edges of its cell, as far as they can be told."""
    low = 1.0
    high = low + 5 * 2.0**-52
    values = double([low + k * 2.0**-52 for k in range(6)])
    cells = equal_cells(values, low, high, 30).tolist()
    assert cells == sorted(cells)
    assert (cells[0], cells[-1]) == (0, 29)
    for value, cell in zip(values.tolist()[1:-1], cells[1:-1], strict=True):
        assert low + (high - low) * cell / 30 <= value < low + (high - low) * (cell + 1) / 30


def test_a_range_beyond_the_largest_number_is_cut() -> None:
    cells = equal_cells(double([-1.5e308, -1.0, 1.0, 1.5e308]), -1.6e308, 1.6e308, 2)
    assert cells.tolist() == [0, 0, 1, 1]


def test_grid_does_not_overflow() -> None:
    cells = grid_cells(double([[1e300], [-1e300], [2e300]]), 1e-6)
    assert torch.isfinite(cells).all()
    assert cell_entropy(cells, None, 1).occupied == 3


LEAST = 5e-324


def edges_of(low: float, high: float, bins: int) -> list[Fraction]:
    """Inner edges, exactly, as fractions: what float64 rounds."""
    return [Fraction(low) + (Fraction(high) - Fraction(low)) * k / bins for k in range(1, bins)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-1e-310, 2e-310), (0.0, 1e-305), (0.0, 40 * LEAST), (-3e-320, 1e-322), (1e-300, 1e300), (0.0, 1.5e308),
        (-1e308, 1e308), (-1.7e308, 1.7e308), (-1e-320, 1e308), (-1e308, 1e-320),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bins", [1, 2, 3, 7, 30, 1000])
def test_ranges_too_small_or_large_to_divide_by_are_cut(low: float, high: float, bins: int) -> None:
    """The cell is the number of inner edges at or below the value; edges are rounded once or twice."""
    share = np.random.default_rng(bins).random(60)
    values = [*(low * (1 - share) + high * share), low, high, 0.0, LEAST, -LEAST, 1e-315, 1e290]
    cells = equal_cells(double(values), low, high, bins).tolist()
    edges = edges_of(low, high, bins)
    slack = 4 * max(abs(Fraction(low)), abs(Fraction(high))) / 2**52 + 4 * Fraction(LEAST)
    for value, cell in zip(values, cells, strict=True):
        assert 0 <= cell <= bins - 1
        assert cell == int(cell)
        below = sum(edge <= Fraction(value) - slack for edge in edges)
        above = sum(edge <= Fraction(value) + slack for edge in edges)
        ends = (value <= low and cell == 0) or (value >= high and cell == bins - 1)
        assert ends or below <= cell <= above


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("bins", [2, 3, 7])
def test_the_smallest_numbers_are_cut_as_defined(steps: int, bins: int) -> None:
    """Whole numbers of the least number there is: as many cells, and of as many rows, as by the definition."""
    values = [k * LEAST for k in range(steps + 1)]
    edges = [steps * LEAST * k / bins for k in range(1, bins)]
    wanted = np.searchsorted(edges, values, side="right")
    cells = np.array(equal_cells(double(values), 0.0, steps * LEAST, bins).tolist())
    np.testing.assert_array_equal(cells[:, None] == cells, wanted[:, None] == wanted)


@pytest.mark.parametrize("width", [LEAST, 1e-310, 1e-300, 0.1, 1e300, 1e308])
def test_grids_of_any_width_are_floors_of_exact_quotients(width: float) -> None:
    """The floor of the exact quotient; from 2^53 on every number is alone."""
    values = [0.0, LEAST, -LEAST, 1e-310, 2.5e-310, -1e-310, 0.05, 0.35, -7.0, 1e300, -1e300, 1.5e308]
    values += [math.nextafter(1.5e308, 0), math.nextafter(-7.0, 0)]
    cells = grid_cells(double(values), width).tolist()
    exact = [math.floor(Fraction(value) / Fraction(width)) for value in values]
    for a, cell, one in zip(values, cells, exact, strict=True):
        assert math.isfinite(cell)
        if abs(one) < 2**53:
            # A product of float64 may be the value where the exact one is just above it.
            assert cell == one or (cell == one + 1 and cell * width == a)
        for b, other, two in zip(values, cells, exact, strict=True):
            if max(abs(one), abs(two)) >= 2**53:
                assert (cell == other) == (a == b)


def test_equal_cells_of_the_closed_range() -> None:
    """Eight cells of [-1, 1] have width 0.25: each value by hand."""
    values = double([-1.0, -0.75, -0.7500001, -0.01, 0.0, 0.74, 0.75, 0.999999, 1.0])
    assert equal_cells(values, -1.0, 1.0, 8).tolist() == [0, 1, 0, 3, 4, 6, 7, 7, 7]


def test_values_outside_go_to_the_end_cells() -> None:
    cells = equal_cells(double([[-5.0, -1.0000001], [0.0, 1.0], [1.0000001, 1e9]]), -1.0, 1.0, 4)
    assert cells.tolist() == [[0, 0], [2, 3], [3, 3]]


def test_saturated_tanh_with_thirty_bins() -> None:
    """Values of exactly +-1 are inside: the first and the last cell; -1 never wraps, 1 opens no 31st cell."""
    values = torch.tanh(double([-40.0, -20.0, 20.0, 40.0]))
    assert values.tolist() == [-1, -1, 1, 1]
    assert equal_cells(values, -1.0, 1.0, 30).tolist() == [0, 0, 29, 29]


def test_equal_range_is_one_cell() -> None:
    cells = equal_cells(double([3.0, 3.0, 3.0]), 3.0, 3.0, 10)
    assert len(set(cells.tolist())) == 1
    assert 0 <= cells[0] <= 9


@LAWS
@given(st.integers(1, 40), st.floats(-10, 10), st.floats(0.1, 10), st.integers(0, 99))
def test_equal_cells_against_searchsorted(bins: int, low: float, width: float, seed: int) -> None:
    """The cell is the number of inner edges at or below the value."""
    high = low + width
    values = np.random.default_rng(seed).uniform(low - 0.2 * width, high + 0.2 * width, 50)
    edges = [low + (high - low) * k / bins for k in range(1, bins)]
    cells = equal_cells(double(values.tolist()), low, high, bins)
    assert cells.tolist() == np.searchsorted(edges, values, side="right").tolist()


def test_one_cell_has_no_information() -> None:
    result = cell_entropy(torch.zeros(20, 3, dtype=torch.float64), torch.arange(20) % 2, 2)
    assert result.entropy == pytest.approx(0.0, abs=1e-15)
    assert result.label_information == pytest.approx(0.0, abs=1e-15)
    assert result.occupied == 1


# d = 200 with 1000 symbols a unit: 1000^200 does not fit any integer, so packing must not overflow.
@pytest.mark.parametrize(("n", "d", "high"), [(1, 1, 2), (50, 1, 3), (500, 2, 4), (300, 12, 2), (200, 200, 1000)])
def test_entropy_is_that_of_a_dictionary(n: int, d: int, high: int) -> None:
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


def test_wide_rows_that_differ_in_one_unit_stay_apart() -> None:
    """One row per unit, 200 units, the difference of one cell anywhere: ln 201."""
    cells = torch.cat([torch.zeros(1, 200), torch.eye(200)]).double() + 1e6
    result = cell_entropy(cells, None, 1)
    assert result.occupied == 201
    assert result.entropy == pytest.approx(math.log(201), rel=1e-12)


def test_huge_cells_stay_apart() -> None:
    """|t| / width beyond 2^63, as the docstring of grid_cells promises."""
    cells = double([[1e25, 0.0], [-1e25, 0.0], [2e25, 0.0], [1e25, 0.0]])
    assert cell_entropy(cells, None, 1).entropy == pytest.approx(symbol_entropy(cells.numpy())[0], rel=1e-12)


@LAWS
@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_binned_entropy_obeys_its_laws(seed: int, n: int, d: int, classes: int) -> None:
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


def test_cells_that_copy_the_label_have_its_entropy() -> None:
    """The cell is the label: I = H = H(Y) by definition, weights 1/2, 1/3, 1/6."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    result = cell_entropy(labels[:, None].double(), labels, 3)
    expected = 0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6
    assert (result.entropy, result.label_information) == pytest.approx((expected, expected), rel=1e-12)


def counted(cells: np.ndarray, labels: np.ndarray) -> tuple[float, float, int]:
    """H(cell), I(cell; Y) and occupied cells by counting tuples in a dictionary."""
    rows, n = [tuple(row) for row in cells.tolist()], len(cells)

    def plain(symbols: Sequence[int | tuple[float | tuple[float, ...], ...]]) -> float:
        return -math.fsum(k / n * math.log(k / n) for k in Counter(symbols).values())

    joint = plain(list(zip(rows, labels.tolist(), strict=True)))
    return plain(rows), plain(rows) + plain(labels.tolist()) - joint, len(set(rows))


# From one cell a unit to ranges that leave int64 behind; 2^53 + 1 does not exist in float64.
RANGES = (1, 2, 30, 10**6, 2**40, 2**53, 10**25)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 9999),
    st.integers(1, 60),
    st.integers(1, 90),
    st.lists(st.sampled_from(RANGES), min_size=1, max_size=5),
    st.integers(1, 60),
    st.sampled_from([0.0, -7.0, 1e6, -(2.0**60)]),
)
def test_any_cells_have_the_entropy_of_a_dictionary(
    seed: int, n: int, d: int, ranges: Sequence[int], patterns: int, offset: float
) -> None:
    """Columns narrow and wide in any order, rows repeated or not, all at an offset: 1e-12 nats."""
    g = np.random.default_rng(seed)
    size = np.array(ranges, dtype=float)[np.arange(d) % len(ranges)]
    cells = np.floor(g.random((patterns, d)) * size)[g.integers(0, patterns, n)] + offset
    one = g.integers(0, n)
    cells[one, g.integers(0, d)] += 1.0  # a row that may differ in one unit alone
    labels = g.integers(0, 3, n)
    expected, information, occupied = counted(cells, labels)
    result = cell_entropy(torch.from_numpy(cells), torch.from_numpy(labels), 3)
    assert result.occupied == occupied
    assert result.entropy == pytest.approx(expected, rel=0, abs=1e-12)
    assert result.label_information == pytest.approx(information, rel=0, abs=1e-12)


@pytest.mark.parametrize("limit", [4, 64, 2**20])
def test_small_keys_give_the_same(limit: int) -> None:
    """Keys that overflow at every other column, columns that are all ranked: the entropy of the same cells."""
    g = np.random.default_rng(3)
    cells, labels = torch.from_numpy(g.integers(0, 2, (40, 9)).astype(float)), torch.from_numpy(g.integers(0, 2, 40))
    whole = cell_entropy(cells, labels, 2)
    budget = Budget(keys=max(limit, 40 * 40), column=limit, columns=2)
    assert cell_entropy(cells, labels, 2, budget=budget) == whole


def test_units_are_cut_only_while_rows_share_a_cell() -> None:
    """200 units of continuous values and fine cells: the first few tell all rows apart, H = ln n exactly."""
    values, seen = torch.randn(500, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64), []

    def cut(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape)
        return grid_cells(part, 1e-3)

    assert cell_entropy(values, None, 1, cut).entropy == pytest.approx(math.log(500), rel=1e-15)
    assert seen == [(500, Budget.columns)]
    seen.clear()
    values[7] = values[3]
    result = cell_entropy(values, None, 1, cut)
    assert result.entropy == pytest.approx(math.log(500) - 2 * math.log(2) / 500, rel=1e-14)
    assert [shape[0] for shape in seen[:2]] == [500, 2]  # the two equal rows alone go on
    assert sum(shape[1] for shape in seen) == 200
