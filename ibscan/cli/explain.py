"""`ibscan explain`: print what a name means."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from inspect import Parameter
from typing import Any

import typer

from ibscan.cli.commands import app
from ibscan.cli.glossary import Entry, explained, near, pages, sections
from ibscan.cli.options import taking
from ibscan.errors import UsageError
from ibscan.views.console import console, is_terminal, reader_may_leave, unicode_ok

__all__ = ["command", "explain"]

_HOW = (
    "ibscan explain NAME explains any variable of a result file (mi_readout_xt, mi_readout_xt_se), option (--noise), "
    "word in the head of a table (network, trend), status or mark (saturated, '*'), column of rows, dimension, "
    "coordinate, verb, exit code (4), or one of these topics:"
)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    name="explain",
    options_metavar="[NAME]",
    add_help_option=False,
)
@taking([Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)])
def command(context: typer.Context, **_: Any) -> int:  # noqa: ANN401 - -h and -V end before
    """What a name means: a variable, option, status, word in a table's head, exit code or topic of the guide.

    Examples:
      ibscan explain mi_readout_xt
      ibscan explain --noise
      ibscan explain statuses

    NAME: As it is typed or printed; without one the topics are listed.
    """
    # Not an argument of Typer's, whose validation library would take most of the time.
    return explain(" ".join(context.args))


def explain(name: str) -> int:
    """Print what a name means on standard output: laid out on a terminal, plain text and Markdown in a pipe.

    Args:
        name: A word of ibscan, or the name or a heading of a page of the guide; empty to list the topics.

    Raises:
        UsageError: There is no such name; the message has the nearest ones.
    """
    texts, found = _meanings(name)
    with reader_may_leave():
        # A program, or a terminal without box drawing, gets the text as it is.
        if is_terminal(sys.stdout) and unicode_ok(sys.stdout):
            _lay_out(texts, found)
        else:
            plain = "".join((*texts, *map(_plain, found)))
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            sys.stdout.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    return 0


def _meanings(name: str) -> tuple[list[str], list[Entry]]:
    """Return the pages and the entries that explain a name."""
    if not name:
        topics = ((topic, text.partition("\n")[0].removeprefix("# ")) for topic, text in pages().items())
        return [], [Entry(("ibscan explain",), "how to ask", (("NAME", _HOW), *topics), "")]
    key = name.strip().removesuffix(".md").casefold()
    if key in pages():
        return [pages()[key]], []
    texts, found = [], explained(name)
    if not found:
        parts = {heading.casefold(): part for heading, (_, part) in sections().items()}
        texts = [parts[key]] if key in parts else [part for heading, part in parts.items() if heading.startswith(key)]
    if not texts and not found:
        nearest = near(name)
        meant = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        raise UsageError(f"explain {name!r}: there is no such name{meant}. ibscan explain lists the topics.")
    return texts, found


def _lay_out(texts: Iterable[str], found: Iterable[Entry]) -> None:
    from ibscan.views.page import print_facts, print_page

    screen = console(sys.stdout)
    for text in texts:
        print_page(screen, text)
    for entry in found:
        print_facts(screen, entry.names[0], entry.kind, _facts(entry))


def _plain(entry: Entry) -> str:
    lines = (f"{entry.names[0]}: {entry.kind}", *(f"  {label}: {text}" for label, text in _facts(entry)), "")
    return "\n".join(lines) + "\n"


def _facts(entry: Entry) -> list[tuple[str, str]]:
    more = [("more", f"ibscan explain {entry.page}")] if entry.page else []
    return [(label, text) for label, text in entry.facts if text] + more
