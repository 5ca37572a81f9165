"""Say options as Python has them: messages name them as typed, `--noise 0.1`, which here becomes `noise=0.1`.

A flag in a message is a notation, whose keyword and kind are declared with the option; so no message is written twice,
and the face translates what passes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from ibscan.core.option import OUTPUT, Option, Setting
from ibscan.engine.request import run_settings
from ibscan.errors import IbscanError
from ibscan.measures import measure_settings

__all__ = ["in_python", "speaking_python"]

_FLAG = re.compile(r"(?<![\w/.-])--?[a-z][a-z-]*(?![\w=])")
_VERB = re.compile(r"\bibscan (scan|rank|mi|cluster)\b")
_VALUE = re.compile(r" ('[^']*'|[^\s'(-]\S*?)(?=[.,;:)]*(?:\s|$))")
# Words that follow a flag in a sentence, and are not its value.
_WORDS = {
    *("and", "or", "if", "is", "to", "for", "out", "that", "may"),
    *("takes", "chooses", "says", "draws", "keeps", "asks", "names", "shows"),
}
# Where the command line names code, Python hands over what it makes.
_CODE = ("module:callable", "path.py:callable")
# What raised an error is its cause here, where the command line prints it; and the summary is a function.
_SAID = {"--debug": "__cause__", "--summary": "run.summary()"}
# Switches of verbs that show results, which are no part of a request.
_SWITCHES = tuple(Setting(name, name, False, Option("", OUTPUT)) for name in ("band", "full", "curve"))


@contextmanager
def speaking_python(given: Mapping[str, Any]) -> Iterator[None]:
    """Translate the message of an error that leaves the block.

    Args:
        given: Values of options by keyword, as they were passed; a message shows them as Python writes them.
    """
    try:
        yield
    except IbscanError as error:
        error.args = (in_python(str(error), given),)
        raise


def in_python(message: str, given: Mapping[str, Any] | None = None) -> str:
    """Return a message with its options as keywords.

    Example:
        >>> print(in_python("--noise -1: expected a number > 0; give --seed 3 or add --trust.", {"noise": -1}))
        noise=-1: expected a number > 0; give seed=3 or add trust=True.
        >>> print(in_python("add --probe-arg scale=255, or name it with --model mlp:ACT."))
        add probe_arg={'scale': 255}, or name it with model='mlp:ACT'.
    """
    said, rest = "", _VERB.sub(r"ibscan.\1", message)
    while (found := _FLAG.search(rest)) is not None:
        said += rest[: found.start()]
        flag, rest = found[0], rest[found.end() :]
        if flag in _SAID or (flag not in _settings() and not flag.startswith("--")):
            said += _SAID.get(flag, flag)
            continue
        setting = _settings().get(flag) or Setting(flag[2:], flag[2:].replace("-", "_"), None, Option("", OUTPUT))
        value, length = _value(setting, rest, (given or {}).get(setting.name), off=flag.startswith("--no-"))
        said, rest = f"{said}{setting.name}={value}", rest[length:]
    return said + rest


@cache
def _settings() -> Mapping[str, Setting]:
    return {
        flag: setting
        for setting in (*_SWITCHES, *measure_settings(), *run_settings())
        for flags in setting.flags
        for flag in flags.split("/")
    }


def _value(setting: Setting, rest: str, given: Any, *, off: bool) -> tuple[str, int]:  # noqa: ANN401 - as passed
    """Return what stands behind a keyword, and how much of the rest of a sentence it was."""
    for text, written in _shown(given):
        if text and re.match(rf" {re.escape(text)}(?!\w)", rest):
            return written, len(text) + 1
    if setting.kind is bool:
        return str(not off), 0
    found = _VALUE.match(rest)
    if found is None or not _is_value(setting, found[1], rest[found.end() :]):
        return "", 0
    return _written(setting, found[1]), found.end()


def _shown(given: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - as passed
    """Yield the ways a message may show a value that was passed, with what Python writes for it."""
    plain = isinstance(given, list | tuple) and all(isinstance(one, str | int | float) for one in given)
    if isinstance(given, str | int | float):
        yield str(given), repr(given)
    elif plain:
        for text in (str(given), *(joint.join(map(str, given)) for joint in (" ", ",", ":"))):
            yield text, repr(given)
        for one in given:
            yield from _shown(one)
    if given is not None and not plain:
        named = getattr(getattr(given, "func", given), "__name__", None)
        for name in ("(x, y)", "{...}", str(named), type(given).__name__):
            yield name, name


def _is_value(setting: Setting, text: str, after: str) -> bool:
    if setting.option.parse is not None and text.lower() == text:
        try:
            setting.option.parse(text)
        except ValueError:
            return False
        return True
    if setting.name.endswith("_arg"):
        return "=" in text
    # A plain word may go on with the sentence instead.
    return not text.isalpha() or text != text.lower() or (text not in _WORDS and _takes_words(setting, text, after))


def _takes_words(setting: Setting, text: str, after: str) -> bool:
    return setting.option.parse is None or text in (setting.option.metavar or "").split("|") or after[:1] in (":", ".")


def _written(setting: Setting, text: str) -> str:
    """Return a value as Python writes it; a stand-in such as FILE stays as it is."""
    if text.isupper() or (setting.option.parse is not None and not text.isalpha()):
        return text
    if setting.name == "model" and text in _CODE:
        return "net"
    key, equals, value = text.strip("'").partition("=")
    if not equals or not setting.name.endswith("_arg"):
        return repr(text.strip("'"))
    try:
        return repr({key: json.loads(value)})
    except ValueError:
        return f"{{{key!r}: {value if value.isupper() else repr(value)}}}"
