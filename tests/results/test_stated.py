"""Metrics stated by checkpoints against those of the probe: reported where they differ much, and only there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from support.synthetic import FIT, Fake, checkpoint, layers

from ibscan.core.estimate import Estimate, Status
from ibscan.results.schema import build
from ibscan.results.stated import contradiction

ROWS = 1000


def said(
    stated: Sequence[Mapping[str, float | str]],
    accuracy: float | Sequence[float],
    loss: float = 0.1,
    *,
    classes: int = 10,
    rows: int = ROWS,
) -> str | None:
    """The sentence on checkpoints that state {name: number}, with an accuracy and a loss measured each."""
    series = [checkpoint(k, metadata={key: str(v) for key, v in one.items()}) for k, one in enumerate(stated)]
    values = {"probe_accuracy": accuracy, "probe_loss": loss}
    estimates = {}
    for key, value in values.items():
        numbers = np.broadcast_to(np.asarray(value, dtype=float), len(series)).copy()
        status = np.where(np.isnan(numbers), Status.NOT_MEASURED, Status.OK).astype(np.int8)
        estimates[key] = Estimate(numbers, status)
    outcomes: list[Any] = [(Fake("fit", FIT), estimates, rows)]
    result = build(series, layers(), outcomes, attrs={})
    return contradiction(result, series, classes)


@pytest.mark.parametrize(
    "stated",
    [
        {"ibscan.metric.accuracy": 0.97},
        {"ibscan.metric.val_acc": 0.97},
        {"val_acc": 97.0},
        {"valAcc": 0.97},
        {"Accuracy/test": 0.97},
        {"ibscan.metric.acc@1": 96.5, "ibscan.metric.acc@5": 99.9},
        {"ibscan.metric.train_accuracy": 0.99},
        {"train_acc": 0.99, "val_acc": 0.95},
    ],
)
def test_a_stated_accuracy_that_the_probe_lacks_is_said(stated: Mapping[str, float]) -> None:
    sentence = said([stated], 0.12)
    assert sentence is not None
    assert sentence.startswith("epoch-0.safetensors states ")
    assert "accuracy on the probe is 0.12" in sentence
    assert "scale, mean or std" in sentence
    assert any(f"states {key.removeprefix('ibscan.metric.')} 0.9" in sentence for key in stated)


@pytest.mark.parametrize(
    ("stated", "accuracy", "rows"),
    [
        ({}, 0.1, ROWS),
        ({"epoch": 3, "lr": 0.97}, 0.1, ROWS),
        ({"accuracy": 0.97}, 0.9, ROWS),
        ({"accuracy": 0.97}, 0.78, ROWS),
        ({"accuracy": 0.5}, 0.95, ROWS),  # an easier probe is no mistake
        ({"accuracy": 0.97}, 0.5, 10),  # ten rows tell little
        ({"train_accuracy": 1.0}, 0.65, ROWS),  # learned by heart
        ({"train_accuracy": 1.0, "test_accuracy": 0.6}, 0.55, ROWS),
        ({"best_acc": 0.97}, 0.1, ROWS),  # of another checkpoint
        ({"top5_acc": 0.97}, 0.3, ROWS),
        ({"acc_of_something": 0.97}, 0.1, ROWS),
        ({"accuracy": "nan"}, 0.1, ROWS),
        ({"accuracy": "good"}, 0.1, ROWS),
        ({"accuracy": -1}, 0.1, ROWS),
        ({"accuracy": 0.97}, np.nan, ROWS),
    ],
)
def test_nothing_is_said_without_need(stated: Mapping[str, float | str], accuracy: float, rows: int) -> None:
    assert said([stated], accuracy, rows=rows) is None


@pytest.mark.parametrize(
    ("stated", "accuracy", "loss", "told"),
    [
        ({"ibscan.metric.val_loss": 0.1}, 0.2, 5.0, True),
        ({"loss": 0.1}, 0.2, 5.0, True),
        ({"loss": 0.1, "train_loss": 0.01}, 0.2, 5.0, True),
        ({"loss": 0.1}, 0.8, 5.0, False),  # sure of its mistakes, and few of them
        ({"loss": 0.1}, 0.2, 1.5, False),
        ({"loss": 2.0}, 0.1, 5.0, False),  # it has learned nothing yet
        ({"loss": 0.1}, 0.2, np.nan, False),
        ({"loss": 0.1, "accuracy": 0.25}, 0.2, 5.0, False),  # the accuracy is there
        ({"kl_loss": 0.1}, 0.2, 5.0, False),
    ],
)
def test_a_stated_loss_that_differs_is_said(stated: Any, accuracy: Any, loss: Any, told: Any) -> None:
    sentence = said([stated], accuracy, loss)
    assert (sentence is not None) == told
    if sentence is not None:
        assert "loss 0.1, and the loss on the probe is 5" in sentence


def test_one_sentence_names_the_worst_and_counts_the_others() -> None:
    """The worst is named and the others are counted; a metric in percent at one checkpoint is in percent at all."""
    stated = [{"acc": 0.9}, {"acc": 60.0}, {"acc": 98.0}, {}]
    sentence = said(stated, [0.1, 0.1, 0.1, 0.1])
    assert sentence is not None
    assert sentence.startswith("epoch-2.safetensors states acc 0.98, ")
    assert sentence.endswith(" So it is at 2 checkpoints.")


def test_nothing_is_said_without_labels() -> None:
    assert said([{"accuracy": 0.97}], np.nan, np.nan, classes=0) is None
    assert contradiction(build([checkpoint(1)], layers(), [], attrs={}), [checkpoint(1)], 3) is None
