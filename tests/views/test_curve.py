from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import Run
from rich.cells import cell_len

from ibscan.core.estimate import Status
from ibscan.core.records import At
from ibscan.core.result import Result
from ibscan.errors import NothingMatched
from ibscan.views.console import console
from ibscan.views.curve import curves
from ibscan.views.tables import tables

EPS, REL = (1.0, 0.01, 0.1), (0.5,)


def ranked(synthetic: ModuleType, size: int = 6, *, at: At = "pre", **changes: Any) -> Result:
    """Return local rank e + 1 + l / 4 at the smallest eps of epoch e and layer l, half of it at the next, then 0."""
    measure = synthetic.Fake("local_rank", synthetic.RANK, {"eps": EPS, "rel_eps": REL}, at=at)
    found: Result = synthetic.result(range(size), [measure, "fit"], names=("fc1", "out"), **changes)
    largest = 1.0 + np.arange(size)[:, None] + np.array([0.0, 0.25])
    # Increasing eps, whatever order the file has.
    order = found["eps"].values.argsort()
    found["local_rank"].values[..., order] = largest[..., None] * np.array([1.0, 0.5, 0.0])
    found["local_rank_se"].values[...] = 0.0312
    found["local_rank_rel"].values[...] = largest[..., None] / 8
    return found


def shown(found: Result, width: int = 80, *, unicode: bool = True, **options: Any) -> str:
    stream = io.StringIO()
    screen = console(stream, color="never", width=width)
    for block in tables(found, curve=True, width=width, unicode=unicode, **options):
        screen.print(block)
    return stream.getvalue()


def bodies(text: str) -> list[list[str]]:
    """The lines of each table, title first."""
    return [
        [line.rstrip() for line in part.splitlines()]
        for part in re.split(r"^(?=local rank against)", text, flags=re.M)[1:]
    ]


def test_eps_down_and_checkpoints_across(synthetic: ModuleType) -> None:
    absolute, relative = bodies(shown(ranked(synthetic)))
    assert absolute == [
        "local rank against ε · at pre, 64 probe rows",
        "       fc1 (10)                    out (13)",
        "       epoch  epoch  epoch  epoch  epoch  epoch  epoch  epoch",
        "    ε      0      1      2      5      0      1      2      5",
        "─────────────────────────────────────────────────────────────",
        " 0.01  1.000      2  3.000      6  1.250  2.250  3.250  6.250",
        "  0.1  0.500      1  1.500      3  0.625  1.125  1.625  3.125",
        "    1  0.000      0  0.000      0  0.000  0.000  0.000  0.000",
        "",
        "Mean over probe rows of the number of singular values of the Jacobian d layer /",
        "d input above ε, which is absolute: in units of the layer's output per unit of",
        "the input. In parentheses: units of the layer.",
        "Standard errors up to 0.031, rows taken as a sample.",
        "A curve of 3 points: more --eps values on ibscan rank, into the same file, make",
        "it finer.",
        "4 of 6 checkpoints shown (--all shows every one).",
        "",
    ]
    assert relative[0] == "local rank against relative ε · at pre, 64 probe rows"
    assert relative[5] == "0.5  0.125  0.250  0.375  0.750  0.156  0.281  0.406  0.781"
    below = " ".join(" ".join(relative[7:]).split())
    assert "above ε times the row's largest. In" in below
    assert "absolute" not in below
    assert "A curve of 1 point: more --rel-eps values on ibscan rank" in below


def test_the_head_stands_above(synthetic: ModuleType) -> None:
    head = shown(ranked(synthetic)).split("\n\n")[0]
    assert "6 checkpoints, epoch 0 .. 5" in head
    assert re.search(r"accuracy +0\.\d+ → 0\.\d+ on the probe", head)
    assert "trend" not in shown(ranked(synthetic))


def test_all_shows_every_checkpoint(synthetic: ModuleType) -> None:
    text = shown(ranked(synthetic), 200, every=True)
    absolute = bodies(text)[0]
    assert absolute[3].split() == ["ε", *"012345", *"012345"]
    np.testing.assert_allclose([float(cell) for cell in absolute[5].split()[1:7]], np.arange(6) + 1)
    assert "checkpoints shown" not in text


