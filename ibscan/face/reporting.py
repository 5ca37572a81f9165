"""Show progress and notices of a scan that was asked to: a bar in notebooks, a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ibscan.engine.request import Reporter, Silent
from ibscan.face.wording import in_python
from ibscan.views.console import escaped
from ibscan.views.notebook import in_notebook, notebook_bar
from ibscan.views.progress import progress

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
    _advance: Callable[[str], None] | None = None

    def notice(self, sentence: str) -> None:
        print(f"ibscan: {escaped(in_python(sentence, self.given))}", file=sys.stderr)

    def problem(self, sentence: str) -> None:
        self.notice(sentence)

    def started(self, total: int) -> None:
        self.close()  # each poll of a folder that is followed starts one
        if total:
            enter = self._opened.enter_context
            if in_notebook():
                self._advance = enter(notebook_bar(total)).advance
            else:
                self._advance = enter(progress(total, stream=sys.stderr, mode="on")).advance

    def advanced(self, name: str) -> None:
        if self._advance is not None:
            self._advance(name)

    def close(self) -> None:
        self._opened.close()
