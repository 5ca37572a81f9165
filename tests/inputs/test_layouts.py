"""Run folders as training tools leave them: containers, averages, shards, trainers' folders, sweeps, dtypes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from support import hostile as make
from support import layouts
from support.layouts import averaged, in_shards, prefixed, put_safetensors, put_torch, weights

from ibscan.core.records import WRAPPERS, Checkpoint, Series
from ibscan.errors import CheckpointError, InputError
from ibscan.inputs.formats.state_dict import stripped_names
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.manifest import read_manifest
from ibscan.inputs.series.read import axis_values, read_series, select_epochs


def holds(checkpoint: Checkpoint, shift: float = 0.0, prefix: str = "") -> None:
    """Assert that the checkpoint loads under the clean names with these values."""
    loaded = load_tensors(checkpoint)
    assert list(loaded) == list(checkpoint.tensors)
    assert set(loaded) == {f"{prefix}{name}" for name in weights()}
    assert all(loaded[f"{prefix}{name}"].equal(tensor) for name, tensor in weights(shift).items())


def listed(series: Series) -> list[str]:
    return [one.name for one in series.checkpoints]


# Single files: what is in it, the options, and what must come out: key, epoch, step, shift of the numbers, prefix left.
RAW, EMA = weights(), weights(1.0)
Row = tuple[str, Callable[[], object], dict[str, str], str, float | None, int | None, float, str]


def averaging() -> object:
    return layouts.weights_averaging(3, 40, RAW, EMA)


def vision() -> object:
    return layouts.torchvision(5, RAW, averaged(1))


def part() -> object:
    return {**prefixed(RAW, "encoder."), **prefixed(EMA, "decoder.")}


AVG = {"weights": "ema"}
# As the packages torch_ema and ema-pytorch save their averages.
UNNAMED = {"decay": 0.9, "num_updates": 3, "shadow_params": list(EMA.values()), "collected_params": None}
KEY = "ema.ema_model"
ONLINE = {"step": torch.tensor(3), **prefixed(RAW, "online_model."), **prefixed(EMA, "ema_model.")}
CONTENTS: list[Row] = [
    ("lightning", lambda: layouts.lightning(3, 40, RAW), {}, "state_dict", 3, 40, 0, "model."),
    ("lightning-in", lambda: layouts.lightning(3, 40, RAW), {"state_key": "model"}, "state_dict.model", 3, 40, 0, ""),
    (
        "lightning-full",
        lambda: layouts.lightning(3, 40, RAW),
        {"state_key": "state_dict.model"},
        "state_dict.model",
        3,
        40,
        0,
        "",
    ),
    (
        "weight-averaging",
        averaging,
        {"state_key": "current_model_state"},
        "current_model_state",
        3,
        40,
        0,
        "model.",
    ),
    ("nanogpt", lambda: layouts.nanogpt(2000, RAW), {}, "model", None, 2000, 0, ""),
    ("timm", lambda: layouts.timm(7, RAW), {}, "state_dict", 7, None, 0, ""),
    ("timm-raw", lambda: layouts.timm(7, RAW, EMA), {"weights": "raw"}, "state_dict", 7, None, 0, ""),
    ("timm-ema", lambda: layouts.timm(7, RAW, EMA), AVG, "state_dict_ema", 7, None, 1, ""),
    (
        "torchvision-raw",
        vision,
        {"weights": "raw"},
        "model",
        5,
        None,
        0,
        "",
    ),
    ("torchvision-ema", vision, AVG, "model_ema", 5, None, 1, ""),
    ("averaged-alone", lambda: averaged(1), {}, "", None, None, 1, ""),
    (
        "averaged-ddp",
        lambda: {"n_averaged": torch.tensor(3), **prefixed(RAW, "module.module._orig_mod.")},
        {},
        "",
        None,
        None,
        0,
        "",
    ),
    ("deepspeed", lambda: layouts.deepspeed(500, RAW), {}, "module", None, 500, 0, ""),
    ("shadow", lambda: {"model": RAW, "ema": {"shadow": EMA, "decay": 0.9}}, AVG, "ema.shadow", None, None, 1, ""),
    (
        "scalar-beside-shadow",
        lambda: {"model": RAW, "ema": {"shadow": EMA, "updates": torch.tensor(4)}},
        AVG,
        "ema.shadow",
        None,
        None,
        1,
        "",
    ),
    ("ema_state_dict", lambda: {"model": RAW, "ema_state_dict": EMA}, AVG, "ema_state_dict", None, None, 1, ""),
    ("ema_model", lambda: {"net": RAW, "ema_model": prefixed(EMA, "module.")}, AVG, "ema_model", None, None, 1, ""),
    ("nested-ema", lambda: {"net": RAW, "ema": {"module": EMA}}, AVG, "ema.module", None, None, 1, ""),
    ("params", lambda: {"params": RAW, "params_ema": EMA}, {"weights": "raw"}, "params", None, None, 0, ""),
    ("params-ema", lambda: {"params": RAW, "params_ema": EMA}, AVG, "params_ema", None, None, 1, ""),
    ("unnamed", lambda: {"model": RAW, "ema": UNNAMED}, {"weights": "raw"}, "model", None, None, 0, ""),
    ("online", lambda: {"model": RAW, "ema": ONLINE}, {"state_key": KEY}, KEY, None, None, 1, ""),
    ("gan", lambda: {"generator": RAW, "critic": EMA, "iter": 9}, {"state_key": "critic"}, "critic", None, 9, 1, ""),
    ("part", part, {"state_key": "decoder"}, "decoder", None, None, 1, ""),
]  # fmt: skip


@pytest.mark.parametrize("row", CONTENTS, ids=[row[0] for row in CONTENTS])
def test_checkpoints_of_usual_tools_are_read(row: Row, tmp_path: Path) -> None:
    _, content, options, key, epoch, step, shift, prefix = row
    path = put_torch(tmp_path / "file.ckpt", content())
    found = inspect_checkpoint(path, path.name, **options)
    assert (found.state_key, found.epoch, found.step) == (key, epoch, step)
    assert found.step_source == ("order" if epoch is step is None else "file")
    holds(found, shift, prefix)


ASKED: list[tuple[str, Callable[[], object], dict[str, str], tuple[str, ...]]] = [
    ("timm", lambda: layouts.timm(7, RAW, EMA), {}, ("state_dict_ema", "--weights raw", "--weights ema")),
    ("torchvision", vision, {}, ("model_ema", "--weights ema")),
    ("params", lambda: {"params": RAW, "params_ema": EMA}, {}, ("(params)", "--weights raw")),
    ("shadow", lambda: {"model": RAW, "ema": {"shadow": EMA}}, {}, ("ema.shadow", "--weights ema")),
    ("averaging", averaging, {}, ("current_model_state", "--state-key")),
    ("averaging-raw", averaging, {"weights": "raw"}, ("--state-key state_dict",)),
    ("prefix-twice", averaging, {"state_key": "model"}, ("several", "state_dict.model")),
    ("two", lambda: {"model": RAW, "net": EMA}, {}, ("model, net", "--state-key model")),
    ("no-such-key", lambda: {"model": RAW}, {"state_key": "teacher"}, ("'teacher'", "model")),
    ("unnamed", lambda: {"model": RAW, "ema": UNNAMED}, {}, ("(ema)", "without names", "--weights raw")),
    ("unnamed-ema", lambda: {"model": RAW, "ema": UNNAMED}, {"weights": "ema"}, ("without names",)),
    ("no-ema", lambda: {"model": RAW}, AVG, ("no ema weights", "model")),
    ("gan", lambda: {"generator": RAW, "critic": EMA}, {}, ("generator, critic", "--state-key generator")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "words"), ASKED, ids=[row[0] for row in ASKED])
def test_several_possible_sets_are_refused_with_options(
    name: str, content: Callable[[], object], options: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = put_torch(tmp_path / f"{name}.pt", content())
    with pytest.raises(CheckpointError) as refused:
        inspect_checkpoint(path, path.name, **options)
    assert str(refused.value).startswith(f"{name}.pt: ")
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_state_key_may_be_a_prefix_in_a_safetensors_file(tmp_path: Path) -> None:
    path = put_safetensors(tmp_path / "a.safetensors", {**prefixed(RAW, "encoder."), **prefixed(EMA, "decoder.")})
    holds(inspect_checkpoint(path, "a", state_key="decoder"), 1.0)
    with pytest.raises(CheckpointError, match="'teacher' and a dot"):
        inspect_checkpoint(path, "a", state_key="teacher")
    with pytest.raises(CheckpointError, match="no ema"):
        inspect_checkpoint(path, "a", weights="ema")


NAMESPACES = {
    "namespace": (layouts.Namespace(lr=0.1, inner=layouts.Namespace(a=1)), ""),
    "path": (layouts.Namespace(out=Path("run")), "PosixPath"),
    "evil": (layouts.Namespace(out=make.Evil(Path("canary"))), "posix.system"),
}


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_arguments_beside_the_weights_load_and_others_are_refused(
    name: str, zipped: bool, tmp_path: Path
) -> None:
    args, refused = NAMESPACES[name]
    path = tmp_path / "a.pt"
    path.write_bytes(make.torch_bytes({"model": RAW, "epoch": 2, "args": args}, zipped=zipped))
    if refused:
        with pytest.raises(CheckpointError, match=rf"{refused}.*not run"):
            inspect_checkpoint(path, "a.pt")
    else:
        holds(inspect_checkpoint(path, "a.pt"))
    assert not Path("canary").exists()


# Shards


@pytest.mark.parametrize(
    ("stem", "written"), [("model.safetensors", safetensors_bytes), ("pytorch_model.bin", make.torch_bytes)]
)
def test_a_checkpoint_in_shards_loads_as_one(stem: str, written: Callable[[object], bytes], tmp_path: Path) -> None:
    for step, count in ((500, 2), (1000, 3)):
        folder = tmp_path / f"checkpoint-{step}"
        in_shards(folder, stem, prefixed(weights(step), "module."), count=count, written=written)
    series = read_series([tmp_path])
    assert listed(series) == [f"checkpoint-500/{stem}.index.json", f"checkpoint-1000/{stem}.index.json"]
    assert not series.skipped
    assert not series.notices
    assert (series.axis, axis_values(series)) == ("step", [500, 1000])
    first, second = series.checkpoints
    assert second.format.endswith(", 3 shards")
    assert second.metadata["total_size"] == str(sum(tensor.nbytes for tensor in weights().values()))
    holds(first, 500)
    holds(second, 1000)
    shards = sorted(tmp_path.glob("checkpoint-500/*-of-*"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards]
    assert first.sha256 == hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    assert first.size == sum(path.stat().st_size for path in shards)
    # The folder itself, the index, the folders, or everything a shell's pattern names.
    for given_paths in ([folder], [folder / f"{stem}.index.json"], sorted(folder.iterdir())):
        alone = read_series(given_paths)
        assert [(one.sha256, one.step) for one in alone.checkpoints] == [
            (second.sha256, 1000 if given_paths == [folder] else None)
        ]
        assert not alone.skipped
    assert axis_values(read_series(sorted(tmp_path.iterdir()))) == [500, 1000]
    holds(inspect_checkpoint(folder / f"{stem}.index.json", "x", state_key="module"), 1000)


def test_several_indexes_in_one_folder_are_a_series(tmp_path: Path) -> None:
    for step in (10, 9):
        in_shards(tmp_path, f"step-{step}.safetensors", weights(step))
    in_shards(tmp_path, "late.safetensors", weights(1), {"epoch": 7, "step": 70})
    series = read_series([tmp_path])
    assert [(one.step, one.step_source) for one in series.checkpoints] == [(9, "name"), (10, "name"), (70, "metadata")]
    assert series.checkpoints[2].epoch == 7
    (tmp_path / "step-8-00001-of-00001.safetensors").write_bytes(make.GOOD)
    assert "step-8-00001-of-00001.safetensors: no index" in read_series([tmp_path]).notices[0]
    with pytest.raises(CheckpointError, match="one shard of"):
        inspect_checkpoint(tmp_path / "step-8-00001-of-00001.safetensors", "x")


def test_shards_may_have_any_name(tmp_path: Path) -> None:
    index = in_shards(tmp_path, "model.safetensors", weights())
    told = json.loads(index.read_text())
    names = {"model-00001-of-00002.safetensors": "weights a", "model-00002-of-00002.safetensors": "b.safetensors"}
    before = inspect_checkpoint(index, "x").sha256
    for old, new in names.items():
        (tmp_path / old).rename(tmp_path / new)
    told["weight_map"] = {key: names[file] for key, file in told["weight_map"].items()}
    index.write_text(json.dumps(told))
    (found,) = read_series([tmp_path]).checkpoints
    assert found.sha256 == before
    holds(found)


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        told = json.loads(index.read_text())
        change(told)
        index.write_text(json.dumps(told))

    return edit


def renamed(file: str) -> Callable[[Path], object]:
    """Return an edit of the index that renames the first shard."""

    def change(told: dict[str, dict[str, str]]) -> None:
        told["weight_map"] = {k: file if "00001" in v else v for k, v in told["weight_map"].items()}

    return edited(change)  # type: ignore[arg-type]


def replaced(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def outside(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").rename(folder.parent / "out.safetensors")
    (folder / "model-00001-of-00002.safetensors").symlink_to("../out.safetensors")


def twice(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes(weights()))


def linked_twice(folder: Path) -> None:
    (folder / "again.safetensors").symlink_to("model-00002-of-00002.safetensors")
    renamed("again.safetensors")(folder)


def nested(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/x").write_bytes(b"x")
    renamed("sub/x")(folder)


def fifo(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()
    os.mkfifo(folder / "model-00001-of-00002.safetensors")


FIRST = "model-00001-of-00002.safetensors"
SHARDS: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("parent", renamed("../out.safetensors"), ("'../out.safetensors'", "not a file in its own folder")),
    ("parent-inside", renamed("../run/" + FIRST), ("'../run/", "not a file in its own folder")),
    ("absolute", renamed("/etc/passwd"), ("'/etc/passwd'", "not a file in its own folder")),
    ("subfolder", nested, ("'sub/x'", "not a file in its own folder")),
    ("link-out", outside, (FIRST, "no link out")),
    ("empty-name", renamed(""), ("''", "not a file")),
    ("dots", renamed(".."), ("'..'", "not a file")),
    ("null", renamed("a\0b"), ("'a\\x00b'", "not a file")),
    ("surrogate", renamed("\ud800"), ("not a file",)),
    ("long", renamed("x" * 100_000), ("x" * 100,)),
    ("missing", lambda folder: (folder / FIRST).unlink(), (FIRST, "does not exist")),
    ("fifo", fifo, (FIRST, "named pipe", "not opened")),
    ("folder", renamed("."), ("not a file",)),
    ("itself", renamed("model.safetensors.index.json"), ("not a file in its own folder",)),
    ("damaged", lambda folder: (folder / FIRST).write_bytes(make.GOOD[:-3]), (FIRST, "truncated")),
    ("twice", twice, ("does not name its",)),
    ("linked-twice", linked_twice, ("does not fit",)),
    ("absent-tensor", edited(lambda t: t["weight_map"].update({"3.weight": FIRST})), ("'3.weight'", "lacks")),  # type: ignore[attr-defined]
    ("extra-tensor", edited(lambda t: t["weight_map"].pop("0.weight")), ("does not name its '0.weight'",)),  # type: ignore[attr-defined]
    ("no-map", edited(lambda t: t.pop("weight_map")), ("weight_map is NoneType",)),
    ("empty-map", edited(lambda t: t.update(weight_map={})), ("weight_map is 0 names",)),
    ("list", replaced("[1]"), ("is no table",)),
    ("no-text", edited(lambda t: t["weight_map"].update({"0.weight": 3})), ("'0.weight' a int",)),  # type: ignore[attr-defined]
    ("no-json", replaced("{"), ("not readable JSON",)),
    ("deep", replaced("[" * 200_000), ("not readable JSON",)),
    ("doubled", replaced('{"weight_map": {"a": "x", "a": "y"}}'), ("'a' twice",)),
    ("empty", replaced(""), ("not readable JSON",)),
    ("large", replaced(" " * (17 << 20)), ("17825792 bytes",)),
    ("many", edited(lambda t: t.update(weight_map={f"{k}": "x" for k in range(100_001)})), ("100001 names",)),
    ("epoch", edited(lambda t: t["metadata"].update(epoch=-1)), ("epoch -1",)),  # type: ignore[attr-defined]
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change", "words"), SHARDS, ids=[row[0] for row in SHARDS])
def test_shards_that_do_not_fit_their_index_are_refused(
    name: str, change: Callable[[Path], object], words: tuple[str, ...], tmp_path: Path
) -> None:
    del name
    folder = tmp_path / "run"
    in_shards(folder, "model.safetensors", weights())
    put_safetensors(tmp_path / "out.safetensors", weights())
    change(folder)
    with pytest.raises(CheckpointError) as alone:
        inspect_checkpoint(folder, "run")
    assert all(word in str(alone.value) for word in words), alone.value
    assert len(str(alone.value)) < 1000
    with pytest.raises(InputError):
        read_series([folder])
    put_safetensors(tmp_path / "out.safetensors", weights(), {"step": "1"})
    series = read_series([tmp_path])
    assert listed(series) == ["out.safetensors"]
    assert list(series.skipped) == ["run/model.safetensors.index.json"]


def test_two_forms_of_a_sharded_model_are_ambiguous(tmp_path: Path) -> None:
    in_shards(tmp_path / "m", "model.safetensors", weights())
    in_shards(tmp_path / "m", "pytorch_model.bin", weights(), written=make.torch_bytes)
    put_safetensors(tmp_path / "step-1.safetensors", weights())
    assert "several files of weights" in read_series([tmp_path]).skipped["m"]
    holds(inspect_checkpoint(tmp_path / "m/pytorch_model.bin.index.json", "x"))


def test_shards_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.inputs.files.SMALL_BYTES", 2 << 20)
    count, size = 12, 1 << 20
    tensors = {f"{k}.weight": torch.ones(512, size // 2048) for k in range(count)}
    index = in_shards(tmp_path, "model.safetensors", tensors, count=count)
    tracemalloc.start()
    try:
        checkpoint = inspect_checkpoint(index, "m")
        listing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        loaded = load_tensors(checkpoint)
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(loaded) == count
    # A buffer of two MiB, shrunk to what is there.
    assert listing < 4 * size
    # What is loaded may count or not (it is the library's), and one file beside it; never every file's bytes.
    assert loading < (count + 4) * size


# Folders of trainers


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of all files that Python opens."""
    names: list[str] = []
    plain, low = io.open, os.open

    def note(path: object, *args: object, **options: object) -> Any:
        if isinstance(path, str | os.PathLike):
            names.append(Path(path).name)
        return plain(path, *args, **options)  # type: ignore[call-overload]

    def note_low(path: object, *args: object, **options: object) -> Any:
        names.append(str(path))
        return low(path, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", note)
        patch.setattr(os, "open", note_low)
        yield names


def evil_beside(path: Path) -> None:
    path.write_bytes(make.torch_bytes({"w": make.Evil(path.parent.parent / "canary")}))


@pytest.mark.parametrize("beside", [os.mkfifo, evil_beside])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "shards"])
def test_of_a_trainer_folder_only_weights_and_json_are_opened(
    form: str, beside: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (500, 1000):
        folder = layouts.trainer(tmp_path / f"checkpoint-{step}", step, step / 400, beside)
        if form == "shards":
            in_shards(folder, "model.safetensors", weights(step))
        elif form == "pytorch_model.bin":
            put_torch(folder / form, weights(step))
        else:
            put_safetensors(folder / form, weights(step))
    layouts.trainer(tmp_path / "tmp-checkpoint-1500", 1500, 3.75, beside)
    with opened(monkeypatch) as names:
        series = read_series([tmp_path])
        direct = read_series([tmp_path / "checkpoint-500"])
    assert [(one.step, one.epoch, one.step_source) for one in series.checkpoints] == [
        (500, 1.25, "sidecar"),
        (1000, 2.5, "sidecar"),
    ]
    assert (direct.checkpoints[0].step, direct.skipped) == (500, {})
    assert names
    assert all(name.endswith((".json", ".safetensors", "pytorch_model.bin")) for name in names), names
    assert "tmp-checkpoint-1500" in " ".join(series.notices)
    assert not (tmp_path / "canary").exists()


def test_a_trainer_folder_without_weights_is_reported(tmp_path: Path) -> None:
    layouts.trainer(tmp_path / "checkpoint-1", 1, 1.0)
    (tmp_path / "checkpoint-1/pytorch_model_fsdp_0").mkdir()
    put_safetensors(tmp_path / "checkpoint-2/model.safetensors", weights())
    series = read_series([tmp_path])
    assert listed(series) == ["checkpoint-2/model.safetensors"]
    assert "accelerate merge-weights" in series.skipped["checkpoint-1"]


def test_a_final_model_equal_to_a_trainers_checkpoint_is_left_out(tmp_path: Path) -> None:
    for step in (500, 1000):
        put_safetensors(
            layouts.trainer(tmp_path / f"checkpoint-{step}", step, 1.0) / "model.safetensors", weights(step)
        )
    # load_best_model_at_end, save_model, save_state: the weights of step 500 beside the numbers of the last.
    put_safetensors(tmp_path / "model.safetensors", weights(500))
    layouts.trainer(tmp_path, 1000, 2.0)
    series = read_series([tmp_path])
    assert [one.step for one in series.checkpoints] == [500, 1000]
    assert "the same weights as checkpoint-500/model.safetensors" in series.notices[0]
    put_safetensors(tmp_path / "model.safetensors", weights(1001))
    with pytest.raises(InputError, match="occurs 2 times"):
        read_series([tmp_path])
    (tmp_path / "trainer_state.json").unlink()
    assert "no epoch or step is known" in read_series([tmp_path]).notices[0]


def test_deepspeed_folders_of_one_rank_are_a_series(tmp_path: Path) -> None:
    for step in (100, 20):
        folder = tmp_path / f"global_step{step}"
        put_torch(folder / "mp_rank_00_model_states.pt", layouts.deepspeed(step, weights(step)))
        evil_beside(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        evil_beside(folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("global_step100")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit")
    series = read_series([tmp_path])
    assert axis_values(series) == [20, 100]
    assert not series.skipped
    holds(series.checkpoints[1], 100)


def test_a_distributed_checkpoint_of_torch_is_refused_with_a_way_out(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import torch_save_to_dcp

    put_torch(tmp_path / "a.pt", weights())
    torch_save_to_dcp(tmp_path / "a.pt", tmp_path / "run")
    with pytest.raises(InputError, match=r"DCP.*dcp_to_torch"):
        read_series([tmp_path / "run"])
    assert "DCP" in read_series([tmp_path]).skipped["run"]
    with pytest.raises(CheckpointError, match=r"DCP.*dcp_to_torch"):
        inspect_checkpoint(next((tmp_path / "run").glob("*.distcp")), "x.distcp")


# Content over suffix


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    put_safetensors(tmp_path / "model-1.bin", weights(1))
    put_torch(tmp_path / "model-2.safetensors", weights(2))
    put_torch(tmp_path / "model-3", weights(3))
    put_safetensors(tmp_path / "model-4", weights(4))
    (tmp_path / "model-5").write_bytes(make.torch_bytes(weights(5), zipped=False))
    series = read_series([tmp_path])
    assert [one.format for one in series.checkpoints] == [
        "safetensors",
        "torch zip",
        "torch zip",
        "safetensors",
        "torch legacy",
    ]
    for shift, one in enumerate(series.checkpoints, 1):
        holds(one, shift)


REFUSED_TYPES = ["complex64", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", REFUSED_TYPES)
@pytest.mark.parametrize("put", [put_safetensors, put_torch])
def test_weights_that_are_no_real_numbers_are_refused(put: Callable[..., Path], dtype: str, tmp_path: Path) -> None:
    path = put(tmp_path / "a.pt", {**weights(), "2.weight": torch.ones(2, 3).to(getattr(torch, dtype))})
    with pytest.raises(CheckpointError, match=rf"'2\.weight' has dtype {dtype}"):
        inspect_checkpoint(path, "a.pt")


# Architectures


@pytest.mark.parametrize(
    ("widths", "kept"),
    [((5, 3, 3), [2, 3]), ((3, 5, 3), [1, 3]), ((3, 3, 5), [1, 2]), ((3, 5), [1]), ((3, 3, 5, 5), [1, 2])],
)
def test_the_commonest_architecture_is_kept(widths: tuple[int, ...], kept: list[int], tmp_path: Path) -> None:
    for epoch, width in enumerate(widths, 1):
        put_safetensors(tmp_path / f"epoch-{epoch}.safetensors", make.state(width))
    series = read_series([tmp_path])
    assert axis_values(series) == kept
    odd = [epoch for epoch in range(1, len(widths) + 1) if epoch not in kept]
    assert list(series.skipped) == [f"epoch-{epoch}.safetensors" for epoch in odd]
    for epoch in odd:
        assert f"but epoch-{kept[0]}.safetensors has" in series.skipped[f"epoch-{epoch}.safetensors"]
    assert f"{len(kept)} like epoch-{kept[0]}.safetensors are kept, {len(odd)} like" in series.notices[0]


def test_a_stray_file_of_another_kind_leaves_the_axis_alone(tmp_path: Path) -> None:
    for epoch in (1, 2):
        put_safetensors(tmp_path / f"epoch-{epoch}.safetensors", weights(epoch))
    put_safetensors(tmp_path / "classifier.safetensors", make.state(9))
    series = read_series([tmp_path])
    assert (series.axis, axis_values(series)) == ("epoch", [1, 2])
    assert list(series.skipped) == ["classifier.safetensors"]


# Prefixes


@st.composite
def wrapped_trees(draw: st.DrawFn) -> dict[str, str]:
    """A tree of modules, each wrapped in any wrappers in any order: names with the wrappers, and without."""
    names: dict[str, str] = {}

    def grow(clean: list[str], stored: list[str], depth: int) -> None:
        stored = stored + draw(st.lists(st.sampled_from(WRAPPERS), max_size=3))
        for child in draw(st.lists(st.sampled_from(["0", "1", "fc", "attn"]), min_size=1, max_size=3, unique=True)):
            if depth and draw(st.booleans()):
                grow([*clean, child], [*stored, child], depth - 1)
            else:
                inner = draw(st.lists(st.sampled_from(WRAPPERS), max_size=2))
                for part in ("weight", "bias"):
                    names[".".join([*stored, child, *inner, part])] = ".".join([*clean, child, part])

    grow([], [], 3)
    return names


@pytest.mark.slow
@given(wrapped_trees())
def test_wrappers_are_stripped_at_any_depth_in_any_order(names: dict[str, str]) -> None:
    assert stripped_names(list(names)) == names


# Sweeps


def swept(folder: Path, pattern: str, extra: str = "") -> Series:
    (folder / "ibscan.toml").write_text(f"[series]\npattern = '{pattern}'\n{extra}")
    return read_series([folder], manifest=read_manifest(folder, trust=False))


VALUES = {
    "-2": -2.0,
    "-0.5": -0.5,
    "0": 0.0,
    ".25": 0.25,
    "1e-3": 0.001,
    "1E-05": 1e-05,
    "3.": 3.0,
    "+4": 4.0,
    "10": 10.0,
}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("run_kl{}.safetensors", "run_kl{value:kl_weight}.safetensors"),
        ("kl={}/model.safetensors", "kl={value:kl_weight}"),
        ("kl={}/model.safetensors", "kl={value:kl_weight}/model.safetensors"),
        ("run-kl{}/final.safetensors", "run-kl{value:kl_weight}"),
    ],
)
def test_a_sweep_is_ordered_by_the_value_of_its_pattern(name: str, pattern: str, tmp_path: Path) -> None:
    for shift, text in enumerate(VALUES):
        put_safetensors(tmp_path / name.format(text), weights(shift))
    series = swept(tmp_path, pattern)
    assert (series.axis, axis_values(series)) == ("kl_weight", sorted(VALUES.values()))
    assert {one.step_source for one in series.checkpoints} == {"pattern"}
    assert not series.skipped
    assert axis_values(select_epochs(series, "-1:0.3")) == [-0.5, 0, 1e-5, 0.001, 0.25]
    put_safetensors(tmp_path / name.format("0.0010"), weights(99))
    with pytest.raises(InputError, match=r"kl_weight 0\.001 occurs 2 times"):
        swept(tmp_path, pattern)


def test_a_pattern_picks_one_file_of_each_run(tmp_path: Path) -> None:
    for shift, value in enumerate(("0.1", "1e-2")):
        for epoch in (1, 2):
            put_safetensors(tmp_path / f"kl={value}/epoch-{epoch}.safetensors", weights(10 * shift + epoch))
        put_safetensors(tmp_path / f"kl={value}/last.safetensors", weights(10 * shift + 2))
    series = swept(tmp_path, "kl={value:kl}/last.safetensors")
    assert listed(series) == ["kl=1e-2/last.safetensors", "kl=0.1/last.safetensors"]
    assert not series.notices
    series = swept(tmp_path, "kl=0.1/epoch-{epoch}.safetensors")
    assert (series.axis, axis_values(series)) == ("epoch", [1, 2])


def test_equal_weights_at_two_values_are_both_kept(tmp_path: Path) -> None:
    for value in ("0.1", "0.2"):
        put_safetensors(tmp_path / f"kl={value}/last.safetensors", weights())
    assert axis_values(swept(tmp_path, "kl={value:kl}")) == [0.1, 0.2]


def test_a_value_that_is_no_number_is_skipped(tmp_path: Path) -> None:
    for value in ("1", "1e999"):
        put_safetensors(tmp_path / f"kl={value}.safetensors", weights())
    assert "finite" in swept(tmp_path, "kl={value:kl}.safetensors").skipped["kl=1e999.safetensors"]
