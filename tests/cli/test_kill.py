"""Runs that are killed, stopped, or get in each other's way: nothing finished is lost, the bits are the same."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from support.forked import Command, Server

import ibscan.engine.run
from ibscan.core.records import Checkpoint
from ibscan.results.store import read

pytestmark = pytest.mark.slow

CHECKPOINTS = 6
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Any network is measured one checkpoint at a time, so that there is a part for each.
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
"""
# Code that holds a run up, whatever it is told.
DEAF = """
import pathlib, time

def build():
    for _ in range(2):
        try:
            pathlib.Path({reached!r}).touch()
            time.sleep(60)
        except BaseException:
            pass
"""


@pytest.fixture(scope="module")
def long_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a series whose scan takes a second or more, several blocks of it."""
    folder = tmp_path_factory.mktemp("kill") / "ckpts"
    folder.mkdir()
    for epoch in range(CHECKPOINTS):
        ibscan.save(folder, chain(10, 80, 16, 2, seed=epoch), epoch=epoch)
    binary_probe(folder, bits=10)
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Make a series of four checkpoints that is scanned quickly, one part per checkpoint; return the command line."""
    folder = tmp_path_factory.mktemp("quick")
    for epoch in range(4):
        ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch), epoch=epoch, spec="mlp:tanh")
    (folder / "net.py").write_text(NETWORK)
    binary_probe(folder)
    return ("cluster", folder, "-m", f"{folder / 'net.py'}:build", "--progress", "off")


