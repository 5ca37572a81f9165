"""What a user may ask for: one frozen description, checked once, whether it was typed or called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Protocol

from ibscan.errors import UsageError
from ibscan.types import At

__all__ = ["CHANNELS", "IDLE_SECONDS", "PARTIAL", "Reporter", "Request", "Silent", "parse_range"]

# Exit code of a command that did part of what was asked.
PARTIAL = 4
Verb = Literal["rank", "mi", "cluster", "scan"]
EPS = (0.001, 0.01, 0.1)
CHANNELS = ("network", "readout")
# How long a folder that is followed may have nothing new: longer than most epochs take.
IDLE_SECONDS = 600.0


@dataclass(frozen=True)
class Request:
    """Everything a scan verb may be told; fields are named like the options of the command line.

    Raises:
        UsageError: A number out of its range, named as the option that sets it.
    """

    verb: Verb
    paths: tuple[Path, ...] = (Path(),)
    probe: str | None = None
    probe_arg: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_arg: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    state_key: str | None = None
    chain: str | None = None
    layers: tuple[str, ...] = ()
    at: At | None = None
    epochs: str | None = None
    samples: int | Literal["all"] | None = None
    from_layer: str | None = None
    input_dims: int | None = None
    eps: tuple[float, ...] = EPS
    rel_eps: tuple[float, ...] = EPS
    spectrum_rows: int | Literal["all"] = 64
    noise: tuple[float, ...] = ()
    rel_noise: tuple[float, ...] = ()
    channel: tuple[str, ...] = ()
    bins: tuple[int, ...] = ()
    bin_width: tuple[float, ...] = ()
    bin_range: tuple[float, float] | None = None
    tolerance: float = 0.05
    max_replicas: int = 4096
    max_draws: int = 65536
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float64"
    seed: int = 0
    output: Path | None = None
    resume: bool = True
    force: bool = False
    strict: bool = False
    follow: bool = False
    idle: float | None = None
    trust: bool = False
    run_script: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("eps", "rel_eps", "noise", "rel_noise", "bin_width"):
            for number in getattr(self, name):
                _positive(f"--{name.replace('_', '-')}", number)
        _positive("--tolerance", self.tolerance)
        if self.idle is not None:
            _positive("--idle", self.idle)
            if not self.follow:
                raise UsageError(f"--idle {self.idle:g}: says when following a folder ends; add --follow.")
        if self.follow and self.output is None:
            raise UsageError("--follow keeps what it measures in a file; name one with --output.")
        for name, least in (
            ("bins", 1),
            ("samples", 1),
            ("spectrum_rows", 1),
            ("input_dims", 1),
            ("max_draws", 2),
            ("max_replicas", 2),
            ("seed", 0),
        ):
            given = getattr(self, name)
            for number in given if isinstance(given, tuple) else (given,):
                if number in (None, "all"):
                    continue
                if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
                    raise UsageError(f"--{name.replace('_', '-')} {number}: expected a whole number >= {least}.")
        if self.bin_range is not None and not -math.inf < self.bin_range[0] < self.bin_range[1] < math.inf:
            low, high = self.bin_range
            raise UsageError(f"--bin-range {low}:{high}: expected LO:HI, finite, with LO < HI.")
        if self.bin_range is not None and self.bin_width and not self.bins:
            raise UsageError("--bin-range is the range of --bins, and only --bin-width was asked for; add --bins K.")
        for name, given, allowed in (
            ("--at", self.at, ("pre", "post", None)),
            ("--dtype", self.dtype, ("float32", "float64")),
            ("--weights", self.weights, ("raw", "ema", None)),
        ):
            if given not in allowed:
                raise UsageError(f"{name} {given}: expected {' or '.join(a for a in allowed if a)}.")
        if self.rel_noise and self.channel and "readout" not in self.channel:
            raise UsageError("--rel-noise is of the read-out channel, and only --channel network was asked for.")
        for channel in self.channel:
            if channel not in CHANNELS:
                raise UsageError(f"--channel {channel}: expected {' or '.join(CHANNELS)}.")


def parse_range(text: str) -> tuple[float, float]:
    """Read LO:HI.

    Raises:
        UsageError: It is no pair of numbers.
    """
    low, _, high = text.partition(":")
    try:
        if "_" in text:  # Python would take 1_0 for 10
            raise ValueError
        return float(low), float(high)
    except ValueError:
        raise UsageError(f"--bin-range {text}: expected LO:HI, such as -1:1.") from None


def _positive(option: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, Real) or not (math.isfinite(number) and number > 0):
        raise UsageError(f"{option} {number}: expected a finite number > 0.")


class Reporter(Protocol):
    """What a run tells while it goes: the command line prints it, Python code may ignore it."""

    def notice(self, sentence: str) -> None:
        """Say something the user should know."""
        ...

    def problem(self, sentence: str) -> None:
        """Say something that makes the result partial: also said when notices are not wanted."""
        ...

    def started(self, total: int) -> None:
        """So many checkpoints are to be measured."""
        ...

    def advanced(self, name: str) -> None:
        """One more is finished."""
        ...


@dataclass(frozen=True)
class Silent:
    """A reporter that keeps everything to itself."""

    def notice(self, sentence: str) -> None:
        """Say nothing."""

    def problem(self, sentence: str) -> None:
        """Say nothing."""

    def started(self, total: int) -> None:
        """Say nothing."""

    def advanced(self, name: str) -> None:
        """Say nothing."""
