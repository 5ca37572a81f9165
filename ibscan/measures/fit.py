"""How a checkpoint does on the probe: the check that probe and model belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ibscan.measures.activations import post_widths
from ibscan.types import At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["ProbeFit", "decisions", "last_layer"]

# Outputs whose loss is a cross entropy; of others (tanh, relu, ...) only the decision is known.
LOGITS = ("identity", "softmax", "log_softmax", "sigmoid")


@dataclass(frozen=True)
class ProbeFit:
    """Accuracy and cross entropy on the probe, where labels are classes and fit the output.

    Labels fit where the output has one unit a label value, in sorted order, or one unit for two values.

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
        if fits(network, probe):
            scores = _scores(network, probe)
            labels = torch.as_tensor(probe.y, device=network.device)
            for c in range(network.size):
                if not bool(torch.isfinite(scores[c]).all()):
                    status[c] = losses[c] = Status.NONFINITE
                    continue
                accuracy[c], status[c] = float((scores[c].argmax(1) == labels).to(torch.float64).mean()), Status.OK
                if network.output in LOGITS and (network.output != "sigmoid" or _width(network, probe) == 1):
                    loss[c], losses[c] = float(functional.cross_entropy(scores[c], labels)), Status.OK
        return {"probe_accuracy": Estimate(accuracy, status), "probe_loss": Estimate(loss, losses)}


def fits(network: Network, probe: Probe) -> bool:
    """Return whether the output's width is the number of label values (or 1 for two)."""
    labels = len(probe.labels)
    if probe.y is None or labels < 2 or network.output == "apart":
        return False
    width = _width(network, probe)
    # Where one unit of an output without a name decides is not known.
    single = width == 1 and labels == 2 and network.output not in ("softmax", "log_softmax", "other")
    return width == labels or single


def decisions(network: Network, probe: Probe) -> torch.Tensor | None:
    """Return the class each row is decided for, shape (C, N), or None where the labels do not fit the output.

    A checkpoint whose output is not finite on some row decides -1 throughout.
    """
    if not fits(network, probe):
        return None
    scores = _scores(network, probe)
    sound = torch.isfinite(scores).flatten(1).all(1)
    return torch.where(sound.unsqueeze(1), scores.argmax(-1), -1)


def _scores(network: Network, probe: Probe) -> torch.Tensor:
    """Return logits (C, N, classes): what the output makes of them undone; (0, p) for a single unit, halved at 0.

    Before an output's activation stands its pre; without one, what follows the last layer (pooling, say) counts.
    """
    last, width = last_layer(network), _width(network, probe)
    undone = network.output not in ("identity", "other")
    scores = torch.zeros(network.size, len(probe.x), max(2, width), dtype=torch.float64, device=network.device)

    def keep(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
        if layer == last:
            scores[:, rows, -width:] = (pre if undone else post).flatten(2)

    network.walk(probe.x, keep)
    return scores


def last_layer(network: Network) -> int:
    """Return the index of the last layer that is one of the network's own; layers asked for by name come after it."""
    return max(k for k, layer in enumerate(network.layers) if layer.noisy)


def _width(network: Network, probe: Probe) -> int:
    return post_widths(network, probe.x)[last_layer(network)]
