"""Run the command line: catch signals, turn errors into sentences and exit codes."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import traceback
from types import FrameType

import typer
from typer.main import get_command

from ibscan._version import __version__
from ibscan.cli import explain as _explain  # noqa: F401 - adds its command
from ibscan.cli import reporting as _reporting  # noqa: F401 - adds its command
from ibscan.cli.commands import app
from ibscan.cli.glossary import commands
from ibscan.cli.hints import check_verb, misread, say_with_command
from ibscan.cli.output import say
from ibscan.core.boundary import is_out_of_memory
from ibscan.errors import IbscanError, Interrupted

__all__ = ["exit_code", "main"]

BUG, RESOURCES = 1, 6
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the command line and leave with its exit code."""
    _replace_closed_streams()
    if os.environ.get("NO_COLOR"):
        # rich would leave colours out and keep bold, and with FORCE_COLOR writes both in the help that Typer prints.
        os.environ.pop("FORCE_COLOR", None)
        os.environ["TERM"] = "dumb"
    # Before Typer is asked, which takes ten times as long.
    if sys.argv[1:] in (["--version"], ["-V"]):
        code = _printed(f"ibscan {__version__}")
    else:
        _catch_signals()
        code = exit_code(sys.argv[1:])
    if code in (128 + signal.SIGPIPE, RESOURCES):
        # Buffered output cannot be written either, and the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def exit_code(arguments: list[str]) -> int:
    """Carry out a command line; print any error as a sentence on standard error.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code (guide, ci.md).
    """
    debug = "--debug" in arguments
    try:
        return _invoked(arguments)
    except typer.Exit as leave:
        return leave.exit_code
    except Interrupted as stop:
        if stop.signal_number == signal.SIGPIPE:  # the reader of standard output is gone
            return 128 + stop.signal_number
        again = shlex.join(["ibscan", *sys.argv[1:]])
        say(f"stopped by {signal.Signals(stop.signal_number).name}; finished checkpoints are kept. To go on: {again}")
        return 128 + stop.signal_number
    except SystemExit as leave:
        # Typer exits so after shell completion, and when the reader of its help is gone.
        return 128 + signal.SIGPIPE if leave.code == BUG else int(leave.code or 0)
    except IbscanError as error:
        if debug:
            _print_traceback()
        say_with_command(error, arguments)
        return error.exit_code
    except typer.TyperException as error:
        say(misread(error))
        return error.exit_code
    except OSError as error:
        return _disk_error(error)
    except Exception as error:  # noqa: BLE001 - a bug of ours ends in a sentence too, not in a traceback
        if debug:
            _print_traceback()
        if is_out_of_memory(error):
            say("memory ran out; fewer rows (--samples) or a smaller network need less.")
            return RESOURCES
        say(f"this is a bug in ibscan ({type(error).__name__}: {error}). --debug shows where; please report it.")
        return BUG


def _print_traceback() -> None:
    # Line by line through `say`, as messages may hold names from files.
    for line in traceback.format_exc().splitlines():
        say(line)


def _printed(line: str) -> int:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _disk_error(error)
    return 0


def _replace_closed_streams() -> None:
    # A stream that was closed at the start is None, which no library expects.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open for as long as the process lives


def _invoked(arguments: list[str]) -> int:
    arguments = arguments or ["--help"]
    check_verb(arguments)
    verb = commands().get(arguments[0])
    if verb is None:
        return get_command(app)(arguments, prog_name="ibscan", standalone_mode=False) or 0
    # Call the verb directly: parsing by the group loads a validation library, a third of the time of --help.
    return verb(arguments[1:], prog_name=f"ibscan {arguments[0]}", standalone_mode=False) or 0


def _disk_error(error: OSError) -> int:
    reason = "no space is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    say(f"{error.filename or 'standard output'}: {reason}.")
    return RESOURCES


def _catch_signals() -> None:
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if stopping:  # asked twice: leave at once
            os._exit(128 + number)
        stopping.append(number)
        raise Interrupted(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, stop)
