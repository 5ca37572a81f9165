"""Show progress and notices of a scan that was asked to: a bar in notebooks, a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ibscan.core.hand import Hand
from ibscan.engine.request import Reporter, Silent
from ibscan.face.wording import in_python
from ibscan.views.console import escaped
from ibscan.views.notebook import Bar, in_notebook, notebook_bar
from ibscan.views.progress import Progress, progress

__all__ = ["reporting"]


@contextmanager
def reporting(progress: bool, given: Mapping[str, Any]) -> Iterator[Reporter]:
    """Yield a reporter: silent, or one that shows progress and notices on standard error, in Python's words."""
    if not progress:
        yield Silent()
        return
    with contextlib.closing(_Shown(given)) as shown:
        yield shown


@dataclass
class _Shown:
    """Shows what a scan reports; `given` are the options as passed."""

    given: Mapping[str, Any]
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _bar: Bar | Progress | None = None

    def notice(self, sentence: str) -> None:
        print(f"ibscan: {escaped(in_python(sentence, self.given))}", file=sys.stderr)

    def problem(self, sentence: str) -> None:
        self.notice(sentence)

    def started(self, total: int) -> None:
        self.close()  # each poll of a folder that is followed starts one
        if total:
            enter = self._opened.enter_context
            if in_notebook():
                self._bar = enter(notebook_bar(total))
            else:
                self._bar = enter(progress(total, stream=sys.stderr, mode="on"))

    def advanced(self, name: str) -> None:
        if self._bar is not None:
            self._bar.advance(name)

    def working(self, hand: Hand) -> None:
        if isinstance(self._bar, Progress):
            self._bar.hand = hand

    def close(self) -> None:
        self._opened.close()
