"""Closed and full streams, quiet runs, the first moments: the code is right and nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

IBSCAN = f"{sys.executable} -m ibscan"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_scan_does_not_need_its_streams(series: Path, tmp_path: Path, streams: str) -> None:
    done = shell(f"{IBSCAN} rank {series} -o {tmp_path}/r.h5 {streams}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.h5").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("scan nowhere 2>&-", 3),
        ("scan nowhere 2>/dev/full", 3),
        ("ls - <&-", 5),
        ("--version >/dev/full", 6),
        ("--version >&-", 0),
        ("", 0),
    ],
)
def test_codes_without_streams(line: str, code: int) -> None:
    done = shell(f"{IBSCAN} {line}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_quiet_still_says_why_a_run_is_partial(command: Run, series: Path, tmp_path: Path) -> None:
    (series / "epoch-00003.safetensors").write_bytes(b"")
    done = command("rank", series, "-q", "-o", tmp_path / "r.h5")
    assert done.code == 4
    assert done.err.count("epoch-00003.safetensors") == 1
    good = command("rank", series, "-q", "--epochs", "0,1", "-o", tmp_path / "s.h5")
    assert len(good.err.splitlines()) == 1


def test_standard_input_among_other_paths(command: Run, series: Path, tmp_path: Path) -> None:
    first, second, third, *_ = sorted(series.glob("*.safetensors"))
    done = command("rank", "-", third, "-o", tmp_path / "r.h5", stdin=f"{first}\n{second}\n")
    assert done.code == 0, done.err
    assert {row["epoch"] for row in done.rows()} == {"0", "1", "3"}
