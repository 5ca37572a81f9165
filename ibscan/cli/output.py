"""Print results on standard output, as tables or rows, and everything else on standard error."""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ibscan.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ibscan.core.hand import Hand
    from ibscan.core.result import Result
    from ibscan.views.progress import Progress

__all__ = ["FORMATS", "Output", "output_for", "say"]

# Of what is printed, with the end of a file that holds it.
FORMATS = {"table": ".txt", "tsv": ".tsv", "csv": ".csv", "jsonl": ".jsonl"}
_LONGEST = 10_000


def say(sentence: str, *, begin: str = "ibscan: ") -> None:
    """Print one line on standard error, in its encoding, with names from files escaped.

    On a terminal a sentence is broken between words; a line that begins otherwise is to be copied, and stays whole.
    """
    from ibscan.views.console import columns, escaped, is_terminal

    stream = sys.stderr
    text = escaped(sentence)
    if len(text) > _LONGEST:  # a name from a file may be megabytes long; the remedy stands at the end
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    line = f"{begin}{text}"
    if begin.strip() and is_terminal(stream):
        whole: Any = {"break_long_words": False, "break_on_hyphens": False}
        line = textwrap.fill(line, max(20, columns(stream)), subsequent_indent=" " * len(begin), **whole)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Standard error may be full or closed, which must not stop a measurement.
    with contextlib.suppress(OSError):
        stream.write(f"{line}\n".encode(encoding, "replace").decode(encoding))
        stream.flush()


@dataclass(frozen=True)
class Output:
    """How a command prints; `format` is one of `FORMATS`, `target` a file in place of standard output."""

    format: str
    units: str
    every: bool
    variables: tuple[str, ...]
    curve: bool
    full: bool
    summary: bool
    beside: tuple[str, ...]
    color: str
    quiet: bool
    progress_mode: str
    target: Path | None = None

    def notice(self, sentence: str) -> None:
        """Print a sentence on standard error, unless quiet."""
        if not self.quiet:
            say(sentence)

    def result(self, result: Result) -> None:
        """Print a result's tables or rows."""
        with self._opened() as stream:
            if self.format == "table":
                self._tables(result, stream)
            else:
                self._result_rows(result, stream)

    def rows(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Print rows that are not a result's."""
        with self._opened() as stream:
            if self.format == "table":
                from ibscan.views.listing import listing

                self._screen(stream).print(listing(columns, rows))
            else:
                from ibscan.results.export import write_rows

                write_rows(rows, self.format, stream, columns)

    def _result_rows(self, result: Result, stream: TextIO) -> None:
        from ibscan.results.export import rows, write_rows

        if self.summary:
            from ibscan.views.summary import ROWS, summary_rows

            write_rows(summary_rows(result, units=self.units), self.format, stream, ROWS)
            return
        if self.curve:
            from ibscan.results.select import selected
            from ibscan.views.curve import curves

            result = selected(result, variables=curves(result))
        write_rows(rows(result, units=self.units, variables=self.variables), self.format, stream)

    def _tables(self, result: Result, stream: TextIO) -> None:
        from ibscan.views.console import unicode_ok
        from ibscan.views.tables import tables

        screen = self._screen(stream)
        for table in tables(
            result,
            units=self.units,
            every=self.every,
            variables=self.variables,
            curve=self.curve,
            full=self.full,
            summary=self.summary,
            beside=self.beside,
            width=screen.width,
            unicode=unicode_ok(stream),
        ):
            screen.print(table)

    def _screen(self, stream: TextIO) -> Console:
        from ibscan.views.console import console

        # FORCE_COLOR is meant for what is read on a terminal.
        color = "never" if self.target is not None and self.color == "auto" else self.color
        return console(stream, color=color)

    @contextmanager
    def _opened(self) -> Iterator[TextIO]:
        """Yield standard output, or the text of a file that is written whole at the end."""
        if self.target is None:
            from ibscan.views.console import reader_may_leave

            with reader_may_leave():
                yield sys.stdout
                sys.stdout.flush()
            return
        from ibscan.results.store import write_bytes

        text = io.StringIO()
        yield text
        write_bytes(text.getvalue().encode(), self.target)
        self.notice(f"written to {self.target}")

    @contextmanager
    def progress(self) -> Iterator[Reporting]:
        """Yield a reporter, and remove its progress line at the end."""
        with contextlib.closing(Reporting(self)) as reporting:
            yield reporting


@dataclass
class Reporting:
    """Print notices and progress on standard error."""

    output: Output
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _bar: Progress | None = None

    def notice(self, sentence: str) -> None:
        """Print a sentence, unless quiet."""
        self.output.notice(sentence)

    def problem(self, sentence: str) -> None:
        """Print a sentence, quiet or not."""
        say(sentence)

    def started(self, total: int) -> None:
        """Open the progress line, unless there is nothing to do."""
        from ibscan.views.progress import progress

        self.close()  # each poll of a folder that is followed starts one
        mode = "off" if self.output.quiet or not total else self.output.progress_mode
        self._bar = self._opened.enter_context(progress(total, stream=sys.stderr, mode=mode))

    def advanced(self, name: str) -> None:
        """Count one more."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.advance(name)

    def working(self, hand: Hand) -> None:
        """Show what is in hand."""
        if self._bar is not None:
            self._bar.hand = hand

    def close(self) -> None:
        """Remove the progress line."""
        self._opened.close()


def output_for(options: Mapping[str, Any], formats: Collection[str] = FORMATS) -> Output:
    """Return how to print, from a command's options.

    Args:
        options: Of the command, by name.
        formats: Those that the command has.

    Raises:
        UsageError: Options contradict each other, or a file's end is no format's.
    """
    # Of scans, `output` is the result itself.
    target: Path | None = options.get("output") if "result" in options else None
    variables = tuple(options.get("variable") or ())
    full, summary, curve = (options.get(name, False) for name in ("full", "summary", "curve"))
    typed = [flag for flag, given in (("--summary", summary), ("--full", full), ("--curve", curve)) if given]
    typed += [f"--variable {' '.join(variables)}"] if variables else []
    if len(typed) > 1:
        raise UsageError(f"{' and '.join(typed)}: each says alone what is shown; give one of them.")
    return Output(
        _format(options, formats, target),
        options.get("units", "nats"),
        options.get("every", False),
        variables,
        curve,
        full,
        summary,
        tuple(options.get("beside") or ()),
        options["color"],
        options["quiet"],
        options["progress"],
        target,
    )


def _format(options: Mapping[str, Any], formats: Collection[str], target: Path | None) -> str:
    """Return the format that is typed, else that of the file's end; else tables on a terminal and tsv elsewhere."""
    typed = "jsonl" if options["json"] else str(options["format"])
    if typed != "auto":
        return typed
    if target is None:
        return "table" if "table" in formats and sys.stdout.isatty() else "tsv"
    ends = {FORMATS[name]: name for name in formats}
    found = ends.get(target.suffix.lower())
    if found is None:
        raise UsageError(f"-o {target}: expected a name that ends in {', '.join(ends)}, or --format.")
    return found
