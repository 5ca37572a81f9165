"""A progress bar in notebooks: HTML of the browser's own bar, in one output that is shown anew in place."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ibscan.views.progress import pace

__all__ = ["Bar", "in_notebook", "notebook_bar"]


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which shows HTML."""
    # rich would need widgets, which are a library of their own; a kernel itself shows HTML.
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return bool(getattr(shell, "kernel", None)) or type(shell).__module__.startswith("google.colab")


@dataclass
class Bar:
    """Counts checkpoints; made by `notebook_bar`. `show` takes the HTML of the bar as it stands."""

    total: int
    show: Callable[[str], None]
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def advance(self, name: str) -> None:
        """Count one more checkpoint, the one of that name."""
        self.done += 1
        self.show(self._html(f"{pace(self.done, self.total, time.monotonic() - self.began)} ({name})"))

    def begin(self) -> None:
        """Show the bar, empty."""
        self.show(self._html(""))

    def end(self) -> None:
        """Show the bar as it ended, without what is left."""
        self.show(self._html(""))

    def _html(self, said: str) -> str:
        return (
            f'<progress value="{self.done}" max="{self.total}"></progress> '
            f"{self.done}/{self.total} checkpoints {html.escape(said)}"
        )


@contextmanager
def notebook_bar(total: int, show: Callable[[str], None] | None = None) -> Iterator[Bar]:
    """Show a bar in the notebook's output while the block runs; it stays where it ended.

    Args:
        total: Checkpoints to do.
        show: Takes the HTML each time; None shows it in the output of the cell.

    Yields:
        The bar, whose `advance(name)` is to be called for each finished checkpoint.
    """
    bar = Bar(total, show or _shown_in_place())
    bar.begin()
    try:
        yield bar
    finally:
        bar.end()


def _shown_in_place() -> Callable[[str], None]:
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))
