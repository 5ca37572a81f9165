"""The verbs of the command line as functions, which take live objects as well as specs and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from inspect import Parameter, Signature, signature
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ibscan.engine.request import Request, requested, run_settings
from ibscan.errors import UsageError
from ibscan.face.run import Run
from ibscan.face.wording import speaking_python
from ibscan.measures import measure_settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["cluster", "mi", "rank", "scan"]

Model: TypeAlias = "str | PathLike[str] | nn.Module | Callable[..., Any] | None"
Paths: TypeAlias = "str | PathLike[str] | Iterable[str | PathLike[str]]"
Verb: TypeAlias = Literal["rank", "mi", "cluster", "scan"]


def rank(ckpts: Paths = ".", *, model: Model = None, probe: Any = None, progress: bool = False, **options: Any) -> Run:  # noqa: ANN401
    """Measure local rank; see `scan` for the arguments."""
    return _run("rank", ckpts, {"model": model, "probe": probe, **options}, progress)


def mi(ckpts: Paths = ".", *, model: Model = None, probe: Any = None, progress: bool = False, **options: Any) -> Run:  # noqa: ANN401
    """Measure binned and noisy-channel mutual information; see `scan` for the arguments."""
    return _run("mi", ckpts, {"model": model, "probe": probe, **options}, progress)


def cluster(
    ckpts: Paths = ".",
    *,
    model: Model = None,
    probe: Any = None,  # noqa: ANN401 - arrays, or where they are
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> Run:
    """Measure clustering; see `scan` for the arguments."""
    return _run("cluster", ckpts, {"model": model, "probe": probe, **options}, progress)


def scan(ckpts: Paths = ".", *, model: Model = None, probe: Any = None, progress: bool = False, **options: Any) -> Run:  # noqa: ANN401
    """Measure everything on a series of checkpoints.

    Args:
        ckpts: A folder, a file, or several files.
        model: The network: an `nn.Module`, a class or function that makes one (with `model_arg`), or a spec as on the
            command line. A module that is handed over is copied, and stays as it is.
        probe: What to measure on: arrays (x, y), a mapping of arrays, x alone, a TensorDataset, a function that returns
            them, or a path or spec as on the command line.
        progress: Show progress and notices: a bar in notebooks, a line on standard error elsewhere.
        **options: Those of the command line that say what to measure, with underscores: `probe_arg` and `model_arg`
            (mappings), `chain`, `run_script`, `state_key`, `layers`, `at`, `epochs`, `samples`, `from_layer` (--from),
            `input_dims`, `eps`, `rel_eps`, `noise`, `rel_noise`, `bins`, `bin_width`, `bin_range`, `tolerance`, `seed`,
            ... A repeatable option takes one value or several; `rel_eps` may be empty. `output` names a file to write
            and resume; without it the result stays in memory.

    Returns:
        The run: `run["local_rank"]` is a named array, `run.to_hdf5(path)` writes the file.

    Raises:
        IbscanError: With the exit code of the guide's table (ci.md).
    """
    return _run("scan", ckpts, {"model": model, "probe": probe, **options}, progress)


def _run(verb: Verb, ckpts: Any, options: Mapping[str, Any], progress: bool) -> Run:  # noqa: ANN401 - as passed
    with speaking_python(options):
        request = _request(verb, ckpts, options)
        if not isinstance(progress, bool | None):
            raise UsageError(f"progress={progress!r}: expected True or False.")
        from ibscan.engine.run import run
        from ibscan.face.reporting import reporting

        with reporting(bool(progress), options) as reporter:
            done = run(request, reporter)
    return Run(done.result, done.output, done.exit_code)


def _request(verb: Verb, ckpts: Any, options: Mapping[str, Any]) -> Request:  # noqa: ANN401 - as passed
    single = isinstance(ckpts, str | PathLike)
    # A network may be iterated over too.
    several = isinstance(ckpts, Sequence | Set | ValuesView | Iterator)
    paths = [ckpts] if single or not several else [*ckpts]
    wrong = [path for path in paths if not isinstance(path, str | PathLike)]
    if wrong or not paths:
        found = type(wrong[0]).__name__ if paths else "an empty list"
        raise UsageError(
            f"ibscan.{verb}: ckpts is {found}; expected the path of a folder or file of saved checkpoints, or several. "
            "A network is handed over as model=, arrays as probe=."
        )
    return requested(verb, [Path(path) for path in paths], options, f"ibscan.{verb}(...)")


def _keywords(*functions: Callable[..., Run]) -> None:
    """Give the functions a signature with all options, for `help`; type checkers see `**options`."""
    for function in functions:
        declared = signature(function).parameters
        keywords = [
            Parameter(setting.name, Parameter.KEYWORD_ONLY, default=setting.default)
            for setting in (*run_settings(), *measure_settings())
        ]
        parameters = [declared["ckpts"], *keywords, declared["progress"]]
        function.__signature__ = Signature(parameters, return_annotation=Run)  # type: ignore[attr-defined]


_keywords(rank, mi, cluster, scan)
