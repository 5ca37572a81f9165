"""The summary, and the usual output above it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

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
    found["mi_network_xt_se"].values[...] = 0.0
    found["mi_network_xt_lower"].values[...], found["mi_network_xt_upper"].values[...] = values - half, values + half
    status = found["mi_network_xt_status"].values
    status[:, 3], status[2, 4], status[3, 4] = Status.SATURATED, Status.UNRESOLVED, Status.UNRESOLVED
    found["mi_network_xt_lower"].values[3, 4], found["mi_network_xt_upper"].values[3, 4] = 1.5, 3.5
    return found


def lines_of(synthetic: ModuleType, found: Result, width: int = 100, **options: Any) -> list[str]:
    (block,) = synthetic.printed(found, width, summary=True, **options)
    return list(block)


def row(lines: list[str], layer: str) -> list[str]:
    """The cells of a layer's row behind its name, its trend aside."""
    (line,) = [line for line in lines if line.strip().startswith(f"{layer} ") and ":" not in line]
    return [
        cell for cell in line.strip().removeprefix(layer).split() if not set(cell) <= set("▁▂▃▄▅▆▇█_.-=#") - set("-")
    ]


def test_every_word_has_its_row(synthetic: ModuleType) -> None:
    lines = lines_of(synthetic, told(synthetic))
    assert lines[0] == TITLE
    assert lines[4] == "network I(X; T) noise 0.1"
    rows = {layer: row(lines, layer) for layer in COURSES}
    assert rows["compresses"] == ["1.000", "3.000", "1.000", "20", "-2.000", "±", "0.100", "yes", "compresses"]
    assert rows["expands"] == ["1.000", "3.000", "3.000", "0", "+2.000", "±", "0.100", "yes", "expands"]
    assert rows["flat"] == ["2.000", "2.010", "2.000", "-0.010", "±", "0.100", "no", "flat"]
    assert rows["saturated"] == ["4.000*", "4.100*", "4.000*", "-0.100", "±", "0.100", "saturated"]
    assert rows["cannot tell"] == ["1.000", "3.000", "2.000?", "-1.0", "±", "1.5", "cannot", "tell"]
    text = " ".join(lines)
    assert all(f"{word}: " in text for word in COURSES)


def test_words_are_explained_only_when_they_occur(synthetic: ModuleType) -> None:
    text = "\n".join(lines_of(synthetic, synthetic.result((0, 1), ["cluster"])))
    assert "saturated:" not in text
    assert "cannot tell:" not in text


def test_trends_are_on_one_scale_flat_within_errors_and_none_where_saturated(synthetic: ModuleType) -> None:
    found = told(synthetic)  # 64 rows: the scale ends at ln 64 = 4.16
    lines = {line.split()[0]: line.split()[1] for line in lines_of(synthetic, found)[5:10]}
    assert lines["compresses"] == "▂▆▆▂"
    assert lines["expands"] == "▂▄▆▆"
    assert lines["flat"] == "▄▄▄▄"
    assert lines["saturated"] == "4.000*"
    found = synthetic.result((0, 1), ["rank"], names=("fc1",))  # 10 units
    found["local_rank"].values[:, 0, 0] = (10.0, 5.0)
    found["local_rank_se"].values[...] = 0.1
    assert lines_of(synthetic, found)[5].split()[:2] == ["fc1", "█▅"]
    found["local_rank_se"].values[...] = 10.0
    assert lines_of(synthetic, found)[5].split()[:2] == ["fc1", "▇▇"]


