"""What a model is fed beside x: arrays of the probe that its forward takes by their names, a mask say, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from ibscan.core.records import Array, Beside, Probe
from ibscan.core.text import listed
from ibscan.errors import InputError
from ibscan.networks.packing import Packing, named_arguments

__all__ = ["Fed", "fed_beside"]

# Beyond this float64, in which rows travel, has not every integer.
LARGEST = 2**53
MOST_NAMED = 12


@dataclass(frozen=True)
class Fed:
    """Arrays by the names of the arguments they are for, one entry a row, and what is to be said of them and others.

    `keys` are their names in the probe, by argument.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def packing(self, x: Array) -> Packing | None:
        """Return how rows hold the arrays behind x, None where there are none."""
        return Packing.of(x, self.arrays) if self.arrays else None

    def rows(self, x: Array, most: int | None = None) -> Array:
        """Return the first rows of x, all by default, with the arrays behind them."""
        packing = self.packing(x)
        cut = {name: array[:most] for name, array in self.arrays.items()}
        return x[:most] if packing is None else packing.packed(x[:most], cut)

    def probed(self, probe: Probe) -> Probe:
        """Return the probe with the arrays in its rows and in its hash: rows that differ in them are two inputs."""
        if not self.arrays:
            return probe
        digest = hashlib.sha256(probe.sha256.encode())
        for name, array in self.arrays.items():
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return replace(probe, x=self.rows(probe.x), sha256=digest.hexdigest(), beside=None)


def fed_beside(model: nn.Module | None, probe: Probe) -> Fed:
    """Return the arrays of a probe that a model takes by name; every other one is named in a notice.

    Args:
        model: Given as code; None for a plain chain, which takes x alone.
        probe: As it was read.

    Raises:
        InputError: An array that the model takes cannot be read, or is not made of finite numbers.
    """
    beside = probe.beside
    if beside is None:
        return Fed()
    taken = {} if model is None else {name: beside.arguments.get(name) for name in sorted(named_arguments(model))}
    arrays: dict[str, Array] = {}
    notices = []
    rest = dict(beside.shapes)
    for name, key in taken.items():
        if key is None:
            continue
        shape = rest.pop(key)
        if not shape or shape[0] != len(probe.x):
            notices.append(
                f"{beside.file}: {key} of shape {shape} has not one entry for each of the {len(probe.x)} rows, and is "
                f"not fed to the model's argument {name}."
            )
            continue
        arrays[name] = _checked(beside, key, name)
    if arrays:
        said = ", ".join(beside.arguments[name] for name in arrays)
        notices.append(f"{beside.file}: fed to the model's arguments of these names, row by row: {said}.")
    if rest:
        why = "a plain chain takes x alone" if model is None else "the model is fed nothing by these names"
        arrays_left = listed([f"{key} {shape}" for key, shape in rest.items()], MOST_NAMED)
        notices.append(f"{beside.file}: not used, as {why}: {arrays_left}.")
    return Fed(arrays, {name: beside.arguments[name] for name in arrays}, tuple(notices))


def _checked(beside: Beside, key: str, name: str) -> Array:
    array = beside.read(key)
    where = f"{beside.file}: {key}, fed to the model's argument {name}"
    out = f"mend it, or leave it out with #{key}=."
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where}, is of type {array.dtype}, but real numbers were expected; {out}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where}, holds NaN or infinities, but finite numbers were expected; {out}")
    if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > LARGEST:
        raise InputError(f"{where}, holds integers beyond 2^53, which are not read exactly; {out}")
    return array
