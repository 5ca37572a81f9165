"""Small results made through `schema.build`, from measures that return numbers without measuring."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.quantity import BINNING, COMPONENT, DISTANCE_BIN, EPS, NOISE, REL_EPS, REL_NOISE, Quantity
from ibscan.core.records import At, Checkpoint, Layer
from ibscan.core.result import Result
from ibscan.results.schema import build
from ibscan.views.console import console
from ibscan.views.tables import tables

LAYERS = ("fc1", "fc2", "fc10", "out")

RANK = (
    Quantity("local_rank", "LR_eps", "1", "mean number of singular values > eps", (EPS,)),
    Quantity("local_rank_rel", "LR_rel", "1", "the same, relative", (REL_EPS,)),
    Quantity("singular_value", "sigma_k", "1", "mean k-th singular value", (COMPONENT,), default_shown=False),
    Quantity("effective_rank", "exp H", "1", "effective rank"),
)
READOUT = (
    Quantity("mi_readout_xt", "I(X; T+Z)", "nat", "information about the input", (NOISE,)),
    Quantity("mi_readout_ty", "I(T+Z; Y)", "nat", "information about the label", (NOISE,)),
    Quantity("mi_readout_cap", "cap of I(X; T+Z)", "nat", "smallest proven upper bound", (NOISE,)),
)
SLOPE = (Quantity("mi_readout_slope", "-dI/d ln noise", "1", "slope of the information", (NOISE,)),)
RELATIVE = (
    Quantity("mi_readout_rel_xt", "I(X; T+Z)", "nat", "information about the input", (REL_NOISE,)),
    Quantity("mi_readout_rel_ty", "I(T+Z; Y)", "nat", "information about the label", (REL_NOISE,)),
    Quantity("mi_readout_rel_cap", "cap of I(X; T+Z)", "nat", "smallest proven upper bound", (REL_NOISE,)),
    Quantity("mi_readout_rel_slope", "-dI/d ln noise", "1", "slope of the information", (REL_NOISE,)),
    Quantity("noise_absolute", "noise", "activation units", "the noise in activation units", (REL_NOISE,)),
)
PROJECTED = (
    Quantity("mi_readout_projected_xt", "I(X; P(T+Z))", "nat", "information of components", (NOISE,)),
    Quantity("mi_readout_projected_tail", "tail", "nat", "what the others can add", (NOISE,)),
    Quantity("mi_readout_projected_components", "k", "1", "components kept", (NOISE,), counted=True),
)
NETWORK = (Quantity("mi_network_xt", "I(X; T)", "nat", "information about the input", (NOISE,)),)
NETWORK_RELATIVE = (Quantity("mi_network_rel_xt", "I(X; T)", "nat", "information about the input", (REL_NOISE,)),)
BINNED = (
    Quantity("mi_binned_xt", "H(bin T)", "nat", "entropy of the binned layer", (BINNING,)),
    Quantity("mi_binned_ty", "I(bin T; Y)", "nat", "information about the label", (BINNING,)),
    Quantity("mi_binned_cells", "cells", "1", "occupied cells", (BINNING,), counted=True),
    Quantity("mi_binned_width", "cell width", "activation units", "width of a cell", (BINNING,)),
)
CLUSTER = (
    Quantity("distance_within", "pairs", "1", "pairs of one class", (DISTANCE_BIN,), True, True, False),
    Quantity("distance_between", "pairs", "1", "pairs of two classes", (DISTANCE_BIN,), True, True, False),
    Quantity("distance_edge_low", "edge", "activation units", "lower edge", (DISTANCE_BIN,), True, True, False),
    Quantity("distance_edge_high", "edge", "activation units", "upper edge", (DISTANCE_BIN,), True, True, False),
    Quantity("distance_within_mean", "d within", "activation units", "mean distance within"),
    Quantity("distance_between_mean", "d between", "activation units", "mean distance between"),
    Quantity("nc1", "NC1", "1", "within over between"),
    Quantity("nearest_mean_error", "NM error", "1", "share nearer to another mean"),
)
FIT = (
    Quantity("probe_accuracy", "accuracy", "1", "share decided rightly", per_layer=False),
    Quantity("probe_loss", "loss", "nat", "mean cross entropy", per_layer=False),
)


@dataclass(frozen=True)
class Fake:
    """A minimal substitute for a Measure."""

    name: str
    quantities: tuple[Quantity, ...]
    coordinates: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    at: At = "post"
    samples: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, network: Any, probe: Any, streams: Any) -> Mapping[str, Estimate]:
        raise NotImplementedError


def checkpoint(number: int, *, name: str | None = None, sha: str | None = None, **fields: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "epoch": float(number),
        "step": number * 100,
        "value": None,
        "step_source": "metadata",
        "tensors": {},
        "metadata": {"ibscan.metric.loss": f"{1 / (1 + number)}", "ibscan.metric.top 1": "0.5", "epoch": "1"},
    }
    name = name or f"epoch-{number}.safetensors"
    return Checkpoint(Path(name), name, sha or f"{number:064x}", 100, "safetensors", **{**values, **fields})


def layers(names: Sequence[str] = LAYERS) -> list[Layer]:
    return [Layer(name, "Linear", 10 + LAYERS.index(name) if name in LAYERS else 3) for name in names]


def numbers(seed: str, shape: tuple[int, ...], cells: Sequence[Sequence[Any]], scale: float = 5.0) -> np.ndarray:
    """Return values that depend on a cell's coordinates, not its position, so that parts compare with the whole."""
    values = np.empty(shape)
    for index in np.ndindex(*shape):
        key = [seed, *(str(axis[place]) for axis, place in zip(cells, index, strict=True))]
        values[index] = zlib.crc32(json.dumps(key).encode()) / 2**32 * scale
    return values


