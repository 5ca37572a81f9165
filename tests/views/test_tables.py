from __future__ import annotations

import dataclasses
import io
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from ibscan.core.estimate import Estimate, Status
from ibscan.errors import NothingMatched, UsageError
from ibscan.views.console import console
from ibscan.views.listing import listing
from ibscan.views.tables import tables


def shown(found: Any, width: int = 100, *, unicode: bool = True, **options: Any) -> str:
    stream = io.StringIO()
    screen = console(stream, color="never", width=width)
    options.setdefault("full", True)
    for block in tables(found, width=width, unicode=unicode, **options):
        screen.print(block)
    return stream.getvalue()


def table(text: str, title: str) -> str:
    """The blocks below a title up to the next one."""
    blocks = re.split(r"^(?=\S.* at (?:pre|post), )", text, flags=re.M)
    return next(block for block in blocks if block.startswith(title))


def test_one_table_a_measure_under_a_head(synthetic: ModuleType) -> None:
    text = shown(synthetic.result(range(5), (*synthetic.USUAL, "network")), 200)
    head = text.split("\n\n")[0]
    assert "5 checkpoints, epoch 0 .. 4" in head
    assert "mlp:tanh" in head
    assert "probe.npz" in head
    assert re.search(r"accuracy +0\.\d+ → 0\.\d+ on the probe", head)
    assert "loss" in head
    for title in ("local rank", "mutual information I(X;T)", "mutual information I(T;Y)", "clustering of"):
        assert "64 probe rows" in table(text, title).splitlines()[0]
    assert not re.search(r"\bMI\b", text)


def test_local_rank_has_a_column_for_every_eps_of_every_layer(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3))
    lines = table(shown(found, 120), "local rank").splitlines()
    assert lines[1].split() == ["fc1", "(10)", "fc2", "(11)", "fc10", "(12)", "out", "(13)"]
    assert lines[2].split() == ["epoch", "accuracy", *["ε", "0.01", "ε", "0.1"] * 4]
    for epoch, line in enumerate(lines[4:7]):
        numbers = [float(cell) for cell in line.split()]
        assert numbers[0] == epoch
        np.testing.assert_allclose(numbers[2:], found["local_rank"].values[epoch].ravel(), atol=5e-4)
    assert lines[7].startswith("trend")


def test_information_stands_side_by_side_and_named(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    lines = table(shown(found, 220), "mutual information I(X;T) · nat").splitlines()
    assert lines[2].split() == ["network", "read-out", "binned"] * 4
    assert lines[3].replace("I(X; T+Z)", "I(X;T+Z)").replace("I(X; T)", "I(X;T)").split()[:2] == ["I(X;T)", "I(X;T+Z)"]
    assert lines[4].split()[2:8] == ["noise", "0.1", "noise", "0.1", "30", "bins"]
    numbers = [float(cell) for cell in lines[6].split()][2:]
    expected = [found[f"mi_{kind}_xt"].values[0, :, 0] for kind in ("network", "readout", "binned")]
    np.testing.assert_allclose(numbers, np.stack(expected, 1).ravel(), atol=5e-4)
    below = "\n".join(lines[9:])
    assert "does not estimate I(X;T)" in below
    assert "at most ln 64 = 4.159 nat" in below
    assert "Standard errors up to" in below


def test_bits_change_numbers_and_unit(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), input_entropy=None, settings={"input_entropy": 2 * np.log(2)})
    text = table(shown(found, 200, units="bits"), "mutual information I(X;T)")
    assert text.startswith("mutual information I(X;T) · bit, at post")
    assert "H(X) = 2 bit" in text
    first = float(text.splitlines()[6].split()[2])
    assert first == pytest.approx(found["mi_readout_xt"].values[0, 0, 0] / np.log(2), abs=5e-4)
    assert "bit on the probe" in shown(found, units="bits")
    with pytest.raises(UsageError, match="nats or bits"):
        tables(found, units="bytes", width=80)


def test_thinned_to_first_and_last_unless_all(synthetic: ModuleType) -> None:
    found = synthetic.result(range(100), ["rank"])
    lines = shown(found, 200).splitlines()
    epochs = [int(line.split()[0]) for line in lines if re.match(r" *\d+ +\d", line)]
    assert len(epochs) == 12
    assert epochs[0] == 0
    assert epochs[-1] == 99
    assert epochs == sorted(set(epochs))
    assert "12 of 100 checkpoints shown" in shown(found, 200)
    every = shown(found, 200, every=True)
    assert len([line for line in every.splitlines() if re.match(r" *\d+ +\d", line)]) == 100
    assert "shown" not in every


