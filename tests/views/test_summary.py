"""The summary, and the usual output above it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import Run
from rich.cells import cell_len

from ibscan.core.estimate import Estimate, Status
from ibscan.core.result import Result
from ibscan.errors import NothingMatched, UsageError
from ibscan.results.store import write
from ibscan.views import specs
from ibscan.views.layout import Shown
from ibscan.views.summary import ROWS, summary_rows

TITLE = "summary · information in nat"
COURSES = {
    "compresses": [1.0, 3.0, 2.9, 1.0],
    "expands": [1.0, 2.0, 3.0, 3.0],
    "flat": [2.0, 2.0, 2.01, 2.0],
    "saturated": [4.0, 4.1, 4.1, 4.0],
    "cannot tell": [1.0, 3.0, 2.0, 2.0],
}


def told(synthetic: ModuleType) -> Result:
    """A result with a layer for every word, in the network channel; each named as its word."""
    found: Result = synthetic.result((0, 1, 20, 300), ["network"], names=tuple(COURSES))
    values = np.array(list(COURSES.values())).T[..., None]
    found["mi_network_xt"].values[...] = values
    half = np.full(values.shape, 0.05)
    half[2, 4] = 1.5
    found["mi_network_xt_lower"].values[...], found["mi_network_xt_upper"].values[...] = values - half, values + half
    status = found["mi_network_xt_status"].values
    status[:, 3], status[2, 4], status[3, 4] = Status.SATURATED, Status.UNRESOLVED, Status.UNRESOLVED
    found["mi_network_xt_lower"].values[3, 4], found["mi_network_xt_upper"].values[3, 4] = 1.5, 3.5
    return found


def lines_of(synthetic: ModuleType, found: Result, width: int = 100, **options: bool) -> list[str]:
    (block,) = synthetic.printed(found, width, summary=True, **options)
    return list(block)


def test_every_word_has_its_row(synthetic: ModuleType) -> None:
    lines = lines_of(synthetic, told(synthetic))
    assert lines[0] == TITLE
    assert lines[1:3] == [
        "                                                since",
        "      layer     trend  first   peak   last      epoch        change  beyond      verdict",
    ] or lines[1].split() == ["since"]
    rows = {line.split("  ")[0].strip() or line.split()[0]: line.split() for line in lines if "±" in line}
    assert lines[4] == "network I(X; T) noise 0.1"
    body = [line for line in lines[5:10]]
    assert [line.split()[-1] for line in body] == ["compresses", "expands", "flat", "saturated", "tell"]
    assert body[0].split()[2:] == ["1.000", "3.000", "1.000", "1", "-2.00", "±", "0.10", "yes", "compresses"]
    assert body[1].split()[2:] == ["1.000", "3.000", "3.000", "0", "+2.00", "±", "0.10", "yes", "expands"]
    assert body[2].split()[-5:] == ["-0.01", "±", "0.10", "no", "flat"] or "no" in body[2].split()
    assert "yes" not in body[3] and "no" not in body[3].split()
    assert rows
