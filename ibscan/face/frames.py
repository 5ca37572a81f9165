"""Runs as objects of xarray and pandas, which the extra `xarray` brings."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.export import COLUMNS, rows
from ibscan.results.store import encoded

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["dataframe", "dataset"]


def dataset(result: Result) -> xarray.Dataset:
    """Return a result as xarray reads its file: the same dimensions, coordinates, attributes and numbers.

    Raises:
        UsageError: xarray or h5netcdf is not installed.
    """
    with _needed("to_xarray"):
        import h5netcdf  # noqa: F401 - the engine, whose absence xarray reports at length
        import xarray
    with xarray.open_dataset(io.BytesIO(encoded(result)), engine="h5netcdf") as found:
        return found.load()


def dataframe(result: Result, *, units: str, variable: str | None) -> pandas.DataFrame:
    """Return the rows of `ibscan export`: one for each number, in the same columns.

    Raises:
        UsageError: There is no such unit or variable, or pandas is not installed.
    """
    with _needed("to_dataframe"):
        import pandas
    found = pandas.DataFrame(list(rows(result, units=units, variable=variable)), columns=list(COLUMNS))
    numbers = ["epoch", "step", "value", "result", "se", "lower", "upper"]
    return found.astype(dict.fromkeys(numbers, "float64"))


@contextmanager
def _needed(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what} needs xarray, h5netcdf and pandas ({error}); install them with pip install 'ibscan[xarray]'."
        ) from None
