"""All rows of one layer at a time, and what a layer's values alone decide about its status."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ibscan.types import Array, At, Network, Probe, Status

__all__ = ["SATURATION_MARGIN", "input_weights", "is_saturated", "label_status", "layer_status", "layers_in_turn"]

# methods.md's rule for "too near the ceiling to see anything", nats.
SATURATION_MARGIN = 0.1
LEAST_CEILING = 0.2
# A layer that varies by less than this share of its values varies by rounding of the matrix products alone.
ROUNDING = 1e-12


def layers_in_turn(network: Network, x: Array, at: At) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (layer index, values of shape (C, N, D), float64), one layer in memory at a time.

    Every layer costs a forward pass of its own: for what is measured on it that is little, and memory stays flat.
    Equal rows of the probe are passed once, so that they have equal values to the last bit, and a layer that is
    constant up to rounding is made exactly so.

    Args:
        network: C checkpoints.
        x: Probe rows, shape (N, ...).
        at: `pre` or `post`.
    """
    distinct, member, _ = _distinct(x)
    owner = torch.as_tensor(member, device=network.device)
    for wanted, layer in enumerate(network.layers):
        values = torch.empty(network.size, len(distinct), layer.width, dtype=torch.float64, device=network.device)

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

        network.walk(distinct, keep)
        spread = (values.amax(1) - values.amin(1)).amax(1).view(-1, 1, 1)
        constant = spread <= ROUNDING * values.abs().amax((1, 2)).view(-1, 1, 1)
        yield wanted, torch.where(constant, values[:, :1], values)[:, owner]


def layer_status(values: torch.Tensor) -> Status:
    """Return NONFINITE, DEAD (constant over the rows) or OK for one checkpoint's layer, shape (N, D)."""
    if not bool(torch.isfinite(values).all()):
        return Status.NONFINITE
    return Status.DEAD if bool((values == values[0]).all()) else Status.OK


def label_status(status: Array, *, labelled: bool) -> Array:
    """Return the status of what a layer knows of the label: without labels not measured, unless not finite."""
    return status if labelled else np.where(status == Status.NONFINITE, status, Status.NOT_MEASURED).astype(np.int8)


def _distinct(x: Array) -> tuple[Array, Array, Array]:
    """Return the distinct rows, which of them each row is, and how often each occurs."""
    flat = np.ascontiguousarray(x.reshape(len(x), -1) + 0.0)  # -0.0 and 0.0 are one number
    # Rows as opaque bytes: sorting those finds equal rows of any width.
    opaque = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
    _, first, member, counts = np.unique(opaque, return_index=True, return_inverse=True, return_counts=True)
    return x[first], member, counts


def input_weights(probe: Probe) -> tuple[Array, float]:
    """Return joint weights of row and class, shape (N, C) summing to 1, and H(X) over distinct inputs, nats.

    Without labels there is one class.
    """
    rows = len(probe.x)
    weights = np.zeros((rows, max(1, len(probe.labels) if probe.y is not None else 1)))
    weights[np.arange(rows), 0 if probe.y is None else probe.y] = 1.0 / rows
    counts = _distinct(probe.x)[2]
    share = counts / rows
    return weights, float(max(0.0, -(share * np.log(share)).sum()))


def is_saturated(value: float, input_entropy: float) -> bool:
    """Return whether a value is too near H(X) to tell anything: more noise or more rows are needed."""
    return input_entropy >= LEAST_CEILING and value > input_entropy - SATURATION_MARGIN
