"""A file is hashed once, and loading refuses a file that changed since it was listed."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from support.hostile import state, torch_bytes

from ibscan.core.records import Checkpoint
from ibscan.errors import CheckpointError
from ibscan.inputs import files
from ibscan.inputs.formats import safetensors, torch_file
from ibscan.inputs.series import checkpoint as checkpoints
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors

CONTENT: dict[str, Any] = {"safetensors": safetensors_bytes, "pt": torch_bytes}


@pytest.fixture(params=["safetensors", "pt"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a checkpoint with a modification time in the past."""
    file = tmp_path / f"step-1.{request.param}"
    file.write_bytes(CONTENT[request.param](state()))
    # Long ago: a change within the same tick of the clock must not look like none.
    os.utime(file, ns=(10**18, 10**18))
    return file


@pytest.fixture(params=[1 << 20, 0], ids=["whole", "streamed"], autouse=True)
def settled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat recently written files as settled: else every file of a test would be hashed again."""
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    monkeypatch.setattr(checkpoints, "STREAMED_BYTES", request.param)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often a file is hashed."""
    count: Counter[str] = Counter()

    def counted(hashing: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            count["times"] += 1
            return hashing(*arguments)

        return call

    counting = SimpleNamespace(sha256=counted(hashlib.sha256), file_digest=counted(hashlib.file_digest))
    monkeypatch.setattr(files, "hashlib", counting)
    return count


def listed(path: Path) -> Checkpoint:
    return inspect_checkpoint(path, path.name)


def other(path: Path) -> bytes:
    """The same checkpoint with other numbers: as many bytes."""
    content = CONTENT[path.suffix[1:]]({key: tensor + 1 for key, tensor in state().items()})
    assert len(content) == path.stat().st_size
    return content


def assert_loads(checkpoint: Checkpoint, shift: float = 0.0) -> None:
    loaded = load_tensors(checkpoint)
    assert all(loaded[key].equal(tensor + shift) for key, tensor in state().items())


def test_an_old_file_is_hashed_once(path: Path, hashed: Counter[str]) -> None:
    checkpoint = listed(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for _ in range(3):
        assert_loads(checkpoint)
    assert hashed["times"] == 1


def test_a_file_just_written_is_hashed_again(path: Path, hashed: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SETTLED_NS", 10**18)
    checkpoint = listed(path)
    assert checkpoint.stamps == {path: ()}
    assert_loads(checkpoint)
    assert hashed["times"] == 2


def test_a_file_with_new_times_is_hashed_again_and_loads(path: Path, hashed: Counter[str]) -> None:
    checkpoint = listed(path)
    os.utime(path, ns=(0, 0))
    assert_loads(checkpoint)
    assert hashed["times"] == 2


def test_new_content_of_the_same_size_and_time_is_noticed(path: Path) -> None:
    checkpoint = listed(path)
    before = path.stat()
    time.sleep(0.05)
    path.write_bytes(other(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match="changed since it was listed"):
        load_tensors(checkpoint)


def test_an_equal_file_in_its_place_loads_and_a_missing_one_does_not(path: Path) -> None:
    checkpoint = listed(path)
    content = path.read_bytes()
    (path.parent / "new").write_bytes(content)
    (path.parent / "new").replace(path)
    assert_loads(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(checkpoint)


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], object]) -> None:
    """Call `happens` the first time that this function of a format's module parses a file."""
    module, function = {"safetensors": safetensors, "torch_file": torch_file}[name.split(".")[0]], name.split(".")[1]
    parse = getattr(module, function)
    left = [happens]

    def parsed(*arguments: object) -> object:
        if left:
            left.pop()()
        return parse(*arguments)

    monkeypatch.setattr(module, function, parsed)


# Parsers of safetensors, of torch files.
INSPECTING = ("safetensors.read_tensor_header", "torch_file.read_archive")
LOADING = ("safetensors.read_tensors", "torch_file.load_archive")


def test_a_change_during_listing_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    content = other(path)
    meanwhile(monkeypatch, INSPECTING[path.suffix == ".pt"], lambda: path.write_bytes(content))
    checkpoint = listed(path)
    # Read whole, it is listed as it was, and the change is found when it is loaded.
    streamed = "streamed" in request.node.callspec.id
    assert (checkpoint.sha256 == hashlib.sha256(content).hexdigest()) == streamed
    if streamed:
        assert_loads(checkpoint, 1.0)
    else:
        with pytest.raises(CheckpointError, match="changed since it was listed"):
            load_tensors(checkpoint)


@pytest.mark.parametrize("cut", [False, True])
def test_a_change_during_loading_is_refused(path: Path, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = listed(path)
    content = path.read_bytes()[:100] if cut else other(path)
    meanwhile(monkeypatch, LOADING[path.suffix == ".pt"], lambda: path.write_bytes(content))
    with pytest.raises(CheckpointError, match="changed since it was listed"):
        load_tensors(checkpoint)


def test_a_file_touched_during_loading_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = listed(path)
    meanwhile(monkeypatch, LOADING[path.suffix == ".pt"], lambda: os.utime(path, ns=(0, 0)))
    assert_loads(checkpoint)


def test_the_readers_error_on_an_unchanged_file_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise CheckpointError("as the reader says it")

    checkpoint = listed(path)
    meanwhile(monkeypatch, LOADING[path.suffix == ".pt"], broken)
    with pytest.raises(CheckpointError, match="as the reader says it"):
        load_tensors(checkpoint)


DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
    torch.bool,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_loads_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "step-1.safetensors"
    tensors = {
        "a.table": torch.arange(6).reshape(2, 3).to(dtype),
        "b.scalar": torch.tensor(1).to(dtype),
        "c.empty": torch.empty(0, 3, dtype=dtype),
        "d.odd": torch.ones(3, dtype=torch.uint8),
        "e.last": torch.ones(5, dtype=torch.float32),
    }
    path.write_bytes(safetensors_bytes(tensors))
    loaded = load_tensors(listed(path))
    assert set(loaded) == set(tensors)
    for key, tensor in tensors.items():
        assert (loaded[key].dtype, loaded[key].shape) == (tensor.dtype, tensor.shape)
        assert loaded[key].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
