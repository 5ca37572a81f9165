"""One array of a run, with its coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.core.text import listed, near_names
from ibscan.errors import UsageError

__all__ = ["NamedArray", "named_array"]

_MOST_NAMED = 8


@dataclass(frozen=True, eq=False, repr=False)
class NamedArray:
    """An array that knows what it is: numpy takes it as it is, `sel` selects by coordinates.

    `values` has one axis for each of `dims`; `coords` maps names to the coordinates along them (`epoch` and
    `checkpoint_name` along `checkpoint`, and so on), which are named arrays of the kind of the file's; `attrs` says
    what it means, and how it was measured.
    """

    name: str
    dims: tuple[str, ...]
    values: Array
    coords: Mapping[str, Variable]
    attrs: Mapping[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401 - numpy's protocol
        return np.array(self.values, dtype=dtype, copy=copy)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along `dims`."""
        return tuple(self.values.shape)

    def __len__(self) -> int:
        return len(self.values)

    def sel(self, **where: Any) -> NamedArray:  # noqa: ANN401 - values of coordinates
        """Select by values of coordinates: one value drops its dimension, a list or a slice (both ends in) keeps it.

        Args:
            **where: By dimension or coordinate: `layer="fc1"`, `epoch=[0, 10]`, `epoch=slice(10, None)`, `eps=0.01`.

        Raises:
            UsageError: There is no such coordinate or value, or one value is that of several places.

        Example:
            run["local_rank"].sel(layer="fc1", epoch=100, eps=0.01).values
        """
        found = self
        for name, wanted in where.items():
            found = found._selected(name, wanted)
        return found

    def _selected(self, name: str, wanted: Any) -> NamedArray:  # noqa: ANN401 - as above
        coordinate = self.coords.get(name)
        if coordinate is None or not coordinate.dims:
            known = [key for key, one in self.coords.items() if one.dims]
            near = near_names(name, known, 1)
            raise UsageError(
                f"{self.name} has no coordinate {name!r} to select by; "
                + (f"did you mean {near[0]}?" if near else f"it has {listed(known, _MOST_NAMED) or 'none'}.")
            )
        places = self._places(name, coordinate.values, wanted)
        index: Any = places if isinstance(wanted, slice) or not _is_single(wanted) else places[0]
        return self._cut(coordinate.dims[0], index)

    def _places(self, name: str, values: Array, wanted: Any) -> list[int]:  # noqa: ANN401 - as above
        if isinstance(wanted, slice):
            if wanted.step is not None or values.dtype.kind == "O":
                raise UsageError(f"{name}={wanted}: slices are of numbers and have no step; give a list of values.")
            low, high = (
                -np.inf if wanted.start is None else wanted.start,
                np.inf if wanted.stop is None else wanted.stop,
            )
            return [*map(int, np.flatnonzero((values >= low) & (values <= high)))]
        places: list[int] = []
        for one in [wanted] if _is_single(wanted) else wanted:
            found = np.flatnonzero(_equal(values, one))
            if not len(found):
                listing = dict.fromkeys(values.tolist())
                shown = [value if isinstance(value, str) else f"{value:g}" for value in listing]
                near = near_names(str(one), shown, 3) if values.dtype.kind == "O" else []
                raise UsageError(
                    f"{name}={one!r}: there is no such value; expected {listed(near or shown, _MOST_NAMED)}."
                )
            if len(found) > 1 and _is_single(wanted):
                raise UsageError(
                    f"{name}={one!r}: {len(found)} places have this value; give [{one!r}] for all of them, or select "
                    "by another coordinate."
                )
            places += map(int, found)
        return places

    def _cut(self, dim: str, index: Any) -> NamedArray:  # noqa: ANN401 - a place, or several
        def cut(dims: tuple[str, ...], values: Array) -> tuple[tuple[str, ...], Array]:
            if dim not in dims:
                return dims, values
            left = dims if isinstance(index, list) else tuple(one for one in dims if one != dim)
            return left, np.asarray(np.take(values, index, dims.index(dim)), dtype=values.dtype)

        coords = {name: Variable(*cut(one.dims, one.values), one.attrs) for name, one in self.coords.items()}
        dims, values = cut(self.dims, self.values)
        return NamedArray(self.name, dims, values, coords, self.attrs)

    def __repr__(self) -> str:
        from ibscan.views.console import escaped

        sizes = ", ".join(f"{dim}: {size}" for dim, size in zip(self.dims, self.shape, strict=True))
        head = f"<{self.name} ({sizes})> {self.attrs.get('long_name', '')}".rstrip()
        coords = [name for name, one in self.coords.items() if one.dims]
        unit = self.attrs.get("units")
        facts = [f"unit: {unit}"] if unit and unit != "1" else []
        facts += [f"coordinates: {', '.join(coords)}"] if coords else []
        return "\n".join(
            [*map(escaped, (head, *facts)), np.array2string(self.values, threshold=20, edgeitems=2, precision=5)]
        )


def named_array(result: Result, name: str) -> NamedArray:
    """Return a variable or a coordinate of a result with the coordinates along its dimensions.

    Raises:
        KeyError: There is none of the name; the message says which there are.
    """
    if name not in result:
        known = [*result.variables, *result.coordinates]
        near = near_names(str(name), known, 3)
        said = f"did you mean {' or '.join(near)}?" if near else f"there is {listed(sorted(result.quantities), 12)}."
        raise KeyError(f"the result has no {name!r}; {said}")
    found = result[name]
    along = {key: one for key, one in result.coordinates.items() if one.dims and set(one.dims) <= set(found.dims)}
    return NamedArray(name, found.dims, found.values, along, found.attrs)


def _is_single(wanted: Any) -> bool:  # noqa: ANN401 - a value, or several
    return isinstance(wanted, str) or np.ndim(wanted) == 0


def _equal(values: Array, one: Any) -> Array:  # noqa: ANN401 - a value of a coordinate
    if values.dtype.kind == "O" or isinstance(one, str):
        return np.array([value == one for value in values.tolist()], dtype=bool)
    # A threshold that was computed, 3 * 0.1, is the one that was typed.
    known = isinstance(one, Real)
    return np.isclose(values.astype(np.float64), float(one) if known else np.nan, rtol=1e-9, atol=0)
