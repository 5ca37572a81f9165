"""Information of the top principal components of wide layers, at the last checkpoint."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.core.result import Result

TITLE = "read-out information of top principal components"


def projected(synthetic: ModuleType, *, noises: tuple[float, ...] = (0.1,)) -> Result:
    """fc1 is wide, out is not."""
    fakes = [synthetic.Fake(n, getattr(synthetic, n.upper()), {"noise": noises}) for n in ("readout", "projected")]
    found: Result = synthetic.result((1, 20), fakes, names=("fc1", "out"))
    for name, value in (("projected_xt", 3.25), ("projected_tail", 0.5), ("xt", 3.5)):
        found[f"mi_readout_{name}"].values[:, 0] = value
        found[f"mi_readout_{name}"].values[:, 1] = np.nan
    found["mi_readout_projected_xt_se"].values[...] = 0.01
    found["mi_readout_xt_se"].values[:, 0] = 0.02
    found["mi_readout_projected_components"].values[:, 0] = 64
    found["mi_readout_projected_components"].values[:, 1] = -1
    for name in ("projected_xt", "projected_tail"):
        found[f"mi_readout_{name}_status"].values[:, 1] = Status.NOT_MEASURED
    return found


def tables_of(synthetic: ModuleType, found: Result, width: int = 80, **options: Any) -> list[list[str]]:
    return [block for block in synthetic.printed(found, width, **options) if block[0].startswith(TITLE)]


def test_the_table_shows_parts_tails_and_bounds(synthetic: ModuleType) -> None:
    found = projected(synthetic)
    assert tables_of(synthetic, found) == [
        [
            "read-out information of top principal components at epoch 20 · nat, at post, 64",
            "probe rows",
            "       noise 0.1",
            "                                      read-out",
            "layer    I_k   k   tail  I_k + tail  I(X; T+Z)",
            "──────────────────────────────────────────────",
            "  fc1  3.250  64  0.500       3.750      3.500",
            "",
            "I_k: read-out information of the layer's first k principal components. tail:",
            "what all others together can add at most, so that I_k <= I(X; T+Z) <= I_k +",
            "tail, but for the errors of the draws of both; I_k + tail is H(X) at most.",
            "Narrower layers are not projected.",
            "Standard errors of I_k up to 0.01 nat, of I(X; T+Z) up to 0.02 nat.",
        ]
    ]


def test_bits_marks_and_several_noises(synthetic: ModuleType) -> None:
    found = projected(synthetic, noises=(0.1, 0.5))
    synthetic.marked(found, "mi_readout_projected_xt", (-1, 0, 1), Status.UNRESOLVED)
    (table,) = tables_of(synthetic, found, 120, units="bits", unicode=False)
    assert table[1].split() == ["noise", "0.1", "noise", "0.5"]
    bits = [f"{value / np.log(2):.3f}" for value in (3.25, 0.5, 3.75, 3.5)]
    first = [bits[0], "64", *bits[1:]]
    second = [f"{bits[0]}?", "64", bits[1], f"{bits[2]}?", bits[3]]
    assert table[5].split() == ["fc1", *first, *second]
    assert all(line.isascii() for line in table)


@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_nothing_is_cut(synthetic: ModuleType, width: int) -> None:
    (table,) = tables_of(synthetic, projected(synthetic, noises=(0.1, 0.5, 1.0)), width) or [[]]
    joined = "".join(table) if width < 40 else "\n".join(table)
    assert all(len(line) <= width for line in table)
    assert not table or all(cell in joined for cell in ("3.250", "0.500", "3.750", "3.500", "64"))


def test_there_is_no_table_where_no_layer_is_wide(synthetic: ModuleType) -> None:
    found = projected(synthetic)
    found["mi_readout_projected_xt_status"].values[...] = Status.NOT_MEASURED
    assert not tables_of(synthetic, found)
    found["mi_readout_projected_xt_status"].values[0] = Status.OK  # of another checkpoint than the last
    assert not tables_of(synthetic, found)
    assert not tables_of(synthetic, synthetic.result(range(2), ["readout"]))


def test_the_read_out_value_is_beside_it_where_there_is_one(synthetic: ModuleType) -> None:
    found = projected(synthetic)
    found["mi_readout_xt_status"].values[...] = Status.NOT_MEASURED
    (table,) = tables_of(synthetic, found)
    assert table[3].split() == ["layer", "I_k", "k", "tail", "I_k", "+", "tail"]
