"""Local rank against its threshold: eps down, layers across, and under each layer some checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Group as Stack

from ibscan.errors import NothingMatched
from ibscan.types import Result, Variable
from ibscan.views.cells import number
from ibscan.views.frame import Cells, Frame, block, derivative, layered, leaf, measured, terms, thinned
from ibscan.views.grid import Group

__all__ = ["curve_tables", "curves"]

_EPS = {"local_rank": "eps", "local_rank_rel": "rel_eps"}
_MOST_COLUMNS = 4
_FEW_POINTS = 8
_COUNTED = "Mean over probe rows of the number of singular values of the Jacobian {of} above"
_THRESHOLDS = {
    "local_rank": "{eps}, which is absolute: in units of the layer's output per unit of the input.",
    "local_rank_rel": "{eps} times the row's largest.",
}


def curves(result: Result) -> tuple[str, ...]:
    """Return the names of the variables that are curves of local rank over eps.

    Args:
        result: Any.

    Returns:
        `local_rank`, `local_rank_rel`, or both: those with a measured cell.

    Raises:
        NothingMatched: There is neither.
    """
    frame = Frame(result, "nats", every=True, width=1, unicode=False)
    found = tuple(name for name, dim in _EPS.items() if measured(frame, name, dim))
    if not found:
        raise NothingMatched(
            "--curve: the result holds no local rank; expected one that ibscan rank or ibscan scan measured. "
            "Run ibscan rank on its checkpoints."
        )
    return found


def curve_tables(frame: Frame) -> list[Stack]:
    """Return a table for each curve of local rank over eps: first and last checkpoint, and up to two between.

    Args:
        frame: The result and how it is shown; all checkpoints where it shows every one.

    Returns:
        The table over absolute eps, and the one over relative eps, as far as they were measured.

    Raises:
        NothingMatched: The result has no local rank.
    """
    return [_table(frame, name) for name in curves(frame.result)]


def _table(frame: Frame, name: str) -> Stack:
    axis, labels = frame.axis
    places = _places(frame)
    turned = _turned(frame, name, places)

    def leaves(layer: int) -> Sequence[Cells]:
        return [leaf(turned, name, (axis, labels[place]), layer, column) for column, place in enumerate(places)]

    groups = [_without_trend(group) for group in layered(turned, leaves, widths=True)]
    title = f"local rank against {'relative ' if name == 'local_rank_rel' else ''}{turned.axis_name}"
    threshold = _THRESHOLDS[name].format(eps=turned.axis_name)
    notes = [f"{_COUNTED.format(of=derivative(turned, name))} {threshold} In parentheses: units of the layer."]
    notes += [*_errors(turned, name), *_points(turned, name)]
    if len(places) < frame.size:
        notes.append(f"{len(places)} of {frame.size} checkpoints shown (--all shows every one).")
    return block(turned, (title, terms(turned, name)), groups, notes)


def _places(frame: Frame) -> list[int]:
    """Return the checkpoints shown, chosen as rows of a table are, but fewer."""
    values = frame.axis_values
    along = frame.size if values is None else values
    return list(range(frame.size)) if frame.every else thinned(along, _MOST_COLUMNS)


def _turned(frame: Frame, name: str, places: Sequence[int]) -> Frame:
    """Return the frame of a curve alone, turned: eps runs where checkpoints ran, and checkpoints where eps did."""
    result = frame.result
    eps = result[_EPS[name]].values
    order = np.argsort(eps, kind="stable")

    def turn(found: Variable) -> Variable:
        values = np.moveaxis(found.values[list(places)], (0, 2), (2, 0))[order]
        return Variable(("checkpoint", "layer", "shown"), values, found.attrs)

    beside = str(result[name].attrs.get("ancillary_variables", "")).split()
    alike = [one for one in (name, *beside) if one in result.variables and result[one].dims == result[name].dims]
    coordinates = {key: result[key] for key in ("layer", "layer_width")} | {
        "checkpoint": Variable(("checkpoint",), np.arange(len(eps))),
        "value": Variable(("checkpoint",), eps[order]),
        # What stands in the lead column where a foreign file's eps is not finite.
        "checkpoint_name": Variable(("checkpoint",), np.array([f"{value:g}" for value in eps[order]], dtype=object)),
    }
    attrs = {"settings": json.dumps({"axis": "ε" if frame.unicode else "eps"})}
    return Frame(
        Result(coordinates, {one: turn(result[one]) for one in alike}, attrs),
        frame.units,
        every=True,
        width=frame.width,
        unicode=frame.unicode,
    )


def _without_trend(group: Group) -> Group:
    # Local rank only falls as eps grows: its course down a column says nothing.
    return Group(group.name, tuple(replace(column, trend="") for column in group.columns))


def _errors(turned: Frame, name: str) -> list[str]:
    """Say how far off the values shown may be, rows taken as a sample."""
    if f"{name}_se" not in turned.result:
        return []
    values = turned.scaled(f"{name}_se")
    known = values[np.isfinite(values)]
    return (
        [f"Standard errors up to {number(float(f'{known.max():.2g}'))}, rows taken as a sample."] if len(known) else []
    )


def _points(turned: Frame, name: str) -> list[str]:
    """Say how a curve of few points gets finer."""
    if turned.size >= _FEW_POINTS:
        return []
    option = f"--{_EPS[name].replace('_', '-')}"
    count = f"{turned.size} point{'s' if turned.size != 1 else ''}"
    return [f"A curve of {count}: more {option} values on ibscan rank, into the same file, make it finer."]
