"""Results: named arrays with dimensions and attributes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ibscan.core.estimate import Estimate
from ibscan.core.records import Array
from ibscan.core.text import near_names
from ibscan.errors import NothingMatched, UsageError

__all__ = ["Result", "Variable"]


@dataclass(frozen=True)
class Variable:
    """A named array of a result: dimension names, values (float64, int64, int8 or str objects), attributes."""

    dims: tuple[str, ...]
    values: Array
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401 - numpy's protocol
        import numpy as np

        return np.array(self.values, dtype=dtype, copy=copy)

    @property
    def ancillary(self) -> tuple[str, ...]:
        """Names of its companions, then of its status."""
        return tuple(str(self.attrs.get("ancillary_variables", "")).split())


@dataclass(frozen=True)
class Result:
    """The content of one result file: named arrays with dimensions and attributes.

    `coordinates` holds the dimension scales (a variable named like its dimension) and the auxiliary coordinates
    (`epoch`, `layer_width`, ...); `variables` what was measured, with companions and statuses: `result["local_rank"]`
    is one array, `result.estimate("local_rank")` all that is known of the quantity. Root attributes are strings,
    integers, floats.
    """

    coordinates: Mapping[str, Variable]
    variables: Mapping[str, Variable]
    attrs: Mapping[str, Any]

    def __getitem__(self, name: str) -> Variable:
        return self.variables[name] if name in self.variables else self.coordinates[name]

    def __contains__(self, name: object) -> bool:
        return name in self.variables or name in self.coordinates

    def check_shown(self, units: str, variables: Iterable[str] = ()) -> None:
        """Check what is asked of a result before it is shown.

        Raises:
            UsageError: There is no such unit.
            NothingMatched: There is no such variable; the nearest names are said.
        """
        if units not in ("nats", "bits"):
            raise UsageError(f"units {units!r}: expected nats or bits.")
        for name in variables:
            if name not in self.variables:
                near = near_names(name, self.variables, 3, 0.5) or sorted(self.quantities)
                raise NothingMatched(f"--variable {name!r}: the result has no such variable; it has {', '.join(near)}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The `settings` attribute, decoded."""
        decoded: dict[str, Any] = json.loads(self.attrs.get("settings", "{}"))
        return decoded

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the variables that are not companions or statuses of others."""
        beside = {other for variable in self.variables.values() for other in variable.ancillary}
        return tuple(name for name in self.variables if name not in beside)

    def estimate(self, key: str) -> Estimate:
        """Return a quantity with all its companions: errors, bounds, extremes, draws and status.

        Args:
            key: Name of a quantity, such as `local_rank`; `quantities` lists them.

        Returns:
            Arrays in the shape of the variable and in its unit; what the file does not hold is None. `reasons` is None.

        Raises:
            KeyError: There is no such variable, or it is a coordinate, a companion or a status.

        Example:
            found = run.result.estimate("mi_readout_xt")
            half_width = 1.96 * found.stderr[found.status == 0]
        """
        owner = next((name for name in self.quantities if key in self.variables[name].ancillary), None)
        if owner is not None:
            field_name = Estimate.field_of(key)
            raise KeyError(f"{key} is no quantity: it is estimate({owner!r}).{field_name}.")
        if key not in self.variables:
            kind = "a coordinate" if key in self.coordinates else "not in this result"
            raise KeyError(f"{key} is {kind}; expected one of {', '.join(sorted(self.quantities))}.")
        beside: dict[str, Any] = {name: found.values for name, found in self.companions(key).items()}
        return Estimate(self.variables[key].values, **{"status": None, **beside})

    def companions(self, name: str) -> dict[str, Variable]:
        """Return the companions of a variable, by the field of `Estimate` they hold (`stderr`, ..., `status`).

        A companion of other dimensions, as files made by other tools may have, is left out.
        """
        main = self[name]
        named = {Estimate.field_of(other): self.variables.get(other) for other in main.ancillary}
        return {key: found for key, found in named.items() if key and found is not None and found.dims == main.dims}

    def bracket(self, name: str) -> tuple[Variable, Variable] | None:
        """Return the lower and upper end of a quantity's bracket, which narrows as more is spent; None without one.

        A channel with a bracket has a budget of replicas. Ends of other quantities are bounds that hold whatever is
        spent, and say nothing of how far a value may be off.
        """
        ends, suffix = self.companions(name), Estimate.companion("", "budget")
        channels = [other.removesuffix(suffix) for other in self.variables if other.endswith(suffix)]
        if not {"lower", "upper"} <= set(ends) or not any(name.startswith(f"{channel}_") for channel in channels):
            return None
        return ends["lower"], ends["upper"]

    def status(self, name: str) -> Array | None:
        """Return the status array that `name` shares, or None where it has none (counts, coordinates)."""
        status = self.companions(name).get("status")
        return None if status is None else status.values
