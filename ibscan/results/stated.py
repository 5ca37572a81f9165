"""Compare accuracies and losses that checkpoints state with those measured: a mismatch is the sign of a wrong probe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ibscan.core.estimate import Status
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.results.axes import STATED_METRIC, metric_value
from ibscan.results.coverage import rows_of

__all__ = ["contradiction"]

# Words a metric's name may consist of; not `best`, which is that of another checkpoint.
ACCURACY = {"acc", "accuracy"}
LOSS = {"loss", "nll", "ce", "crossentropy"}
TRAINED = {"train", "training"}
SPLIT = {*TRAINED, "val", "valid", "validation", "test", "eval", "dev", "heldout", "epoch", "mean", "avg"}
# Differences between splits and seeds are smaller than this.
FAR = 0.2
# A stated accuracy above this is a percentage.
PERCENT = 1.5


@dataclass(frozen=True)
class _StatedMetric:
    """A number that a checkpoint states: the metric's name, and whether it is of training data by that name."""

    key: str
    value: float
    trained: bool


def contradiction(result: Result, checkpoints: Sequence[Checkpoint], classes: int) -> str | None:
    """Describe the checkpoint whose stated accuracy or loss the probe contradicts most; None where it contradicts none.

    An accuracy is contradicted where the probe's is lower than every stated one by more than 0.2 plus three standard
    errors of that many rows (and, where only a training accuracy is stated, by more than half of its excess over
    chance: the network may have memorised). A loss is compared where no accuracy is stated. It is contradicted where
    it is below half of the loss of guessing, while the probe's loss is no better than guessing and its accuracy less
    than half way from chance to 1.
    """
    if "probe_accuracy" not in result or classes < 2:
        return None
    rows = rows_of(result)
    percent = _percent(checkpoints)
    found: list[tuple[float, str]] = []
    for checkpoint in checkpoints:
        row = rows.get((checkpoint.sha256, checkpoint.name))
        accuracy = None if row is None else _measured(result, "probe_accuracy", row)
        if row is None or accuracy is None:
            continue
        stated = [s for s in _stated(checkpoint.metadata, ACCURACY, percent) if 0.0 <= s.value <= 1.0]
        if stated:
            number = int(result["probe_accuracy"].attrs["rows"])
            gap, said = _accuracy_gap(stated, accuracy, number, classes)
        else:
            loss = _measured(result, "probe_loss", row)
            stated = _stated(checkpoint.metadata, LOSS, frozenset())
            gap, said = (0.0, "") if loss is None else _loss_gap(stated, loss, accuracy, classes)
        if gap > 0.0:
            found.append((gap, f"{checkpoint.name} states {said}"))
    if not found:
        return None
    others = f" So it is at {len(found)} checkpoints." if len(found) > 1 else ""
    # The first of the worst.
    return (
        f"{max(found, key=lambda one: one[0])[1]}: the probe may need another scale, mean or std (--probe-arg), or be "
        f"of another split or order of labels.{others}"
    )


def _accuracy_gap(stated: Sequence[_StatedMetric], accuracy: float, rows: int, classes: int) -> tuple[float, str]:
    """Return by how much an accuracy is contradicted, 0 where it is not, and say so."""
    nearest = min(stated, key=lambda one: one.value)
    gap = nearest.value - accuracy
    far = gap > FAR + 3.0 * math.sqrt(0.25 / rows)
    if nearest.trained:
        far = far and _lost(accuracy, nearest.value, classes)
    return (gap if far else 0.0), f"{nearest.key} {nearest.value:.3g}, and accuracy on the probe is {accuracy:.3g}"


def _loss_gap(stated: Sequence[_StatedMetric], loss: float, accuracy: float, classes: int) -> tuple[float, str]:
    guessing = math.log(classes)
    if not stated or max(one.value for one in stated) >= guessing / 2.0:
        return 0.0, ""
    nearest = max(stated, key=lambda one: one.value)
    far = nearest.value >= 0.0 and loss >= guessing and _lost(accuracy, 1.0, classes)
    return (loss - nearest.value if far else 0.0), (
        f"{nearest.key} {nearest.value:.3g}, and the loss on the probe is {loss:.3g}"
    )


def _lost(accuracy: float, stated: float, classes: int) -> bool:
    """Tell whether an accuracy has less than half of the stated one's excess over chance."""
    chance = 1.0 / classes
    return accuracy - chance < 0.5 * (stated - chance)


def _measured(result: Result, name: str, row: int) -> float | None:
    status = result.status(name) if name in result else None
    return float(result[name].values[row]) if status is not None and status[row] == Status.OK else None


def _words(key: str) -> set[str]:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key.removeprefix(STATED_METRIC)).lower()  # valLoss
    name = re.sub(r"(top|acc|accuracy)[ _@-]*1(?![0-9])", " accuracy ", name)
    return {word for word in re.split(r"[^a-z0-9]+", name) if word}


def _stated(metadata: Mapping[str, str], kinds: set[str], percent: frozenset[str]) -> list[_StatedMetric]:
    found = []
    for key, text in metadata.items():
        words = _words(key)
        value = _number(text)
        if value is None or not words & kinds or not words <= kinds | SPLIT:
            continue
        value = value / 100.0 if key in percent else value
        found.append(_StatedMetric(key.removeprefix(STATED_METRIC), value, bool(words & TRAINED)))
    return found


def _percent(checkpoints: Sequence[Checkpoint]) -> frozenset[str]:
    """Return the names under which any checkpoint states a percentage."""
    keys = {(key, text) for checkpoint in checkpoints for key, text in checkpoint.metadata.items()}
    return frozenset(key for key, text in keys if (_number(text) or 0.0) > PERCENT and _words(key) & ACCURACY)


def _number(text: str) -> float | None:
    value = metric_value(text)
    return value if value is not None and math.isfinite(value) else None