def test_few_checkpoints_are_all_shown(synthetic: ModuleType) -> None:
    one = shown(ranked(synthetic, 1))
    assert bodies(one)[0][3].split() == ["ε", "0", "0"]
    assert "checkpoints shown" not in one + shown(ranked(synthetic, 4))


def test_checkpoints_are_spread_over_the_logarithm_of_the_axis(synthetic: ModuleType) -> None:
    assert bodies(shown(ranked(synthetic, 200)))[0][3].split()[1:5] == ["0", "5", "33", "199"]


def test_without_an_axis_checkpoints_have_their_names(synthetic: ModuleType) -> None:
    found = ranked(synthetic, 2)
    found["epoch"].values[0] = np.nan
    found["checkpoint_name"].values[0] = "[b]\x1bad"
    lines = bodies(shown(found, unicode=False))[0]
    assert lines[2].split() == ["checkpoint"] * 4
    assert lines[3].split() == ["eps", *[r"[b]\x1bad", "epoch-1.safetensors"] * 2]


@pytest.mark.slow
@pytest.mark.parametrize("unicode", [True, False])
def test_nothing_is_cut_at_any_width(synthetic: ModuleType, unicode: bool) -> None:
    found = ranked(synthetic)
    for width in (*range(1, 62), 80, 132):
        text = shown(found, width, unicode=unicode)
        assert unicode or text.isascii()
        assert all(cell_len(line) <= width for line in text.splitlines()), width
        joined = text.replace("\n", "") if width < 40 else text
        for cell in ("fc1", "(10)", "out", "(13)", "0.01", "1.250", "3.125", "0.781"):
            assert cell in joined, (width, cell)


def test_ascii_spells_eps_out(synthetic: ModuleType) -> None:
    absolute, relative = bodies(shown(ranked(synthetic), unicode=False))
    assert absolute[0] == "local rank against eps - at pre, 64 probe rows"
    assert relative[0] == "local rank against relative eps - at pre, 64 probe rows"
    assert absolute[3].split()[0] == "eps"


@pytest.mark.parametrize("at", ["pre", "post"])
def test_where_it_was_measured_is_said(synthetic: ModuleType, at: At) -> None:
    assert all(f"at {at}, 64 probe rows" in lines[0] for lines in bodies(shown(ranked(synthetic, at=at))))


def test_marks_are_kept_and_explained(synthetic: ModuleType) -> None:
    found = ranked(synthetic)
    middle = int(found["eps"].values.argsort()[1])
    synthetic.marked(found, "local_rank", (0, 0, middle), Status.NOT_MEASURED, np.nan)
    synthetic.marked(found, "local_rank", (5, 0, middle), Status.NONFINITE, np.nan)
    synthetic.marked(found, "local_rank", (5, 1, middle), Status.DEAD)
    text = shown(found)
    row = next(line for line in bodies(text)[0] if line.split()[:1] == ["0.1"])
    assert row.split() == ["0.1", "-", "1", "1.500", "!", "0.625", "1.125", "1.625", "3.125†"]
    assert "\n- not measured; † dead: the layer is constant over the probe; ! not finite" in text
    synthetic.marked(found, "local_rank", (3, 0, middle), Status.FAILED, np.nan)
    assert "failed" not in shown(found)  # epoch 3 is not among those shown
    assert "x failed" in shown(found, every=True)


def test_a_fine_curve_needs_no_advice(synthetic: ModuleType) -> None:
    measure = synthetic.Fake("local_rank", synthetic.RANK[:1], {"eps": tuple(10.0**-k for k in range(8))})
    found = synthetic.result(range(2), [measure])
    assert "make it finer" not in shown(found).replace("\n", "")
    assert [line.split()[0] for line in bodies(shown(found))[0][5:13]] == [f"{10.0**-k:g}" for k in range(7, -1, -1)]


def test_errors_of_single_rows_are_not_said(synthetic: ModuleType) -> None:
    found = ranked(synthetic)
    for name in ("local_rank_se", "local_rank_rel_se"):
        found[name].values[...] = np.nan
    assert "Standard errors" not in shown(found)


