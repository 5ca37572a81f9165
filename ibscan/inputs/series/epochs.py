"""Select checkpoints of a series by their axis values (`--epochs`)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from ibscan.core.records import Series
from ibscan.errors import NothingMatched, UsageError
from ibscan.inputs.series.ordering import axis_number

__all__ = ["axis_values", "indices", "select_epochs"]

FORMS = "expected start:stop:step such as 0:500:10, a list such as 1,10,100, last, or log:50"
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def axis_values(series: Series) -> list[float]:
    """Return the number of each checkpoint on the series' axis, or its index where it has none."""
    numbers = [None if series.axis == "index" else axis_number(one, series.axis) for one in series.checkpoints]
    return [float(index if number is None else number) for index, number in enumerate(numbers)]


def select_epochs(series: Series, spec: str, *, partial: bool = False) -> Series:
    """Keep the checkpoints that a selection along the series' axis names.

    Args:
        series: The series.
        spec: `start:stop:step` (parts optional; the stop is included; counted from the start, which is the first
            value where it is left out), `1,10,100`, `last`, or `log:50` (about 50, log-spaced, first and last kept).
        partial: Whether a listed number that no checkpoint has yet gives a notice instead of an error.

    Raises:
        UsageError: The selection cannot be read.
        NothingMatched: It matches no checkpoint, or lists a number that none has; the nearest is named.
    """
    values = axis_values(series)
    kept, missing = indices(values, series.axis, spec)
    skipped = _skipped(series)
    sentence = f"{missing}{skipped}" if missing else ""
    if not kept or (missing and not partial):
        raise NothingMatched(sentence or f"--epochs {spec}: there is no checkpoint to choose from.{skipped}")
    notices = (*series.notices, sentence) if missing else series.notices
    return dataclasses.replace(series, checkpoints=tuple(series.checkpoints[index] for index in kept), notices=notices)


def indices(values: Sequence[float], axis: str, spec: str) -> tuple[list[int], str]:
    """Return the indices of the values that a selection names, and a sentence on listed ones that are not there.

    Args:
        values: Numbers on the axis.
        axis: Its name, for messages.
        spec: As `select_epochs` takes it.

    Raises:
        UsageError: The selection cannot be read.
        NothingMatched: A range or `log:` matches none of the values.
    """
    text = spec.strip()
    missing: list[str] = []
    if text == "last":
        kept = [len(values) - 1] if values else []
    elif text.startswith("log:"):
        kept = _log_spaced(values, _count(text.removeprefix("log:"), spec))
    elif ":" in text:
        kept = _ranged(values, text, spec)
    else:
        wanted = [_number(part, spec) for part in text.split(",")]
        kept = [index for index, value in enumerate(values) if any(_equal(value, number) for number in wanted)]
        absent = [number for number in dict.fromkeys(wanted) if not any(_equal(value, number) for value in values)]
        missing = [_absent(number, values) for number in absent]
    if not values:
        return [], ""
    span = f"{axis} runs from {_plain(min(values))} to {_plain(max(values))}"
    if not kept and not missing:
        raise NothingMatched(f"--epochs {spec}: matches none of {len(values)} checkpoints, whose {span}.")
    return kept, f"--epochs {spec}: no checkpoint has {axis} {', '.join(missing)}; {span}." if missing else ""


def _absent(number: float, values: Sequence[float]) -> str:
    """Format a number that no checkpoint has, with the nearest that one has."""
    nearest = min(values, key=lambda value: (abs(value - number), value), default=None)
    return _plain(number) + ("" if nearest is None else f" (the nearest is {_plain(nearest)})")


def _skipped(series: Series) -> str:
    """Return the reason of the first skipped checkpoint, which may be the one asked for."""
    others = f" (and {len(series.skipped) - 1} more)" if len(series.skipped) > 1 else ""
    return next((f" Skipped{others}: {reason}" for reason in series.skipped.values()), "")


def _plain(number: float) -> str:
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e16 else repr(number)


def _equal(a: float, b: float, spacing: float = 0.0) -> bool:
    # Whole numbers compare exactly: steps have up to 16 digits. `spacing` lets rounded sums of a range equal 0.
    exact = a.is_integer() and b.is_integer()
    return a == b or (not exact and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * spacing))


def _number(text: str, spec: str) -> float:
    if not NUMBER.fullmatch(text.strip()) or not math.isfinite(float(text)):
        raise UsageError(f"--epochs {spec}: {text.strip() or 'nothing'!r} is no number; {FORMS}.")
    return float(text)


def _count(text: str, spec: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"--epochs {spec}: {text!r} is no count of at least 1; {FORMS}.")
    return int(text)


def _ranged(values: Sequence[float], text: str, spec: str) -> list[int]:
    parts = text.split(":")
    if len(parts) > 3:
        raise UsageError(f"--epochs {spec}: has {len(parts)} parts; {FORMS}.")
    start, stop, stride = (_number(part, spec) if part.strip() else None for part in (*parts, "", "")[:3])
    if stride is not None and stride <= 0:
        raise UsageError(f"--epochs {spec}: the step must be above 0; {FORMS}.")
    begin = start if start is not None else min(values, default=0.0)
    end = stop if stop is not None else math.inf
    return [
        index
        for index, value in enumerate(values)
        if (value >= begin or _equal(value, begin))
        and (value <= end or _equal(value, end))
        and (stride is None or _equal(round((value - begin) / stride) * stride + begin, value, stride))
    ]


def _log_spaced(values: Sequence[float], count: int) -> list[int]:
    positive = [value for value in values if value > 0]
    if not positive or len(values) <= count:
        return list(range(len(values)))[-count:] if not positive else list(range(len(values)))
    low, high = math.log(min(positive)), math.log(max(positive))
    targets = [math.exp(low + (high - low) * k / (count - 1)) for k in range(count)] if count > 1 else [max(positive)]
    nearest = {min(range(len(values)), key=lambda i, t=t: abs(values[i] - t)) for t in targets}  # type: ignore[misc]
    # A series usually starts at 0, which has no logarithm and belongs in every plot.
    first = {0} if count > 1 and values[0] <= 0 else set()
    return sorted(nearest | first)
