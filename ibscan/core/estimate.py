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
    """What a value means, or why there is none; stored as int8 beside every measured variable."""

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
    def meaning(self) -> str:
        """What it says of a cell, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: Mapping[Status, str] = {
    Status.OK: "The value is measured.",
    Status.NOT_MEASURED: "There is no such number here: no labels, no noise at this layer, or nothing asked for it.",
    Status.SATURATED: "The value is within 0.1 nat of H(X): more noise, wider cells or more rows are needed.",
    Status.DEAD: "The layer is the same for every row, and tells nothing of them.",
    Status.NONFINITE: "The layer, its Jacobian or its weight holds NaN or infinity.",
    Status.FAILED: "A computation did not come to an end; running again tries again.",
    Status.OUT_OF_MEMORY: "There was too little memory; running again tries again.",
    Status.UNRESOLVED: "The value is there, but not within the tolerance, or rounding leaves it open.",
    Status.LOWER_BOUND: "The truth may be larger: Jacobians were taken on random directions of the input alone.",
}


@dataclass(frozen=True)
class Estimate:
    """Values with their uncertainty and status, arrays (C, L, *dims) or (C, *dims).

    A NaN value never has the status OK. What stands beside the value is stored as a companion, a variable of its own
    whose name ends in a suffix (`COMPANIONS`), and shares the status. Counted quantities have `status` None. `reasons`
    says of some layers, by index, why their status is what it is; it is told to the user and not stored. How a field is
    spelt in the name of a variable is known here and nowhere else.
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
    }
    # Numbers of draws and passes, whatever the unit of the value.
    UNITLESS: ClassVar[frozenset[str]] = frozenset({"draws", "replicas", "budget"})

    @staticmethod
    def companion(key: str, suffix: str) -> str:
        """Return the stored name of a companion of the quantity `key`, or of its `status`."""
        # Both sides of a noisy channel share their replicas, which carry no side in their name.
        return f"{key.removesuffix('_xt') if suffix in ('replicas', 'budget') else key}_{suffix}"

    @staticmethod
    def field_of(name: str) -> str:
        """Return the field that a stored companion holds (`stderr` for `nc1_se`), `status`, or an empty string."""
        suffix = name.rpartition("_")[2]
        fields = {**{suffix: field for field, suffix in Estimate.COMPANIONS.items()}, "status": "status"}
        return fields.get(suffix, "")

    @staticmethod
    def sides(key: str) -> tuple[str, ...]:
        """Return the keys of I(X;T) and I(T;Y) of one channel, given either; none for what is of no channel."""
        return (f"{key[:-3]}_xt", f"{key[:-3]}_ty") if key.endswith(("_xt", "_ty")) else ()

    def mapped(self, change: Callable[[Array], Array]) -> Estimate:
        """Return the estimate with every array changed in the same way."""
        arrays = {name: getattr(self, name) for name in ("value", "status", *self.COMPANIONS)}
        kept: dict[str, Any] = {name: change(array) for name, array in arrays.items() if array is not None}
        return dataclasses.replace(self, **kept)
