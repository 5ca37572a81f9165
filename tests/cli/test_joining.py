"""Joining results never keeps stale, damaged, mixed-up or less precise values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from safetensors.torch import load_file, save_file

import ibscan
from ibscan.core.estimate import Status
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.results.store import read

pytestmark = pytest.mark.slow


def test_raw_and_averaged_weights_are_two_results(command: Run, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    raw, ema = chain(6, 5, 4, 2, seed=1).state_dict(), chain(6, 5, 4, 2, seed=2).state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": ema, "epoch": 3}, folder / "model.pt")
    binary_probe(folder)
    common = ["rank", folder, "--model", "mlp:tanh", "-o", tmp_path / "r.h5"]
    assert command(*common).code in (3, 4)
    assert command(*common, "--weights", "raw").code == 0
    refused = command(*common, "--weights", "ema")
    assert refused.code == 2
    assert "weights" in refused.err


def test_two_architectures_do_not_join(command: Run, series: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ibscan.save(other, chain(6, 9, 2), epoch=77)
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 0
    refused = command("rank", other, "-p", series / "probe.npz", "-o", tmp_path / "r.h5")
    assert refused.code == 2
    assert "layers" in refused.err or "widths" in refused.err


@pytest.mark.parametrize("many", [False, True])
def test_memory_that_runs_out_spoils_one_measure_of_one_checkpoint(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    measure = LocalRank.__call__
    met: list[object] = []

    def scarce(self: LocalRank, network: object, *rest: object) -> object:
        if not any(one is network for one in met):
            met.append(network)
        # Stacked calls fail, and of the single checkpoints the second, in every of its layers.
        second = len(met) > 1 + many and met[1 + many] is network
        if network.size > 1 or second:  # type: ignore[attr-defined]
            raise MemoryError
        return measure(self, network, *rest)  # type: ignore[arg-type]

    if not many:
        monkeypatch.setattr("ibscan.engine.scan.LARGEST_BLOCK", 1)
    monkeypatch.setattr(LocalRank, "__call__", scarce)
    done = command("scan", series, "-o", tmp_path / "r.h5")
    assert done.code == 4, done.err
    assert "out_of_memory" in done.err
    result = read(tmp_path / "r.h5")
    status = result["local_rank_status"].values
    assert (status == Status.OUT_OF_MEMORY).any(axis=(1, 2)).sum() == 1
    sound = ~(status == Status.OUT_OF_MEMORY).any(axis=(1, 2))
    for name in ("local_rank", "local_rank_se", "local_rank_min", "effective_rank"):
        assert np.isfinite(result[name].values[sound]).all(), name
    assert (result["mi_readout_xt_status"].values != Status.OUT_OF_MEMORY).all()
    # The next run, with memory enough, takes up just that.
    monkeypatch.setattr(LocalRank, "__call__", measure)
    assert command("scan", series, "-o", tmp_path / "r.h5").code == 0
    whole = read(tmp_path / "r.h5")
    assert (whole["local_rank_status"].values == Status.OK).all()
    assert whole.attrs["complete"] == 1
    fresh = ibscan.rank(series)
    np.testing.assert_allclose(whole["local_rank"].values, np.asarray(fresh["local_rank"]), rtol=1e-12)


def test_a_failure_does_not_take_a_good_value_away(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 0
    before = read(tmp_path / "r.h5")

    def scarce(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(LocalRank, "__call__", scarce)
    assert command("rank", series, "--eps", "0.7", "-o", tmp_path / "r.h5").code == 4
    after = read(tmp_path / "r.h5")
    np.testing.assert_array_equal(after["local_rank"].values[..., :3], before["local_rank"].values)
    np.testing.assert_array_equal(after["effective_rank"].values, before["effective_rank"].values)


@pytest.mark.parametrize(("channel", "fine", "coarse"), [("readout", 0.012, 0.05), ("network", 0.1, 0.3)])
def test_precision_once_paid_for_stays(
    command: Run, series: Path, tmp_path: Path, channel: str, fine: float, coarse: float
) -> None:
    out = tmp_path / "r.h5"
    common = ["mi", series, "--channel", channel, "--noise", "0.3", "-o", out]
    assert command(*common, "--tolerance", fine).code == 0
    names = [f"mi_{channel}_xt{end}" for end in ("", "_se", "_lower", "_upper", "_draws")]
    before = {name: np.array(read(out)[name].values[..., 0]) for name in names}
    assert command(*common, "--noise", "0.5", "--tolerance", coarse).code == 0
    for name, values in before.items():
        np.testing.assert_array_equal(read(out)[name].values[..., 0], values)


def test_a_larger_budget_takes_up_each_unresolved_noise(command: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    common = ["mi", series, "--tolerance", "0.01", "--channel", "readout", "-o", out]
    command(*common, "--noise", "0.3", "--max-draws", "130")
    command(*common, "--noise", "0.5", "--max-draws", "200000")
    command(*common, "--noise", "0.3", "--max-draws", "200000")
    result = read(out)
    place = result["noise"].values.tolist().index(0.3)
    assert (result["mi_readout_xt_status"].values[..., place] != Status.UNRESOLVED).all()
    assert (result["mi_readout_xt_draws"].values[..., place] > 130).all()


def test_a_larger_budget_takes_up_what_was_left_open(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.h5"
    common = ["mi", series, "--channel", "network", "--tolerance", "0.05", "--epochs", "10,30", "-o", out]
    assert "unresolved" in command(*common, "--max-replicas", "4", "--max-draws", "64").err
    few = read(out)
    assert (few["mi_network_xt_status"].values[:, 1] == Status.UNRESOLVED).all()

    def refuse(*_: object) -> object:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        # The same budget would leave them open again.
        patch.setattr(NetworkInformation, "__call__", refuse)
        assert command(*common, "--max-replicas", "4", "--max-draws", "64").code == 0
    assert command(*common).code == 0
    result = read(out)
    assert (result["mi_network_xt_status"].values[:, :2] != Status.UNRESOLVED).all()
    assert (result["mi_network_replicas"].values[:, 1] > 4).all()
    assert (result["mi_network_xt_draws"].values[:, 1] > 64).all()
    assert (result["mi_network_xt_status"].values[:, 2] == Status.NOT_MEASURED).all()


def test_a_budget_that_was_too_small_is_not_tried_again(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.h5"
    common = ["mi", series, "--channel", "network", "--epochs", "30", "--noise", "0.3", "-o", out]
    budget = ["--tolerance", "0.001", "--max-replicas", "8", "--max-draws", "64"]
    assert "unresolved" in command(*common, *budget).err
    before = {n: np.array(read(out)[n].values) for n in read(out).variables if n.startswith("mi_network")}
    with monkeypatch.context() as patch:
        patch.setattr(NetworkInformation, "__call__", None)
        assert "unresolved" in command(*common, *budget).err
    # Measured again all the same, nothing changes, no status either.
    assert command(*common, *budget, "--no-resume").code == 0
    for name, values in before.items():
        np.testing.assert_array_equal(read(out)[name].values, values)


def test_only_what_is_missing_is_measured(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("scan", series, "-o", tmp_path / "r.h5").code == 0

    def refuse(*_: object) -> object:
        raise AssertionError("measured again")

    monkeypatch.setattr(LocalRank, "__call__", refuse)
    assert command("scan", series, "--noise", "0.7", "-o", tmp_path / "r.h5").code == 0
    assert read(tmp_path / "r.h5")["noise"].values.tolist() == [0.1, 0.7]


def test_what_the_manifest_says_later_is_taken_up(command: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    assert command("rank", series, "-o", out).code == 0
    (series / "ibscan.toml").write_text('[series]\npattern = "epoch-{value:beta}.safetensors"\naxis = "beta"\n')
    assert command("rank", series, "-o", out).code == 0
    result = read(out)
    assert result["value"].values.tolist() == [0, 1, 3, 10, 30]
    assert result.settings["axis"] == "beta"


def test_a_file_that_is_gone_is_no_longer_skipped(command: Run, series: Path, tmp_path: Path) -> None:
    (series / "broken.pt").write_bytes(b"")
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 4
    (series / "broken.pt").unlink()
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 0
    result = read(tmp_path / "r.h5")
    assert json.loads(result.attrs["skipped"]) == {}
    assert result.attrs["complete"] == 1


def test_a_nan_bias_reaches_every_measure(command: Run, series: Path, tmp_path: Path) -> None:
    path = series / "epoch-00003.safetensors"
    state = load_file(path)
    state["2.bias"][0] = float("nan")
    save_file(state, path, metadata={"ibscan.epoch": "3"})
    done = command("scan", series, "--model", "mlp:relu", "-o", tmp_path / "r.h5")
    assert done.code == 4
    result = read(tmp_path / "r.h5")
    for name in ("local_rank", "effective_rank", "mi_readout_xt", "mi_binned_xt", "nc1"):
        status = result.status(name)
        assert status is not None
        status = status[..., 0] if status.ndim == 3 else status
        assert (status[2] == [status[2, 0], Status.NONFINITE, Status.NONFINITE]).all(), name
        assert status[2, 0] != Status.NONFINITE, name
        assert (np.delete(status, 2, 0) != Status.NONFINITE).all(), name


def test_nc4_of_an_output_that_is_not_finite(command: Run, series: Path, tmp_path: Path) -> None:
    path = series / "epoch-00003.safetensors"
    state = load_file(path)
    state["4.weight"][0, 0] = float("nan")
    save_file(state, path, metadata={"ibscan.epoch": "3", "ibscan.model": "mlp:tanh"})
    assert command("cluster", series, "-o", tmp_path / "r.h5").code == 4
    result = read(tmp_path / "r.h5")
    assert result["nc4_status"].values[2, 1] == Status.NONFINITE
    assert result["nc4_status"].values[1, 1] == Status.OK
    assert result["nc1_status"].values[2, 1] == Status.OK


@pytest.mark.parametrize("rows", [37, 1001])
def test_equal_rows_are_one_input(command: Run, tmp_path: Path, rows: int) -> None:
    ibscan.save(tmp_path / "wide", chain(784, 100, 10, gain=1.0), epoch=0)
    x = np.random.default_rng(0).random((1, 784))
    np.savez(tmp_path / "wide" / "probe.npz", x=np.repeat(x, rows, 0), y=np.arange(rows) % 10)
    assert command("scan", tmp_path / "wide", "-o", tmp_path / "r.h5").code == 0
    result = read(tmp_path / "r.h5")
    for name in ("mi_readout_xt", "mi_binned_xt"):
        assert (result[f"{name}_status"].values == Status.DEAD).all()
        assert (result[name].values == 0.0).all()
    assert (result["distance_edge_high"].values == 0.0).all()
