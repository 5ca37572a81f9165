"""Terminals, pipes, full and closed streams, and where Python looks for modules: mostly in processes of their own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import pytest
from conftest import Run
from safetensors.torch import load_file, save_file
from support import hostile as make

from ibscan.cli.entry import exit_code
from ibscan.results.store import read, write
from ibscan.views import progress

IBSCAN = f"{sys.executable} -m ibscan"
# What styles a line: bold, dim, colours. Anything else that begins with an escape moves the cursor, or worse.
STYLE = re.compile(r"\x1b\[[0-9;]*m")
PLAIN = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8")
UTF8 = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
ASCII = {"TERM": "xterm", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def environment(**changed: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in PLAIN} | changed


def shell(line: str, **changed: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", line], capture_output=True, check=False, env=environment(**changed))


def on_a_terminal(line: str, changed: Mapping[str, str], columns: int = 100) -> tuple[int, bytes]:
    """Run a command whose three streams are one pseudo-terminal; return its exit code and all it wrote."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen(line.split(), env=environment(**changed), **streams) as process:  # type: ignore[call-overload]
        os.close(terminal)
        content = b""
        # At the end of the process reading a terminal is an error, not an end.
        with contextlib.suppress(OSError):
            while block := os.read(controller, 65536):
                content += block
    os.close(controller)
    return process.returncode, content


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a result whose every string holds escape codes, sealed as our own."""
    path = tmp_path_factory.mktemp("shown") / "r.h5"
    path.write_bytes(make.result_bytes())
    with h5py.File(path, "r+") as file:
        make.escapes_everywhere(file)
    write(read(path), path)
    return path


@pytest.fixture(scope="module")
def long(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a result whose rows do not fit into a pipe."""
    path = tmp_path_factory.mktemp("long") / "r.h5"
    write(synthetic.result(range(60)), path)
    return path


TERMINALS = [
    ({**UTF8}, 400, True),
    ({**UTF8, "NO_COLOR": "1", "FORCE_COLOR": "1"}, 100, False),
    ({**UTF8, "TERM": "dumb", "COLUMNS": "40"}, 100, False),
    ({**ASCII, "COLUMNS": "1"}, 100, True),
    ({**ASCII, "COLUMNS": "200", "NO_COLOR": "1"}, 30, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "columns", "styled"), TERMINALS, ids=lambda value: str(value)[:30])
def test_a_table_on_a_terminal(hostile: Path, changed: dict[str, str], columns: int, styled: bool) -> None:
    code, content = on_a_terminal(f"{IBSCAN} show {hostile}", changed, columns)
    text = content.decode("ascii" if changed["PYTHONIOENCODING"] == "ascii" else "utf-8")
    assert code == 0, text
    assert ("\x1b" in text) == styled
    lines = STYLE.sub("", text).split("\r\n")
    assert all(letter.isprintable() for line in lines for letter in line), text
    assert "\\x1b[31m" in "".join(lines) or changed.get("COLUMNS") == "1"
    assert "Traceback" not in text
    # A word wider than the screen is cut in two, a column of numbers is not.
    width = int(changed.get("COLUMNS", columns))
    assert width == 1 or max(map(len, lines)) <= width


@pytest.mark.slow
@pytest.mark.parametrize("changed", [UTF8, ASCII, {**UTF8, "FORCE_COLOR": "1", "COLUMNS": "20"}], ids=str)
def test_rows_through_a_pipe_are_whole(hostile: Path, changed: dict[str, str]) -> None:
    done = shell(f"{IBSCAN} show {hostile}", **changed)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii" if changed["PYTHONIOENCODING"] == "ascii" else "utf-8")
    header, *rows = [line.split("\t") for line in text.splitlines()]
    assert all(len(row) == len(header) == 15 for row in rows)
    assert all(letter.isprintable() or letter in "\t\n" for letter in text)
    # Every letter of every name, whatever the width: the backslash of an escape is doubled in no name here.
    assert rows[-1][0].endswith(r"[x='y']\u202e\x07s2.safetensors")


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_command_silently(long: Path) -> None:
    for line in (
        f"show {long} | head -n 1",
        f"export {long} --json | true",
        f"show {long} --format table --all | true",
        "rank --help | true",
        "--version | true",
    ):
        done = shell(f"{IBSCAN} {line}; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (141, b""), line
        assert done.stdout.count(b"\n") <= 1


@pytest.mark.slow
def test_help_has_no_styles_where_none_are_wanted() -> None:
    for changed, styled in (({}, True), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        code, content = on_a_terminal(f"{IBSCAN} rank --help", {**UTF8, **changed})
        assert code == 0
        assert (b"\x1b" in content) == styled


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "lines"),
    [
        pytest.param("show {0} >/dev/full", 6, 1, marks=FULL),
        pytest.param("show {0} --json >/dev/full", 6, 1, marks=FULL),
        pytest.param("--version >/dev/full", 6, 1, marks=FULL),
        pytest.param("show nowhere.h5 2>/dev/full", 3, 0, marks=FULL),
        ("show {0} <&- >&-", 0, 0),
        ("show nowhere.h5 2>&-", 3, 0),
        ("--version >&-", 0, 0),
        ("", 0, 0),
    ],
)
def test_exit_codes_do_not_need_standard_streams(hostile: Path, line: str, code: int, lines: int) -> None:
    done = shell(f"{IBSCAN} {line.format(hostile)}")
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert b"bug" not in done.stderr


