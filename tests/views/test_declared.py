"""Tables that quantities declare by a common title."""

from __future__ import annotations

from types import ModuleType

from ibscan.core.estimate import Status
from ibscan.core.quantity import REL_EPS, Quantity
from ibscan.core.result import Result

ONE = Quantity("one", "O_1", "1", "number one", table="of two")
TWO = Quantity("two", "O_2", "1", "number two", (REL_EPS,), table="of two")
OTHER = Quantity("other", "NC9", "1", "another number", table="of one")
SILENT = Quantity("silent", "S", "1", "a number without a table")


def printed(synthetic: ModuleType, *quantities: Quantity, eps: tuple[float, ...] = (0.1,)) -> dict[str, list[str]]:
    measure = synthetic.Fake("m", quantities, {"rel_eps": eps})
    found: Result = synthetic.result((1, 20), [measure], names=("fc1", "out"))
    found["one"].values[...] = [[1.0, 2.0], [3.0, 4.0]]
    if "other" in found:
        for layer in (0, 1):
            synthetic.marked(found, "other", (layer, 0), Status.NOT_MEASURED)
    return {block[0].partition(" ·")[0]: block for block in synthetic.printed(found, 80)}


def test_quantities_of_one_title_stand_together_under_their_symbols(synthetic: ModuleType) -> None:
    block = printed(synthetic, ONE, TWO, SILENT)["of two"]
    assert block[1].split() == ["fc1", "out"]
    assert block[2].split() == ["O_1", "O_2", "O_1", "O_2"]
    assert block[3].split() == ["epoch", "loss", "rel_eps", "0.1", "rel_eps", "0.1"]
    assert [line.split()[2] for line in block[5:7]] == ["1", "3"]
    assert block[-1] == "O_1: number one. O_2: number two."


def test_many_columns_are_shown_at_the_last_checkpoint(synthetic: ModuleType) -> None:
    tables = printed(synthetic, ONE, TWO, eps=(0.1, 0.01, 0.001))
    block = tables["of two at epoch 20"]
    assert block[1].split() == ["O_1", "O_2", "O_2", "O_2"]
    assert [line.split()[:2] for line in block[4:6]] == [["fc1", "3"], ["out", "4"]]


def test_layers_of_which_nothing_was_measured_are_left_out(synthetic: ModuleType) -> None:
    tables = printed(synthetic, ONE, OTHER)
    assert tables["of one"][1].split() == ["out"]
    assert "of two" in tables
