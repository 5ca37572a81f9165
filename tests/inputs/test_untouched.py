"""What user code does to a run's files by any means is held against it; what other programs do is not."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from ibscan.errors import InputError
from ibscan.inputs.series import process_watch as watch_room
from ibscan.inputs.series.file_events import EVENT, OVERFLOW, Listener, listener
from ibscan.inputs.series.process_watch import process_watch
from ibscan.inputs.series.untouched import untouched

APPEND = os.O_WRONLY | os.O_APPEND
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is asked of Linux")


@pytest.fixture(params=["events", "no events"])
def events(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the system tells of file events, which is so or as if it were not."""
    opened = listener()
    if opened is not None:
        opened.close()
    if request.param == "events" and opened is None:
        pytest.skip("no file events here")
    if request.param == "no events":
        monkeypatch.setattr(watch_room, "listener", lambda: None)
    process_watch().begin()
    yield request.param == "events"
    process_watch().begin()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of checkpoints, one of them a folder, and a log."""
    folder = tmp_path / "run"
    (folder / "step_1").mkdir(parents=True)
    (folder / "log.txt").write_text("two epochs")
    (tmp_path / "other.pt").write_bytes(bytes(99))
    for name in ("epoch_1.pt", "epoch_2.pt", "epoch_3.pt.tmp", "last.pt", "step_1/model.bin"):
        (folder / name).write_bytes(bytes(999))
    return folder


@contextmanager
def guarded(run: Path, *, growing: bool) -> Iterator[None]:
    with untouched([run], "net:x", "-m", growing=growing):
        yield


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def native() -> Any:
    return ctypes.CDLL(None)


def native_write(path: Path, content: bytes, flags: int = os.O_WRONLY | os.O_CREAT) -> None:
    descriptor = native().open(os.fsencode(path), flags, 0o600)
    assert native().write(descriptor, content, len(content)) == len(content)
    native().close(descriptor)


def unreaped(run: Path) -> None:
    child = subprocess.Popen(["sh", "-c", "echo more >> log.txt; exec sleep 60"], cwd=run)
    while (run / "log.txt").stat().st_size == 10:
        time.sleep(0.01)
    LEFT.append(child)


LEFT: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    while LEFT:
        child = LEFT.pop()
        child.kill()
        child.wait()


Doings = dict[str, tuple[Callable[[Path], object], str]]
PYTHON: Doings = {
    "write": (lambda run: (run / "log.txt").write_text("gone"), "log.txt was changed"),
    "empty": (lambda run: (run / "new.txt").touch(), "new.txt was added"),
    "emptied": (lambda run: os.truncate(run / "log.txt", 0), "log.txt was changed"),
    "dated": (lambda run: os.utime(run / "log.txt", (1, 1)), "log.txt was changed"),
    "unlink": (lambda run: (run / "epoch_2.pt").unlink(), "epoch_2.pt was deleted"),
    "in a thread": (lambda run: in_thread((run / "epoch_2.pt").unlink), "epoch_2.pt was deleted"),
    "a folder": (lambda run: shutil.rmtree(run / "step_1"), "model.bin was deleted"),
    "moved": (lambda run: (run / "log.txt").replace(run / "old.txt"), "log.txt was deleted; old.txt was added"),
    "moved folder": (lambda run: (run / "step_1").rename(run / "old"), "model.bin was deleted; model.bin was added"),
    "linked": (lambda run: (run / "new.pt").symlink_to("epoch_1.pt"), "new.pt was added"),
    "numpy": (lambda run: in_thread(lambda: np.ones(2).tofile(run / "act")), "act was added"),
    "torch": (lambda run: in_thread(lambda: torch.save(torch.ones(2), run / "act.pt")), "act.pt was added"),
}
CHILD: Doings = {
    "system": (lambda run: os.system(f"rm {run}/epoch_2.pt"), "epoch_2.pt was deleted"),
    "subprocess": (lambda run: subprocess.run(["rm", run / "epoch_2.pt"], check=True), "epoch_2.pt was deleted"),
    "child log": (lambda run: os.system(f"echo >> {run}/log.txt"), "log.txt was changed"),
    "child empty": (lambda run: os.system(f": > {run}/new"), "new was added"),
}
# Where only Linux tells of it.
NATIVE: Doings = {
    "native log": (lambda run: in_thread(lambda: native_write(run / "log.txt", b"+", APPEND)), "log.txt was changed"),
    "native new": (lambda run: in_thread(lambda: native_write(run / "new", b"+")), "new was added"),
    "native here": (lambda run: native_write(run / "new", b"+"), "new was added"),
    "safetensors": (lambda run: in_thread(lambda: save_file({"a": torch.ones(2)}, run / "act.bin")), "act.bin was"),
    "native child": (lambda run: native().system(os.fsencode(f"rm {run}/epoch_2.pt")), "epoch_2.pt was deleted"),
    "unreaped": (unreaped, "log.txt was changed"),
}
# Where only file events tell of it, or that no training is awaited.
UNTOLD: Doings = {
    "native unlink": (lambda run: native().unlink(os.fsencode(run / "epoch_2.pt")), "epoch_2.pt was deleted"),
    "native unlink, thread": (
        lambda run: in_thread(lambda: native().unlink(os.fsencode(run / "log.txt"))),
        "log.txt was deleted",
    ),
    "native rename": (
        lambda run: native().rename(os.fsencode(run / "log.txt"), os.fsencode(run / "old.txt")),
        "log.txt was deleted",
    ),
    "native empty": (lambda run: native_write(run / "new", b""), "new was added"),
}
# Where only file events tell of it.
UNSEEN: Doings = {
    "native patch": (lambda run: native_write(run / "epoch_1.pt", b"+"), "epoch_1.pt was changed"),
    "native move": (
        lambda run: native().rename(os.fsencode(run.parent / "other.pt"), os.fsencode(run / "epoch_1.pt")),
        "epoch_1.pt was changed",
    ),
}


@pytest.mark.parametrize("growing", [False, True], ids=["once", "follow"])
@pytest.mark.parametrize(
    "row",
    [*PYTHON, *CHILD, *(pytest.param(row, marks=LINUX) for row in (*NATIVE, *UNTOLD, *UNSEEN))],
)
def test_what_code_does_to_files_by_any_means_stops(run: Path, events: bool, row: str, growing: bool) -> None:
    do, words = {**PYTHON, **CHILD, **NATIVE, **UNTOLD, **UNSEEN}[row]
    if not events and (row in UNSEEN or (row in UNTOLD and growing)):
        with guarded(run, growing=growing):  # said in the guide
            do(run)
        return
    with pytest.raises(InputError, match="while this code ran") as raised, guarded(run, growing=growing):
        do(run)
    for word in words.split("; "):
        assert word in str(raised.value)


# What other programs do ---------------------------------------------------------------------------------------------


@contextmanager
def elsewhere(run: Path, text: str) -> Iterator[Callable[[], None]]:
    """Do something in another process, as a training does that goes on."""
    text = f"import sys\nfrom pathlib import Path\nsys.stdin.readline()\n{text}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-S", "-c", text], stdin=-1, stdout=-1, text=True, cwd=run) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def go() -> None:
            print(file=process.stdin, flush=True)
            process.stdout.readline()

        yield go
        process.stdin.close()


# Whether it may be the code's where file events are missing and no training is awaited.
OTHERS = {
    "Path('epoch_3.pt').write_bytes(bytes(99))": False,
    "Path('epoch_2.pt').write_bytes(bytes(99))": False,
    "Path('step_1/model.bin').write_bytes(bytes(99))": False,
    "Path('epoch_2.pt').write_bytes(bytes(9999))": False,
    "Path('last.pt').write_bytes(bytes(9999))": False,
    "Path('log.txt').open('a').write('x' * 99)": False,
    "Path('epoch_3.pt.tmp').unlink()": False,
    "Path('epoch_2.pt').unlink()": True,
    "Path('epoch_1.pt').rename('best.pt')": True,
    "Path('lock').touch()": True,
}


@LINUX
@pytest.mark.parametrize("growing", [False, True], ids=["once", "follow"])
@pytest.mark.parametrize("text", OTHERS)
def test_what_another_program_does_while_code_is_measured_is_not_held_against_it(
    run: Path, events: bool, text: str, growing: bool
) -> None:
    with elsewhere(run, text) as go:
        if OTHERS[text] and not events and not growing:
            with pytest.raises(InputError, match="training that goes on, add --follow"), guarded(run, growing=growing):
                go()
        else:
            with guarded(run, growing=growing):
                (run.parent / "log.txt").write_text("")  # of the same name, elsewhere
                go()


@LINUX
@pytest.mark.parametrize("growing", [False, True], ids=["once", "follow"])
def test_what_a_live_progress_line_writes_hides_no_small_file_and_blames_nobody(run: Path, growing: bool) -> None:
    process_watch().begin()
    with Path(os.devnull).open("w") as stream, Progress(console=Console(file=stream, force_terminal=True)) as live:
        live.add_task("checkpoints", total=3)
        with process_watch().block() as begun:
            before = watch_room._written("self")
            time.sleep(0.4)
        assert watch_room._written("self") > before
        assert process_watch().evidence(begun).bytes_written == 0
        with elsewhere(run, "Path('new').write_bytes(bytes(9))") as go, guarded(run, growing=growing):
            time.sleep(0.2)
            go()
        with pytest.raises(InputError, match="act was added"), guarded(run, growing=growing):
            in_thread(lambda: native_write(run / "act", b"9"))


def test_a_follower_whose_code_starts_processes_is_told_so(run: Path) -> None:
    process_watch().begin()
    with pytest.raises(InputError, match="It started other processes") as raised, guarded(run, growing=True):
        os.system(f"rm {run}/epoch_2.pt")
    assert "--follow" not in str(raised.value)


def test_events_that_were_lost_are_told() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, EVENT.pack(EVENT.size, 3, 0, EVENT.size, OVERFLOW, -1, 0))
    opened = Listener(reading, {"run"})
    assert opened.names() is None
    assert opened.names() == frozenset()
    opened.close()
    os.close(writing)


# What goes on -------------------------------------------------------------------------------------------------------


LATE: Doings = {
    "python": (lambda run: (run / "new").write_text("late"), "new was added"),
    "numpy": (lambda run: np.ones(2).tofile(run / "log.txt"), "log.txt was changed"),
    "delete": (lambda run: (run / "epoch_2.pt").unlink(), "epoch_2.pt was deleted"),
    "native": (lambda run: native_write(run / "new", b"late"), "new was added"),
    "native unlink": (lambda run: native().unlink(os.fsencode(run / "epoch_2.pt")), "epoch_2.pt was deleted"),
}


@pytest.mark.parametrize("growing", [False, True], ids=["once", "follow"])
@pytest.mark.parametrize("row", LATE)
def test_a_thread_that_goes_on_after_a_block_is_the_codes(run: Path, events: bool, row: str, growing: bool) -> None:
    do, words = LATE[row]
    if row.startswith("native") and not events:
        return  # between blocks nothing else tells of it
    go, gone = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        do(run)
        gone.set()

    with guarded(run, growing=growing):
        threading.Thread(target=work, daemon=True).start()
    go.set()
    gone.wait()
    with pytest.raises(InputError, match=words), guarded(run, growing=growing):
        pass


def test_a_file_that_code_has_open_is_watched_from_then_on(run: Path) -> None:
    process_watch().begin()
    with guarded(run, growing=True):
        held = np.memmap(run / "epoch_1.pt", mode="r+")

    def write() -> None:
        time.sleep(0.01)
        held[:] = 1
        held.flush()

    with pytest.raises(InputError, match=r"epoch_1.pt was changed"), guarded(run, growing=True):
        write()


@pytest.mark.parametrize("growing", [False, True], ids=["once", "follow"])
@pytest.mark.usefixtures("events")
def test_what_the_command_writes_between_blocks_is_its_own(run: Path, growing: bool) -> None:
    for _ in range(3):
        with guarded(run, growing=growing):
            pass
        (run / "r.tmp").write_text("a result")
        (run / "r.tmp").replace(run / "r.h5")
        (run / "epoch_1.pt").unlink(missing_ok=True)


@pytest.mark.usefixtures("events")
def test_a_child_process_that_goes_on_is_the_codes_in_later_blocks_too(run: Path) -> None:
    with guarded(run, growing=False):
        LEFT.append(
            subprocess.Popen(["sh", "-c", "until [ -e ../go ]; do :; done; rm epoch_2.pt; exec sleep 60"], cwd=run)
        )

    def go() -> None:
        (run.parent / "go").touch()
        while (run / "epoch_2.pt").exists():
            time.sleep(0.01)

    with pytest.raises(InputError, match=r"epoch_2.pt was deleted"), guarded(run, growing=True):
        go()


@LINUX
def test_a_child_process_that_sleeps_has_done_nothing(run: Path) -> None:
    process_watch().begin()
    with guarded(run, growing=False):
        LEFT.append(subprocess.Popen(["sleep", "60"]))
        LEFT.append(subprocess.Popen(["true"]))
        time.sleep(0.1)
    with elsewhere(run, "Path('epoch_2.pt').unlink()") as go, guarded(run, growing=True):
        go()


def test_a_command_begins_with_nothing_seen(run: Path) -> None:
    with guarded(run, growing=False):
        pass
    in_thread(lambda: (run / "new").touch())
    process_watch().begin()
    with guarded(run, growing=False):
        pass
