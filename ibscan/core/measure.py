"""The protocol of a measure, and what it gets when it is made, planned and called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ibscan.core.estimate import Estimate
from ibscan.core.network import Network
from ibscan.core.quantity import Quantity
from ibscan.core.records import At, Layer, Probe, Series
from ibscan.core.streams import RandomStreams

__all__ = ["Layers", "Measure", "Situation", "Sizes"]

# Bytes of a float64.
NUMBER = 8
# Copies of a layer's values held at once: passed, collected, distinct, decomposed, ordered as a tree, and drawn.
VALUE_COPIES = 12


@dataclass(frozen=True)
class Situation:
    """What the parameters of a measure are made from, beside its options.

    `chosen` are the layers asked for, `inputs` how many numbers a row of the probe has, `stacked` says that any number
    of checkpoints is one network (a chain), `given` holds the options of measures that were set, `notice` prints
    a sentence for the user. `thresholds` returns those at which the first and the last checkpoint differ most.
    """

    series: Series
    layers: Sequence[Layer]
    chosen: Sequence[int]
    inputs: int
    stacked: bool
    given: Mapping[str, Any]
    notice: Callable[[str], None]
    thresholds: Callable[[], tuple[float, ...]]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the work on one checkpoint, by which time and memory are estimated.

    `wanted` are the layers asked for, `layers` all, `inputs` the numbers in a row of the probe, `rows` those the
    measure uses, `weights` the numbers a checkpoint holds; `factor_budget` is how many numbers a block of Jacobians may
    hold.
    """

    wanted: Sequence[Layer]
    layers: Sequence[Layer]
    inputs: int
    rows: int
    weights: int
    factor_budget: int = 0


class Layers(Protocol):
    """Indices of the layers that are wanted, in order, as a list has them.

    A measure that works on one layer after the other goes through them as it does: a scan that shows its progress knows
    from that which one is in hand.
    """

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...

    def __contains__(self, index: object, /) -> bool: ...


class Measure(Protocol):
    """Frozen parameters plus one pure call; a measure is a frozen dataclass that takes its defaults from here.

    Its parameters are fields made by `ibscan.core.option.option`. It is declared by its class and one line in
    `ibscan.measures.MEASURES`; importing its file may cost neither numpy nor torch, which its call imports.
    """

    name: ClassVar[str]
    verb: ClassVar[str]  # the command that carries it out, beside `scan`; empty for all
    quantities: ClassVar[tuple[Quantity, ...]]
    required_keys: ClassVar[tuple[str, ...]]  # keys that every finished call has given
    channel: ClassVar[str] = ""  # its name for --channel; empty unless it is a noisy channel
    draws: ClassVar[bool] = False  # whether numbers depend on the seed beyond the sample of rows
    source: ClassVar[str] = ""
    caveat: ClassVar[str] = ""  # what its numbers do not say
    inapplicable: ClassVar[str] = ""  # why it does not apply to some layers, for `ibscan ls`
    trial: ClassVar[str] = ""  # the quantity that `ibscan ls` tries on one row to see what cannot be measured

    @property
    def at(self) -> At:
        """Whether it measures before or after the activation."""
        return "post"

    @property
    def samples(self) -> int | None:
        """Probe rows at most; None for all."""
        return None

    @property
    def coordinates(self) -> Mapping[str, Sequence[float] | Sequence[str] | Sequence[int]]:
        """Values along the dimensions of its quantities beyond (checkpoint, layer)."""
        return {}

    @property
    def attributes(self) -> Mapping[str, str | int]:
        """Attributes of every variable, beside `at` and `rows`, in which results must agree to be joined."""
        return {}

    def applies_to(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Tell whether it can measure a layer; `names` are those of all layers, in order."""
        return True

    def seconds(self, sizes: Sizes) -> float:
        """Estimate the seconds it takes on one core, forward passes aside."""
        ...

    def memory(self, layer: Layer, sizes: Sizes) -> int:
        """Estimate the bytes it holds while it measures one layer."""
        return VALUE_COPIES * NUMBER * sizes.rows * layer.width

    def __call__(
        self, network: Network, probe: Probe, streams: RandomStreams, layers: Layers | None = None
    ) -> Mapping[str, Estimate]:
        """Measure every stacked checkpoint; return one Estimate (C, L, ...) for each quantity key.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled: they are the population.
            streams: Random numbers.
            layers: Indices of those to measure, None for all; others need not be measured.
        """
        ...
