"""Defaults that go by the model: relative noise where layers are unbounded, and thresholds where the series moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, binary_probe, chain

import ibscan
from ibscan.core.estimate import Status
from ibscan.core.records import Layer, unbounded_layers
from ibscan.core.thresholds import moving_thresholds
from ibscan.engine.complete import planned
from ibscan.engine.plan import Plan
from ibscan.engine.request import Silent, requested
from ibscan.errors import UsageError
from ibscan.results.store import read

DEFAULT = [0.1, 0.3, 1.0]


def plan(folder: Path, verb: Any = "mi", **given: Any) -> Plan:
    return planned(requested(verb, [folder], {"device": "cpu", **given}, ""), Silent())


def noises(folder: Path, **given: Any) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return noise and relative noise of both channels."""
    return {
        measure.channel: (measure.noise, measure.rel_noise)  # type: ignore[attr-defined]
        for measure in plan(folder, **given).measures
        if measure.channel
    }


def test_unbounded_is_every_hidden_layer_that_states_no_range() -> None:
    relu, tanh = Layer("a", "Linear", 3), Layer("b", "Linear", 3, post_range=(-1.0, 1.0))
    output, module = Layer("c", "Linear", 3, output=True), Layer("d", "ReLU", 3, noisy=False)
    assert unbounded_layers([relu, tanh, output, module]) == ("a",)
    assert unbounded_layers([tanh, output, module]) == ()


def test_where_no_noise_is_typed_unbounded_layers_have_relative_noise_beside_it(series: Path) -> None:
    assert noises(series) == {"network": ((0.1,), ()), "readout": ((0.1,), ())}
    relu = {"model": "mlp:relu"}
    assert noises(series, **relu) == {"network": ((0.1,), tuple(DEFAULT)), "readout": ((0.1,), tuple(DEFAULT))}
    # What is asked for is measured as it was.
    assert noises(series, noise=0.5, **relu)["network"] == ((0.5,), ())
    assert noises(series, rel_noise=0.5, **relu)["network"] == ((0.1,), (0.5,))
    assert noises(series, rel_noise=(), **relu)["readout"] == ((0.1,), ())


def test_whichever_layers_are_asked_for_the_model_decides_and_says_so(series: Path) -> None:
    for given in ({}, {"layers": "2"}, {"epochs": "last"}):
        made = plan(series, model="mlp:relu", **given)
        assert '"unbounded": ["0", "2"]' in made.attrs["settings"]
    assert "unbounded" not in plan(series).attrs["settings"]


@pytest.mark.slow
def test_a_default_scan_is_taken_up_and_what_is_typed_later_joins_it(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    small: dict[str, Any] = {"model": "mlp:relu", "epochs": "0,30", "output": out, "samples": 8, "tolerance": 0.3}
    ibscan.mi(series, **small)
    first = read(out)
    assert first["rel_noise"].values.tolist() == DEFAULT
    assert (first["mi_network_rel_xt_status"].values[:, :2] != Status.NOT_MEASURED).all()
    before = out.stat().st_mtime_ns
    ibscan.mi(series, **small)
    assert out.stat().st_mtime_ns == before
    ibscan.mi(series, noise=0.5, **small)
    joined = read(out)
    assert joined["noise"].values.tolist() == [0.1, 0.5]
    np.testing.assert_array_equal(joined["mi_readout_rel_xt"].values, first["mi_readout_rel_xt"].values)


def test_auto_measures_the_thresholds_that_the_stored_spectra_suggest(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    usual = ibscan.rank(series)["singular_value"].values
    expected = moving_thresholds(usual[0], usual[-1])
    assert expected
    run = ibscan.rank(series, eps="auto", output=out)
    assert run["eps"].values.tolist() == list(expected)
    assert ibscan.rank(series, eps=["auto", 7.5])["eps"].values.tolist() == sorted([*expected, 7.5])
    before = out.stat().st_mtime_ns
    ibscan.rank(series, eps="auto", output=out)
    assert out.stat().st_mtime_ns == before
    ibscan.rank(series, output=out)
    assert set(read(out)["eps"].values) == {0.001, 0.01, 0.1, *expected}


def test_auto_of_one_checkpoint_takes_the_defaults_and_says_so(series: Path, command: Run) -> None:
    done = command("rank", series, "--epochs", "30", "--eps", "auto")
    assert done.code == 0, done.err
    assert "--eps auto: 0.001 0.01 0.1, the default, as there is one checkpoint alone" in done.err
    done = command("rank", series, "--eps", "auto")
    assert done.err.count("--eps auto: ") == 1


def test_auto_is_of_a_series_that_has_a_last_checkpoint(series: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--eps auto: goes by the last checkpoint"):
        requested("rank", [series], {"eps": "auto", "follow": True, "output": tmp_path / "r.h5"}, "")


def test_auto_passes_over_a_last_checkpoint_that_cannot_be_read(folder: Path) -> None:
    for epoch in (0, 1, 2):
        ibscan.save(folder, chain(6, 5, 2, seed=epoch), epoch=epoch)
    binary_probe(folder)
    expected = ibscan.rank(folder, epochs="0,1", eps="auto")["eps"].values.tolist()
    last = folder / "epoch-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-8])
    assert ibscan.rank(folder, eps="auto")["eps"].values.tolist() == expected
