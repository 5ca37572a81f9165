"""Read foreign formats in a child process, so that a crash or an endless loop there becomes one sentence here.

On damaged files the HDF5 library and scipy's reader of MATLAB files end their process or never return, which no
`except` catches. The child is a module of this package that answers on standard output: a line of JSON, and after it
as many bytes as that says. Nothing is imported from the working folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Child", "ChildEnded", "limit", "started", "tell"]


class ChildEnded(Exception):  # noqa: N818 - names what happened; its caller makes a sentence of it
    """The child ended without an answer; `code` is its exit code, or minus the signal that ended it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def reason(self, library: str) -> str:
        """Say why: it ran out of time, or `library` broke down."""
        if self.code == -getattr(signal, "SIGXCPU", 0):
            return "reading it does not come to an end"
        what = f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"{library} broke down on it, {what}"


@dataclass(frozen=True)
class Child:
    """A child process that reads requests from standard input and writes answers to standard output."""

    process: subprocess.Popen[bytes]

    def send(self, message: object, blob: bytes = b"") -> None:
        """Send a line of JSON, and bytes after it."""
        assert self.process.stdin is not None
        # That the child is gone shows when no answer comes.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n" + blob)
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            ChildEnded: It ended without one.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildEnded(self.process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def fill(self, memory: memoryview) -> None:
        """Read the bytes that follow an answer into memory that is exactly as long.

        Raises:
            ChildEnded: It ended before all were there.
        """
        assert self.process.stdout is not None
        while memory:
            # A pipe gives what it holds, which may be less than asked for.
            count = self.process.stdout.readinto(memory)  # type: ignore[attr-defined]
            if not count:
                raise ChildEnded(self.process.wait())
            memory = memory[count:]


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[Child]:
    """Start Python with some arguments (`-P -m MODULE ...`) as a child process, and end it with the block."""
    # The child imports from where this process does, but never from the working folder.
    folders = os.pathsep.join(folder for folder in sys.path if folder)
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # No HDF5 plugins: the filters they would add are refused anyway.
        env={**os.environ, "PYTHONPATH": folders, "HDF5_PLUGIN_PRELOAD": "::"},
        # Ctrl-C shall reach this process alone, which ends the child.
        start_new_session=True,
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        with contextlib.suppress(OSError):
            process.communicate()


def tell(answer: object, blob: bytes | memoryview = b"") -> None:
    """Send an answer from the child: a line of JSON, and bytes after it."""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.write(blob)
    sys.stdout.buffer.flush()


def limit(seconds: float, most_bytes: int, more_bytes: int | None = None) -> None:
    """Limit the time and memory of this process, the child; do nothing on Windows.

    Args:
        seconds: Processor time from now on.
        most_bytes: Address space in all.
        more_bytes: Address space beyond what it has now, where the system says how much that is.
    """
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(OSError, ValueError):
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds + 1), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_soft(most_bytes, more_bytes), most_bytes))


def _soft(most_bytes: int, more_bytes: int | None) -> int:
    if more_bytes is None:
        return most_bytes
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):  # not Linux
        return most_bytes
    return min(most_bytes, pages * os.sysconf("SC_PAGE_SIZE") + more_bytes)
