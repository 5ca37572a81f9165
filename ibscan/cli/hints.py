"""Say how a command line is mended: the verb it lacks, whose an option is, or the whole line to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from ibscan.cli.glossary import commands, settings
from ibscan.cli.output import say
from ibscan.core.option import Setting
from ibscan.errors import IbscanError, UsageError
from ibscan.inputs.files import exists

__all__ = ["check_verb", "misread", "say_with_command"]

RESULTS = (".h5", ".hdf5")


def check_verb(arguments: Sequence[str]) -> None:
    """Check that a command line does not begin with a path where a verb was expected.

    Raises:
        UsageError: It does; the command with a verb stands below.
    """
    first = arguments[0]
    if first in commands() or first.startswith("-") or not exists(first):
        return
    verb, kind = ("show", "a result") if first.endswith(RESULTS) else ("scan", "a path")
    later = next((k for k, word in enumerate(arguments) if word in commands()), len(arguments))
    words = [*(arguments[later : later + 1] or [verb]), *arguments[:later], *arguments[later + 1 :]]
    raise UsageError(f"{first}: is {kind} and no command; say first what to do with it.", lines=[f"  {_line(words)}"])


def misread(error: typer.TyperException) -> str:
    """Return the sentence for a command line that Typer did not understand."""
    context = getattr(error, "ctx", None)
    path, flag = getattr(context, "command_path", "ibscan"), getattr(error, "option_name", "")
    said = error.format_message()
    owners = [verb for verb, command in commands().items() if any(flag in option.opts for option in command.params)]
    if flag and owners and path != "ibscan":
        verb = path.rpartition(" ")[2]
        *others, last = owners
        said = f"{verb} has no option {flag}: it is an option of {', '.join(others)}{' and ' if others else ''}{last}."
    return f"{said}{'' if said.endswith(('.', '?')) else '.'} See {path} --help."


def say_with_command(error: IbscanError, arguments: Sequence[str]) -> None:
    """Print an error, and below it the command with all that it says is missing, on a line of its own."""
    for sentence in error.args:
        say(sentence)
    if error.options or error.path is not None:
        say(_line(_completed(arguments, error)), begin="  ")
    for line in error.lines:
        say(line, begin="" if line.startswith("  ") else "ibscan: ")


def _as_word(path: Path) -> str:
    """Return a path as an argument, which an option would begin like."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _line(words: Sequence[str]) -> str:
    return shlex.join(["ibscan", *words])


def _completed(arguments: Sequence[str], error: IbscanError) -> list[str]:
    """Return a command line with an error's options and path, in place of those that it had."""
    words = list(arguments)
    if error.path is not None:
        around = [k for k, word in enumerate(words) if k and Path(word) in error.path.parents and word[:1] != "-"]
        words[slice(around[0], around[0] + 1) if around else slice(1, 1)] = [_as_word(error.path)]
    for flag, value in zip(error.options[::2], error.options[1::2], strict=True):
        setting = next((one for one in settings() if flag in one.flags), None)
        words = [*(words if setting is None else _without(words, setting, value)), flag, value]
    return words


def _without(words: Sequence[str], setting: Setting, value: str) -> Iterator[str]:
    """Yield a command line's words without an option; of one that is repeatable, without the entry of the same key."""
    key = f"{value.partition('=')[0]}=" if setting.option.several else ""
    left = iter(words)
    for word in left:
        flag, equals, given = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if flag not in setting.flags:
            yield word
            continue
        given = given if equals else next(left, "")
        if not given.startswith(key):
            yield from (flag, given)
