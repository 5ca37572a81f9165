"""Code that the user names: `module:callable` and `path.py:callable`, found, called, and its failures told."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ibscan.errors import CheckpointError, IbscanError, InputError, UsageError
from ibscan.inputs.files import exists, regular_stat, unreadable

__all__ = ["Maker", "called", "code_hash", "importing", "is_code", "named_callable"]

ATTRIBUTES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
MODULE = re.compile(rf"{ATTRIBUTES}:{ATTRIBUTES}")
FILE = re.compile(rf"(?s:.+)\.py:{ATTRIBUTES}")
LONGEST_MESSAGE = 300
OURS = (__file__, importlib.__file__)


@dataclass(frozen=True)
class Maker:
    """What makes a model, and the hash of the code that does.

    `names` maps other names that tensors may be saved under to the model's own.
    """

    build: Callable[[], Any]
    code: str
    names: Mapping[str, str] = field(default_factory=dict)


def is_code(spec: str) -> bool:
    """Tell whether a spec has the form `module:callable` or `path.py:callable`, and is no path that exists.

    Args:
        spec: As typed. `mlp:tanh` has the form too: whoever knows built-in specs asks for them first.

    Example:
        >>> is_code("package.module:Class.build"), is_code("runs/data.py:probe"), is_code("probe.npz")
        (True, True, False)
    """
    return bool(FILE.fullmatch(spec) or MODULE.fullmatch(spec)) and not exists(spec)


def named_callable(spec: str, option: str) -> Callable[..., Any]:
    """Import what a spec names. This runs code: only for specs named on the command line, or trusted.

    A module is looked for among what is installed or on PYTHONPATH, never in the working folder. While a file is
    loaded, and while what it names is called, its own folder is on the import path, so that it can import its
    neighbours; a neighbour imported once stays imported, as everywhere in Python. Prints go to standard error.

    Args:
        spec: `module:callable` or `path.py:callable`; the callable may be dotted, `Class.build`.
        option: What named it, for a message: `--probe`, `--model`.

    Returns:
        The callable, which finds its import path when it is called.

    Raises:
        UsageError: The spec has another form.
        InputError: No such file, module or attribute, it is not callable, or importing it fails.
    """
    where = f"{option} {spec}"
    if not is_code(spec):
        raise UsageError(f"{where}: expected module:callable or path.py:callable.")
    place, _, dotted = spec.rpartition(":")
    folder = str(Path(place).absolute().parent) if place.endswith(".py") else None
    with importing(folder):
        module = _imported(place, where) if folder is None else _loaded(Path(place), where)
        found: Any = module
        for name in dotted.split("."):
            found = _attribute(found, name, where)
    if not callable(found):
        raise InputError(f"{where}: is of type {type(found).__name__}, but something that can be called was expected.")

    @functools.wraps(found, updated=())
    def call(*positional: Any, **named: Any) -> Any:  # noqa: ANN401 - as the code has it
        with importing(folder):
            return found(*positional, **named)

    return call


def code_hash(spec: str) -> str:
    """Return the SHA-256 of the file that a spec names, as it is now; what that file imports is not in it.

    Args:
        spec: `module:callable` or `path.py:callable`, imported before by `named_callable`.
    """
    place = spec.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    try:
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def called(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    """Call foreign code; what it raises becomes a sentence.

    Args:
        function: As `named_callable` returned it.
        arguments: By name.
        where: What named it, for a message, such as `--probe data.py:probe`.

    Returns:
        What it returns.

    Raises:
        InputError: It does not take these arguments, raises, or exits. Running out of memory and interrupts pass.
    """
    with _told(where, "raised"):
        fault = _unfit(function, arguments)
        if fault is None:
            return function(**arguments)
    raise InputError(f"{where}: {fault}")


def _unfit(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in C, or says nothing of itself: calling it will tell
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        return f"takes {str(signature).partition(' -> ')[0]}, and the arguments given are {given} ({error})."
    return None


@contextlib.contextmanager
def importing(folder: str | None) -> Iterator[None]:
    """Keep the working folder off the import path and put `folder` on it, and send prints to standard error.

    Args:
        folder: Where code is imported from besides, or None.
    """
    # Only what stands there on Python's own account: the same folder on PYTHONPATH, or installed, stays.
    first = not sys.flags.safe_path and bool(sys.path) and os.path.realpath(sys.path[0]) == str(Path.cwd().resolve())
    dropped = [(k, entry) for k, entry in enumerate(sys.path) if entry == "" or (k == 0 and first)]
    for _, entry in dropped:
        sys.path.remove(entry)
    if folder is not None:
        sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        # What the code itself put on the path stays: later imports of its own may need it.
        if folder is not None and folder in sys.path:
            sys.path.remove(folder)
        for k, entry in dropped:
            sys.path.insert(k, entry)


@contextlib.contextmanager
def _told(where: str, verb: str) -> Iterator[None]:
    # The boundary to foreign code: it may raise anything. SystemExit is among it, as a script without a main guard
    # would end this program with its own exit code; KeyboardInterrupt and our signals are not.
    try:
        yield
    except IbscanError:
        raise
    except (Exception, SystemExit) as error:
        # Running out of memory is told by whoever knows what to do about it. torch is loaded if it can raise.
        if isinstance(error, (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))):
            raise
        raise InputError(f"{where}: {verb} {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - foreign code again
        message = ""
    shown = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in OURS]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if shown else ''}{shown}{place}; --debug shows where."


def _imported(name: str, where: str) -> ModuleType:
    importlib.invalidate_caches()
    with _told(where, "importing it raised"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that is there but imports an absent one is another matter.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = error.name
    near = f"; for a file in the working folder give its path, {name.replace('.', '/')}.py:..."
    hint = near if exists(f"{name.replace('.', '/')}.py") else ""
    raise InputError(f"{where}: there is no module {missing!r} installed or on PYTHONPATH{hint}.")


def _loaded(path: Path, where: str) -> ModuleType:
    try:
        regular_stat(path, str(path))
        source = path.read_bytes()
    except CheckpointError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(unreadable(path, str(path), error)) from None
    # A name of its own: `random.py` beside a probe must not become the module `random`.
    name = f"ibscan_{path.stem}_{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:8]}"
    with _told(where, "loading it raised"):
        spec = importlib.util.spec_from_file_location(name, path.absolute())
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and pickles look their module up by its name.
        sys.modules[name] = module
        try:
            # Compiled here, so that nothing is written beside the file.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _attribute(owner: Any, name: str, where: str) -> Any:  # noqa: ANN401 - as the code has it
    missing = object()
    with _told(where, f"looking up {name!r} raised"):
        found = getattr(owner, name, missing)
        if found is not missing:
            return found
        known = [other for other in dir(owner) if not other.startswith("_")]
    near = difflib.get_close_matches(name, known, 3)
    listed = ", ".join(near or known[:8])
    hint = f"did you mean {listed}?" if near else f"there is {listed or 'nothing'}."
    raise InputError(f"{where}: there is no {name!r} in it; {hint}")
