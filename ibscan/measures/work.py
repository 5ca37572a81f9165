"""How long a measure takes on one checkpoint of a chain, from the sizes of the work alone.

By it a series is cut into blocks, of which a killed run loses no more than one. Work may take three times its estimate,
or a third, as it depends on the weights how soon draws are enough. Of the network channel it is that of networks that
need many draws, and much too long for others. No number depends on it beyond rounding. So that the same work is cut in
the same way everywhere, nothing of the machine goes into it. Seconds are those of one core of 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibscan.measures.readout import WIDE
from ibscan.numerics.readout import LEAST_DRAWS
from ibscan.types import Layer, Measure

__all__ = ["Sizes", "seconds"]

# Multiplications with additions a second, in products of small matrices; and in decompositions of them.
PRODUCTS, DECOMPOSITIONS = 8e9, 3e9
# A density of one centre at one draw: what it costs whatever the width, and for every unit.
PAIR, PAIR_UNIT = 6e-9, 5e-11
# What a cell of the network channel takes at 1024 rows, 10 units and the usual tolerance; and what one that uses up
# so many replicas times draws, growing as the root of both.
CELL, TOLERANCE, CELL_BUDGET, BUDGET = 3.0, 0.05, 0.135, 2.0**14
# Of a budget that was asked for, the share that cells spend which never come to their tolerance.
SPENT = 0.15


@dataclass(frozen=True)
class Sizes:
    """What the work is on: the layers wanted, all layers, numbers in a row of the probe, rows, weights."""

    wanted: Sequence[Layer]
    layers: Sequence[Layer]
    inputs: int
    rows: int
    weights: int


def seconds(measure: Measure, sizes: Sizes) -> float:
    """Return how many seconds of one core a measure takes for one checkpoint, about.

    Args:
        measure: With its parameters.
        sizes: Of the work; `rows` are those the measure uses.
    """
    # Every layer costs a forward pass of its own.
    passes = len(sizes.wanted) * sizes.rows * sizes.weights / PRODUCTS
    return passes + _WORK[measure.name](measure, sizes)


def _local_rank(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401 - each of its own kind
    found, before = 0.0, 0
    spectral = sizes.rows if measure.spectrum_rows is None else min(sizes.rows, measure.spectrum_rows)
    variable = min(sizes.inputs, measure.directions or sizes.inputs)
    for layer in sizes.layers:
        # A factor of the Jacobian is as narrow as the narrowest layer before; the first is the same for all rows.
        small = min(layer.width, variable)
        carried = before * layer.width * variable + layer.width * small**2 if before else 0.0
        found += sizes.rows * (4e-6 + carried / PRODUCTS) + (sizes.rows if before else 1) * small**3 / DECOMPOSITIONS
        found += spectral * 8 * layer.width * small**2 / DECOMPOSITIONS
        before, variable = layer.width, small
    return found


def _weight_rank(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401, ARG001
    pairs = zip([sizes.inputs, *(layer.width for layer in sizes.layers)], sizes.layers, strict=False)
    work = [5e-4 + fed * layer.width * min(fed, layer.width) / DECOMPOSITIONS for fed, layer in pairs]
    return float(sum(work))


def _binned(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401
    kinds = len(measure.coordinates["binning"])
    return float(sum(kinds * (1e-3 + sizes.rows * (1e-6 + 2e-8 * layer.width)) for layer in sizes.wanted))


def _fit(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401, ARG001
    return 1e-3


def _clustering(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401, ARG001
    pairs = sizes.rows**2 / 2
    return sum(4e-3 + pairs * (1.2e-8 + 2 * PAIR_UNIT * layer.width) for layer in sizes.wanted)


def _readout(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401
    found = 0.0
    for layer in sizes.wanted:
        cells = (len(measure.noise) + len(measure.rel_noise)) * _drawn(measure, sizes.rows, layer.width)
        if layer.width > WIDE:
            # Its principal components are looked at too.
            cells += len(measure.noise) * _drawn(measure, sizes.rows, WIDE)
            cells += 20 * layer.width**2 * min(sizes.rows, layer.width) / PRODUCTS
        found += cells
    return found


def _drawn(measure: Any, rows: int, width: int) -> float:  # noqa: ANN401
    draws: float = min(max(LEAST_DRAWS, 2 * rows, measure.tolerance**-2), max(2, measure.max_draws))
    return 0.01 + draws * (2e-6 + width * 3e-8 + rows * (PAIR + PAIR_UNIT * width))


def _network(measure: Any, sizes: Sizes) -> float:  # noqa: ANN401
    more = math.sqrt(sizes.rows / 1024)
    budget = float(measure.max_replicas) * measure.max_draws
    least = CELL_BUDGET * math.sqrt(budget / BUDGET)
    share = TOLERANCE / measure.tolerance
    usual = CELL * share ** (2.0 if share > 1 else 0.5) + (SPENT * least if measure.patient else 0.0)
    found = 0.0
    for layer in sizes.layers:
        if layer.first:
            found += len(measure.noise) * _drawn(measure, sizes.rows, layer.width)
        elif not layer.output:
            found += len(measure.noise) * min(usual, least) * more * max(1.0, layer.width / 10)
    return found


_WORK: Mapping[str, Callable[[Any, Sizes], float]] = {
    "local_rank": _local_rank,
    "weight_rank": _weight_rank,
    "probe_fit": _fit,
    "mi_binned": _binned,
    "mi_readout": _readout,
    "mi_network": _network,
    "clustering": _clustering,
}
