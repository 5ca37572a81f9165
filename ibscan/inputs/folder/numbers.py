"""Read epoch, step and sweep value of a checkpoint from the file, a sidecar, or its name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ibscan.core.records import COUNTERS
from ibscan.core.text import text_number
from ibscan.errors import CheckpointError
from ibscan.inputs.folder.shards import whole_name

__all__ = [
    "EPOCH_KEYS",
    "STEP_KEYS",
    "AxisNumbers",
    "finite_number",
    "first_known",
    "names_a_place",
    "numbers_in_metadata",
    "numbers_in_name",
    "numbers_in_object",
    "numbers_in_sidecar",
    "size_as_step",
    "sizes_in_name",
    "whole_step",
]

SUFFIX = re.compile(r"(\.(safetensors|pth|pt|ckpt|bin|tar|th))+$", re.IGNORECASE)
# A number as names hold it: digits, perhaps a fraction or an exponent, perhaps in thousands or millions (10k, 1.5M,
# 200kimg), with no other letter or digit right behind it but those of a unit (500steps).
THOUSANDS = r"((?-i:[kKmMB]))?(?:imgs?|images?|its?|iters?|iterations?|steps?|tokens?|samples?)?"
NUMBER = rf"(\d+(?:\.\d+)?(?:e\d+)?){THOUSANDS}(?![0-9a-zA-Z])"
SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
BEFORE = r"(?<![a-zA-Z])"
EPOCH = re.compile(rf"{BEFORE}(?:epochs?|ep)[-_=. ]?{NUMBER}", re.IGNORECASE)
STEP = re.compile(
    rf"{BEFORE}(?:global[-_]?steps?|steps?|iterations?|iters?|iter[-_]num|it)[-_=. ]?{NUMBER}", re.IGNORECASE
)
SAVED = re.compile(rf"{BEFORE}(?:checkpoint|ckpt|chkpt|cp)[-_=. ]?{NUMBER}", re.IGNORECASE)
# Versions of Lightning (-v1) and ranks of DeepSpeed, which are no steps.
VERSION = re.compile(r"-v\d+$|(?<![a-zA-Z])(?:mp_)?rank[-_]?\d+", re.IGNORECASE)
STATED = re.compile(r"[A-Za-z_]+[A-Za-z0-9_]*=[-+0-9.eE]+")
BARE = re.compile(rf"(?<![0-9a-zA-Z.]){NUMBER}")
EPOCH_KEYS, STEP_KEYS = COUNTERS[:1], COUNTERS[1:]
# Exactly as `ibscan.save` names members of a sweep: elsewhere `value=` may be a metric.
VALUED = re.compile(r"(?:(?:epoch|step)-\d+(?:\.\d+)?-)?value=([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
LARGEST_STEP = 2**63 - 1
SIDECAR_BYTES = 64 << 20


@dataclass(frozen=True)
class AxisNumbers:
    """Epoch, step and sweep value from one source, None where it has none; `source` as in Checkpoint.step_source."""

    epoch: float | None = None
    step: int | None = None
    value: float | None = None
    source: str = "order"


def first_known(*found: AxisNumbers) -> AxisNumbers:
    """Merge sources, the earlier winning number by number; the source is that of the epoch, else step, else value."""
    epoch = next((one for one in found if one.epoch is not None), None)
    step = next((one for one in found if one.step is not None), None)
    value = next((one for one in found if one.value is not None), None)
    leading = epoch or step or value
    return AxisNumbers(
        epoch.epoch if epoch else None,
        step.step if step else None,
        value.value if value else None,
        leading.source if leading else "order",
    )


def numbers_in_name(name: str) -> AxisNumbers:
    """Read epoch and step from a file or folder name.

    A number counts where it follows `epoch` or `ep`, or `step`, `global_step`, `iter`, `iteration`, `it`; `10k`, `1.5M`
    and `200kimg` are thousands and millions, `2B` thousand millions. One after
    `checkpoint` or `ckpt`, and the only bare number of a name (`model_12`, `100/`), is a step unless the name says
    epoch. `val_loss=0.02`, `-v1`, `rank_0` and numbers inside words are neither; of several bare ones none is chosen.

    Example:
        >>> numbers_in_name("epoch=3-step=1000-v1.ckpt")
        AxisNumbers(epoch=3.0, step=1000, value=None, source='name')
        >>> numbers_in_name("checkpoint-12.pth.tar").step, numbers_in_name("val_loss=0.02.pt").step
        (12, None)
        >>> numbers_in_name("iter_1.5k.pt").step, numbers_in_name("10M.pt").step
        (1500, 10000000)
    """
    stem = _stem(name)
    epoch, step = EPOCH.search(stem), STEP.search(stem)
    if epoch is None and step is None:
        step = SAVED.search(stem) or _bare(stem)
    value = VALUED.fullmatch(stem)
    return AxisNumbers(_named_number(epoch), _named_step(step), _named_number(value), "name")


def sizes_in_name(name: str) -> frozenset[str]:
    """Return the numbers in thousands or more of a name (`124M`) that may as well be the network's size.

    Example:
        >>> sizes_in_name("gpt_124M.pt"), sizes_in_name("gpt_124M_step_10k.pt"), sizes_in_name("model_10.pt")
        (frozenset({'124M'}), frozenset({'124M'}), frozenset())
    """
    stem = _stem(name)
    stated = {match.start(1) for kind in (EPOCH, STEP, SAVED) for match in kind.finditer(stem)}
    return frozenset(match[0] for match in BARE.finditer(stem) if match[2] and match.start(1) not in stated)


def names_a_place(name: str) -> bool:
    """Tell whether a name says in words that a number in it is an epoch, a step or a checkpoint's."""
    return any(kind.search(_stem(name)) for kind in (EPOCH, STEP, SAVED))


