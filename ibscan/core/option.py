"""Options: how people set a parameter, how it is read and checked, and its default, declared once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from ibscan.errors import UsageError

__all__ = [
    "INPUT",
    "MEASURE",
    "MODEL",
    "OUTPUT",
    "PRECISION",
    "Option",
    "Setting",
    "at_least",
    "count",
    "derived",
    "number",
    "one_of",
    "option",
    "positive",
    "settings_of",
    "whole",
]

# Panels of the help.
INPUT, MODEL, MEASURE, PRECISION, OUTPUT = "Input", "Model", "What to measure", "Precision", "Output"
T = TypeVar("T")
Check = Callable[[str, Any], None]


@dataclass(frozen=True)
class Option:
    """How people set a parameter that is a field of a frozen dataclass.

    Args:
        help: One or two sentences; `{default}` stands for the field's default.
        panel: Where the help shows it.
        name: Keyword in Python; the field's own name where empty.
        flags: As Typer takes them; `--name` where empty.
        metavar: What the help shows for the value.
        kind: Type of one value, where neither its default nor `parse` says it.
        several: Whether it may be repeated; the value is then a tuple.
        parse: Reads one value as typed; raises ValueError.
        read: Converts the whole value, typed or passed in Python; gets the flag first, raises UsageError.
        check: Raises UsageError where one value is not allowed; gets the flag first.
        against: Raises UsageError where the options given, by name, contradict each other.
        settle: Makes the parameter of the value (the default where none was given), once checkpoints and model are
            known: see `ibscan.core.measure.Situation`.
        nothing: For a sequence that may not be empty: what an empty one lacks, for the message.
        shown: Whether the help adds the default itself, as it does of single values.
        place: Its rank among the options of a verb; smaller numbers first.
        verbs: Commands that have it, where they are not those of the class it is declared in.
    """

    help: str
    panel: str
    name: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    kind: Any = None
    several: bool = False
    parse: Callable[[str], Any] | None = None
    read: Callable[[str, Any], Any] | None = None
    check: Check | None = None
    against: Callable[[Mapping[str, Any]], None] | None = None
    settle: Callable[[Any, Any], Any] | None = None
    nothing: str = ""
    shown: bool = True
    place: int = 0
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """An option of one field: what tables, the command line and Python need of it.

    `field` is the field's name, `name` the keyword; `verbs` are the commands that have it.
    """

    field: str
    name: str
    default: Any
    option: Option
    verbs: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags as declared to Typer, `--on/--off` for a switch that has both."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def flag(self) -> str:
        """The long flag, as messages name it."""
        return self.flags[-1].partition("/")[0]

    @property
    def help(self) -> str:
        """The help text, with the default filled in."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        text = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return self.option.help.replace("{default}", text)

    @property
    def kind(self) -> Any:  # noqa: ANN401 - a type
        """Type of one value; text where neither option nor default says it."""
        single = isinstance(self.default, bool | int | float | str)
        return self.option.kind or (type(self.default) if single else str)

    @property
    def initial(self) -> Any:  # noqa: ANN401 - of the option's kind
        """Default of the command line: None where the measure chooses it."""
        return None if self.option.several or not self.option.shown else self.default

    def checked(self, value: Any) -> None:  # noqa: ANN401 - whatever was given
        """Check a value.

        Raises:
            UsageError: The option does not take it.
        """
        if self.option.check is not None and not (value is None and self.initial is None):
            for one in value if self.option.several else (value,):
                self.option.check(self.flag, one)


def option(default: T | Callable[[], T], spec: Option) -> T:
    """Return a dataclass field with its default (a function makes one that cannot be shared) and its option."""
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    made: T = dataclasses.field(**given, metadata={"option": spec})
    return made


def derived(default: T, settle: Callable[[Any], T]) -> T:
    """Return a dataclass field that nobody sets, and that is made once checkpoints and model are known.

    `settle` makes it of a `ibscan.core.measure.Situation`.
    """
    made: T = dataclasses.field(default=default, metadata={"settle": settle})
    return made


def settings_of(declaring: type, verbs: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """Return the options of a dataclass, fields made by `option`, in order; `verbs` are the commands that have them."""
    return tuple(
        Setting(
            field.name,
            field.metadata["option"].name or field.name,
            field.default_factory() if callable(field.default_factory) else field.default,
            field.metadata["option"],
            field.metadata["option"].verbs or verbs,
        )
        for field in dataclasses.fields(declaring)
        if "option" in field.metadata
    )


def number(text: str) -> float:
    """Read a number; refuse `1_0`, which Python would take for 10.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is no number; expected one like 0.1 or 1e-3.")
    return float(text)


def whole(text: str) -> int:
    """Read a whole number; refuse `1_0`.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is no whole number.")
    return int(text)


def count(text: str) -> int | str:
    """Read a whole number or `all`.

    Raises:
        ValueError: It is neither.
    """
    return "all" if text == "all" else whole(text)


def positive(flag: str, value: Any) -> None:  # noqa: ANN401 - whatever was given
    """Check that a value is a finite number above zero.

    Raises:
        UsageError: It is not.
    """
    if not (_is(Real, value) and math.isfinite(value) and value > 0):
        raise UsageError(f"{flag} {value}: expected a finite number > 0.")


def at_least(least: int, *words: str) -> Check:
    """Return the check that a value is a whole number no smaller than `least`, or one of the words."""

    def check(flag: str, value: Any) -> None:  # noqa: ANN401 - whatever was given
        if value not in words and not (_is(Integral, value) and value >= least):
            raise UsageError(f"{flag} {value}: expected a whole number >= {least}.")

    return check


def _is(kind: type, value: Any) -> bool:  # noqa: ANN401 - whatever was given
    return isinstance(value, kind) and not isinstance(value, bool)


def one_of(*words: str) -> Check:
    """Return the check that a value is one of the words."""

    def check(flag: str, value: Any) -> None:  # noqa: ANN401 - whatever was given
        if value not in words:
            raise UsageError(f"{flag} {value}: expected {' or '.join(words)}.")

    return check
