"""Checkpoints of a folder are found, ordered along an axis and loaded under clean names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from support.hostile import state, torch_bytes

import ibscan
from ibscan.core.records import Checkpoint, Series
from ibscan.core.text import natural
from ibscan.errors import CheckpointError, InputError, NothingMatched, UsageError
from ibscan.inputs.files import snapshot
from ibscan.inputs.folder.numbers import numbers_in_name
from ibscan.inputs.formats.state_dict import stripped_names
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.manifest import Manifest, read_manifest
from ibscan.inputs.series.read import axis_values, read_series, select_epochs


def put(folder: Path, name: str, seed: int = 0, metadata: Mapping[str, str] | None = None, width: int = 3) -> Path:
    """A safetensors file whose weights depend on the seed."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor + seed for key, tensor in state(width).items()}
    path.write_bytes(safetensors_bytes(tensors, metadata=dict(metadata or {})))
    return path


def names(series: Series) -> list[str]:
    return [one.name for one in series.checkpoints]


NAMES: list[tuple[str, float | None, int | None]] = [
    ("epoch-0040.safetensors", 40, None),
    ("epoch-00003.500.safetensors", 3.5, None),
    ("epoch=3-step=1000.ckpt", 3, 1000),
    ("epoch=3-step=1000-v1.ckpt", 3, 1000),
    ("epoch=12-val_loss=0.02.ckpt", 12, None),
    ("ckpt_12.pt", None, 12),
    ("ckpt_ep7.pt", 7, None),
    ("checkpoint-500", None, 500),
    ("checkpoint-12.pth.tar", None, 12),
    ("checkpoint_epoch_9.pth", 9, None),
    ("step1000", None, 1000),
    ("global_step143000", None, 143000),
    ("iter_000500.pt", None, 500),
    ("100", None, 100),
    ("model_12.pt", None, 12),
    ("step1e3.pt", None, 1000),
    ("step-1000000000000000000.pt", None, 10**18),
    ("model_best.pth", None, None),
    ("val_loss=0.02.pt", None, None),
    ("resnet18.pt", None, None),
    ("mlp_784_10.pt", None, None),
    ("last.ckpt", None, None),
    ("last-v1.ckpt", None, None),
    ("epoch=03-val_loss=0.02-v2.ckpt", 3, None),
    ("checkpoint.pth.tar", None, None),
    ("checkpoint-1500-best.pt", None, 1500),
    ("epoch_3_iter_200.pth", 3, 200),
    ("ema_0.9999_050000.pt", None, 50000),
    ("mp_rank_00_model_states.pt", None, None),
    ("rank0_step_7.pt", None, 7),
    ("model.safetensors.index.json", None, None),
    ("step-12.safetensors.index.json", None, 12),
    ("step-12.safetensors.index.fp16.json", None, 12),
    ("0", None, 0),
    ("20240101123000123456789.pt", None, None),
    ("epoch1e999.pt", None, None),
]


@pytest.mark.parametrize(("name", "epoch", "step"), NAMES, ids=[row[0] for row in NAMES])
def test_epoch_and_step_are_read_from_names(name: str, epoch: float | None, step: int | None) -> None:
    found = numbers_in_name(name)
    assert (found.epoch, found.step) == (epoch, step)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_natural_order_is_numeric_order(numbers: list[int]) -> None:
    assert sorted((f"ckpt_{n}.pt" for n in numbers), key=natural) == [f"ckpt_{n}.pt" for n in sorted(numbers)]


@pytest.mark.slow
@given(st.lists(st.text(max_size=8)))
def test_natural_order_takes_any_name(texts: list[str]) -> None:
    sorted(texts, key=natural)


def test_ten_comes_after_two_and_formats_mix(tmp_path: Path) -> None:
    put(tmp_path, "ckpt_10.safetensors", 10)
    (tmp_path / "ckpt_2.pt").write_bytes(torch_bytes(state()))
    (tmp_path / "ckpt_1.bin").write_bytes(torch_bytes(state(), zipped=False))
    (tmp_path / "ckpt_3").write_bytes(torch_bytes({"state_dict": state()}))
    series = read_series([tmp_path])
    assert names(series) == ["ckpt_1.bin", "ckpt_2.pt", "ckpt_3", "ckpt_10.safetensors"]
    assert [one.format for one in series.checkpoints] == ["torch legacy", "torch zip", "torch zip", "safetensors"]
    assert (series.axis, axis_values(series)) == ("step", [1, 2, 3, 10])
    assert {one.step_source for one in series.checkpoints} == {"name"}
    assert not series.skipped
    assert not series.notices


