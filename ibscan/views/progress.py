"""Report progress: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Live

from ibscan.views.console import console, escaped, is_terminal

__all__ = ["Progress", "pace", "progress"]

_SECONDS_BETWEEN_LINES = 30.0


@dataclass
class Progress:
    """Counts checkpoints; made by `progress`."""

    total: int
    stream: IO[str]
    live: Live | None = None
    task: TaskID | None = None
    plain: bool = False
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def advance(self, name: str) -> None:
        """Count one more checkpoint, the one of that name."""
        self.done += 1
        if self.live is not None and self.task is not None:
            self.live.update(self.task, advance=1, description=self._pace(), name=escaped(name))
        elif self.plain and time.monotonic() - self.said >= _SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            self.say(f"{self.done} of {self.total} checkpoints, {self._pace()} ({escaped(name)})")

    def say(self, sentence: str) -> None:
        """Write one plain line; ignore a closed stream, which is no reason to stop measuring."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"ibscan: {sentence}\n".encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()

    def _pace(self) -> str:
        return pace(self.done, self.total, time.monotonic() - self.began)


def pace(done: int, total: int, elapsed: float) -> str:
    """Return how fast checkpoints are finished, and about how long the rest takes."""
    rate = done / max(elapsed, 1e-9)
    left = _duration((total - done) / rate)
    return f"{f'{rate:.3g}/s' if rate >= 1 else f'{rate * 60:.3g}/min'}, about {left} left"


@contextmanager
def progress(total: int, *, stream: IO[str], mode: str) -> Iterator[Progress]:
    """Report progress while the block runs; clear the live line of a terminal at its end.

    Args:
        total: Checkpoints to do.
        stream: Standard error.
        mode: `off`; `auto` or `on`: a live line on a terminal; elsewhere, and where colour is off, one plain line
            every 30 s. `on` also says, in place of a live line, when it starts and ends.

    Yields:
        The reporter, whose `advance(name)` is to be called for each finished checkpoint.
    """
    if mode == "off":
        yield Progress(total, stream)
        return
    screen = console(stream)
    # A live line needs escape sequences; without them print plain lines.
    if not (is_terminal(stream) and screen.is_terminal):
        reporter = Progress(total, stream, plain=True)
        if mode == "on":
            reporter.say(f"0 of {total} checkpoints")
        yield reporter
        if mode == "on":
            reporter.say(f"{reporter.done} of {total} checkpoints in {_duration(time.monotonic() - reporter.began)}")
        return
    columns = (
        BarColumn(bar_width=max(4, min(30, screen.width // 4))),
        MofNCompleteColumn(),
        TextColumn("checkpoints {task.description} {task.fields[name]}", markup=False),
    )
    live = Live(
        *columns,
        console=screen,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        # So that a notice appears above the line instead of in the middle of it.
        redirect_stderr=stream is sys.stderr,
    )
    with live:
        yield Progress(total, stream, live, live.add_task("", total=total, name=""))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
