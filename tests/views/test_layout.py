"""All tables as they are printed, and that each is one specification whose heads are explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan import views
from ibscan.core.estimate import Estimate, Status
from ibscan.core.quantity import EPS, Quantity
from ibscan.core.result import Result
from ibscan.views import layout
from ibscan.views.layout import Table

EXPECTED = Path(__file__).parent / "expected"
# Set to write the files of EXPECTED anew; look at their difference before it is committed.
REWRITE = "IBSCAN_REWRITE_EXPECTED"
CASES: dict[str, dict[str, Any]] = {
    "nats-80": {"width": 80},
    "usual-120": {"width": 120, "full": False},
    "usual-80-ascii": {"width": 80, "full": False, "units": "bits", "unicode": False},
    "bits-120-ascii": {"width": 120, "units": "bits", "unicode": False},
    "curves-100": {"width": 100, "curve": True},
    "variable-100": {"width": 100, "variables": ["mi_network_xt"], "every": True},
}


def everything(synthetic: ModuleType) -> Result:
    """A result that has every table, every mark, one noise and many, and more checkpoints than rows."""
    eps, noises, cells = (0.1, 0.01), tuple(10.0**-k for k in range(5)), ("30 bins", "width 0.1")
    one, several = {"noise": noises[:1]}, {"noise": noises}
    weights = [
        Quantity("weight_rank", "#{sigma(W) > eps}", "1", "rank of the weight", (EPS,)),
        Quantity("weight_stable_rank", "||W||_F^2/||W||_2^2", "1", "stable rank"),
        Quantity("rank_bound_weights", "min rank W", "1", "smallest rank"),
        Quantity("rank_bound_frobenius", "F", "1", "bound", (EPS,)),
        Quantity("rank_limit_statement", "limit", "1", "statement", (EPS,)),
        Quantity("rank_bound_jacobian", "J", "1", "bound", (EPS,)),
    ]
    measures = [
        synthetic.Fake("rank", synthetic.RANK, {"eps": eps, "rel_eps": (0.01,)}),
        synthetic.Fake("weights", tuple(weights), {"eps": eps}, at="pre"),
        synthetic.Fake("network", synthetic.NETWORK, one),
        synthetic.Fake("readout", synthetic.READOUT, several),
        synthetic.Fake("slope", synthetic.SLOPE, one),
        synthetic.Fake("relative", synthetic.RELATIVE, {"rel_noise": (0.1,)}),
        synthetic.Fake("projected", synthetic.PROJECTED, one),
        synthetic.Fake("binned", synthetic.BINNED, {"binning": cells}),
        "cluster",
        "fit",
    ]
    settings = {"input_entropy": 3.0, "measures": {"mi_network": {"tolerance": 0.05}}}
    found: Result = synthetic.result(range(14), measures, names=("fc1", "out"), settings=settings)
    for key in found.quantities:
        status = found.estimate(key).status
        if status is not None and not key.startswith("metric_") and found[key].dims != ("checkpoint",):
            marked = np.arange(status.size).reshape(status.shape) % 11
            status[...] = np.where(marked < len(Status), marked, Status.OK)
            gone = np.isin(status, (Status.NOT_MEASURED, Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY))
            found[key].values[gone] = np.nan
    # Brackets are as wide as the values, so that digits differ; a value is in the middle of its own.
    values = found["mi_network_xt"].values
    found["mi_network_xt_lower"].values[...], found["mi_network_xt_upper"].values[...] = values / 2, values * 1.5
    return found


@pytest.mark.parametrize("case", CASES)
def test_tables_are_printed_as_before(synthetic: ModuleType, case: str) -> None:
    options = dict(CASES[case])
    printed = synthetic.printed(everything(synthetic), options.pop("width"), **options)
    text = "\n\n".join("\n".join(lines).rstrip() for lines in printed) + "\n"
    path = EXPECTED / f"{case}.txt"
    if os.environ.get(REWRITE):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_table_has_a_specification_and_is_shown(synthetic: ModuleType) -> None:
    found = everything(synthetic)
    shown = [lines[0] for full in (True, False) for lines in synthetic.printed(found, 120, full=full)]
    for table in views.specs():
        assert isinstance(table, Table)
        assert any(line.startswith(table.title) for line in shown), table.title


def test_every_head_is_explained(synthetic: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: set[tuple[str, ...]] = set()
    panels = layout.panels

    def recorded(lead: Sequence[Any], groups: Sequence[Any], sections: Any, **options: Any) -> Any:
        heads.update(one.heads for one in (*lead, *(c for group in groups for c in group.columns)))
        return panels(lead, groups, sections, **options)

    monkeypatch.setattr(layout, "panels", recorded)
    found = everything(synthetic)
    for options in ({}, {"curve": True}, {"unicode": False}):
        synthetic.printed(found, 200, **options)
    explained, symbols = views.columns(), {str(v.attrs.get("symbol", "")) for v in found.variables.values()}
    for head in heads:
        whole = " ".join(head).replace("/ ", "/")
        words = [re.sub(r"\b[0-9.]+(e[-+]?[0-9]+)?\b", "", storey).split() for storey in head if storey not in symbols]
        assert whole in explained or all(word in explained for storey in words for word in storey), head
    assert all(re.fullmatch(r"[^{}]+", said) for said in explained.values())


def test_the_list_of_tables_costs_no_import() -> None:
    code = "import sys, ibscan.views; assert ibscan.views.TABLES; assert not {'numpy', 'rich'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_companion_is_in_the_unit_asked_for(synthetic: ModuleType) -> None:
    found = synthetic.result([0], ["readout"])
    view = layout.View(found, "bits", every=True, width=80, unicode=True)
    stderr = found.estimate("mi_readout_xt").stderr
    np.testing.assert_allclose(view.companion("mi_readout_xt", "stderr"), stderr / np.log(2))
    assert view.companion("mi_readout_xt", "draws") is None
    assert set(Estimate.COMPANIONS.values()) == set(Estimate.MEANINGS)