def test_the_number_inside_wins(tmp_path: Path) -> None:
    put(tmp_path, "epoch-9.safetensors", metadata={"ibscan.epoch": "1", "note": "kept"})
    (tmp_path / "epoch-8.pt").write_bytes(torch_bytes({"model": state(), "epoch": 2, "loss": 0.5}))
    put(tmp_path, "epoch-3.safetensors", 3)
    series = read_series([tmp_path])
    assert [(one.epoch, one.step_source) for one in series.checkpoints] == [(1, "metadata"), (2, "file"), (3, "name")]
    assert series.checkpoints[0].metadata == {"ibscan.epoch": "1", "note": "kept"}
    assert series.checkpoints[1].metadata == {"epoch": "2", "loss": "0.5"}


def test_files_of_save_are_read_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    for epoch in (0, 0.5, 12):
        ibscan.save(tmp_path, model, epoch=epoch, step=int(epoch * 10), noise=0.1, metrics={"loss": 0.3})
    series = read_series([tmp_path])
    assert axis_values(series) == [0, 0.5, 12]
    assert [one.step for one in series.checkpoints] == [0, 5, 120]
    assert series.checkpoints[0].metadata["ibscan.noise"] == "0.1"
    loaded = load_tensors(series.checkpoints[2])
    assert list(loaded) == list(series.checkpoints[2].tensors)
    assert all(loaded[key].equal(tensor) for key, tensor in model.state_dict().items())


def test_folders_of_one_checkpoint_each_are_a_series(tmp_path: Path) -> None:
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        put(folder, "model.safetensors", step)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 400}))
        for extra in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (folder / extra).write_bytes(b"never read")
    put(tmp_path, "0/weights.safetensors")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.txt").write_text("x")
    (tmp_path / "run.parts").mkdir()
    put(tmp_path / "run.parts", "a-1.safetensors")
    for step in (1, 2):
        put(tmp_path / "other-run", f"step-{step}.safetensors")
    series = read_series([tmp_path])
    assert names(series) == [
        "0/weights.safetensors",
        "checkpoint-500/model.safetensors",
        "checkpoint-1000/model.safetensors",
    ]
    assert series.axis == "step"
    assert [one.step for one in series.checkpoints] == [0, 500, 1000]
    assert series.checkpoints[2].step_source == "sidecar"
    assert series.checkpoints[2].epoch == 2.5
    assert not series.skipped
    assert any("other-run" in notice for notice in series.notices)
    # The same folders, as a shell's pattern gives them.
    given_folders = read_series([tmp_path / "checkpoint-1000", tmp_path / "checkpoint-500"])
    assert [one.step for one in given_folders.checkpoints] == [500, 1000]


