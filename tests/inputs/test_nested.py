"""Nested sets of tensors, and epoch and step in every form, are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.layouts import in_shards, prefixed, put_safetensors, put_torch, weights

from ibscan.errors import CheckpointError
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.read import axis_values, read_series

W, V = weights(), weights(1.0)
MOMENTS = {"state": {"0.weight": {"exp_avg": torch.ones(3, 4), "step": torch.tensor(9.0)}}}

FOUND: list[tuple[object, str | None, str, float]] = [
    ({"state": {"model": W, "timestamp": {"epoch": 1}}, "rng": [1]}, None, "state.model", 0),
    ({"state": {"model": W, "optimizers": {"Adam": MOMENTS}}}, None, "state.model", 0),
    ({"checkpoint": {"model_state_dict": W, "optimizer_state_dict": MOMENTS}}, None, "checkpoint.model_state_dict", 0),
    ({"a": {"b": {"c": W}}}, None, "a.b.c", 0),
    ({"a": {"b": {"c": W}}}, "c", "a.b.c", 0),
    ({"models": [W]}, None, "models.0", 0),
    ({"models": [W, V]}, "models.1", "models.1", 1),
    ({"agent": {"actor": W, "critic": V}}, "critic", "agent.critic", 1),
    ({"agent": {"actor": W, "critic": V}}, "agent.critic", "agent.critic", 1),
    ({"x": {"state_dict": V}, "y": {"state_dict": W}}, "x", "x.state_dict", 1),
    ({"state": {"model": W, "ema": V}}, None, "", 0),
    ({"state": {"model": {**prefixed(W, "enc."), **prefixed(V, "dec.")}}}, "state.model.dec", "state.model.dec", 1),
    ({"state": {"model": prefixed(V, "module.net.")}}, "net", "state.model.net", 1),
    ({"state_dict": prefixed(V, "module.net.")}, "net", "state_dict.net", 1),
]


@pytest.mark.parametrize(("content", "asked", "key", "shift"), FOUND)
def test_a_set_is_found_at_any_depth(
    content: object, asked: str | None, key: str, shift: float, tmp_path: Path
) -> None:
    path = put_torch(tmp_path / "a.pt", content)
    if not key:
        with pytest.raises(CheckpointError, match=r"raw weights .state.model. beside averaged ones .state.ema."):
            inspect_checkpoint(path, "a.pt", state_key=asked)
        assert inspect_checkpoint(path, "a.pt", weights="ema").state_key == "state.ema"
        return
    found = inspect_checkpoint(path, "a.pt", state_key=asked)
    assert found.state_key == key
    assert load_tensors(found)["0.weight"].equal(weights(shift)["0.weight"])


ASKED = [
    ({"agent": {"actor": W, "critic": V}}, "agent.actor, agent.critic", "--state-key agent.actor"),
    ({"agent": {"actor": W, "critic": W}}, "agent.actor, agent.critic", "--state-key agent.actor"),
    ({"model": {"encoder": W, "decoder": V}}, "model.encoder, model.decoder", "--state-key model.encoder"),
    ({"models": [W, V]}, "models.0, models.1", "--state-key models.0"),
    ({"x": {"model": W}, "y": {"model": V}}, "x.model, y.model", "--state-key x.model"),
    ({"optimizer": MOMENTS}, "no named tensors", "state dict"),
]


@pytest.mark.parametrize(("content", "listed", "command"), ASKED)
def test_several_sets_are_listed_by_keys_that_work(
    content: dict[str, Any], listed: str, command: str, tmp_path: Path
) -> None:
    path = put_torch(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError) as refused:
        inspect_checkpoint(path, "a.pt")
    assert listed in str(refused.value)
    assert command in str(refused.value)
    if "--state-key" in command:
        assert inspect_checkpoint(path, "a.pt", state_key=command.split()[1]).tensors


TEN: dict[str, Any] = {
    "int": 10,
    "text": "10",
    "text of a float": "10.0",
    "spaces": " 10 ",
    "exponent": "1e1",
    "0-d": torch.tensor(10),
    "1-d": torch.tensor([10]),
    "float": torch.tensor(10.0),
    "bf16": torch.tensor(10.0, dtype=torch.bfloat16),
    "uint8": torch.tensor(10, dtype=torch.uint8),
    "view": torch.arange(20)[10],
    "parameter": torch.nn.Parameter(torch.tensor(10.0)),
    "np.int64": np.int64(10),
    "np.float32": np.float32(10),
    "0-d array": np.array(10),
    "1-d array": np.array([10]),
    "list": [10],
    "tuple": (10.0,),
    "list of a tensor": [torch.tensor(10)],
}


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("form", TEN)
def test_epoch_and_step_are_read_in_every_form(form: str, zipped: bool, tmp_path: Path) -> None:
    ten = TEN[form]
    for key in ("epoch", "global_step", "iter_num"):
        for content in (
            {"model": W, key: ten},
            {**W, key: ten},
            {"meta": {key: ten}, "state_dict": W},
            {"state": {"model": W, "timestamp": {"Timestamp": {key: ten}}}},
            {"checkpoint": {"model": W, key: ten}},
        ):
            path = tmp_path / "a.pt"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            found = inspect_checkpoint(path, "a.pt")
            assert (found.epoch if key == "epoch" else found.step) == 10, (key, list(content))
            assert found.step_source == "file"
            assert load_tensors(found)["2.weight"].equal(W["2.weight"])


SILENT = [
    {"model": W, "epoch": "best"},
    {"model": W, "epoch": True},
    {"model": W, "epoch": torch.ones(2)},
    {"model": W, "epoch": [1, 2]},
    {"model": W, "best": {"epoch": 3}},
    {"model": W, "config": {"epoch": 100}},
    {"model": W, "meta": {"epoch": 3}, "progress": {"epoch": 4}},
    {"model": W, "optimizer": {"step": 7}},
    {"ema": {**W, "step": torch.tensor(7)}},
    {"ema": {"shadow": W, "step": 7}},
]


@pytest.mark.parametrize("content", SILENT)
def test_objects_without_epoch_and_step_give_none(content: object, tmp_path: Path) -> None:
    found = inspect_checkpoint(put_torch(tmp_path / "a.pt", content), "a.pt")
    assert (found.epoch, found.step, found.step_source) == (None, None, "order")


@pytest.mark.parametrize("text", ["10", "10.0", "tensor(10)", "tensor([10])", "tensor(10, device='cuda:0')", "[10]"])
def test_numbers_as_text_in_metadata_and_sidecars_are_read(text: str, tmp_path: Path) -> None:
    path = put_safetensors(tmp_path / "a.safetensors", W, {"epoch": text, "global_step": text})
    found = inspect_checkpoint(path, "a")
    assert (found.epoch, found.step, found.step_source) == (10, 10, "metadata")
    put_safetensors(tmp_path / "b/model.safetensors", W)
    (tmp_path / "b/trainer_state.json").write_text(json.dumps({"epoch": "2.5", "global_step": "10"}))
    found = inspect_checkpoint(tmp_path / "b", "b")
    assert (found.epoch, found.step) == (2.5, 10)


def test_counter_tensors_of_a_safetensors_file_are_read(tmp_path: Path) -> None:
    path = put_safetensors(tmp_path / "a.safetensors", {**W, "epoch": torch.tensor(3), "step": torch.tensor([40])})
    found = inspect_checkpoint(path, "a")
    assert (found.epoch, found.step, found.step_source) == (3, 40, "file")
    assert load_tensors(found)["step"].tolist() == [40]


def test_a_series_is_ordered_by_numbers_in_its_files(tmp_path: Path) -> None:
    for name, value in (("x", torch.tensor(500)), ("y", "250"), ("z", np.int32(1000))):
        put_torch(tmp_path / f"{name}.pt", {"model": weights(float(ord(name))), "iter_num": value})
    series = read_series([tmp_path])
    assert (series.axis, axis_values(series)) == ("step", [250, 500, 1000])


REASONS = {
    "outside": "not a file in its own folder",
    "missing": "does not exist",
    "config": "config of an adapter without its weights",
    "deeper": "holds weights in inner/ alone",
    "empty": "is called like a checkpoint and holds no weights (saw optimizer.pt)",
    "unfinished": "unfinished save",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_subfolder_that_cannot_be_used_says_why(kind: str, tmp_path: Path) -> None:
    put_safetensors(tmp_path / "checkpoint-1/model.safetensors", W)
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    if kind in ("outside", "missing"):
        index = in_shards(folder, "model.safetensors", W)
        (folder / "model-00001-of-00002.safetensors").unlink()
        if kind == "outside":
            index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    elif kind == "config":
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "deeper":
        put_safetensors(folder / "inner/model.safetensors", W)
    else:
        (folder / ("optimizer.pt" if kind == "empty" else "model.safetensors.tmp")).write_bytes(b"x")
    series = read_series([tmp_path])
    assert len(series.checkpoints) == 1
    said = " ".join([*series.notices, *series.skipped.values()])
    assert "checkpoint-500" in said
    assert REASONS[kind] in said


def test_a_counter_in_some_files_is_no_other_architecture(tmp_path: Path) -> None:
    for epoch in (1, 2):
        put_torch(
            tmp_path / f"epoch_{epoch}.pt", {**weights(epoch), **({"epoch": torch.tensor(1)} if epoch == 1 else {})}
        )
    series = read_series([tmp_path])
    assert axis_values(series) == [1, 2]
    assert not series.skipped


def test_a_state_key_may_omit_the_prefix_of_all_names(tmp_path: Path) -> None:
    tensors = {**prefixed(W, "model.actor."), **prefixed(V, "model.critic.")}
    for path in (put_torch(tmp_path / "a.pt", {"state_dict": tensors}), put_safetensors(tmp_path / "a.st", tensors)):
        found = inspect_checkpoint(path, path.name, state_key="critic")
        assert load_tensors(found)["0.weight"].equal(V["0.weight"])
    path = put_torch(tmp_path / "b.pt", {**prefixed(W, "a.net."), **prefixed(V, "b.net.")})
    with pytest.raises(CheckpointError, match="no tensors under 'net'"):
        inspect_checkpoint(path, "b.pt", state_key="net")