def estimate(quantity: Quantity, axes: Mapping[str, Sequence[Any]], *, companions: Sequence[str] = ()) -> Estimate:
    dims = (("checkpoint", "layer") if quantity.per_layer else ("checkpoint",)) + quantity.dims
    cells = [list(axes[dim]) for dim in dims]
    shape = tuple(len(axis) for axis in cells)
    values = numbers(quantity.key, shape, cells, 0.9 if quantity.key == "probe_accuracy" else 5.0)
    if quantity.counted:
        whole = values if "edge" in quantity.key else (values * 20).astype(np.int64)
        return Estimate(whole, None)
    extra: dict[str, Any] = {name: values + place * 0.01 for place, name in enumerate(companions, 1)}
    return Estimate(values, np.zeros(shape, dtype=np.int8), **extra)


COMPANIONS = {
    "local_rank": ("stderr", "minimum", "maximum"),
    "local_rank_rel": ("stderr",),
    "mi_readout_xt": ("stderr", "lower", "upper"),
    "mi_readout_ty": ("stderr",),
    "mi_readout_slope": ("stderr",),
    "mi_readout_rel_xt": ("stderr", "lower", "upper"),
    "mi_readout_rel_ty": ("stderr",),
    "mi_readout_rel_slope": ("stderr",),
    "mi_readout_projected_xt": ("stderr",),
    "mi_network_xt": ("stderr", "lower", "upper", "budget"),
    "mi_network_rel_xt": ("stderr", "lower", "upper", "budget"),
    "mi_network_ty": ("stderr", "lower", "upper"),
    "mi_network_xt_given_y": ("stderr", "lower", "upper"),
}
MEASURES = {
    "rank": Fake("local_rank", RANK, {"eps": (0.1, 0.01), "rel_eps": (0.01,)}, at="pre"),
    "readout": Fake("readout", READOUT, {"noise": (0.1,)}),
    "slope": Fake("slope", SLOPE, {"noise": (0.1,)}),
    "relative": Fake("relative", RELATIVE, {"rel_noise": (0.1,)}),
    "projected": Fake("projected", PROJECTED, {"noise": (0.1,)}),
    "network": Fake("network", NETWORK, {"noise": (0.1,)}),
    "network_relative": Fake("network_relative", NETWORK_RELATIVE, {"rel_noise": (0.1,)}),
    "binned": Fake("binned", BINNED, {"binning": ("30 bins",)}),
    "cluster": Fake("clustering", CLUSTER, {"distance_bin": range(5)}),
    "fit": Fake("fit", FIT),
}
USUAL = ("rank", "readout", "binned", "cluster", "fit")


