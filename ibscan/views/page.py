"""Pages of the guide and explanations of single words, laid out on a screen."""

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
# Without the backgrounds of rich's own, which suit one kind of terminal only.
_STYLES = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold yellow", "markdown.h2": "bold yellow"})
_COMMENT = re.compile(r"<!--.*?-->\n", re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([a-z]+)\.md\)")


def print_page(screen: Console, text: str) -> None:
    """Print Markdown; a link to another page becomes the command that prints it.

    Args:
        screen: Where to.
        text: A page of the guide, or a section of one.
    """
    text = _COMMENT.sub("", _LINK.sub(r"`ibscan explain \1`", text))
    with screen.use_theme(_STYLES):
        screen.print(
            Markdown(text, code_theme="ansi_dark", hyperlinks=False),
            width=min(screen.width, _WIDEST),
        )


def print_facts(screen: Console, name: str, kind: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print what is known of one word: its name and kind, and below them labels and what they say in two columns.

    Args:
        screen: Where to.
        name: The word.
        kind: What kind of thing it is.
        facts: Labels and texts.
    """
    grid = Table.grid(padding=(0, 2))
    for label, text in facts:
        grid.add_row(Text(f"  {label}", style="dim", overflow="fold"), Text(text, overflow="fold"))
    screen.print(Text.assemble((name, "bold yellow"), " · ", kind, overflow="fold"))
    screen.print(grid, width=min(screen.width, _WIDEST))
    screen.print()
