"""What a figure shows, as numbers and words: panels, curves, axes and colours. Nothing here draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ibscan.core.records import Array
from ibscan.views.cells import Ends
from ibscan.views.view import View, thinned

__all__ = ["Axis", "Curve", "Figure", "Level", "Names", "Panel", "Picture", "Run", "Scale", "Told", "without_excess"]

_MOST_PANELS = 12


@dataclass(frozen=True)
class Run:
    """One result of those drawn, or the mean over `pooled` of them; `name` tells it from the others."""

    name: str
    view: View
    pooled: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis: what lies along it, `linear`, `log` or `symlog` (zero, then logarithmic), names for numbers, a unit."""

    name: str
    scale: str = "linear"
    names: tuple[str, ...] = ()
    unit: str = ""

    @property
    def label(self) -> str:
        """What stands beside the axis; empty where titles of panels say it."""
        return f"{self.name} / {self.unit}" if self.name and self.unit else self.name


@dataclass(frozen=True)
class Told:
    """Numbers (P,) of the points of a curve that a page tells of a point, with half widths of their intervals."""

    name: str
    values: Array
    half: Array | None = None
    unit: str = ""


@dataclass(frozen=True)
class Curve:
    """Points of one layer, checkpoint or quantity, in order.

    Args:
        label: What it belongs to.
        x: (P,) places; of a histogram (P + 1,) edges.
        y: (P,) values; NaN is a gap.
        shade: Index of a named colour, or a value on the colour scale.
        run: Index of the result it is from, which has a style of line.
        half: (P,) half widths of the band about it, or None.
        ends: Ends of brackets that did not close, NaN elsewhere; or None.
        status: (P,) codes, or None where there are none.
        tint: (P,) values on the colour scale, a colour each point; or None.
        mark: Index of its marker.
        steps: Whether it is a histogram.
        told: What a page tells of a point in place of its y.
    """

    label: str
    x: Array
    y: Array
    shade: float = 0.0
    run: int = 0
    half: Array | None = None
    ends: Ends | None = None
    status: Array | None = None
    tint: Array | None = None
    mark: int = 0
    steps: bool = False
    told: tuple[Told, ...] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as a ceiling."""

    y: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes: title, the variables it shows, curves, levels, and caps that the curves cannot exceed.

    `layer` is the one whose panel it is; empty where curves are named by theirs. `place` is its checkpoint's place on
    the axis of the series, where it is of one checkpoint.
    """

    title: str
    variables: tuple[str, ...]
    curves: tuple[Curve, ...]
    y: Axis
    levels: tuple[Level, ...] = ()
    caps: tuple[Curve, ...] = ()
    layer: str = ""
    place: float | None = None


@dataclass(frozen=True)
class Names:
    """Colours that stand for names, in an order (layers) or in none (quantities)."""

    names: tuple[str, ...]
    ordered: bool = True


@dataclass(frozen=True)
class Scale:
    """Colours that stand for numbers, on a colour bar; `ends` name its ends, in place of numbers."""

    label: str
    low: float
    high: float
    log: bool = False
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One figure: `kind` names the file it is declared in, `part` tells it from others of its kind.

    Args:
        kind: Name in `FIGURES`.
        part: The variable, where its kind makes a figure of each; else empty.
        title: Over all panels.
        panels: In order, row by row.
        x: The axis that all panels share.
        colours: What colours stand for.
        runs: Names of the results, in the order of `Curve.run`.
        band: What the band about a curve is; empty where there is none.
        marks: Names of markers, where these say something.
        columns: Panels side by side.
        share_x: Whether `all` panels have the same range of x, those of a `row`, or none.
        share_y: Whether panels have the same y axis.
        notes: Below the panels.
        places: Where checkpoints lie on the axis of the series, and their labels, ascending, where a page has a slider
            along it: between panels, by their `place`, or between points, by their `tint`.
    """

    kind: str
    part: str
    title: str
    panels: tuple[Panel, ...]
    x: Axis
    colours: Names | Scale
    runs: tuple[str, ...]
    band: str = ""
    marks: tuple[str, ...] = ()
    columns: int = 0
    share_x: Literal["all", "row", "none"] = "all"
    share_y: bool = False
    notes: tuple[str, ...] = ()
    places: tuple[tuple[float, str], ...] = ()

    @property
    def first(self) -> float:
        """The smallest positive number that has a colour, from which a scale with zero is logarithmic."""
        curves = [curve for panel in self.panels for curve in panel.curves]
        at = [np.full(1, curve.shade) if curve.tint is None else curve.tint for curve in curves]
        known = np.concatenate([np.empty(0), *at])
        return float(known[known > 0].min(initial=np.inf)) if (known > 0).any() else 1.0

    @property
    def name(self) -> str:
        """Name of its file, without a suffix."""
        return f"{self.kind}-{self.part}" if self.part else self.kind

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables shown in any panel."""
        return tuple(dict.fromkeys(name for panel in self.panels for name in panel.variables))

    def only(self, variables: Collection[str]) -> Picture:
        """Keep the panels that show one of these variables; all where none is named."""
        kept = tuple(panel for panel in self.panels if not variables or set(panel.variables) & set(variables))
        return dataclasses.replace(self, panels=kept)


@dataclass(frozen=True)
class Figure:
    """A kind of figure: one sentence on what it shows, and what makes its pictures of some results."""

    title: str
    pictures: Callable[[Sequence[Run]], Iterable[Picture]]


def without_excess(picture: Picture, what: str = "panels") -> Picture:
    """Thin the panels of a picture to what fits on a page, and say so."""
    total = len(picture.panels)
    if total <= _MOST_PANELS:
        return picture
    chosen = np.array(thinned(total, _MOST_PANELS))
    note = f"{len(chosen)} of {total} {what} shown."
    panels = tuple(picture.panels[index] for index in chosen)
    return dataclasses.replace(picture, panels=panels, notes=(*picture.notes, note))