def outcome(measure: Fake, checkpoints: Sequence[Checkpoint], names: Sequence[str], rows: int) -> Any:
    axes: dict[str, Sequence[Any]] = {"checkpoint": [c.name for c in checkpoints], "layer": names}
    axes |= {"component": range(3), **measure.coordinates}
    found = {q.key: estimate(q, axes, companions=COMPANIONS.get(q.key, ())) for q in measure.quantities}
    return measure, found, rows


def attributes(**changes: Any) -> dict[str, Any]:
    settings = {"dtype": "float64", "axis": "epoch", "layers": list(LAYERS), "widths": [12, 10, 7, 5, 4]}
    settings |= changes.pop("settings", {})
    return {
        "created_at": "2026-01-01T00:00:00",
        "seed": 0,
        "device": "cpu",
        "command": "ibscan scan",
        "model": "mlp:tanh",
        "probe": "probe.npz",
        "probe_sha256": "p" * 64,
        "settings": json.dumps(settings, sort_keys=True),
        "skipped": {},
        "complete": True,
        **changes,
    }


def result(
    epochs: Sequence[int | Checkpoint] = (0, 1, 2),
    measures: Sequence[str | Fake] = USUAL,
    *,
    names: Sequence[str] = LAYERS,
    rows: int = 64,
    **changes: Any,
) -> Result:
    checkpoints = [e if isinstance(e, Checkpoint) else checkpoint(e) for e in epochs]
    chosen = [MEASURES[m] if isinstance(m, str) else m for m in measures]
    outcomes = [outcome(measure, checkpoints, names, rows) for measure in chosen]
    return build(checkpoints, layers(names), outcomes, attrs=attributes(**changes))


def marked(found: Result, name: str, index: tuple[Any, ...], status: Status, value: float | None = None) -> Result:
    """The result with one cell of another status, and another value if given."""
    found[Estimate.companion(name, "status")].values[index] = status
    if value is not None:
        found[name].values[index] = value
    return found


def printed(found: Result, width: int = 100, *, unicode: bool = True, **options: Any) -> list[list[str]]:
    """The lines of each block that `show --full` prints or the options say, none for the blank one at its end."""
    blocks = []
    options.setdefault("full", not any(options.get(name) for name in ("variable", "curve", "summary")))
    for block in tables(found, width=width, unicode=unicode, **options):
        stream = io.StringIO()
        console(stream, color="never", width=width).print(block)
        blocks.append([line.rstrip() for line in stream.getvalue().rstrip("\n").splitlines()])
    return blocks


def assert_equal(one: Result, other: Result, *, ordered: bool = True, attrs: bool = True) -> None:
    """Equal to the last bit, NaN to NaN; `ordered` also asks for the order of variables."""
    for left, right in ((one.coordinates, other.coordinates), (one.variables, other.variables)):
        assert list(left) == list(right) if ordered else set(left) == set(right)
        for name in left:
            assert left[name].dims == right[name].dims, name
            assert left[name].values.dtype == right[name].values.dtype, name
            np.testing.assert_array_equal(left[name].values, right[name].values, err_msg=name)
            assert_same_attributes(left[name].attrs, right[name].attrs)
    if attrs:
        assert_same_attributes(one.attrs, other.attrs)


def assert_same_attributes(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert set(one) == set(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert type(one[key]) is type(other[key]), key
