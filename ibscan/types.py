"""Records that every room shares: checkpoints, probes, layers, estimates, results."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "COUNTERS",
    "WRAPPERS",
    "At",
    "Checkpoint",
    "Estimate",
    "Layer",
    "Probe",
    "Result",
    "Series",
    "Status",
    "Streams",
    "TensorInfo",
    "Variable",
    "is_counter",
]

At: TypeAlias = Literal["pre", "post"]
# What DataParallel and DDP, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names under which training states how far it is, epoch first; the last is what DeepSpeed writes.
COUNTERS = ("epoch", "step", "global_step", "iter", "iter_num", "iteration", "global_steps")
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # in quotes: numpy is not imported here


class Status(IntEnum):
    """What a value means, or why there is none; stored as int8 beside every measured variable."""

    OK = 0
    NOT_MEASURED = 1
    SATURATED = 2
    DEAD = 3
    NONFINITE = 4
    FAILED = 5
    OUT_OF_MEMORY = 6
    UNRESOLVED = 7
    LOWER_BOUND = 8

    @property
    def meaning(self) -> str:
        """What it says of a cell, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: Mapping[Status, str] = {
    Status.OK: "The value is measured.",
    Status.NOT_MEASURED: "There is no such number here: no labels, no noise at this layer, or nothing asked for it.",
    Status.SATURATED: "The value is within 0.1 nat of H(X): more noise, wider cells or more rows are needed.",
    Status.DEAD: "The layer is the same for every row, and tells nothing of them.",
    Status.NONFINITE: "The layer, its Jacobian or its weight holds NaN or infinity.",
    Status.FAILED: "A computation did not come to an end; running again tries again.",
    Status.OUT_OF_MEMORY: "There was too little memory; running again tries again.",
    Status.UNRESOLVED: "The value is there, but not within the tolerance, or rounding leaves it open.",
    Status.LOWER_BOUND: "The truth may be larger: Jacobians were taken on random directions of the input alone.",
}


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
    """One saved state of the network: where it lies and what it says of itself, never its weights.

    `name` is the path relative to the series' folder, as tables show it. `value` is the coordinate of a sweep
    (say a loss weight), where the series is one. `tensors` maps state-dict names, wrapper prefixes already stripped,
    to shape and dtype, in stored order; `stored_names` maps those names to the ones in the file. Where the weights lie
    in several files, `shards` maps each to its SHA-256, `sha256` is that of them together, and `path` is their index.
    `stamps` is what the system says of each file while it is unchanged, so that it need not be hashed again; empty
    where that cannot be told.
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
        """Return the series less the checkpoints for which `done` holds: this is all that resuming is."""
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
        order = Streams(seed).generator("probe", 0, 0).permutation(len(self.x))
        order = order if rows is None else order[:rows]
        return dataclasses.replace(self, x=self.x[order], y=None if self.y is None else self.y[order])


@dataclass(frozen=True)
class Layer:
    """A called module whose output is measured: dotted name, kind (`Linear`, ...), width in units.

    `width` counts the layer's own output (pre); what follows it may have another size (pooling). `post_range` is the
    closed range of its post-activation where the network states one (tanh: (-1, 1)). In the network channel every layer
    is noisy but those with `output`, which no other layer is fed by; `first` says that no noisy layer comes before it.
    Modules that are layers only because they were asked for by name are not `noisy`, and come after all others.
    """

    name: str
    kind: str
    width: int
    post_range: tuple[float, float] | None = None
    first: bool = False
    output: bool = False
    noisy: bool = True


@dataclass(frozen=True)
class Estimate:
    """Values with their uncertainty and status, arrays (C, L, *dims) or (C, *dims).

    A NaN value never has the status OK. What stands beside the value is stored as a companion, a variable of its own
    whose name ends in a suffix (`COMPANIONS`), and shares the status. Counted quantities have `status` None. `reasons`
    says of some layers, by index, why their status is what it is; it is told to the user and not stored. How a field is
    spelt in the name of a variable is known here and nowhere else.
    """

    value: Array
    status: Array | None
    stderr: Array | None = None
    lower: Array | None = None
    upper: Array | None = None
    minimum: Array | None = None
    maximum: Array | None = None
    draws: Array | None = None
    replicas: Array | None = None
    budget: Array | None = None
    reasons: Mapping[int, str] | None = None

    COMPANIONS: ClassVar[Mapping[str, str]] = {
        "stderr": "se",
        "lower": "lower",
        "upper": "upper",
        "minimum": "min",
        "maximum": "max",
        "draws": "draws",
        "replicas": "replicas",
        "budget": "budget",
    }
    MEANINGS: ClassVar[Mapping[str, str]] = {
        "se": "standard error of",
        "lower": "lower end for",
        "upper": "upper end for",
        "min": "minimum over rows of",
        "max": "maximum over rows of",
        "draws": "draws behind the",
        "replicas": "noisy passes of one input (1 where its density is exact) behind the",
        "budget": "replicas times draws allowed for the",
    }
    # Numbers of draws and passes, whatever the unit of the value.
    UNITLESS: ClassVar[frozenset[str]] = frozenset({"draws", "replicas", "budget"})

    @staticmethod
    def companion(key: str, suffix: str) -> str:
        """Return the stored name of a companion of the quantity `key`, or of its `status`."""
        # Both sides of a noisy channel share their replicas, which carry no side in their name.
        return f"{key.removesuffix('_xt') if suffix in ('replicas', 'budget') else key}_{suffix}"

    @staticmethod
    def field_of(name: str) -> str:
        """Return the field that a stored companion holds (`stderr` for `nc1_se`), `status`, or an empty string."""
        suffix = name.rpartition("_")[2]
        fields = {**{suffix: field for field, suffix in Estimate.COMPANIONS.items()}, "status": "status"}
        return fields.get(suffix, "")

    @staticmethod
    def sides(key: str) -> tuple[str, ...]:
        """Return the keys of I(X;T) and I(T;Y) of one channel, given either; none for what is of no channel."""
        return (f"{key[:-3]}_xt", f"{key[:-3]}_ty") if key.endswith(("_xt", "_ty")) else ()

    def mapped(self, change: Callable[[Array], Array]) -> Estimate:
        """Return the estimate with every array changed in the same way."""
        arrays = {name: getattr(self, name) for name in ("value", "status", *self.COMPANIONS)}
        kept: dict[str, Any] = {name: change(array) for name, array in arrays.items() if array is not None}
        return dataclasses.replace(self, **kept)


@dataclass(frozen=True)
class Variable:
    """A named array of a result: dimension names, values (float64, int64, int8 or str objects), attributes."""

    dims: tuple[str, ...]
    values: Array
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401 - numpy's protocol
        import numpy as np

        return np.array(self.values, dtype=dtype, copy=copy)

    @property
    def ancillary(self) -> tuple[str, ...]:
        """Names of the variables that stand beside this one: its companions, then its status."""
        return tuple(str(self.attrs.get("ancillary_variables", "")).split())


@dataclass(frozen=True)
class Result:
    """Named arrays that know what they are: what is written to, and read from, one HDF5 file.

    `coordinates` holds the dimension scales (a variable named like its dimension) and the auxiliary coordinates
    (`epoch`, `layer_width`, ...); `variables` what was measured, with companions and statuses: `result["local_rank"]`
    is one array, `result.estimate("local_rank")` all that is known of the quantity. Root attributes are strings,
    integers, floats.
    """

    coordinates: Mapping[str, Variable]
    variables: Mapping[str, Variable]
    attrs: Mapping[str, Any]

    def __getitem__(self, name: str) -> Variable:
        return self.variables[name] if name in self.variables else self.coordinates[name]

    def __contains__(self, name: object) -> bool:
        return name in self.variables or name in self.coordinates

    @property
    def settings(self) -> dict[str, Any]:
        """The `settings` attribute, decoded."""
        decoded: dict[str, Any] = json.loads(self.attrs.get("settings", "{}"))
        return decoded

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the variables that are no companion and no status of another."""
        beside = {other for variable in self.variables.values() for other in variable.ancillary}
        return tuple(name for name in self.variables if name not in beside)

    def estimate(self, key: str) -> Estimate:
        """Return a quantity with everything stored of it: errors, ends, extremes, draws and status.

        Args:
            key: Name of a quantity, such as `local_rank`; `quantities` lists them.

        Returns:
            Arrays in the shape of the variable and in its unit; what the file does not hold is None. `reasons` is None.

        Raises:
            KeyError: There is no such variable, or it is a coordinate, a companion or a status.

        Example:
            found = run.result.estimate("mi_readout_xt")
            half_width = 1.96 * found.stderr[found.status == 0]
        """
        owner = next((name for name in self.quantities if key in self.variables[name].ancillary), None)
        if owner is not None:
            field_name = Estimate.field_of(key)
            raise KeyError(f"{key} is no quantity: it is estimate({owner!r}).{field_name}.")
        if key not in self.variables:
            kind = "a coordinate" if key in self.coordinates else "not in this result"
            raise KeyError(f"{key} is {kind}; expected one of {', '.join(sorted(self.quantities))}.")
        beside: dict[str, Any] = {name: found.values for name, found in self.companions(key).items()}
        return Estimate(self.variables[key].values, **{"status": None, **beside})

    def companions(self, name: str) -> dict[str, Variable]:
        """Return what stands beside a variable, by the field of `Estimate` it holds (`stderr`, ..., `status`).

        Companions share the status of their quantity. One of other dimensions, as foreign files may have, is left out.
        """
        main = self[name]
        named = {Estimate.field_of(other): self.variables.get(other) for other in main.ancillary}
        return {key: found for key, found in named.items() if key and found is not None and found.dims == main.dims}

    def status(self, name: str) -> Array | None:
        """Return the status array that `name` shares, or None where it has none (counts, coordinates)."""
        status = self.companions(name).get("status")
        return None if status is None else status.values


@dataclass(frozen=True)
class Streams:
    """Counter-based random numbers: a stream depends on (seed, measure, layer index, draw) alone.

    Not on file, epoch, noise, order or device, so that order, sharding and resuming cannot matter and curves over
    epochs and noise are smooth. (Errors of neighbouring epochs are then correlated.)
    """

    seed: int

    def generator(self, measure: str, layer: int, draw: int) -> np.random.Generator:
        """Return the generator of one draw: Philox keyed by the four numbers."""
        import numpy as np

        key = [self.seed, zlib.crc32(measure.encode()), layer, draw]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