def test_other_files_of_a_run_are_no_checkpoints(tmp_path: Path) -> None:
    put(tmp_path, "epoch-1.safetensors")
    probe = put(tmp_path, "inputs.safetensors")
    put(tmp_path, "probe.safetensors")
    for name in ("optimizer.pt", "optimizer-3.pt", "rng_state_0.pth", "training_args.bin", "ibscan.toml", "data.bin"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    (tmp_path / "model.pt.tmp").write_bytes(b"x")
    (tmp_path / "tmp-model.pt").write_bytes(b"x")
    (tmp_path / "model.safetensors.part").write_bytes(b"x")
    (tmp_path / "model.pt.incomplete").write_bytes(b"x")
    series = read_series([tmp_path], exclude=[probe])
    assert names(series) == ["epoch-1.safetensors"]
    assert not series.skipped
    assert len(series.notices) == 4
    assert all("unfinished save" in notice for notice in series.notices)


def test_a_result_file_is_passed_over(tmp_path: Path) -> None:
    import h5py

    put(tmp_path, "epoch-1.safetensors")
    for name in ("ibscan.h5", "other.weights.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["format"] = "ibscan"
    series = read_series([tmp_path])
    assert names(series) == ["epoch-1.safetensors"]
    assert not series.skipped


def test_copies_are_dropped_with_a_notice(tmp_path: Path) -> None:
    put(tmp_path, "epoch-1.safetensors", 1)
    best = put(tmp_path, "epoch-2.safetensors", 2)
    (tmp_path / "best.safetensors").write_bytes(best.read_bytes())
    # The same tensors, another file.
    (tmp_path / "last.pt").write_bytes(torch_bytes({"model": {k: t + 2 for k, t in state().items()}}))
    put(tmp_path, "final.safetensors", 7)
    series = read_series([tmp_path])
    assert names(series) == ["epoch-1.safetensors", "epoch-2.safetensors"]
    said = " ".join(series.notices)
    assert "best.safetensors: holds the same weights as epoch-2.safetensors" in said
    assert "last.pt: holds the same weights as epoch-2.safetensors" in said
    assert "final.safetensors: no epoch or step" in said


def test_a_copy_with_a_number_of_its_own_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "epoch-1.safetensors", 1)
    put(tmp_path, "last.safetensors", 3, {"epoch": "3"})
    assert names(read_series([tmp_path])) == ["epoch-1.safetensors", "last.safetensors"]


def test_links_to_another_are_dropped(tmp_path: Path) -> None:
    put(tmp_path, "run/epoch-1.safetensors", 1)
    put(tmp_path, "run/checkpoint-2/model.safetensors", 2, {"epoch": "2"})
    (tmp_path / "run/newest.safetensors").symlink_to("epoch-1.safetensors")
    (tmp_path / "run/current").symlink_to("checkpoint-2")
    (tmp_path / "link").symlink_to("run")
    for folder in (tmp_path / "run", tmp_path / "link"):
        series = read_series([folder])
        assert names(series) == ["epoch-1.safetensors", "checkpoint-2/model.safetensors"]
        assert len(series.notices) == 2
        assert "newest.safetensors: is a link to epoch-1.safetensors" in " ".join(series.notices)


@pytest.mark.parametrize("length", [0x280, 0x480, 0x580])
def test_a_header_length_that_begins_as_a_pickle_is_read_as_safetensors(length: int, tmp_path: Path) -> None:
    path = tmp_path / "epoch-1.safetensors"
    blob = safetensors_bytes(state(), metadata={"epoch": "1"})
    header = 8 + int.from_bytes(blob[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + blob[8:header].ljust(length) + blob[header:])
    assert path.read_bytes()[:1] == b"\x80"
    (checkpoint,) = read_series([tmp_path]).checkpoints
    assert (checkpoint.format, checkpoint.epoch) == ("safetensors", 1)
    assert load_tensors(checkpoint)["0.weight"].equal(state()["0.weight"])


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_files_too_large_to_read_whole_are_streamed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.inputs.files.SMALL_BYTES", 0)
    path = tmp_path / f"step-1.{kind}"
    path.write_bytes(torch_bytes(state()) if kind == "pt" else safetensors_bytes(state()))
    checkpoint = inspect_checkpoint(path, path.name)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(load_tensors(checkpoint)[name].equal(tensor) for name, tensor in state().items())


def test_a_large_file_that_changes_while_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.inputs.files.SMALL_BYTES", 0)
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(safetensors_bytes(state()))
    with pytest.raises(CheckpointError, match="changed while"), snapshot(path, path.name):
        path.write_bytes(b"other")


def test_a_repeated_number_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "epoch=1.safetensors", 1)
    put(tmp_path, "epoch=1-v1.safetensors", 2)
    with pytest.raises(InputError, match="epoch 1 occurs 2 times"):
        read_series([tmp_path])


def test_several_saves_in_one_epoch_are_ordered_by_step(tmp_path: Path) -> None:
    for epoch, step in ((0, 10), (0, 20), (1, 100)):
        put(tmp_path, f"epoch={epoch}-step={step}.safetensors", step)
    series = read_series([tmp_path])
    assert (series.axis, axis_values(series)) == ("step", [10, 20, 100])


def test_without_numbers_the_axis_is_the_index(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a10x.safetensors", "a2x.safetensors"):
        put(tmp_path, name, len(name))
    series = read_series([tmp_path])
    assert names(series) == ["a2x.safetensors", "a10x.safetensors", "b.safetensors"]
    assert (series.axis, axis_values(series)) == ("index", [0, 1, 2])
    assert all((one.epoch, one.step, one.step_source) == (None, None, "order") for one in series.checkpoints)
    put(tmp_path, "epoch-1.safetensors", 9)
    mixed = read_series([tmp_path])
    assert mixed.axis == "index"
    assert "ordered by name" in " ".join(mixed.notices)


def test_checkpoints_of_another_architecture_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "epoch-1.safetensors")
    put(tmp_path, "epoch-2.safetensors", width=5)
    put(tmp_path, "epoch-3.safetensors", 3)
    tensors = {key: tensor for key, tensor in state().items() if key != "2.bias"}
    (tmp_path / "epoch-4.pt").write_bytes(torch_bytes(tensors))
    series = read_series([tmp_path])
    assert names(series) == ["epoch-1.safetensors", "epoch-3.safetensors"]
    said = series.skipped["epoch-2.safetensors"]
    for word in ("epoch-1.safetensors", "'0.", "(5", "(3", "one architecture"):
        assert word in said
    assert "'2.bias' of shape (2,) is in epoch-1.safetensors, but not in epoch-4.pt" in series.skipped["epoch-4.pt"]


def test_files_of_several_folders_are_a_series(tmp_path: Path) -> None:
    paths = [put(tmp_path, "run/b/epoch-2.safetensors", 2), put(tmp_path, "run/a/epoch-1.safetensors", 1)]
    series = read_series(paths)
    assert names(series) == ["a/epoch-1.safetensors", "b/epoch-2.safetensors"]
    with pytest.raises(InputError, match=r"absent\.pt: does not exist"):
        read_series([*paths, tmp_path / "absent.pt"])
    (tmp_path / "zero.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"zero\.pt"):
        read_series([tmp_path / "zero.pt"])


# Containers, prefixes, dtypes


CONTAINERS = ["state_dict", "model_state_dict", "model", "module", "net", "weights"]


@pytest.mark.parametrize("key", CONTAINERS)
def test_tensors_are_found_under_every_usual_key(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(
        torch_bytes({key: state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "rng": torch.zeros(3)})
    )
    checkpoint = inspect_checkpoint(path, "a.pt")
    assert checkpoint.state_key == key
    assert load_tensors(checkpoint)["0.weight"].equal(state()["0.weight"])


def test_a_nested_set_is_found_or_named_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes({"model": {"state_dict": state()}, "critic": {"w": torch.ones(2)}}))
    assert inspect_checkpoint(path, "a.pt").state_key == "model.state_dict"
    other = inspect_checkpoint(path, "a.pt", state_key="critic")
    assert load_tensors(other)["w"].equal(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"'actor'.*model.state_dict, critic"):
        inspect_checkpoint(path, "a.pt", state_key="actor")


def test_raw_or_averaged_weights_are_chosen_by_an_option(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes({"state_dict": state(), "state_dict_ema": {k: t + 1 for k, t in state().items()}}))
    for weights, shift in (("raw", 0), ("ema", 1)):
        loaded = load_tensors(inspect_checkpoint(path, "a.pt", weights=weights))
        assert loaded["0.bias"].equal(torch.full((3,), float(shift)))
    path.write_bytes(torch_bytes({"ema": state()}))
    assert inspect_checkpoint(path, "a.pt").state_key == "ema"
    with pytest.raises(CheckpointError, match="no raw weights"):
        inspect_checkpoint(path, "a.pt", weights="raw")


def test_lightning_epoch_and_step_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "epoch=9-step=9.ckpt"
    content = {"pytorch-lightning_version": "2.4", "epoch": 3, "global_step": 40, "state_dict": state(), "loops": {}}
    path.write_bytes(torch_bytes(content))
    checkpoint = inspect_checkpoint(path, path.name)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.step_source) == (3, 40, "file")


@given(
    st.lists(st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]), max_size=4)
)
def test_wrapper_prefixes_are_stripped_in_any_order_and_number(wrappers: list[str]) -> None:
    clean = list(state())
    assert list(stripped_names([".".join([*wrappers, name]) for name in clean]).values()) == clean
    inner = [name.replace(".", ".".join(["", *wrappers, ""]), 1) for name in clean]
    assert list(stripped_names(inner).values()) == clean


