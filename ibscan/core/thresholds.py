"""Thresholds on singular values at which two spectra differ most: where a series moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibscan.core.records import Array

__all__ = ["AUTO", "moving_thresholds"]

# What stands for these thresholds on the command line.
AUTO = "auto"
# Below this share of the largest singular value spectra differ by rounding.
_LEAST = 1e-6


def moving_thresholds(first: Array, last: Array, most: int = 3) -> tuple[float, ...]:
    """Return the thresholds at which layers count most differently by two spectra, in ascending order.

    One after another: each is the one that adds most to the sum over layers of the largest difference so far, as a
    share of the layer's singular values. None is added that adds less than a tenth of the first one's. Of thresholds
    that add the same, the middle of the widest range of them is taken. They are numbers of two digits, so that results
    on nearly the same spectra have the same ones.

    Args:
        first: Singular values of L layers, (L, K); NaN where a layer has fewer.
        last: The same of another checkpoint.
        most: How many thresholds at most.
    """
    import numpy as np

    # A layer that has no spectrum at one of them says nothing.
    known = np.isfinite(first).any(-1) & np.isfinite(last).any(-1)
    first, last = first[known], last[known]
    spectra = [np.where(np.isfinite(values), values, 0.0) for values in (first, last)]
    largest = max(float(values.max(initial=0.0)) for values in spectra)
    if not largest > 0:
        return ()
    digits, tens = np.arange(10, 100) / 10, math.floor(math.log10(largest))
    lowest = math.floor(math.log10(_LEAST * largest))
    grid = [float(f"{digit}e{power}") for power in range(lowest, tens + 1) for digit in digits]
    eps = np.array([value for value in grid if _LEAST * largest < value < largest])
    sizes = np.maximum(1, np.isfinite(first).sum(-1))
    counts = [(values[..., None] > eps).sum(1) for values in spectra]  # (L, thresholds)
    differences = np.abs(counts[0] - counts[1]) / sizes[:, None]
    chosen: list[float] = []
    reached, least = np.zeros(len(first)), 0.0
    while len(chosen) < most and len(eps):
        gains = np.maximum(differences - reached[:, None], 0.0).sum(0)
        if not gains.max() > least:
            break
        best = _middle(gains >= gains.max() * (1 - 1e-9))
        least = least or float(gains[best]) / 10
        chosen.append(float(eps[best]))
        reached = np.maximum(reached, differences[:, best])
    return tuple(sorted(chosen))


def _middle(holds: Array) -> int:
    """Return the middle index of the longest run of those that hold, the first of equal ones."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
    starts, stops = edges[::2], edges[1::2]
    run = int((stops - starts).argmax())
    return int((starts[run] + stops[run] - 1) // 2)