def test_it_comes_last_and_alone_when_asked_for(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    for full in (True, False):
        blocks = synthetic.printed(found, 120, full=full)
        assert blocks[-1][0] == TITLE
        assert sum(block[0].startswith("summary") for block in blocks) == 1
    assert synthetic.printed(found, 120, summary=True) == blocks[-1:]


def test_there_is_a_row_for_each_rank_channel_and_clustering_of_each_layer(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network", "relative"))
    rows = summary_rows(found, units="nats")
    names = [row["quantity"] for row in rows]
    assert list(dict.fromkeys(names)) == [
        "local rank eps 0.01",
        "local rank eps 0.1",
        "network I(X; T) noise 0.1",
        "read-out I(X; T+Z) noise 0.1",
        "read-out I(X; T+Z) noise 0.1 rms",
        "binned H(bin T) 30 bins",
        "clustering within/between",
    ]
    assert [row["layer"] for row in rows] == list(synthetic.LAYERS) * 7
    assert all(tuple(row) == ROWS for row in rows)


def test_without_distances_clustering_is_nc1(synthetic: ModuleType) -> None:
    bare = synthetic.Fake("clustering", synthetic.CLUSTER[6:7])
    assert {row["quantity"] for row in summary_rows(synthetic.result((0, 1), [bare]), units="nats")} == {
        "clustering NC1"
    }


def test_layers_of_which_nothing_was_measured_have_no_row(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["network"])
    found["mi_network_xt_status"].values[:, 3] = Status.NOT_MEASURED
    assert [row["layer"] for row in summary_rows(found, units="nats")] == list(synthetic.LAYERS[:3])


def test_one_checkpoint_tells_nothing_and_has_no_trend(synthetic: ModuleType) -> None:
    lines = lines_of(synthetic, synthetic.result([0]))
    assert "trend" not in " ".join(lines[:3])
    (first, *_) = [line for line in lines if line.strip().startswith("fc1 ")]
    value, peak, last, *word = first.split()[1:]
    assert value == peak == last
    assert word == ["cannot", "tell"]


def test_without_an_axis_it_falls_since_a_name(synthetic: ModuleType) -> None:
    checkpoints = [synthetic.checkpoint(i, epoch=None, name=f"model_{i}\x1b") for i in range(3)]
    found = synthetic.result(checkpoints, ["cluster"], names=("fc1",))
    found["distance_within_mean"].values[...] = np.array([[3.0], [2.0], [1.0]])
    found["distance_between_mean"].values[...] = 4.0
    lines = lines_of(synthetic, found)
    assert lines[2].split()[-4:] == ["checkpoint", "change", "beyond", "verdict"]
    assert row(lines, "fc1") == ["0.750", "0.750", "0.250", r"model_0\x1b", "-0.5", "yes", "compresses"]
    # In rows a name is what it is; whoever writes them escapes it.
    assert summary_rows(found, units="nats")[0]["since"] == "model_0\x1b"


def test_bits_change_numbers_errors_and_the_title(synthetic: ModuleType) -> None:
    found = told(synthetic)
    nats, bits = (summary_rows(found, units=units)[0] for units in ("nats", "bits"))
    for key in ("first", "peak", "last", "change", "error"):
        assert bits[key] == pytest.approx(nats[key] / math.log(2))
    assert lines_of(synthetic, found, units="bits")[0] == "summary · information in bit"
    with pytest.raises(UsageError, match="nats or bits"):
        summary_rows(found, units="bytes")


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("summary", [True, False])
def test_nothing_is_cut_at_any_width(synthetic: ModuleType, unicode: bool, summary: bool) -> None:
    found = told(synthetic)
    options = {"summary": True} if summary else {"full": False}
    for width in (1, 7, 20, 33, 40, 61, 80, 120):
        lines = [one for block in synthetic.printed(found, width, unicode=unicode, **options) for one in block]
        assert all(cell_len(line) <= width for line in lines), width
        assert unicode or all(line.isascii() for line in lines)
        joined = "".join(lines).replace(" ", "")
        for cell in ("compresses", "3.000", "2.000?", "network", "noise0.1", "saturated"):
            assert cell in joined, (width, cell)


def test_it_stays_one_panel_by_leaving_out_its_trend(synthetic: ModuleType) -> None:
    found = synthetic.result(range(9), (*synthetic.USUAL, "network"))
    for width, shown in ((70, False), (80, True)):
        text = lines_of(synthetic, found, width)
        assert sum(line.strip().startswith("layer ") for line in text) == 1
        assert ("trend" in text[2]) == shown


def test_the_usual_output_is_brief(synthetic: ModuleType) -> None:
    found = synthetic.result(range(100), (*synthetic.USUAL, "network"))
    head, brief, summary = synthetic.printed(found, 120, full=False)
    assert head[0].startswith("series")
    assert brief[0] == "in brief · information in nat"
    assert summary[0] == TITLE
    groups = [line for line in brief if "local rank" in line or "network" in line or "within/between" in line]
    assert "binned" not in " ".join(brief)
    assert groups
    rows = [line for line in brief if line[:5].strip().isdigit()]
    assert len(rows) == 5 * len([line for line in brief if line.startswith("epoch ")])
    assert brief[-1] == (
        "ibscan show FILE --full prints every table. 5 of 100 checkpoints shown (--all shows every one)."
    )
    every = synthetic.printed(found, 120, full=False, every=True)[1]
    assert len([line for line in every if line[:5].strip().isdigit()]) == 100 * len(rows) // 5


def test_the_usual_output_of_the_first_fixture_s_shape_fits_ninety_lines(synthetic: ModuleType) -> None:
    rank = synthetic.Fake("local_rank", synthetic.RANK, {"eps": (0.001, 0.01, 0.1), "rel_eps": (0.01,)}, at="pre")
    measures = (rank, "network", "readout", "slope", "binned", "cluster", "fit")
    found = synthetic.result(range(20), measures, names=("fc1", "fc2", "fc10", "out", "fc5", "fc6"))
    assert sum(len(block) + 1 for block in synthetic.printed(found, 120, full=False)) <= 90


def test_of_several_parameters_the_one_that_moves_is_shown_in_brief(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["rank"])
    found["local_rank"].values[..., 0] = 3.0
    assert "local rank ε 0.1" in " ".join(synthetic.printed(found, full=False)[1])
    found["local_rank"].values[0, :, 0] = 300.0
    assert "local rank ε 0.01" in " ".join(synthetic.printed(found, full=False)[1])
    found["local_rank_status"].values[..., 0] = Status.UNRESOLVED
    assert "local rank ε 0.1" in " ".join(synthetic.printed(found, full=False)[1])


def test_tables_say_when_they_are_shown() -> None:
    shown = {table.title: table.shown for table in specs()}
    assert shown["in brief"] is Shown.USUAL
    assert shown["summary"] is Shown.ALWAYS
    assert {shown[title] for title in shown if title not in ("in brief", "summary")} == {Shown.FULL}


def test_everything_broken_is_still_summarised(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    for extreme in (np.nan, np.inf, 1e308, -1e308, 1e-308, 0.0):
        for variable in found.variables.values():
            if variable.values.dtype.kind == "f":
                variable.values[...] = extreme
                variable.values[0] = 1.0
        for options in ({"summary": True}, {"full": False}):
            synthetic.printed(found, 80, **options)
        summary_rows(found, units="bits")


def test_a_result_without_courses_has_no_summary(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["fit"])
    assert len(synthetic.printed(found, full=False)) == 1
    for ask in (lambda: synthetic.printed(found, summary=True), lambda: summary_rows(found, units="nats")):
        with pytest.raises(NothingMatched, match="--summary: the result holds no local rank"):
            ask()


# Whole commands


@pytest.fixture
def stored(synthetic: ModuleType, tmp_path: Path) -> Path:
    write(synthetic.result(range(3), (*synthetic.USUAL, "network")), tmp_path / "r.h5")
    return tmp_path / "r.h5"


def test_show_prints_the_usual_all_or_the_summary(command: Run, stored: Path) -> None:
    usual, full, alone = (
        command("show", stored, "--format", "table", *more).out for more in ([], ["--full"], ["--summary"])
    )
    assert "in brief" in usual
    assert "clustering of representations" not in usual
    assert "clustering of representations" in full
    assert "in brief" not in full
    assert alone.startswith("summary")
    assert usual.endswith(alone)
    assert full.endswith(alone)


def test_rows_are_the_same_with_full_and_those_of_the_summary_with_summary(command: Run, stored: Path) -> None:
    assert command("show", stored, "--full").out == command("show", stored).out
    lines = command("show", stored, "--summary", "--json").out.splitlines()
    first = json.loads(lines[0])
    assert tuple(first) == ROWS
    assert first["verdict"] in COURSES
    assert command("show", stored, "--summary", "--format", "csv").out.splitlines()[0] == ",".join(ROWS)
    assert len(command("show", stored, "--summary").rows()) == len(lines)


def test_what_is_shown_is_said_once(command: Run, stored: Path) -> None:
    for typed in (["--summary", "--full"], ["--curve", "--full"], ["--summary", "--variable", "nc1"]):
        done = command("show", stored, *typed)
        assert done.code == 2
        assert "give one of them" in done.err


def test_estimates_of_a_file_are_those_that_are_judged(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["readout"], names=("fc1",))
    found["mi_readout_xt"].values[:, 0, 0] = (3.0, 2.0)
    found[Estimate.companion("mi_readout_xt", "se")].values[...] = 0.3
    (row,) = summary_rows(found, units="nats")
    assert row["error"] == pytest.approx(1.96 * math.hypot(0.3, 0.3), rel=1e-4)
    assert (row["beyond"], row["verdict"]) == ("yes", "compresses")
