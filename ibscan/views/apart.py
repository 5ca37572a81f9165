"""How many inputs a noisy channel tells apart, exp(I(X;T)), at the last checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from rich.console import Group as Stack

from ibscan.views.channels import NOISY, closed, inputs, largest_error, leaves_of, measured_at, widest_bracket
from ibscan.views.frame import Frame
from ibscan.views.grid import Group
from ibscan.views.last import last_column, last_table

__all__ = ["apart_table"]


def apart_table(frame: Frame) -> Stack | None:
    """Return a table of exp(I(X;T)) of every noisy channel, layers down, channels and noises across.

    Args:
        frame: The result and how it is shown; only its last checkpoint is. Numbers do not depend on its unit.

    Returns:
        The table; None where no noisy I(X;T) was measured.
    """
    frame = replace(frame, units="nats")
    found = [leaves for channel in NOISY if (leaves := leaves_of(frame, channel, "xt"))]
    if not found:
        return None
    groups = []
    for leaves in found:
        # An exponential of a foreign file's numbers may be beyond any.
        with np.errstate(over="ignore"):
            counts = np.exp(closed(frame, leaves[0].name))
        columns = [
            last_column(frame, one.name, one.heads[-1].split(" ", 1), one.place, values=counts) for one in leaves
        ]
        groups.append(Group(leaves[0].channel.label, tuple(columns)))
    entropy, known = inputs(frame, found[0][0].name)
    most = f"of {math.exp(entropy):.6g}" if known else f"of at most {math.exp(entropy):.6g}"
    notes = [f"exp(I(X;T)): how many inputs the channel tells apart, {most}; where it is 1, none from any other."]
    every = [one for leaves in found for one in leaves]
    error, bracket = (of(frame, every, last=True) for of in (largest_error, widest_bracket))
    with np.errstate(over="ignore"):
        if error is not None:
            notes.append(f"Standard errors up to {100 * np.expm1(error):.2g} % of the number.")
        if bracket is not None:
            ends = f"Brackets of the network channel end up to a factor {np.exp(bracket):.3g} from it"
            notes.append(f"{ends}, unresolved ones aside.")
    return last_table(frame, ("inputs told apart", measured_at(frame, every, unit=False)), groups, notes)
