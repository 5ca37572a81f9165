"""Commands in processes of their own, forked from one that has imported everything: a start costs milliseconds.

Run as a script this is that process: it reads orders as lines of JSON and answers each with one line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What changes the file system is told to the interpreter's audit hooks just before it happens.
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
DEADLINE_SECONDS = 120.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# As Python itself begins.
DEFAULTS = {signal.SIGINT: signal.default_int_handler}


@dataclass
class Command:
    """One running command; `code` is its exit code, negative for the signal that killed it."""

    server: Server
    pid: int
    folder: Path

    def poll(self) -> int | None:
        """Return the exit code if it has ended."""
        if not hasattr(self, "code"):
            found = self.server.ask({"wait": self.pid})
            if found is None:
                return None
            self.code: int = found
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finished(self) -> int:
        """Wait for the end; return the exit code."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.002)
        return code

    @property
    def changes(self) -> int:
        """How often it changed what lies under `watched`."""
        return int((self.folder / "changes").read_text())

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()


class Server:
    """The process that forks; one for a test module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # No thread is left behind by a fork.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def warm(self, *arguments: object) -> None:
        """Run a command in the server itself, so that none has to import or prepare anything."""
        assert self.ask({"warm": [str(argument) for argument in arguments]}) == 0

    def start(self, *arguments: object, **order: Any) -> Command:
        """Start `ibscan ARGUMENTS`.

        Args:
            *arguments: The command line.
            **order: `signal`, sent by the process to itself before the `at`-th change of what lies under `watched`;
                `largest`, a limit on the size of files, bytes; `ignored`, signals that are ignored from the start.
        """
        self.started += 1
        folder = self.folder / str(self.started)
        folder.mkdir()
        typed = [str(argument) for argument in arguments]
        return Command(self, self.ask({"start": typed, "folder": str(folder), **order}), folder)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _become(order: dict[str, Any]) -> None:
    """Turn into the command, in the child."""
    for number, name in enumerate(("in", "out", "err")):
        path = os.devnull if name == "in" else str(Path(order["folder"]) / name)
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    if "largest" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    changes = [0]
    if "watched" in order:

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CHANGES and isinstance(arguments[0], str | Path) and order["watched"] in str(arguments[0]):
                changes[0] += 1
                if changes[0] == order["at"]:
                    os.kill(os.getpid(), order["signal"])

        sys.addaudithook(count)
    # What started the tests (nohup, a shell's background) may ignore signals, and its children inherit that.
    for number in STOPS:
        ignored = number in order.get("ignored", ())
        signal.signal(number, signal.SIG_IGN if ignored else DEFAULTS.get(number, signal.SIG_DFL))
    sys.argv = ["ibscan", *order["start"]]
    from ibscan.__main__ import main

    code: Any = 1
    try:
        main()
    except SystemExit as leave:
        code = leave.code or 0
    finally:
        (Path(order["folder"]) / "changes").write_text(str(changes[0]))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Taking torch down costs more than a short command.
        os._exit(code)


def _serve() -> None:
    from ibscan.cli.entry import exit_code

    for line in sys.stdin:
        order = json.loads(line)
        answer: Any
        if "warm" in order:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
                answer = exit_code(order["warm"])
        elif "start" in order:
            answer = os.fork()
            if not answer:
                _become(order)
        else:
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
