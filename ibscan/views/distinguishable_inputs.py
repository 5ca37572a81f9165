"""The table of exp(I(X;T)) at the last checkpoint: how many inputs each noisy channel can distinguish."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ibscan.views.channels import (
    NOISY,
    channel_columns,
    input_entropy,
    largest_error,
    leading,
    measured_at,
    noise_groups,
    widest_bracket,
)
from ibscan.views.layout import Sheet, Table, by_layer
from ibscan.views.view import View

__all__ = ["TABLE"]


def _sheets(view: View) -> Iterator[Sheet]:
    """Yield a sheet where a noisy I(X;T) was measured; its numbers are the same in nats and bits."""
    view = replace(view, units="nats")
    found = [columns for channel in leading(view, NOISY) if (columns := channel_columns(view, channel, "xt"))]
    if not found:
        return
    every = [one for columns in found for one in columns]
    entropy, known = input_entropy(view, every[0].key)
    most = f"of {math.exp(entropy):.6g}" if known else f"of at most {math.exp(entropy):.6g}"
    notes = [f"exp(I(X;T)): how many inputs the channel tells apart, {most}; where it is 1, none from any other."]
    error, bracket = (of(view, every, last=True) for of in (largest_error, widest_bracket))
    # An exponential of a foreign file's numbers may overflow.
    with np.errstate(over="ignore"):
        groups = noise_groups(view, found, change=np.exp)
        if error is not None:
            notes.append(f"Standard errors up to {100 * np.expm1(error):.2g} % of the number.")
        if bracket is not None:
            ends = f"Brackets of the network channel end up to a factor {np.exp(bracket):.3g} from it"
            notes.append(f"{ends}, unresolved ones aside.")
    yield by_layer(view, (TABLE.title, measured_at(view, every, unit=False)), groups, notes)


TABLE = Table("inputs told apart", {}, _sheets)
