"""Natural order, near names and short lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibscan.core.text import first_line, listed, natural, near_names

NAMES = st.text(alphabet="ab-.01289\u0662", max_size=8)


@given(st.lists(NAMES, max_size=8))
def test_natural_order_is_one_whatever_the_order_before(names: list[str]) -> None:
    assert [natural(name) for name in sorted(names, key=natural)] == sorted(natural(name) for name in names)


@given(NAMES, st.integers(0, 10**30), st.integers(0, 10**30))
def test_numbers_in_names_are_ordered_as_numbers(stem: str, first: int, second: int) -> None:
    stem = stem.rstrip("0123456789") + "-"
    assert (natural(f"{stem}{first}.pt") < natural(f"{stem}{second}.pt")) == (first < second)


def test_numbers_of_any_length_are_ordered() -> None:
    assert natural("a" + "9" * 5000) < natural("a1" + "0" * 5000)


@pytest.mark.parametrize(("typed", "near"), [("rnak", ["rank"]), ("zzz", []), ("RANK", [])])
def test_a_mistyped_name_has_its_nearest_names(typed: str, near: list[str]) -> None:
    assert near_names(typed, ["rank", "tree"]) == near


def test_a_short_list_says_how_many_more_there_are() -> None:
    assert [listed(list("abc")[:count], 2) for count in range(4)] == ["", "a", "a, b", "a, b and 1 more"]


def test_an_error_without_words_is_called_by_its_type() -> None:
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError("a" * 500), 200) == "a" * 200
