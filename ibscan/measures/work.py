"""How long a measure takes on one checkpoint of a chain, from the sizes of the work alone.

By it a series is cut into blocks, of which a killed run loses no more than one. Work may take three times its estimate,
or a third, as it depends on the weights how soon draws are enough. So that the same work is cut in the same way
everywhere, nothing of the machine goes into it, and no number depends on it beyond rounding. Seconds are those of one
core of 2024; each measure says its own, by what is counted here.
"""

from __future__ import annotations

from typing import Protocol

from ibscan.core.measure import Measure, Sizes

__all__ = ["drawn", "seconds"]

# Multiplications with additions a second, in products of small matrices; and in decompositions of them.
PRODUCTS, DECOMPOSITIONS = 8e9, 3e9
# A density of one centre at one draw: what it costs whatever the width, and for every unit.
PAIR, PAIR_UNIT = 6e-9, 5e-11
# What a cell of the network channel takes at 1024 rows, 10 units and the usual tolerance; and what one that uses up
# so many replicas times draws, growing as the root of both.
CELL, CELL_BUDGET, BUDGET = 3.0, 0.135, 2.0**14
# Of a budget that was asked for, the share that cells spend which never come to their tolerance.
SPENT = 0.15


def seconds(measure: Measure, sizes: Sizes) -> float:
    """Return how many seconds of one core a measure takes for one checkpoint, about.

    Args:
        measure: With its parameters.
        sizes: Of the work; `rows` are those the measure uses.
    """
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
    """Return the seconds one cell takes whose densities are exact."""
    from ibscan.numerics.channels.readout import LEAST_DRAWS

    draws: float = min(max(LEAST_DRAWS, 2 * rows, measure.tolerance**-2), max(2, measure.max_draws))
    return 0.01 + draws * (2e-6 + width * 3e-8 + rows * (PAIR + PAIR_UNIT * width))