STATUSES = [status for status in Status if status is not Status.OK]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status.name)
def test_marks_are_explained_only_when_they_occur(synthetic: ModuleType, status: Status, unicode: bool) -> None:
    clean = shown(synthetic.result(range(3), ["readout"]), unicode=unicode)
    for word in (
        "saturated",
        "dead",
        "unresolved",
        "not finite",
        "failed",
        "out of memory",
        "lower bound",
        "not measured",
    ):
        assert word not in clean
    without = status in (Status.NOT_MEASURED, Status.NONFINITE, Status.FAILED, Status.OUT_OF_MEMORY)
    found = synthetic.result(range(3), ["readout"])
    synthetic.marked(found, "mi_readout_xt", (1, 2, 0), status, np.nan if without else None)
    sign = {1: "-", 2: "*", 3: "†" if unicode else "#", 4: "!", 5: "x", 6: "m", 7: "?", 8: "+"}[int(status)]
    text = shown(found, unicode=unicode)
    assert f"\n{sign} " in text
    row = next(line for line in table(text, "mutual information I(X;T)").splitlines() if line.startswith("    1"))
    assert row.split()[4] == (sign if without else f"{found['mi_readout_xt'].values[1, 2, 0]:.3f}{sign}")


def test_no_axis_means_names(synthetic: ModuleType) -> None:
    checkpoints = [synthetic.checkpoint(i, epoch=None, name=f"model_{i}-max") for i in range(2)]
    text = shown(synthetic.result(checkpoints, ["fit", "rank"]))
    assert "checkpoint model_0-max .. model_1-max" in text
    assert "failed" not in text  # the x at the end of a name is no mark
    sweep = [synthetic.checkpoint(i, value=0.5 * i) for i in range(2)]
    text = shown(synthetic.result(sweep, ["rank"], settings={"axis": "kl_weight"}))
    assert "kl_weight 0 .. 0.5" in text
    steps = shown(synthetic.result(range(2), ["rank"], settings={"axis": "step"}))
    assert "step 0 .. 100" in steps


HOSTILE = (
    "[bold]x[/bold]",
    "[x='y']",
    "a\x1b[31mb",
    "new\nline",
    ":smile:",
    "caf\u00e9\u4e2d\u6587",
    "\u202eevil",
    "l" * 70,
)


@pytest.mark.parametrize("unicode", [True, False])
def test_hostile_names_are_shown_as_they_are(synthetic: ModuleType, unicode: bool) -> None:
    checkpoints = [synthetic.checkpoint(i, name=name, epoch=None) for i, name in enumerate(HOSTILE)]
    found = synthetic.result(checkpoints, names=HOSTILE, model="[red]m", skipped={"[b]\x1bad": "was [bad]\n"})
    text = shown(found, 120, unicode=unicode)
    assert "\x1b" not in text
    assert "\u202e" not in text
    for name in (
        "[bold]x[/bold]",
        "[x='y']",
        r"a\x1b[31mb",
        r"new\nline",
        ":smile:",
        r"\u202eevil",
        "l" * 70,
        "[red]m",
    ):
        assert name in text
    assert r"[b]\x1bad: was [bad]\n" in text
    assert ("caf\u00e9\u4e2d\u6587" if unicode else r"caf\xe9\u4e2d\u6587") in text
    assert unicode or text.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("unicode", [True, False])
def test_nothing_is_cut_at_any_width(synthetic: ModuleType, unicode: bool) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    cells = {f"{v:.3f}" for v in found["mi_readout_xt"].values.ravel()}
    cells |= {f"{v:.3f}" for v in found["local_rank"].values.ravel() if v >= 0.01}
    for width in (*range(1, 62), 80, 100, 132, 300):
        text = shown(found, width, unicode=unicode)
        assert all(cell_len(line) <= width for line in text.splitlines()), width
        joined = text.replace("\n", "") if width < 40 else text
        for cell in (*cells, *synthetic.LAYERS):
            assert cell in joined, (width, cell)


