"""Read the values of options that Python hands over: numbers written as text, several of them, and live objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isroutine
from numbers import Real
from os import PathLike
from typing import Any, Literal

from ibscan.core.option import Setting
from ibscan.errors import UsageError

__all__ = ["given_value", "object_or", "word"]


def object_or(role: Literal["model", "probe"]) -> Callable[[str, Any], Any]:
    """Return the reader of an option that takes text or a path, and in Python an object in its place."""

    def read(flag: str, given: Any) -> Any:  # noqa: ANN401 - text, or an object of Python
        if given is None or isinstance(given, str | PathLike):
            return None if given is None else str(given)
        from ibscan.inputs.code.live import live
        from ibscan.inputs.probes.callable_probe import held

        if role == "probe":
            return live(given) if isroutine(given) or isinstance(given, partial) else held(given)
        if not callable(given) or hasattr(given, "__array__"):
            raise UsageError(
                f"{flag} {type(given).__name__}: expected a network (an nn.Module), a class or function that makes "
                "one, or a spec such as mlp:tanh. Weights come from the checkpoints."
            )
        from ibscan.networks.loading import unwrapped

        return live(unwrapped(given))

    return read


def word(flag: str, given: Any) -> Any:  # noqa: ANN401, ARG001 - a name, or what numpy and torch have of that name
    """Read a name: `torch.float32`, `numpy.float32` and `"float32"` alike."""
    return None if given is None else str(getattr(given, "__name__", given)).removeprefix("torch.")


def given_value(setting: Setting, value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Return an option's value, a tuple where it may be repeated; text is read as on the command line.

    Raises:
        UsageError: It is of another kind.
    """
    if not setting.option.several:
        return _single(setting, value)
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        return tuple(_single(setting, one) for one in ((value,) if isinstance(value, str | Real) else tuple(value)))
    except TypeError:
        raise UsageError(f"{setting.flag} {value}: expected one value or a list of them.") from None


def _single(setting: Setting, value: Any) -> Any:  # noqa: ANN401 - as above
    parse, kind = setting.option.parse, setting.kind
    if parse is not None and isinstance(value, str):
        try:
            return parse(value)
        except ValueError as error:
            raise UsageError(f"{setting.flag} {value}: {error}") from None
    if kind is bool and not isinstance(value, bool):
        raise UsageError(f"{setting.flag} {value}: expected True or False.")
    if parse is None and kind is str and not isinstance(value, str):
        raise UsageError(f"{setting.flag} {value}: expected text.")
    return value
