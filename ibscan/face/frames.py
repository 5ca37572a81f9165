"""Runs as objects of xarray and pandas, which the extra `xarray` brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.export import COLUMNS, rows
from ibscan.results.store import DIMENSION_NAMES, dimension_names, stored_variables

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["dataframe", "dataset"]


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


def dataframe(result: Result, *, units: str, variable: str | None) -> pandas.DataFrame:
    """Return the rows of `ibscan export`: one for each number, in the same columns.

    Raises:
        UsageError: There is no such unit or variable, or pandas is not installed.
    """
    with _needed("to_dataframe"):
        import pandas
    found = pandas.DataFrame(list(rows(result, units=units, variable=variable)), columns=list(COLUMNS))
    numbers = ["epoch", "step", "value", "result", "se", "lower", "upper"]
    # A parameter is a number or a name, and NaN where there is none, as in the other columns.
    return found.astype(dict.fromkeys(numbers, "float64")).fillna({"parameter_value": float("nan")})


@contextmanager
def _needed(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what} needs xarray and pandas ({error}); install them with pip install 'ibscan[xarray]'."
        ) from None
