"""What a long series costs beyond the measuring: counted, not timed (the times are in tests/benchmarks/scale.py)."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, binary_probe, chain
from safetensors.torch import save_file

import ibscan
from ibscan.core.result import Result
from ibscan.inputs import files
from ibscan.results.store import read

pytestmark = pytest.mark.slow

CHECKPOINTS, BLOCK = 13, 3
BLOCKS = math.ceil(CHECKPOINTS / BLOCK)


@pytest.fixture
def long_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a series of several blocks, with modification times in the past."""
    folder = tmp_path / "ckpts"
    folder.mkdir()
    for epoch in range(CHECKPOINTS):
        file = ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch), epoch=epoch)
        os.utime(file, ns=(10**18, 10**18))
    binary_probe(folder)
    monkeypatch.setattr("ibscan.engine.scan.LARGEST_BLOCK", BLOCK)
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    return folder


def counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, key: Callable[..., str | None]) -> Counter[str]:
    """Count the calls of a function, grouped by a key of their arguments."""
    count: Counter[str] = Counter()
    function = getattr(where, name)

    def call(*arguments: Any, **options: Any) -> Any:
        found = key(*arguments)
        if found is not None:
            count[found] += 1
        return function(*arguments, **options)

    monkeypatch.setattr(where, name, call)
    return count


def assert_same(one: Result, other: Result) -> None:
    assert set(one.variables) == set(other.variables)
    for name in [*one.variables, *one.coordinates]:
        a, b = one[name].values, other[name].values
        assert a.tobytes() == b.tobytes() or (a == b).all(), name


def test_every_file_is_read_twice_and_hashed_once(
    command: Run, long_series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checkpoint(path: Any, *_: object) -> str | None:
        return Path(path).name if str(path).endswith(".safetensors") else None

    opened = counted(monkeypatch, Path, "open", checkpoint)
    hashed = counted(monkeypatch, files, "_hashed", lambda stream, *_: checkpoint(stream.name))
    assert command("ls", long_series).code == 0
    assert (set(opened.values()), set(hashed.values())) == ({1}, {1})
    opened.clear()
    hashed.clear()
    assert command("rank", long_series).code == 0
    # To be listed, and to be measured.
    assert (len(opened), set(opened.values())) == (CHECKPOINTS, {2})
    assert (len(hashed), set(hashed.values())) == (CHECKPOINTS, {1})
    opened.clear()
    hashed.clear()
    assert command("rank", long_series).code == 0
    assert (set(opened.values()), set(hashed.values())) == ({1}, {1})


def test_a_block_is_one_part(command: Run, long_series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = counted(monkeypatch, os, "fsync", lambda _: "fsync")
    joined = counted(monkeypatch, sys.modules["ibscan.results.join"], "join", lambda *_: "join")
    assert command("rank", long_series).code == 0
    # The file and its folder, for every part and the result.
    assert written["fsync"] == 2 * (BLOCKS + 1)
    assert joined["join"] == BLOCKS - 1


def test_joining_copies_every_row_a_logarithm_of_times(long_series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.engine.scan.LARGEST_BLOCK", 1)
    module = sys.modules["ibscan.results.join"]
    copied = 0
    join = module.join

    def counting(old: Result, new: Result, **options: Any) -> Result:
        nonlocal copied
        copied += len(old["checkpoint"].values) + len(new["checkpoint"].values)
        return join(old, new, **options)

    monkeypatch.setattr(module, "join", counting)
    ibscan.rank(long_series)
    assert CHECKPOINTS <= copied <= CHECKPOINTS * math.ceil(math.log2(CHECKPOINTS))


def test_blocks_are_taken_up(command: Run, long_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, output = tmp_path / "whole.h5", tmp_path / "r.h5"
    assert command("cluster", long_series, "-o", whole).code == 0
    api = sys.modules["ibscan.engine.run"]
    loaded = counted(monkeypatch, api, "load_tensors", lambda checkpoint: checkpoint.name)

    def stopped(after: int) -> Callable[..., Result]:
        left, build = [None] * after, api.build

        def call(*arguments: Any, **options: Any) -> Result:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return build(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(api, "build", stopped(3))
        with pytest.raises(KeyboardInterrupt):
            ibscan.cluster(long_series, output=output)
    assert len(list(output.with_name("r.h5.parts").glob("*.npz"))) == 3
    loaded.clear()
    ibscan.cluster(long_series, output=output)
    assert len(loaded) == CHECKPOINTS - 3 * BLOCK
    assert_same(read(output), read(whole))


def test_blocks_cut_elsewhere_are_taken_up(long_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "r.h5"
    api = sys.modules["ibscan.engine.run"]
    write = api.write

    def full(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "write", full)
    with pytest.raises(KeyboardInterrupt):
        ibscan.cluster(long_series, output=output)
    monkeypatch.setattr(api, "write", write)
    # Every block begins one later now; all its checkpoints are in two parts, and none twice.
    (long_series / "epoch-00000.safetensors").unlink()
    loaded = counted(monkeypatch, api, "load_tensors", lambda checkpoint: checkpoint.name)
    ibscan.cluster(long_series, output=output)
    assert not loaded
    found = read(output)
    assert found["epoch"].values.tolist() == list(range(1, CHECKPOINTS))
    assert (found.status("nc1") == 0).all()


# Not from getrusage: its peak of a process is also that of its parent before it began.
PROGRAM = """
import sys
from pathlib import Path
import ibscan

def peak():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

for epochs in ("0:9:1", "0:199:1"):
    ibscan.cluster(sys.argv[1], model="mlp:tanh", samples=8, epochs=epochs)
    print(peak())
"""
# Bytes: a net of half a million weights; what the peak may grow by from 10 to 200 of them: a block of eight, in float32
# and float64. Kept by mistake, 190 of them would take 1.1 GB.
WIDTH, NET, MARGIN = 500, 2_000_000, 48_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_memory_is_flat(tmp_path: Path) -> None:
    folder = tmp_path / "ckpts"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{k}.weight": torch.randn(WIDTH, WIDTH, generator=generator) / 30 for k in range(2)}
    save_file({**tensors, "2.weight": torch.ones(2, WIDTH)}, tmp_path / "first")
    assert (tmp_path / "first").stat().st_size > NET
    for epoch in range(200):  # one file under many names: hard links take no room, and are no links to drop
        (folder / f"epoch-{epoch}.safetensors").hardlink_to(tmp_path / "first")
    rows = torch.randn(8, WIDTH, generator=generator)
    save_file({"x": rows, "y": torch.arange(8) % 2}, folder / "probe.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        # glibc leaves holes where tensors of some megabytes were; here it shall give back what is freed.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    ten, two_hundred = map(int, done.stdout.split())
    assert two_hundred - ten < MARGIN
