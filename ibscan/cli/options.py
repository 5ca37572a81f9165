"""Options for Typer: those of a request and its measures as declared, and those of printing."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.models import ArgumentInfo

from ibscan._version import __version__
from ibscan.core.option import OUTPUT, RARE, Option, Setting
from ibscan.engine.request import READING, run_settings
from ibscan.measures import VERBS, measure_settings
from ibscan.views.figures import FIGURES

__all__ = [
    "ALL",
    "FILE",
    "FILED",
    "PLOT",
    "PLOTTED",
    "PRINTED",
    "PRINTING",
    "REPORT",
    "REPORTED",
    "RESULT",
    "RESULTS",
    "SELECT",
    "SHOW",
    "of_verb",
    "taking",
]

T = TypeVar("T")


def _argument(name: str, kind: Any, default: Any, text: str, metavar: str) -> inspect.Parameter:  # noqa: ANN401
    # Hidden from the panels, where Typer would show its Python type: the text above them says what it may be.
    declared = typer.Argument(help=text, metavar=metavar, show_default=False, hidden=True)
    return _keyword(name, kind, default, declared)


def _keyword(name: str, kind: Any, default: Any, declared: Any) -> inspect.Parameter:  # noqa: ANN401 - a type, its value
    annotation = Annotated[kind, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(setting: Setting, **more: Any) -> inspect.Parameter:  # noqa: ANN401 - what else Typer takes
    """Return an option as a parameter of a command."""
    spec, default = setting.option, setting.initial
    kind: Any = types.GenericAlias(list, setting.kind) if spec.several else setting.kind
    declared = typer.Option(
        *setting.flags,
        help=setting.help,
        rich_help_panel=spec.panel,
        metavar=setting.metavar,
        parser=None if spec.parse is None else _typed(spec.parse),
        show_default=default is not None and not isinstance(default, bool),
        **more,
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
    "CKPTS",
)
RESULT = (_argument("result", Path | None, None, "A file that a scan wrote. Default: ibscan.h5.", "RESULT"),)
RESULTS = (_argument("results", list[Path] | None, None, "Files that scans wrote. Default: ibscan.h5.", "RESULT"),)


def _printing(name: str, default: Any, text: str, *flags: str, panel: str = OUTPUT, **more: Any) -> Setting:  # noqa: ANN401 - of its kind
    return Setting(name, name, default, Option(text, panel, flags=flags, **more))


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
    _printing(
        "variable",
        (),
        "These variables alone, histograms and spectra too; repeatable.",
        metavar="NAME",
        several=True,
    ),
)
ALL_SETTINGS = (
    _printing(
        "format",
        "auto",
        "auto, table, tsv, csv or jsonl; auto: a table on a terminal, TSV when piped.",
        kind=Literal["auto", "table", "tsv", "csv", "jsonl"],
        metavar="FORMAT",
    ),
    _printing("json", False, "The same as --format jsonl.", panel=RARE),
    _printing("quiet", False, "No notices and no progress; errors are said.", "-q", "--quiet"),
    _printing(
        "progress",
        "auto",
        "On standard error: auto, on or off.",
        panel=RARE,
        kind=Literal["auto", "on", "off"],
        metavar="WHEN",
    ),
    _printing(
        "color",
        "auto",
        "auto, always or never; NO_COLOR and FORCE_COLOR are respected.",
        panel=RARE,
        kind=Literal["auto", "always", "never"],
        metavar="WHEN",
    ),
    _printing("debug", False, "Show tracebacks.", panel=RARE),
)
FILE_SETTINGS = (
    _printing(
        "output",
        None,
        "A file in place of standard output: .tsv, .csv or .jsonl, of show also .txt for tables; written whole, in "
        "place of an existing one.",
        "-o",
        "--output",
        metavar="FILE",
        kind=Path,
    ),
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
    _printing("run", (), "A result, and the name it has in legends; repeatable.", metavar="NAME=FILE", several=True),
    _printing("band", False, "Mean over results (seeds), and their standard deviation as a band."),
    _printing(
        "style",
        "print",
        "print: one column of a paper, 85 mm; screen: wider, with larger letters.",
        kind=Literal["print", "screen"],
    ),
)
REPORT_SETTINGS = (
    _printing(
        "output",
        None,
        "The page, written whole in place of an existing one. Default: report.html.",
        "-o",
        "--output",
        metavar="FILE",
        kind=Path,
    ),
)
ABOUT_SETTINGS = (
    _printing("help", False, "Show this message and exit.", "-h", "--help", panel=RARE),
    _printing("version", False, "Print the version and exit.", "-V", "--version", panel=RARE),
)
# Options of printing, which are no part of a request.
PRINTED = (*SHOW_SETTINGS, *PRINTING_SETTINGS, *ALL_SETTINGS, *ABOUT_SETTINGS)
# Options of show and export alone, of plot alone, and of report alone.
FILED, PLOTTED, REPORTED = FILE_SETTINGS, PLOT_SETTINGS, REPORT_SETTINGS
# What verbs that read results select, as scans do.
SELECT_SETTINGS = tuple(setting for setting in run_settings() if setting.name in ("layers", "epochs"))
SHOW, PRINTING, ALL, FILE, SELECT = (
    tuple(_parameter(setting) for setting in group)
    for group in (SHOW_SETTINGS, PRINTING_SETTINGS, ALL_SETTINGS, FILE_SETTINGS, SELECT_SETTINGS)
)


def _drawing(own: Sequence[Setting], *names: str) -> tuple[inspect.Parameter, ...]:
    """Return options of plot or report: its own, what it selects, and what it says as other verbs do."""
    said = (*PLOT_SETTINGS, *PRINTING_SETTINGS, *ALL_SETTINGS)
    shared = (setting for setting in said if setting not in own and setting.name in ("units", "quiet", "debug", *names))
    return tuple(_parameter(setting) for setting in (*own, *SELECT_SETTINGS, *shared))


PLOT = _drawing(PLOT_SETTINGS, "variable")
REPORT = _drawing(REPORT_SETTINGS, "run", "band", "every")


def _print_help(context: typer.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        plain = copy.copy(context.command)
        plain.params = [_plain(parameter) for parameter in plain.params]
        first, _, more = (plain.help or "").partition("\n\n")
        plain.help = f"{first}\n\n[not dim]{more}[/]"  # Typer dims all but what a command does
        typer.echo(plain.get_help(context))
        raise typer.Exit


def _plain(parameter: Any) -> Any:  # noqa: ANN401 - an option or argument of Typer's
    """Return a switch without what squeezes the help into a narrow column: its type, and the flag of its default."""
    if not getattr(parameter, "is_flag", False):
        return parameter
    plain = copy.copy(parameter)
    plain.metavar = ""
    plain.rich_help_panel = plain.rich_help_panel or RARE  # those of shell completion are Typer's own
    if plain.secondary_opts:
        plain.opts, plain.secondary_opts = plain.secondary_opts, []
    return plain


def _print_version(context: typer.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        typer.echo(f"ibscan {__version__}")
        raise typer.Exit


ABOUT = tuple(
    _parameter(setting, callback=act, is_eager=True, expose_value=False)
    for setting, act in zip(ABOUT_SETTINGS, (_print_help, _print_version), strict=True)
)


def of_verb(verb: str) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a verb that reads checkpoints: how to find them first, then what to measure and how."""
    run = [setting for setting in run_settings() if verb in setting.verbs]
    found, how = ([setting for setting in run if (setting.verbs == READING) is first] for first in (True, False))
    own = [setting for setting in measure_settings() if verb == "scan" or verb in setting.verbs]
    shared, single = ([s for s in own if (set(VERBS) <= set(s.verbs)) is every] for every in (True, False))
    settings = (*found, *shared, *how, *single)
    return (CHECKPOINTS, *(_parameter(setting) for setting in settings))


def taking(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a function of **options with the signature that Typer reads, and its help with that of its arguments."""

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        parameters = [parameter for group in (*groups, ABOUT) for parameter in group]
        parameters.sort(key=_is_rare)  # a panel stands where its first option does
        command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        arguments = [one for one in map(_declared, parameters) if isinstance(one, ArgumentInfo)]
        said = [f"{one.metavar}: {one.help}" for one in arguments]
        command.__doc__ = "\n\n".join([inspect.cleandoc(command.__doc__ or ""), *said])
        return command

    return decorate


def _declared(parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - Typer's option or argument, None for its context
    return getattr(parameter.annotation, "__metadata__", (None,))[0]


def _is_rare(parameter: inspect.Parameter) -> bool:
    return getattr(_declared(parameter), "rich_help_panel", None) == RARE
