"""Whole commands on a small series: exit codes, streams, rows, the file."""

import json
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from safetensors.torch import load_file, save_file
from support import oracles

import ibscan
from ibscan.core.estimate import Status
from ibscan.results.store import read

COLUMNS = "checkpoint epoch step value layer at variable parameter parameter_value result se lower upper unit status"


@pytest.mark.slow
def test_scan_measures_everything_and_prints_rows(command: Run, series: Path, tmp_path: Path) -> None:
    done = command("scan", series, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split("\t") == COLUMNS.split()
    rows = done.rows()
    assert {row["variable"] for row in rows} >= {
        "local_rank",
        "local_rank_rel",
        "effective_rank",
        "mi_network_xt",
        "mi_network_ty",
        "mi_network_cap",
        "mi_readout_xt",
        "mi_readout_ty",
        "mi_readout_cap",
        "mi_binned_xt",
        "mi_binned_ty",
        "nc1",
        "distance_within_mean",
        "probe_accuracy",
        "metric_loss",
    }
    assert not {"singular_value", "distance_within"} & {row["variable"] for row in rows}
    assert {row["layer"] for row in rows} == {"0", "2", "4", ""}
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_verbs_give_the_same_numbers_as_scan(command: Run, series: Path, tmp_path: Path) -> None:
    command("scan", series, "-o", tmp_path / "scan.h5")
    for verb in ("cluster", "rank", "mi"):
        assert command(verb, series, "-o", tmp_path / "verbs.h5").code == 0
    scanned, joined = read(tmp_path / "scan.h5"), read(tmp_path / "verbs.h5")
    assert set(scanned.variables) == set(joined.variables)
    for name, variable in scanned.variables.items():
        np.testing.assert_array_equal(variable.values, joined[name].values, err_msg=name)


@pytest.mark.slow
def test_a_run_folder_describes_itself(command: Run, series: Path) -> None:
    done = command("mi", "--noise", "0.1", inside=series)
    assert done.code == 0, done.err
    assert {row["variable"] for row in done.rows()} >= {"mi_readout_xt", "mi_binned_xt"}
    assert (series / "ibscan.h5").exists()
    assert command("rank", inside=series).code == 0


@pytest.mark.slow
def test_running_again_computes_nothing(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("scan", series, "-o", tmp_path / "r.h5")

    def refuse(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("ibscan.engine.run.load_tensors", refuse)
    again = command("scan", series, "-o", tmp_path / "r.h5")
    assert again.code == 0, again.err
    assert again.out == first.out


def test_parameters_and_checkpoints_join(command: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    command("rank", series, "--epochs", "0:3", "--eps", "0.1", "-o", out)
    command("rank", series, "--eps", "0.5", "-o", out)
    result = read(out)
    assert result["eps"].values.tolist() == [0.1, 0.5]
    assert result["epoch"].values.tolist() == [0, 1, 3, 10, 30]
    status = result["local_rank_status"].values[:, 0]
    assert status[3, 0] == Status.NOT_MEASURED
    assert status[0, 0] == Status.OK
    assert np.isnan(result["local_rank"].values[3, 0, 0])
    assert (status[:, 1] == Status.OK).all()


@pytest.mark.slow
def test_what_was_asked_is_printed_not_all_of_the_file(command: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    command("scan", series, "-o", out)
    rows = command("rank", series, "--eps", "0.1", "--epochs", "last", "--layers", "2", "-o", out).rows()
    assert {row["epoch"] for row in rows} == {"30"}
    assert {row["layer"] for row in rows} == {"2", ""}
    assert {row["parameter_value"] for row in rows if row["parameter"] == "eps"} == {"0.1"}


@pytest.mark.slow
def test_runs_of_another_identity_are_refused_and_change_nothing(command: Run, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    command("rank", series, "-o", out)
    before = out.read_bytes()
    other = {torch.float64: "float32", torch.float32: "float64"}[oracles.DTYPE]
    for options in (["--seed", "1"], ["--dtype", other], ["--model", "mlp:relu"], ["-n", "10"], ["--at", "post"]):
        done = command("rank", series, *options, "-o", out)
        assert done.code == 2, (options, done.err)
        assert "--force" in done.err
    assert out.read_bytes() == before
    assert command("rank", series, "-n", "10", "--force", "-o", out).code == 0
    assert read(out)["local_rank"].attrs["rows"] == 10


@pytest.mark.slow
def test_the_python_face_gives_the_same_numbers(command: Run, series: Path, tmp_path: Path) -> None:
    command("mi", series, "--noise", "0.2", "-o", tmp_path / "r.h5")
    run = ibscan.mi(series, noise=[0.2], device=str(oracles.DEVICE), dtype=str(oracles.DTYPE).removeprefix("torch."))
    np.testing.assert_array_equal(np.asarray(run["mi_readout_xt"]), read(tmp_path / "r.h5")["mi_readout_xt"].values)
    run.to_hdf5(tmp_path / "again.h5")
    assert read(tmp_path / "again.h5")["noise"].values.tolist() == [0.2]
    assert ibscan.rank(series, eps=0.1, model="mlp:tanh")["local_rank"].values.shape == (5, 3, 1)


@pytest.mark.slow
def test_nan_weights_leave_the_rest_measured(command: Run, series: Path, tmp_path: Path) -> None:
    path = series / "epoch-00003.safetensors"
    state = load_file(path)
    state["2.weight"][0, 0] = math.nan
    save_file(state, path, metadata={"ibscan.model": "mlp:tanh", "ibscan.epoch": "3"})
    done = command("scan", series, "-o", tmp_path / "r.h5")
    assert done.code == 4
    result = read(tmp_path / "r.h5")
    assert result.attrs["complete"] == 0
    for name in ("local_rank_status", "mi_readout_xt_status", "mi_binned_xt_status", "nc1_status"):
        status = result[name].values
        status = status if status.ndim == 2 else status[..., 0]
        assert (status[2, 1:] == Status.NONFINITE).all(), name
        assert (np.delete(status, 2, 0) != Status.NONFINITE).all(), name
        assert status[2, 0] != Status.NONFINITE, name


@pytest.mark.slow
def test_one_unreadable_checkpoint_is_skipped(command: Run, series: Path, tmp_path: Path) -> None:
    (series / "epoch-00003.safetensors").write_bytes(b"no checkpoint")
    done = command("rank", series, "-o", tmp_path / "r.h5")
    assert done.code == 4
    assert "epoch-00003.safetensors" in done.err
    result = read(tmp_path / "r.h5")
    assert result["epoch"].values.tolist() == [0, 1, 10, 30]
    assert set(json.loads(result.attrs["skipped"])) == {"epoch-00003.safetensors"}
    ibscan.save(series, chain(6, 5, 4, 2, seed=3), epoch=3)
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 0
    result = read(tmp_path / "r.h5")
    assert result["epoch"].values.tolist() == [0, 1, 3, 10, 30]
    assert json.loads(result.attrs["skipped"]) == {}
    assert result.attrs["complete"] == 1


def test_another_architecture_is_skipped_by_name(command: Run, series: Path, tmp_path: Path) -> None:
    ibscan.save(series, chain(6, 5, 3, 2), epoch=99)
    done = command("rank", series, "-o", tmp_path / "r.h5")
    assert done.code == 4
    assert "epoch-00099" in done.err


@pytest.mark.slow
def test_bits_are_nats_over_ln_2_and_keep_their_status(command: Run, series: Path, tmp_path: Path) -> None:
    command("mi", series, "--noise", "1e-4", "--noise", "1", "-o", tmp_path / "r.h5")
    nats = command("show", tmp_path / "r.h5", "--variable", "mi_readout_xt").rows()
    bits = command("show", tmp_path / "r.h5", "--variable", "mi_readout_xt", "--units", "bits").rows()
    first = [row for row in nats if row["layer"] == "0" and row["parameter_value"] == "0.0001"]
    assert {row["status"] for row in first} == {"saturated"}
    assert float(first[0]["result"]) == pytest.approx(math.log(64), abs=1e-6)
    for one, other in zip(nats, bits, strict=True):
        assert float(other["result"]) == pytest.approx(float(one["result"]) / math.log(2), rel=1e-12)
        assert other["unit"] == "bit"


@pytest.mark.slow
def test_strict_counts_unresolved(command: Run, series: Path, tmp_path: Path) -> None:
    options = ["--tolerance", "1e-5", "--max-draws", "200", "-o", tmp_path / "r.h5"]
    loose = command("mi", series, *options)
    assert loose.code == 0
    assert "unresolved" in loose.err
    assert command("mi", series, *options, "--strict").code == 4
    # A larger budget takes the unresolved cells up again.
    assert command("mi", series, "--tolerance", "0.05", "--strict", "-o", tmp_path / "r.h5").code == 0


@pytest.mark.slow
def test_every_nan_has_a_status_that_says_why(command: Run, series: Path, tmp_path: Path) -> None:
    command("scan", series, "-o", tmp_path / "r.h5")
    result = read(tmp_path / "r.h5")
    for name, variable in result.variables.items():
        status = result.status(name)
        if status is not None and variable.values.dtype == np.float64:
            assert not (np.isnan(variable.values) & (status == Status.OK)).any(), name
    assert (result["distance_within"].values + result["distance_between"].values).sum(-1).tolist() == [[2016] * 3] * 5


@pytest.mark.slow
def test_torch_files_give_the_numbers_of_safetensors(command: Run, series: Path, tmp_path: Path) -> None:
    other = tmp_path / "torch"
    other.mkdir()
    for path in series.glob("*.safetensors"):
        epoch = int(path.stem.split("-")[1])
        state = {f"module.{name}": tensor for name, tensor in load_file(path).items()}
        torch.save({"model_state_dict": state, "epoch": epoch, "optimizer": {"lr": 0.1}}, other / f"ckpt_{epoch}.pt")
    shutil.copy(series / "probe.npz", other)
    command("scan", series, "-o", tmp_path / "a.h5")
    refused = command("scan", other, "-o", tmp_path / "b.h5")
    assert refused.code == 2
    assert "--model mlp:ACT" in refused.err
    done = command("scan", other, "--model", "mlp:tanh", "-o", tmp_path / "b.h5")
    assert done.code == 0, done.err
    a, b = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    assert a["epoch"].values.tolist() == b["epoch"].values.tolist()
    for name in ("local_rank", "mi_readout_xt", "mi_binned_xt", "nc1"):
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


def test_manifest_describes_a_folder(command: Run, series: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (series / "probe.npz").rename(series / "inputs.npz")
    (series / "ibscan.toml").write_text(
        '[model]\nspec = "mlp:relu:softmax"\n[probe]\npath = "inputs.npz"\nscale = 2\n[series]\naxis = "epoch"\n'
    )
    done = command("rank", series, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert read(tmp_path / "r.h5").attrs["model"] == "mlp:relu:softmax"
    (series / "ibscan.toml").write_text('[model]\nspce = "mlp:relu"\n')
    assert command("rank", series, "-o", tmp_path / "r2.h5").code == 2


def test_paths_from_standard_input(command: Run, series: Path, tmp_path: Path) -> None:
    listed = "\n".join(str(path) for path in sorted(series.glob("*.safetensors"))[:2])
    done = command("rank", "-", "-o", tmp_path / "r.h5", stdin=listed)
    assert done.code == 0, done.err
    assert {row["epoch"] for row in done.rows()} == {"0", "1"}


def test_ls_shows_the_series_as_understood(command: Run, series: Path) -> None:
    (series / "epoch-00003.safetensors").write_bytes(b"")
    done = command("ls", series)
    assert done.code == 4
    rows = done.rows()
    assert [row["epoch"] for row in rows if not row["skipped"]] == ["0", "1", "10", "30"]
    assert {row["chain"] for row in rows if not row["skipped"]} == {"6-5-4-2"}
    assert {row["model"] for row in rows if not row["skipped"]} == {"mlp:tanh"}
    assert [row["checkpoint"] for row in rows if row["skipped"]] == ["epoch-00003.safetensors"]


@pytest.mark.slow
def test_show_and_export_give_what_the_scan_gave(command: Run, series: Path, tmp_path: Path) -> None:
    command("scan", series, "-o", tmp_path / "r.h5")
    for more in ([], ["--full"]):
        table = command("show", tmp_path / "r.h5", "--format", "table", *more)
        assert table.code == 0
        for words in ("I(X; T+Z)", "H(bin T)", "read-out", "clustering", "local rank"):
            assert words in table.out, words
    exported = command("export", tmp_path / "r.h5", "--format", "jsonl")
    rows = [json.loads(line) for line in exported.out.splitlines()]
    assert list(rows[0]) == COLUMNS.split()
    spectrum = command("export", tmp_path / "r.h5", "--variable", "singular_value", "--format", "csv")
    assert spectrum.code == 0
    assert "singular_value" in spectrum.out


@pytest.mark.slow
def test_layers_are_chosen_by_name_and_others_join_later(command: Run, series: Path, tmp_path: Path) -> None:
    done = command("rank", series, "--at", "post", "--layers", "[24]", "-o", tmp_path / "r.h5")
    assert done.code == 0
    assert {row["at"] for row in done.rows() if row["variable"] == "local_rank"} == {"post"}
    assert {row["layer"] for row in done.rows() if row["layer"]} == {"2", "4"}
    # The other layers join later, in the network's order.
    assert command("rank", series, "--at", "post", "-o", tmp_path / "r.h5").code == 0
    assert read(tmp_path / "r.h5")["layer"].values.tolist() == ["0", "2", "4"]


@pytest.mark.slow
def test_without_labels_all_but_i_of_t_and_y_is_measured(command: Run, series: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 6))
    np.save(tmp_path / "x.npy", x)
    done = command("scan", series, "-p", tmp_path / "x.npy", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    result = read(tmp_path / "r.h5")
    assert (result["mi_readout_ty_status"].values == Status.NOT_MEASURED).all()
    assert (result["nc1_status"].values == Status.NOT_MEASURED).all()
    assert (result["mi_readout_xt_status"].values != Status.NOT_MEASURED).all()


@pytest.mark.slow
def test_the_file_opens_in_h5py_with_named_dimensions(command: Run, series: Path, tmp_path: Path) -> None:
    command("scan", series, "-o", tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["format"] == "ibscan"
        assert [dim.keys()[0] for dim in file["mi_readout_xt"].dims] == ["checkpoint", "layer", "noise"]


@pytest.mark.slow
def test_sixteen_checkpoints_stack_to_the_same_numbers(command: Run, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for epoch in range(20):
        ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch), epoch=epoch)
    binary_probe(folder)
    command("scan", folder, "-o", tmp_path / "stacked.h5")
    for epoch in (3, 17):
        name = f"epoch-{epoch:05d}.safetensors"
        command("scan", folder / name, "-p", folder / "probe.npz", "-o", tmp_path / f"{epoch}.h5")
        alone, stacked = read(tmp_path / f"{epoch}.h5"), read(tmp_path / "stacked.h5")
        for key, variable in alone.variables.items():
            np.testing.assert_allclose(
                variable.values[0], stacked[key].values[epoch], rtol=1e-9, atol=1e-12, err_msg=key
            )
