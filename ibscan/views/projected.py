"""Information of a wide layer's top principal components, and what the others can add, at the last checkpoint."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Group as Stack

from ibscan.types import Status
from ibscan.views.channels import NOISY, PROJECTED, inputs, largest_error, leaves_of
from ibscan.views.frame import Frame, codes, measured, statement, terms
from ibscan.views.grid import Group
from ibscan.views.last import last_column, last_table

__all__ = ["projected_table"]

_READOUT = next(channel for channel in NOISY if channel.key == "readout")
_NOTE = (
    "I_k: read-out information of the layer's first k principal components. tail: what all others together can add at "
    "most, so that I_k <= I(X; T+Z) <= I_k + tail, but for the errors of the draws of both; I_k + tail is "
    "H(X) at most. Narrower layers are not projected."
)


def projected_table(frame: Frame) -> Stack | None:
    """Return a table of projected information and its certificate beside the read-out value: wide layers down.

    Args:
        frame: The result and how it is shown; only its last checkpoint is, and of it the layers that were projected.

    Returns:
        The table; None where nothing was projected.
    """
    leaves = leaves_of(frame, PROJECTED, "xt")
    part, tail, components = (PROJECTED.variable(end) for end in ("xt", "tail", "components"))
    if not leaves or not measured(frame, tail, "noise"):
        return None
    status = codes(frame, part)
    known = np.ones(frame.result[part].values.shape, bool) if status is None else status != Status.NOT_MEASURED
    layers = np.flatnonzero(known[-1].any(1)).tolist()
    if not layers:
        return None
    ceiling = inputs(frame, part)[0] / (math.log(2) if frame.unit(part) == "bit" else 1.0)
    bound = np.minimum(frame.scaled(part) + frame.scaled(tail), ceiling)
    beside = {one.place: one for one in leaves_of(frame, _READOUT, "xt")}
    groups = []
    for one in leaves:
        columns = [last_column(frame, part, ("I_k",), one.place, layers=layers)]
        if measured(frame, components, "noise"):
            columns.append(last_column(frame, components, ("k",), one.place, layers=layers))
        columns.append(last_column(frame, tail, ("tail",), one.place, layers=layers))
        columns.append(last_column(frame, part, ("I_k + tail",), one.place, values=bound, layers=layers))
        if one.place in beside:
            heads = beside[one.place].heads[:-1]
            columns.append(last_column(frame, beside[one.place].name, heads, one.place, layers=layers))
        groups.append(Group(one.heads[-1], tuple(columns)))
    notes = [_NOTE]
    errors = [largest_error(frame, of, last=True, layers=layers) for of in (leaves, list(beside.values()))]
    said = [
        f"of {what} up to {statement(error, frame.unit(part))}"
        for what, error in zip(("I_k", "I(X; T+Z)"), errors, strict=True)
        if error is not None
    ]
    if said:
        notes.append(f"Standard errors {', '.join(said)}.")
    title = ("read-out information of top principal components", terms(frame, part))
    return last_table(frame, title, groups, notes, layers=layers)
