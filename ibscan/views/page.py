"""Print pages of the guide and explanations of single words on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

__all__ = ["print_facts", "print_page"]

# Longer lines are hard to read.
_WIDEST = 100
# rich's own styles have backgrounds that do not suit every terminal.
_STYLES = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold yellow", "markdown.h2": "bold yellow"})
_COMMENT = re.compile(r"<!--.*?-->\n", re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([a-z]+)\.md\)")


def print_page(screen: Console, text: str) -> None:
    """Print a page of the guide, or a section of one; a link to another page becomes the command that prints it."""
    text = _COMMENT.sub("", _LINK.sub(r"`ibscan explain \1`", text))
    with screen.use_theme(_STYLES):
        page = Markdown(text, code_theme="ansi_dark", hyperlinks=False)
        screen.print(page, width=min(screen.width, _WIDEST))


def print_facts(screen: Console, name: str, kind: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a name and its kind, and below them facts in two columns, labels and texts."""
    grid = Table.grid(padding=(0, 2))
    for label, text in facts:
        grid.add_row(Text(f"  {label}", style="dim", overflow="fold"), Text(text, overflow="fold"))
    screen.print(Text.assemble((name, "bold yellow"), " · ", kind, overflow="fold"))
    screen.print(grid, width=min(screen.width, _WIDEST))
    screen.print()
