"""Report progress: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from rich.live import Live
from rich.text import Text

from ibscan.core.hand import Hand
from ibscan.views.console import columns, console, escaped, is_terminal, unicode_ok

__all__ = ["Progress", "about", "duration", "pace", "progress"]

_SECONDS_BETWEEN_LINES = 30.0
# Of the live line: columns of its bar, fewest columns of measure and layer, and what stands for these until it fits.
_BAR, _LEAST, _DOING = 10, 16, "\0"


@dataclass
class Progress:
    """Counts checkpoints, and knows what is in `hand`; made by `progress`."""

    total: int
    stream: IO[str]
    plain: bool = False
    done: int = 0
    hand: Hand | None = None
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    advanced: float = field(default_factory=time.monotonic)

    def advance(self, name: str) -> None:
        """Count one more checkpoint, the one of that name."""
        self.done, self.advanced = self.done + 1, time.monotonic()
        if self.plain and time.monotonic() - self.said >= _SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            paced = pace(self.done, self.total, self.said - self.began)
            self.say(f"{self.done} of {self.total} checkpoints, {paced} ({escaped(name)})")

    def say(self, sentence: str) -> None:
        """Write one plain line; ignore a closed stream, which is no reason to stop measuring."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"ibscan: {sentence}\n".encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()

    def line(self, width: int, *, unicode: bool = True) -> str:
        """Return the live line as it is now, in so many columns at most.

        It has a bar, the place of what is in hand among all checkpoints and in the series, measure and layer, the mean
        seconds a checkpoint, and the time gone and left; where it is narrow, less of it.
        """
        hand, now = self.hand, time.monotonic()
        each = f"{(self.advanced - self.began) / self.done:.2g} s each" if self.done else ""
        gone = _clock(now - self.began)
        if hand is None:
            return _fitting([[f"{self.done}/{self.total} checkpoints", each, gone]], "", width, unicode)
        place, times = f"{hand.place}/{self.total}", f"{gone}, {_clock(hand.left())} left"
        where, doing = escaped(hand.where), f"{hand.measure} {escaped(hand.layer)}".strip()
        choices = [
            [f"{self._bar(unicode)} {place}", where, doing, each, times],
            [place, where, _DOING, each, times],
            [place, _DOING, each, times],
            [place, _DOING, times],
            [place, times],
        ]
        return _fitting(choices, doing, width, unicode)

    def _bar(self, unicode: bool) -> str:
        full, empty = ("━", "─") if unicode else ("#", "-")
        ticks = _BAR * self.done // max(1, self.total)
        return full * ticks + empty * (_BAR - ticks)


def _fitting(choices: Sequence[Sequence[str]], doing: str, width: int, unicode: bool) -> str:
    """Join the parts of the first choice that fits, `_DOING` shortened as far as it has to be; cut the last."""
    dot, more = (" · ", "…") if unicode else (" - ", "~")
    for parts in choices:
        line = dot.join(part for part in parts if part)
        room = width - len(line.replace(_DOING, ""))
        if len(doing) > room >= _LEAST and _DOING in line:
            # The end of a layer's name tells more than its beginning.
            kept = doing.partition(" ")[0][: room - 1]
            end = room - len(kept) - 1
            return line.replace(_DOING, f"{kept}{more}{doing[-end:] if end else ''}")
        line = line.replace(_DOING, doing)
        if len(line) <= width:
            return line
    return line[:width]


def pace(done: int, total: int, elapsed: float) -> str:
    """Return how fast checkpoints are finished, and about how long the rest takes."""
    rate = done / max(elapsed, 1e-9)
    left = duration((total - done) / rate)
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
        The reporter, whose `advance(name)` is to be called for each finished checkpoint, and whose `hand` is what is
        measured now.
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
            reporter.say(f"{reporter.done} of {total} checkpoints in {duration(time.monotonic() - reporter.began)}")
        return
    reporter, unicode = Progress(total, stream), unicode_ok(stream)

    def drawn() -> Text:
        screen.width = columns(stream)  # the terminal may have been resized
        return Text(reporter.line(screen.width - 1, unicode=unicode), no_wrap=True)

    # Drawn anew by a thread, so that the times move while one block takes long.
    live = Live(
        get_renderable=drawn,
        console=screen,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        # So that a notice appears above the line instead of in the middle of it.
        redirect_stderr=stream is sys.stderr,
    )
    with live:
        yield reporter


def _clock(seconds: float) -> str:
    """Write seconds as 0:42 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def duration(seconds: float) -> str:
    """Write seconds as 42 s, 1 min 10 s or 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about(seconds: float) -> str:
    """Write seconds that are estimated, in as many digits as an estimate has: 40 s, 3 min, 2.5 h or 3 days."""
    for unit, size, most in (("s", 1.0, 90.0), ("min", 60.0, 90.0), ("h", 3600.0, 48.0)):
        if seconds < most * size:
            return f"{float(f'{max(1.0, seconds / size):.2g}'):g} {unit}"
    return f"{float(f'{seconds / 86400:.2g}'):g} days"