def test_a_file_with_prefixes_equals_the_clean_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes({f"module._orig_mod.{name}": tensor for name, tensor in state().items()}))
    checkpoint = inspect_checkpoint(path, "a.pt")
    assert list(checkpoint.tensors) == list(state())
    assert checkpoint.stored_names == {name: f"module._orig_mod.{name}" for name in state()}
    assert all(load_tensors(checkpoint)[name].equal(tensor) for name, tensor in state().items())
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(state()))
    clean = inspect_checkpoint(tmp_path / "a.safetensors", "a.safetensors")
    assert clean.stored_names == {name: name for name in clean.tensors}


def test_a_users_module_named_like_a_wrapper_is_kept() -> None:
    assert stripped_names(["module.weight", "head.weight"])["module.weight"] == "module.weight"
    assert stripped_names(["_orig_mod.a", "a"]) == {"_orig_mod.a": "_orig_mod.a", "a": "a"}
    assert stripped_names(["module"]) == {"module": "module"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_floating_dtypes_keep_their_stored_type(dtype: str, kind: str, tmp_path: Path) -> None:
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state().items()}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(torch_bytes(tensors) if kind == "pt" else safetensors_bytes(tensors))
    checkpoint = inspect_checkpoint(path, path.name)
    assert {info.dtype for info in checkpoint.tensors.values()} == {dtype}
    assert load_tensors(checkpoint)["0.weight"].float().equal(tensors["0.weight"].float())


