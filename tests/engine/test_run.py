"""The Python functions: which options they take, what they return, what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import chain
from torch import nn

import ibscan
from ibscan.errors import IbscanError, UsageError
from ibscan.results.store import read


@pytest.mark.slow
def test_options_take_the_forms_of_the_command_line(series: Path) -> None:
    typed = ibscan.mi(series, probe_arg=["scale=2"], bin_range="0:1", epochs=[0, 3], noise=0.2, bins=10)
    called = ibscan.mi(series, probe_arg={"scale": 2}, bin_range=(0, 1), epochs="0,3", noise=[0.2], bins=(10,))
    assert set(typed) == set(called)
    np.testing.assert_array_equal(typed["mi_binned_xt"].values, called["mi_binned_xt"].values)
    assert typed["binning"].values.tolist() == ["10 bins on 0:1"]
    np.testing.assert_array_equal(ibscan.rank(series, epochs=3)["epoch"].values, [3])


@pytest.mark.parametrize(
    "options",
    [
        {"noise": ["a"]},
        {"noise": 0},
        {"samples": 3.5},
        {"samples": True},
        {"bin_range": "x"},
        {"probe": np.zeros((2, 5))},
        {"eps": []},
        {"colour": "red"},
        {"device": "tpu"},
        {"dtype": "int8"},
    ],
)
def test_a_wrong_option_is_refused_with_a_message(series: Path, options: dict[str, Any]) -> None:
    with pytest.raises(IbscanError):
        ibscan.scan(series, **options)


def test_none_means_the_default(series: Path) -> None:
    none = {"noise": None, "layers": None, "probe_arg": None, "model_arg": None}
    assert ibscan.mi(series, epochs="last", **none)["noise"].values.tolist() == [0.1]


@pytest.mark.parametrize("given", [{"depth": 2}, ["depth=2"], "depth=2"])
def test_arguments_of_a_callable_may_be_a_mapping_or_as_typed(series: Path, given: object) -> None:
    with pytest.raises(IbscanError, match="depth"):  # a plain chain takes none, and names them
        ibscan.rank(series, model="mlp:tanh", model_arg=given)


def test_to_hdf5_overwrites_no_other_file(series: Path, tmp_path: Path) -> None:
    run = ibscan.rank(series)
    before = (series / "probe.npz").read_bytes()
    for path in (series / "probe.npz", series / "epoch-00003.safetensors", series):
        with pytest.raises(UsageError):
            run.to_hdf5(path)
    assert (series / "probe.npz").read_bytes() == before
    run.to_hdf5(tmp_path / "r.h5")
    run.to_hdf5(tmp_path / "r.h5")
    with pytest.raises(UsageError):
        ibscan.rank(series, seed=1).to_hdf5(tmp_path / "r.h5")


def test_a_renamed_file_is_the_same_checkpoint(series: Path, tmp_path: Path) -> None:
    ibscan.rank(series, output=tmp_path / "r.h5")
    (series / "epoch-00010.safetensors").rename(series / "other.safetensors")
    ibscan.rank(series, output=tmp_path / "r.h5")
    result = read(tmp_path / "r.h5")
    assert result["epoch"].values.tolist() == [0, 1, 3, 10, 30]
    assert "other.safetensors" in result["checkpoint_name"].values.tolist()


def test_saving_survives_a_diverging_loss(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out"):
        path = ibscan.save(tmp_path, chain(3, 2), epoch=1, metrics={"loss": float("nan"), "lr": 0.1})
    assert b"ibscan.metric.lr" in path.read_bytes()
    assert b"ibscan.metric.loss" not in path.read_bytes()


def test_close_epochs_have_files_of_their_own(tmp_path: Path) -> None:
    names = {ibscan.save(tmp_path, chain(3, 2), epoch=epoch).name for epoch in (0.0001, 0.0002, 1.5, 2)}
    assert names == {
        "epoch-00000.0001.safetensors",
        "epoch-00000.0002.safetensors",
        "epoch-00001.5.safetensors",
        "epoch-00002.safetensors",
    }


VALUES = (0.1, 0.2, 0.3, 0.1 + 0.2, -0.5, -2, 0, 3, 1e-05, 1e22, 1e300, 2**60)


@pytest.mark.parametrize("place", [{"epoch": 10}, {"step": 7}, {"epoch": 0.5, "step": 7}, {}])
def test_every_member_of_a_sweep_is_kept_and_read_back(place: dict[str, float], tmp_path: Path) -> None:
    from ibscan.inputs.folder.numbers import numbers_in_name
    from ibscan.inputs.series.checkpoint import load_tensors
    from ibscan.inputs.series.read import axis_values, read_series

    paths = {}
    for seed, value in enumerate(VALUES):
        for again in (value, float(value)):  # a whole number is one, however it is typed
            paths[value] = ibscan.save(tmp_path, chain(3, 2, seed=seed), value=again, **place)  # type: ignore[arg-type]
        assert numbers_in_name(paths[value].name).value == value
    assert len(set(paths.values())) == len(VALUES) == len(list(tmp_path.iterdir()))
    series = read_series([tmp_path])
    assert (series.axis, axis_values(series)) == ("value", sorted(map(float, VALUES)))
    assert {(one.epoch, one.step) for one in series.checkpoints} == {(place.get("epoch"), place.get("step"))}
    for one in series.checkpoints:
        seed = [float(value) for value in VALUES].index(one.value)
        assert load_tensors(one)["0.weight"].equal(chain(3, 2, seed=seed).state_dict()["0.weight"])


def test_the_same_place_of_the_same_network_is_written_again(tmp_path: Path) -> None:
    for seed, loss in ((1, 0.5), (2, 0.25)):
        path = ibscan.save(tmp_path, chain(3, 2, seed=seed), epoch=1, step=9, value=0.1, metrics={"loss": loss})
    assert b'"ibscan.metric.loss":"0.25"' in path.read_bytes()
    path.write_bytes(b"")  # as a crash leaves it
    assert ibscan.save(tmp_path, chain(3, 2), epoch=1, step=9, value=0.1).stat().st_size


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"step": 20}, "step 10"),
        ({"step": None}, "step 10"),
        ({"noise": 0.2}, "noise unknown"),
        ({"spec": "mlp:relu"}, "model mlp:tanh"),
        ({"widths": (3, 5, 2)}, "'0.weight' \\(4, 3\\)"),
        ({"widths": (3, 2), "spec": "mlp:tanh"}, "'0.weight' \\(4, 3\\)"),
    ],
)
def test_another_checkpoint_is_never_replaced(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    kept = ibscan.save(tmp_path, chain(3, 4, 2), epoch=1, step=10)
    before = kept.read_bytes()
    given = {"epoch": 1, "step": 10, "widths": (3, 4, 2), **options}
    with pytest.raises(UsageError, match=f"{word}.*not replaced"):
        ibscan.save(tmp_path, chain(*given.pop("widths")), **given)
    assert [kept] == list(tmp_path.iterdir())
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    ("modules", "spec"),
    [
        ([nn.Linear(3, 2)], "mlp:identity"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)], "mlp:relu"),
        ([nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2), nn.Softmax(dim=-1)], "mlp:gelu:softmax"),
    ],
)
def test_a_sequential_describes_itself(tmp_path: Path, modules: list[nn.Module], spec: str) -> None:
    path = ibscan.save(tmp_path, nn.Sequential(*modules), epoch=1)
    assert f'"ibscan.model":"{spec}"'.encode() in path.read_bytes()


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 2)],
        [nn.Linear(3, 4), nn.GELU(approximate="tanh"), nn.Linear(4, 2)],
        [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)],
        [nn.Linear(3, 4), nn.Linear(4, 2)],
        [nn.Linear(3, 4), nn.Softmax(dim=0)],
        [nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)],
        [nn.ReLU()],
    ],
)
def test_what_is_no_plain_chain_needs_a_spec(tmp_path: Path, modules: list[nn.Module]) -> None:
    with pytest.raises(UsageError):
        ibscan.save(tmp_path, nn.Sequential(*modules), epoch=1)


def test_a_network_that_is_code_is_named_by_its_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"module 0 is Bilinear\(.*spec='net.py:build'"):
        ibscan.save(tmp_path, nn.Bilinear(2, 2, 2), epoch=1)
    with pytest.raises(UsageError, match="module 0 is TransformerEncoderLayer, and"):
        ibscan.save(tmp_path, nn.TransformerEncoderLayer(8, 2, 8), epoch=1)
    path = ibscan.save(tmp_path, nn.Bilinear(2, 2, 2), epoch=1, spec="net.py:build")
    assert path.exists()


def test_saving_without_a_finite_epoch_or_step_is_refused(tmp_path: Path) -> None:
    for options in (
        {},
        {"epoch": -1},
        {"epoch": float("nan")},
        {"step": 0.5},
        {"value": 10**400},
        {"epoch": 1, "metrics": {"loss": "low"}},
    ):
        with pytest.raises(UsageError):
            ibscan.save(tmp_path, chain(3, 2), **options)
    assert not list(tmp_path.glob("*.safetensors"))


def test_saved_weights_come_back_exactly(tmp_path: Path) -> None:
    model = chain(3, 4, 2)
    path = ibscan.save(tmp_path, model, epoch=1)
    from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors

    loaded = load_tensors(inspect_checkpoint(path, path.name))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
