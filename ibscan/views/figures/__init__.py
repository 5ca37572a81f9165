"""Figures of results, each kind one file and one line in `FIGURES`.

To add a kind, write `ibscan/views/figures/NAME.py` with `FIGURE = Figure(title, pictures)` (see
`ibscan.views.figures.picture`) and add NAME below. A kind makes pictures, which are numbers and words; `draw` alone
knows matplotlib, which is the extra `plot`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ibscan.core.text import near_names
from ibscan.errors import NothingMatched, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

    from ibscan.core.result import Result
    from ibscan.views.figures.picture import Figure, Picture, Run

__all__ = ["FIGURES", "pictures", "plot", "specs"]

# Modules of this package, in the order drawn. Names, so that importing the package loads neither numpy nor matplotlib.
FIGURES: tuple[str, ...] = (
    "local_rank",
    "rank_curve",
    "input_information",
    "label_information",
    "information_plane",
    "information_curve",
    "information_slope",
    "distances",
    "collapse",
    "representation",
    "metric",
    "variable",
)
_MOST_RUNS = 6


def specs() -> Mapping[str, Figure]:
    """Load the specification of every kind, by its name, in the order drawn."""
    return {name: import_module(f"ibscan.views.figures.{name}").FIGURE for name in FIGURES}


def pictures(
    results: Mapping[str, Result],
    *,
    kinds: Collection[str] = (),
    variables: Sequence[str] = (),
    units: str = "nats",
    band: bool = False,
    every: bool = False,
) -> list[Picture]:
    """Return what is to be drawn of results.

    Args:
        results: By the names that tell them apart.
        kinds: Names in `FIGURES`; none for all.
        variables: Variables to draw; none for those that have a kind of their own.
        units: `nats`, or `bits` to convert what is in nat.
        band: Draw the mean over results, and their standard deviation as a band, instead of results side by side.
        every: Every checkpoint of what is drawn at a few, such as histograms: for a page with a slider.

    Returns:
        One picture a figure, in the order of `FIGURES`.

    Raises:
        UsageError: There is no such kind or variable, results are along different axes, or too many are side by side.
        NothingMatched: The results hold nothing that was asked for.
    """
    from ibscan.views.figures.pooled import pooled
    from ibscan.views.figures.variable import of_variable

    kinds = tuple(map(_kind, kinds))
    runs = _runs(results, units, variables, band, every)
    runs = [pooled(runs)] if band and len(runs) > 1 else runs
    found = [
        kept
        for name, spec in specs().items()
        if not kinds or name in kinds
        for picture in spec.pictures(runs)
        if (kept := picture.only(variables)).panels
    ]
    drawn = {name for picture in found for name in picture.variables}
    if not kinds or "variable" in kinds:
        found += [picture for key in variables if key not in drawn for picture in of_variable(runs, key)]
    if not found:
        asked = [*(f"--kind {kind}" for kind in kinds), *(f"--variable {name}" for name in variables)]
        raise NothingMatched(
            f"{' '.join(asked) or 'plot'}: the result holds no numbers for such a figure; ibscan explain plots says "
            "what each kind needs."
        )
    return found


def _kind(name: str) -> str:
    """Return the name of a kind as `FIGURES` has it, whether typed with - or _."""
    if (kind := name.replace("-", "_")) not in FIGURES:
        near = near_names(kind, FIGURES, 3, 0.5) or FIGURES
        raise UsageError(f"--kind {name!r}: there is no such figure; expected {' or '.join(near)}.")
    return kind


def _runs(results: Mapping[str, Result], units: str, variables: Sequence[str], band: bool, every: bool) -> list[Run]:
    """Return results as they are drawn, checked against what is asked of them."""
    from ibscan.views.figures.picture import Run
    from ibscan.views.view import View

    for variable in variables:
        if not any(variable in result.variables for result in results.values()):
            next(iter(results.values())).check_shown(units, [variable])
    for result in results.values():
        result.check_shown(units)
    runs = [Run(name, View(result, units, every, width=1, unicode=True)) for name, result in results.items()]
    axes = {run.view.axis[0]: run.name for run in reversed(runs)}
    if len(axes) > 1:
        said = ", ".join(f"{name} along {axis}" for axis, name in axes.items())
        raise UsageError(f"results are along different axes ({said}); draw them one by one.")
    if len(runs) > _MOST_RUNS and not band:
        raise UsageError(
            f"{len(runs)} results: at most {_MOST_RUNS} are told apart by their lines; --band draws mean and spread."
        )
    return runs


def plot(
    results: Result | Mapping[str, Result],
    kind: str | None = None,
    variable: str | None = None,
    *,
    units: str = "nats",
    band: bool = False,
    style: str = "print",
    axes: Axes | Sequence[Axes] | None = None,
) -> Drawn:
    """Draw one figure.

    Args:
        results: A result, or several by their names.
        kind: Name in `FIGURES`; the first that fits where None.
        variable: A variable; the first of its kind where None.
        units: `nats` or `bits`.
        band: Mean over results and their standard deviation, instead of results side by side.
        style: `print`, one column of a paper, or `screen`.
        axes: Axes to draw on, one a panel, instead of those of a new figure.

    Returns:
        A figure of matplotlib, which `savefig` writes.

    Raises:
        UsageError: As `pictures` does; or matplotlib is not installed, or there are fewer axes than panels.
        NothingMatched: As `pictures` does.
    """
    from ibscan.views.figures.draw import drawn

    named = results if isinstance(results, Mapping) else {"": results}
    kinds, variables = (() if one is None else (one,) for one in (kind, variable))
    found = pictures(named, kinds=kinds, variables=variables, units=units, band=band)
    return drawn(found[0], style=style, axes=axes)
