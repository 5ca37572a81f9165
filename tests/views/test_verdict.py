"""What a series did, by the errors it states: every word, ties, gaps and open brackets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from ibscan.core.estimate import Status
from ibscan.views.verdict import WORDS, Verdict, Word, critical, errors_of, judged, within_errors

NAN = math.nan
OPEN = Status.UNRESOLVED


def verdict(
    values: list[float],
    *,
    stderr: float | list[float] | None = None,
    half: dict[int, float] | None = None,
    statuses: dict[int, Status] | Status | None = None,
) -> Verdict:
    """Judge a series with standard errors, brackets of half widths by index, and statuses by index or of all."""
    array = np.array(values)
    codes = np.full(array.shape, statuses if isinstance(statuses, Status) else Status.OK, dtype=np.int8)
    for index, status in (statuses if isinstance(statuses, dict) else {}).items():
        codes[index] = status
    ends: Any = None
    if half is not None:
        width = np.array([half.get(index, NAN) for index in range(len(values))])
        ends = (array - width, array + width)
    spread = None if stderr is None else np.broadcast_to(np.array(stderr, dtype=float), array.shape)
    return judged(array, codes, errors_of(array, codes, spread, ends))


def test_a_fall_since_the_peak_beyond_errors_compresses() -> None:
    found = verdict([1.0, 3.0, 2.9, 2.0], stderr=0.1)
    assert (found.word, found.first, found.peak, found.last) == (Word.COMPRESSES, 0, 1, 3)
    # 2.9 does not differ from 3.0: it falls from there on.
    assert found.since == 2
    assert found.change == pytest.approx(-1.0)
    assert found.error == pytest.approx(critical(3) * math.hypot(0.1, 0.1))
    assert found.exceeds is True


def test_a_rise_without_a_fall_expands_since_the_last_lowest() -> None:
    found = verdict([1.0, 1.05, 2.0, 2.9, 3.0], stderr=0.1)
    assert (found.word, found.since, found.peak) == (Word.EXPANDS, 1, 4)
    assert found.change == pytest.approx(2.0)
    assert found.exceeds is True


def test_a_rise_that_ends_within_errors_of_its_peak_still_expands() -> None:
    found = verdict([1.0, 3.0, 2.9], stderr=0.1)
    assert (found.word, found.since, found.peak) == (Word.EXPANDS, 0, 1)
    assert found.change == pytest.approx(1.9)


def test_a_hump_compresses_and_of_a_valley_the_larger_side_is_told() -> None:
    assert verdict([1.0, 3.0, 2.9]).word is Word.COMPRESSES
    assert verdict([3.0, 1.0, 2.0]).word is Word.COMPRESSES
    found = verdict([3.0, 1.0, 2.1])
    assert (found.word, found.since) == (Word.EXPANDS, 1)
    assert found.change == pytest.approx(1.1)
    # It fell once more since its lowest value.
    assert verdict([3.0, 1.0, 2.5, 2.1]).word is Word.COMPRESSES
    # Whether it did is open.
    half = dict.fromkeys((0, 1, 3), 0.01) | {2: 1.0}
    assert verdict([3.0, 1.0, 2.5, 2.1], half=half, statuses={2: OPEN}).word is Word.COMPRESSES


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [2.0, 2.1, 2.05], [2.0, 1.9, 2.1]])
def test_what_moves_within_errors_is_flat(values: list[float]) -> None:
    found = verdict(values, stderr=0.1)
    assert (found.word, found.since, found.exceeds) == (Word.FLAT, None, False)
    assert abs(found.change) <= found.error


def test_exact_values_have_no_error_but_rounding() -> None:
    assert verdict([2.0, 2.0 - 1e-6]).word is Word.COMPRESSES
    assert verdict([2.0, 2.0 - 1e-6]).error == 0
    assert verdict([2.0, 2.0 - 1e-12]).word is Word.FLAT


def test_of_equal_peaks_it_falls_since_the_last() -> None:
    assert verdict([3.0, 3.0, 3.0, 1.0]).since == 2
    assert verdict([1.0, 1.0, 1.0, 3.0]).since == 2
    assert verdict([3.0, 1.0, 3.0, 1.0, 2.0]).since == 2


def test_pairs_of_saturated_values_tell_nothing() -> None:
    sat = Status.SATURATED
    found = verdict([8.30, 8.25], stderr=0.001, statuses=sat)
    assert (found.word, found.since, found.exceeds) == (Word.SATURATED, None, None)
    assert verdict([8.30, 8.25, 8.0], stderr=0.001, statuses={0: sat, 1: sat}).word is Word.COMPRESSES
    # It leaves the ceiling after the last saturated value.
    assert verdict([8.30, 8.25, 8.0], stderr=0.001, statuses={0: sat, 1: sat}).since == 1
    assert verdict([2.0, 8.25], stderr=0.001, statuses={1: sat}).word is Word.EXPANDS


@pytest.mark.parametrize(
    ("values", "statuses"),
    [
        ([1.0], {}),
        ([NAN, 1.0], {0: Status.NOT_MEASURED}),
        ([1.0, NAN], {1: Status.NONFINITE}),
        ([NAN, 1.0], {0: Status.FAILED}),
        ([1.0, 2.0], {0: Status.OUT_OF_MEMORY}),
        ([NAN, NAN], Status.NONFINITE),
        ([NAN, NAN], Status.NOT_MEASURED),
        ([math.inf, 1.0], {}),
    ],
)
def test_without_two_values_nothing_can_be_told(values: list[float], statuses: Any) -> None:
    found = verdict(values, stderr=0.1, statuses=statuses)
    assert found.word is Word.CANNOT_TELL
    assert math.isnan(found.change)
    assert found.exceeds is None


def test_gaps_between_are_left_out_and_the_last_measured_counts() -> None:
    found = verdict([3.0, NAN, 2.0, NAN], statuses={1: Status.FAILED, 3: Status.NOT_MEASURED})
    assert (found.word, found.first, found.last, found.since) == (Word.COMPRESSES, 0, 2, 0)


def test_open_brackets_that_overlap_cannot_tell_and_others_decide() -> None:
    closed = {0: 0.05, 2: 0.05}
    assert verdict([3.0, 3.1, 2.9], half=closed | {1: 0.5}, statuses={1: OPEN}).word is Word.CANNOT_TELL
    # A fall that closed brackets show stands, whatever an open one holds.
    assert verdict([3.0, 3.1, 2.0], half=closed | {1: 2.0}, statuses={1: OPEN}).word is Word.COMPRESSES
    # All of an open bracket lies above the last.
    found = verdict([1.0, 4.0, 1.0], half=closed | {1: 1.0}, statuses={1: OPEN})
    assert (found.word, found.peak) == (Word.COMPRESSES, 1)
    assert found.error == pytest.approx(1.05)
    # It rose, but may have been higher between.
    assert verdict([1.0, 2.0, 2.0], half=closed | {1: 0.5}, statuses={1: OPEN}).word is Word.CANNOT_TELL
    assert verdict([1.0, 1.5, 3.0], half=closed | {1: 0.5}, statuses={1: OPEN}).word is Word.EXPANDS


def test_brackets_add_up_beyond_what_their_standard_errors_explain() -> None:
    found = verdict([3.0, 2.0], half={0: 0.3, 1: 0.2})
    assert found.word is Word.COMPRESSES
    assert found.error == pytest.approx(0.5)
    assert verdict([3.0, 2.0], half={0: 0.6, 1: 0.5}).word is Word.FLAT
    # Half of the first bracket is chance, and so is all of the second.
    found = verdict([3.0, 2.0], stderr=[0.1, 0.2], half={0: 2 * critical(1) * 0.1, 1: critical(1) * 0.2})
    assert found.error == pytest.approx(critical(1) * (0.1 + math.hypot(0.1, 0.2)))


@pytest.mark.parametrize(("comparisons", "sigmas"), [(0, 1.96), (1, 1.96), (2, 2.236), (10, 2.800), (19, 3.0004)])
def test_the_more_checkpoints_are_compared_the_more_standard_errors_decide(comparisons: int, sigmas: float) -> None:
    assert critical(comparisons) == pytest.approx(sigmas, abs=5e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("length", [2, 20])
def test_a_flat_series_is_called_so_in_95_of_100(length: int, correlation: float) -> None:
    rng = np.random.default_rng(length)
    common, own = rng.standard_normal((1000, 1)), rng.standard_normal((1000, length))
    drawn = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    moved = [verdict(list(row), stderr=1.0).word is not Word.FLAT for row in drawn]
    # Three standard deviations of a count of 5 %.
    assert np.mean(moved) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_real_fall_among_twenty_is_found() -> None:
    rng = np.random.default_rng(0)
    fall = np.concatenate([np.full(10, 5.0), np.zeros(10)])
    words = [verdict(list(fall + rng.standard_normal(20)), stderr=1.0).word for _ in range(200)]
    assert words.count(Word.COMPRESSES) >= 195


def test_exact_and_saturated_cells_are_no_comparisons() -> None:
    sat = Status.SATURATED
    found = verdict([8.3, 8.3, 8.2, 7.0, 6.0], stderr=[0.1, 0.1, 0.1, 0.1, 0.1], statuses={0: sat, 1: sat, 4: sat})
    assert found.error == pytest.approx(critical(2) * math.hypot(0.1, 0.1))
    assert verdict([5.0, 3.0, 2.0], stderr=[0.1, NAN, 0.0]).error == pytest.approx(critical(1) * 0.1)


def test_an_unresolved_value_without_a_bracket_and_an_unknown_error_may_be_anything() -> None:
    found = verdict([3.0, 2.0], stderr=0.1, statuses={1: OPEN})
    assert (found.word, found.change, found.error) == (Word.CANNOT_TELL, -1.0, math.inf)
    assert verdict([3.0, 2.0], stderr=[NAN, 0.1]).word is Word.CANNOT_TELL
    assert verdict([3.0, 0.0], stderr=[0.1, NAN], statuses={1: Status.DEAD}).word is Word.COMPRESSES


def test_lower_bounds_count_as_what_was_counted() -> None:
    assert verdict([3.0, 2.0], stderr=0.1, statuses=Status.LOWER_BOUND).word is Word.COMPRESSES


def test_counts_have_no_statuses() -> None:
    array = np.array([3.0, 2.0])
    assert judged(array, None, errors_of(array, None, None, None)).word is Word.COMPRESSES


@given(some.lists(some.floats(-1e308, 1e308), min_size=2, max_size=6), some.sampled_from([None, 0.0, 0.5, 1e300]))
def test_turned_round_in_time_or_upside_down_the_words_agree(values: list[float], stderr: float | None) -> None:
    found, inverse = verdict(values, stderr=stderr), verdict([-value for value in values], stderr=stderr)
    assert (found.word is Word.FLAT) == (inverse.word is Word.FLAT)
    two, back = ([values[0], values[-1]], [values[-1], values[0]])
    swapped = {Word.COMPRESSES: Word.EXPANDS, Word.EXPANDS: Word.COMPRESSES}
    word = verdict(two, stderr=stderr).word
    assert verdict(back, stderr=stderr).word is swapped.get(word, word)


def test_a_range_within_errors_is_flat_and_gaps_are_no_range() -> None:
    values = np.array([1.0, NAN, 1.2])
    assert within_errors(values, errors_of(values, None, np.full(3, 0.1), None))
    assert not within_errors(values, errors_of(values, None, np.full(3, 0.05), None))
    assert within_errors(np.array([NAN]), errors_of(np.array([NAN]), None, None, None))


def test_every_word_is_explained() -> None:
    assert set(WORDS) == set(Word)
