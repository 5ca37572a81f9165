"""What stands below tables to act on, and what the usual table begins with."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.result import Result


def told(synthetic: ModuleType, found: Result, **options: object) -> str:
    return "\n".join(line for block in synthetic.printed(found, 160, **options) for line in block)


def moved(synthetic: ModuleType) -> Result:
    """A result whose second singular value falls from 0.5 to 0.005; ranks at 0.1 and 0.01."""
    found: Result = synthetic.result((0, 1), ["rank"], names=("fc1",))
    found["singular_value"].values[:, 0] = np.array([[1.0, 0.5, np.nan], [1.0, 0.005, np.nan]])
    return found


def test_thresholds_where_the_series_moves_are_named_unless_measured(synthetic: ModuleType) -> None:
    found = moved(synthetic)
    line = (
        "Local rank differs most between the first and the last at ε 0.049: ibscan rank --eps auto measures it there."
    )
    for options in ({"full": False}, {"summary": True}, {"full": True}):
        assert line in told(synthetic, found, **options)
    found["eps"].values[...] = (0.05, 0.1)
    assert "--eps auto" not in told(synthetic, found)
    assert "--eps auto" not in told(synthetic, synthetic.result([0], ["rank"]))


def test_the_table_of_local_rank_says_how_exact_it_is(synthetic: ModuleType) -> None:
    found = moved(synthetic)
    found["local_rank_se"].values[...] = np.array([0.02, 0.0349])
    assert "Standard errors up to 0.035, rows taken as a sample." in told(synthetic, found)


def test_the_usual_table_begins_with_what_says_something(synthetic: ModuleType) -> None:
    settings = {"unbounded": ["fc1"]}
    found = synthetic.result((0, 1), ["network", "network_relative", "relative", "fit"], settings=settings)
    assert "network I(X; T) noise 0.1 rms" in told(synthetic, found, full=False).partition("summary")[0]
    # Layers that the channel does not measure do not count.
    found["mi_network_rel_xt_status"].values[:, 3] = Status.NOT_MEASURED
    found["mi_network_rel_xt_status"].values[:, 1:3] = Status.UNRESOLVED
    brief = told(synthetic, found, full=False).partition("summary")[0]
    assert "read-out I(X; T+Z) noise 0.1 rms" in brief
    assert "network" not in brief
