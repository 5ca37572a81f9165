"""Hostile, damaged and odd inputs, a row each, through the whole command line.

Every row: the exit code, the words, no traceback, no escape code on either stream, bounded time and memory, and every
file that was there before as it was. The rows are in `hostile_rows.py`; `make.Evil` writes a canary, which is a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Finished, Run
from support import hostile as make
from support import hostile_rows as rows

from ibscan.results.store import read

pytestmark = pytest.mark.slow

# A hundred times what a row takes on a quiet machine; the machine that runs the tests may be a busy one.
SECONDS = 20
# A row takes a few MiB; the bombs among them claim gigabytes.
BYTES = 200 << 20


def peak_of_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


@contextmanager
def bounded() -> Iterator[None]:
    """Assert that a block keeps within a time and, where the system reports it, an amount of memory."""
    told = Path("/proc/self/clear_refs")
    if told.exists():
        told.write_text("5")  # forget the peak of what ran before
        before = peak_of_memory()
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS
    if told.exists():
        assert peak_of_memory() - before < BYTES


def files(place: Path) -> dict[str, bytes]:
    found = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def carried_out(command: Run, place: Path, row: rows.Row) -> Finished:
    """Run a row's command and assert what holds of every command."""
    before = files(place)
    with bounded(), pytest.MonkeyPatch.context() as patch:
        row.patch(patch)
        done = command(*row.line.split(), inside=place, stdin=row.stdin)
    assert done.code == row.code, (done.out, done.err)
    for word in row.words:
        assert word in done.out + done.err, (word, done.out, done.err)
    for stream in (done.out, done.err):
        assert all(letter.isprintable() or letter in "\n\t" for letter in stream), repr(stream)
    # Two blanks begin what is to be copied.
    assert all(line.startswith(("ibscan: ", "said ", "  ")) for line in done.err.splitlines()), done.err
    if done.code not in (0, 4):
        assert done.err
        assert not done.out or row.line.startswith("ls")
    after = files(place)
    written = {"r.h5"} if done.code in (0, 4) and "-o r.h5" in row.line else set()
    assert set(after) - written == set(before) - written - set(row.lost)
    assert all(after[name] == before[name] for name in set(after) - written)
    return done


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # weakens nothing
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "probe.npz").write_bytes(rows.PROBE)
    return tmp_path


@pytest.mark.parametrize("row", rows.CHECKPOINTS, ids=lambda row: row.name.encode("unicode_escape").decode()[:40])
def test_a_checkpoint_that_cannot_be_used_is_refused(command: Run, place: Path, row: rows.Row) -> None:
    row.build(place / "run" / row.name)
    carried_out(command, place, row)


def test_all_of_them_are_skipped_beside_a_good_one(command: Run, place: Path) -> None:
    (place / "run" / "step-1.safetensors").write_bytes(rows.GOOD)
    for row in rows.CHECKPOINTS:
        row.build(place / "run" / row.name)
    carried_out(command, place, rows.Row("all", rows.nothing, rows.RANK, 4, (), rows.smaller))
    skipped = json.loads(read(place / "r.h5").attrs["skipped"])
    assert set(skipped) == {row.name for row in rows.CHECKPOINTS}
    for row in rows.CHECKPOINTS:
        assert all(word in skipped[row.name] for word in row.words), skipped[row.name]


@pytest.mark.parametrize("row", rows.OTHERS, ids=lambda row: row.name[:60])
def test_an_odd_input_gets_its_code_and_its_sentence(command: Run, place: Path, row: rows.Row) -> None:
    (place / "run" / "step-1.safetensors").write_bytes(rows.GOOD)
    row.build(place / "run")
    row.check(carried_out(command, place, row), place)


def test_running_the_hostile_pickle_would_be_noticed(tmp_path: Path) -> None:
    import pickle

    pickle.loads(make.plain_pickle(make.Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
