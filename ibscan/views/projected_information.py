"""The table of information of a wide layer's top principal components, at the last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ibscan.core.estimate import Status
from ibscan.views.channels import NOISY, PROJECTED, channel_columns, input_entropy, largest_error
from ibscan.views.column import column
from ibscan.views.layout import Sheet, Table, by_layer
from ibscan.views.view import View, is_measured, quantity_of, statuses, terms

__all__ = ["TABLE"]

_READOUT = next(channel for channel in NOISY if channel.key == "readout")
_NOTE = (
    "I_k: read-out information of the layer's first k principal components. tail: what all others together can add at "
    "most, so that I_k <= I(X; T+Z) <= I_k + tail, but for the errors of the draws of both; I_k + tail is "
    "H(X) at most. Narrower layers are not projected."
)


def _sheets(view: View) -> Iterator[Sheet]:
    """Yield a sheet of the projected layers, beside the read-out value where there is one."""
    columns = channel_columns(view, PROJECTED, "xt")
    part, tail, components = (PROJECTED.variable(end) for end in ("xt", "tail", "components"))
    if not columns or not is_measured(view, tail, "noise"):
        return
    status = statuses(view, part)
    known = np.ones(view.values(part).shape, bool) if status is None else status != Status.NOT_MEASURED
    layers = np.flatnonzero(known[-1].any(1)).tolist()
    if not layers:
        return
    ceiling = input_entropy(view, part)[0] / (math.log(2) if view.unit(part) == "bit" else 1.0)
    bound = np.minimum(view.values(part) + view.values(tail), ceiling)
    beside = {one.index: one for one in channel_columns(view, _READOUT, "xt")}
    counted = is_measured(view, components, "noise")
    groups = []
    for one in columns:
        own = [column(view, part, ("I_k",), one.index)]
        own += [column(view, components, ("k",), one.index)] if counted else []
        own += [column(view, tail, ("tail",), one.index)]
        own += [column(view, part, ("I_k + tail",), one.index, values=bound)]
        if one.index in beside:
            whole = beside[one.index]
            own.append(column(view, whole.key, whole.heads[:-1], one.index))
        groups.append((one.heads[-1], own))
    errors = [largest_error(view, of, last=True, layers=layers) for of in (columns, list(beside.values()))]
    said = [
        f"of {what} up to {quantity_of(error, view.unit(part))}"
        for what, error in zip(("I_k", "I(X; T+Z)"), errors, strict=True)
        if error is not None
    ]
    notes = [_NOTE, *([f"Standard errors {', '.join(said)}."] if said else [])]
    yield by_layer(view, (TABLE.title, terms(view, part)), groups, notes, layers=layers)


TABLE = Table(
    "read-out information of top principal components",
    {
        "I_k": "read-out information of the layer's first k principal components.",
        "k": "number of principal components kept.",
        "tail": "what all other components together can add to I_k at most.",
        "I_k + tail": "upper bound on I(X; T+Z), and H(X) at most.",
    },
    _sheets,
)
