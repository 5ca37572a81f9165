"""What several rooms' tests need: a small trained-like run folder, and the command line in this process."""

import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings
from support import oracles, synthetic
from torch import nn

import ibscan
from ibscan.cli.entry import exit_code

# The same examples every time: a red run is the change's doing. `--hypothesis-profile=default` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

FIXTURES = Path(__file__).parent.parent / "fixtures"
VERBS = ("rank", "mi", "cluster", "scan")
# Stand-ins for libraries that need not be installed, and benchmarks, hold no tests.
collect_ignore = ["standins", "benchmarks"]
FUZZ = 60


@dataclass(frozen=True)
class Finished:
    """A command that has run: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, str]]:
        """Decode tab-separated standard output; a missing field becomes an empty text."""
        header, *lines = (line.split("\t") for line in self.out.splitlines())
        return [{k: "" if v == "NaN" else v for k, v in zip(header, line, strict=True)} for line in lines]


Run = Callable[..., Finished]


def pytest_configure(config: pytest.Config) -> None:
    oracles.DEVICE = torch.device(config.getoption("--device"))
    oracles.DTYPE = getattr(torch, config.getoption("--dtype"))
    # Several processes of tests have a core each. As every command does: until it is said once, MKL takes fewer threads
    # while the machine is busy, and gives other bits.
    torch.set_num_threads(1 if hasattr(config, "workerinput") else torch.get_num_threads())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a probe, and no checkpoint yet."""
    made = tmp_path / "ckpts"
    made.mkdir()
    binary_probe(made)
    return made


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads; the previous number is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> Run:
    """Run `ibscan ARGUMENTS` in this process, where no signal or terminal is needed; on --device, in --dtype."""

    def run(*arguments: object, inside: Path | None = None, stdin: str = "") -> Finished:
        typed = [str(argument) for argument in arguments]
        for option in ("--device", "--dtype"):
            if typed[:1] and typed[0] in VERBS and option not in typed:
                typed += [option, str(pytestconfig.getoption(option))]
        monkeypatch.setattr(sys, "argv", ["ibscan", *typed])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        out, err = io.StringIO(), io.StringIO()
        before = Path.cwd()
        if inside is not None:
            os.chdir(inside)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = exit_code(typed)
        finally:
            os.chdir(before)
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Finished(code, out.getvalue(), err.getvalue())

    return run


def chain(*widths: int, seed: int = 0, gain: float = 2.0) -> nn.Sequential:
    """Return a tanh chain whose weights are large enough to be nonlinear."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        linear.weight.data *= gain
        modules += [linear, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def binary_probe(folder: Path, bits: int = 6) -> Path:
    """Write probe.npz: all vectors of `bits` bits, labelled by whether the first two differ."""
    x = ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1).astype(np.float32)
    y = (x[:, 0] != x[:, 1]).astype(np.int64)
    np.savez(folder / "probe.npz", x=x, y=y)
    return folder / "probe.npz"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Make a self-describing folder of five checkpoints 6-5-4-2 and its probe of 64 rows."""
    folder = tmp_path / "ckpts"
    folder.mkdir()
    for epoch in (0, 1, 3, 10, 30):
        ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch), epoch=epoch, metrics={"loss": 0.7 + 1.0 / (1 + epoch)})
    binary_probe(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path) -> Iterator[None]:
    """Run every test in a folder of its own, so that a default output never lands in the project."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


@pytest.fixture(scope="session", name="synthetic")
def synthetic_results() -> ModuleType:
    """Return the module that makes small results, for tests that need no network."""
    return synthetic


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where networks are measured: cpu, cuda, cuda:1")
    parser.addoption("--dtype", default="float64", choices=("float64", "float32"), help="of commands' forward passes")
    parser.addoption("--fuzz", type=int, default=FUZZ, help="examples a fuzzed reader (long version: 2000)")
    parser.addoption("--kills", type=int, default=3, help="how often the kill test kills a run (long version: 40)")
    parser.addoption("--timed", action="store_true", help="hold estimates of time against this machine's")
    parser.addoption(
        "--calibration-seeds", type=int, default=20, help="seeds of every calibration test (long version: 200)"
    )
