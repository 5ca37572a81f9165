"""Estimate how long a measure takes on one checkpoint of a chain, from the sizes of the work alone.

The engine cuts a series into blocks by it, and a killed run loses one block. An estimate may be wrong by a factor of
three, as the number of draws needed depends on the weights. It knows nothing of the machine, so that the same work is
cut alike everywhere. Seconds are of one core of 2024; each measure computes its own from the costs given here.
"""

from __future__ import annotations

from typing import Protocol

from ibscan.core.measure import Measure, Sizes

__all__ = ["Drawing", "drawn", "seconds"]

# Multiply-adds per second in products of small matrices, and in their decompositions.
PRODUCTS, DECOMPOSITIONS = 8e9, 3e9
# Seconds for the density of one centre at one draw: a constant, and for each unit.
PAIR, PAIR_UNIT = 6e-9, 5e-11
# Seconds for a cell of the network channel at 1024 rows, 10 units and the default tolerance; how many times as long one
# of a wide layer may take before it is given up; seconds for one that uses up BUDGET replicas times draws, growing as
# the square root.
CELL, WIDEST, CELL_BUDGET, BUDGET = 0.5, 16.0, 0.1, 2.0**14
# Share of a budget set by the user that cells spend without reaching the tolerance.
SPENT = 0.15


def seconds(measure: Measure, sizes: Sizes) -> float:
    """Return about how many seconds of one core a measure takes for one checkpoint; `sizes.rows` are those it uses."""
    # Every layer costs a forward pass of its own.
    passes = len(sizes.wanted) * sizes.rows * sizes.weights / PRODUCTS
    return passes + measure.seconds(sizes)


class Drawing(Protocol):
    """A measure that draws until a tolerance is met."""

    @property
    def tolerance(self) -> float:
        """Half width, nats."""
        ...

    @property
    def max_draws(self) -> int:
        """Draws at most."""
        ...


def drawn(measure: Drawing, rows: int, width: int) -> float:
    """Return the seconds for one cell of a channel with exact densities, of `rows` centres with `width` units."""
    from ibscan.numerics.channels.readout import LEAST_DRAWS

    draws: float = min(max(LEAST_DRAWS, 2 * rows, measure.tolerance**-2), max(2, measure.max_draws))
    return 0.01 + draws * (2e-6 + width * 3e-8 + rows * (PAIR + PAIR_UNIT * width))
