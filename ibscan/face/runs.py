"""Several runs side by side, along a dimension `run` that no file has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ibscan.core.result import Variable
from ibscan.core.text import listed
from ibscan.errors import UsageError
from ibscan.face.named_array import NamedArray
from ibscan.face.run import Run, shown_in_notebooks
from ibscan.face.wording import speaking_python
from ibscan.results.axes import strings

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Runs"]

_MOST_LISTED = 8


@dataclass(frozen=True, eq=False, repr=False)
class Runs:
    """Runs by their names: `runs["local_rank"]` is one array over all of them, `runs.runs["seed0"]` one run."""

    runs: Mapping[str, Run]

    def __getitem__(self, name: str) -> NamedArray:
        """Return an array of all runs, `run` its first dimension.

        Raises:
            KeyError: A run has no such array.
            UsageError: The runs differ in checkpoints, layers or parameters.
        """
        found = {run: one[name] for run, one in self.runs.items()}
        first = next(iter(found.values()))
        for run, other in found.items():
            own = _difference(first, other)
            if own is not None:
                raise UsageError(
                    f"{name}: {run} has other values of {own} than {next(iter(found))}; to_xarray() aligns them."
                )
        values = np.stack([one.values for one in found.values()])
        along = Variable(("run",), strings(found), {"long_name": "name of the run"})
        return NamedArray(name, ("run", *first.dims), values, {"run": along, **_shared(found)}, first.attrs)

    def __contains__(self, name: object) -> bool:
        return all(name in run for run in self.runs.values())

    def __iter__(self) -> Iterator[str]:
        first = next(iter(self.runs.values()))
        return (name for name in first if name in self)

    def __repr__(self) -> str:
        from ibscan.face.shown import facts

        told = {name: dict(facts(run.result, run.output)) for name, run in self.runs.items()}
        lines = [f"{name}: checkpoints {fact['checkpoints']}; layers {fact['layers']}" for name, fact in told.items()]
        more = [f"and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
        return "\n".join(["<ibscan.Runs>", *lines[:_MOST_LISTED], *more])

    def plot(
        self,
        variable: str | None = None,
        *,
        kind: str | None = None,
        units: str = "nats",
        style: str = "print",
        band: bool = False,
        ax: Axes | Sequence[Axes] | None = None,
    ) -> Figure:
        """Draw one figure of all runs, side by side; see `Run.plot`.

        Args:
            variable: As there, and so are `kind`, `units`, `style` and `ax`.
            kind: See above.
            units: See above.
            style: See above.
            band: Mean over runs, and their standard deviation as a band, instead of a line for each.
            ax: See above.

        Raises:
            UsageError: As `Run.plot`; or the runs are along different axes, or too many are side by side.
            NothingMatched: The runs hold no numbers for such a figure.
        """
        from ibscan.views.figures import plot

        results = {name: run.result for name, run in self.runs.items()}
        with speaking_python({"variable": variable, "kind": kind}):
            figure = plot(results, kind, variable, units=units, band=band, style=style, axes=ax)
        return figure if ax is not None else shown_in_notebooks(figure)

    def to_dataframe(self, variable: str | None = None, *, units: str = "nats") -> pandas.DataFrame:
        """Return the rows of every run, its name in the last column, `run`; see `Run.to_dataframe`."""
        from ibscan.face.frames import joined_frames

        return joined_frames({name: run.to_dataframe(variable, units=units) for name, run in self.runs.items()})

    def to_xarray(self) -> xarray.Dataset:
        """Return everything along a first dimension `run`, checkpoints aligned by the axis (epoch, step or value).

        What a run does not have is NaN, text that is missing too, and its status `not_measured`.

        Raises:
            UsageError: The axis is not that of all runs, or several checkpoints of one run have the same place on it;
                or the extra `xarray` is not installed.
        """
        from ibscan.face.frames import joined_datasets

        return joined_datasets({name: run.result for name, run in self.runs.items()})


def _difference(one: NamedArray, other: NamedArray) -> str | None:
    """Name the dimension along which two arrays have other coordinates, None if they agree."""
    if one.dims != other.dims:
        return listed(one.dims, _MOST_LISTED)
    for dim in one.dims:
        # Checkpoints are the same place of a series where their numbers on its axes are the same.
        names = ("epoch", "step", "value") if dim == "checkpoint" else (dim,)
        for name in names:
            here, there = one.coords[name].values, other.coords[name].values
            if here.shape != there.shape or not np.array_equal(here, there, equal_nan=here.dtype.kind == "f"):
                return dim if dim != "checkpoint" else name
    return None


def _shared(found: Mapping[str, NamedArray]) -> dict[str, Variable]:
    """Return the coordinates that are those of all runs: not the names and hashes of their files."""
    first, *others = found.values()
    return {
        name: one
        for name, one in first.coords.items()
        if all(
            np.array_equal(one.values, other.coords[name].values, equal_nan=one.values.dtype.kind == "f")
            for other in others
        )
    }
