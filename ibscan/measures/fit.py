"""How a checkpoint does on the probe: the check that probe and model belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ibscan.types import At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["ProbeFit", "decisions", "fits"]

# Rows of an output without a name that sum to 1 up to this (of single precision) are probabilities.
NORMALISED = 1e-5


@dataclass(frozen=True)
class ProbeFit:
    """Accuracy and cross entropy on the probe, where labels are classes and fit the output.

    Labels fit where the output has one unit a label value, in sorted order, or one unit for two values. Both numbers
    are of the network's own output, whatever makes it, and the decision is its largest unit. Logits are what a last
    softmax or sigmoid is taken of; the logarithms of probabilities made otherwise; and else the output itself.

    Args:
        samples: Probe rows at most; all, so that the number does not depend on what else is measured.
    """

    samples: int | None = None

    name: ClassVar[str] = "probe_fit"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("probe_accuracy",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("probe_accuracy", "accuracy", "1", "share of probe rows the network decides rightly", per_layer=False),
        Quantity("probe_loss", "loss", "nat", "mean cross entropy on the probe", per_layer=False),
    )

    @property
    def at(self) -> At:
        """The network's output."""
        return "post"

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: of each."""
        return True

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """None."""
        return {}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,  # noqa: ARG002
        layers: Sequence[int] | None = None,  # noqa: ARG002
    ) -> Mapping[str, Estimate]:
        """Measure every checkpoint; exact.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled.
            streams: Not used.
            layers: Not used.

        Returns:
            Accuracy, 0 to 1, and loss in nats, shape (C,).
        """
        accuracy, loss = np.full(network.size, np.nan), np.full(network.size, np.nan)
        status = np.full(network.size, Status.NOT_MEASURED, dtype=np.int8)
        losses = status.copy()
        scores = _scores(network, probe)
        if scores is not None:
            labels = torch.as_tensor(probe.y, device=network.device)
            for c in range(network.size):
                if not bool(torch.isfinite(scores.decided[c]).all()):
                    status[c] = losses[c] = Status.NONFINITE
                    continue
                right = scores.decided[c].argmax(1) == labels
                accuracy[c], status[c] = float(right.to(torch.float64).mean()), Status.OK
                logits = scores.logits(c)
                if logits is not None:
                    loss[c] = float(functional.cross_entropy(logits, labels))
                    losses[c] = Status.OK if np.isfinite(loss[c]) else Status.NONFINITE
            loss[losses != Status.OK] = np.nan
        return {"probe_accuracy": Estimate(accuracy, status), "probe_loss": Estimate(loss, losses)}


def fits(network: Network, probe: Probe) -> bool:
    """Return whether the output's width is the number of label values (or 1 for two)."""
    labels = len(probe.labels)
    if probe.y is None or labels < 2:
        return False
    widths: list[int] = []
    network.scores(probe.x[:1], lambda output, _, __: widths.append(output.shape[-1]))
    # Where one unit of an output without a name decides is not known.
    single = widths[0] == 1 and labels == 2 and network.output not in ("softmax", "log_softmax", "other")
    return widths[0] == labels or single


def decisions(network: Network, probe: Probe) -> torch.Tensor | None:
    """Return the class each row is decided for, shape (C, N), or None where the labels do not fit the output.

    A checkpoint whose output is not finite on some row decides -1 throughout.
    """
    scores = _scores(network, probe)
    if scores is None:
        return None
    sound = torch.isfinite(scores.decided).flatten(1).all(1)
    return torch.where(sound.unsqueeze(1), scores.decided.argmax(-1), -1)


@dataclass(frozen=True)
class _Scores:
    """What a network says of every class: `decided` (C, N, classes), whose largest is its decision.

    They are the logits where `known`, else the output; `name` is the output's. Of a single unit they are (0, logit).
    """

    decided: torch.Tensor
    known: bool
    name: str
    single: bool

    def logits(self, checkpoint: int) -> torch.Tensor | None:
        """Return what the cross entropy is of, (N, classes), None where the output says nothing of probabilities."""
        scores = self.decided[checkpoint]
        if self.name == "sigmoid" and not self.single:
            return None  # as many probabilities that know nothing of one another
        if self.name != "other":
            return scores
        total = scores.sum(1)
        if bool(((scores >= 0.0) & ((total - 1.0).abs() <= NORMALISED).unsqueeze(1)).all()):
            return scores.log()  # a mean of several softmaxes, say
        logarithms = bool((torch.logsumexp(scores, 1).abs() <= NORMALISED).all())
        return scores if self.known or logarithms else None


def _scores(network: Network, probe: Probe) -> _Scores | None:
    """Return the scores of every row, None where the labels do not fit the output."""
    if not fits(network, probe):
        return None
    found: list[torch.Tensor] = []
    known: list[bool] = []

    def keep(output: torch.Tensor, logits: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001
        known.append(logits is not None)
        found.append(output if logits is None else logits)

    network.scores(probe.x, keep)
    scores = torch.cat(found, 1).to(torch.float64)
    single = scores.shape[-1] == 1
    decided = torch.cat((torch.zeros_like(scores), scores), -1) if single else scores
    return _Scores(decided, all(known), network.output, single)