def test_integer_buffers_and_views_stay(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    content = {"fc.weight": base.t(), "bn.num_batches_tracked": torch.tensor(3), "p": torch.nn.Parameter(base[1:])}
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes(content))
    loaded = load_tensors(inspect_checkpoint(path, "a.pt"))
    assert loaded["fc.weight"].equal(base.t())
    assert loaded["p"].equal(base[1:])
    assert loaded["bn.num_batches_tracked"].item() == 3
    assert not loaded["p"].requires_grad


# The manifest's pattern and axis


def manifest_of(folder: Path, text: str) -> Manifest:
    (folder / "ibscan.toml").write_text(text)
    return read_manifest(folder, trust=False)


def test_pattern_beats_the_file_and_leaves_the_rest_out(tmp_path: Path) -> None:
    put(tmp_path, "run7-e3.safetensors", metadata={"epoch": "99"})
    put(tmp_path, "run7-e12.safetensors", 1)
    put(tmp_path, "stray.safetensors", 2)
    series = read_series(
        [tmp_path], manifest=manifest_of(tmp_path, '[series]\npattern = "run7-e{epoch}.safetensors"\n')
    )
    assert axis_values(series) == [3, 12]
    assert {one.step_source for one in series.checkpoints} == {"pattern"}
    assert any("stray.safetensors" in notice for notice in series.notices)
    with pytest.raises(NothingMatched, match="mend"):
        read_series([tmp_path], manifest=manifest_of(tmp_path, '[series]\npattern = "x{epoch}"\n'))


def test_a_sweep_has_the_axis_of_its_pattern(tmp_path: Path) -> None:
    for value in ("1e-3", "0.5", "1e-05"):
        put(tmp_path, f"beta={value}.safetensors", len(value))
    series = read_series(
        [tmp_path], manifest=manifest_of(tmp_path, '[series]\npattern = "beta={value:beta}.safetensors"\n')
    )
    assert (series.axis, axis_values(series)) == ("beta", [1e-5, 1e-3, 0.5])
    with pytest.raises(InputError, match="names the axis 'step'"):
        read_series([tmp_path], manifest=manifest_of(tmp_path, '[series]\naxis = "step"\n'))


def test_a_sweep_is_ordered_by_metadata(tmp_path: Path) -> None:
    for index, value in enumerate((0.3, 0.1)):
        put(tmp_path, f"run{index}.safetensors", index, {"ibscan.value": str(value), "ibscan.epoch": "50"})
    series = read_series([tmp_path])
    assert (series.axis, axis_values(series)) == ("value", [0.1, 0.3])


# --epochs


def series_at(epochs: list[float]) -> Series:
    return Series(tuple(Checkpoint(Path("x"), f"{e}", "", 0, "", e, None, None, "name", {}) for e in epochs))


SELECTIONS = [
    ("0:20:10", [0, 10, 20]),
    ("0:20", [0, 1, 2, 5, 10, 20]),
    ("5:", [5, 10, 20, 50, 100]),
    (":2", [0, 1, 2]),
    ("::10", [0, 10, 20, 50, 100]),
    ("1,10,100", [1, 10, 100]),
    ("1, 10", [1, 10]),
    ("last", [100]),
    ("log:3", [0, 1, 10, 100]),
    ("log:100", [0, 1, 2, 5, 10, 20, 50, 100]),
    ("log:1", [100]),
]


@pytest.mark.parametrize(("spec", "expected"), SELECTIONS)
def test_a_selection_takes_the_epochs_it_names(spec: str, expected: list[float]) -> None:
    assert axis_values(select_epochs(series_at([0, 1, 2, 5, 10, 20, 50, 100]), spec)) == expected


