"""`--epochs`: a subset of a series by its axis values."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from ibscan.errors import NothingMatched, UsageError
from ibscan.types import Checkpoint, Series

__all__ = ["axis_values", "select_epochs"]

FORMS = "expected start:stop:step such as 0:500:10, a list such as 1,10,100, last, or log:50"
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def axis_values(series: Series) -> list[float]:
    """Return each checkpoint's place on the series' axis: epoch, step, value, or the index where nothing is known.

    Args:
        series: The series.

    Returns:
        One number a checkpoint, in order.
    """
    return [_place(one, series.axis, index) for index, one in enumerate(series.checkpoints)]


def _place(checkpoint: Checkpoint, axis: str, index: int) -> float:
    if axis == "index":
        return float(index)
    number = {"epoch": checkpoint.epoch, "step": checkpoint.step}.get(axis, checkpoint.value)
    return float(index) if number is None else float(number)


def select_epochs(series: Series, spec: str) -> Series:
    """Keep the checkpoints that a selection along the series' axis names.

    Args:
        series: The series.
        spec: `start:stop:step` (parts optional; the stop is included; counted from the start, which is the first
            value where it is left out), `1,10,100`, `last`, or `log:50` (about 50, log-spaced, first and last kept).

    Returns:
        The series with fewer checkpoints; a listed number that no checkpoint has is said in a notice.

    Raises:
        UsageError: The selection cannot be read.
        NothingMatched: It matches no checkpoint.
    """
    values = axis_values(series)
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
        missing = [f"{number:g}" for number in wanted if not any(_equal(value, number) for value in values)]
    if not kept:
        span = f"{min(values):g} to {max(values):g}" if values else "nothing"
        raise NothingMatched(
            f"--epochs {spec}: matches none of {len(values)} checkpoints, whose {series.axis} runs from {span}."
        )
    notices = series.notices
    if missing:
        notices += (f"--epochs {spec}: no checkpoint has {series.axis} {', '.join(missing)}.",)
    return dataclasses.replace(series, checkpoints=tuple(series.checkpoints[index] for index in kept), notices=notices)


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


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
        and (stride is None or _equal(round((value - begin) / stride) * stride + begin, value))
    ]


def _log_spaced(values: Sequence[float], count: int) -> list[int]:
    positive = [value for value in values if value > 0]
    if not positive or len(values) <= count:
        return list(range(len(values)))[-count:] if not positive else list(range(len(values)))
    low, high = math.log(min(positive)), math.log(max(positive))
    targets = (
        [math.exp(low + (high - low) * k / max(count - 1, 1)) for k in range(count)] if count > 1 else [max(positive)]
    )
    nearest = {min(range(len(values)), key=lambda i, t=t: abs(values[i] - t)) for t in targets}  # type: ignore[misc]
    # A series usually starts at 0, which no logarithm reaches and every plot wants.
    first = {0} if count > 1 and values[0] <= 0 else set()
    return sorted(nearest | first)
