"""The slope of noisy information beside local rank: only where both are measured at the same place."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.core.records import At
from ibscan.core.result import Result

TITLE = "slope of noisy information beside local rank"


def both(synthetic: ModuleType, *, at: At = "post", rows: int = 64, **attributes: Any) -> Result:
    rank = synthetic.Fake("local_rank", synthetic.RANK[:1], {"eps": (0.1, 0.01)}, at=at, attributes=attributes)
    slope = synthetic.Fake("slope", synthetic.SLOPE, {"noise": (0.1, 0.02)})
    found: Result = synthetic.result((1, 20), [rank, slope, "relative"], names=("fc1", "out"))
    found["local_rank"].values[-1] = [[3.0, 2.5], [2.0, 1.5]]
    found["mi_readout_slope"].values[-1] = [[2.75, 2.25], [1.75, 0.125]]
    found["mi_readout_slope_se"].values[...] = 0.02
    found["mi_readout_rel_slope"].values[-1] = [[1.5], [0.5]]
    found["mi_readout_rel_slope_se"].values[...] = 0.0312
    attrs: Any = found["local_rank"].attrs
    attrs["rows"] = rows
    return found


def tables_of(synthetic: ModuleType, found: Result, width: int = 80, **options: Any) -> list[list[str]]:
    return [block for block in synthetic.printed(found, width, **options) if block[0].startswith(TITLE)]


def test_the_table_shows_slopes_beside_ranks(synthetic: ModuleType) -> None:
    found = both(synthetic, rows=32)
    synthetic.marked(found, "mi_readout_slope", (-1, 1, 1), Status.UNRESOLVED)
    assert tables_of(synthetic, found) == [
        [
            "slope of noisy information beside local rank at epoch 20 · at post, 64 probe",
            "rows, local rank on 32",
            "       slope, read-out  slope, read-out  local rank",
            "         noise   noise            noise     ε      ε",
            "layer     0.02     0.1          0.1 rms  0.01    0.1",
            "────────────────────────────────────────────────────",
            "  fc1    2.750  2.250             1.500     3  2.500",
            "  out    1.750  0.125?            0.500     2  1.500",
            "",
            "? unresolved: tolerance not reached within the budget",
            "slope: -dI(X; T+Z)/d ln noise. Its limit for noise -> 0 is local rank at ε -> 0",
            "where the network is piecewise linear and X has a density; on a probe of",
            "finitely many rows only while the noise is well above the spacing of the points,",
            "below which it goes to 0. ε counts singular values of the Jacobian J, noise",
            "softly those of J C^(1/2), C the covariance of X.",
            "Standard errors of the slope up to 0.031.",
        ]
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_units_do_not_change_it_and_ascii_fits(synthetic: ModuleType, width: int) -> None:
    found = both(synthetic)
    (table,) = tables_of(synthetic, found, width)
    assert tables_of(synthetic, found, width, units="bits") == [table]
    (plain,) = tables_of(synthetic, found, width, unicode=False)
    assert all(line.isascii() and len(line) <= width for line in plain)
    assert "eps" in " ".join(plain)


def test_nothing_false_stands_beside_it(synthetic: ModuleType) -> None:
    assert tables_of(synthetic, both(synthetic))
    for apart in ({"at": "pre"}, {"from": "fc1", "input_dims": 0}, {"from": "input", "input_dims": 4}):
        found = both(synthetic, **apart)
        assert not tables_of(synthetic, found)
        assert not tables_of(synthetic, found, every=True)
        assert synthetic.printed(found, variables=["mi_readout_slope"])[1][0].startswith("mi_readout_slope · ")


def test_neither_slope_nor_rank_alone_has_a_table(synthetic: ModuleType) -> None:
    for name in ("local_rank", "mi_readout_slope"):
        found = both(synthetic)
        found["mi_readout_rel_slope_status"].values[...] = Status.NOT_MEASURED
        found[f"{name}_status"].values[...] = Status.NOT_MEASURED
        found[name].values[...] = np.nan
        assert not tables_of(synthetic, found)
    nowhere = both(synthetic)
    for name in ("local_rank", "mi_readout_slope", "mi_readout_rel_slope"):
        attrs: Any = nowhere[name].attrs
        del attrs["at"]
    assert not tables_of(synthetic, nowhere)
