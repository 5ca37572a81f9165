"""Commands with code of somebody's: what it raises, what memory it asks for, and what it does to the run's files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

import ibscan
from ibscan.cli.entry import exit_code
from ibscan.core.estimate import Status
from ibscan.errors import InputError, OutOfMemory, ResourceError
from ibscan.measures.clustering import Clustering
from ibscan.results.coverage import statuses
from ibscan.results.store import read

NET = """
import errno, os, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
HERE = Path(__file__).parent

class Net(nn.Module):
    calls = 0
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        Net.calls += 1
        self.on(x)
        return self.b(self.a(x).tanh())
    def on(self, x):
        pass

def build():
    return Net()
"""
FORWARD = "class Own(Net):\n    def on(self, x):\n        "
HUGE = "torch.zeros(10**7, 10**7)"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of two checkpoints, a probe, a log and the network they are of."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    for epoch in (1, 2):
        shapes = {"a.weight": (8, 6), "a.bias": (8,), "b.weight": (3, 8), "b.bias": (3,)}
        torch.save({key: torch.randn(shape) for key, shape in shapes.items()}, folder / f"epoch_{epoch}.pt")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "probe.npz", x=rng.normal(size=(12, 6)), y=np.arange(12) % 3)
    (folder / "log.txt").write_text("two epochs")
    (folder / "net.py").write_text(NET)
    return folder


def code(run: Path, text: str) -> None:
    (run / "net.py").write_text(f"{NET}\n{text}\n")


def given(*more: object, model: str = "run/net.py:build", verb: str = "cluster") -> list[object]:
    output = [] if verb == "ls" else ["-o", "r.h5", "--progress", "off"]
    return [verb, "run", "-p", "probe.npz", "-m", model, *output, *more]


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Scripts ------------------------------------------------------------------------------------------------------------

SCRIPT = "for epoch in (1, 2):\n    torch.save(build().state_dict(), HERE / f'epoch_{epoch}.pt')\n"
ROADS = ["-m", "-p", "toml", "metadata", "python"]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("verb", ["scan", "ls"])
def test_a_training_script_changes_nothing(command: Run, run: Path, road: str, verb: str) -> None:
    code(run, f"{SCRIPT}def probe(): return np.ones((2, 6))")
    if road == "toml":
        (run / "ibscan.toml").write_text('[model]\nspec = "net.py:Net"\n')
    if road == "metadata":
        ibscan.save(run, torch.nn.Linear(6, 3), epoch=7, spec="net.py:Net")
        for name in ("epoch_1.pt", "epoch_2.pt"):
            (run / name).unlink()
    before = state(run)
    if road == "python":
        with pytest.raises(InputError, match=r"net.py, line 25, calls torch.save.*__main__"):
            ibscan.rank(run, probe="probe.npz", model="run/net.py:Net")
    else:
        typed = given(model="run/net.py:Net", verb=verb)
        if road == "-p":
            typed[typed.index("probe.npz")] = "run/net.py:probe"
            typed[typed.index("run/net.py:Net")] = "mlp:tanh"
        if road in ("toml", "metadata"):
            typed = [*typed[:4], *typed[6:], "--trust"]
        done = command(*typed)
        assert done.code == 3, done.err
        assert "net.py, line 25, calls torch.save(...)" in done.err
        assert 'if __name__ == "__main__":' in done.err
    assert state(run) == before


def test_run_script_runs_it_and_still_says_what_it_changed(command: Run, run: Path) -> None:
    code(run, "(HERE.parent / 'elsewhere.txt').write_text('ran')")
    assert command(*given("--run-script")).code == 0
    assert Path("elsewhere.txt").read_text() == "ran"
    code(run, SCRIPT)
    done = command(*given("--run-script"))
    assert done.code == 3
    assert "epoch_1.pt, epoch_2.pt were changed" in done.err
    assert ibscan.rank(run / "epoch_1.pt", probe="probe.npz", model="mlp:tanh", run_script=True).exit_code == 0


# What code does to files --------------------------------------------------------------------------------------------

# Not what a script is told by: names are put together as it runs.
DOES = {
    "import": ("net.py:build", "getattr(HERE / 'log.txt', 'write' + '_text')('gone')", "log.txt was changed"),
    "build": (
        "net.py:make",
        "def make():\n    (HERE / 'new.txt').write_text('a')\n    return Net()",
        "new.txt was added",
    ),
    "rewritten": (
        "net.py:make",
        "os.chdir(HERE)\ndef make():\n    np.save('x.npy', 3)\n    os.rename('x.npy', 'epoch_2.pt')\n    return Net()",
        "epoch_2.pt was changed",
    ),
    "deleted": (
        "net.py:make",
        "def make():\n    (HERE / 'epoch_2.pt').unlink()\n    return Net()",
        "epoch_2.pt was deleted",
    ),
    "forward": ("net.py:Own", FORWARD + "torch.save(x.detach(), HERE / 'act.pt')", "act.pt was added"),
    "and raises": (
        "net.py:Own",
        FORWARD + "(HERE / 'new').touch(); raise ValueError('and that')",
        "and that (net.py, line 26); --debug shows where. --model run/net.py:Own: while this code ran, new was added",
    ),
    "many": (
        "net.py:make",
        "def make():\n    [(HERE / f'{k}.txt').touch() for k in range(9)]\n    return Net()",
        "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more were added",
    ),
}


@pytest.mark.parametrize("row", DOES)
def test_what_code_changes_is_said_and_stops(command: Run, run: Path, row: str) -> None:
    spec, text, words = DOES[row]
    code(run, text)
    done = command(*given(model=f"run/{spec}"))
    assert done.code == 3, done.err
    assert words in done.err
    assert not Path("r.h5").exists()


def test_a_probe_that_writes_is_told(command: Run, run: Path) -> None:
    code(run, "def probe():\n    (HERE / 'new.txt').touch()\n    return np.ones((2, 6))")
    typed = given()
    typed[typed.index("probe.npz")] = "run/net.py:probe"
    done = command(*typed)
    assert done.code == 3
    assert "--probe run/net.py:probe: while this code ran, new.txt was added" in done.err


def test_what_code_writes_elsewhere_is_its_own_business(
    command: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (run / "ibscan_t_beside.py").write_text("")
    code(run, "import ibscan_t_beside\ndef make():\n    (HERE.parent / 'new.txt').touch()\n    return Net()")
    assert command(*given(model="run/net.py:make")).code == 0
    assert not list(Path().rglob("__pycache__"))
    del sys.modules["ibscan_t_beside"]


# What a model does first when it is measured, on more rows than it is looked at with.
LATER = {
    "write": ("(HERE / 'log.txt').write_text('gone')", "log.txt was changed"),
    "append": ("with open(HERE / 'log.txt', 'a') as log: log.write('more')", "log.txt was changed"),
    "empty": ("(HERE / 'new.txt').touch()", "new.txt was added"),
    "numpy": ("np.save(HERE / 'act.npy', np.ones(99))", "act.npy was added"),
    "torch": ("torch.save(torch.ones(99), str(HERE / 'act.pt'))", "act.pt was added"),
    "rewrite": ("torch.save(torch.ones(9999), str(HERE / 'epoch_1.pt'))", "epoch_1.pt was changed"),
    "move": ("os.replace(HERE / 'log.txt', HERE / 'old.txt')", "old.txt was added; log.txt"),
    "delete": ("(HERE / 'epoch_2.pt').unlink(missing_ok=True)", "epoch_2.pt was deleted"),
    "child": ("os.system(f'rm {HERE}/epoch_2.pt; echo >> {HERE}/log.txt')", "log.txt was changed"),
    "thread": (
        "import threading; t = threading.Thread(target=np.ones(1).tofile, args=(HERE / 'act',)); t.start(); t.join()",
        "act was added",
    ),
    "relative": (
        "here = os.getcwd(); os.chdir(HERE); open('new.txt', 'w').close(); os.chdir(here)",
        "new.txt was added",
    ),
}


@pytest.mark.parametrize("row", LATER)
@pytest.mark.parametrize("follow", [False, True], ids=["once", "follow"])
def test_what_a_model_changes_while_it_is_measured_stops_the_command(
    command: Run, run: Path, row: str, follow: bool
) -> None:
    text, words = LATER[row]
    code(run, f"{FORWARD}if len(x) > 4 and (HERE / 'log.txt').exists():\n            {text}")
    done = command(*given(*(["--follow", "--idle", "0.2"] if follow else []), model="run/net.py:Own"))
    assert done.code == 3, done.err
    assert "while this code ran" in done.err
    for word in words.split("; "):
        assert word in done.err


# What code raises ---------------------------------------------------------------------------------------------------

ASKS = {
    "import": ("build", HUGE),
    "import, numpy": ("build", "np.zeros((10**9, 10**9))"),
    "import, list": ("build", "[0] * 10**16"),
    "import, overflow": ("build", "torch.zeros(10**9, 10**9, 10**9)"),
    "import, system": ("build", "raise OSError(errno.ENOMEM, 'mmap')"),
    "import, cuda": ("build", "raise torch.OutOfMemoryError('CUDA out of memory.')"),
    "import, windows": ("build", "raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried')"),
    "build": ("make", "def make(): return nn.Linear(10**8, 10**8)"),
    "load": ("Own", f"class Own(Net):\n    def load_state_dict(self, *a, **k): {HUGE}"),
    "to": ("Own", f"class Own(Net):\n    def to(self, *a, **k): {HUGE}"),
    "forward": ("Own", FORWARD + HUGE),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ASKS)
def test_code_that_asks_for_more_memory_than_there_is(command: Run, run: Path, row: str) -> None:
    name, text = ASKS[row]
    code(run, text)
    for verb in ("cluster", "ls"):
        done = command(*given(model=f"run/net.py:{name}", verb=verb))
        assert done.code == 6, done.err
        assert "memory ran out" in done.err
        assert "(net.py, line " in done.err
        assert "bug" not in done.err
    with pytest.raises(OutOfMemory) as raised:
        ibscan.rank(run, probe="probe.npz", model=f"run/net.py:{name}")
    assert isinstance(raised.value, ResourceError)
    assert isinstance(raised.value, MemoryError)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["cluster", "rank", "mi"])
def test_cells_that_ask_for_more_memory_than_there_is_have_that_status(command: Run, run: Path, verb: str) -> None:
    code(run, f"{FORWARD}if len(x) > 4:\n            {HUGE}")
    done = command(*given(model="run/net.py:Own", verb=verb))
    assert done.code == 4, done.err
    assert " is out_of_memory: the model: memory ran out: " in done.err
    assert "(net.py, line " in done.err
    assert any((values == Status.OUT_OF_MEMORY).any() for values in statuses(read(Path("r.h5"))).values())


def test_a_probe_that_asks_for_more_memory_than_there_is_ends_the_run(command: Run, run: Path) -> None:
    for text in (f"return {HUGE}", "return Odd()"):
        code(run, f"class Odd:\n    def __array__(self, *a, **k): return {HUGE}\ndef probe(): {text}")
        typed = given()
        typed[typed.index("probe.npz")] = "run/net.py:probe"
        done = command(*typed)
        assert done.code == 6, done.err
        assert "--probe run/net.py:probe: memory ran out" in done.err


RAISES = {
    "empty": ("raise KeyError", "the model raised KeyError (net.py, line 26)"),
    "lines": ("raise ValueError('one\\n  two')", "ValueError: one two (net.py, line 26)"),
    "huge": ("raise ValueError('y' * 10**7)", "yyy ... (net.py, line 26)"),
    "escapes": ("raise ValueError('\\x1b[31mred')", "ValueError: \\x1b[31mred"),
    "no text": ("raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})", "raised Odd (net.py, line 26)"),
    "a long name": ("raise type('O' * 999, (Exception,), {})", "O ... (net.py, line 26)"),
    "recursion": ("self.on(x)", "RecursionError: maximum recursion depth"),
    "stop": ("raise StopIteration", "raised StopIteration (net.py, line 26)"),
    "generator": ("raise GeneratorExit", "raised GeneratorExit"),
    "exit": ("sys.exit(0)", "raised SystemExit: 0"),
    "no exception": ("raise type('Stop', (BaseException,), {})", "raised Stop (net.py"),
    "in torch": ("nn.functional.linear(x, x.mT)", "(net.py, line 26)"),
    "warning": ("import warnings; warnings.warn('this')", "UserWarning: this (net.py, line 26)"),
    "second": ("assert Net.calls < 2", "raised AssertionError (net.py, line 26)"),
    "more rows": ("assert len(x) < 5", "raised AssertionError (net.py, line 26)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", RAISES)
def test_what_code_raises_is_a_sentence_with_its_line(command: Run, run: Path, row: str) -> None:
    text, words = RAISES[row]
    code(run, FORWARD + text)
    done = command(*given(model="run/net.py:Own"))
    assert done.code == 3, done.err
    assert words in done.err
    assert len(done.err) < 1000
    assert "\x1b" not in done.err


@pytest.mark.parametrize("text", ["raise KeyboardInterrupt", f"{FORWARD}raise KeyboardInterrupt"])
def test_an_interrupt_in_code_keeps_its_exit_code(command: Run, run: Path, text: str) -> None:
    code(run, f"{text}\n" if "class" in text else f"{text}\nOwn = Net")
    assert command(*given(model="run/net.py:Own")).code == 130


def test_debug_shows_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code(run, FORWARD + "raise ValueError('this')")
    assert exit_code([str(word) for word in given("--debug", model="run/net.py:Own")]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in on" in err


def test_what_code_turns_on_does_not_meet_us(command: Run, run: Path) -> None:
    code(run, "import warnings\nwarnings.simplefilter('error')\nnp.seterr(all='raise')\nos.chdir(HERE.parent.parent)")
    here, errors = Path.cwd(), np.geterr()
    assert command(*given()).code == 0
    assert Path.cwd() == here
    assert Path("r.h5").exists()
    assert np.geterr() == errors


@pytest.mark.usefixtures("run")
def test_a_mistake_of_ours_within_a_pass_is_ours(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(Clustering, "__call__", lambda *given: given[1].walk(given[2].x, broken))
    done = command(*given())
    assert done.code == 1
    assert "this is a bug in ibscan (ValueError: ours)" in done.err
