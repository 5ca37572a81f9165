"""Open brackets: they stand behind their number, hold what is stored, and leave tables readable."""

from __future__ import annotations

import math
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from ibscan.core.estimate import Status
from ibscan.core.quantity import NOISE, Quantity
from ibscan.core.result import Result
from ibscan.results.export import rows
from ibscan.views.cells import formatted

OPEN = np.array([Status.UNRESOLVED])
SIDES = ("xt", "ty", "xt_given_y")
NUMBERS = st.floats(allow_nan=False, allow_infinity=True) | st.floats(-20, 20)


def cell(value: float, low: float, high: float, status: Status = Status.UNRESOLVED) -> str:
    (text,) = formatted(np.array([value]), np.array([status]), unicode=True, ends=(np.array([low]), np.array([high])))
    return text


@pytest.mark.parametrize(
    ("value", "low", "high", "printed"),
    [
        (3.1, 2.6, 3.6, "3.1 [2.6, 3.6]?"),
        (3.123, 2.6, 3.59, "3.12 [2.60, 3.59]?"),
        (3.123, 2.612, 3.712, "3.1 [2.6, 3.8]?"),
        (3.1234, 3.08, 3.16, "3.123 [3.080, 3.160]?"),
        (0.69315, 0.69305, 0.69324, "0.693 [0.693, 0.694]?"),
        (-12.3, -30.2, 5.5, "-12 [-31, 6]?"),
        (55.0, 7.39, 404.4, "55 [7, 405]?"),
        (-0.04, -0.09, 1.2, "0.0 [-0.1, 1.2]?"),
        (0.5, -3.0, -0.001, "0.5 [-3.0, 0.0]?"),
        (2e-9, 1e-9, 3e-9, "2e-09 [1e-09, 3e-09]?"),
        (2e8, 123456789.0, 3e8, "2e+08 [1.23e+08, 3e+08]?"),
        (1.0, 1.0, 1.0, "1 [1, 1]?"),
        (22.0, 1.0, math.inf, "22 [1, inf]?"),
        (math.nan, 2.6, 3.6, " [2.6, 3.6]?"),
        (math.nan, math.nan, 3.6, "?"),
        (3.0, 2.6, math.nan, "3?"),
    ],
)
def test_digits_follow_the_width_of_the_bracket(value: float, low: float, high: float, printed: str) -> None:
    assert cell(value, low, high) == printed


@given(NUMBERS, NUMBERS, NUMBERS)
@example(0.0, 2.6, 3.6)
def test_the_printed_bracket_holds_the_stored_one(value: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]\?", cell(value, low, high))
    assert found is not None
    assert float(found[2]) <= low
    assert float(found[3]) >= high
    largest = (
        max(abs(end) for end in (value, low, high) if math.isfinite(end)) if math.isfinite(low + high) else math.inf
    )
    if largest < 1e6 and high - low >= 0.01 * max(1.0, largest):
        assert float(found[3]) - float(found[2]) <= 1.2 * (high - low) + 1e-9


def test_only_unresolved_numbers_have_brackets_and_digits_stay_aligned() -> None:
    status = np.array([Status.OK, Status.UNRESOLVED, Status.SATURATED, Status.NOT_MEASURED])
    values = np.array([1.0, 123.0, 2.5, np.nan])
    ends = (np.array([0.0, 100.0, 0.0, 0.0]), np.array([9.0, 150.0, 9.0, 9.0]))
    texts = formatted(values, status, unicode=True, ends=ends)
    assert [text.rstrip() for text in texts] == ["1.000", "123 [100, 150]?", "2.500*", "-"]
    assert (
        len({len(text) - len(number) for text, number in zip(texts, ("1.000", "123", "2.500", "-"), strict=True)}) == 1
    )
    assert formatted(values, status, unicode=True)[1] == "123.0?"


def network(synthetic: ModuleType, layers: int = 5, **changes: Any) -> Result:
    """All three quantities of the network channel; every bracket is 1 wide, and open from epoch 1 on."""
    symbols = {"xt": "I(X; T)", "ty": "I(T; Y)", "xt_given_y": "I(X; T | Y)"}
    own = tuple(
        Quantity(
            f"mi_network_{side}",
            symbol,
            "nat",
            f"information {side}",
            (NOISE,),
            table="beyond the label"[: 16 * (side == SIDES[2])],
        )
        for side, symbol in symbols.items()
    )
    names = tuple(f"fc{k}" for k in range(1, layers + 1))
    fake = synthetic.Fake("network", own, {"noise": (0.005,)})
    found: Result = synthetic.result((0, 1, 20, 300), [fake, "fit"], names=names, **changes)
    for side in SIDES:
        key = f"mi_network_{side}"
        found[key].values[...] = 3.1
        found[f"{key}_lower"].values[...], found[f"{key}_upper"].values[...] = 2.6, 3.6
        found[f"{key}_se"].values[0], found[f"{key}_se"].values[1:] = 0.01, 0.2
        found[f"{key}_status"].values[1:] = Status.UNRESOLVED
    return found


