"""What can go wrong, as a tree. Every leaf knows the exit code a command ends with.

    IbscanError
    +-- UsageError        2   the command line, a config file, or an output that may not be written
    +-- InputError        3   the checkpoints, the probe, the model or a result file cannot be used
    |   `-- CheckpointError   one checkpoint is unusable: a series skips it and goes on
    +-- NothingMatched    5   an empty folder, or a filter that matches nothing
    `-- ResourceError     6   memory, disk, or an output locked by another run
        `-- OutOfMemory       also a MemoryError: a cell that is measured gets it as a status
    Interrupted               a signal asked the run to stop (not an error: it is never swallowed)
    Reached                   a pass through somebody's network has given all that was wanted (no error either)

A message is one or two sentences: where, what was expected, what was found, what to do. Names stand as the user typed
them; escaping for the terminal is the business of whoever prints.
"""

from __future__ import annotations

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
    """Anything ibscan reports to its user in a sentence instead of a traceback."""

    exit_code = 1


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
    """Memory did not suffice for somebody's code."""

    REMEDY = "Fewer rows (--samples), a smaller network, or a machine with more memory."


class Interrupted(BaseException):
    """A signal ended the run; carries its number so that the exit code can be 128 + number.

    Derived from BaseException, like KeyboardInterrupt, so that no boundary that turns foreign exceptions into ours
    can mistake it for one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Reached(BaseException):
    """Ends a forward pass early: all is seen that was wanted, or `cause` was raised by what looked at it.

    Derived from BaseException, so that a network that catches what it can (`except Exception`) does not catch it.
    """

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