@pytest.mark.slow
def test_a_scan_does_not_need_its_streams(series: Path, tmp_path: Path) -> None:
    done = shell(f"{IBSCAN} rank {series} --epochs last -o {tmp_path}/r.h5 <&- >&- 2>&-")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "r.h5").attrs["complete"] == 1


@pytest.mark.slow
def test_a_scan_on_a_terminal_shows_progress_and_takes_it_away(series: Path, tmp_path: Path) -> None:
    code, content = on_a_terminal(f"{IBSCAN} rank {series} -o {tmp_path}/r.h5", UTF8)
    text = content.decode()
    assert code == 0, text
    assert "checkpoints" in text
    before, _, after = text.rpartition("\x1b[2K")
    assert "\x1b[?25l" in before  # the cursor, hidden while the line lives, is back
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l")
    assert "local rank" in after
    assert "local_rank\t" not in text


@pytest.mark.slow
def test_modules_never_come_from_the_run_folder(series: Path, hostile: Path) -> None:
    """torch.py, json.py, ... in the working folder are imported by neither command, module nor worker."""
    for name in ("torch", "numpy", "json", "typing", "signal", "h5py", "typer", "rich", "__future__", "enum", "re"):
        (series / f"{name}.py").write_text("open('canary', 'w')\nraise ImportError('not this one')\n")
    # A result in the folder is recognised by a process of its own.
    shutil.copy(hostile, series / "old.h5")
    installed = shutil.which("ibscan", path=str(Path(sys.executable).parent))
    lines = [f"{IBSCAN} rank . --epochs last -o r.h5", *([f"{installed} show r.h5"] if installed else [])]
    for line in lines:
        done = shell(f"cd {series} && {line}", PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        assert done.returncode == 0, done.stderr
    assert not (series / "canary").exists()


# In this process


@pytest.mark.slow
def test_a_table_through_a_pipe_has_no_styles_unless_forced(
    command: Run, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PLAIN:
        monkeypatch.delenv(name, raising=False)
    for name, styled in ((None, False), ("FORCE_COLOR", True), ("NO_COLOR", False)):
        if name is not None:
            monkeypatch.setenv(name, "1")
        assert ("\x1b" in command("show", hostile, "--format", "table").out) == styled


@FULL
def test_a_full_standard_error_stops_nothing(series: Path, tmp_path: Path) -> None:
    (series / "epoch-00003.safetensors").write_bytes(b"")
    full = open("/dev/full", "w")  # noqa: PTH123, SIM115 - a device, which cannot be closed without an error
    with contextlib.redirect_stderr(full), contextlib.redirect_stdout(io.StringIO()):
        assert exit_code(["rank", str(series), "-o", str(tmp_path / "r.h5")]) == 4
    with pytest.raises(OSError, match="No space"):
        full.close()


def test_a_standard_input_that_is_closed_names_nothing(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.cli.commands.sys", SimpleNamespace(stdin=None, argv=["ibscan"]))
    assert command("rank", "-").code == 5


@pytest.mark.slow
def test_off_a_terminal_a_line_every_half_minute_and_none_sooner(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("rank", series, "-o", tmp_path / "r.h5")
    assert done.err.splitlines() == [f"ibscan: written to {tmp_path}/r.h5"]
    assert command("rank", series, "--no-resume", "-q", "-o", tmp_path / "r.h5").err == ""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    slow = command("rank", series, "--no-resume", "-o", tmp_path / "r.h5")
    assert re.search(r"^ibscan: 5 of 5 checkpoints, .* left \(epoch-00030.safetensors\)$", slow.err, re.MULTILINE)
    assert not {"\r", "\x1b"} & set(slow.err)


def test_json_holds_finite_numbers_alone(command: Run, series: Path, tmp_path: Path) -> None:
    broken = load_file(series / "epoch-00003.safetensors")
    broken["2.weight"][:] = float("nan")
    save_file(broken, series / "epoch-00003.safetensors", {"ibscan.model": "mlp:tanh", "epoch": "3"})
    done = command("rank", series, "--json", "-o", tmp_path / "r.h5")
    assert done.code == 4

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in done.out.splitlines()]
    failed = [row for row in rows if row["status"] == "nonfinite"]
    assert failed
    assert all(row["result"] is None for row in failed)


def test_quiet_still_says_why_a_run_is_partial(command: Run, series: Path, tmp_path: Path) -> None:
    (series / "epoch-00003.safetensors").write_bytes(b"")
    done = command("rank", series, "-q", "-o", tmp_path / "r.h5")
    assert done.code == 4
    assert done.err.count("epoch-00003.safetensors") == 1


def test_standard_input_may_stand_among_other_paths(command: Run, series: Path, tmp_path: Path) -> None:
    first, second, third, *_ = sorted(series.glob("*.safetensors"))
    done = command("rank", "-", third, "-o", tmp_path / "r.h5", stdin=f"{first}\n{second}\n")
    assert done.code == 0, done.err
    assert {row["epoch"] for row in done.rows()} == {"0", "1", "3"}