def size_as_step(name: str) -> str:
    """Return the number in thousands or more that a name's step was read from though no word says so, or nothing."""
    found = None if names_a_place(name) else _bare(_stem(name))
    return found[0] if found is not None and found[2] else ""


def _stem(name: str) -> str:
    return VERSION.sub("", SUFFIX.sub("", whole_name(name)))


def _bare(stem: str) -> re.Match[str] | None:
    """Return the one number of a name that follows no word for what it is; fractions only in thousands."""
    found = [match for match in BARE.finditer(STATED.sub(" ", stem)) if "." not in match[1] or match[2]]
    return found[0] if len(found) == 1 else None


def _named_number(match: re.Match[str] | None) -> float | None:
    # A number in a name that is not finite is ignored; only one stated in the file is an error.
    if match is None:
        return None
    number = float(match[1])
    scale = SCALES[(match[2] or "").lower()] if match.re.groups > 1 else 1
    return number * scale if math.isfinite(number * scale) else None


def _named_step(match: re.Match[str] | None) -> int | None:
    try:
        number = None if match is None else Decimal(match[1]) * SCALES[(match[2] or "").lower()]
    except ArithmeticError:
        return None
    return int(number) if number is not None and number <= LARGEST_STEP and number == number.to_integral() else None


def whole_step(found: Any, name: str) -> int:  # noqa: ANN401 - a number, or its digits
    """Return a step as an integer of 64 bits.

    Raises:
        CheckpointError: Negative, fractional, not finite, or too large.
    """
    try:
        number = int(found) if isinstance(found, int) or str(found).isdecimal() else float(found)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number) or not 0 <= int(number) <= LARGEST_STEP:
        raise CheckpointError(
            f"{name}: states step {found}, but a whole number from 0 to {LARGEST_STEP} was expected; {WAY_OUT}"
        )
    return int(number)


WAY_OUT = "name the number with a pattern under [series] in ibscan.toml, or save it again."


def finite_number(found: Any, what: str, name: str, *, signed: bool = False) -> float:  # noqa: ANN401
    """Return a number that a file or its name states.

    Args:
        found: A number, or its digits.
        what: What it is, for a message.
        name: What to call the file in a message.
        signed: Whether it may be below 0.

    Raises:
        CheckpointError: It is none, or not finite.
    """
    try:
        number = float(found)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (number < 0 and not signed):
        expected = "a finite number" if signed else "a finite number from 0"
        raise CheckpointError(f"{name}: states {what} {found}, but {expected} was expected; {WAY_OUT}")
    return number


def numbers_in_metadata(metadata: Mapping[str, str], name: str) -> AxisNumbers:
    """Read `ibscan.epoch`, `ibscan.step`, `ibscan.value`, and plain `epoch` and `step`, of safetensors metadata.

    Raises:
        CheckpointError: A number that cannot be read.
    """
    epoch = metadata.get("ibscan.epoch", metadata.get("epoch"))
    step = metadata.get("ibscan.step", next((metadata[key] for key in STEP_KEYS if key in metadata), None))
    value = metadata.get("ibscan.value")
    return AxisNumbers(
        None if epoch is None else finite_number(_number(epoch), "epoch", name),
        None if step is None else whole_step(_number(step), name),
        None if value is None else finite_number(value, "ibscan.value", name, signed=True),
        "metadata",
    )


def numbers_in_object(stated: Mapping[str, int | float], name: str) -> AxisNumbers:
    """Check the epoch and the step (`step`, `global_step`, `iter`, `iter_num`, ...) that a saved object states.

    Args:
        stated: The numbers by the key they stand under.
        name: What to call the file in a message.

    Raises:
        CheckpointError: A negative or non-finite number.
    """
    epoch = next((stated[key] for key in EPOCH_KEYS if key in stated), None)
    step = next((stated[key] for key in STEP_KEYS if key in stated), None)
    return AxisNumbers(
        None if epoch is None else finite_number(epoch, "epoch", name),
        None if step is None else whole_step(step, name),
        None,
        "file",
    )


def _number(text: str) -> str | int | float:
    """Return the number a text is in any of its forms, or the text itself, for a message."""
    number = text_number(text)
    return text if number is None else number


def numbers_in_sidecar(folder: Path, name: str) -> AxisNumbers:
    """Read `trainer_state.json` beside a folder's weights; an absent or unreadable one says nothing."""
    path = folder / "trainer_state.json"
    try:
        if not path.is_file() or path.stat().st_size > SIDECAR_BYTES:
            return AxisNumbers()
        state = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return AxisNumbers()
    if not isinstance(state, dict):
        return AxisNumbers()
    epoch, step = (
        text_number(found) if isinstance(found, str) else found if type(found) in (int, float) else None
        for found in (state.get("epoch"), state.get("global_step"))
    )
    return AxisNumbers(
        None if epoch is None else finite_number(epoch, "epoch", f"{name} (trainer_state.json)"),
        None if step is None else whole_step(step, f"{name} (trainer_state.json)"),
        None,
        "sidecar",
    )
