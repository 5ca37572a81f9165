"""How many inputs a channel tells apart, at the last checkpoint."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.core.result import Result

TITLE = "inputs told apart"


def known(synthetic: ModuleType) -> Result:
    """The logarithms of the numbers below at the last epoch."""
    found: Result = synthetic.result(
        (1, 20), ["network", "readout", "relative"], names=("fc1", "out"), settings={"input_entropy": np.log(64)}
    )
    for name, values in (("network", (4.5, 2.25)), ("readout", (8.5, 2.25)), ("readout_rel", (1.0, 63.5))):
        found[f"mi_{name}_xt"].values[-1, :, 0] = np.log(values)
        found[f"mi_{name}_xt_se"].values[...] = 0.01
    found["mi_network_xt_lower"].values[...] = found["mi_network_xt"].values - 0.1
    found["mi_network_xt_upper"].values[...] = found["mi_network_xt"].values + 0.1
    return found


def table_of(synthetic: ModuleType, found: Result, width: int = 80, **options: Any) -> list[str]:
    blocks = synthetic.printed(found, width, **options)
    (place,) = [k for k, block in enumerate(blocks) if block[0].startswith(TITLE)]
    assert "I(X;T)" in blocks[place - 1][0]
    table: list[str] = blocks[place]
    return table


def test_the_table_shows_exp_of_information(synthetic: ModuleType) -> None:
    found = known(synthetic)
    synthetic.marked(found, "mi_readout_rel_xt", (-1, 1, 0), Status.SATURATED)
    assert table_of(synthetic, found) == [
        "inputs told apart at epoch 20 · at post, 64 probe rows",
        "       network  read-out  read-out",
        "         noise     noise     noise",
        "layer      0.1       0.1   0.1 rms",
        "──────────────────────────────────",
        "  fc1    4.500     8.500     1.00",
        "  out    2.250     2.250    63.50*",
        "",
        "* saturated: too close to its ceiling to tell anything apart",
        "exp(I(X;T)): how many inputs the channel tells apart, of 64; where it is 1, none",
        "from any other.",
        "Standard errors up to 1 % of the number.",
        "Brackets of the network channel end up to a factor 1.11 from it, unresolved ones",
        "aside.",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_units_do_not_change_it(synthetic: ModuleType, width: int) -> None:
    found = known(synthetic)
    assert table_of(synthetic, found, width, units="bits") == table_of(synthetic, found, width)
    plain = table_of(synthetic, found, width, unicode=False)
    assert all(line.isascii() for line in plain)
    assert plain[0] == "inputs told apart at epoch 20 - at post, 64 probe rows"


def test_an_open_bracket_is_one_of_numbers_of_inputs(synthetic: ModuleType) -> None:
    found = known(synthetic)
    synthetic.marked(found, "mi_network_xt", (-1, 0, 0), Status.UNRESOLVED)
    found["mi_network_xt_lower"].values[-1, 0, 0], found["mi_network_xt_upper"].values[-1, 0, 0] = 0.5, np.log(40.5)
    synthetic.marked(found, "mi_network_xt", (-1, 1, 0), Status.NOT_MEASURED, np.nan)
    table = table_of(synthetic, found)
    assert table[5].split() == ["fc1", "4", "[1,", "41]?", "8.500", "1.00"]
    assert table[6].split() == ["out", "-", "2.250", "63.50"]
    found["mi_network_xt_status"].values[...] = Status.NOT_MEASURED
    assert "network" not in " ".join(table_of(synthetic, found))


def test_how_many_there_are_is_a_bound_where_rows_may_repeat(synthetic: ModuleType) -> None:
    text = " ".join(table_of(synthetic, synthetic.result(range(2), ["readout"], rows=60_000)))
    assert "of at most 60000;" in text


def test_there_is_no_table_without_a_noisy_channel(synthetic: ModuleType) -> None:
    for bare in (["binned"], ["rank"], ["slope"]):
        assert not [b for b in synthetic.printed(synthetic.result(range(2), bare)) if b[0].startswith(TITLE)]
