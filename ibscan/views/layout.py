"""Lay out tables: checkpoints, parameters or layers down, marks explained, notes below.

Shapes: C checkpoints, L layers, R rows of the table. The makers of tables (`by_...`) take the title as parts (what the
table is of, and under what terms), and notes to print below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from rich.console import Group as Stack
from rich.text import Text

from ibscan.core.estimate import Status
from ibscan.core.quantity import BINNING, NOISE, REL_NOISE
from ibscan.views.cells import formatted, mark
from ibscan.views.column import Column, Course, course_of, is_empty
from ibscan.views.grid import TextColumn, TextGroup, panels
from ibscan.views.metrics import metric_columns
from ibscan.views.view import View, name_of

__all__ = [
    "HEADS",
    "Sheet",
    "Shown",
    "Table",
    "by_checkpoint",
    "by_course",
    "by_layer",
    "by_parameter",
    "explained",
    "sheet",
]

_TREND = 8
_OPEN = "]?"
_OPEN_LEGEND = (
    "v [a, b]? the bracket did not close within the budget: the true value is between a and b (95 %), v is only a "
    "number between them"
)
HEADS: Mapping[str, str] = {
    "epoch": "Epoch of the checkpoint.",
    "step": "Optimiser step of the checkpoint.",
    "checkpoint": "Name of the checkpoint, where epoch or step is not known of all.",
    "accuracy": "Share of probe rows whose label the network predicts.",
    "loss": "Mean cross entropy on the probe or the metric of that name, where there is no accuracy.",
    "layer": "Name of the layer, in the order of first call.",
    "trend": "Course over all checkpoints, on one scale: from 0 to the units of the layer (local rank), to H(X) "
    "(I(X;T)), to 1 (accuracy), else to the largest value of all layers; flat where the range is within errors; "
    "saturated values and open brackets are gaps.",
    "ε": "Threshold: singular values above it are counted.",
    "eps": "Threshold: singular values above it are counted.",
    **{dimension.label: f"{dimension.meaning}." for dimension in (NOISE, REL_NOISE, BINNING)},
    "rms": "Noise is that many times the layer's root-mean-square distance from its mean.",
    "bins": "Number of equal cells over the range of every unit's activation.",
    "width": "Width of the cells every unit's activation is cut into.",
}


@dataclass(frozen=True)
class Sheet:
    """A table as laid out: its title, columns, lines above rows by the row's index, and the notes below.

    Consoles print it in panels of `width` characters; a page reads its columns.
    """

    title: str
    lead: tuple[TextColumn, ...]
    groups: tuple[TextGroup, ...]
    sections: Mapping[int, str]
    notes: tuple[str, ...]
    width: int
    unicode: bool

    def __rich__(self) -> Stack:
        return Stack(
            Text(self.title, style="bold yellow", overflow="fold"),
            *panels(self.lead, self.groups, self.sections, width=self.width, unicode=self.unicode),
            *(Text(note, style="dim", overflow="fold") for note in self.notes),
            Text(""),
        )


class Shown(Enum):
    """When a table is shown."""

    USUAL = "usual"  # without --full: it says in brief what the tables of FULL say
    FULL = "full"  # with --full alone
    ALWAYS = "always"


@dataclass(frozen=True)
class Table:
    """Specify a table: its title, its own column heads with one sentence each, and how its sheets are made.

    `sheets` makes what is printed, by `by_checkpoint`, `by_layer` or `by_parameter`; nothing where nothing was
    measured. `groups` explains the names of groups of columns, where these are no layers. `shown` says when it is
    shown. `courses` are those of its numbers that the summary judges, the leading ones first.
    """

    title: str
    heads: Mapping[str, str]
    sheets: Callable[[View], Iterable[Sheet]]
    groups: Mapping[str, str] = field(default_factory=dict)
    shown: Shown = Shown.FULL
    courses: Callable[[View], Iterable[Course]] = lambda view: ()  # noqa: ARG005


def by_checkpoint(
    view: View,
    title: Sequence[str],
    columns: Sequence[Column],
    notes: Sequence[str],
    *,
    widths: bool = False,
    skip_empty: bool = False,
    layers: Sequence[int] | None = None,
) -> Sheet:
    """Lay out a table with checkpoints down, thinned, and under every layer the columns; the trend below.

    Columns are (C, L) or (C,). `widths` shows the units of every layer; `skip_empty` leaves out columns of a layer in
    which nothing was measured, but for one; `layers` lists the indices of those shown, None for all.
    """
    rows = view.shown()
    groups = [
        TextGroup(name, tuple(_text(view, one, rows) for one in own))
        for layer, (name, own) in enumerate(_layers(view, columns, widths=widths, skip_empty=skip_empty))
        if layers is None or layer in layers
    ]
    thinning = f"{len(rows)} of {view.size} checkpoints shown (--all shows every one); trend over all."
    lead, below = _lead(view, rows), [*notes, *([thinning] if len(rows) < view.size else [])]
    return sheet(view, title, lead, groups, below, marked=lead[1:])


def by_course(view: View, title: Sequence[str], courses: Sequence[Course], notes: Sequence[str], most: int) -> Sheet:
    """Lay out a table with at most so many checkpoints down, and under every course its layers; no trend."""
    rows = view.shown(most)
    names = [name_of(name, view.unicode) for name in view.result["layer"].values.tolist()]
    groups = []
    for course in courses:
        own = [(name, course.column.of(slice(None), layer)) for layer, name in enumerate(names)]
        texts = [replace(_text(view, one.of(rows)), heads=(name,)) for name, one in own if not is_empty(one)]
        groups.append(TextGroup(" ".join(course.name), tuple(texts)))
    lead = [replace(one, trend="") for one in _lead(view, rows)]
    thinning = f"{len(rows)} of {view.size} checkpoints shown (--all shows every one)."
    below = [*notes, *([thinning] if len(rows) < view.size else [])]
    return sheet(view, title, lead, groups, [" ".join(below)] if below else [], marked=lead[1:])


def by_parameter(
    view: View,
    title: Sequence[str],
    rows: tuple[str, Sequence[str]],
    columns: Sequence[Column],
    notes: Sequence[str],
    *,
    widths: bool = False,
) -> Sheet:
    """Lay out a table with the values of a parameter down, and under every layer the columns.

    `rows` are the parameter's name and R labels; columns are (R, L). `widths` shows the units of every layer.
    """
    name, labels = rows
    # "trend" keeps the column as wide as in other tables; no trend is drawn, as rows are no course of training.
    lead = TextColumn((name,), tuple(labels), "trend" if len(labels) > 1 else "")
    groups = [
        TextGroup(layer, tuple(_text(view, one) for one in own))
        for layer, own in _layers(view, columns, widths=widths, skip_empty=False)
    ]
    return sheet(view, title, [lead], groups, notes)


def by_layer(
    view: View,
    title: Sequence[str],
    groups: Iterable[tuple[str, Sequence[Column]]],
    notes: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
) -> Sheet:
    """Lay out a table of the last checkpoint, which its title names, with layers down.

    `groups` are names with columns (C, L); `layers` the indices of those shown, None for all.
    """
    names = view.result["layer"].values.tolist()
    chosen = list(range(len(names))) if layers is None else list(layers)
    lead = TextColumn(("layer",), tuple(name_of(names[layer], view.unicode) for layer in chosen))
    texts = [TextGroup(name, tuple(_text(view, one.of(-1, chosen)) for one in own)) for name, own in groups]
    axis, labels = view.axis
    title = (f"{title[0]} at {axis} {labels[-1]}", *title[1:])
    return sheet(view, title, [lead], texts, notes, marked=_lead(view, view.shown())[1:])


def explained(heads: Mapping[str, str]) -> str:
    """Join heads and their meanings into one note."""
    return " ".join(f"{head}: {meaning}" for head, meaning in heads.items())


def _layers(
    view: View, columns: Sequence[Column], *, widths: bool, skip_empty: bool
) -> Iterable[tuple[str, Sequence[Column]]]:
    """Yield the name of every layer with its columns (R,)."""
    names = view.result["layer"].values.tolist() if columns[0].values.ndim == 2 else [None]
    for layer, name in enumerate(names):
        own = columns if name is None else [one.of(slice(None), layer) for one in columns]
        if skip_empty:
            own = [one for one in own if not is_empty(one)] or own[:1]
        title = "" if name is None else name_of(name, view.unicode)
        yield title + (f" ({view.result['layer_width'].values[layer]})" if widths else ""), own


def _lead(view: View, rows: Sequence[int]) -> list[TextColumn]:
    """Return the leading columns: the axis of the checkpoints shown, accuracy on the probe or loss, and metrics."""
    name, labels = view.axis
    columns = [TextColumn((name,), tuple(labels[row] for row in rows), "trend" if view.size > 1 else "")]
    return columns + [_text(view, metric, rows) for metric in metric_columns(view)]


def _text(view: View, one: Column, rows: Sequence[int] | None = None) -> TextColumn:
    """Format a column (R,): all rows without a trend, or the rows given with the trend over all."""
    shown = one if rows is None else one.of(list(rows))
    texts = formatted(shown.values, shown.statuses, unicode=view.unicode, ends=shown.ends)
    if rows is None:
        return TextColumn(one.heads, tuple(texts))
    course = course_of(one, max(_TREND, *(len(text) for text in texts)), unicode=view.unicode)
    return TextColumn(one.heads, tuple(texts), course)


def sheet(
    view: View,
    title: Sequence[str],
    lead: Sequence[TextColumn],
    groups: Sequence[TextGroup],
    notes: Sequence[str],
    marked: Sequence[TextColumn] = (),
    sections: Mapping[int, str] | None = None,
) -> Sheet:
    """Return a table: title, columns, legend of the marks in groups and `marked` columns, and notes.

    `sections` are lines above rows, by the index of the row.
    """
    separator = " · " if view.unicode else " - "
    return Sheet(
        separator.join(part for part in title if part),
        tuple(lead),
        tuple(groups),
        sections or {},
        (*_legend(view, marked, groups), *notes),
        view.width,
        view.unicode,
    )


def _legend(view: View, marked: Sequence[TextColumn], groups: Sequence[TextGroup]) -> list[str]:
    """Explain the marks that occur."""
    cells = [text.strip() for one in (*marked, *(c for group in groups for c in group.columns)) for text in one.cells]
    seen: list[str] = []
    for status in Status:
        sign = mark(status, unicode=view.unicode)
        alone = status is Status.NOT_MEASURED
        if sign and any(text == sign or (not alone and text.endswith(sign)) for text in cells):
            seen.append(f"{sign} {status.legend}")
        if status is Status.UNRESOLVED and any(text.endswith(_OPEN) for text in cells):
            seen.append(_OPEN_LEGEND)
    return ["; ".join(seen)] if seen else []
