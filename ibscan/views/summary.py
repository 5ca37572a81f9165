"""The summary: what every course of the result did, a row a layer, and whether that exceeds its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibscan import views
from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.errors import NothingMatched
from ibscan.views.cells import formatted
from ibscan.views.column import Column, Course, course_of, is_empty
from ibscan.views.grid import TextColumn, TextGroup, panels
from ibscan.views.layout import Sheet, Shown, Table, sheet
from ibscan.views.local_rank import suggested_thresholds
from ibscan.views.scale import telling_noises
from ibscan.views.verdict import WORDS, Verdict, errors_of, judged
from ibscan.views.view import View, information_unit, name_of

__all__ = ["NOTHING_SUMMARISED", "ROWS", "TABLE", "summary_rows"]

NOTHING_SUMMARISED = (
    "--summary: the result holds no local rank, no information about the input and no clustering. Run ibscan scan on "
    "its checkpoints."
)
ROWS = ("quantity", "layer", "first", "peak", "last", "since", "change", "error", "beyond", "verdict")
_TREND = 8
_CHANGE = (
    "since: last {axis} within error of the peak (expands: of the lowest). change: from the peak (the lowest) to last, "
    "{sign} half of its 95 % interval, wide enough for all checkpoints compared with the last at once. beyond: whether "
    "it exceeds that."
)
_BEYOND = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class _Row:
    """One layer of a course: its name, its numbers (C,), and what they did."""

    layer: str
    column: Column
    verdict: Verdict


def _judged(view: View) -> Iterator[tuple[Course, list[_Row]]]:
    """Yield every course with a row for each layer of which anything was measured."""
    layers = view.result["layer"].values.tolist()
    for table in views.specs():
        for course in table.courses(view):
            every = [course.column.of(slice(None), layer) for layer in range(len(layers))]
            named = zip(layers, every, strict=True)
            rows = [_Row(layer, one, _verdict(one)) for layer, one in named if not is_empty(one)]
            if rows:
                yield course, rows


def _verdict(one: Column) -> Verdict:
    return judged(one.values, one.statuses, errors_of(one.values, one.statuses, one.stderr, one.ends))


def _sheets(view: View) -> Iterator[Sheet]:
    found = list(_judged(view))
    if not found:
        return
    axis, _ = view.axis
    sections: dict[int, str] = {}
    below: list[_Row] = []
    for course, own in found:
        sections[len(below)] = " ".join(course.name)
        below += own
    words = {row.verdict.word for row in below}
    notes = [
        " ".join(f"{word.value}: {text}." for word, text in WORDS.items() if word in words),
        _CHANGE.format(axis=axis, sign=_sign(view)),
        *suggested_thresholds(view),
        *telling_noises(view),
    ]
    lead = [TextColumn(("layer",), tuple(name_of(row.layer, view.unicode) for row in below))]
    columns = _columns(view, [own for _, own in found])
    # The trend is left out where it is empty, and where it would make a second panel.
    if (
        not any(columns[0].cells)
        or len(panels(lead, [TextGroup("", tuple(columns))], sections, width=view.width, unicode=view.unicode)) > 1
    ):
        columns = columns[1:]
    title = (TABLE.title, information_unit(view))
    yield sheet(view, title, lead, [TextGroup("", tuple(columns))], notes, sections=sections)


def _columns(view: View, courses: Iterable[list[_Row]]) -> list[TextColumn]:
    axis, labels = view.axis
    cells: dict[tuple[str, ...], list[str]] = {
        head: []
        for head in (
            ("trend",),
            ("first",),
            ("peak",),
            ("last",),
            ("since", axis),
            ("change",),
            ("beyond",),
            ("verdict",),
        )
    }
    for rows in courses:
        trends = [course_of(row.column, _TREND, unicode=view.unicode) for row in rows]
        three = _values(rows, unicode=view.unicode)
        since = ["" if row.verdict.since is None else labels[row.verdict.since] for row in rows]
        changes = [_change(row.verdict, _sign(view)) for row in rows]
        beyond = [_BEYOND[row.verdict.exceeds] for row in rows]
        said = [row.verdict.word.value for row in rows]
        for own, more in zip(cells.values(), (trends, *three, since, changes, beyond, said), strict=True):
            own += more
    return [TextColumn(head, tuple(own)) for head, own in cells.items()]


def _values(rows: list[_Row], *, unicode: bool) -> list[list[str]]:
    """Format first, peak and last of the rows of one course alike, with their marks; blank where there is none."""
    places = [(row, at) for row in rows for at in (row.verdict.first, row.verdict.peak, row.verdict.last)]
    values = [math.nan if at is None else float(row.column.values[at]) for row, at in places]
    codes = [Status.OK if at is None else _status(row.column, at) for row, at in places]
    texts = formatted(np.array(values), np.array(codes), unicode=unicode)
    shown = ["" if at is None else text for text, (_, at) in zip(texts, places, strict=True)]
    return [shown[place::3] for place in range(3)]


def _status(one: Column, at: int) -> Status:
    return Status.OK if one.statuses is None else Status(int(one.statuses[at]))


def _sign(view: View) -> str:
    return "±" if view.unicode else "+-"


def _change(verdict: Verdict, sign: str) -> str:
    """Return a change and its error, both to two digits of the error."""
    change, error = verdict.change, verdict.error
    if math.isnan(change):
        return ""
    if not math.isfinite(error) or not math.isfinite(change):
        return f"{change:+.3g} {sign} ?"
    if error == 0:
        return f"{change:+.4g}" if change else "0"
    digits = 1 - math.floor(math.log10(error))
    if not 0 <= digits <= 4:
        return f"{change:+.3g} {sign} {error:.2g}"
    return f"{change:+.{digits}f} {sign} {error:.{digits}f}"


def summary_rows(result: Result, *, units: str) -> list[dict[str, Any]]:
    """Return the rows of the summary, in the columns of `ROWS`; numbers as they are, None where there is none.

    Args:
        result: Any.
        units: `nats`, or `bits` to convert what is in nat.

    Raises:
        UsageError: There is no such unit.
        NothingMatched: There is nothing to summarise.
    """
    result.check_shown(units)
    view = View(result, units, every=True, width=1, unicode=False)
    labels = result["checkpoint_name"].values.tolist() if view.axis_values is None else view.axis[1]
    rows = [_as_row(course, row, labels) for course, own in _judged(view) for row in own]
    if not rows:
        raise NothingMatched(NOTHING_SUMMARISED)
    return rows


def _as_row(course: Course, row: _Row, labels: list[str]) -> dict[str, Any]:
    found, values = row.verdict, row.column.values
    numbers = (*(math.nan if at is None else values[at] for at in (found.first, found.peak, found.last)),)
    since = None if found.since is None else labels[found.since]
    cells = (
        " ".join(course.name),
        row.layer,
        *numbers,
        since,
        found.change,
        found.error,
        _BEYOND[found.exceeds] or None,
    )
    known = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in (*cells, found.word.value)]
    return dict(zip(ROWS, known, strict=True))


TABLE = Table(
    "summary",
    {
        "first": "Value at the first checkpoint that was measured.",
        "peak": "Largest value that is resolved.",
        "last": "Value at the last checkpoint that was measured.",
        "since": "Last checkpoint within error of the peak, after which it falls (of the lowest value, after which it "
        "rises, where it expands).",
        "change": "From the peak to the last value, or from the lowest where it expands or the last is the peak; with "
        "half of its 95 % interval, errors taken as independent, wide enough for all checkpoints compared at once.",
        "beyond": "Whether the change exceeds its error; missing where that is not known.",
        "verdict": f"What it did: {', '.join(word.value for word in WORDS)}; each of these words is explained.",
    },
    _sheets,
    shown=Shown.ALWAYS,
)