def block(found: Result, synthetic: ModuleType, title: str, width: int = 80, **options: Any) -> list[str]:
    (lines,) = [lines for lines in synthetic.printed(found, width, **options) if lines[0].startswith(title)]
    return list(lines)


TITLES = ("mutual information I(X;T)", "mutual information I(T;Y)", "beyond the label")
VARIABLES = tuple(f"mi_network_{side}" for side in SIDES)


@pytest.mark.parametrize("title", [*TITLES, *VARIABLES])
@pytest.mark.parametrize("width", [80, 120])
def test_every_table_of_the_channel_shows_open_brackets(synthetic: ModuleType, title: str, width: int) -> None:
    options = {"variables": [title]} if title in VARIABLES else {}
    lines = block(network(synthetic), synthetic, title, width, **options)
    cells = [line for line in lines if re.match(r" *(1|20|300) ", line)]
    assert sum(line.count("3.1 [2.6, 3.6]?") for line in cells) == 3 * 5
    # The first checkpoint is resolved.
    assert sum(line.count("3.1") for line in lines if re.match(r" *0 ", line)) == 5
    assert sum(line.startswith("epoch ") for line in lines) == (2 if width == 80 else 1)
    assert all(cell_len(line) <= width for line in lines)
    legend = " ".join(lines)
    assert "? unresolved: tolerance not reached within the budget; v [a, b]? the bracket did not close" in legend


def test_brackets_are_in_the_unit_asked_for(synthetic: ModuleType) -> None:
    lines = block(network(synthetic), synthetic, TITLES[0], units="bits")
    assert "4.5 [3.7, 5.2]?" in " ".join(lines)


def test_errors_and_trend_are_of_closed_brackets(synthetic: ModuleType) -> None:
    found = network(synthetic, layers=1)
    found["mi_network_xt_status"].values[2] = Status.OK
    found["mi_network_xt_se"].values[2] = 0.02
    lines = block(found, synthetic, TITLES[0])
    assert "Standard errors up to 0.02 nat." in lines
    assert "Brackets of the network channel end up to 0.5 nat from its values, unresolved ones aside." in " ".join(
        lines
    )
    (course,) = [line for line in lines if line.startswith("trend")]
    # Two brackets left, which overlap: flat.
    assert re.fullmatch(r"trend +\S+ +(\S) \1", course)


def test_bounds_of_the_read_out_are_no_bracket(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["readout"], names=("fc1",))
    synthetic.marked(found, "mi_readout_xt", (1, 0, 0), Status.UNRESOLVED, 3.1234)
    text = "\n".join(block(found, synthetic, TITLES[0]))
    assert "3.123?" in text
    assert "[" not in text
    assert found.bracket("mi_readout_xt") is None


def test_what_has_no_ends_has_no_bracket(synthetic: ModuleType) -> None:
    found = network(synthetic)
    assert all(found.bracket(f"mi_network_{side}") is not None for side in SIDES)
    assert found.bracket("mi_network_xt_lower") is None
    assert found.bracket("probe_accuracy") is None
    assert found.bracket("epoch") is None


@pytest.mark.parametrize("side", SIDES)
def test_rows_have_the_ends_in_full(synthetic: ModuleType, side: str) -> None:
    found = network(synthetic, layers=1)
    found[f"mi_network_{side}_lower"].values[1:] = 2.6000001
    key = f"mi_network_{side}"
    for variables in ((), (key,)):
        listed = [row for row in rows(found, variables=variables) if row["variable"] == key]
        assert [(row["lower"], row["upper"], row["status"]) for row in listed[1:]] == [
            (2.6000001, 3.6, "unresolved")
        ] * 3


@pytest.mark.parametrize("unicode", [True, False])
def test_no_bracket_is_cut_at_any_width(synthetic: ModuleType, unicode: bool) -> None:
    found = network(synthetic, layers=2)
    for width in (*range(1, 62, 5), 80):
        lines = [line for part in synthetic.printed(found, width, unicode=unicode) for line in part]
        assert all(cell_len(line) <= width for line in lines), width
        assert unicode or all(line.isascii() for line in lines)
        assert "3.1[2.6,3.6]?" in re.sub(r"\s", "", "".join(lines))
