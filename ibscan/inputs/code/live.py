"""Objects handed over in Python in place of code named by path: what they are called, and what identifies them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from ibscan.core.boundary import is_installed
from ibscan.inputs.code.load import code_hash, is_code

__all__ = ["Live", "live", "source_hash"]


@dataclass(frozen=True, eq=False)
class Live:
    """An object handed over in Python.

    `name` stands in messages, `spec` in the result: `module:callable` or `path.py:callable` of the class or function
    that it is or was made by, as it would be typed. `defined` says that the spec alone finds it again: a class or
    function at the top of a file.
    """

    found: Any
    name: str
    spec: str
    defined: bool = False

    def __str__(self) -> str:
        return self.name


def live(found: Any) -> Live:  # noqa: ANN401 - whatever was handed over
    """Describe a class, a function or an instance of a class.

    Example:
        >>> live(Live).spec, live(Live).defined
        ('ibscan.inputs.code.live:Live', True)
    """
    owner = _owner(found)
    module, qualified = str(getattr(owner, "__module__", "")), str(getattr(owner, "__qualname__", ""))
    # Parts of a name that cannot be typed: `make.<locals>.Net`, `<lambda>`.
    dotted = re.sub(r"[^\w.]", "", qualified.replace("<locals>.", ""))
    file = _file(owner)
    # Inside a package a file is imported by its dotted name, elsewhere it is given by its path.
    spec = f"{module if file is None or '.' in module else file}:{dotted}"
    defined = file is not None and found is owner and _is_found(module, qualified, found)
    name = dotted.rpartition(".")[2] or type(found).__name__
    return Live(found, name, spec if is_code(spec) else "python:object", defined)


def source_hash(found: Any) -> str:  # noqa: ANN401 - as above
    """Return the SHA-256 of the file that defines an object's class or function; without one, of its source.

    What was typed at a prompt has a source in notebooks, and only its byte code elsewhere.
    """
    owner = _owner(found)
    file = _file(owner)
    if file is not None:
        return code_hash(f"{file}:")
    own = [function for one in _bases(owner) for function in _functions(one)]
    return hashlib.sha256("\0".join(map(_source, own)).encode()).hexdigest()


def _is_of_a_library(found: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether an object's class or function is a library's, and not the user's."""
    file = _file(_owner(found))
    return file is not None and is_installed(str(file))


def _owner(found: Any) -> Any:  # noqa: ANN401 - as above
    """Return the class or function that an object is, wraps, or is an instance of."""
    while isinstance(found, functools.partial):
        found = found.func
    found = getattr(found, "__func__", found)
    return found if isinstance(found, type) or inspect.isroutine(found) else type(found)


def _file(owner: Any) -> Path | None:  # noqa: ANN401 - as above
    """Return the file a class or function was read from, None where there is none, as at a prompt."""
    # Of the code itself: its module may be one that runs what is typed.
    named = [function.__code__.co_filename for function in _functions(owner) if hasattr(function, "__code__")]
    named = named or [str(getattr(sys.modules.get(str(getattr(owner, "__module__", ""))), "__file__", None))]
    return next((path for path in map(Path, named) if path.suffix == ".py" and path.is_file()), None)


def _is_found(module: str, qualified: str, found: Any) -> bool:  # noqa: ANN401 - as above
    place: Any = sys.modules.get(module)
    for name in qualified.split("."):
        place = getattr(place, name, None)
    return place is found


def _bases(owner: Any) -> list[Any]:  # noqa: ANN401 - as above
    """Return a class and its bases that are no library's, or the function itself."""
    bases = owner.__mro__ if isinstance(owner, type) else [owner]
    return [base for base in bases if base is not object and not _is_of_a_library(base)]


def _functions(owner: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    """Yield the functions that a class defines itself, or the function, without what decorators put around them."""
    parts = [part for _, part in sorted(vars(owner).items())] if isinstance(owner, type) else [owner]
    yield from (inspect.unwrap(part) for part in parts if inspect.isfunction(part))


def _source(function: Any) -> str:  # noqa: ANN401 - as above
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return _byte_code(function.__code__)


def _byte_code(code: CodeType) -> str:
    constants = [_byte_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
