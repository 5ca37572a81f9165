"""A measured number: its value, its uncertainty, and its status."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from ibscan.core.records import Array

__all__ = ["Estimate", "Status"]


class Status(IntEnum):
    """Whether a value can be used, and if not, why; stored as int8 beside every measured variable."""

    OK = 0
    NOT_MEASURED = 1
    SATURATED = 2
    DEAD = 3
    NONFINITE = 4
    FAILED = 5
    OUT_OF_MEMORY = 6
    UNRESOLVED = 7
    LOWER_BOUND = 8

    @property
    def legend(self) -> str:
        """What the legend of a table says."""
        return _TEXTS[self][0]

    @property
    def meaning(self) -> str:
        """What it says of a value, in full."""
        return _TEXTS[self][1]

    @property
    def remedy(self) -> str:
        """What the user can do about it; empty where nothing is to be done."""
        return _TEXTS[self][2]


# Legend, meaning and remedy; the guide's table of statuses is made from them.
_TEXTS: Mapping[Status, tuple[str, str, str]] = {
    Status.OK: ("ok", "the value is what it says, within its error", ""),
    Status.NOT_MEASURED: (
        "not measured",
        "not asked for, or there is nothing to measure: no labels, no such channel at this layer, a bound that does "
        "not hold in this network",
        "`ibscan ls --probe PROBE` lists what is not measured at which layer, and why",
    ),
    Status.SATURATED: (
        "saturated: too close to its ceiling to tell anything apart",
        "within 0.1 nat of H(X), too near the ceiling to tell anything apart (for the network channel: the lower end "
        "of its bracket is). The value stays. Not said where H(X) is below 0.2 nat. It does not mean that all "
        "information is kept",
        "a larger noise, wider cells, or more rows",
    ),
    Status.DEAD: (
        "dead: the layer is constant over the probe",
        "every unit is constant over the probe, but for the rounding of its own values; for rank: a zero Jacobian. "
        "The value, 0, is right",
        "look at the layer; `#` is the mark on a terminal without Unicode",
    ),
    Status.NONFINITE: (
        "not finite: a NaN or infinity reaches the layer",
        "a NaN or an infinity reaches the layer",
        "look at the checkpoint: one such weight makes every layer after it so; counts as a failure",
    ),
    Status.FAILED: (
        "failed",
        "the layer cannot be differentiated, its declared derivative is not that of what is computed, or a "
        "decomposition did not converge",
        "standard error says why; everything else is measured; counts as a failure",
    ),
    Status.OUT_OF_MEMORY: (
        "out of memory",
        "memory ran out at this cell",
        "fewer rows (`--samples`), fewer layers (`--layers`), a larger machine; counts as a failure",
    ),
    Status.UNRESOLVED: (
        "unresolved: tolerance not reached within the budget",
        "the tolerance was not reached within the budget; in the network channel its bracket, which did not close, "
        "stands behind the number, `3.1 [2.6, 3.6]?`, and is all that is known of it; for rank: the count is within "
        "reach of rounding coarser than float64",
        "`--max-replicas`, `--max-draws`, a larger `--tolerance` or `--noise`; for rank: another eps",
    ),
    Status.LOWER_BOUND: (
        "lower bound",
        "counted on a subspace of the input (`--input-dims`): the true count is at least this",
        "more `--input-dims`",
    ),
}


@dataclass(frozen=True)
class Estimate:
    """Values with their uncertainty and status, arrays (C, L, *dims) or (C, *dims).

    A NaN never has the status OK. Every field beside `value` and `status` is stored as a companion: a variable whose
    name ends in a suffix (`COMPANIONS`, the only place that spells them), and that shares the status. Counted
    quantities have `status` None. `reasons` explains the status of some layers, by index, to the user; it is not
    stored.
    """

    value: Array
    status: Array | None
    stderr: Array | None = None
    lower: Array | None = None
    upper: Array | None = None
    minimum: Array | None = None
    maximum: Array | None = None
    draws: Array | None = None
    replicas: Array | None = None
    budget: Array | None = None
    inputs: Array | None = None
    paths: Array | None = None
    reasons: Mapping[int, str] | None = None

    COMPANIONS: ClassVar[Mapping[str, str]] = {
        "stderr": "se",
        "lower": "lower",
        "upper": "upper",
        "minimum": "min",
        "maximum": "max",
        "draws": "draws",
        "replicas": "replicas",
        "budget": "budget",
        "inputs": "inputs",
        "paths": "paths",
    }
    MEANINGS: ClassVar[Mapping[str, str]] = {
        "se": "standard error of",
        "lower": "lower end for",
        "upper": "upper end for",
        "min": "minimum over rows of",
        "max": "maximum over rows of",
        "draws": "draws behind the",
        "replicas": "noisy passes of one input (1 where its density is exact) behind the",
        "budget": "replicas times draws allowed for the",
        "inputs": "inputs visited for the",
        "paths": "weighted paths a draw (0: none, but replicas) behind the",
    }
    # Counts of draws and passes, which do not have the unit of the value.
    UNITLESS: ClassVar[frozenset[str]] = frozenset({"draws", "replicas", "budget", "inputs", "paths"})

    # Shared by both sides of a channel: their names carry no side.
    SHARED: ClassVar[frozenset[str]] = frozenset({"replicas", "budget", "inputs", "paths"})

    @staticmethod
    def companion(key: str, suffix: str) -> str:
        """Return the stored name of a companion of the quantity `key`; `status` counts as one."""
        return f"{key.removesuffix('_xt') if suffix in Estimate.SHARED else key}_{suffix}"

    @staticmethod
    def field_of(name: str) -> str:
        """Return the field that a stored companion holds (`stderr` for `nc1_se`), `status`, or an empty string."""
        suffix = name.rpartition("_")[2]
        fields = {**{suffix: field for field, suffix in Estimate.COMPANIONS.items()}, "status": "status"}
        return fields.get(suffix, "")

    @staticmethod
    def sides(key: str) -> tuple[str, ...]:
        """Return the keys of I(X;T) and I(T;Y) of a channel, given either of them; none for other quantities."""
        return (f"{key[:-3]}_xt", f"{key[:-3]}_ty") if key.endswith(("_xt", "_ty")) else ()

    def mapped(self, change: Callable[[Array], Array]) -> Estimate:
        """Apply a function to every array."""
        arrays = {name: getattr(self, name) for name in ("value", "status", *self.COMPANIONS)}
        kept: dict[str, Any] = {name: change(array) for name, array in arrays.items() if array is not None}
        return dataclasses.replace(self, **kept)
