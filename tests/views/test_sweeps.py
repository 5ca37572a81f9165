"""Information at many noises, or in many kinds of cells."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import Run
from rich.cells import cell_len

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.views.curve import curves

NOISES = (2.0, 0.01, 0.05, 0.1, 0.5)


def swept(synthetic: ModuleType, size: int = 6, measures: Any = ("network", "readout"), noises: Any = NOISES) -> Result:
    fakes = [synthetic.Fake(name, getattr(synthetic, name.upper()), {"noise": noises}) for name in measures]
    found: Result = synthetic.result(range(size), fakes, names=("fc1", "out"))
    for name in ("mi_network_xt", "mi_readout_xt"):
        if name in found:
            # Epoch e, layer l, noise s: e + l / 4 at the smallest noise, a unit less at the next, ...
            order = found["noise"].values.argsort()
            values = np.arange(size)[:, None, None] + np.array([5, 5.25])[:, None] - np.arange(len(noises))
            found[name].values[..., order] = values
            found[f"{name}_se"].values[...] = 0.02
    return found


def tables_of(blocks: list[list[str]], title: str) -> list[list[str]]:
    return [block for block in blocks if block[0].startswith(title)]


def test_four_noises_have_a_table_each_and_more_a_curve(synthetic: ModuleType) -> None:
    four = synthetic.printed(swept(synthetic, noises=NOISES[:4]))
    assert len(tables_of(four, "mutual information I(X;T)")) == 4
    assert not [block for block in four if "against" in block[0]]
    five = synthetic.printed(swept(synthetic))
    assert not tables_of(five, "mutual information")
    assert [block[0].split(" · ")[0] for block in five[1:] if "against" in block[0]] == [
        "network I(X; T) against noise",
        "read-out I(X; T+Z) against noise",
        "read-out I(T+Z; Y) against noise",
    ]


def test_a_sweep_is_a_curve_among_the_usual_tables(synthetic: ModuleType) -> None:
    (curve,) = tables_of(synthetic.printed(swept(synthetic, measures=["readout"]), 80), "read-out I(X; T+Z)")
    assert curve == [
        "read-out I(X; T+Z) against noise · nat, at post, 64 probe rows",
        "       fc1                         out",
        "       epoch  epoch  epoch  epoch  epoch  epoch  epoch  epoch",
        "noise      0      1      2      5      0      1      2      5",
        "─────────────────────────────────────────────────────────────",
        " 0.01      5      6      7     10  5.250  6.250  7.250  10.25",
        " 0.05      4      5      6      9  4.250  5.250  6.250   9.25",
        "  0.1      3      4      5      8  3.250  4.250  5.250   8.25",
        "  0.5      2      3      4      7  2.250  3.250  4.250   7.25",
        "    2      1      2      3      6  1.250  2.250  3.250   6.25",
        "",
        "read-out: Gaussian noise of that standard deviation at this layer alone.",
        "Standard errors up to 0.02 nat.",
        "Ceiling: H(X), at most ln 64 = 4.159 nat, less where rows repeat.",
        "4 of 6 checkpoints shown (--all shows every one).",
    ]


def test_bits_and_every_checkpoint_of_a_sweep(synthetic: ModuleType) -> None:
    found = swept(synthetic, measures=["readout"])
    (curve,) = tables_of(synthetic.printed(found, 200, units="bits", every=True), "read-out I(X; T+Z)")
    assert " · bit, " in curve[0]
    assert curve[3].split() == ["noise", *"012345", *"012345"]
    np.testing.assert_allclose([float(v) for v in curve[5].split()[1:7]], np.arange(5, 11) / np.log(2), atol=5e-3)
    assert "Standard errors up to 0.029 bit." in curve


def test_only_what_was_swept_is_a_curve(synthetic: ModuleType) -> None:
    found = swept(synthetic, 2)
    only = found["noise"].values.tolist().index(0.1)
    rest = [place for place in range(len(NOISES)) if place != only]
    found["mi_network_xt_status"].values[..., rest] = Status.NOT_MEASURED
    found["mi_network_xt"].values[..., rest] = np.nan
    blocks = synthetic.printed(found)
    (table,) = tables_of(blocks, "mutual information I(X;T)")
    assert table[4].split() == ["epoch", "loss", *["noise", "0.1"] * 2]
    assert "- not measured" not in table
    assert len(tables_of(blocks, "read-out I(X; T+Z) against noise")) == 1


def test_many_kinds_of_cells_are_a_curve_in_their_order(synthetic: ModuleType) -> None:
    labels = ("width 0.5", "100 bins", "30 bins", "width 0.07", "9 bins", "odd")
    measure = synthetic.Fake("binned", synthetic.BINNED, {"binning": labels})
    found = synthetic.result(range(2), [measure], names=("fc1",))
    (curve,) = tables_of(synthetic.printed(found), "binned H(bin T) against cells · nat")
    assert [line[:10].strip() for line in curve[5:11]] == [
        "9 bins",
        "30 bins",
        "100 bins",
        "odd",
        "width 0.07",
        "width 0.5",
    ]
    values = found["mi_binned_xt"].values[:, 0, labels.index("9 bins")]
    np.testing.assert_allclose([float(v) for v in curve[5].split()[2:]], values, atol=5e-4)
    assert any("does not estimate I(X;T)" in line for line in curve)


def test_a_curve_shows_a_bracket_where_it_is_open(synthetic: ModuleType) -> None:
    found = swept(synthetic, 2, ["network"])
    place = found["noise"].values.tolist().index(0.05)
    found["mi_network_xt_lower"].values[...] = 0.0
    found["mi_network_xt_upper"].values[...] = 0.01
    synthetic.marked(found, "mi_network_xt", (1, 0, place), Status.UNRESOLVED)
    found["mi_network_xt_upper"].values[1, 0, place] = 8.0
    (curve,) = tables_of(synthetic.printed(found), "network I(X; T) against noise")
    assert curve[6].split() == ["0.05", "4", "5", "[0,", "8]?", "4.250", "5.250"]
    assert "v [a, b]? the bracket did not close within the budget" in " ".join(curve)
    assert "Brackets of the network channel end up to 0.005 nat from its values, unresolved ones aside." in curve


@pytest.mark.slow
@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("curve", [True, False])
def test_nothing_of_a_sweep_is_cut_at_any_width(synthetic: ModuleType, unicode: bool, curve: bool) -> None:
    bins = synthetic.Fake("binned", synthetic.BINNED, {"binning": [f"{k} bins" for k in range(1, 7)]})
    rel = synthetic.Fake("relative", synthetic.RELATIVE, {"rel_noise": NOISES})
    measures = [synthetic.Fake(n, getattr(synthetic, n.upper()), {"noise": NOISES}) for n in ("readout", "slope")]
    found = synthetic.result(range(3), [*measures, bins, rel], names=("fc1", "out"))
    cells = {f"{v:.3f}" for v in found["mi_readout_rel_xt"].values.ravel() if v >= 0.01}
    for width in (*range(1, 62, 3), 80, 120):
        lines = [line for block in synthetic.printed(found, width, unicode=unicode, curve=curve) for line in block]
        assert all(cell_len(line) <= width for line in lines), width
        assert unicode or all(line.isascii() for line in lines)
        joined = ("" if width < 40 else "\n").join(lines)
        for cell in (*cells, "fc1", "out", "6 bins"):
            assert cell.replace(" ", "") in joined.replace(" ", ""), (width, cell)


def test_information_at_two_values_is_a_curve(synthetic: ModuleType) -> None:
    measures = [
        synthetic.Fake("local_rank", synthetic.RANK[:1], {"eps": (0.1,)}),
        synthetic.Fake("readout", synthetic.READOUT, {"noise": (0.1, 0.02)}),
        synthetic.Fake("slope", synthetic.SLOPE, {"noise": (0.1, 0.02)}),
        synthetic.Fake("relative", synthetic.RELATIVE, {"rel_noise": (0.3, 0.1)}),
        "binned",
    ]
    found = synthetic.result(range(2), measures, names=("fc1",))
    assert curves(found) == (
        "local_rank",
        "mi_readout_xt",
        "mi_readout_rel_xt",
        "mi_readout_ty",
        "mi_readout_rel_ty",
        "mi_readout_slope",
        "mi_readout_rel_slope",
    )
    found["mi_readout_rel_slope"].values[...] = 0.5
    found["mi_readout_rel_slope_se"].values[...] = 0.0125
    assert synthetic.printed(found, 80, curve=True)[-1] == [
        "read-out -dI/d ln noise against relative noise · at post, 64 probe rows",
        "           fc1",
        "           epoch  epoch",
        "noise/rms      0      1",
        "───────────────────────",
        "      0.1  0.500  0.500",
        "      0.3  0.500  0.500",
        "",
        "read-out, noise R rms: at this layer alone, of a standard deviation R times the",
        "layer's own root-mean-square distance from its mean; in activation units it",
        "differs by layer and checkpoint (--variable noise_absolute).",
        "-dI/d ln noise: the slope of I(X; T+Z), in nats: E||T - E[T|T+Z]||^2/noise^2, T",
        "the layer, Z the noise.",
        "Standard errors up to 0.013.",
        "A curve of 2 points: more --rel-noise values on ibscan mi, into the same file,",
        "make it finer.",
    ]


@pytest.mark.slow
def test_show_prints_a_sweep_of_a_run(command: Run, series: Path, tmp_path: Path) -> None:
    noises, cells = ("0.1", "0.3", "1.5"), ("5", "20")
    typed = [part for noise in noises for part in ("--noise", noise)] + [p for k in cells for p in ("--bins", k)]
    done = command("mi", series, *typed, "--channel", "readout", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    table = command("show", tmp_path / "r.h5", "--curve", "--format", "table").out
    titles = re.findall(r"^.* against \S+", table, flags=re.M)
    sides = ("I(X; T+Z)", "H(bin T)", "I(T+Z; Y)", "I(bin T; Y)")
    kinds = ("read-out {} against noise", "binned {} against cells") * 2
    # Whatever else is measured on the way, these are.
    assert set(titles) >= {kind.format(side) for kind, side in zip(kinds, sides, strict=True)}
    lines = table[table.index("read-out I(X; T+Z)") :].splitlines()
    assert [line.split()[0] for line in lines[5:8]] == list(noises)
    piped = command("show", tmp_path / "r.h5", "--curve")
    swept = {"mi_readout_xt", "mi_binned_xt", "mi_readout_ty", "mi_binned_ty"}
    assert {row["variable"] for row in piped.rows()} >= swept
    assert [r for r in piped.rows() if r["variable"] in swept] == [r for r in done.rows() if r["variable"] in swept]
