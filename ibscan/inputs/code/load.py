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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ibscan.core.boundary import is_installed, user_code
from ibscan.core.text import near_names
from ibscan.errors import CheckpointError, InputError, UsageError
from ibscan.inputs.code.scripts import call_effect, import_effect
from ibscan.inputs.code.sources import files_of
from ibscan.inputs.files import exists, regular_stat, unreadable

__all__ = ["Maker", "argument_fault", "called", "code_hash", "importing", "is_code", "named_callable"]

ATTRIBUTES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
MODULE = re.compile(rf"{ATTRIBUTES}:{ATTRIBUTES}")
FILE = re.compile(rf"(?s:.+)\.py:{ATTRIBUTES}")
# Names in sys.modules of modules loaded from a path; a hash of path and content follows.
PREFIX = "ibscan_"


@dataclass(frozen=True)
class Maker:
    """A function that builds a model, the hash of its code, and the model's tensor names by other saved names.

    `function` is what the user named, which `build` calls with its arguments; None where it is a library's.
    """

    build: Callable[[], Any]
    code: str
    names: Mapping[str, str] = field(default_factory=dict)
    function: Callable[..., Any] | None = None


def is_code(spec: str) -> bool:
    """Tell whether a spec has the form `module:callable` or `path.py:callable`, and is no path that exists.

    A built-in spec such as `mlp:tanh` has the form too: ask for those first.

    Example:
        >>> is_code("package.module:Class.build"), is_code("runs/data.py:probe"), is_code("probe.npz")
        (True, True, False)
    """
    return bool(FILE.fullmatch(spec) or MODULE.fullmatch(spec)) and not exists(spec)


def named_callable(spec: str, option: str, *, run_script: bool = False) -> Callable[..., Any]:
    """Import the callable that a spec names. This runs code: only for specs from the command line, or trusted ones.

    A module is imported from installed packages or PYTHONPATH, never from the working folder. While a file is loaded,
    and while its callable runs, the file's folder is on the import path, so that it can import its neighbours. A
    neighbour stays imported, and so does the file until it changes. Prints go to standard error.

    Args:
        spec: `module:callable` or `path.py:callable`; the callable may be dotted, `Class.build`.
        option: The option that named it, such as `--probe`.
        run_script: Also run code that trains or writes files when it is imported.

    Raises:
        UsageError: The spec has another form.
        InputError: No such file, module or attribute, not callable, a failing import, or one that would train or write
            files: then none of it has run.
    """
    where = f"{option} {spec}"
    if not is_code(spec):
        raise UsageError(f"{where}: expected module:callable or path.py:callable.")
    origin, _, dotted = spec.rpartition(":")
    folder = str(Path(origin).absolute().parent) if origin.endswith(".py") else None
    check = None if run_script else dotted
    with importing(folder, origin):
        module = _imported_module(origin, where, check) if folder is None else _loaded_file(Path(origin), where, check)
        found: Any = module
        for name in dotted.split("."):
            found = _attribute(found, name, where)
        # Code that changes its working folder on import expects to be called there.
        inside = Path.cwd()
    if not callable(found):
        raise InputError(f"{where}: is of type {type(found).__name__}, but something that can be called was expected.")

    @functools.wraps(found, updated=())
    def call(*positional: Any, **named: Any) -> Any:  # noqa: ANN401 - as the code has it
        with importing(folder, origin):
            os.chdir(inside)
            return found(*positional, **named)

    return call


