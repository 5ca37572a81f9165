"""The scores and decisions of a network for every row, if its output fits the labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.core.network import DecidingNetwork
from ibscan.core.records import Probe

__all__ = ["ClassScores", "decisions", "fits", "scores_of"]

# Rows of an output of unknown kind that sum to 1 within this (single precision) are probabilities.
NORMALISED = 1e-5


def fits(network: DecidingNetwork, probe: Probe) -> bool:
    """Return whether the output has one unit for each label value (or one unit for two values)."""
    labels = len(probe.labels)
    if probe.y is None or labels < 2:
        return False
    widths: list[int] = []
    network.scores(probe.x[:1], lambda output, _, __: widths.append(output.shape[-1]))
    # The threshold of a single unit is known only for these outputs.
    single = widths[0] == 1 and labels == 2 and network.output not in ("softmax", "log_softmax", "other")
    return widths[0] == labels or single


def decisions(network: DecidingNetwork, probe: Probe) -> torch.Tensor | None:
    """Return the class decided for each row, shape (C, N), or None if the labels do not fit the output.

    A checkpoint whose output is not finite on some row decides -1 for all.
    """
    scores = scores_of(network, probe)
    if scores is None:
        return None
    finite = torch.isfinite(scores.decided).flatten(1).all(1)
    return torch.where(finite.unsqueeze(1), scores.decided.argmax(-1), -1)


@dataclass(frozen=True)
class ClassScores:
    """Scores of every class, `decided` (C, N, classes), whose largest is the decision.

    They are logits if `known`, else the output; `name` is the kind of output. A `single` unit gives (0, logit).
    """

    decided: torch.Tensor
    known: bool
    name: str
    single: bool

    def logits(self, checkpoint: int) -> torch.Tensor | None:
        """Return the logits (N, classes) of one checkpoint, None if the output is no distribution over classes."""
        scores = self.decided[checkpoint]
        if self.name == "sigmoid" and not self.single:
            return None  # independent probabilities, which need not sum to 1
        if self.name != "other":
            return scores
        total = scores.sum(1)
        if bool(((scores >= 0.0) & ((total - 1.0).abs() <= NORMALISED).unsqueeze(1)).all()):
            return scores.log()  # such as the mean of several softmaxes
        logarithms = bool((torch.logsumexp(scores, 1).abs() <= NORMALISED).all())
        return scores if self.known or logarithms else None


def scores_of(network: DecidingNetwork, probe: Probe) -> ClassScores | None:
    """Return the scores of every row, None if the labels do not fit the output."""
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
    return ClassScores(decided, all(known), network.output, single)
