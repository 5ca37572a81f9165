"""The dimensions of a result: names, kinds and order of their coordinates, and fill values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.quantity import DIMENSIONS
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.core.text import by_name

__all__ = [
    "AGREEING",
    "AUXILIARY",
    "DESCRIPTIONS",
    "KINDS",
    "METRIC",
    "STATED_METRIC",
    "checkpoint_keys",
    "fill_value",
    "is_fill",
    "is_metric",
    "keys",
    "metric_value",
    "ordered",
    "stored_text",
    "strings",
]

AUXILIARY: Mapping[str, str] = {
    "epoch": "checkpoint",
    "step": "checkpoint",
    "value": "checkpoint",
    "checkpoint_name": "checkpoint",
    "checkpoint_sha256": "checkpoint",
    "step_source": "checkpoint",
    "layer_type": "layer",
    "layer_width": "layer",
}

# Prefixes of metrics, which training loops write beside the weights: of our variables, and of checkpoints' metadata.
METRIC, STATED_METRIC = "metric_", "ibscan.metric."

# Attributes of a variable in which results must agree to be joined, with their values for older files, which lack them.
AGREEING: Mapping[str, str | int] = {"at": "", "rows": -1, "from": "input", "input_dims": 0}

KINDS: Mapping[str, str] = {
    "checkpoint": "i",
    "epoch": "f",
    "step": "i",
    "value": "f",
    "checkpoint_name": "O",
    "checkpoint_sha256": "O",
    "step_source": "O",
    "layer": "O",
    "layer_type": "O",
    "layer_width": "i",
    **{dimension.name: dimension.kind for dimension in DIMENSIONS.values()},
}

DESCRIPTIONS: Mapping[str, str] = {
    "checkpoint": "index of the checkpoint in the series",
    "epoch": "epoch of the checkpoint, NaN where unknown",
    "step": "optimizer step of the checkpoint, -1 where unknown",
    "value": "coordinate of the sweep, NaN where there is none",
    "checkpoint_name": "path of the checkpoint relative to its series",
    "checkpoint_sha256": "SHA-256 of the checkpoint",
    "step_source": "where epoch and step were found",
    "layer": "dotted path of the module, #2 for its second call",
    "layer_type": "kind of module",
    "layer_width": "units of the layer",
    **{dimension.name: dimension.meaning for dimension in DIMENSIONS.values()},
}


def stored_text(text: str) -> str:
    """Return text as UTF-8 without NUL, at which HDF5 strings end; both become visible escapes."""
    # A file name of undecodable bytes reaches Python as lone surrogates.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def strings(values: Iterable[str]) -> Array:
    """Return a one-dimensional object array of strings."""
    listed = [stored_text(value) for value in values]
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def fill_value(dtype: np.dtype[Any]) -> Any:  # noqa: ANN401 - a float, an int or a string
    """Return what a variable holds where nothing was measured: NaN, NOT_MEASURED, -1 or an empty string."""
    if dtype.kind == "f":
        return float("nan")
    if dtype.kind == "O":
        return ""
    # Statuses alone are int8.
    return int(Status.NOT_MEASURED) if dtype.itemsize == 1 else -1


def is_fill(values: Array, fill: Any) -> Array:  # noqa: ANN401 - as above
    """Return where values equal their fill, NaN being equal to NaN."""
    found: Array = np.isnan(values) if values.dtype.kind == "f" else np.asarray(values == fill)
    return found


def is_metric(name: str) -> bool:
    """Tell whether a variable was written by the training loop beside the weights, and not measured here."""
    return name.startswith(METRIC)


def metric_value(text: str | None) -> float | None:
    """Read a metric from a checkpoint's metadata; return None where it is no number."""
    try:
        return None if text is None or "_" in text else float(text)
    except ValueError:
        return None


def checkpoint_keys(result: Result) -> list[tuple[str, str]]:
    """Return the identity of every checkpoint: (sha256, name)."""
    hashes, names = result["checkpoint_sha256"].values.tolist(), result["checkpoint_name"].values.tolist()
    return list(zip(hashes, names, strict=True))


def keys(result: Result, dimension: str) -> list[Hashable]:
    """Return the coordinates of a dimension as hashable keys."""
    return [*checkpoint_keys(result)] if dimension == "checkpoint" else [*result.coordinates[dimension].values.tolist()]


def ordered(coordinates: Mapping[str, Variable], rows: int) -> list[int]:
    """Return the order of checkpoints: by value, epoch or step, the first that all of them have, else by name."""
    names = ("value", "epoch", "step", "checkpoint_name", "checkpoint_sha256")
    columns = {name: coordinates[name].values.tolist() for name in names}
    # Checkpoints of one epoch are ordered by step, where all have one.
    steps: list[Any] = columns["step"] if all(step >= 0 for step in columns["step"]) else [0] * rows
    known = (columns[name] for name in ("value", "epoch") if np.isfinite(coordinates[name].values).all())
    leading = next(known, steps)
    labels, hashes = columns["checkpoint_name"], columns["checkpoint_sha256"]
    return sorted(range(rows), key=lambda row: (leading[row], steps[row], by_name(str(labels[row])), hashes[row]))
