"""The verbs: turn options into a request, run it, and print its result."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ibscan.cli.options import ALL, FILE, PLOT, PRINTED, PRINTING, RESULT, RESULTS, SELECT, SHOW, of_verb, taking
from ibscan.cli.output import FORMATS, output_for
from ibscan.errors import NothingMatched, UsageError

if TYPE_CHECKING:
    from ibscan.engine.request import Request

__all__ = ["HELP", "app"]

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
DEFAULT_OUTPUT = Path("ibscan.h5")


@app.callback(epilog="ibscan --version prints the version. Example: ibscan scan ckpts/ --noise 0.1")
def ibscan() -> None:
    """Local rank, binned and noisy-channel mutual information, and clustering of saved checkpoints."""


@app.command(context_settings=HELP, epilog="Example: ibscan rank ckpts/ --probe probe.npz --eps 0.01")
@taking(of_verb("rank"), PRINTING, ALL)
def rank(**options: Any) -> int:  # noqa: ANN401 - the signature is made of the option groups
    """Local rank: how many directions of the input each layer still responds to."""
    return _scanned("rank", options)


@app.command(context_settings=HELP, epilog="Example: ibscan mi ckpts/ --noise 0.1 --bins 30")
@taking(of_verb("mi"), PRINTING, ALL)
def mi(**options: Any) -> int:  # noqa: ANN401
    """Binned and noisy-channel mutual information, side by side."""
    return _scanned("mi", options)


@app.command(context_settings=HELP, epilog="Example: ibscan cluster ckpts/ --epochs log:10")
@taking(of_verb("cluster"), PRINTING, ALL)
def cluster(**options: Any) -> int:  # noqa: ANN401
    """Clustering of representations: distances within and between classes, neural-collapse statistics."""
    return _scanned("cluster", options)


@app.command(context_settings=HELP, epilog="Example: ibscan scan ckpts/ -o run.h5")
@taking(of_verb("scan"), PRINTING, ALL)
def scan(**options: Any) -> int:  # noqa: ANN401
    """Everything: local rank, mutual information and clustering in one file."""
    return _scanned("scan", options)


@app.command(context_settings=HELP, name="ls", epilog="Example: ibscan ls ckpts/ --probe probe.npz")
@taking(of_verb("ls"), ALL)
def listing(**options: Any) -> int:  # noqa: ANN401
    """The series as understood, and what was skipped and why; with --probe also whether a scan would work."""
    from ibscan.cli.listing import listed

    return listed(_request("scan", options), output_for(options))


@app.command(context_settings=HELP, epilog="Example: ibscan show ibscan.h5 --units bits")
@taking(RESULT, SELECT, PRINTING, SHOW, FILE, ALL)
def show(**options: Any) -> int:  # noqa: ANN401
    """The output again, from a file: in brief with a summary, or every table (--full)."""
    return _printed(options, FORMATS)


@app.command(context_settings=HELP, epilog="Example: ibscan export ibscan.h5 --variable local_rank -o rows.csv")
@taking(RESULT, SELECT, PRINTING, FILE, ALL)
def export(**options: Any) -> int:  # noqa: ANN401
    """Tidy rows as csv, jsonl or tsv."""
    if options["format"] == "table":
        raise UsageError("--format table: export writes rows; expected csv, jsonl or tsv (ibscan show prints tables).")
    return _printed(options, [name for name in FORMATS if name != "table"])


@app.command(context_settings=HELP, epilog="Example: ibscan plot ibscan.h5 -o figures/ --format pdf")
@taking(RESULTS, PLOT)
def plot(**options: Any) -> int:  # noqa: ANN401
    """Figures of one result, or of several side by side or as mean and spread."""
    from ibscan.cli.plotting import plotted

    return plotted(options, DEFAULT_OUTPUT)


def _printed(options: Mapping[str, Any], formats: Collection[str]) -> int:
    """Print what options select from a result, in one of the formats."""
    from ibscan.cli.selection import read_selected

    source: Path = options["result"] or DEFAULT_OUTPUT
    out = output_for(options, formats)
    if out.target is not None and out.target.resolve() == source.resolve():
        raise UsageError(f"-o {out.target}: is the result that is read; name another file.")
    out.result(read_selected(source, options["layers"], options["epochs"]))
    return 0


def _scanned(verb: str, options: Mapping[str, Any]) -> int:
    from ibscan.engine.run import run

    out = output_for(options)
    request = _request(verb, options)
    with out.progress() as reporter:
        done = run(request, reporter)
    out.notice(f"written to {done.output}")
    out.result(done.result)
    return done.exit_code


def _request(verb: Any, options: Mapping[str, Any]) -> Request:  # noqa: ANN401 - one of the verbs
    from ibscan.engine.request import requested

    # Options left at None use the defaults of Request and of the measures.
    printed = {setting.name for setting in PRINTED}
    given = {name: value for name, value in options.items() if name not in printed and value is not None}
    paths = _paths(given.pop("ckpts", None))
    given.setdefault("output", DEFAULT_OUTPUT)
    return requested(verb, paths, given, shlex.join(["ibscan", *sys.argv[1:]]))


def _paths(typed: list[str] | None) -> tuple[Path, ...]:
    names: list[str] = []
    for name in typed or ["."]:
        listed = sys.stdin.read().splitlines() if name == "-" and sys.stdin is not None else []
        if name == "-" and not any(listed):
            raise NothingMatched("standard input named no checkpoint; expected one path a line.")
        names += [line for line in listed if line] or [name]
    return tuple(Path(name) for name in names)
