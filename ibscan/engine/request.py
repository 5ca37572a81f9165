"""The request of a user, checked once, whether it comes from the command line or from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ibscan.core.hand import Hand
from ibscan.core.option import (
    INPUT,
    MODEL,
    OUTPUT,
    PRECISION,
    RARE,
    Option,
    Setting,
    at_least,
    number,
    one_of,
    option,
    positive,
    settings_of,
    whole,
)
from ibscan.core.text import near_names
from ibscan.core.thresholds import AUTO
from ibscan.engine.given import given_value, object_or, word
from ibscan.errors import UsageError
from ibscan.measures import VERBS, measure_settings

if TYPE_CHECKING:
    from ibscan.inputs.code.live import Live

__all__ = ["IDLE_SECONDS", "PARTIAL", "Reporter", "Request", "Silent", "requested", "run_settings"]

# Exit code of a command that did part of what was asked.
PARTIAL = 4
Verb = Literal["rank", "mi", "cluster", "scan"]
# Default of --idle: longer than most epochs take.
IDLE_SECONDS = 600.0
SCANNING = (*VERBS, "scan")
READING = (*SCANNING, "ls")
_reading = partial(Option, verbs=READING)


def _path(make: Callable[[Any], Any]) -> Callable[[str, Any], Any]:
    def read(flag: str, given: Any) -> Any:  # noqa: ANN401, ARG001 - whatever was given
        if given is not None and not isinstance(given, str | PathLike):
            raise TypeError(f"is a {type(given).__name__}; expected a path.")
        return None if given is None else make(given)

    return read


def _joined(flag: str, given: Any) -> Any:  # noqa: ANN401, ARG001 - text, a number, or several of them
    if given is None or isinstance(given, str):
        return given
    return ",".join(str(one) for one in ([given] if isinstance(given, Real) else given))


def _arguments(kind: str) -> Callable[[str, Any], Any]:
    def read(flag: str, given: Any) -> Any:  # noqa: ANN401, ARG001 - a mapping, or KEY=VALUE once or several times
        if isinstance(given, Mapping):
            return given
        if not isinstance(given, str | list | tuple | None) or not all(isinstance(one, str) for one in given or ()):
            raise TypeError(f"is a {type(given).__name__}; expected a mapping.")
        from ibscan.inputs.probes import arguments

        parse = {"probe": arguments.parse_arguments, "model": arguments.parse_model_arguments}[kind]
        return parse([given] if isinstance(given, str) else given or ())

    return read


@dataclass(frozen=True)
class Request:
    """Everything a user can ask of a scan verb.

    Options of the run as a whole are fields; `options` holds the options of measures that were given, by keyword.

    Raises:
        UsageError: A value is out of range; the message names the option.
    """

    verb: Verb
    paths: tuple[Path, ...] = (Path(),)
    probe: str | Live | None = option(
        None,
        _reading(
            "Inputs (and labels) to measure on: FILE, FILE#x=KEY,y=KEY, IDX folder or FOLDER#test, module:callable or "
            "path.py:callable. Default: probe.* beside the checkpoints.",
            INPUT,
            flags=("-p", "--probe"),
            metavar="SPEC",
            read=object_or("probe"),
        ),
    )
    probe_arg: Mapping[str, Any] = option(
        dict,
        _reading(
            "scale, mean, std, shape: (x / scale - mean) / std, reshaped; repeatable.",
            INPUT,
            metavar="KEY=VALUE",
            several=True,
            read=_arguments("probe"),
        ),
    )
    epochs: str | None = option(
        None,
        _reading(
            "Which checkpoints, on the series' axis: 0:500:10, 1,10,100, last, log:50.",
            INPUT,
            metavar="SPEC",
            read=_joined,
        ),
    )
    weights: str | None = option(
        None,
        _reading(
            "Raw weights or averages, where a file holds both.", RARE, metavar="raw|ema", check=one_of("raw", "ema")
        ),
    )
    state_key: str | None = option(
        None,
        _reading(
            "The entry to read where a file holds several states, dotted where it lies deeper; or what the names of a "
            "part of it begin with.",
            RARE,
            metavar="KEY",
        ),
    )
    trust: bool = option(False, _reading("Allow code and paths named by files found beside the checkpoints.", RARE))
    model: str | Live | None = option(
        None,
        _reading(
            "mlp:ACT or mlp:ACT:OUT for a plain chain; module:callable or path.py:callable returning an nn.Module; hf "
            "or hf:CLASS for a model of transformers with its config.json. Default: what the series says of itself.",
            MODEL,
            flags=("-m", "--model"),
            metavar="SPEC",
            read=object_or("model"),
        ),
    )
    model_arg: Mapping[str, Any] = option(
        dict,
        _reading(
            "An argument of the callable, or an entry put over the config, read as JSON where it is JSON; repeatable.",
            MODEL,
            metavar="KEY=VALUE",
            several=True,
            read=_arguments("model"),
        ),
    )
    chain: str | None = option(
        None,
        _reading(
            "Globs, separated by commas: the order of containers that form one chain, as in 'encoder.*,decoder.*'.",
            RARE,
            metavar="GLOBS",
            read=_joined,
        ),
    )
    run_script: bool = option(
        False,
        _reading(
            "Also run code of --model and --probe that trains or writes files when imported, or trains when called.",
            RARE,
        ),
    )
    layers: tuple[str, ...] = option(
        (), _reading("Layers to report; repeatable. Default: all.", MODEL, metavar="GLOB", several=True)
    )
    device: str = option(
        "auto",
        Option("auto takes CUDA where there is one.", PRECISION, metavar="auto|cpu|cuda[:I]", read=word),
    )
    dtype: Literal["float32", "float64"] = option(
        "float64",
        Option(
            "Of the forward pass; measuring is float64 all the same.",
            PRECISION,
            metavar="float32|float64",
            read=word,
            check=one_of("float32", "float64"),
        ),
    )
    seed: int = option(0, Option("Of samples and draws.", PRECISION, metavar="I", parse=whole, check=at_least(0)))
    output: Path | None = option(
        None,
        Option(
            "Result file, written whole; an existing one of the same identity is joined. Default: ibscan.h5.",
            OUTPUT,
            flags=("-o", "--output"),
            metavar="FILE",
            kind=Path,
            read=_path(Path),
        ),
    )
    resume: bool = option(
        True,
        Option(
            "--no-resume measures again what is finished.",
            RARE,
            flags=("--resume/--no-resume",),
        ),
    )
    force: bool = option(False, Option("Replace what differs in an existing result.", RARE))
    follow: bool = option(False, Option("Keep measuring a folder's checkpoints as they arrive, until --idle.", INPUT))
    idle: float | None = option(
        None,
        Option(
            f"With --follow: end when nothing new has come for so long. Default: {IDLE_SECONDS:g}.",
            RARE,
            metavar="SECONDS",
            parse=number,
            check=positive,
        ),
    )
    strict: bool = option(False, Option("Exit 4 on unresolved cells too.", RARE))
    options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        for setting in run_settings():
            setting.checked(getattr(self, setting.field))
        of_measures = measure_settings()
        for setting in of_measures:
            if setting.name in self.options:
                setting.checked(self.options[setting.name])
        for setting in of_measures:
            if setting.option.against is not None:
                setting.option.against(self.options)
        if self.idle is not None and not self.follow:
            raise UsageError(f"--idle {self.idle:g}: says when following a folder ends; add --follow.")
        if self.follow and AUTO in self.options.get("eps", ()):
            raise UsageError(
                "--eps auto: goes by the last checkpoint, and a folder that is followed has none yet; give numbers."
            )
        if self.follow and self.output is None:
            raise UsageError("--follow keeps what it measures in a file; name one with --output.")

    def option(self, name: str) -> Any:  # noqa: ANN401 - of the option's kind
        """Return the value given for an option of the measures, or its default."""
        default = next(setting.default for setting in measure_settings() if setting.name == name)
        return self.options.get(name, default)


def run_settings() -> tuple[Setting, ...]:
    """Return the options of a run as a whole, in the order of the help."""
    return settings_of(Request, SCANNING)


def requested(verb: Verb, paths: Sequence[Path], given: Mapping[str, Any], command: str) -> Request:
    """Make a request from options as typed or as passed in Python.

    Args:
        verb: What to do.
        paths: Files or folders of checkpoints.
        given: Options by keyword.
        command: Stored as the command.

    Raises:
        UsageError: There is no such option, or a value is invalid.
    """
    of_run = {setting.name: setting for setting in run_settings()}
    of_measures = {setting.name: setting for setting in measure_settings()}
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in given.items():
        setting = of_run.get(name) or of_measures.get(name)
        if setting is None:
            near = near_names(name, [*of_run, *of_measures], 3)
            said = f"did you mean {' or '.join(near)}?" if near else f"help(ibscan.{verb}) lists all options."
            raise UsageError(f"ibscan.{verb}: there is no option {name!r}; {said}")
        value = _read(verb, setting, value)
        if value is not None or (name not in of_run and setting.initial is not None):
            (fields if name in of_run else options)[name] = value
    return Request(verb, tuple(paths), options=options, command=command, **fields)


def _read(verb: str, setting: Setting, value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Return the value in the form the request stores, None for the default."""
    spec = setting.option
    if spec.read is not None:
        try:
            return spec.read(setting.flag, value)
        except TypeError as error:
            raise UsageError(f"ibscan.{verb}: {setting.name} {error}") from None
    if value is None:
        return None
    value = given_value(setting, value)
    if value == () and spec.nothing:
        raise UsageError(f"ibscan.{verb}: {setting.name} names no {spec.nothing}; expected one number or several.")
    return value


class Reporter(Protocol):
    """Receives the messages and the progress of a run: the command line prints them, Python code may ignore them."""

    def notice(self, sentence: str) -> None:
        """Report something the user should know."""
        ...

    def problem(self, sentence: str) -> None:
        """Report something that makes the result partial; shown even when notices are not wanted."""
        ...

    def started(self, total: int) -> None:
        """Report that `total` checkpoints are to be measured."""
        ...

    def advanced(self, name: str) -> None:
        """Report that a checkpoint is finished."""
        ...

    def working(self, hand: Hand) -> None:
        """Report what is in hand now."""
        ...


@dataclass(frozen=True)
class Silent:
    """A reporter that discards everything."""

    def notice(self, sentence: str) -> None:
        """Discard it."""

    def problem(self, sentence: str) -> None:
        """Discard it."""

    def started(self, total: int) -> None:
        """Discard it."""

    def advanced(self, name: str) -> None:
        """Discard it."""

    def working(self, hand: Hand) -> None:
        """Discard it."""
