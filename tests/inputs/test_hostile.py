"""Hostile and damaged checkpoints: one row an input. Each is refused with its own sentence; none runs, none crashes."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import hostile as make

from ibscan.errors import CheckpointError, InputError, NothingMatched
from ibscan.inputs.archives import load_archive
from ibscan.inputs.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series import read_series

Builder = Callable[[Path], object]


def written(blob: bytes | Callable[[], bytes]) -> Builder:
    return lambda path: path.write_bytes(blob if isinstance(blob, bytes) else blob())


def torch_file(content: Callable[[], object], *, zipped: bool = True) -> Builder:
    return lambda path: path.write_bytes(make.torch_bytes(content(), zipped=zipped))


def evil(zipped: bool, nested: bool) -> Builder:
    def build(path: Path) -> None:
        bad = make.Evil(path.parent / "canary")
        content = {"state_dict": make.state(), "optimizer": {"state": [bad]}} if nested else {"w": bad}
        path.write_bytes(make.torch_bytes(content, zipped=zipped))

    return build


def plain_evil(protocol: int) -> Builder:
    return lambda path: path.write_bytes(make.plain_pickle(make.Evil(path.parent / "canary"), protocol))


# name of the file, how it is made, words that must be in the sentence
TABLE: list[tuple[str, Builder, tuple[str, ...]]] = [
    ("zero.pt", written(b""), ("zero bytes",)),
    ("zero.safetensors", written(b""), ("zero bytes",)),
    ("short.safetensors", written(b"\x01\x02"), ("truncated",)),
    ("text.pt", written(b"epoch,loss\n1,0.5\n"), ("text file",)),
    ("lfs.pt", written(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), ("Git LFS", "git lfs pull")),
    ("random.pt", written(bytes(range(160, 256)) * 9), ("neither safetensors nor",)),
    ("cut.pt", written(lambda: make.torch_bytes(make.state())[:-300]), ("truncated", "zip")),
    ("cut-legacy.pt", written(lambda: make.torch_bytes(make.state(), zipped=False)[:-10]), ("truncated",)),
    ("cut-pickle.pt", written(lambda: make.torch_bytes(make.state(), zipped=False)[:200]), ("damaged",)),
    ("cut.safetensors", written(make.GOOD[:-5]), ("5 bytes are missing", "truncated")),
    ("padded.safetensors", written(make.GOOD + b"12345"), ("5 bytes too many",)),
    ("huge.safetensors", written(make.header_bytes({"a": make.F8}, b"8" * 8, length=2**63)), (str(2**63), "header")),
    (
        "overlap.safetensors",
        written(make.header_bytes({"a": make.F8, "b": make.entry(4, 12)}, b"8" * 12)),
        ("overlap", "'b'"),
    ),
    ("gap.safetensors", written(make.header_bytes({"a": make.F8, "b": make.entry(12, 20)}, b"8" * 20)), ("gap of 4",)),
    ("dtype.safetensors", written(make.header_bytes({"a": make.entry(0, 8, "F31")}, b"8" * 8)), ("'F31'", "not known")),
    (
        "size.safetensors",
        written(make.header_bytes({"a": {**make.F8, "shape": [3]}}, b"8" * 8)),
        ("span 8", "12 bytes"),
    ),
    ("negative.safetensors", written(make.header_bytes({"a": {**make.F8, "shape": [-2]}}, b"8" * 8)), ("'a'", "lacks")),
    (
        "twice.safetensors",
        written(make.header_bytes(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32"}}')),
        ("'a' twice",),
    ),
    ("json.safetensors", written(make.header_bytes(b'{"a":')), ("JSON",)),
    ("deep.safetensors", written(make.header_bytes(b'{"a":' + b"[" * 200_000)), ("JSON",)),
    ("meta.safetensors", written(make.header_bytes({"__metadata__": {"epoch": 3}})), ("metadata",)),
    ("none.safetensors", written(make.header_bytes({})), ("no tensors",)),
    ("names.safetensors", make.many_names, ("150000 tensors",)),
    (
        "flipped.pt",
        written(lambda: make.flipped(make.torch_bytes({"w.weight": torch.full((9,), 1.5)}), b"\x00\x00\xc0\x3f")),
        ("CRC",),
    ),
    ("evil-zip.pt", evil(True, False), ("posix.system", "not run")),
    ("evil-legacy.pt", evil(False, False), ("posix.system", "not run")),
    ("evil-nested.pt", evil(True, True), ("posix.system", "not run")),
    ("evil-nested-legacy.pt", evil(False, True), ("posix.system", "not run")),
    ("evil-plain-2.pt", plain_evil(2), ("posix.system", "not run")),
    ("evil-plain-4.pt", plain_evil(4), ("posix.system", "not run")),
    ("module.pt", make.whole_module, ("whole pickled module", "state_dict()")),
    ("plain.pt", written(make.plain_pickle({"a": 1})), ("plain pickle",)),
    ("stride.pt", make.stride_bomb, ("1000000000000 elements", "holds 1")),
    ("storage.pt", make.legacy_storage_bomb, ("8000000000 bytes", "left")),
    ("bytearray.pt", make.bytearray_bomb, ("bytearray", "not run")),
    ("numpy.pt", make.numpy_bomb, ("_reconstruct", "not run")),
    (
        "deflate.pt",
        written(lambda: make.rezipped(make.torch_bytes(make.state()), zipfile.ZIP_DEFLATED)),
        ("compressed",),
    ),
    ("entries.pt", make.many_entries, ("zip directory", "far beyond")),
    ("operations.pt", make.many_operations, ("pickle operations",)),
    ("deep.pt", make.deep_key, ("nested tuples",)),
    ("deep-type.pt", make.deep_call, ("not run",)),
    ("missing.pt", lambda path: path.write_bytes(without_block()), ("stored block", "missing")),
    (
        "complex.pt",
        torch_file(lambda: {"a.weight": torch.zeros(2, dtype=torch.complex64)}),
        ("'a.weight'", "complex64"),
    ),
    ("integer.pt", torch_file(lambda: {"a.weight": torch.zeros(2, dtype=torch.int8)}), ("'a.weight'", "int8")),
    ("quantised.pt", make.quantised, ("'fc.weight'", "quantised", "qint8")),
    ("sparse.pt", torch_file(lambda: {"a.weight": torch.eye(2).to_sparse()}), ("'a.weight'", "sparse")),
    ("bare.pt", torch_file(lambda: torch.zeros(3)), ("bare tensor",)),
    ("list.pt", torch_file(lambda: [1, 2]), ("no named tensors",)),
    ("empty-dict.pt", torch_file(dict), ("no named tensors",)),
    ("two.pt", torch_file(lambda: {"model": make.state(), "net": make.state()}), ("several sets", "--state-key")),
    ("ema.pt", torch_file(lambda: {"model": make.state(), "ema": make.state()}), ("--weights raw", "--weights ema")),
    ("odd-key.pt", torch_file(lambda: {"generator": make.state()}), ("generator", "--state-key")),
    ("negative.pt", torch_file(lambda: {"model": make.state(), "step": -5}), ("step -5",)),
    ("large.pt", torch_file(lambda: {"model": make.state(), "step": 10**20}), (str(10**20),)),
    ("nan.pt", torch_file(lambda: {"model": make.state(), "epoch": float("nan")}), ("epoch nan",)),
    ("fraction.pt", torch_file(lambda: {"model": make.state(), "step": 1.5}), ("step 1.5",)),
    (
        "script.pt",
        lambda path: make.zip_of(path, "m/data.pkl", "m/constants.pkl", "m/code/a.py"),
        ("TorchScript", "torch.jit.load"),
    ),
    (
        "exported.pt2",
        lambda path: make.zip_of(path, "m/archive_format", "m/models/model.json"),
        ("exported program", "torch.export.load"),
    ),
    (
        "net.keras",
        lambda path: make.zip_of(path, "config.json", "metadata.json", "model.weights.h5"),
        ("Keras", "safetensors.numpy.save_file"),
    ),
    ("array.pt", lambda path: make.zip_of(path, "a.npy"), (".npz",)),
    ("other.pt", lambda path: make.zip_of(path, "a.txt"), ("without the data.pkl",)),
    (
        "net.onnx",
        written(b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + b"\x00" * 40),
        ("ONNX", "state dict of the torch model"),
    ),
    ("net.weights.h5", make.hdf5_file, ("HDF5", "safetensors.numpy.save_file")),
    ("old.pt", make.tar_file, ("tar archive",)),
    ("packed.pt", written(b"\x1f\x8b\x08\x00" + b"\x00" * 30), ("gzip", "gunzip")),
    ("fifo.pt", os.mkfifo, ("named pipe", "not opened")),
    ("socket.pt", make.socket_file, ("socket", "not opened")),
    ("device.pt", lambda path: path.symlink_to("/dev/zero"), ("device", "not opened")),
    ("loop.pt", lambda path: path.symlink_to(path.name), ("cannot be read", "symbolic links")),
    ("dangling.pt", lambda path: path.symlink_to("nowhere"), ("link to nowhere",)),
]


def without_block() -> bytes:
    blob = make.torch_bytes(make.state())
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
    kept = make.rezipped(blob)
    # Renamed in both the entry and the directory, same length.
    return kept.replace(name.encode(), name[:-1].encode() + b"z")


@pytest.mark.parametrize(("name", "build", "words"), TABLE, ids=[row[0] for row in TABLE])
def test_refused_alone_and_skipped_beside_a_good_one(name: str, build: Builder, words: tuple[str, ...], tmp_path: Path):
    path = tmp_path / name
    build(path)

    with pytest.raises(CheckpointError) as alone:
        inspect_checkpoint(path, name)
    for word in (name, *words):
        assert word in str(alone.value)

    with pytest.raises(InputError) as folder:
        read_series([tmp_path])
    assert folder.value.exit_code == 3

    (tmp_path / "step-1.safetensors").write_bytes(make.GOOD)
    series = read_series([tmp_path])
    assert [one.name for one in series.checkpoints] == ["step-1.safetensors"]
    assert list(series.skipped) == [name]
    assert all(word in series.skipped[name] for word in words)
    assert not (tmp_path / "canary").exists()


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
def test_folders_of_other_kinds(name: str, files: dict[str, bytes], words: str, tmp_path: Path):
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


def test_harmless_extras_load(tmp_path: Path):
    content = {
        "model": make.state(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float32(0.1)}]},
        "rng": np.random.default_rng(0).bit_generator.state,
        "numpy_rng": np.random.RandomState(0).get_state(),
        "torch_rng": torch.get_rng_state(),
        "epoch": np.int64(7),
        "names": {"a", "b"},
    }
    path = tmp_path / "run.pt"
    path.write_bytes(make.torch_bytes(content))
    checkpoint = inspect_checkpoint(path, "run.pt")
    assert (checkpoint.epoch, checkpoint.step, checkpoint.step_source) == (7.0, None, "file")
    assert load_tensors(checkpoint)["0.weight"].equal(make.state()["0.weight"])


def test_unsafe_load_is_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pt"
    evil(True, True)(path)
    # The reader behind the preflight refuses by itself.
    with path.open("rb") as stream, pytest.raises(CheckpointError, match="safe reader refuses"):
        load_archive(stream, "evil.pt")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        inspect_checkpoint(path, "evil.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_no_single_damaged_byte_escapes(zipped: bool, tmp_path: Path):
    """Any byte changed, any cut: our own error, or a checkpoint that still loads what it lists."""
    chance = random.Random(0)
    blob = make.torch_bytes({"model": {"a.weight": torch.ones(2, 2)}, "epoch": 1}, zipped=zipped)
    path = tmp_path / "c.pt"
    for _ in range(400):
        damaged = bytearray(blob)
        damaged[chance.randrange(len(blob))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randrange(len(blob))] if chance.random() < 0.2 else damaged)
        try:
            load_tensors(inspect_checkpoint(path, "c.pt"))
        except CheckpointError as error:
            assert str(error).startswith("c.pt: ")  # noqa: PT017 - both outcomes are fine


def test_no_damaged_safetensors_byte_escapes(tmp_path: Path):
    chance = random.Random(1)
    path = tmp_path / "c.safetensors"
    for _ in range(400):
        damaged = bytearray(make.GOOD)
        damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            load_tensors(inspect_checkpoint(path, "c"))
        except CheckpointError as error:
            assert str(error).startswith("c: ")  # noqa: PT017 - both outcomes are fine


def test_file_deleted_between_listing_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (1, 2):
        (tmp_path / f"step-{step}.safetensors").write_bytes(make.GOOD)
    opened = Path.open

    def vanish(self: Path, *args, **kwargs):
        if self.name == "step-2.safetensors":
            self.unlink(missing_ok=True)
        return opened(self, *args, **kwargs)

    # Recognition by suffix opens nothing, so the first open is that of the reader.
    monkeypatch.setattr(Path, "open", vanish)
    series = read_series([tmp_path])
    assert [one.name for one in series.checkpoints] == ["step-1.safetensors"]
    assert "deleted while" in series.skipped["step-2.safetensors"]


def test_growing_file_gets_one_more_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD[:-8])
    opened, count = Path.open, []

    def grow(self: Path, *args, **kwargs):
        count.append(self)
        if len(count) == 1:
            with opened(self, "ab") as stream:
                stream.write(make.GOOD[-8:])
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", grow)
    assert inspect_checkpoint(path, path.name).step == 1
    assert len(count) == 2


def test_changed_since_it_was_listed(tmp_path: Path):
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD)
    checkpoint = inspect_checkpoint(path, path.name)
    path.write_bytes(make.safetensors_bytes({**make.state(), "2.bias": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="changed since it was listed"):
        load_tensors(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(checkpoint)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(make.GOOD)

    def refuse(self: Path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(CheckpointError, match="permission denied"):
            inspect_checkpoint(path, path.name)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(InputError, match="permission denied"):
            read_series([tmp_path])


@pytest.mark.parametrize(
    "name", ["new\nline.pt", "\x1b[31mred.pt", "[bold]x.pt", "=cmd().pt", "-rf.pt", "a" * 252 + ".pt"]
)
def test_names_stand_as_they_are(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(make.torch_bytes(make.state()))
    assert [one.name for one in read_series([tmp_path]).checkpoints] == [name]
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        read_series([tmp_path])
    assert str(error.value).startswith(name + ": ")


def test_missing_path_and_empty_folders(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        read_series([tmp_path / "absent"])
    with pytest.raises(NothingMatched, match="saw nothing"):
        read_series([tmp_path])
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "log.csv").write_text("a,b")
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(NothingMatched) as error:
        read_series([tmp_path])
    assert "log.csv, notes.md" in str(error.value)
    assert ".safetensors" in str(error.value)
