"""Read epoch, step and sweep value from names by the pattern under [series] in ibscan.toml."""

from __future__ import annotations

import re

from ibscan.errors import UsageError
from ibscan.inputs.folder.numbers import AxisNumbers, checked_numbers

__all__ = ["compiled_pattern", "matches", "numbers_by_pattern"]

PLACEHOLDER = re.compile(r"\{(epoch|step|value:[^{}]+)\}")


def compiled_pattern(pattern: str, where: str) -> tuple[re.Pattern[str], str | None]:
    """Turn a file name with `{epoch}`, `{step}` or `{value:NAME}`, each at most once, into a regular expression.

    Returns:
        The expression (groups `epoch`, `step`, `value`), and NAME or None.

    Raises:
        UsageError: No placeholder, an unknown one, or one twice.
    """
    pieces = PLACEHOLDER.split(pattern)
    names = [piece.partition(":")[0] for piece in pieces[1::2]]
    if not names or len(set(names)) < len(names) or any(mark in literal for literal in pieces[::2] for mark in "{}"):
        raise UsageError(
            f"{where}: pattern {pattern!r} cannot be read; expected a file name with {{epoch}}, {{step}} or "
            f"{{value:NAME}}, each at most once."
        )
    numbers = {"epoch": r"\d+(?:\.\d+)?", "step": r"\d+", "value": r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"}
    expression = re.escape(pieces[0])
    for name, literal in zip(names, pieces[2::2], strict=True):
        expression += f"(?P<{name}>{numbers[name]}){re.escape(literal)}"
    own = next((piece.partition(":")[2] for piece in pieces[1::2] if piece.startswith("value:")), None)
    return re.compile(expression), own


def matches(expression: re.Pattern[str], name: str) -> re.Match[str] | None:
    """Match a pattern against a name: all of it, its last part, or its folder."""
    return next((match for text in (name, *reversed(name.split("/"))) if (match := expression.fullmatch(text))), None)


def numbers_by_pattern(expression: re.Pattern[str], name: str) -> AxisNumbers:
    """Return the numbers that a pattern reads in a name; none where it does not match.

    Raises:
        CheckpointError: A number too large to be one.
    """
    found = matches(expression, name)
    groups = {} if found is None else found.groupdict()
    return checked_numbers(name, "pattern", groups.get("epoch"), groups.get("step"), groups.get("value"))
