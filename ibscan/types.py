"""The nouns every room shares, and the two protocols: Network and Measure."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "COUNTERS",
    "WRAPPERS",
    "At",
    "Checkpoint",
    "Derivative",
    "Estimate",
    "Layer",
    "Measure",
    "Network",
    "Normals",
    "Probe",
    "Quantity",
    "Result",
    "Scores",
    "Series",
    "Status",
    "Streams",
    "TensorInfo",
    "Variable",
    "VisitFactor",
    "VisitGram",
    "Weight",
    "is_counter",
]

At: TypeAlias = Literal["pre", "post"]
# What DataParallel and DDP, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names under which training states how far it is, epoch first; the last is what DeepSpeed writes.
COUNTERS = ("epoch", "step", "global_step", "iter", "iter_num", "iteration", "global_steps")
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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
class Quantity:
    """What a number is: file key, symbol, unit, meaning, and the dimensions beyond (checkpoint, layer).

    `per_layer` is False for what belongs to the checkpoint as a whole. `counted` marks integer counts and exact
    coordinates, which carry no status. `default_shown` is False for histograms and spectra, which exports give only
    when asked by name. `limit` names the measure's field that holds the rows this quantity uses at most, where it uses
    fewer than the measure.
    """

    key: str
    symbol: str
    unit: str
    long_name: str
    dims: tuple[str, ...] = ()
    per_layer: bool = True
    counted: bool = False
    default_shown: bool = True
    limit: str = ""

    def rows(self, measure: Measure, rows: int) -> int:
        """Return how many of the rows a measure was given this quantity uses."""
        most = getattr(measure, self.limit) if self.limit else None
        return rows if most is None else min(rows, most)


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
        key = [self.seed, zlib.crc32(measure.encode()), layer, draw]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Derivative:
    """Which Jacobians are meant: of which layers, before or after the activation, and with respect to what.

    `origin` is the index of the layer whose post is the variable, None for the network's input. `layers` are those
    wanted, None for all. `directions` restricts the variable to a random orthonormal subspace of so many dimensions,
    whose basis `basis(d, part)` gives as an array (d, columns of the part).
    """

    at: At = "pre"
    origin: int | None = None
    layers: tuple[int, ...] | None = None
    directions: int | None = None
    basis: Callable[[int, slice], Array] | None = None

    def wants(self, layer: int) -> bool:
        """Whether the layer's Jacobian is asked for: layers up to the origin have none."""
        asked = self.layers is None or layer in self.layers
        return asked and (self.origin is None or layer > self.origin)

    @property
    def feeds(self) -> bool:
        """Whether the norm of what feeds a layer bounds its rank: at pre, and on the whole input."""
        return self.at == "pre" and self.directions is None


@dataclass(frozen=True)
class Weight:
    """The weight of a layer as matrices (C, out, in), float64, and how it makes the layer's map.

    The map of one row consists of `positions` products with the matrix, each of its own part of what is fed: exactly
    so, its singular values are those of the matrix `positions` times over, where `separate`; of overlapping parts
    (patches), its rank is at most `positions` times that of the matrix. None where neither is so.
    """

    matrix: torch.Tensor
    positions: int | None = 1
    separate: bool = True


Visit: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor, slice], None]"
Scores: TypeAlias = "Callable[[torch.Tensor, torch.Tensor | None, slice], None]"
VisitFactor: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor | None, slice], None]"
VisitGram: TypeAlias = "Callable[[int, Any, slice], None]"
Normals: TypeAlias = "Callable[[int, int], Array]"


