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

__all__ = ["Live", "is_of_a_library", "live", "source_hash"]


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
        >>> live(Live).spec.rpartition("/")[2], live(Live).defined
        ('ibscan.inputs.code.live:Live', True)
    """
    owner = _owner(found)
    module, qualified = str(getattr(owner, "__module__", "")), str(getattr(owner, "__qualname__", ""))
    # Parts of a name that cannot be typed: `make.<locals>.Net`, `<lambda>`.
    dotted = re.sub(r"[^\w.]", "", qualified.replace("<locals>.", ""))
    file = _file(module)
    # Inside a package a file is imported by its dotted name, elsewhere it is given by its path.
    origin = module if file is None or "." in module else str(file)
    spec = f"{origin}:{dotted}"
    spec = spec if is_code(spec) else "python:object"
    defined = file is not None and found is owner and "<" not in qualified and _is_found(module, qualified, found)
    return Live(found, dotted.rpartition(".")[2] or type(found).__name__, spec, defined)


def source_hash(found: Any) -> str:  # noqa: ANN401 - as above
    """Return the SHA-256 of the file that defines an object's class or function; without one, of its source.

    What was typed at a prompt has a source in notebooks, and only its byte code elsewhere.
    """
    owner = _owner(found)
    module = str(getattr(owner, "__module__", ""))
    if _file(module) is not None:
        return code_hash(f"{module}:{getattr(owner, '__qualname__', '')}")
    return hashlib.sha256("\0".join(map(_source, _functions(owner))).encode()).hexdigest()


def is_of_a_library(found: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether an object's class or function is a library's, and not the user's."""
    file = _file(str(getattr(_owner(found), "__module__", "")))
    return file is not None and is_installed(str(file))


def _owner(found: Any) -> Any:  # noqa: ANN401 - as above
    """Return the class or function that an object is, wraps, or is an instance of."""
    while isinstance(found, functools.partial):
        found = found.func
    found = getattr(found, "__func__", found)
    return found if isinstance(found, type) or inspect.isroutine(found) else type(found)


def _file(module: str) -> Path | None:
    """Return the file of a module, None where it has none that exists, as at a prompt."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") and Path(file).is_file() else None


def _is_found(module: str, qualified: str, found: Any) -> bool:  # noqa: ANN401 - as above
    place: Any = sys.modules.get(module)
    for name in qualified.split("."):
        place = getattr(place, name, None)
    return place is found


def _functions(owner: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    """Yield the functions of a class and of its bases that are no library's, or the function itself."""
    if not isinstance(owner, type):
        yield owner
        return
    for base in owner.__mro__:
        if base is not object and not is_of_a_library(base):
            yield from (part for _, part in sorted(vars(base).items()) if inspect.isfunction(part))


def _source(function: Any) -> str:  # noqa: ANN401 - as above
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return str(getattr(function, "__qualname__", "")) if code is None else _byte_code(code)


def _byte_code(code: CodeType) -> str:
    constants = [_byte_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
