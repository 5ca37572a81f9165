"""Run a measure on one layer of one checkpoint at a time, and decide the status of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ibscan.core.boundary import is_out_of_memory
from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure
from ibscan.core.network import LayeredNetwork
from ibscan.core.records import Array, At, Layer, Probe

__all__ = [
    "ROUNDING",
    "SATURATION_MARGIN",
    "LayerValues",
    "blank_estimates",
    "distinct_rows",
    "failure_status",
    "fill",
    "input_weights",
    "is_saturated",
    "label_status",
    "labels_consistent",
    "layer_status",
    "layer_values",
    "layers_in_turn",
    "measure_each_layer",
    "post_widths",
    "scalar_estimate",
]

# A value within the margin of a ceiling of at least LEAST_CEILING is saturated, nats (methods.md).
SATURATION_MARGIN = 0.1
LEAST_CEILING = 0.2
# A unit that varies by less than this share of its values varies only by the rounding of matrix products.
ROUNDING = 1e-12


@dataclass(frozen=True)
class LayerValues:
    """The values (N, D), float64, of one layer of one checkpoint; `status` is OK, DEAD (constant) or NONFINITE."""

    checkpoint: int
    index: int
    layer: Layer
    values: torch.Tensor
    status: Status


def measure_each_layer(
    measure: Measure,
    network: LayeredNetwork,
    probe: Probe,
    measure_layer: Callable[[LayerValues], Mapping[str, Estimate]],
    layers: Layers | None = None,
) -> dict[str, Estimate]:
    """Call `measure_layer` for every layer of every checkpoint, with one layer in memory at a time.

    Args:
        measure: Its quantities are filled.
        network: C checkpoints of L layers.
        probe: N rows, already sampled.
        measure_layer: Returns estimates by quantity key, arrays of the quantity's own dimensions. Quantities it leaves
            out are `nonfinite` if the layer is, else `not_measured`.
        layers: Indices of the layers to measure, None for all; others are `not_measured`.

    Returns:
        Estimates of all quantities, arrays (C, L, *dims).
    """
    found = blank_estimates(measure, network)
    for layer, values in layers_in_turn(network, probe.x, measure.at, layers):
        for c in range(network.size):
            status = layer_status(values[c])
            measured = measure_layer(LayerValues(c, layer, network.layers[layer], values[c], status))
            for key, estimate in found.items():
                if key in measured:
                    fill(estimate, (c, layer), measured[key])
                elif status is Status.NONFINITE and estimate.status is not None:
                    estimate.status[c, layer] = status
    return found


def blank_estimates(
    measure: Measure, network: LayeredNetwork, status: Status = Status.NOT_MEASURED
) -> dict[str, Estimate]:
    """Return estimates to be filled: NaN, or -1 for counts, for every quantity whose dimensions are known beforehand.

    Args:
        measure: Its quantities.
        network: C checkpoints of L layers.
        status: Why there is no number yet.

    Returns:
        Estimates by quantity key, arrays (C, L, *dims) or (C, *dims).
    """
    found = {}
    for quantity in measure.quantities:
        if not set(quantity.dims) <= set(measure.coordinates):
            continue
        shape: tuple[int, ...] = (network.size, len(network.layers)) if quantity.per_layer else (network.size,)
        shape += tuple(len(measure.coordinates[dim]) for dim in quantity.dims)
        # Exact quantities have no status. Those with a unit are numbers, the others are counts.
        is_count = quantity.counted and quantity.unit == "1"
        value = np.full(shape, -1, dtype=np.int64) if is_count else np.full(shape, np.nan)
        statuses = None if quantity.counted else np.full(shape, status, dtype=np.int8)
        companions: dict[str, Any] = {
            field: np.full(shape, np.nan)
            for field, suffix in Estimate.COMPANIONS.items()
            if suffix in quantity.companions
        }
        found[quantity.key] = Estimate(value, statuses, **companions)
    return found


def scalar_estimate(number: float, status: Status) -> Estimate:
    """Return an estimate of one layer for a quantity without further dimensions."""
    return Estimate(np.array(number, dtype=np.float64), np.array(status, dtype=np.int8))


def fill(estimate: Estimate, index: tuple[int, ...], part: Estimate) -> None:
    """Write an estimate into another one's arrays at an index."""
    for field in ("value", "status", *Estimate.COMPANIONS):
        array = getattr(estimate, field)
        if array is not None:
            array[index] = getattr(part, field)


