"""A quantity against its threshold, noise or cells: those down, layers across, and under each some checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Group as Stack

from ibscan.errors import NothingMatched
from ibscan.types import Array, Result, Variable
from ibscan.views.block import block
from ibscan.views.cells import number
from ibscan.views.channels import CHANNELS, Channel, closed, leaves_of, notes
from ibscan.views.frame import (
    Cells,
    Frame,
    derivative,
    layered,
    leaf,
    name_of,
    places,
    terms,
    thinned,
)
from ibscan.views.grid import Group

__all__ = ["curve_table", "curve_tables", "curves"]

_RANKS = {"local_rank": "eps", "local_rank_rel": "rel_eps"}
_CHANNELS: dict[str, tuple[Channel, str]] = {
    channel.variable(side): (channel, side) for side in ("xt", "ty", "slope") for channel in CHANNELS
}
_OVER = _RANKS | {name: channel.dim for name, (channel, _) in _CHANNELS.items()}
# Information has one noise and one kind of cells unless more are typed: that is no curve.
_FEWEST = {name: 1 if name in _RANKS else 2 for name in _OVER}
_LEADS = {"noise": "noise", "rel_noise": "noise/rms", "binning": "cells"}
_AGAINST = {"noise": "noise", "rel_noise": "relative noise", "binning": "cells"}
_FINER = {
    "eps": "--eps values on ibscan rank",
    "rel_eps": "--rel-eps values on ibscan rank",
    "noise": "--noise values on ibscan mi",
    "rel_noise": "--rel-noise values on ibscan mi",
    "binning": "--bins or --bin-width values on ibscan mi",
}
_MOST_COLUMNS = 4
_FEW_POINTS = 8
_COUNTED = "Mean over probe rows of the number of singular values of the Jacobian {of} above"
_THRESHOLDS = {
    "local_rank": "{eps}, which is absolute: in units of the layer's output per unit of the input.",
    "local_rank_rel": "{eps} times the row's largest.",
}


def curves(result: Result) -> tuple[str, ...]:
    """Return the names of the variables that are curves: over eps, noise, relative noise or cells.

    Args:
        result: Any.

    Returns:
        Those of local rank with a measured cell, and those of information measured at two values or more.

    Raises:
        NothingMatched: There is none.
    """
    frame = Frame(result, "nats", every=True, width=1, unicode=False)
    found = tuple(name for name, dim in _OVER.items() if len(places(frame, name, dim)) >= _FEWEST[name])
    if not found:
        raise NothingMatched(
            "--curve: the result holds no local rank, and no information at two noises or in two kinds of cells. "
            "Run ibscan rank on its checkpoints, or ibscan mi with more than one --noise."
        )
    return found


def curve_tables(frame: Frame) -> list[Stack]:
    """Return a table for each curve: first and last checkpoint, and up to two between.

    Args:
        frame: The result and how it is shown; all checkpoints where it shows every one.

    Returns:
        Local rank over absolute and relative eps, information over noise and cells, as far as they were measured.

    Raises:
        NothingMatched: The result has no curve.
    """
    return [curve_table(frame, name, advise=True) for name in curves(frame.result)]


def curve_table(frame: Frame, name: str, *, advise: bool = False) -> Stack:
    """Return the table of one curve.

    Args:
        frame: The result and how it is shown.
        name: A variable that is one.
        advise: Say of a curve of few points how it gets finer.

    Returns:
        The table.
    """
    axis, labels = frame.axis
    shown = _places(frame)
    turned = _turned(frame, name, shown)

    def leaves(layer: int) -> Sequence[Cells]:
        return [leaf(turned, name, (axis, labels[place]), layer, column) for column, place in enumerate(shown)]

    groups = [_without_trend(group) for group in layered(turned, leaves, widths=name in _RANKS)]
    below = _below(frame, turned, name) + (_points(turned, _OVER[name]) if advise else [])
    if len(shown) < frame.size:
        below.append(f"{len(shown)} of {frame.size} checkpoints shown (--all shows every one).")
    return block(turned, (_title(frame, name), terms(turned, name)), groups, below)


def _title(frame: Frame, name: str) -> str:
    if name in _RANKS:
        return f"local rank against {'relative ' if name == 'local_rank_rel' else ''}{_lead(frame, _RANKS[name])}"
    channel, _ = _CHANNELS[name]
    symbol = name_of(str(frame.result[name].attrs.get("symbol", "")), frame.unicode)
    return " ".join(part for part in (channel.label, symbol, "against", _AGAINST[channel.dim]) if part)


def _below(frame: Frame, turned: Frame, name: str) -> list[str]:
    """Return what needs saying below any curve of the variable."""
    if name not in _RANKS:
        return notes(frame, leaves_of(frame, *_CHANNELS[name]))
    threshold = _THRESHOLDS[name].format(eps=_lead(frame, _RANKS[name]))
    counted = f"{_COUNTED.format(of=derivative(turned, name))} {threshold} In parentheses: units of the layer."
    return [counted, *_errors(turned, name)]


def _lead(frame: Frame, dim: str) -> str:
    return _LEADS.get(dim, "ε" if frame.unicode else "eps")


def _places(frame: Frame) -> list[int]:
    """Return the checkpoints shown, chosen as rows of a table are, but fewer."""
    values = frame.axis_values
    along = frame.size if values is None else values
    return list(range(frame.size)) if frame.every else thinned(along, _MOST_COLUMNS)


def _turned(frame: Frame, name: str, shown: Sequence[int]) -> Frame:
    """Return the frame of a curve alone, turned: its parameter runs where checkpoints ran, checkpoints where it did."""
    result, dim = frame.result, _OVER[name]
    values = result[dim].values
    known = set(places(frame, name, dim))
    order = [place for place in _order(values) if place in known]
    texts = [name_of(v, frame.unicode) if isinstance(v, str) else f"{v:g}" for v in values[order].tolist()]

    def turn(found: Variable, array: Array) -> Variable:
        turned = np.moveaxis(array[list(shown)], (0, 2), (2, 0))[order]
        return Variable(("checkpoint", "layer", "shown"), turned, found.attrs)

    beside = str(result[name].attrs.get("ancillary_variables", "")).split()
    alike = [one for one in beside if one in result.variables and result[one].dims == result[name].dims]
    main = closed(replace(frame, units="nats"), name)
    variables = {name: turn(result[name], main)} | {one: turn(result[one], result[one].values) for one in alike}
    coordinates = {key: result[key] for key in ("layer", "layer_width")} | {
        "checkpoint": Variable(("checkpoint",), np.arange(len(order)))
    }
    return replace(frame, result=Result(coordinates, variables, {}), every=True, labels=(_lead(frame, dim), texts))


def _order(values: Array) -> list[int]:
    """Return the places of a parameter's values in ascending order: cells by kind, then by their number."""
    if values.dtype.kind != "O":
        numeric: list[int] = np.argsort(values, kind="stable").tolist()
        return numeric

    def key(place: int) -> tuple[str, float]:
        text = str(values[place])
        found = re.search(r"[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", text)
        return (text, 0.0) if found is None else (text.replace(found.group(), "", 1), float(found.group()))

    return sorted(range(len(values)), key=key)


def _without_trend(group: Group) -> Group:
    # The course down a column is no course of training.
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


def _points(turned: Frame, dim: str) -> list[str]:
    """Say how a curve of few points gets finer."""
    if turned.size >= _FEW_POINTS:
        return []
    count = f"{turned.size} point{'s' if turned.size != 1 else ''}"
    return [f"A curve of {count}: more {_FINER[dim]}, into the same file, make it finer."]
