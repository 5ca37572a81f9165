"""Columns of information: relative noise, and where each was measured."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from ibscan.core.estimate import Status
from ibscan.core.result import Result


def relative(synthetic: ModuleType, **changes: Any) -> Result:
    bare = synthetic.checkpoint(1, metadata={})  # no loss beside it
    found: Result = synthetic.result((bare,), ["relative", "readout"], names=("fc1", "out"), **changes)
    for name, value in (("mi_readout_rel_xt", 2.5), ("mi_readout_xt", 1.25)):
        found[name].values[...], found[f"{name}_se"].values[...] = value, 0.01
    return found


def tables_of(blocks: list[list[str]], title: str) -> list[list[str]]:
    return [block for block in blocks if block[0].startswith(title)]


def test_relative_noise_is_a_column_that_says_so(synthetic: ModuleType) -> None:
    assert synthetic.printed(relative(synthetic), 80)[1] == [
        "mutual information I(X;T) · nat, at post, 64 probe rows",
        "       fc1                       out",
        "        read-out       read-out   read-out       read-out",
        "       I(X; T+Z)      I(X; T+Z)  I(X; T+Z)      I(X; T+Z)",
        "epoch  noise 0.1  noise 0.1 rms  noise 0.1  noise 0.1 rms",
        "─────────────────────────────────────────────────────────",
        "    1      1.250          2.500      1.250          2.500",
        "",
        "read-out: Gaussian noise of that standard deviation at this layer alone.",
        "read-out, noise R rms: at this layer alone, of a standard deviation R times the",
        "layer's own root-mean-square distance from its mean; in activation units it",
        "differs by layer and checkpoint (--variable noise_absolute).",
        "Standard errors up to 0.01 nat.",
        "Ceiling: H(X), at most ln 64 = 4.159 nat, less where rows repeat.",
    ]
    label = tables_of(synthetic.printed(relative(synthetic)), "mutual information I(T;Y)")[0]
    assert label[4].split()[-3:] == ["noise", "0.1", "rms"]


def test_both_channels_at_relative_noise_stand_side_by_side(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2), ["network_relative", "relative"], names=("fc1",))
    table = synthetic.printed(found)[1]
    assert [line.split() for line in table[2:5]] == [
        ["network", "read-out"],
        ["I(X;", "T)", "I(X;", "T+Z)"],
        ["epoch", "loss", *["noise", "0.1", "rms"] * 2],
    ]
    notes = " ".join(table)
    assert "network, noise R rms: at every hidden layer, of a standard deviation R times" in notes
    assert "(--variable mi_network_noise_absolute)" in notes
    synthetic.marked(found, "mi_network_rel_xt", (-1, 0, 0), Status.UNRESOLVED, 3.1)
    found["mi_network_rel_xt_lower"].values[-1], found["mi_network_rel_xt_upper"].values[-1] = 2.6, 3.6
    assert "3.1 [2.6, 3.6]?" in " ".join(synthetic.printed(found)[1])


def test_relative_noise_alone_has_no_note_on_absolute_noise(synthetic: ModuleType) -> None:
    table = synthetic.printed(synthetic.result(range(2), ["relative"]))[1]
    assert not any(line.startswith("read-out: ") for line in table)
    assert any(line.startswith("read-out, noise R rms") for line in table)


@pytest.mark.parametrize("name", ["noise_absolute", "mi_readout_rel_slope", "mi_readout_slope"])
def test_what_has_no_column_is_a_variable(synthetic: ModuleType, name: str) -> None:
    found = synthetic.result(range(2), ["relative", "slope", "readout"], names=("fc1",))
    table = synthetic.printed(found, variables=[name])[1]
    assert table[0].startswith(f"{name} · ")
    assert table[2].split()[-1] == "0.1"
    assert not any("ln noise" in line for block in synthetic.printed(found) for line in block)


def test_several_relative_noises_stand_together(synthetic: ModuleType) -> None:
    measures = [
        synthetic.Fake("relative", synthetic.RELATIVE, {"rel_noise": (0.1, 0.3)}),
        *(synthetic.Fake(n, getattr(synthetic, n.upper()), {"noise": (0.1, 0.2)}) for n in ("readout", "network")),
    ]
    blocks = synthetic.printed(synthetic.result(range(2), measures, names=("fc1",)))
    heads = [block[4].replace("noise ", "") for block in tables_of(blocks, "mutual information I(X;T)")]
    assert [head.split()[2:] for head in heads] == [["0.1", "0.1"], ["0.2", "0.2"], ["0.1", "rms", "0.3", "rms"]]


def test_channels_measured_at_two_places_are_told_apart(synthetic: ModuleType) -> None:
    pre = synthetic.Fake("readout", synthetic.READOUT, {"noise": (0.1,)}, at="pre")
    found = synthetic.result(range(2), ["network", pre])
    blocks = synthetic.printed(found)
    assert blocks[1][0] == "mutual information I(X;T) · nat, at post, 64 probe rows; read-out at pre, 64 probe rows"
    assert blocks[2][0] == "inputs told apart at epoch 1 · at post, 64 probe rows; read-out at pre, 64 probe rows"
