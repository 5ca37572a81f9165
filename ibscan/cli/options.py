"""Every option once: its flags, its panel, its help, how its text is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["ALL", "CHECKPOINTS", "MI", "PRINTING", "RANK", "RESULT", "SCAN", "SHOW", "taking"]

INPUT, MODEL, MEASURE, PRECISION, OUTPUT = "Input", "Model", "What to measure", "Precision", "Output"


def number(text: str | float) -> float:
    """Read a number as a person writes it; `1_0`, which Python would take for 10, is none."""
    if not isinstance(text, str):  # a default
        return text
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", text.strip(), re.ASCII):
        raise typer.BadParameter(f"{text!r} is no number; expected one like 0.1 or 1e-3.")
    return float(text)


def whole(text: str | int) -> int:
    """Read a whole number; `1_0` is none."""
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII):
        raise typer.BadParameter(f"{text!r} is no whole number.")
    return int(text)


def count(text: str) -> Any:  # noqa: ANN401 - an int, or the word
    """Read a whole number or `all`."""
    return "all" if text == "all" else whole(text)


def _option(
    name: str,
    kind: Any,  # noqa: ANN401 - a type
    default: Any,  # noqa: ANN401 - of that type
    panel: str,
    text: str,
    *flags: str,
    **more: Any,  # noqa: ANN401 - what typer.Option takes
) -> inspect.Parameter:
    declared = typer.Option(*(flags or (f"--{name.replace('_', '-')}",)), help=text, rich_help_panel=panel, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def _argument(name: str, kind: Any, default: Any, text: str, metavar: str) -> inspect.Parameter:  # noqa: ANN401
    declared = typer.Argument(help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def _several(name: str, parser: Callable[[str], Any], metavar: str, panel: str, text: str) -> inspect.Parameter:
    kind = list[float] if parser is number else list[int]
    return _option(name, kind | None, None, panel, text, parser=parser, metavar=metavar, show_default=False)


CHECKPOINTS = (
    _argument(
        "ckpts",
        list[str] | None,
        None,
        "A folder of checkpoints, or files; none is the current folder, - reads paths from standard input.",
        "[CKPTS]...",
    ),
    _option(
        "probe",
        str | None,
        None,
        INPUT,
        "Inputs (and labels) to measure on: FILE, FILE#x=KEY,y=KEY, IDX folder or FOLDER#test, module:callable or "
        "path.py:callable. Default: probe.* beside the checkpoints.",
        "-p",
        "--probe",
        metavar="SPEC",
    ),
    _option(
        "probe_arg",
        list[str] | None,
        None,
        INPUT,
        "scale, mean, std, shape: (x / scale - mean) / std, reshaped; repeatable.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
    _option(
        "epochs",
        str | None,
        None,
        INPUT,
        "Which checkpoints, on the series' axis: 0:500:10, 1,10,100, last, log:50.",
        metavar="SPEC",
    ),
    _option("weights", str | None, None, INPUT, "Raw weights or averages, where a file holds both.", metavar="raw|ema"),
    _option(
        "state_key",
        str | None,
        None,
        INPUT,
        "The entry to read where a file holds several states, dotted where it lies deeper; or what the names of a part "
        "of it begin with.",
        metavar="KEY",
    ),
    _option(
        "trust", bool, False, INPUT, "Allow code and paths named by files found beside the checkpoints.", "--trust"
    ),
    _option(
        "model",
        str | None,
        None,
        MODEL,
        "mlp:ACT or mlp:ACT:OUT for a plain chain; module:callable or path.py:callable returning an nn.Module; hf or "
        "hf:CLASS for a model of transformers with its config.json. Default: what the series says of itself.",
        "-m",
        "--model",
        metavar="SPEC",
    ),
    _option(
        "model_arg",
        list[str] | None,
        None,
        MODEL,
        "An argument of the callable, or an entry put over the config, read as JSON where it is JSON; repeatable.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
    _option(
        "chain",
        str | None,
        None,
        MODEL,
        "Globs, separated by commas: the order of containers that form one chain, as in 'encoder.*,decoder.*'.",
        metavar="GLOBS",
    ),
    _option(
        "run_script",
        bool,
        False,
        MODEL,
        "Also run code of --model and --probe that trains or writes files when imported, or trains when called.",
        "--run-script",
    ),
    _option(
        "layers",
        list[str] | None,
        None,
        MODEL,
        "Layers to report; repeatable. Default: all.",
        metavar="GLOB",
        show_default=False,
    ),
)

SCAN = (
    _option(
        "samples",
        int | None,
        None,
        INPUT,
        "Probe rows. Default: at most 1024 for rank, 4096 for the rest.",
        "-n",
        "--samples",
        parser=count,
        metavar="N|all",
    ),
    _option(
        "at",
        str | None,
        None,
        MEASURE,
        "Before or after the activation. Default: pre for rank, post for the rest.",
        metavar="pre|post",
    ),
    _option("device", str, "auto", PRECISION, "auto takes CUDA where there is one.", metavar="auto|cpu|cuda[:I]"),
    _option(
        "dtype",
        str,
        "float64",
        PRECISION,
        "Of the forward pass; measuring is float64 all the same.",
        metavar="float32|float64",
    ),
    _option("seed", int, 0, PRECISION, "Of samples and draws.", parser=whole, metavar="I"),
    _option(
        "output",
        Path | None,
        None,
        OUTPUT,
        "Result file, written whole; an existing one of the same identity is joined. Default: ibscan.h5.",
        "-o",
        "--output",
        metavar="FILE",
    ),
    _option(
        "resume", bool, True, OUTPUT, "Take up what is finished, or measure everything again.", "--resume/--no-resume"
    ),
    _option("force", bool, False, OUTPUT, "Replace what differs in an existing result.", "--force"),
    _option(
        "follow", bool, False, INPUT, "Keep measuring a folder's checkpoints as they arrive, until --idle.", "--follow"
    ),
    _option(
        "idle",
        float | None,
        None,
        INPUT,
        "With --follow: end when nothing new has come for so long. Default: 600.",
        parser=number,
        metavar="SECONDS",
        show_default=False,
    ),
    _option("strict", bool, False, OUTPUT, "Exit 4 on unresolved cells too.", "--strict"),
)

RANK = (
    _option(
        "from_layer",
        str | None,
        None,
        MEASURE,
        "Differentiate by this layer's post instead of the input: the rank of what comes after it.",
        "--from",
        metavar="LAYER",
    ),
    _option(
        "input_dims",
        int | None,
        None,
        PRECISION,
        "Jacobians on N random orthonormal directions alone: lower bounds. Default: all, 2048 where a model's input "
        "has more than 8192.",
        parser=whole,
        metavar="N",
    ),
    _several("eps", number, "E", MEASURE, "Threshold on singular values; repeatable. Default: 0.001 0.01 0.1."),
    _several("rel_eps", number, "E", MEASURE, "The same, relative to the row's largest; repeatable."),
    _option(
        "spectrum_rows",
        int | None,
        None,
        MEASURE,
        "Rows on which spectra are averaged. Default: 64.",
        parser=count,
        metavar="N|all",
    ),
)

MI = (
    _several(
        "noise",
        number,
        "S",
        MEASURE,
        "Standard deviation of the channel noise, activation units; repeatable. "
        "Default: 0.1, or the noise trained with.",
    ),
    _several(
        "rel_noise",
        number,
        "R",
        MEASURE,
        "Noise of the read-out channel as a multiple of the layer's own root-mean-square distance from its mean; "
        "repeatable.",
    ),
    _option(
        "channel",
        list[str] | None,
        None,
        MEASURE,
        "Where noise is added: after every hidden layer and propagated (network), or at the measured layer alone "
        "(readout); repeatable. Default: both.",
        metavar="network|readout",
        show_default=False,
    ),
    _several("bins", whole, "K", MEASURE, "Equal cells over the activation's range; repeatable. Default: 30."),
    _several("bin_width", number, "W", MEASURE, "Cells of a fixed width; repeatable."),
    _option("bin_range", str | None, None, MEASURE, "The range of --bins.", metavar="LO:HI"),
    _option(
        "tolerance", float, 0.05, PRECISION, "Target 95% half width of noisy values, nats.", parser=number, metavar="T"
    ),
    _option("max_draws", int, 65536, PRECISION, "Draws of one cell at most.", parser=whole, metavar="M"),
    _option(
        "max_replicas",
        int,
        4096,
        PRECISION,
        "Noisy passes of one input at most, network channel.",
        parser=whole,
        metavar="K",
    ),
)

RESULT = (_argument("result", Path, inspect.Parameter.empty, "A file that a scan wrote.", "RESULT"),)

SHOW = (
    _option(
        "curve",
        bool,
        False,
        OUTPUT,
        "What was measured against its eps, noise or cells, a column a checkpoint; nothing else.",
        "--curve",
    ),
)

PRINTING = (
    _option("units", Literal["nats", "bits"], "nats", OUTPUT, "What is printed; files hold nats."),
    _option("every", bool, False, OUTPUT, "Every checkpoint, instead of a log-thinned table.", "--all"),
    _option("variable", str | None, None, OUTPUT, "One variable alone, histograms and spectra too.", metavar="NAME"),
)

ALL = (
    _option(
        "format",
        Literal["auto", "table", "tsv", "csv", "jsonl"],
        "auto",
        OUTPUT,
        "auto: a table on a terminal, TSV when piped.",
        "--format",
    ),
    _option("json", bool, False, OUTPUT, "The same as --format jsonl.", "--json"),
    _option("quiet", bool, False, OUTPUT, "No notices and no progress; errors are said.", "-q", "--quiet"),
    _option("progress", Literal["auto", "on", "off"], "auto", OUTPUT, "On standard error."),
    _option("color", Literal["auto", "always", "never"], "auto", OUTPUT, "NO_COLOR and FORCE_COLOR are respected."),
    _option("debug", bool, False, OUTPUT, "Show tracebacks.", "--debug"),
)


def taking(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a function of **options the signature that Typer reads its options from."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        parameters = [parameter for group in groups for parameter in group]
        command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        return command

    return decorate
