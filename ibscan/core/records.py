"""Records of what is measured, and on what: Checkpoint, Series, Probe, Layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ibscan.core.streams import RandomStreams

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "COUNTERS",
    "WRAPPERS",
    "Array",
    "At",
    "Beside",
    "Checkpoint",
    "Layer",
    "Probe",
    "Series",
    "TensorInfo",
    "is_counter",
    "unbounded_layers",
]

At: TypeAlias = Literal["pre", "post"]
# Parts of tensor names added by DataParallel and DDP, torch.compile, FSDP and activation checkpointing.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names of the counters of epochs (first) and steps in checkpoints; the last is DeepSpeed's.
COUNTERS = ("epoch", "step", "global_step", "iter", "iter_num", "iteration", "global_steps")
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # in quotes: numpy is not imported here


@dataclass(frozen=True)
class TensorInfo:
    """Name-free description of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


def is_counter(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor counts epochs or steps, as some scripts save beside the weights: no part of a network."""
    return name in COUNTERS and all(size == 1 for size in shape)


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of the network: where it lies and what its file states, but not its weights.

    `name` is the path relative to the series' folder, as tables show it. `value` is the coordinate of a sweep
    (say a loss weight), where the series is one. `tensors` maps state-dict names, wrapper prefixes already stripped,
    to shape and dtype, in stored order; `stored_names` maps those names to the ones in the file. Where the weights lie
    in several files, `shards` maps each to its SHA-256, `sha256` is that of them together, and `path` is their index.
    `stamps` are the file system's marks of each unchanged file, so that it need not be hashed again; empty where it has
    none that are reliable.
    """

    path: Path
    name: str
    sha256: str
    size: int
    format: str
    epoch: float | None
    step: int | None
    value: float | None
    step_source: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    state_key: str = ""
    stored_names: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[Path, str] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """The checkpoints of one run in order, and what was left out of it.

    `axis` names the coordinate that tables and plots use: `epoch`, `step`, or a sweep's own name. `skipped` maps a
    file's name to the reason it was skipped; `notices` are sentences for standard error.
    """

    checkpoints: tuple[Checkpoint, ...]
    axis: str = "epoch"
    skipped: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def without(self, done: Callable[[Checkpoint], bool]) -> Series:
        """Return the series less the checkpoints for which `done` holds: all that resuming needs."""
        return dataclasses.replace(self, checkpoints=tuple(c for c in self.checkpoints if not done(c)))


@dataclass(frozen=True)
class Beside:
    """Arrays that a probe holds beside x and y: shapes by name, and their numbers once asked for.

    `arguments` maps what a model may call them to their names; `file` is the probe in a message.
    """

    file: str
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, str]
    read: Callable[[str], Array]


@dataclass(frozen=True)
class Probe:
    """The fixed inputs, and labels where they are classes, on which everything is measured.

    `x` has shape (N, ...). `y` (N,) holds indices into `labels`, the label values present in sorted order, or is
    None where there are no labels or they are not classes. `sha256` is the hash of the whole probe after its
    arguments (scale, mean, std, shape) were applied; a sample keeps it. What is fed to the model `beside` x, row by
    row, lies in x behind its numbers once the model is known (`ibscan.networks.packing`).
    """

    x: Array
    y: Array | None
    labels: tuple[int | str, ...]
    sha256: str
    source: str
    beside: Beside | None = None

    def sampled(self, rows: int | None, seed: int) -> Probe:
        """Return the first `rows` rows of one seeded permutation, so that smaller samples nest; None takes all.

        Permuted even when every row is taken, so that "the first 64 rows" is a random subset of an ordered probe.
        """
        order = RandomStreams(seed).generator("probe", 0, 0).permutation(len(self.x))
        order = order if rows is None else order[:rows]
        return dataclasses.replace(self, x=self.x[order], y=None if self.y is None else self.y[order])


@dataclass(frozen=True)
class Layer:
    """A called module whose output is measured: dotted name, kind (`Linear`, ...), width in units.

    `width` counts the layer's own output (pre); its post may have another size (pooling). `post_range` is the closed
    range of its post-activation where the network states one (tanh: (-1, 1)). In the network channel a layer is noisy
    unless it is an `output`, which no other layer consumes; `first` says that no noisy layer comes before it. Modules
    that are layers only because they were asked for by name are not `noisy`, and come after all others.
    """

    name: str
    kind: str
    width: int
    post_range: tuple[float, float] | None = None
    first: bool = False
    output: bool = False
    noisy: bool = True


def unbounded_layers(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return the names of hidden layers whose activation states no range of values: ReLU, GELU, a norm, none."""
    hidden = (layer for layer in layers if layer.noisy and not layer.output)
    return tuple(layer.name for layer in hidden if layer.post_range is None)
