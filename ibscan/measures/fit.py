"""Accuracy and loss on the probe, which show whether probe and model belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure, Sizes
from ibscan.core.network import DecidingNetwork
from ibscan.core.quantity import Quantity
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams

__all__ = ["ProbeFit"]


@dataclass(frozen=True)
class ProbeFit(Measure):
    """Accuracy and cross entropy on the probe, if the labels fit the output.

    They fit if the output has one unit for each label value, in sorted order, or one unit for two values. The decision
    is the largest unit. Logits are the input of a last softmax or sigmoid, else the logarithms of an output that is
    probabilities, else the output itself.

    Args:
        samples: Probe rows at most; all, so that the number does not depend on what else is measured.
    """

    samples: int | None = None

    name: ClassVar[str] = "probe_fit"
    verb: ClassVar[str] = ""
    required_keys: ClassVar[tuple[str, ...]] = ("probe_accuracy",)
    caveat: ClassVar[str] = "It is of the probe, not of training or test data."
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "probe_accuracy",
            "accuracy",
            "1",
            "share of probe rows the network decides rightly",
            per_layer=False,
            formula="#{rows : argmax of the output = label} / N",
        ),
        Quantity(
            "probe_loss",
            "loss",
            "nat",
            "mean cross entropy on the probe",
            per_layer=False,
            formula="-(1/N) sum_rows ln softmax(logits)[label]",
        ),
    )

    def seconds(self, sizes: Sizes) -> float:  # noqa: ARG002
        """Return an estimate in seconds: next to nothing."""
        return 1e-3

    def __call__(
        self,
        network: DecidingNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Layers | None = None,  # noqa: ARG002 - it is of the output
    ) -> Mapping[str, Estimate]:
        """Return accuracy, 0 to 1, and loss in nats of every checkpoint, shape (C,); exact."""
        import numpy as np
        import torch
        from torch.nn import functional

        from ibscan.measures.scores import scores_of

        accuracy, loss = np.full(network.size, np.nan), np.full(network.size, np.nan)
        status = np.full(network.size, Status.NOT_MEASURED, dtype=np.int8)
        loss_status = status.copy()
        scores = scores_of(network, probe)
        if scores is not None:
            labels = torch.as_tensor(probe.y, device=network.device)
            for c in range(network.size):
                if not bool(torch.isfinite(scores.decided[c]).all()):
                    status[c] = loss_status[c] = Status.NONFINITE
                    continue
                right = scores.decided[c].argmax(1) == labels
                accuracy[c], status[c] = float(right.to(torch.float64).mean()), Status.OK
                logits = scores.logits(c)
                if logits is not None:
                    loss[c] = float(functional.cross_entropy(logits, labels))
                    loss_status[c] = Status.OK if np.isfinite(loss[c]) else Status.NONFINITE
            loss[loss_status != Status.OK] = np.nan
        return {"probe_accuracy": Estimate(accuracy, status), "probe_loss": Estimate(loss, loss_status)}
