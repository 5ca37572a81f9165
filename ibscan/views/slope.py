"""The slope of noisy information beside local rank, which it tends to, at the last checkpoint."""

from __future__ import annotations

from rich.console import Group as Stack

from ibscan.views.cells import number
from ibscan.views.channels import NOISY, Leaf, largest_error, leaves_of
from ibscan.views.frame import Frame, places, terms
from ibscan.views.grid import Group
from ibscan.views.last import last_column, last_table

__all__ = ["slope_table"]

_NOTE = (
    "slope: -dI(X; T+Z)/d ln noise. Its limit for noise -> 0 is local rank at {eps} -> 0 where the network is "
    "piecewise linear and X has a density; on a probe of finitely many rows only while the noise is well above the "
    "spacing of the points, below which it goes to 0. {eps} counts singular values of the Jacobian J, noise softly "
    "those of J C^(1/2), C the covariance of X."
)


def slope_table(frame: Frame) -> Stack | None:
    """Return a table of the slope at every noise beside the local rank at every eps.

    Args:
        frame: The result and how it is shown; only its last checkpoint is.

    Returns:
        The table; None unless both were measured, at one place, and local rank is that of the whole input's Jacobian.
    """
    ranks, sign = places(frame, "local_rank", "eps"), "ε" if frame.unicode else "eps"
    attrs = frame.result["local_rank"].attrs if ranks else {}
    # A slope at post says nothing of a rank at pre, nor of that from a layer or on a subspace.
    whole = attrs.get("from", "input") == "input" and attrs.get("input_dims", 0) == 0
    found = [leaves for channel in NOISY if (leaves := leaves_of(frame, channel, "slope"))]
    found = [leaves for leaves in found if attrs.get("at") and _attribute(frame, leaves, "at") == attrs["at"]]
    if not found or not whole:
        return None
    groups = [
        Group(
            f"slope, {leaves[0].channel.label}",
            tuple(last_column(frame, one.name, one.heads[-1].split(" ", 1), one.place) for one in leaves),
        )
        for leaves in found
    ]
    thresholds = frame.result["eps"].values.tolist()
    columns = [last_column(frame, "local_rank", (sign, f"{thresholds[place]:g}"), place) for place in ranks]
    groups.append(Group("local rank", tuple(columns)))
    rows = _attribute(frame, found[0], "rows")
    other = f"local rank on {attrs['rows']}" if attrs.get("rows") and attrs["rows"] != rows else ""
    title = ", ".join(part for part in (terms(frame, found[0][0].name), other) if part)
    notes = [_NOTE.format(eps=sign)]
    error = largest_error(frame, [one for leaves in found for one in leaves], last=True)
    notes += [f"Standard errors of the slope up to {number(error)}."] if error is not None else []
    return last_table(frame, ("slope of noisy information beside local rank", title), groups, notes)


def _attribute(frame: Frame, leaves: list[Leaf], key: str) -> object:
    return frame.result[leaves[0].name].attrs.get(key)
