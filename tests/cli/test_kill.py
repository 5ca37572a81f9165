"""Runs that are killed, stopped, or get in each other's way: nothing finished is lost, the bits are the same."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, binary_probe, chain

import ibscan
from ibscan.results.store import read

CHECKPOINTS = 8


@pytest.fixture(scope="module")
def long_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a series whose scan takes a few seconds, one block a checkpoint."""
    folder = tmp_path_factory.mktemp("kill") / "ckpts"
    folder.mkdir()
    for epoch in range(CHECKPOINTS):
        ibscan.save(folder, chain(12, 10, 6, 2, seed=epoch), epoch=epoch)
    binary_probe(folder, bits=12)
    return folder


def started(series: Path, output: Path) -> subprocess.Popen[str]:
    arguments = ["mi", str(series), "--channel", "readout", "-o", str(output), "--progress", "off"]
    return subprocess.Popen(
        [sys.executable, "-m", "ibscan", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kept(output: Path) -> list[Path]:
    folder = output.with_name(output.name + ".parts")
    return [path for path in folder.glob("[0-9a-f]*") if path.suffix != ".tmp"]


def wait_for_parts(process: subprocess.Popen[str], output: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and len(kept(output)) < number:
        assert time.monotonic() < deadline, "no part appeared"
        time.sleep(0.01)


def assert_same(one: Path, other: Path) -> None:
    a, b = read(one), read(other)
    assert set(a.variables) == set(b.variables)
    assert set(a.coordinates) == set(b.coordinates)
    for name in [*a.variables, *a.coordinates]:
        assert a[name].values.tobytes() == b[name].values.tobytes() or (a[name].values == b[name].values).all(), name
    differing = {name for name in a.attrs if a.attrs[name] != b.attrs.get(name)}
    assert differing <= {"created_at", "command"}


@pytest.fixture(scope="module")
def unbroken(long_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "r.h5"
    process = started(long_series, output)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return output


def test_killed_runs_resume_to_the_same_bits(
    long_series: Path, unbroken: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    moments = random.Random(0)
    output = tmp_path / "r.h5"
    for _ in range(pytestconfig.getoption("--kills")):
        before = len(kept(output))
        process = started(long_series, output)
        # Past the start-up, into the work: at the earliest once a part more is there.
        wait_for_parts(process, output, before + 1)
        time.sleep(moments.random() * 0.5)
        process.kill()
        process.communicate()
        if output.exists():  # it had finished before the signal came
            assert_same(output, unbroken)
            output.unlink()
    process = started(long_series, output)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same(output, unbroken)
    assert not output.with_name("r.h5.parts").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_keep_the_parts_and_say_how_to_go_on(long_series: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "r.h5"
    with started(long_series, output) as process:
        wait_for_parts(process, output, 1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert number.name in err
    assert "ibscan mi" in err
    assert "Traceback" not in err
    assert not output.exists()
    assert kept(output)


def test_parts_are_taken_up_not_measured_again(
    command: Run, long_series: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r.h5"
    process = started(long_series, output)
    wait_for_parts(process, output, 3)
    process.kill()
    process.communicate()
    finished = len(kept(output))
    loaded: list[str] = []
    import ibscan.api

    load = ibscan.api.load_tensors
    monkeypatch.setattr("ibscan.api.load_tensors", lambda c: (loaded.append(c.name), load(c))[1])
    done = command("mi", long_series, "--channel", "readout", "-o", output)
    assert done.code == 0
    assert len(loaded) == CHECKPOINTS - finished
    assert_same(output, unbroken)


def test_two_runs_on_one_output(command: Run, long_series: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.h5"
    with started(long_series, output) as process:
        wait_for_parts(process, output, 1)
        done = command("mi", long_series, "--channel", "readout", "-o", output)
        process.kill()
        process.communicate()
    assert done.code == 6
    assert "another run" in done.err


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
