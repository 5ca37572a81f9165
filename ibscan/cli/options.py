"""Options for Typer: those of a request and its measures as declared, and those of printing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ibscan.core.option import OUTPUT, Option, Setting
from ibscan.engine.request import READING, run_settings
from ibscan.measures import VERBS, measure_settings
from ibscan.views.figures import FIGURES

__all__ = ["ALL", "PLOT", "PLOTTED", "PRINTED", "PRINTING", "RESULT", "RESULTS", "SHOW", "of_verb", "taking"]


def _argument(name: str, kind: Any, default: Any, text: str, metavar: str) -> inspect.Parameter:  # noqa: ANN401
    declared = typer.Argument(help=text, metavar=metavar, show_default=False)
    return _keyword(name, kind, default, declared)


def _keyword(name: str, kind: Any, default: Any, declared: Any) -> inspect.Parameter:  # noqa: ANN401 - a type, its value
    annotation = Annotated[kind, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(setting: Setting) -> inspect.Parameter:
    """Return an option as a parameter of a command."""
    spec, default = setting.option, setting.initial
    kind: Any = types.GenericAlias(list, setting.kind) if spec.several else setting.kind
    declared = typer.Option(
        *setting.flags,
        help=setting.help,
        rich_help_panel=spec.panel,
        metavar=spec.metavar,
        parser=None if spec.parse is None else _typed(spec.parse),
        show_default=default is not None,
    )
    optional: Any = kind if default is not None else kind | None
    return _keyword(setting.name, optional, default, declared)


def _typed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Wrap a parser so that its errors are Typer's; defaults, which are no text, are not parsed."""

    def parsed(text: Any) -> Any:  # noqa: ANN401 - of the option's kind
        try:
            return parse(text) if isinstance(text, str) else text
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed


CHECKPOINTS = _argument(
    "ckpts",
    list[str] | None,
    None,
    "A folder of checkpoints, or files; none is the current folder, - reads paths from standard input.",
    "[CKPTS]...",
)
RESULT = (_argument("result", Path, inspect.Parameter.empty, "A file that a scan wrote.", "RESULT"),)
RESULTS = (_argument("results", list[Path] | None, None, "Files that scans wrote. Default: ibscan.h5.", "[RESULT]..."),)


def _printing(name: str, default: Any, text: str, *flags: str, **more: Any) -> Setting:  # noqa: ANN401 - of its kind
    return Setting(name, name, default, Option(text, OUTPUT, flags=flags, **more))


SHOW_SETTINGS = (
    _printing("full", False, "Every table, with bounds, slopes, spectra and notes, instead of the numbers in brief."),
    _printing("summary", False, "The summary alone: what fell or rose, since when, and whether beyond its error."),
    _printing(
        "curve", False, "What was measured against its eps, noise or cells, a column a checkpoint; nothing else."
    ),
    _printing(
        "beside",
        (),
        "A metric saved with the checkpoints, beside the accuracy in tables; repeatable.",
        "--with",
        metavar="NAME",
        several=True,
    ),
)
PRINTING_SETTINGS = (
    _printing("units", "nats", "What is printed; files hold nats.", kind=Literal["nats", "bits"]),
    _printing("every", False, "Every checkpoint, instead of a log-thinned table.", "--all"),
    _printing("variable", None, "One variable alone, histograms and spectra too.", metavar="NAME"),
)
ALL_SETTINGS = (
    _printing(
        "format",
        "auto",
        "auto: a table on a terminal, TSV when piped.",
        kind=Literal["auto", "table", "tsv", "csv", "jsonl"],
    ),
    _printing("json", False, "The same as --format jsonl."),
    _printing("quiet", False, "No notices and no progress; errors are said.", "-q", "--quiet"),
    _printing("progress", "auto", "On standard error.", kind=Literal["auto", "on", "off"]),
    _printing("color", "auto", "NO_COLOR and FORCE_COLOR are respected.", kind=Literal["auto", "always", "never"]),
    _printing("debug", False, "Show tracebacks."),
)
_KINDS = ", ".join(FIGURES)
PLOT_SETTINGS = (
    _printing(
        "output",
        None,
        "A folder for every figure, or a file .png, .svg or .pdf for one. Default: ibscan-figures.",
        "-o",
        "--output",
        metavar="DIR|FILE",
        kind=Path,
    ),
    _printing("format", "png", "Of the figures in a folder.", kind=Literal["png", "svg", "pdf"]),
    _printing("kind", (), f"Figures to draw: {_KINDS}; repeatable. Default: all.", metavar="KIND", several=True),
    _printing("variable", (), "Variables to draw, alone; repeatable.", metavar="NAME", several=True),
    _printing("run", (), "A result, and the name it has in legends; repeatable.", metavar="NAME=FILE", several=True),
    _printing("band", False, "Mean over results (seeds), and their standard deviation as a band."),
    _printing(
        "style",
        "print",
        "print: one column of a paper, 85 mm; screen: wider, with larger letters.",
        kind=Literal["print", "screen"],
    ),
)
# Options of printing, which are no part of a request.
PRINTED = (*SHOW_SETTINGS, *PRINTING_SETTINGS, *ALL_SETTINGS)
# Options of plot: its own, what it selects as scans do, and what it says as other verbs do.
PLOTTED = PLOT_SETTINGS
SHOW, PRINTING, ALL = (
    tuple(_parameter(setting) for setting in group) for group in (SHOW_SETTINGS, PRINTING_SETTINGS, ALL_SETTINGS)
)
PLOT = tuple(
    _parameter(setting)
    for setting in (
        *PLOT_SETTINGS,
        *(setting for setting in run_settings() if setting.name in ("layers", "epochs")),
        *(setting for setting in (*PRINTING_SETTINGS, *ALL_SETTINGS) if setting.name in ("units", "quiet", "debug")),
    )
)


def of_verb(verb: str) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a verb that reads checkpoints: how to find them first, then what to measure and how."""
    run = [setting for setting in run_settings() if verb in setting.verbs]
    found, how = ([setting for setting in run if (setting.verbs == READING) is first] for first in (True, False))
    own = [setting for setting in measure_settings() if verb == "scan" or verb in setting.verbs]
    shared, single = ([s for s in own if (set(VERBS) <= set(s.verbs)) is every] for every in (True, False))
    settings = (*found, *shared, *how, *single)
    return (CHECKPOINTS, *(_parameter(setting) for setting in settings))


def taking(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a function of **options with the signature that Typer reads."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        parameters = [parameter for group in groups for parameter in group]
        command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        return command

    return decorate
