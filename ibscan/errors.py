"""Exceptions, as a tree; each knows the exit code that a command ends with.

    IbscanError
    +-- UsageError        2   the command line, a config file, or an output that may not be written
    +-- InputError        3   the checkpoints, the probe, the model or a result file cannot be used
    |   `-- CheckpointError   one checkpoint is unusable: a series skips it and goes on
    +-- NothingMatched    5   an empty folder, or a filter that matches nothing
    `-- ResourceError     6   memory, disk, or an output locked by another run
        `-- OutOfMemory       also a MemoryError: a cell that is measured gets it as a status
    Interrupted               a signal asked the run to stop (not an error: it is never swallowed)
    Reached                   ends a forward pass early, when all that was wanted has been seen (no error either)

A message is one or two sentences: where, what was expected, what was found, what to do. Names stand as the user typed
them; whoever prints a message escapes it for the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "CheckpointError",
    "IbscanError",
    "InputError",
    "Interrupted",
    "NothingMatched",
    "OutOfMemory",
    "Reached",
    "ResourceError",
    "UsageError",
]


class IbscanError(Exception):
    """An error that ibscan reports in a sentence instead of a traceback.

    Args:
        *sentences: The message; several where several things are missing.
        options: What to add to the command line, flags and values in turn, such as `--weights raw`.
        path: What to name there instead of the first path.
        lines: What to print below, a line each; two blanks begin what is to be copied, such as lines of Python.
    """

    exit_code = 1

    def __init__(
        self, *sentences: str, options: Sequence[str] = (), path: Path | None = None, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(*sentences)
        self.options, self.path, self.lines = tuple(options), path, tuple(lines)

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class UsageError(IbscanError):
    """The command line or a config file asks for something that cannot be done."""

    exit_code = 2


class InputError(IbscanError):
    """An input is missing, damaged, unsafe, or does not fit the others."""

    exit_code = 3


class CheckpointError(InputError):
    """One checkpoint cannot be used; the rest of its series can."""


class NothingMatched(IbscanError):  # noqa: N818 - the outcome's name, as in the exit-code table
    """There is nothing to measure."""

    exit_code = 5


class ResourceError(IbscanError):
    """Memory, disk or a lock stands in the way."""

    exit_code = 6


class OutOfMemory(ResourceError, MemoryError):  # noqa: N818 - as the status of a cell is called
    """The user's code ran out of memory."""

    REMEDY = "Fewer rows (--samples), a smaller network, or a machine with more memory."


class Interrupted(BaseException):
    """A signal ended the run; carries its number, for the exit code 128 + number.

    Derived from BaseException, like KeyboardInterrupt, so that code that converts exceptions of the user's code lets
    it pass.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Reached(BaseException):
    """Ends a forward pass early: everything wanted was seen, or the code that looked at it raised `cause`.

    Derived from BaseException, so that a network that catches what it can (`except Exception`) does not catch it.
    """

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
