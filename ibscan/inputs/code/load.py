"""Find and call code that the user names (`module:callable`, `path.py:callable`), and report its failures."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ibscan.core.boundary import foreign, is_installed
from ibscan.core.text import near_names
from ibscan.errors import CheckpointError, InputError, UsageError
from ibscan.inputs.code.scripts import Deed, deed_of_call, deed_of_import
from ibscan.inputs.code.sources import files_of
from ibscan.inputs.files import exists, regular_stat, unreadable

__all__ = ["Maker", "called", "code_hash", "importing", "is_code", "named_callable"]

ATTRIBUTES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
MODULE = re.compile(rf"{ATTRIBUTES}:{ATTRIBUTES}")
FILE = re.compile(rf"(?s:.+)\.py:{ATTRIBUTES}")
# What modules loaded from a path are called among Python's own: with the hash of the place and the content.
PREFIX = "ibscan_"


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


def named_callable(spec: str, option: str, *, run_script: bool = False) -> Callable[..., Any]:
    """Import what a spec names. This runs code: only for specs named on the command line, or trusted.

    A module is looked for among what is installed or on PYTHONPATH, never in the working folder. While a file is
    loaded, and while what it names is called, its own folder is on the import path, so that it can import its
    neighbours; a neighbour imported once stays imported, as everywhere in Python, and so does the file itself for as
    long as it stays the same. Prints go to standard error.

    Args:
        spec: `module:callable` or `path.py:callable`; the callable may be dotted, `Class.build`.
        option: What named it, for a message: `--probe`, `--model`.
        run_script: Also run what trains or writes files when it is imported.

    Returns:
        The callable, which finds its import path when it is called.

    Raises:
        UsageError: The spec has another form.
        InputError: No such file, module or attribute, it is not callable, importing it fails, or would train or write
            files: then nothing of it has run.
    """
    where = f"{option} {spec}"
    if not is_code(spec):
        raise UsageError(f"{where}: expected module:callable or path.py:callable.")
    place, _, dotted = spec.rpartition(":")
    folder = str(Path(place).absolute().parent) if place.endswith(".py") else None
    check = None if run_script else dotted
    with importing(folder, place):
        module = _imported(place, where, check) if folder is None else _loaded(Path(place), where, check)
        found: Any = module
        for name in dotted.split("."):
            found = _attribute(found, name, where)
        # Code that changes its working folder when it is imported expects to be called there.
        inside = Path.cwd()
    if not callable(found):
        raise InputError(f"{where}: is of type {type(found).__name__}, but something that can be called was expected.")

    @functools.wraps(found, updated=())
    def call(*positional: Any, **named: Any) -> Any:  # noqa: ANN401 - as the code has it
        with importing(folder, place):
            os.chdir(inside)
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

    Raises:
        InputError: It does not take these arguments, raises, or exits.
        OutOfMemory: It runs out of memory.
    """
    with foreign(f"{where}:"):
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
def importing(folder: str | None, program: str | None = None) -> Iterator[None]:
    """Keep the working folder off the import path and put `folder` on it, and send prints to standard error.

    Code that reads its command line finds one of its own, without arguments: ours is not meant for it. Afterwards the
    working folder is what it was, whatever the code did.

    Args:
        folder: Where code is imported from besides, or None.
        program: What the code takes itself to be called, or None for what we are.
    """
    here, loaded, line = Path.cwd(), set(sys.modules), sys.argv
    sys.argv = line[:1] if program is None else [program]
    # Only what stands there on Python's own account: the same folder on PYTHONPATH, or installed, stays.
    first = not sys.flags.safe_path and bool(sys.path) and os.path.realpath(sys.path[0]) == str(here.resolve())
    dropped = [(k, entry) for k, entry in enumerate(sys.path) if entry == "" or (k == 0 and first)]
    for _, entry in dropped:
        sys.path.remove(entry)
    if folder is not None:
        sys.path.insert(0, folder)
        for name in [name for name in loaded if name.startswith(PREFIX)]:
            _as_neighbour(name, Path(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = line
        # What the code itself put on the path stays: later imports of its own may need it.
        if folder is not None and folder in sys.path:
            sys.path.remove(folder)
        for k, entry in dropped:
            sys.path.insert(k, entry)
        os.chdir(here)
        for name in sys.modules.keys() - loaded:
            _settle(name)


def _as_neighbour(name: str, folder: Path) -> None:
    """Let code of a folder import a file of it, loaded before by its path, under the file's name, as it was loaded."""
    file = Path(getattr(sys.modules[name], "__file__", None) or "")
    if sys.modules[name].__name__ == name and file.parent == folder and file.stem not in sys.stdlib_module_names:
        with contextlib.suppress(OSError):
            if _key(file, file.read_bytes()) == name:
                sys.modules.setdefault(file.stem, sys.modules[name])


def _settle(name: str) -> None:
    """Note a neighbour that was imported, so that it is not loaded again by its path; forget names lent for a while."""
    module = sys.modules[name]
    own, file = getattr(module, "__name__", None), getattr(module, "__file__", None)
    if isinstance(own, str) and own.startswith(PREFIX):
        if own != name and not name.startswith(PREFIX):
            del sys.modules[name]
    elif isinstance(file, str) and file.endswith(".py") and not is_installed(file):
        with contextlib.suppress(OSError):
            sys.modules.setdefault(_key(Path(file), Path(file).read_bytes()), module)


def _key(path: Path, source: bytes) -> str:
    """Return a name of its own for a file: `random.py` beside a probe must not become the module `random`."""
    place = os.fsencode(os.path.realpath(path))
    return f"{PREFIX}{path.stem}_{hashlib.sha256(place + bytes(1) + source).hexdigest()[:12]}"


def _refuse(deed: Deed | None, where: str, when: str) -> None:
    if deed is not None:
        raise InputError(
            f"{where}: {deed.file.name}, line {deed.line}, calls {deed.text} {when}: that trains or writes files, so "
            'nothing of it was run. Put it under `if __name__ == "__main__":`, or add --run-script to run it all the '
            "same."
        )


def _imported(name: str, where: str, check: str | None) -> ModuleType:
    importlib.invalidate_caches()
    files = files_of(name)
    own = files[-1][1] if files and files[-1][0] == name else None
    if check is not None:
        _refuse(deed_of_import(files), where, "when it is imported")
        if own is not None:
            _refuse(deed_of_call(name, own, check), where, "when it is called")
    if own is not None:
        with contextlib.suppress(OSError, KeyError):
            sys.modules.setdefault(name, sys.modules[_key(own, own.read_bytes())])
    with foreign(f"{where}:", "importing it raised"):
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


def _loaded(path: Path, where: str, check: str | None) -> ModuleType:
    try:
        regular_stat(path, str(path))
        source = path.read_bytes()
    except CheckpointError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(unreadable(path, str(path), error)) from None
    name = _key(path, source)
    if check is not None:
        importlib.invalidate_caches()
        _refuse(deed_of_import([(name, path.absolute())]), where, "when it is imported")
        _refuse(deed_of_call(name, path.absolute(), check), where, "when it is called")
    if name in sys.modules:
        return sys.modules[name]
    with foreign(f"{where}:", "loading it raised"):
        spec = importlib.util.spec_from_file_location(name, path.absolute())
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and pickles look their module up by its name.
        sys.modules[name] = module
        _as_neighbour(name, path.absolute().parent)
        try:
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _attribute(owner: Any, name: str, where: str) -> Any:  # noqa: ANN401 - as the code has it
    missing = object()
    with foreign(f"{where}:", f"looking up {name!r} raised"):
        found = getattr(owner, name, missing)
        if found is not missing:
            return found
        known = [other for other in dir(owner) if not other.startswith("_")]
    near = near_names(name, known, 3)
    listed = ", ".join(near or known[:8])
    hint = f"did you mean {listed}?" if near else f"there is {listed or 'nothing'}."
    raise InputError(f"{where}: there is no {name!r} in it; {hint}")