def layers_in_turn(
    network: LayeredNetwork, x: Array, at: At, layers: Layers | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (layer index, `layer_values`) for the layers given, all by default, one layer in memory at a time.

    Every layer costs a forward pass of its own, which is little beside what is measured on it.
    """
    for layer in range(len(network.layers)) if layers is None else layers:
        yield layer, layer_values(network, x, layer, at)


def layer_values(network: LayeredNetwork, x: Array, layer: int, at: At) -> torch.Tensor:
    """Return one layer's values, shape (C, N, D), float64.

    Equal rows of the probe are passed once, so that their values are equal to the last bit. A unit that is constant up
    to the rounding of its own values is made exactly constant.

    Args:
        network: C checkpoints.
        x: Probe rows, shape (N, ...).
        layer: Its index.
        at: `pre` or `post`.
    """
    first, member, _ = distinct_rows(x)
    found: list[tuple[slice, torch.Tensor]] = []

    def keep(index: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
        if index == layer:
            found.append((rows, (pre if at == "pre" else post).flatten(2)))

    network.walk(x[first], keep)
    values = torch.empty(network.size, len(first), found[0][1].shape[-1], dtype=torch.float64, device=network.device)
    while found:
        rows, part = found.pop()
        values[:, rows] = part
    lowest, highest = values.aminmax(dim=1, keepdim=True)
    constant = highest - lowest <= ROUNDING * torch.maximum(highest.abs(), lowest.abs())
    owner = torch.as_tensor(member, device=network.device)
    return torch.where(constant, values[:, :1], values)[:, owner]


def post_widths(network: LayeredNetwork, x: Array) -> list[int]:
    """Return the number of units of every layer after its activation."""
    widths = [0] * len(network.layers)

    def note(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:  # noqa: ARG001
        widths[layer] = post[0, 0].numel()

    network.walk(x[:1], note)
    return widths


def layer_status(values: torch.Tensor) -> Status:
    """Return NONFINITE, DEAD (constant over the rows) or OK for values (N, D) of one layer."""
    if not bool(torch.isfinite(values).all()):
        return Status.NONFINITE
    return Status.DEAD if bool((values == values[0]).all()) else Status.OK


def failure_status(error: Exception) -> Status:
    """Return the status for an error that data or machine caused; raise any other again.

    Raises:
        RuntimeError: Neither a lack of memory nor a failed decomposition: a bug, which a status would hide.
    """
    if is_out_of_memory(error):
        return Status.OUT_OF_MEMORY
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return Status.FAILED
    raise error


def label_status(status: Array, *, labelled: bool) -> Array:
    """Return the statuses of a quantity about labels: not measured if there are none, except where not finite."""
    return status if labelled else np.where(status == Status.NONFINITE, status, Status.NOT_MEASURED).astype(np.int8)


def distinct_rows(x: Array) -> tuple[Array, Array, Array]:
    """Find distinct rows among N; return each one's first index (n,), the one each row is (N,), and counts (n,)."""
    flat = np.ascontiguousarray(x.reshape(len(x), -1) + 0.0)  # -0.0 becomes 0.0, which is equal
    # Rows as opaque bytes, which sort fast at any width.
    opaque = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
    _, first, member, counts = np.unique(opaque, return_index=True, return_inverse=True, return_counts=True)
    return first, member, counts


def input_weights(probe: Probe) -> tuple[Array, float]:
    """Return joint weights of rows and classes, shape (N, classes), and H(X) over distinct inputs, nats.

    The weights sum to 1; without labels there is one class.
    """
    rows = len(probe.x)
    weights = np.zeros((rows, max(1, len(probe.labels) if probe.y is not None else 1)))
    weights[np.arange(rows), 0 if probe.y is None else probe.y] = 1.0 / rows
    counts = distinct_rows(probe.x)[2]
    share = counts / rows
    return weights, float(max(0.0, -(share * np.log(share)).sum()))


def labels_consistent(probe: Probe) -> bool:
    """Return whether there are labels, and equal inputs have equal labels."""
    if probe.y is None:
        return False
    first, member, _ = distinct_rows(probe.x)
    return bool((probe.y == probe.y[first][member]).all())


def is_saturated(value: float, input_entropy: float) -> bool:
    """Return whether a value is so near H(X) that it says nothing: more noise or more rows are needed."""
    return input_entropy >= LEAST_CEILING and value > input_entropy - SATURATION_MARGIN
