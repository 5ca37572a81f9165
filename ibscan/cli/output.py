"""Print results on standard output, as tables or rows, and everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ibscan.errors import UsageError

if TYPE_CHECKING:
    from ibscan.core.result import Result
    from ibscan.views.progress import Progress

__all__ = ["Output", "output_for", "say"]

_LONGEST = 10_000


def say(sentence: str) -> None:
    """Print one line on standard error, in its encoding, with names from files escaped."""
    from ibscan.views.console import escaped

    stream = sys.stderr
    text = escaped(sentence)
    if len(text) > _LONGEST:  # a name from a file may be megabytes long; the remedy stands at the end
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    line = f"ibscan: {text}\n"
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Standard error may be full or closed, which must not stop a measurement.
    with contextlib.suppress(OSError):
        stream.write(line.encode(encoding, "replace").decode(encoding))
        stream.flush()


@dataclass(frozen=True)
class Output:
    """How a command prints; `format` is table, tsv, csv or jsonl, never auto."""

    format: str
    units: str
    every: bool
    variable: str | None
    curve: bool
    full: bool
    summary: bool
    beside: tuple[str, ...]
    color: str
    quiet: bool
    progress_mode: str

    def notice(self, sentence: str) -> None:
        """Print a sentence on standard error, unless quiet."""
        if not self.quiet:
            say(sentence)

    def result(self, result: Result) -> None:
        """Print a result's tables or rows on standard output."""
        from ibscan.views.console import reader_may_leave

        with reader_may_leave():
            self._result(result)
            sys.stdout.flush()

    def _result(self, result: Result) -> None:
        if self.summary and self.format != "table":
            from ibscan.views.summary import ROWS, summary_rows

            self._rows(ROWS, summary_rows(result, units=self.units))
            return
        if self.format != "table":
            from ibscan.results.export import rows, write_rows

            if self.curve:
                from ibscan.results.select import selected
                from ibscan.views.curve import curves

                result = selected(result, variables=curves(result))
            write_rows(rows(result, units=self.units, variable=self.variable), self.format, sys.stdout)
            return
        from ibscan.views.console import console, unicode_ok
        from ibscan.views.tables import tables

        screen = console(sys.stdout, color=self.color)
        for table in tables(
            result,
            units=self.units,
            every=self.every,
            variable=self.variable,
            curve=self.curve,
            full=self.full,
            summary=self.summary,
            beside=self.beside,
            width=screen.width,
            unicode=unicode_ok(sys.stdout),
        ):
            screen.print(table)

    def rows(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Print rows that are not a result's on standard output."""
        from ibscan.views.console import reader_may_leave

        with reader_may_leave():
            self._rows(columns, rows)
            sys.stdout.flush()

    def _rows(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        if self.format != "table":
            from ibscan.results.export import write_rows

            write_rows(rows, self.format, sys.stdout, columns)
            return
        from ibscan.views.console import console
        from ibscan.views.listing import listing

        console(sys.stdout, color=self.color).print(listing(columns, rows))

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

    def close(self) -> None:
        """Remove the progress line."""
        self._opened.close()


def output_for(options: Mapping[str, Any]) -> Output:
    """Return how to print, from a command's options."""
    form = "jsonl" if options["json"] else options["format"]
    if form == "auto":
        form = "table" if sys.stdout.isatty() else "tsv"
    variable = options.get("variable")
    full, summary, curve = (options.get(name, False) for name in ("full", "summary", "curve"))
    typed = [flag for flag, given in (("--summary", summary), ("--full", full), ("--curve", curve)) if given]
    typed += [f"--variable {variable}"] if variable is not None else []
    if len(typed) > 1:
        raise UsageError(f"{' and '.join(typed)}: each says alone what is shown; give one of them.")
    return Output(
        form,
        options.get("units", "nats"),
        options.get("every", False),
        variable,
        curve,
        full,
        summary,
        tuple(options.get("beside") or ()),
        options["color"],
        options["quiet"],
        options["progress"],
    )