class Network(Protocol):
    """C checkpoints of one architecture that answer questions about every layer (C = 1 for large ones).

    What is visited is float64 whatever `dtype` the forward pass ran in, lives on `device`, and is not kept: a
    visitor reduces or clones. Layers are named by their index in `layers`, the order of first call.
    """

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers in the order of first call."""
        ...

    @property
    def size(self) -> int:
        """C, the number of checkpoints stacked."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    @property
    def output(self) -> str:
        """Name of the activation that makes the network's output (`identity`, `softmax`, `sigmoid`, ...).

        `other` where it has no name.
        """
        ...

    @property
    def hidden(self) -> int | None:
        """Index of the last hidden layer, None where there is none, or no one last layer that makes the output."""
        ...

    @property
    def plain(self) -> bool:
        """Whether every layer is fed by the one before it alone, so that data processing holds along them."""
        ...

    def inputs_of(self, x: Array) -> int:
        """Return how many numbers of a row are what Jacobians are with respect to: rows may hold masks and the like."""
        ...

    def alone(self, checkpoint: int) -> Network:
        """Return the network of one of the stacked checkpoints (C = 1)."""
        ...

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) with (C, n, ...) tensors, rows in blocks, each as soon as it is known."""
        ...

    def scores(self, x: Array, visit: Scores) -> None:
        """Call visit(output, logits, rows) with (C, n, units) tensors, rows in blocks: the network's own output.

        Of a softmax or a sigmoid the logits it is made of, one for one; None where they are in another order, or
        normalised in parts. Of anything else the logits are the output itself.
        """
        ...

    def noisy_walk(
        self, x: Array, layer: int, noise: float, normals: Normals, replicas: range
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Yield (replicas, S) in blocks of replicas: S (C, R, n, D) is the layer's post before its own noise.

        Every noisy layer that feeds it adds noise * normals(its index, replica), of shape (n, D), to its post.
        """
        ...

    def affine(self, x: Array) -> tuple[bool, ...]:
        """Return of every layer whether, on these rows, its pre is its weight times what it is fed, plus its bias.

        Only then does its weight say anything of it. False for modules asked for by name.
        """
        ...

    def weight(self, layer: int) -> Weight | None:
        """Return a layer's weight as stored, whatever the precision of a pass; None for modules that have none."""
        ...

    def undefined(self, which: Derivative) -> Mapping[int, str]:
        """Return the layers that have no derivative by the variable, with the reason."""
        ...

    def rounding(self, x: Array, which: Derivative) -> Mapping[int, float]:
        """Return how far rounding may have moved Jacobians, in units of their norm, where they are not float64."""
        ...

    def grams(self, x: Array, visit: VisitGram, which: Derivative) -> Mapping[int, str]:
        """Call visit(layer, gram, rows) for every layer wanted: `numerics.counting.Gram`, the quick way to counts.

        Blocks of rows may be visited side by side, each of a layer once. Returns the layers whose Jacobian cannot be
        computed, with the reason; some of their rows may have been visited.
        """
        ...

    def jacobians(self, x: Array, visit: VisitFactor, which: Derivative) -> Mapping[int, str]:
        """Call visit(layer, factor, fed, rows); factor (C, n, D, k) has the singular values of the layer's Jacobian.

        n is 1 where the Jacobian is the same at every row. `fed` is a factor of the Jacobian of what feeds the layer,
        None where it says nothing (`which.feeds`) or the layer is not fed by the one before it alone. Returns what
        `grams` does.
        """
        ...

    def spectral_norms(self, x: Array, which: Derivative) -> Array:
        """Return the largest singular value of every layer's Jacobian, (C, L, n), whatever `which.directions` says.

        NaN where it is not finite, not wanted, or cannot be computed.
        """
        ...


class Measure(Protocol):
    """Frozen parameters plus one pure call."""

    quantities: ClassVar[tuple[Quantity, ...]]
    primary: ClassVar[tuple[str, ...]]  # keys whose cells are there wherever the measure was carried out
    name: ClassVar[str]

    @property
    def attributes(self) -> Mapping[str, str | int]:
        """What is stored with every variable, and is the same in results that can be joined, beside place and rows."""
        ...

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:
        """Whether there is anything it can say of a layer; `names` are those of all, in order."""
        ...

    @property
    def at(self) -> At:
        """Where it looks: before or after the activation."""
        ...

    @property
    def samples(self) -> int | None:
        """Probe rows at most; None for all."""
        ...

    @property
    def coordinates(self) -> Mapping[str, Sequence[float] | Sequence[str] | Sequence[int]]:
        """Values along the dimensions of its quantities beyond (checkpoint, layer)."""
        ...

    def __call__(
        self, network: Network, probe: Probe, streams: Streams, layers: Sequence[int] | None = None
    ) -> Mapping[str, Estimate]:
        """Measure every stacked checkpoint; one Estimate for each quantity key, of all layers.

        Layers that are not among `layers` need not be measured; None asks for all.
        """
        ...
