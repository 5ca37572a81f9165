"""Quantities and dimensions: what a stored number means, and along what it varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BINNING",
    "COMPONENT",
    "DIMENSIONS",
    "DISTANCE_BIN",
    "EPS",
    "NOISE",
    "RANK_VALUE",
    "REL_EPS",
    "REL_NOISE",
    "Dimension",
    "Quantity",
]


@dataclass(frozen=True)
class Dimension:
    """A dimension beyond (checkpoint, layer).

    Args:
        name: In the file.
        meaning: What its coordinate says, stored as its `long_name`.
        kind: Of its coordinate, as numpy codes it: `f` numbers, `i` whole numbers, `O` text.
        unit: Of its coordinate.
        label: Head of the column of its values.
        title: Its name in the title of a table.
        options: Keywords of the options that set its values; none where the measure or the network decides.
        verb: The command that measures at more of its values, given those options.
        first: Its first value where only the network decides how many there are.
    """

    name: str
    meaning: str
    kind: str = "f"
    unit: str = "1"
    label: str = ""
    title: str = ""
    options: tuple[str, ...] = ()
    verb: str = ""
    first: int = 0

    @property
    def flags(self) -> str:
        """The options as typed, `--bins or --bin-width`."""
        return " or ".join(f"--{option.replace('_', '-')}" for option in self.options)


EPS = Dimension("eps", "absolute threshold on singular values", label="eps", title="eps", options=("eps",), verb="rank")
REL_EPS = Dimension(
    "rel_eps",
    "threshold relative to the row's largest singular value",
    label="eps",
    title="relative eps",
    options=("rel_eps",),
    verb="rank",
)
NOISE = Dimension(
    "noise",
    "standard deviation of the Gaussian noise per unit, in activation units",
    unit="activation units",
    label="noise",
    title="noise",
    options=("noise",),
    verb="mi",
)
REL_NOISE = Dimension(
    "rel_noise",
    "standard deviation of the noise as a multiple of the layer's root-mean-square distance from its mean",
    label="noise/rms",
    title="relative noise",
    options=("rel_noise",),
    verb="mi",
)
BINNING = Dimension(
    "binning",
    "how units were cut into cells",
    "O",
    label="cells",
    title="cells",
    options=("bins", "bin_width"),
    verb="mi",
)
COMPONENT = Dimension("component", "place of the singular value in descending order, from 1", "i", first=1)
RANK_VALUE = Dimension("rank_value", "rank of a row's Jacobian, from 0", "i")
DISTANCE_BIN = Dimension("distance_bin", "index of the distance bin, from 0", "i")
DIMENSIONS: Mapping[str, Dimension] = {
    dimension.name: dimension
    for dimension in (EPS, REL_EPS, NOISE, REL_NOISE, BINNING, COMPONENT, RANK_VALUE, DISTANCE_BIN)
}


@dataclass(frozen=True)
class Quantity:
    """What is measured: a variable of the result file.

    Args:
        key: Name of the variable in the file.
        symbol: In formulas and heads of tables; it names the channel.
        unit: `nat`, `activation units`, or `1`.
        meaning: In words, stored as `long_name`.
        over: Dimensions beyond (checkpoint, layer).
        per_layer: False for what belongs to the checkpoint as a whole.
        counted: Whether it is an integer count or an exact coordinate, which carries no status.
        default_shown: False for histograms and spectra, which exports give only when asked by name.
        limit: The measure's field that holds the rows this quantity uses at most, where fewer than the measure uses.
        companions: Suffixes of what is stored beside it (`se`, `lower`, ...); `ibscan.core.estimate.Estimate` explains
            them.
        formula: In one line of plain text.
        source: Where it is defined; the measure's own source where empty.
        caveat: What it does not say; the measure's own caveat where empty.
        table: Title of the table that shows it with others of that title; empty where another table does, or none.
    """

    key: str
    symbol: str
    unit: str
    meaning: str
    over: tuple[Dimension, ...] = ()
    per_layer: bool = True
    counted: bool = False
    default_shown: bool = True
    limit: str = ""
    companions: tuple[str, ...] = ()
    formula: str = ""
    source: str = ""
    caveat: str = ""
    table: str = ""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions beyond (checkpoint, layer)."""
        return tuple(dimension.name for dimension in self.over)

    def rows(self, measure: Any, rows: int) -> int:  # noqa: ANN401 - a Measure, which knows quantities
        """Return how many of the rows a measure was given this quantity uses."""
        most = getattr(measure, self.limit) if self.limit else None
        return rows if most is None else min(rows, most)
