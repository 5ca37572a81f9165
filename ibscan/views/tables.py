"""A result as tables that a person reads at a glance: layers across, checkpoints down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Group as Stack
from rich.console import RenderableType

from ibscan.core.text import near_names
from ibscan.errors import UsageError
from ibscan.types import Result, Status
from ibscan.views.apart import apart_table
from ibscan.views.block import block
from ibscan.views.bounds import bounds_table
from ibscan.views.curve import curve_tables
from ibscan.views.frame import Cells, Frame, derivative, layered, leaf, measured, name_of, terms, thinned
from ibscan.views.grid import Group
from ibscan.views.head import head
from ibscan.views.information import information_tables
from ibscan.views.listing import listing
from ibscan.views.projected import projected_table
from ibscan.views.slope import slope_table

__all__ = ["listing", "tables"]

_MOST_PARAMETERS = 12


def tables(
    result: Result,
    *,
    units: str = "nats",
    every: bool = False,
    variable: str | None = None,
    curve: bool = False,
    width: int,
    unicode: bool = True,
) -> list[RenderableType]:
    """Return what to print of a result: a head, and one table a measure.

    Args:
        result: What was measured.
        units: `nats`, or `bits` to convert what is in nat.
        every: Every checkpoint instead of about twelve, log-spaced, first and last among them.
        variable: One variable in place of the usual tables, histograms and spectra included.
        curve: What was measured against its eps, noise or cells in their place.
        width: Columns of the terminal; layers that do not fit go to further panels.
        unicode: Whether the terminal shows more than ASCII.

    Returns:
        Renderables for a console without markup, in order. Names from files are escaped.

    Raises:
        UsageError: There is no such variable, or no such unit.
        NothingMatched: Curves are asked for, and there is none.
    """
    if units not in ("nats", "bits"):
        raise UsageError(f"units {units!r}: expected nats or bits.")
    if variable is not None and variable not in result.variables:
        near = near_names(variable, result.variables, 3, 0.5) or sorted(result.variables)
        raise UsageError(f"--variable {variable!r}: the result has no such variable; it has {', '.join(near)}.")
    frame = Frame(result, units, every, max(1, width), unicode)
    if curve:
        return [head(frame), *curve_tables(frame)]
    if variable is not None:
        return [head(frame), _one(frame, variable)]
    usual = (
        _rank(frame),
        bounds_table(frame),
        *information_tables(frame, "xt"),
        apart_table(frame),
        projected_table(frame),
        *information_tables(frame, "ty"),
        slope_table(frame),
        _clustering(frame),
    )
    return [head(frame), *(table for table in usual if table is not None)]


def _rank(frame: Frame) -> Stack | None:
    name = "local_rank"
    if not measured(frame, name, "eps"):
        return None
    eps = frame.result["eps"].values.tolist()
    sign = "ε" if frame.unicode else "eps"

    def leaves(layer: int) -> Sequence[Cells]:
        return [leaf(frame, name, (f"{sign} {value:g}",), layer, place) for place, value in enumerate(eps)]

    groups = layered(frame, leaves, widths=True)
    notes = [
        f"Mean number of singular values of the Jacobian {derivative(frame, name)} above eps, which is absolute. "
        "In parentheses: units of the layer."
    ]
    return block(frame, ("local rank", terms(frame, name)), groups, notes)


def _clustering(frame: Frame) -> Stack | None:
    names = ("distance_within_mean", "distance_between_mean", "nc1", "nearest_mean_error")
    present = [name for name in names if measured(frame, name)]
    if not present:
        return None

    def leaves(layer: int) -> Sequence[Cells]:
        cells: list[Cells] = []
        if {names[0], names[1]} <= set(present):
            within, between = (leaf(frame, name, (), layer) for name in names[:2])
            with np.errstate(all="ignore"):
                ratio = np.where(between.values > 0, within.values / between.values, np.nan)
            worse = None if within.statuses is None or between.statuses is None else within.statuses
            if worse is not None and between.statuses is not None:
                worse = np.where(worse == Status.OK, between.statuses, worse)
            cells.append(Cells(("within/", "between"), ratio, worse))
        if "nc1" in present:
            cells.append(leaf(frame, "nc1", ("NC1",), layer))
        if "nearest_mean_error" in present:
            cells.append(leaf(frame, "nearest_mean_error", ("nearest", "mean err"), layer))
        return cells

    notes = [
        "within/between: mean Euclidean distance of rows of one label over that of rows of two. NC1: tr(S_W pinv(S_B)) "
        "/ C, spread within classes over that between their means. nearest mean err: share of rows nearer to the mean "
        "of another class. All fall as classes gather."
    ]
    groups = layered(frame, leaves)
    return block(frame, ("clustering of representations", terms(frame, present[0], unit=False)), groups, notes)


def _one(frame: Frame, name: str) -> Stack:
    found = frame.result[name]
    own = [dim for dim in found.dims if dim not in ("checkpoint", "layer")]
    shape = [len(frame.result[dim].values) for dim in own]
    total = int(np.prod(shape)) if own else 1
    places = thinned(total, _MOST_PARAMETERS)
    notes: list[str] = []
    if len(places) < total:
        notes.append(f"{len(places)} of {total} values along {', '.join(own)}; ibscan export gives all.")

    def leaves(layer: int | None) -> Sequence[Cells]:
        cells: list[Cells] = []
        for place in places:
            index: tuple[Any, ...] = np.unravel_index(place, shape) if own else ()
            labels = [frame.result[dim].values[at] for dim, at in zip(own, index, strict=True)]
            heads = tuple(_label(frame, dim, value) for dim, value in zip(own, labels, strict=True))
            cells.append(leaf(frame, name, heads, layer, *index))
        # A narrow layer has fewer singular values than the widest; columns of nothing are left out.
        return [one for one in cells if not _empty(one)] or cells[:1]

    if "layer" in found.dims:
        groups = layered(frame, leaves)
    else:
        groups = [Group("", tuple(frame.column(cells) for cells in leaves(None)))]
    title = name_of(str(found.attrs.get("long_name", name)), frame.unicode)
    return block(frame, (name_of(name, frame.unicode), title, terms(frame, name)), groups, notes)


def _empty(cells: Cells) -> bool:
    return cells.statuses is not None and bool((cells.statuses == Status.NOT_MEASURED).all())


def _label(frame: Frame, dim: str, value: Any) -> str:  # noqa: ANN401 - a coordinate value
    text = value if isinstance(value, str) else f"{value:g}"
    return name_of(text if dim == "binning" else f"{dim} {text}", frame.unicode)
