"""Thresholds at which two spectra differ most."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from ibscan.core.thresholds import moving_thresholds


def counts(spectrum: np.ndarray, eps: float) -> np.ndarray:
    return (np.nan_to_num(spectrum) > eps).sum(-1)


def test_it_is_in_the_middle_of_the_gap_that_a_singular_value_crossed() -> None:
    first, last = np.array([[1.0, 0.5]]), np.array([[1.0, 0.005]])
    (eps,) = moving_thresholds(first, last)
    # Of the numbers of two digits from 0.005 to 0.5 the middle one.
    assert eps == 0.049
    assert counts(first, eps) - counts(last, eps) == 1


def test_layers_that_move_elsewhere_get_thresholds_of_their_own() -> None:
    first = np.array([[10.0, 9.0, np.nan], [1.0, 0.01, 0.01]])
    last = np.array([[10.0, 0.5, np.nan], [1.0, 0.0001, 0.0001]])
    low, high = moving_thresholds(first, last)
    assert 0.0001 < low < 0.01
    assert 0.5 < high < 9.0


def test_equal_empty_and_dead_spectra_have_none() -> None:
    same = np.array([[1.0, 0.5]])
    assert moving_thresholds(same, same) == ()
    assert moving_thresholds(np.empty((2, 0)), np.empty((2, 0))) == ()
    assert moving_thresholds(np.full((1, 2), np.nan), np.zeros((1, 2))) == ()
    # Below rounding of the largest.
    assert moving_thresholds(np.array([[1.0, 1e-9]]), np.array([[1.0, 1e-12]])) == ()


@given(*[arrays(float, (3, 4), elements=some.floats(0, 1e6))] * 2)
def test_no_threshold_of_two_digits_tells_layers_further_apart(first: np.ndarray, last: np.ndarray) -> None:
    found = moving_thresholds(first, last)
    assert moving_thresholds(last, first) == found
    assert list(found) == sorted(found)
    assert all(eps == float(f"{eps:.1e}") for eps in found)

    def moved(eps: float) -> float:
        return float(np.abs(counts(first, eps) - counts(last, eps)).sum())

    largest = max(first.max(), last.max())
    grid = [digit / 10 * 10.0**power for power in range(-7, 8) for digit in range(10, 100)]
    best = max((moved(eps) for eps in grid if 1.1e-6 * largest < eps < largest), default=0.0)
    # Layers have four units each, so that shares of them add up as counts.
    assert max(map(moved, found), default=0.0) >= best
