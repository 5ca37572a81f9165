"""Consoles for any stream: with colour or without, narrow, not UTF-8, or closed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from rich.console import Console

from ibscan.errors import Interrupted

__all__ = ["columns", "console", "escaped", "is_terminal", "reader_may_leave", "unicode_ok"]

_GLYPHS = "▁▂▃▄▅▆▇█†─→≤×±"


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Turn a broken pipe into an interrupt, before rich or Typer end the program with another exit code.

    Raises:
        Interrupted: The reader of the stream is gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise Interrupted(signal.SIGPIPE) from None


@dataclass(frozen=True)
class _Escaping:
    """A stream that writes characters its encoding lacks as escapes, where rich would raise."""

    stream: IO[str]

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with reader_may_leave():
            self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with reader_may_leave():
            self.stream.flush()

    def isatty(self) -> bool:
        return is_terminal(self.stream)

    def fileno(self) -> int:
        return self.stream.fileno()


def console(stream: IO[str], *, color: str = "auto", width: int | None = None) -> Console:
    """Return a console that prints text as it is: no markup, no emoji codes, no highlighting.

    Args:
        stream: Where to print.
        color: `always`, `never`, or `auto`: on a terminal that is not dumb, and where FORCE_COLOR is set, unless
            NO_COLOR is set. A typed `always` is stronger than NO_COLOR, as no-color.org has it.
        width: Columns; None asks COLUMNS, then the terminal.

    Returns:
        The console; without colour it writes no escape sequence at all, not even for bold.
    """
    colored = color == "always" or (color == "auto" and _wants_color(stream))
    return Console(
        file=cast(IO[str], _Escaping(stream)),
        force_terminal=colored,
        force_jupyter=False,
        color_system="standard" if colored else None,
        no_color=not colored,
        width=max(1, width if width is not None else columns(stream)),
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )


def escaped(text: str) -> str:
    r"""Escape what is not printable (newlines, escape codes, direction marks, undecodable bytes) as `\x1b`, ...

    Example:
        >>> print(escaped("a\x1b[31m\nb"))
        a\x1b[31m\nb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unicode_ok(stream: IO[str]) -> bool:
    """Return whether the stream's encoding has the characters that tables use beyond ASCII."""
    try:
        _GLYPHS.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def is_terminal(stream: IO[str]) -> bool:
    """Return whether the stream is a terminal; a closed one is none."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def _wants_color(stream: IO[str]) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def columns(stream: Any) -> int:  # noqa: ANN401 - any stream
    """Return how many columns a stream has now: those of COLUMNS, else of its terminal, else 80."""
    typed = os.environ.get("COLUMNS", "")
    if typed.isascii() and typed.isdigit() and 0 < len(typed) < 6 and int(typed):
        return int(typed)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return shutil.get_terminal_size((80, 24)).columns or 80
