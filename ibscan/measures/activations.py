"""All rows of one layer at a time, and what a layer's values alone decide about its status."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ibscan.types import Array, At, Network, Probe, Status

__all__ = ["SATURATION_MARGIN", "input_weights", "is_saturated", "layer_status", "layers_in_turn"]

# methods.md's rule for "too near the ceiling to see anything", nats.
SATURATION_MARGIN = 0.1
LEAST_CEILING = 0.2


def layers_in_turn(network: Network, x: Array, at: At) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (layer index, values of shape (C, N, D), float64), one layer in memory at a time.

    Every layer costs a forward pass of its own: for what is measured on it that is little, and memory stays flat.

    Args:
        network: C checkpoints.
        x: Probe rows, shape (N, ...).
        at: `pre` or `post`.
    """
    for wanted, layer in enumerate(network.layers):
        values = torch.empty(network.size, len(x), layer.width, dtype=torch.float64, device=network.device)

        def keep(
            index: int,
            pre: torch.Tensor,
            post: torch.Tensor,
            rows: slice,
            wanted: int = wanted,
            kept: torch.Tensor = values,
        ) -> None:
            if index == wanted:
                kept[:, rows] = (pre if at == "pre" else post).flatten(2)

        network.walk(x, keep)
        yield wanted, values


def layer_status(values: torch.Tensor) -> Status:
    """Return NONFINITE, DEAD (constant over the rows) or OK for one checkpoint's layer, shape (N, D)."""
    if not bool(torch.isfinite(values).all()):
        return Status.NONFINITE
    return Status.DEAD if bool((values == values[0]).all()) else Status.OK


def input_weights(probe: Probe) -> tuple[Array, float]:
    """Return joint weights of row and class, shape (N, C) summing to 1, and H(X) over distinct inputs, nats.

    Without labels there is one class.
    """
    rows = len(probe.x)
    weights = np.zeros((rows, max(1, len(probe.labels) if probe.y is not None else 1)))
    weights[np.arange(rows), 0 if probe.y is None else probe.y] = 1.0 / rows
    flat = np.ascontiguousarray(probe.x.reshape(rows, -1) + 0.0)
    # Rows as opaque bytes: sorting those finds equal rows of any width.
    _, counts = np.unique(flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))), return_counts=True)
    share = counts / rows
    return weights, float(max(0.0, -(share * np.log(share)).sum()))


def is_saturated(value: float, input_entropy: float) -> bool:
    """Return whether a value is too near H(X) to tell anything: more noise or more rows are needed."""
    return input_entropy >= LEAST_CEILING and value > input_entropy - SATURATION_MARGIN
