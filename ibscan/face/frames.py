"""Runs as objects of xarray and pandas, which the extra `xarray` brings."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.export import COLUMNS, rows
from ibscan.results.store import DIMENSION_NAMES, dimension_names, stored_variables
from ibscan.views.view import View

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["dataframe", "dataset", "joined_datasets", "joined_frames"]


def dataset(result: Result) -> xarray.Dataset:
    """Return a result as xarray reads its file: the same dimensions, coordinates, attributes and numbers.

    Raises:
        UsageError: xarray is not installed.
    """
    with _needed("to_xarray"):
        import xarray
    present = stored_variables(result)
    arrays = {name: (one.dims, _plain(one.values), dict(one.attrs)) for name, one in present.items()}
    coordinates = {name: arrays.pop(name) for name in present if name in result.coordinates}
    attrs = {**result.attrs, DIMENSION_NAMES: dimension_names(present)}
    # As files are decoded: fill values become NaN.
    return xarray.decode_cf(xarray.Dataset(arrays, coordinates, attrs))


def _plain(values: Array) -> Array:
    return values.astype(str) if values.dtype.kind == "O" else values.copy()


def dataframe(result: Result, *, units: str, variables: Sequence[str]) -> pandas.DataFrame:
    """Return the rows of `ibscan export`: one for each number, in the same columns.

    Raises:
        UsageError: There is no such unit, or pandas is not installed.
        NothingMatched: There is no such variable.
    """
    with _needed("to_dataframe"):
        import pandas
    found = pandas.DataFrame(list(rows(result, units=units, variables=variables)), columns=list(COLUMNS))
    numbers = ["epoch", "step", "value", "result", "se", "lower", "upper"]
    # A parameter is a number or a name, and NaN where there is none, as in the other columns.
    return found.astype(dict.fromkeys(numbers, "float64")).fillna({"parameter_value": float("nan")})


def joined_frames(frames: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Return the rows of several runs, one after the other, the name of the run in the last column."""
    import pandas

    named = [frame.assign(run=name) for name, frame in frames.items()]
    return pandas.concat(named, ignore_index=True)


def joined_datasets(results: Mapping[str, Result]) -> xarray.Dataset:
    """Return results along a dimension `run`, their checkpoints aligned by the axis of the series.

    Raises:
        UsageError: The axis is not that of all, or checkpoints of one share a place on it; or xarray is not installed.
    """
    places = _places(results)
    found = {name: dataset(result).assign_coords(checkpoint=places[name]) for name, result in results.items()}
    import pandas
    import xarray

    # A cell that a run does not have was not measured.
    fill: dict[Hashable, float] = {
        name: int(Status.NOT_MEASURED) if one.dtype == np.int8 else np.nan
        for part in found.values()
        for name, one in part.variables.items()
    }
    along: Hashable = pandas.Index(list(found), name="run")
    return xarray.concat(
        list(found.values()),
        along,
        data_vars="all",
        coords="different",
        compat="equals",
        join="outer",
        combine_attrs="drop_conflicts",
        fill_value=fill,
    )


def _places(results: Mapping[str, Result]) -> dict[str, list[int]]:
    """Return, for every result, the places of its checkpoints among those of all."""
    views = {name: View(result, "nats", every=True, width=1, unicode=True) for name, result in results.items()}
    axes = {name: view.axis_values for name, view in views.items()}
    if len({view.axis_name for view in views.values()}) > 1 or any(values is None for values in axes.values()):
        said = ", ".join(f"{name} along {view.axis[0]}" for name, view in views.items())
        raise UsageError(f"runs are along different axes, or have none ({said}); convert them one by one.")
    known = {name: [] if values is None else values.tolist() for name, values in axes.items()}
    for name, values in known.items():
        if len(set(values)) < len(values):
            raise UsageError(f"{name}: several checkpoints have the same {views[name].axis_name}; convert it alone.")
    order = {value: place for place, value in enumerate(sorted(set(chain.from_iterable(known.values()))))}
    return {name: [order[value] for value in values] for name, values in known.items()}


@contextmanager
def _needed(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what} needs xarray and pandas ({error}); install them with pip install 'ibscan[xarray]'."
        ) from None
