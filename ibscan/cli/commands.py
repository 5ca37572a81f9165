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

__all__ = ["DEFAULT_OUTPUT", "app"]

app = typer.Typer(
    no_args_is_help=True,
    add_help_option=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
DEFAULT_OUTPUT = Path("ibscan.h5")


@app.callback()
@taking()
def ibscan(**_: Any) -> None:  # noqa: ANN401
    """Local rank, binned and noisy-channel mutual information, and clustering of saved checkpoints.

    Examples:
      ibscan ls ckpts/
      ibscan scan ckpts/ --model train.py:Net --probe probe.npz
      ibscan show ibscan.h5 --summary

    Every command has a help of its own: ibscan scan --help.
    """


@app.command(add_help_option=False)
@taking(of_verb("rank"), PRINTING, ALL)
def rank(**options: Any) -> int:  # noqa: ANN401 - the signature is made of the option groups
    """Local rank: how many directions of the input each layer still responds to.

    Examples:
      ibscan rank ckpts/ --model mlp:tanh --probe probe.npz
      ibscan rank ckpts/ --eps 0.01 --eps 0.1 --epochs log:10
      ibscan rank ckpts/ --from encoder.2 --layers 'decoder.*'
    """
    return _scanned("rank", options)


@app.command(add_help_option=False)
@taking(of_verb("mi"), PRINTING, ALL)
def mi(**options: Any) -> int:  # noqa: ANN401
    """Binned and noisy-channel mutual information, side by side.

    Examples:
      ibscan mi ckpts/ --model mlp:relu --probe probe.npz
      ibscan mi ckpts/ --noise 0.1 --bins 30
      ibscan mi ckpts/ --rel-noise 0.3 --channel network --epochs last
    """
    return _scanned("mi", options)


@app.command(add_help_option=False)
@taking(of_verb("cluster"), PRINTING, ALL)
def cluster(**options: Any) -> int:  # noqa: ANN401
    """Clustering of representations: distances within and between classes, neural-collapse statistics.

    Examples:
      ibscan cluster ckpts/ --model train.py:Net --probe probe.npz
      ibscan cluster ckpts/ --epochs log:10
      ibscan cluster ckpts/ --layers 'blocks.*' --samples 1000
    """
    return _scanned("cluster", options)


@app.command(add_help_option=False)
@taking(of_verb("scan"), PRINTING, ALL)
def scan(**options: Any) -> int:  # noqa: ANN401
    """Everything: local rank, mutual information and clustering in one file.

    Examples:
      ibscan scan ckpts/ --model mlp:tanh --probe probe.npz
      ibscan scan ckpts/ --model train.py:Net --model-arg num_classes=10
      ibscan scan ckpts/ --epochs 0:500:10 -o run.h5
    """
    return _scanned("scan", options)


@app.command(name="ls", add_help_option=False)
@taking(of_verb("ls"), ALL)
def listing(**options: Any) -> int:  # noqa: ANN401
    """The series as understood, and what was skipped and why; with --probe also whether a scan would work.

    Examples:
      ibscan ls ckpts/
      ibscan ls ckpts/ --model train.py:Net --probe probe.npz
      ibscan ls ckpts/ --epochs last --json
    """
    from ibscan.cli.listing import listed

    return listed(_request("scan", options), output_for(options))


@app.command(add_help_option=False)
@taking(RESULT, SELECT, PRINTING, SHOW, FILE, ALL)
def show(**options: Any) -> int:  # noqa: ANN401
    """The output again, from a file: in brief with a summary, or every table (--full).

    Examples:
      ibscan show
      ibscan show run.h5 --full --layers 'fc[345]'
      ibscan show run.h5 --variable local_rank --units bits
    """
    return _printed(options, FORMATS)


@app.command(add_help_option=False)
@taking(RESULT, SELECT, PRINTING, FILE, ALL)
def export(**options: Any) -> int:  # noqa: ANN401
    """Tidy rows as csv, jsonl or tsv.

    Examples:
      ibscan export run.h5 -o rows.csv
      ibscan export run.h5 --variable nc1 --variable nc2_equinorm --json
      ibscan export run.h5 --units bits --layers fc5 | column -t
    """
    if options["format"] == "table":
        raise UsageError("--format table: export writes rows; expected csv, jsonl or tsv (ibscan show prints tables).")
    return _printed(options, [name for name in FORMATS if name != "table"])


@app.command(add_help_option=False)
@taking(RESULTS, PLOT)
def plot(**options: Any) -> int:  # noqa: ANN401
    """Figures of one result, or of several side by side or as mean and spread.

    Examples:
      ibscan plot ibscan.h5
      ibscan plot ibscan.h5 -o figures/ --format pdf
      ibscan plot seed1.h5 seed2.h5 seed3.h5 --band --kind local_rank
    """
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
