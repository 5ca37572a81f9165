from __future__ import annotations

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.views.cells import formatted, number, trend


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([784.0, 512.25, 3.0], ["784.0", "512.2", "3.0"]),
        ([12.5, 0.004], ["12.50", "0.004"]),
        ([8.31777, 0.5], ["8.318", "0.500"]),
        ([5.0, 4.0], ["5", "4"]),
        ([1234567.8, 1.0], ["1.23e+06", "1"]),
        ([0.000012, 0.0], ["1.2e-05", "0"]),
        ([2048.7, 3.25], ["2049", "3.25"]),
        ([np.inf, 1.5], ["inf", "1.500"]),
        ([-0.25, 0.1], ["-0.250", "0.100"]),
    ],
)
def test_numbers_of_a_column_have_three_or_four_digits(values: list[float], expected: list[str]) -> None:
    assert formatted(np.array(values), None, unicode=True) == expected


def test_marks_stand_behind_and_digits_below_digits() -> None:
    statuses = np.array([Status.OK, Status.SATURATED, Status.NONFINITE, Status.NOT_MEASURED, Status.DEAD])
    values = np.array([1.0, 2.5, np.nan, np.nan, 0.0])
    assert formatted(values, statuses, unicode=True) == ["1.000 ", "2.500*", "! ", "- ", "0.000†"]
    assert formatted(values, statuses, unicode=False)[-1] == "0.000#"


def test_a_trend_rises_with_its_values() -> None:
    rising = np.arange(100.0)
    assert trend(rising, 8, (0.0, 99.0), unicode=True) == "▁▂▃▄▅▆▇█"
    assert trend(rising, 5, (0.0, 99.0), unicode=False) == "_.-=#"
    assert trend(rising[::-1], 4, (0.0, 99.0), unicode=True) == "█▆▃▁"
    assert trend(np.array([1.0, np.nan, 2.0]), 8, (1.0, 2.0), unicode=True) == "▁ █"
    assert trend(np.array([1.0]), 8, (0.0, 1.0), unicode=True) == ""
    assert trend(np.array([np.nan, np.inf, 1.0]), 8, (0.0, 1.0), unicode=True) == ""
    assert trend(np.array([-1.7e308, 1.7e308, 1.7e308]), 3, (-1.7e308, 1.7e308), unicode=True) == "▁██"


def test_levels_are_of_the_scale_and_not_of_the_values() -> None:
    assert trend(np.array([7.9, 8.0, 8.1]), 8, (0.0, 8.32), unicode=True) == "███"
    assert trend(np.array([0.1, 0.2]), 8, (0.0, 8.32), unicode=True) == "▁▁"
    assert trend(np.array([-1.0, 9.0]), 8, (0.0, 8.0), unicode=True) == "▁█"
    assert trend(np.array([3.0, 3.0]), 8, (0.0, 0.0), unicode=True) == "▁▁"


def test_numbers_have_four_digits_at_most() -> None:
    assert [number(v) for v in (500.0, 0.12345, 1e-9, 123456.0, 12.0)] == ["500", "0.1235", "1e-09", "123456", "12"]