@pytest.fixture(scope="module")
def server(quick: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("commands")
    made = Server(folder)
    made.warm(*quick, "-o", folder / "warm.h5")
    yield made
    made.close()


def scanning(series: Path, output: Path) -> tuple[object, ...]:
    return ("mi", series, "--channel", "readout", "--max-draws", 1024, "-o", output, "--progress", "off")


def kept(output: Path) -> list[Path]:
    folder = output.with_name(output.name + ".parts")
    return [path for path in folder.glob("[0-9a-f]*") if path.suffix != ".tmp"]


def wait_for_parts(command: Command, output: Path, number: int) -> None:
    while command.poll() is None and len(kept(output)) < number:
        time.sleep(0.005)


def assert_same(one: Path, other: Path) -> None:
    a, b = read(one), read(other)
    assert set(a.variables) == set(b.variables)
    assert set(a.coordinates) == set(b.coordinates)
    for name in [*a.variables, *a.coordinates]:
        assert a[name].values.tobytes() == b[name].values.tobytes() or (a[name].values == b[name].values).all(), name
    differing = {name for name in a.attrs if a.attrs[name] != b.attrs.get(name)}
    assert differing <= {"created_at", "command"}


def assert_alone(output: Path) -> None:
    """Nothing but the result is left where it lies."""
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def finished(server: Server, *arguments: object) -> None:
    command = server.start(*arguments)
    assert command.finished() == 0, command.err


@pytest.fixture(scope="module")
def unbroken(server: Server, long_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "r.h5"
    finished(server, *scanning(long_series, output))
    return output


@pytest.fixture(scope="module")
def quick_unbroken(server: Server, quick: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "r.h5"
    finished(server, *quick, "-o", output)
    return output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "r.h5"


def test_killed_runs_resume_to_the_same_bits(
    server: Server, long_series: Path, unbroken: Path, output: Path, pytestconfig: pytest.Config
) -> None:
    moments = random.Random(0)
    began = time.monotonic()
    finished(server, *scanning(long_series, output))
    whole = time.monotonic() - began
    output.unlink()
    killed = 0
    while killed < pytestconfig.getoption("--kills"):
        command = server.start(*scanning(long_series, output))
        # At any moment of what is left of the run.
        time.sleep(moments.random() * whole * (1 - len(kept(output)) / CHECKPOINTS))
        command.send(signal.SIGKILL)
        killed += command.finished() == -signal.SIGKILL
        if output.exists():  # it had finished before the signal came
            assert_same(output, unbroken)
            output.unlink()
    finished(server, *scanning(long_series, output))
    assert_same(output, unbroken)
    assert_alone(output)


@pytest.mark.parametrize("stops", [(signal.SIGKILL,), STOPS], ids=["killed", "stopped"])
def test_stopped_before_a_change_of_the_disk(
    server: Server,
    quick: tuple[object, ...],
    quick_unbroken: Path,
    output: Path,
    stops: tuple[signal.Signals, ...],
    pytestconfig: pytest.Config,
) -> None:
    """The run ends before something it opens, renames or deletes: parts, the lock, the final file, parts again."""
    watched = {"watched": str(output.parent), "at": 0}
    command = server.start(*quick, "-o", output, **watched)
    assert command.finished() == 0
    output.unlink()
    moments = range(1, command.changes + 1)
    # Each of them in the long version; else some, and of the last dozen, in which the result is written, more.
    some = pytestconfig.getoption("--kills")
    draws = random.Random(0)
    drawn = {draws.choice(choice) for choice in (moments, moments[-12:]) for _ in range(some)}
    for at in moments if 2 * some > len(moments) else sorted(drawn):
        number = stops[at % len(stops)]
        command = server.start(*quick, "-o", output, **{**watched, "at": at, "signal": int(number)})
        code = command.finished()
        assert code == (-number if number == signal.SIGKILL else 128 + number), command.err
        if number != signal.SIGKILL:
            assert command.out == ""
            assert number.name in command.err
            assert "To go on: ibscan cluster" in command.err
            assert "Traceback" not in command.err
        if output.exists():
            assert_same(output, quick_unbroken)
        finished(server, *quick, "-o", output)
        assert_same(output, quick_unbroken)
        assert_alone(output)
        output.unlink()


@pytest.mark.parametrize("number", STOPS)
def test_signals_keep_the_parts_and_say_how_to_go_on(
    server: Server, long_series: Path, output: Path, number: signal.Signals
) -> None:
    command = server.start(*scanning(long_series, output))
    wait_for_parts(command, output, 1)
    command.send(number)
    assert command.finished() == 128 + number
    assert command.out == ""
    assert number.name in command.err
    assert "ibscan mi" in command.err
    assert "Traceback" not in command.err
    assert not output.exists()
    parts = {path.name for path in kept(output)}
    assert parts
    # What is measured after the signal's moment is what was left.
    command = server.start(*scanning(long_series, output))
    wait_for_parts(command, output, len(parts) + 1)
    command.send(signal.SIGKILL)
    command.finished()
    assert parts <= {path.name for path in kept(output)}


@pytest.mark.parametrize("number", STOPS)
def test_a_second_signal_leaves_at_once(
    server: Server, quick: tuple[object, ...], tmp_path: Path, number: signal.Signals
) -> None:
    code, reached = tmp_path / "deaf.py", tmp_path / "reached"
    code.write_text(DEAF.format(reached=str(reached)))
    command = server.start(*quick[:2], "-m", f"{code}:build", "-o", tmp_path / "r.h5")
    for _ in range(2):
        while not reached.exists():
            assert command.poll() is None, command.err
            time.sleep(0.005)
        reached.unlink()
        command.send(number)
    assert command.finished() == 128 + number


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_ignored_from_the_start_stay_ignored(
    server: Server, quick: tuple[object, ...], quick_unbroken: Path, output: Path, number: signal.Signals
) -> None:
    """As `nohup` starts it, or a shell in the background: the terminal may go."""
    order = {"watched": str(output.parent), "at": 5, "signal": int(number), "ignored": [int(number)]}
    command = server.start(*quick, "-o", output, **order)
    assert command.finished() == 0, command.err
    assert command.changes > 5
    assert_same(output, quick_unbroken)


def undo_ignored() -> None:
    """Restore the default action of signals in a child, which inherits signals ignored by the test runner."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)


def test_an_interrupt_ends_a_process_that_imports_or_works(long_series: Path, output: Path) -> None:
    """Started as a user does: interrupted once during the imports, and once in the middle of the work."""
    typed = [sys.executable, "-m", "ibscan", *map(str, scanning(long_series, output))]
    for parts, code in ((0, (130, -signal.SIGINT)), (1, (130,))):
        with subprocess.Popen(typed, stdout=-1, stderr=-1, text=True, preexec_fn=undo_ignored) as process:
            time.sleep(0.2)
            while process.poll() is None and len(kept(output)) < parts:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        assert process.returncode in code
        assert out == ""
        assert "Traceback" not in err
        assert not parts or "To go on: ibscan mi" in err


def test_parts_are_taken_up_not_measured_again(
    command: Run,
    server: Server,
    quick: tuple[object, ...],
    quick_unbroken: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = 0
    while len(kept(output)) != 2:
        at += 1
        order = {"watched": str(output.parent), "at": at, "signal": int(signal.SIGKILL)}
        assert server.start(*quick, "-o", output, **order).finished() == -signal.SIGKILL
    loaded: list[str] = []
    load = ibscan.engine.run.load_tensors

    def noted(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
        loaded.append(checkpoint.name)
        return load(checkpoint)

    monkeypatch.setattr("ibscan.engine.run.load_tensors", noted)
    assert command(*quick, "-o", output).code == 0
    assert loaded == ["epoch-00002.safetensors", "epoch-00003.safetensors"]
    assert_same(output, quick_unbroken)


def test_a_second_run_on_one_output_is_refused(
    command: Run, server: Server, long_series: Path, unbroken: Path, output: Path
) -> None:
    first = server.start(*scanning(long_series, output))
    wait_for_parts(first, output, 1)
    for name in (output, output.parent / ".." / "out" / "r.h5"):
        second = command(*scanning(long_series, name))
        assert second.code == 6
        assert "another run" in second.err
    assert first.finished() == 0
    assert_same(output, unbroken)
    assert_alone(output)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_followed_folder(
    server: Server, quick: tuple[object, ...], quick_unbroken: Path, output: Path, number: signal.Signals
) -> None:
    following = server.start(*quick, "-o", output, "--follow")
    while not output.exists():
        assert following.poll() is None, following.err
        time.sleep(0.005)
    second = server.start(*quick, "-o", output, "--follow")
    assert second.finished() == 6
    following.send(number)
    assert following.finished() == (-number if number == signal.SIGKILL else 128 + number)
    assert number == signal.SIGKILL or "--follow" in following.err
    finished(server, *quick, "-o", output, "--follow", "--idle", 0.2)
    assert_same(output, quick_unbroken)
    assert_alone(output)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["part", "result"])
def test_a_limit_on_the_size_of_files_ends_the_run_and_keeps_its_parts(
    command: Run, server: Server, quick: tuple[object, ...], quick_unbroken: Path, output: Path, share: float
) -> None:
    """A limit on file size simulates a full disk: smaller than a part, or between a part and the result."""
    server.start(*quick, "-o", output, watched=str(output.parent), at=12, signal=int(signal.SIGKILL)).finished()
    largest = int(max(path.stat().st_size for path in kept(output)) * share)
    limited = server.start(*quick, "-o", output, largest=largest)
    assert limited.finished() == 6
    assert limited.out == ""
    said = [line for line in limited.err.splitlines() if "taken up" not in line]
    assert len(said) == 1
    assert "File too large" in limited.err
    assert not output.exists()
    assert len(kept(output)) == (4 if share > 1 else 2)
    assert command(*quick, "-o", output).code == 0
    assert_same(output, quick_unbroken)
    assert_alone(output)


def test_a_changed_file_is_noticed(command: Run, series: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.h5"
    assert command("rank", series, "-o", output).code == 0
    before = np.array(read(output)["local_rank"].values)
    ibscan.save(series, chain(6, 5, 4, 2, seed=77), epoch=3)
    refused = command("rank", series, "-o", output)
    assert refused.code == 2
    assert "epoch-00003" in refused.err
    assert command("rank", series, "-o", output, "--force").code == 0
    after = read(output)
    assert after["epoch"].values.tolist() == [0, 1, 3, 10, 30]
    assert (after["local_rank"].values != before).any()
