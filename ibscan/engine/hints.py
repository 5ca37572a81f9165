"""Make the errors for a model or a probe that is missing or misnamed, with what to add to the command line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ibscan.core.records import Checkpoint
from ibscan.core.text import listed, near_names
from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.definitions import Definition, definitions, fitting
from ibscan.inputs.code.load import is_code
from ibscan.networks.resolve import chain_order, is_linear

__all__ = ["check_name", "missing_probe", "ordered_chain", "output_argument", "unstated_model"]

# Of tensors and of definitions, in a message.
MOST_TENSORS, MOST_NAMED = 3, 3
# Arguments that set the size of a network's output.
OUTPUTS = re.compile(
    r"(n|num|nb|nr)_?(class(es)?|labels?|outputs?|out|targets?|categories|units_out)|class(es|_num|_count)|labels|"
    r"c_?out|d_?out|n?out(put)?s?(_?(dims?|features|size|channels|units|width|classes))?|(dims?|features|size)_out"
)


def unstated_model(first: Checkpoint) -> UsageError:
    """Return the error for a series that states no model: a plain chain lacks its activation, others their class."""
    found = _near(first)
    fit = fitting(found, first.tensors)
    weights = [f"{name} {info.shape}" for name, info in first.tensors.items() if not name.endswith("bias")]
    shapes = listed(weights, MOST_TENSORS)
    if not is_linear(first.tensors):
        return UsageError(
            f"{first.name}: nothing states the network that its tensors belong to ({shapes}). Add --model "
            f"path.py:callable, your own class or a function that returns it{_meant(fit or found)}",
            options=_named((fit or found)[:1]) or ("--model", "train.py:Net"),
        )
    meant = f", or your own class{_meant(fit)}" if fit else ", or --model path.py:callable for your own class."
    sentences = [
        f"{first.name}: nothing states the activation between its layers ({shapes}). Add --model mlp:ACT, such as "
        f"--model mlp:tanh or --model mlp:relu:softmax{meant}"
    ]
    options = _named(fit[:1])
    if not options:
        options = "--model", "mlp:ACT"
        try:
            chain_order(first.tensors, (), first.state_key)
        except InputError as error:
            sentences.append(f"{first.name}: {error}")
            options += error.options
    return UsageError(*sentences, options=options)


def ordered_chain(first: Checkpoint, chain: Sequence[str]) -> tuple[str, ...]:
    """Return the layers of a plain chain in order.

    Raises:
        InputError: The checkpoint holds none, or names and shapes do not say its order.
        NothingMatched: A glob of `chain` matches no layer.
        UsageError: All that a glob matches was taken by one before it.
    """
    try:
        return chain_order(first.tensors, chain, first.state_key)
    except InputError as error:
        if error.options or is_linear(first.tensors):
            raise InputError(f"{first.name}: {error}", options=error.options) from None
        found = _near(first)
        likely = fitting(found, first.tensors) or found
        meant = f" Did you mean --model {likely[0].spec}?" if likely else ""
        options = _named(likely[:1]) or ("--model", "train.py:Net")
        raise InputError(f"{first.name}: {error}{meant}", options=options) from None


def check_name(typed: str, first: Checkpoint) -> None:
    """Check that `--model` names code in a form that can be found.

    Raises:
        UsageError: It does not; the message has what was probably meant.
    """
    if is_code(typed) and not _is_lost(typed):
        return
    found = _near(first)
    inside = [one for one in found if typed.endswith(".py") and one.spec.startswith(f"{typed}:")]
    name = re.split(r"[.:/]", typed.removesuffix(".py"))[-1]
    near = near_names(name, [one.name for one in found], MOST_NAMED)
    same = [one for one in found if one.name == name]
    likely = inside or same or [one for one in found if one.name in near] or fitting(found, first.tensors)
    if not likely and is_code(typed):
        return  # loading it will say what is wrong
    why = "expected module:callable or path.py:callable"
    if is_code(typed):
        in_file = typed.rpartition(":")[0].endswith(".py")
        why = "there is no such file" if in_file else "is neither installed nor on PYTHONPATH"
    options = _named(likely[:1]) or unstated_model(first).options
    raise UsageError(f"--model {typed}: {why}{_meant(likely)}", options=options)


def output_argument(function: Callable[..., Any] | None, units: int) -> tuple[str, ...]:
    """Return the option by which a model's callable is told the size of its output, none where no argument says so."""
    if function is None:
        return ()
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built in C, or without a signature
        return ()
    found = [name for name in names if OUTPUTS.fullmatch(name.lower())]
    return ("--model-arg", f"{found[0]}={units}") if found else ()


def missing_probe(paths: Sequence[Path]) -> InputError:
    """Return the error for a series without a probe, with the file that may be meant, or how to make one."""
    place = paths[0] if len(paths) == 1 and paths[0].is_dir() else Path()
    begin = (
        f"{paths[0]}: no probe, the inputs to measure on, lies beside the checkpoints (probe.npz, ...), and none was"
    )
    begin += " given with --probe"
    arrays = {file.resolve(): file for folder in (place, Path()) for file in _arrays(folder)}
    if len(arrays) == 1:
        file = next(iter(arrays.values()))
        return InputError(f"{begin}; did you mean {file}?", options=("--probe", str(file)))
    target = str(place / "probe.npz")
    return InputError(
        f"{begin}.",
        options=("--probe", target),
        lines=(
            "Python makes one, of inputs as the network takes them (N, ...) and labels (N,); or name a function that "
            "returns both, --probe data.py:FUNCTION.",
            "  import numpy as np",
            "  x, y = test_inputs, test_labels",
            f"  np.savez({target!r}, x=x, y=y)",
        ),
    )


def _near(first: Checkpoint) -> tuple[Definition, ...]:
    """Return what may make a model beside the checkpoint, in the working folder, and in the folder around the first."""
    beside = first.path.parent
    near = (beside, Path(), beside.parent)
    return definitions(dict.fromkeys(Path() if one.resolve() == Path.cwd() else one for one in near))


def _is_lost(code: str) -> bool:
    """Tell whether a file does not exist, or a module cannot be found where modules are imported from."""
    origin = code.rpartition(":")[0]
    if origin.endswith(".py"):
        return not Path(origin).exists()
    top = origin.partition(".")[0]
    # The working folder is no place that modules are imported from; packages in development have finders of their own.
    paths = [path for path in sys.path if path and Path(path).resolve() != Path.cwd()]
    others = (finder.find_spec(top, None) for finder in sys.meta_path if finder is not PathFinder)
    return top not in sys.modules and PathFinder.find_spec(top, paths) is None and not any(others)


def _meant(likely: Sequence[Definition]) -> str:
    return f"; did you mean {listed([one.spec for one in likely], MOST_NAMED)}?" if likely else "."


def _named(likely: Sequence[Definition]) -> tuple[str, ...]:
    """Return the options that name the code, with what its arguments need left to fill in."""
    options: tuple[str, ...] = ()
    for one in likely:
        options += "--model", one.spec
        for name in one.needed:
            options += "--model-arg", f"{name}=VALUE"
    return options


def _arrays(folder: Path) -> Iterable[Path]:
    try:
        return sorted(file for file in folder.glob("*.npz") if file.is_file())
    except OSError:
        return ()