def test_a_layer_wider_than_the_terminal_is_split(synthetic: ModuleType) -> None:
    measure = synthetic.Fake("local_rank", synthetic.RANK[:1], {"eps": tuple(10.0**-k for k in range(1, 9))})
    found = synthetic.result(range(3), [measure])
    text = shown(found, 60)
    assert all(f"ε {10.0**-k:g}" in text for k in range(1, 9))
    assert text.count("fc10 (12)") > 1


@pytest.mark.parametrize(
    "name",
    ["distance_within", "singular_value", "mi_readout_xt_se", "local_rank_status", "metric_loss", "mi_binned_cells"],
)
def test_one_variable_is_thinned_and_shown_alone(synthetic: ModuleType, name: str) -> None:
    wide = synthetic.Fake("clustering", synthetic.CLUSTER, {"distance_bin": range(100)})
    found = synthetic.result(range(3), ["rank", "readout", "binned", wide])
    text = shown(found, 80, variables=[name])
    assert f"\n{name} · " in text
    assert ("12 of 100 values along distance_bin" in text) == (name == "distance_within")
    assert "local rank ·" not in text


def test_an_unknown_variable_names_the_nearest(synthetic: ModuleType) -> None:
    with pytest.raises(NothingMatched, match="nc1"):
        tables(synthetic.result([0]), variables=["nc11"], width=80)


@pytest.mark.parametrize("epochs", [[0], [0, 1]])
@pytest.mark.parametrize("measure", ["rank", "readout", "binned", "cluster", "fit", "network"])
def test_one_measure_alone_has_a_trend_where_there_are_several_checkpoints(
    synthetic: ModuleType, epochs: list[int], measure: str
) -> None:
    text = shown(synthetic.result(epochs, [measure]))
    assert ("trend" in text) == (len(epochs) > 1 and measure != "fit")


def test_nothing_measured_shows_no_table(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2), ["readout"])
    for name in ("mi_readout_xt", "mi_readout_ty"):
        found[Estimate.companion(name, "status")].values[...] = Status.NOT_MEASURED
        found[name].values[...] = np.nan
    assert "mutual information" not in shown(found)


def test_everything_broken_is_still_a_table(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3))
    for name, variable in found.variables.items():
        if Estimate.field_of(name) == "status":
            variable.values[...] = Status.NONFINITE
        elif variable.values.dtype.kind == "f":
            variable.values[...] = np.nan
    assert "! not finite" in shown(found)
    assert "not finite → not finite" in shown(found)
    for extreme in (np.inf, 1e308, -1e308, 1e-308, 0.0):
        for variable in found.variables.values():
            if variable.values.dtype.kind == "f":
                variable.values[...] = extreme
                variable.values[0] = 1.0
        shown(found)


def test_known_names_with_other_dimensions_are_no_reason_to_stop(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    whole = found["probe_loss"]
    changed = {
        name: dataclasses.replace(whole, attrs={**v.attrs, "ancillary_variables": ""})
        for name, v in found.variables.items()
    }
    assert "epoch 0 .. 2" in shown(dataclasses.replace(found, variables=changed))
    layered = {name: dataclasses.replace(found["nc1"], attrs={}) for name in found.variables}
    assert "NC1" in shown(dataclasses.replace(found, variables=layered))


def test_a_range_that_moves_is_said(synthetic: ModuleType) -> None:
    found = synthetic.result(range(3), ["binned"])
    assert "--bin-width" in shown(found)
    found["mi_binned_width"].values[...] = 0.07
    assert "--bin-width" not in shown(found)


def test_listing_says_once_what_is_the_same() -> None:
    columns = ("order", "epoch", "size", "format", "empty", "checkpoint")
    rows = [
        {"order": i, "epoch": float(i), "size": 10 * i, "format": "npz", "empty": None, "checkpoint": f"[b]{i}\x1b"}
        for i in range(3)
    ]
    stream = io.StringIO()
    console(stream, color="never", width=80).print(listing(columns, rows))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines[0].split() == ["order", "epoch", "size", "checkpoint"]
    assert lines[1].split() == ["0", "0", "0", r"[b]0\x1b"]
    assert lines[4] == "format: npz"
    for width in range(1, 40):
        console(io.StringIO(), color="never", width=width).print(listing(columns, rows))
    console(stream, color="never", width=80).print(listing(columns, []))
