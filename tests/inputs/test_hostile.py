"""Checkpoints and their folders, read safely; the table of hostile files is that of the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support import hostile as make

from ibscan.errors import CheckpointError, InputError
from ibscan.inputs.formats.torch_file import load_archive
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.read import read_series

FOLDERS: list[tuple[str, dict[str, bytes], str]] = [
    ("shards", {"model-00001-of-00002.safetensors": make.GOOD}, "without the .index.json"),
    ("dcp", {".metadata": b"\x80\x02.", "__0_0.distcp": b"x"}, "distributed checkpoint"),
    ("saved_model", {"saved_model.pb": b"x"}, "SavedModel"),
    ("orbax", {"_METADATA": b"{}"}, "Orbax"),
    ("deepspeed", {"mp_rank_00_model_states.pt": b"x", "mp_rank_01_model_states.pt": b"x"}, "zero_to_fp32.py"),
    ("zero3", {"zero_pp_rank_0_mp_rank_00_model_states.pt": b"x"}, "several ranks"),
    ("llama", {"consolidated.00.pth": b"x", "consolidated.01.pth": b"x"}, "tensor-parallel"),
    (
        "two",
        {"model.safetensors": make.GOOD, "pytorch_model.bin": make.torch_bytes(make.state())},
        "several files of weights",
    ),
]


@pytest.mark.parametrize(("name", "files", "words"), FOLDERS, ids=[row[0] for row in FOLDERS])
def test_folders_of_unread_kinds_are_refused_with_a_way_out(
    name: str, files: dict[str, bytes], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (tmp_path / "step-1.safetensors").write_bytes(make.GOOD)
    series = read_series([tmp_path])
    assert words in series.skipped[name]
    assert len(series.checkpoints) == 1
    with pytest.raises(CheckpointError, match=words):
        inspect_checkpoint(folder, name)
    if name != "two":
        with pytest.raises(InputError, match=words):
            read_series([folder])


def test_harmless_extras_load(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(make.harmless_extras())
    checkpoint = inspect_checkpoint(path, "run.pt")
    assert (checkpoint.epoch, checkpoint.step, checkpoint.step_source) == (None, 7, "file")
    assert load_tensors(checkpoint)["0.weight"].equal(make.state()["0.weight"])


def test_unsafe_load_is_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pt"
    path.write_bytes(make.torch_bytes({"state_dict": make.state(), "more": [make.Evil(tmp_path / "canary")]}))
    # The reader behind the preflight refuses by itself.
    with path.open("rb") as stream, pytest.raises(CheckpointError, match="safe reader refuses"):
        load_archive(stream, "evil.pt")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        inspect_checkpoint(path, "evil.pt")
    assert not (tmp_path / "canary").exists()


SWITCHES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.mark.parametrize("word", ["1", "true", "y", "YES"])
@pytest.mark.parametrize("names", [SWITCHES[:1], SWITCHES[1:], SWITCHES])
def test_environment_switches_of_torch_change_nothing(
    names: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(name, word)
    before = dict(os.environ)
    for zipped in (True, False):
        path = tmp_path / "epoch_1.pt"
        path.write_bytes(make.torch_bytes({"state_dict": make.state()}, zipped=zipped))
        assert load_tensors(inspect_checkpoint(path, path.name))["0.weight"].equal(make.state()["0.weight"])
        path.write_bytes(make.torch_bytes({"a": make.Evil(tmp_path / "canary")}, zipped=zipped))
        with pytest.raises(CheckpointError, match=r"posix\.system"):
            inspect_checkpoint(path, path.name)
        # Nor where the preflight would let it through.
        with path.open("rb") as stream, pytest.raises(CheckpointError, match="safe reader refuses"):
            load_archive(stream, path.name)
        probe = tmp_path / "probe.pt"
        probe.write_bytes(make.torch_bytes({"x": torch.ones(3, 2)}, zipped=zipped))
        assert read_probe(str(probe), {})[0].x.tolist() == [[1.0, 1.0]] * 3
    assert dict(os.environ) == before
    assert not (tmp_path / "canary").exists()


def test_a_growing_file_gets_one_more_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD[:-8])
    opened, count = Path.open, []

    def grow(self: Path, *args: Any, **kwargs: Any) -> Any:
        count.append(self)
        if len(count) == 1:
            with opened(self, "ab") as stream:
                stream.write(make.GOOD[-8:])
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", grow)
    assert inspect_checkpoint(path, path.name).step == 1
    assert len(count) == 2


def test_a_change_since_listing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD)
    checkpoint = inspect_checkpoint(path, path.name)
    path.write_bytes(make.safetensors_bytes({**make.state(), "2.bias": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="changed since it was listed"):
        load_tensors(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(checkpoint)


def test_a_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD)

    def refuse(self: Path, *_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(CheckpointError, match="permission denied"):
            inspect_checkpoint(path, path.name)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(InputError, match="permission denied"):
            read_series([tmp_path])
