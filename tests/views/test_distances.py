"""The picture of distances of pairs of rows."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ibscan.core.result import Result
from ibscan.views.cells import blocks


def picture(synthetic: ModuleType, found: Result, width: int = 80, **options: bool) -> list[str]:
    blocks = [b for b in synthetic.printed(found, width, **options) if b[0].startswith("distances of pairs")]
    return blocks[0] if blocks else []


def filled(synthetic: ModuleType) -> Result:
    found: Result = synthetic.result((0, 1, 7), ["cluster"], names=("fc1",))
    found["distance_within"].values[...] = np.array([4, 8, 0, 0, 0])
    found["distance_between"].values[...] = np.array([0, 0, 0, 1, 80])
    found["distance_edge_high"].values[...] = np.arange(1, 6) / 2
    return found


def test_blocks_are_shares_of_the_highest_and_blank_where_there_is_none() -> None:
    counts = np.array([0, 1, 50, 100])
    assert blocks(counts, 4, unicode=True) == " ▁▅█"
    assert blocks(counts, 4, unicode=False) == " _-#"
    # Neighbouring bins share a block; there are no more blocks than bins.
    assert blocks(counts, 2, unicode=True) == "▁█"
    assert len(blocks(counts, 50, unicode=True)) == 4
    assert blocks(np.zeros(3), 50, unicode=True) == "   "


def test_the_first_and_the_last_checkpoint_have_a_line_a_kind_with_edges(synthetic: ModuleType) -> None:
    lines = picture(synthetic, filled(synthetic))
    assert lines[1].split() == ["layer", "pairs", "from", "0", "to"]
    rows = [line.split() for line in lines[3:9]]
    pair = [["fc1", "within", "▅█", "2.5"], ["fc1", "between", "▁█", "2.5"]]
    assert rows == [["epoch", "0"], *pair, ["epoch", "7"], *pair]


def test_it_fits_any_width_and_needs_labels(synthetic: ModuleType) -> None:
    found = filled(synthetic)
    for width in (40, 80, 120):
        assert all(len(line) <= width for line in picture(synthetic, found, width, unicode=False))
    bare = {name: v for name, v in found.variables.items() if name != "distance_between"}
    assert picture(synthetic, Result(found.coordinates, bare, found.attrs)) == []
    found["distance_within"].values[...] = -1
    found["distance_between"].values[...] = -1
    assert picture(synthetic, found) == []
