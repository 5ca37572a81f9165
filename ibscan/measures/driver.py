"""The driver of measures that look at one layer of one checkpoint at a time, and what values decide about a status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ibscan.core.boundary import is_out_of_memory
from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.network import LayeredNetwork
from ibscan.core.records import Array, At, Layer, Probe

__all__ = [
    "ROUNDING",
    "SATURATION_MARGIN",
    "Seen",
    "blank",
    "distinct_rows",
    "each_layer",
    "input_weights",
    "is_saturated",
    "label_status",
    "labels_follow",
    "layer_status",
    "layer_values",
    "layers_in_turn",
    "misfortune",
    "post_widths",
    "put",
    "single",
]

# methods.md's rule for "too near the ceiling to see anything", nats.
SATURATION_MARGIN = 0.1
LEAST_CEILING = 0.2
# A unit that varies by less than this share of its values varies by rounding of the matrix products alone.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Seen:
    """One layer of one checkpoint.

    `values` (N, D) are float64; `status` is OK, DEAD (the same at every row) or NONFINITE.
    """

    checkpoint: int
    index: int
    layer: Layer
    values: torch.Tensor
    status: Status


def each_layer(
    measure: Measure,
    network: LayeredNetwork,
    probe: Probe,
    look: Callable[[Seen], Mapping[str, Estimate]],
    layers: Sequence[int] | None = None,
) -> dict[str, Estimate]:
    """Return what `look` finds at every layer of every checkpoint, one layer in memory at a time.

    Args:
        measure: Whose quantities are filled.
        network: C checkpoints.
        probe: N rows, already sampled.
        look: Returns estimates by quantity key, arrays of the quantity's own dimensions. What it does not return is
            `nonfinite` where the layer is, else `not_measured`.
        layers: Those to measure, None for all; others are `not_measured`.

    Returns:
        Estimates of all quantities, arrays (C, L, *dims).
    """
    found = blank(measure, network)
    for layer, values in layers_in_turn(network, probe.x, measure.at, layers):
        for c in range(network.size):
            status = layer_status(values[c])
            given = look(Seen(c, layer, network.layers[layer], values[c], status))
            for key, estimate in found.items():
                if key in given:
                    put(estimate, (c, layer), given[key])
                elif status is Status.NONFINITE and estimate.status is not None:
                    estimate.status[c, layer] = status
    return found


def blank(measure: Measure, network: LayeredNetwork, status: Status = Status.NOT_MEASURED) -> dict[str, Estimate]:
    """Return estimates without a number for every quantity whose shape is known without measuring.

    Args:
        measure: Whose quantities.
        network: C checkpoints of L layers.
        status: Why there is no number.

    Returns:
        Arrays (C, L, *dims), or (C, *dims), to be filled by `put`: NaN, or -1 for counts.
    """
    found = {}
    for quantity in measure.quantities:
        if not set(quantity.dims) <= set(measure.coordinates):
            continue
        shape: tuple[int, ...] = (network.size, len(network.layers)) if quantity.per_layer else (network.size,)
        shape += tuple(len(measure.coordinates[dim]) for dim in quantity.dims)
        # Counts are integers, exact coordinates are not; neither has a status.
        whole = quantity.counted and quantity.unit == "1"
        value = np.full(shape, -1, dtype=np.int64) if whole else np.full(shape, np.nan)
        states = None if quantity.counted else np.full(shape, status, dtype=np.int8)
        beside: dict[str, Any] = {
            field: np.full(shape, np.nan)
            for field, suffix in Estimate.COMPANIONS.items()
            if suffix in quantity.companions
        }
        found[quantity.key] = Estimate(value, states, **beside)
    return found


def single(number: float, status: Status) -> Estimate:
    """Return the estimate of one layer's quantity that has no dimensions of its own."""
    return Estimate(np.array(number, dtype=np.float64), np.array(status, dtype=np.int8))


