"""How a run shows itself: facts in ten lines, the summary as text, and both as HTML for notebooks."""

from __future__ import annotations

import html
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.core.result import Result
from ibscan.core.text import listed
from ibscan.errors import NothingMatched
from ibscan.results.coverage import failures
from ibscan.views.console import console, escaped
from ibscan.views.summary import ROWS, summary_rows
from ibscan.views.tables import tables
from ibscan.views.view import View

__all__ = ["Summary", "facts", "facts_html", "facts_text"]

_MOST_NAMED, _WIDEST = 4, 100
# Columns of a summary where there is no terminal.
_WIDTH = 120
# Notebooks set every cell to the right, which suits numbers alone.
_LEFT = ' style="text-align: left"'


@dataclass(frozen=True, repr=False, eq=False)
class Summary:
    """What every quantity did in every layer: `rows` for programs, text where it is printed, a table in notebooks.

    `rows` are those of `ibscan show --summary --format jsonl`: numbers as they are, None where there is none.
    """

    result: Result
    units: str
    rows: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        stream, width = io.StringIO(), shutil.get_terminal_size((_WIDTH, 24)).columns
        screen = console(stream, color="never", width=width)
        for table in tables(self.result, units=self.units, summary=True, width=width):
            screen.print(table)
        return stream.getvalue().strip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _table(ROWS, [[row[name] for name in ROWS] for row in self.rows])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def facts(result: Result, output: Path | None) -> list[tuple[str, str]]:
    """Return what was measured, of what and where, as at most nine labels and texts, escaped for one line each."""
    attrs, view = result.attrs, View(result, "nats", every=True, width=1, unicode=True)
    axis, labels = view.axis
    layers = [str(name) for name in result["layer"].values.tolist()]
    rows = max((int(result[name].attrs.get("rows", 0)) for name in result.quantities), default=0)
    span = f"{view.size}, {axis} {labels[0]} to {labels[-1]}" if labels else "none"
    skipped, failed = json.loads(attrs.get("skipped", "{}")), failures(result)
    left = [f"{len(skipped)} checkpoints skipped"] if skipped else []
    left += [f"{failed} cells could not be measured"] if failed else []
    known = result.settings.get("measures")
    measures = sorted(known) if isinstance(known, dict) else []  # a foreign file may have anything there
    found = [
        ("checkpoints", span),
        ("model", str(attrs.get("model", "unknown"))),
        ("layers", f"{len(layers)}: {listed(layers, _MOST_NAMED)}"),
        ("probe", str(attrs.get("probe", "unknown")).removeprefix("probe=") + (f", {rows} rows" if rows else "")),
        (
            "measured",
            f"{len(result.quantities)} quantities" + (f": {listed(measures, 3)}" if measures else ""),
        ),
        ("settings", f"seed {attrs.get('seed', '?')}, {result.settings.get('dtype', '?')}, {attrs.get('device', '?')}"),
        ("status", "; ".join(left) or ("complete" if attrs.get("complete") else "not complete")),
        ("made", f"{attrs.get('created_at', '?')} by ibscan {attrs.get('ibscan_version', '?')}"),
        ("file", "none yet; run.to_hdf5(path) writes one" if output is None else str(output)),
    ]
    return [(label, _clipped(escaped(text))) for label, text in found]


def facts_text(found: Iterable[tuple[str, str]]) -> str:
    """Return facts as lines below a head."""
    return "\n".join(["<ibscan.Run>", *(f"{label:<12}{text}" for label, text in found)])


def facts_html(result: Result, output: Path | None) -> str:
    """Return facts and the summary as HTML. Names from files are escaped."""
    about = "".join(f"<tr>{_head(label)}{_cell(text)}</tr>" for label, text in facts(result, output))
    try:
        summary = Summary(result, "nats", summary_rows(result, units="nats"))._repr_html_()
    except NothingMatched:
        summary = ""
    return f"<table>{about}</table>{summary}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    heads = "".join(map(_head, head))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _head(text: str) -> str:
    return f"<th{_LEFT}>{html.escape(text)}</th>"


def _cell(cell: Any) -> str:  # noqa: ANN401 - a number, text or None
    if isinstance(cell, float | np.floating):
        return f"<td>{cell:.4g}</td>"
    return f"<td{_LEFT}>{'' if cell is None else html.escape(escaped(str(cell)))}</td>"


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 4]} ..."
