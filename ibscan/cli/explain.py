"""`ibscan explain`: what a name means, in the terminal."""

from __future__ import annotations

import re
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ibscan.cli.glossary import Entry, explained, near, pages, sections
from ibscan.errors import UsageError
from ibscan.views.console import console, is_terminal, reader_may_leave, unicode_ok

__all__ = ["explain"]

_HOW = (
    "ibscan explain NAME explains any variable of a result file (mi_readout_xt, mi_readout_xt_se), option (--noise), "
    "word in the head of a table (network, trend), status or mark (saturated, '*'), column of rows, dimension, "
    "coordinate, verb, exit code (4), or one of these topics:"
)
# Longer lines are hard to read.
_WIDEST = 100
# Without the backgrounds of rich's own, which suit one kind of terminal only.
_STYLES = {"markdown.code": "bold cyan", "markdown.h1": "bold yellow", "markdown.h2": "bold yellow"}
_COMMENT = re.compile(r"<!--.*?-->\n", re.DOTALL)
_PAGE = re.compile(r"\[[^\]]+\]\(([a-z]+)\.md\)")


def explain(name: str) -> int:
    """Print what a name means on standard output: laid out on a terminal, plain text and Markdown in a pipe.

    Args:
        name: A word of ibscan, or the name or a heading of a page of the guide; empty to list the topics.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: Nothing is called so; the message has the nearest names.
    """
    texts, found = _meanings(name)
    with reader_may_leave():
        # Laid out for a person; a program, or a terminal without box drawing, gets the text as it is.
        screen = console(sys.stdout) if is_terminal(sys.stdout) and unicode_ok(sys.stdout) else None
        if screen is not None:
            screen.width = min(screen.width, _WIDEST)
        for text in texts:
            _print_page(text, screen)
        for entry in found:
            _print_entry(entry, screen)
        sys.stdout.flush()
    return 0


def _meanings(name: str) -> tuple[list[str], list[Entry]]:
    """Return the pages and the entries that explain a name."""
    if not name:
        return [], [Entry(("ibscan explain",), "how to ask", (("", _HOW), *_topics()), "")]
    key = name.strip().removesuffix(".md").casefold()
    if key in pages():
        return [pages()[key]], []
    texts, found = [], explained(name)
    if not found:
        texts = [part for heading, (_, part) in sections().items() if heading.casefold() == key]
    if not texts and not found:
        nearest = near(name)
        meant = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        raise UsageError(f"explain {name!r}: nothing is called so{meant}. ibscan explain lists the topics.")
    return texts, found


def _topics() -> list[tuple[str, str]]:
    return [(topic, text.partition("\n")[0].removeprefix("# ")) for topic, text in pages().items()]


def _print_page(text: str, screen: Console | None) -> None:
    if screen is None:
        sys.stdout.write(_encoded(text))
        return
    from rich.markdown import Markdown
    from rich.theme import Theme

    # Links between pages lead nowhere in a terminal; the command that prints the page does.
    text = _COMMENT.sub("", _PAGE.sub(r"`ibscan explain \1`", text))
    page = Markdown(text, code_theme="ansi_dark", hyperlinks=False)
    with screen.use_theme(Theme(_STYLES)):
        screen.print(page)


def _print_entry(entry: Entry, screen: Console | None) -> None:
    facts = [(label, text) for label, text in entry.facts if text]
    facts += [("more", f"ibscan explain {entry.page}")] if entry.page else []
    if screen is None:
        lines = [f"{entry.names[0]}: {entry.kind}", *(f"  {label}: {text}" for label, text in facts), ""]
        sys.stdout.write(_encoded("\n".join(lines) + "\n"))
        return
    screen.print(Text.assemble((entry.names[0], "bold yellow"), " · ", entry.kind, overflow="fold"))
    grid = Table.grid(padding=(0, 2))
    for label, text in facts:
        grid.add_row(Text(f"  {label}", style="dim", overflow="fold"), Text(text, overflow="fold"))
    screen.print(grid, Text(""))


def _encoded(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