def put(estimate: Estimate, place: tuple[int, ...], found: Estimate) -> None:
    """Fill one place of a blank estimate."""
    for field in ("value", "status", *Estimate.COMPANIONS):
        array = getattr(estimate, field)
        if array is not None:
            array[place] = getattr(found, field)


def layers_in_turn(
    network: LayeredNetwork, x: Array, at: At, layers: Sequence[int] | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (layer index, values of shape (C, N, D), float64), one layer in memory at a time.

    Every layer costs a forward pass of its own: for what is measured on it that is little, and memory stays flat.
    Equal rows of the probe are passed once, so that they have equal values to the last bit, and a unit that is
    constant up to the rounding of its own values is made exactly so, however large or small others are.

    Args:
        network: C checkpoints.
        x: Probe rows, shape (N, ...).
        at: `pre` or `post`.
        layers: Which; None for all.
    """
    for layer in range(len(network.layers)) if layers is None else layers:
        yield layer, layer_values(network, x, layer, at)


def layer_values(network: LayeredNetwork, x: Array, layer: int, at: At) -> torch.Tensor:
    """Return one layer's values, shape (C, N, D), float64, as `layers_in_turn` gives them.

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
    """Return the size of every layer's post on one row."""
    widths = [0] * len(network.layers)

    def note(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:  # noqa: ARG001
        widths[layer] = post[0, 0].numel()

    network.walk(x[:1], note)
    return widths


def layer_status(values: torch.Tensor) -> Status:
    """Return NONFINITE, DEAD (constant over the rows) or OK for one checkpoint's layer, shape (N, D)."""
    if not bool(torch.isfinite(values).all()):
        return Status.NONFINITE
    return Status.DEAD if bool((values == values[0]).all()) else Status.OK


def misfortune(error: Exception) -> Status:
    """Return the status of a cell that met an error by no fault of ours; raise any other again.

    Raises:
        RuntimeError: Anything but a lack of memory and a decomposition that failed is a mistake of ours, which a status
            would hide.
    """
    if is_out_of_memory(error):
        return Status.OUT_OF_MEMORY
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return Status.FAILED
    raise error


def label_status(status: Array, *, labelled: bool) -> Array:
    """Return the status of what a layer knows of the label: without labels not measured, unless not finite."""
    return status if labelled else np.where(status == Status.NONFINITE, status, Status.NOT_MEASURED).astype(np.int8)


def distinct_rows(x: Array) -> tuple[Array, Array, Array]:
    """Return the row each distinct input is met at first, which of them each row is, and how often each occurs."""
    flat = np.ascontiguousarray(x.reshape(len(x), -1) + 0.0)  # -0.0 and 0.0 are one number
    # Rows as opaque bytes: sorting those finds equal rows of any width.
    opaque = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
    _, first, member, counts = np.unique(opaque, return_index=True, return_inverse=True, return_counts=True)
    return first, member, counts


def input_weights(probe: Probe) -> tuple[Array, float]:
    """Return joint weights of row and class, shape (N, C) summing to 1, and H(X) over distinct inputs, nats.

    Without labels there is one class.
    """
    rows = len(probe.x)
    weights = np.zeros((rows, max(1, len(probe.labels) if probe.y is not None else 1)))
    weights[np.arange(rows), 0 if probe.y is None else probe.y] = 1.0 / rows
    counts = distinct_rows(probe.x)[2]
    share = counts / rows
    return weights, float(max(0.0, -(share * np.log(share)).sum()))


def labels_follow(probe: Probe) -> bool:
    """Return whether there are labels, and equal inputs have equal ones."""
    if probe.y is None:
        return False
    first, member, _ = distinct_rows(probe.x)
    return bool((probe.y == probe.y[first][member]).all())


def is_saturated(value: float, input_entropy: float) -> bool:
    """Return whether a value is too near H(X) to tell anything: more noise or more rows are needed."""
    return input_entropy >= LEAST_CEILING and value > input_entropy - SATURATION_MARGIN
