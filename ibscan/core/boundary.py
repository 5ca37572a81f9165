"""The one boundary to the user's code: what it raises becomes one of our exceptions, which says where it happened.

Every call into the user's code goes through `user_code`: importing it, building a model, loading weights, forward and
backward passes, reading what a probe's callable returned.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibscan.errors import IbscanError, InputError, Interrupted, OutOfMemory, Reached

__all__ = ["is_installed", "is_out_of_memory", "own_code", "user_code"]

LONGEST_MESSAGE, LONGEST_NAME = 300, 80
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
STANDARD = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
# Files of stack frames that do not show where the user's code failed.
OURS = (PACKAGE, contextlib.__file__, importlib.__file__, "<frozen importlib")
# Messages by which libraries report a lack of memory in exceptions of a general kind.
REFUSED = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "storage size calculation overflowed",
    "array is too big",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, numpy or torch says that memory did not suffice."""
    # torch cannot have raised anything where it is not loaded.
    if isinstance(error, (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = _text(error).lower() if isinstance(error, RuntimeError | ValueError) else ""
    return any(words in said for words in REFUSED)


@contextlib.contextmanager
def user_code(where: str, verb: str = "raised") -> Iterator[None]:
    """Run the user's code: send what it prints to standard error, and turn what it raises into one sentence.

    No byte code is written beside its files. If it changes how warnings or numpy's floating-point errors are raised,
    that is undone afterwards.

    Args:
        where: Names the code in a message: `the model`, `--probe data.py:probe`.
        verb: What it did.

    Raises:
        OutOfMemory: It asked for more memory than there is.
        InputError: It raised anything else, or exited. Interrupts and our own errors pass.
    """
    kept, filters = sys.dont_write_bytecode, list(warnings.filters)
    numpy: Any = sys.modules.get("numpy")
    errors = numpy.geterr() if hasattr(numpy, "geterr") else {}
    sys.dont_write_bytecode = True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (IbscanError, Interrupted, Reached, KeyboardInterrupt):
        raise
    # SystemExit included: a script without a main guard would end this program with its own exit code.
    except BaseException as error:
        if is_out_of_memory(error):
            said = f"{where.removesuffix(':')}: memory ran out: {_sentence(error)}. {OutOfMemory.REMEDY}"
            raise OutOfMemory(said) from error
        raise InputError(f"{where} {verb} {_sentence(error)}; --debug shows where.") from error
    finally:
        sys.dont_write_bytecode = kept
        if errors:
            numpy.seterr(**errors)
        if warnings.filters != filters:
            lasting = [one for one in warnings.filters if one in filters or one[0] != "error"]
            warnings.filters[:] = lasting  # type: ignore[index]


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """Run our code inside the user's: what it raises passes the boundary instead of being blamed on the user's code.

    Raises:
        Reached: With the exception as its cause; whoever called the user's code raises that again.
    """
    try:
        yield
    except Exception as error:
        raise Reached(error) from error


def is_installed(file: str) -> bool:
    """Tell whether a file belongs to an installed library, to Python, or to this package, and not to the user."""
    if {"site-packages", "dist-packages"} & set(Path(file).parts) or file.startswith("<"):
        return True
    return file.startswith((PACKAGE, *STANDARD))


def _sentence(error: BaseException) -> str:
    """Describe an exception: kind, message in one line, and the last line of the user's code it came through."""
    said, name = " ".join(_text(error).split()), type(error).__name__
    shown = said if len(said) <= LONGEST_MESSAGE else f"{said[:LONGEST_MESSAGE]} ..."
    name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]} ..."
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    frames = [(file, line) for file, line in frames if not file.startswith(OURS)]
    own = [(file, line) for file, line in frames if not is_installed(file)]
    place = "".join(f" ({Path(file).name}, line {line})" for file, line in (own or frames)[-1:])
    return f"{name}{': ' if shown else ''}{shown}{place}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the code's own exception, whose __str__ raises
        return ""