def code_hash(spec: str) -> str:
    """Return the SHA-256 of the file of a spec that `named_callable` imported; its imports are not hashed."""
    origin = spec.rpartition(":")[0]
    file = origin if origin.endswith(".py") else getattr(sys.modules.get(origin), "__file__", None)
    try:
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def called(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    """Call the user's code, turning what it raises into an InputError.

    Raises:
        InputError: It does not take these arguments, raises, or exits.
        OutOfMemory: It runs out of memory.
    """
    with user_code(f"{where}:"):
        fault = argument_fault(function, arguments)
        if fault is None:
            return function(**arguments)
    raise InputError(f"{where}: {fault}")


def argument_fault(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return how arguments do not fit a callable, None if they do or its signature is not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in C, or without a signature
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        return f"takes {str(signature).partition(' -> ')[0]}, and the arguments given are {given} ({error})."
    return None


@contextlib.contextmanager
def importing(folder: str | None, program: str | None = None) -> Iterator[None]:
    """Keep the working folder off the import path, put `folder` on it, and send prints to standard error.

    The code sees a command line of `program` (None: our own name) without arguments. Afterwards the working folder is
    restored.
    """
    here, loaded, line = Path.cwd(), set(sys.modules), sys.argv
    sys.argv = line[:1] if program is None else [program]
    # Drop only the entry that Python itself adds: the same folder on PYTHONPATH, or installed, stays.
    first = not sys.flags.safe_path and bool(sys.path) and os.path.realpath(sys.path[0]) == str(here.resolve())
    dropped = [(k, entry) for k, entry in enumerate(sys.path) if entry == "" or (k == 0 and first)]
    for _, entry in dropped:
        sys.path.remove(entry)
    if folder is not None:
        sys.path.insert(0, folder)
        for name in [name for name in loaded if name.startswith(PREFIX)]:
            _alias_neighbour(name, Path(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = line
        # Entries that the code added stay: its later imports may need them.
        if folder is not None and folder in sys.path:
            sys.path.remove(folder)
        for k, entry in dropped:
            sys.path.insert(k, entry)
        os.chdir(here)
        for name in sys.modules.keys() - loaded:
            _register(name)


def _alias_neighbour(name: str, folder: Path) -> None:
    """Let code in a folder import a file already loaded by its path, under the file's plain name."""
    file = Path(getattr(sys.modules[name], "__file__", None) or "")
    if sys.modules[name].__name__ == name and file.parent == folder and file.stem not in sys.stdlib_module_names:
        with contextlib.suppress(OSError):
            if _module_name(file, file.read_bytes()) == name:
                sys.modules.setdefault(file.stem, sys.modules[name])


def _register(name: str) -> None:
    """Register an imported neighbour by its path, so that it is not loaded twice; drop temporary aliases."""
    module = sys.modules[name]
    own, file = getattr(module, "__name__", None), getattr(module, "__file__", None)
    if isinstance(own, str) and own.startswith(PREFIX):
        if own != name and not name.startswith(PREFIX):
            del sys.modules[name]
    elif isinstance(file, str) and file.endswith(".py") and not is_installed(file):
        with contextlib.suppress(OSError):
            sys.modules.setdefault(_module_name(Path(file), Path(file).read_bytes()), module)


def _module_name(path: Path, source: bytes) -> str:
    """Return a unique module name for a file: `random.py` beside a probe must not become the module `random`."""
    real_path = os.fsencode(os.path.realpath(path))
    return f"{PREFIX}{path.stem}_{hashlib.sha256(real_path + bytes(1) + source).hexdigest()[:12]}"


def _refuse_side_effects(files: Sequence[tuple[str, Path]], name: str, check: str, where: str) -> None:
    """Refuse files whose import, or whose callable `check` of the module `name`, would train or write files."""
    effect, when = import_effect(files), "when it is imported"
    if effect is None and files and files[-1][0] == name:
        effect, when = call_effect(*files[-1], check), "when it is called"
    if effect is not None:
        raise InputError(
            f"{where}: {effect.file.name}, line {effect.line}, calls {effect.text} {when}: that trains or writes "
            'files, so nothing of it was run. Put it under `if __name__ == "__main__":`, or add --run-script to run it '
            "all the same."
        )


def _imported_module(name: str, where: str, check: str | None) -> ModuleType:
    importlib.invalidate_caches()
    files = files_of(name)
    own = files[-1][1] if files and files[-1][0] == name else None
    if check is not None:
        _refuse_side_effects(files, name, check, where)
    if own is not None:
        with contextlib.suppress(OSError, KeyError):
            sys.modules.setdefault(name, sys.modules[_module_name(own, own.read_bytes())])
    with user_code(f"{where}:", "importing it raised"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # The module exists and imports an absent one: report that.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = error.name
    near = f"; for a file in the working folder give its path, {name.replace('.', '/')}.py:..."
    hint = near if exists(f"{name.replace('.', '/')}.py") else ""
    raise InputError(f"{where}: there is no module {missing!r} installed or on PYTHONPATH{hint}.")


def _loaded_file(path: Path, where: str, check: str | None) -> ModuleType:
    try:
        regular_stat(path, str(path))
        source = path.read_bytes()
    except CheckpointError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(unreadable(path, str(path), error)) from None
    name = _module_name(path, source)
    if check is not None:
        importlib.invalidate_caches()
        _refuse_side_effects([(name, path.absolute())], name, check, where)
    if name in sys.modules:
        return sys.modules[name]
    with user_code(f"{where}:", "loading it raised"):
        spec = importlib.util.spec_from_file_location(name, path.absolute())
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and pickles look their module up by its name.
        sys.modules[name] = module
        _alias_neighbour(name, path.absolute().parent)
        try:
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _attribute(owner: Any, name: str, where: str) -> Any:  # noqa: ANN401 - as the code has it
    missing = object()
    with user_code(f"{where}:", f"looking up {name!r} raised"):
        found = getattr(owner, name, missing)
        if found is not missing:
            return found
        known = [other for other in dir(owner) if not other.startswith("_")]
    near = near_names(name, known, 3)
    listed = ", ".join(near or known[:8])
    hint = f"did you mean {listed}?" if near else f"there is {listed or 'nothing'}."
    raise InputError(f"{where}: there is no {name!r} in it; {hint}")
