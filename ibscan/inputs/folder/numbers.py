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
    "checked_numbers",
    "first_known",
    "has_labelled_number",
    "numbers_in_metadata",
    "numbers_in_name",
    "numbers_in_object",
    "numbers_in_sidecar",
    "size_as_step",
    "sizes_in_name",
]

SUFFIX = re.compile(r"(\.(safetensors|pth|pt|ckpt|bin|tar|th))+$", re.IGNORECASE)
# A number in a name: digits, perhaps a fraction or an exponent, perhaps a scale or a unit (10k, 1.5M, 200kimg,
# 500steps), and no other letter or digit after it.
SCALE_AND_UNIT = r"((?-i:[kKmMB]))?(?:imgs?|images?|its?|iters?|iterations?|steps?|tokens?|samples?)?"
NUMBER = rf"(\d+(?:\.\d+)?(?:e\d+)?){SCALE_AND_UNIT}(?![0-9a-zA-Z])"
SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
WORD_START = r"(?<![a-zA-Z])"
EPOCH = re.compile(rf"{WORD_START}(?:epochs?|ep)[-_=. ]?{NUMBER}", re.IGNORECASE)
STEP = re.compile(
    rf"{WORD_START}(?:global[-_]?steps?|steps?|iterations?|iters?|iter[-_]num|it)[-_=. ]?{NUMBER}", re.IGNORECASE
)
CHECKPOINT = re.compile(rf"{WORD_START}(?:checkpoint|ckpt|chkpt|cp)[-_=. ]?{NUMBER}", re.IGNORECASE)
# Versions of Lightning (-v1) and ranks of DeepSpeed are no steps.
VERSION = re.compile(r"-v\d+$|(?<![a-zA-Z])(?:mp_)?rank[-_]?\d+", re.IGNORECASE)
ASSIGNMENT = re.compile(r"[A-Za-z_]+[A-Za-z0-9_]*=[-+0-9.eE]+")
UNLABELLED = re.compile(rf"(?<![0-9a-zA-Z.]){NUMBER}")
EPOCH_KEYS, STEP_KEYS = COUNTERS[:1], COUNTERS[1:]
# Only as `ibscan.save` names members of a sweep: elsewhere `value=` may be a metric.
SWEEP_VALUE = re.compile(r"(?:(?:epoch|step)-\d+(?:\.\d+)?-)?value=([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
LARGEST_STEP = 2**63 - 1
SIDECAR_BYTES = 64 << 20
WAY_OUT = "name the number with a pattern under [series] in ibscan.toml, or save it again."


@dataclass(frozen=True)
class AxisNumbers:
    """Epoch, step and sweep value from one source, each None if absent; `source` as in Checkpoint.step_source."""

    epoch: float | None = None
    step: int | None = None
    value: float | None = None
    source: str = "order"


NO_NUMBERS = AxisNumbers()


def first_known(*found: AxisNumbers) -> AxisNumbers:
    """Merge sources: each number from the first that has it; `source` is that of the epoch, else step, else value."""
    epoch, step, value = (
        next((numbers for numbers in found if getattr(numbers, key) is not None), NO_NUMBERS)
        for key in ("epoch", "step", "value")
    )
    leading = next((numbers for numbers in (epoch, step, value) if numbers is not NO_NUMBERS), NO_NUMBERS)
    return AxisNumbers(epoch.epoch, step.step, value.value, leading.source)


def numbers_in_name(name: str) -> AxisNumbers:
    """Read epoch and step from a file or folder name.

    A number counts after `epoch` or `ep`, or after `step`, `global_step`, `iter`, `iteration`, `it`; `10k`, `1.5M` and
    `200kimg` are thousands and millions, `2B` is 2 * 10^9. A number after `checkpoint` or `ckpt`, and the only number
    without a word (`model_12`, `100/`), is a step unless the name states an epoch. `val_loss=0.02`, `-v1`, `rank_0`,
    numbers inside words, and several numbers without a word are ignored.

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
        step = CHECKPOINT.search(stem) or _unlabelled_number(stem)
    value = SWEEP_VALUE.fullmatch(stem)
    return AxisNumbers(_named_number(epoch), _named_step(step), _named_number(value), "name")


def sizes_in_name(name: str) -> frozenset[str]:
    """Return the scaled numbers of a name (`124M`) without a word, which may be the network's size.

    Example:
        >>> sizes_in_name("gpt_124M.pt"), sizes_in_name("gpt_124M_step_10k.pt"), sizes_in_name("model_10.pt")
        (frozenset({'124M'}), frozenset({'124M'}), frozenset())
    """
    stem = _stem(name)
    stated = {match.start(1) for kind in (EPOCH, STEP, CHECKPOINT) for match in kind.finditer(stem)}
    return frozenset(match[0] for match in UNLABELLED.finditer(stem) if match[2] and match.start(1) not in stated)


def has_labelled_number(name: str) -> bool:
    """Tell whether a name holds a number after a word for epoch, step or checkpoint."""
    return any(kind.search(_stem(name)) for kind in (EPOCH, STEP, CHECKPOINT))


def size_as_step(name: str) -> str:
    """Return the scaled number (`124M`) that a name's step was read from without a word, or the empty string."""
    found = None if has_labelled_number(name) else _unlabelled_number(_stem(name))
    return found[0] if found is not None and found[2] else ""


def _stem(name: str) -> str:
    return VERSION.sub("", SUFFIX.sub("", whole_name(name)))


def _unlabelled_number(stem: str) -> re.Match[str] | None:
    """Return the only number of a name without a word; fractions count only with a scale."""
    found = [match for match in UNLABELLED.finditer(ASSIGNMENT.sub(" ", stem)) if "." not in match[1] or match[2]]
    return found[0] if len(found) == 1 else None


def _named_number(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    number = float(match[1])
    scale = SCALES[(match[2] or "").lower()] if match.re.groups > 1 else 1
    # A number stated inside the file must be finite; one in a name is ignored otherwise.
    return number * scale if math.isfinite(number * scale) else None


def _named_step(match: re.Match[str] | None) -> int | None:
    try:
        number = None if match is None else Decimal(match[1]) * SCALES[(match[2] or "").lower()]
    except ArithmeticError:
        return None
    return int(number) if number is not None and number <= LARGEST_STEP and number == number.to_integral() else None


def checked_numbers(
    name: str,
    source: str,
    epoch: Any = None,  # noqa: ANN401 - numbers, or their digits
    step: Any = None,  # noqa: ANN401
    value: Any = None,  # noqa: ANN401
    value_label: str = "the value",
) -> AxisNumbers:
    """Check the numbers that a source states, None where it states none.

    Raises:
        CheckpointError: Not finite; an epoch or step below 0; a step that is no integer of 64 bits.
    """
    return AxisNumbers(
        None if epoch is None else _finite_number(epoch, "epoch", name),
        None if step is None else _whole_step(step, name),
        None if value is None else _finite_number(value, value_label, name, signed=True),
        source,
    )


def _whole_step(found: Any, name: str) -> int:  # noqa: ANN401 - a number, or its digits
    try:
        number = int(found) if isinstance(found, int) or str(found).isdecimal() else float(found)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number) or not 0 <= int(number) <= LARGEST_STEP:
        raise CheckpointError(
            f"{name}: states step {found}, but a whole number from 0 to {LARGEST_STEP} was expected; {WAY_OUT}"
        )
    return int(number)


def _finite_number(found: Any, label: str, name: str, *, signed: bool = False) -> float:  # noqa: ANN401
    try:
        number = float(found)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (number < 0 and not signed):
        expected = "a finite number" if signed else "a finite number from 0"
        raise CheckpointError(f"{name}: states {label} {found}, but {expected} was expected; {WAY_OUT}")
    return number


def numbers_in_metadata(metadata: Mapping[str, str], name: str) -> AxisNumbers:
    """Read `ibscan.epoch`, `ibscan.step`, `ibscan.value`, and plain `epoch` and `step`, of safetensors metadata.

    Raises:
        CheckpointError: A number that cannot be read.
    """
    epoch: Any = metadata.get("ibscan.epoch", metadata.get("epoch"))
    step: Any = metadata.get("ibscan.step", next((metadata[key] for key in STEP_KEYS if key in metadata), None))
    epoch, step = (None if text is None else _number(text) for text in (epoch, step))
    return checked_numbers(name, "metadata", epoch, step, metadata.get("ibscan.value"), "ibscan.value")


def numbers_in_object(stated: Mapping[str, int | float], name: str) -> AxisNumbers:
    """Check the epoch and the step among the numbers that a saved object states, by key (`step`, `iter_num`, ...).

    Raises:
        CheckpointError: A negative or non-finite number.
    """
    epoch, step = (next((stated[key] for key in keys if key in stated), None) for keys in (EPOCH_KEYS, STEP_KEYS))
    return checked_numbers(name, "file", epoch, step)


def _number(text: str) -> str | int | float:
    """Return the number a text states in any form, or the text itself, for a message."""
    number = text_number(text)
    return text if number is None else number


def numbers_in_sidecar(folder: Path, name: str) -> AxisNumbers:
    """Read `trainer_state.json` beside a folder's weights; an absent or unreadable one states nothing."""
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
    return checked_numbers(f"{name} (trainer_state.json)", "sidecar", epoch, step)