def test_what_was_not_measured_has_no_table(synthetic: ModuleType) -> None:
    found = ranked(synthetic)
    assert curves(found) == ("local_rank", "local_rank_rel")
    found["local_rank_status"].values[...] = Status.NOT_MEASURED
    assert curves(found) == ("local_rank_rel",)
    assert [lines[0].split(" · ")[0] for lines in bodies(shown(found))] == ["local rank against relative ε"]
    found["local_rank_rel_status"].values[...] = Status.NOT_MEASURED
    for bare in (found, synthetic.result(range(2), ["readout"])):
        with pytest.raises(NothingMatched, match="Run ibscan rank"):
            shown(bare)


def test_a_known_name_with_other_dimensions_is_no_curve(synthetic: ModuleType) -> None:
    found = ranked(synthetic)
    scalar = dataclasses.replace(found["effective_rank"], attrs={})
    other = dataclasses.replace(found, variables={**found.variables, "local_rank": scalar, "local_rank_se": scalar})
    assert curves(other) == ("local_rank_rel",)
    mixed = dataclasses.replace(found, variables={**found.variables, "local_rank_se": scalar})
    assert len(bodies(shown(mixed))) == 2
    found["eps"].values[0] = np.nan  # the thresholds of a foreign file
    assert len(bodies(shown(found))) == 2


def test_show_prints_the_curve_of_a_run(command: Run, series: Path, tmp_path: Path) -> None:
    thresholds = ("0.01", "0.3", "1.5")
    typed = [part for eps in thresholds for part in ("--eps", eps)]
    done = command("rank", series, *typed, "--at", "post", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    table = command("show", tmp_path / "r.h5", "--curve", "--format", "table")
    assert table.code == 0, table.err
    absolute, relative = bodies(table.out)
    assert absolute[0].endswith("at post, 64 probe rows")
    assert [line.split()[0] for line in absolute[5:8]] == list(thresholds)
    assert [line.split()[0] for line in relative[5:8]] == ["0.001", "0.01", "0.1"]
    assert "4 of 5 checkpoints shown" in table.out
    assert absolute[3].split()[1:5] == ["0", "3", "10", "30"]
    means = {
        row["epoch"]: float(row["result"])
        for row in done.rows()
        if row["variable"] == "local_rank" and row["parameter_value"] == "0.3" and row["layer"] == "0"
    }
    expected = [means[epoch] for epoch in ("0", "3", "10", "30")]
    assert [float(cell) for cell in absolute[6].split()[1:5]] == pytest.approx(expected, abs=5e-4)


@pytest.mark.slow
def test_a_pipe_gets_the_rows_of_the_curve_alone(command: Run, series: Path, tmp_path: Path) -> None:
    every = command("scan", series, "-o", tmp_path / "r.h5").rows()
    piped = command("show", tmp_path / "r.h5", "--curve")
    assert piped.code == 0, piped.err
    ranks = {"local_rank", "local_rank_min", "local_rank_max"}
    ranks |= {name.replace("local_rank", "local_rank_rel") for name in ranks}
    assert {row["variable"] for row in piped.rows()} == ranks & {row["variable"] for row in every}
    assert piped.rows() == [row for row in every if row["variable"] in ranks]
    lines = command("show", tmp_path / "r.h5", "--curve", "--json").out.splitlines()
    assert len(lines) == len(piped.rows())
    assert {json.loads(line)["parameter"] for line in lines} == {"eps", "rel_eps"}


def test_a_result_without_a_curve_is_refused(command: Run, series: Path, tmp_path: Path) -> None:
    command("cluster", series, "-o", tmp_path / "r.h5")
    for form in ("table", "tsv", "jsonl"):
        bare = command("show", tmp_path / "r.h5", "--curve", "--format", form)
        assert bare.code == 5
        assert bare.out == ""
        assert "no local rank" in bare.err
        assert "Run ibscan rank" in bare.err
        assert "more than one --noise" in bare.err
        both = command("show", tmp_path / "r.h5", "--curve", "--variable", "nc1", "--format", form)
        assert both.code == 2
        assert both.err == "ibscan: --curve and --variable nc1: each says alone what is shown; give one of them.\n"
    assert command("rank", series, "--curve", "-o", tmp_path / "r.h5").code == 2
    assert command("export", tmp_path / "r.h5", "--curve").code == 2
    assert command("show", tmp_path / "missing.h5", "--curve").code == 3
