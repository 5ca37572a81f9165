"""A run in Python: its arrays by name, and what they convert to."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.face.named_array import NamedArray, named_array
from ibscan.face.wording import speaking_python
from ibscan.results.join import first_difference
from ibscan.results.parts import check_output
from ibscan.results.store import read, write

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ibscan.face.shown import Summary

__all__ = ["Run", "shown_in_notebooks"]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What a scan measured: named arrays, the file they were written to or read from if any, and an exit code.

    `run["local_rank"]` is one array with its coordinates; `list(run)` names them all.
    `run.result.estimate("local_rank")` has errors, extremes and statuses too. `exit_code` is the command's: 0, or 4
    where a checkpoint or a cell failed.
    """

    result: Result
    output: Path | None = None
    exit_code: int = 0

    def __getitem__(self, name: str) -> NamedArray:
        return named_array(self.result, name)

    def __contains__(self, name: object) -> bool:
        return name in self.result

    def __iter__(self) -> Iterator[str]:
        return iter(self.result.variables)

    def __len__(self) -> int:
        return len(self.result.variables)

    def __repr__(self) -> str:
        from ibscan.face.shown import facts, facts_text

        return facts_text(facts(self.result, self.output))

    def _repr_html_(self) -> str:
        from ibscan.face.shown import facts_html

        return facts_html(self.result, self.output)

    def summary(self, *, units: str = "nats") -> Summary:
        """Return what every quantity did in every layer, and whether that exceeds its error.

        Args:
            units: `nats`, or `bits` to convert what is in nat.

        Raises:
            UsageError: There is no such unit.
            NothingMatched: There is nothing to summarise.
        """
        from ibscan.face.shown import Summary
        from ibscan.views.summary import summary_rows

        with speaking_python({"units": units}):
            return Summary(self.result, units, summary_rows(self.result, units=units))

    def plot(
        self,
        variable: str | None = None,
        *,
        kind: str | None = None,
        units: str = "nats",
        style: str = "print",
        ax: Axes | Sequence[Axes] | None = None,
    ) -> Figure:
        """Draw one figure; the guide's page plots.md has all kinds.

        Args:
            variable: What to draw; the first of its kind where None.
            kind: Kind of figure; the first that shows the variable where None.
            units: `nats` or `bits`.
            style: `print`, one column of a paper, or `screen`.
            ax: Axes to draw on, one a panel, instead of those of a new figure.

        Returns:
            A figure of matplotlib, which a notebook shows and `savefig` writes.

        Raises:
            UsageError: There is no such kind or unit; there are fewer axes than panels, or no matplotlib.
            NothingMatched: There is no such variable, or the run holds no numbers for such a figure.
        """
        from ibscan.views.figures import plot

        with speaking_python({"variable": variable, "kind": kind}):
            figure = plot(self.result, kind, variable, units=units, style=style, axes=ax)
        return figure if ax is not None else shown_in_notebooks(figure)

    def to_xarray(self) -> xarray.Dataset:
        """Return everything as xarray reads it from the file: dimensions, coordinates, attributes and numbers.

        Raises:
            UsageError: The extra `xarray` is not installed.
        """
        from ibscan.face.frames import dataset

        return dataset(self.result)

    def to_dataframe(self, variable: str | None = None, *, units: str = "nats") -> pandas.DataFrame:
        """Return tidy rows, one for each number, in the columns of `ibscan export`.

        Args:
            variable: One variable alone, histograms and spectra too, with its cells that were not measured.
            units: `nats`, or `bits` to convert what is in nat.

        Raises:
            UsageError: There is no such unit, or the extra `xarray` is not installed.
            NothingMatched: There is no such variable.
        """
        from ibscan.face.frames import dataframe

        with speaking_python({"variable": variable, "units": units}):
            return dataframe(self.result, units=units, variables=[] if variable is None else [variable])

    def to_hdf5(self, path: str | PathLike[str]) -> None:
        """Write the arrays to one HDF5 file, completely or not at all.

        Raises:
            UsageError: The path is a folder, or a file that is not a result of the same model, probe, seed and dtype.
            ResourceError: The disk is full.
        """
        target = Path(path)
        with speaking_python({}):
            check_output(target, [])
            difference = first_difference(read(target), self.result.attrs) if target.exists() else None
            if difference is not None:
                raise UsageError(f"{target} holds another result: {difference}. Name another file.")
            write(self.result, target)


def shown_in_notebooks(figure: Figure) -> Figure:
    """Return a figure that a notebook shows: it is none of pyplot's, which alone teaches notebooks to."""
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
