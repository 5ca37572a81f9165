"""Parse KEY=VALUE arguments, and check and apply those of a probe: scale, mean, std, shape, in this order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.errors import UsageError

__all__ = ["KNOWN", "applied", "checked_arguments", "parse_arguments", "parse_model_arguments"]

KNOWN = ("scale", "mean", "std", "shape")
LARGEST_SIZE = 2**40


def parse_arguments(items: Sequence[str]) -> dict[str, Any]:
    """Parse and check `--probe-arg KEY=VALUE` options; VALUE is JSON, or else a string.

    Raises:
        UsageError: No `=`, an unknown key, a key twice, or a value that is not allowed.

    Example:
        >>> parse_arguments(["scale=255", "shape=[1, 28, 28]"])
        {'scale': 255, 'shape': [1, 28, 28]}
    """
    return checked_arguments(_parsed(items, "--probe-arg", "scale=255"), "--probe-arg")


def parse_model_arguments(items: Sequence[str]) -> dict[str, Any]:
    """Parse `--model-arg KEY=VALUE` options; VALUE is JSON, or else a string.

    Raises:
        UsageError: No `=`, a key twice, or a key that names no argument.

    Example:
        >>> parse_model_arguments(["width=512", "bias=false", "activation=tanh"])
        {'width': 512, 'bias': False, 'activation': 'tanh'}
    """
    arguments = _parsed(items, "--model-arg", "width=512")
    for key in arguments:
        if not key.isidentifier():
            raise UsageError(f"--model-arg: {key!r} cannot name an argument; expected a name such as width.")
    return arguments


def _parsed(items: Sequence[str], option: str, example: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"{option} {item}: expected KEY=VALUE, such as {example}.")
        if key in arguments:
            raise UsageError(f"{option} {item}: {key} was given twice; give it once.")
        try:
            arguments[key] = json.loads(text)
        except (ValueError, RecursionError):
            arguments[key] = text
    return arguments


def checked_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the arguments of a probe and return them as a dict.

    `scale`, `mean` and `std` are a finite number, or a list that broadcasts against a row, scale and std above 0;
    `shape` is a list of positive integers.

    Raises:
        UsageError: An unknown key or a value that is not allowed.
    """
    for key, value in arguments.items():
        if key not in KNOWN:
            raise UsageError(f"{where}: {key!r} is not known; known are {', '.join(KNOWN)}.")
        if key == "shape":
            sizes = isinstance(value, list | tuple) and len(value) <= 16 and all(_is_size(size) for size in value)
            if not sizes or not value:
                raise UsageError(
                    f"{where}: shape is {value!r}, but a list of positive integers such as [1, 28, 28] was expected."
                )
        else:
            numbers = list(_numbers(value))
            positive = key in ("scale", "std")
            if not numbers or any(number is None or (positive and number <= 0) for number in numbers):
                expected = "a finite number above 0" if positive else "a finite number"
                raise UsageError(f"{where}: {key} is {value!r}, but {expected} (or a list of them) was expected.")
    return dict(arguments)


def _is_size(size: Any) -> bool:  # noqa: ANN401 - decoded JSON
    return type(size) is int and 0 < size < LARGEST_SIZE


def _numbers(value: Any, depth: int = 4) -> list[float | None]:  # noqa: ANN401 - decoded JSON
    if isinstance(value, list | tuple) and depth:
        return [number for part in value for number in _numbers(part, depth - 1)]
    try:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        fits = False
    return [float(value) if fits else None]


def applied(x: Array, arguments: Mapping[str, Any], source: str) -> Array:
    """Return (x / scale - mean) / std as C-contiguous float64 of shape (N, *shape); x (N, ...) is of any real dtype.

    Raises:
        UsageError: A list or shape that does not fit the rows.
    """
    # The caller reports values that are not finite.
    with np.errstate(all="ignore"):
        result = np.ascontiguousarray(x, dtype=np.float64)
        for key in ("scale", "mean", "std"):
            if key in arguments:
                factor = _fitting(arguments[key], key, result.shape[1:], source)
                result = result - factor if key == "mean" else result / factor
    if "shape" in arguments:
        shape = tuple(arguments["shape"])
        if math.prod(shape) != math.prod(result.shape[1:]):
            raise UsageError(
                f"{source}: shape {list(shape)} takes {math.prod(shape)} numbers a row, but the rows have shape "
                f"{result.shape[1:]}, which is {math.prod(result.shape[1:])}."
            )
        result = result.reshape(len(result), *shape)
    return np.ascontiguousarray(result)


def _fitting(value: Any, key: str, row: tuple[int, ...], source: str) -> Array:  # noqa: ANN401 - decoded JSON
    try:
        factor = np.asarray(value, dtype=np.float64)
        fits = np.broadcast_shapes(factor.shape, row) == row
    except ValueError:
        factor, fits = np.zeros(0), False
    if not fits:
        raise UsageError(f"{source}: {key} is {value!r}, which does not broadcast against a row of shape {row}.")
    return factor