@pytest.mark.parametrize(
    "spec", ["", "x", "1:2:3:4", "0:10:0", "0:10:-1", "nan", "1_0", "inf:", "log:", "log:0", "log:x", "1,,2"]
)
def test_a_selection_that_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="expected start:stop:step"):
        select_epochs(series_at([1, 2]), spec)


def test_a_selection_that_matches_nothing_is_refused() -> None:
    with pytest.raises(NothingMatched, match="epoch runs from 1 to 2"):
        select_epochs(series_at([1, 2]), "5:9")


ABSENT: list[tuple[list[float], str, str]] = [
    ([1, 2, 4, 8, 16, 23, 32], "1,24,32", "epoch 24 (the nearest is 23); epoch runs from 1 to 32"),
    ([1, 2, 4, 8, 16, 23, 32], "24", "epoch 24 (the nearest is 23)"),
    ([1, 2], "0,2,7,7", "epoch 0 (the nearest is 1), 7 (the nearest is 2);"),
    ([1e-3, 1e-2], "0.001,0.004", "epoch 0.004 (the nearest is 0.001)"),
    ([-2, 0.5], "-1.9", "epoch -1.9 (the nearest is -2)"),
    ([10**9, 2 * 10**9], "1000000001", "epoch 1000000001 (the nearest is 1000000000)"),
    ([1e-13, 3e-13], "2.9e-13", "epoch 2.9e-13 (the nearest is 3e-13)"),
]


@pytest.mark.parametrize(("epochs", "spec", "words"), ABSENT)
def test_a_listed_number_that_is_not_there_is_named_with_the_nearest(
    epochs: list[float], spec: str, words: str
) -> None:
    with pytest.raises(NothingMatched) as refused:
        select_epochs(series_at(epochs), spec)
    assert words in str(refused.value)


def test_a_missing_number_is_reported_with_skipped_checkpoints(tmp_path: Path) -> None:
    put(tmp_path, "epoch_1.safetensors")
    (tmp_path / "epoch_24.pt").write_bytes(b"")
    with pytest.raises(NothingMatched, match=r"epoch 24 \(the nearest is 1\).*Skipped: epoch_24.pt: has zero bytes"):
        select_epochs(read_series([tmp_path]), "1,24")


def test_numbers_that_may_yet_come_give_a_notice() -> None:
    half = select_epochs(series_at([1, 2]), "2,7", partial=True)
    assert axis_values(half) == [2]
    assert "no checkpoint has epoch 7 (the nearest is 2)" in half.notices[0]
    with pytest.raises(NothingMatched):
        select_epochs(series_at([1, 2]), "7", partial=True)


def test_large_steps_and_sums_of_fractions_are_distinguished() -> None:
    assert axis_values(select_epochs(series_at([10**12, 10**12 + 1]), "1000000000001")) == [10**12 + 1]
    assert axis_values(select_epochs(series_at([0.1 + 0.2, 0.4]), "0.3")) == [0.1 + 0.2]
    assert axis_values(select_epochs(series_at([-0.3, -0.1, 5e-17, 0.1]), "-0.3:0.1:0.1")) == [-0.3, -0.1, 5e-17, 0.1]


@given(st.lists(st.floats(0, 1e6), min_size=1, unique=True).map(sorted), st.integers(2, 60))
def test_a_log_selection_keeps_the_last(epochs: list[float], count: int) -> None:
    kept = axis_values(select_epochs(series_at(epochs), f"log:{count}"))
    assert kept[-1] == epochs[-1]
    assert len(kept) <= count + 1
    assert set(kept) <= set(epochs)


@pytest.mark.slow
def test_a_thousand_checkpoints_are_in_order(tmp_path: Path) -> None:
    blob = safetensors_bytes(state())
    for epoch in range(1000):
        (tmp_path / f"epoch-{epoch}.safetensors").write_bytes(blob)
    assert axis_values(read_series([tmp_path])) == list(range(1000))


@pytest.mark.parametrize("name", ["ckpt².pt", "epoch-².pt", "step_٣.pt", "ckpt_" + "9" * 200 + ".pt"])
def test_file_names_with_odd_digits_are_read_or_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(torch_bytes(state()))
    assert names(read_series([tmp_path])) == [name]
    put(tmp_path, "ckpt_1.safetensors", 1)
    series = read_series([tmp_path])
    assert name in names(series) or any(name in notice for notice in series.notices)
