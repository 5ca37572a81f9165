"""Choose ticks of logarithmic axes and colour bars."""

from __future__ import annotations

import numpy as np

__all__ = ["log_ticks"]

_MOST_TICKS = 5


def log_ticks(low: float, high: float, first: float) -> list[float]:
    """Return zero where it is on the axis, and the powers of ten from the first number to the last."""
    start, stop = int(np.ceil(np.log10(first) - 1e-9)), int(np.floor(np.log10(high) + 1e-9))
    powers = [10.0**k for k in range(start, stop + 1)]
    if len(powers) < 2:
        powers = sorted({*powers, first, high})
    powers = powers[:: -(-len(powers) // _MOST_TICKS)]
    return [*([0.0] if low <= 0 else []), *powers]
