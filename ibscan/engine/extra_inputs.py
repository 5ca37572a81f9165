"""Arrays of the probe that a model's forward takes by name beside x, such as a mask."""

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

__all__ = ["ExtraInputs", "extra_inputs"]

# Rows are float64, which is exact for integers up to this.
LARGEST_EXACT = 2**53
MOST_NAMED = 12


@dataclass(frozen=True)
class ExtraInputs:
    """Arrays (N, ...) by the argument they are passed as, their names in the probe (`keys`), and notices."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def packing(self, x: Array) -> Packing | None:
        """Return how a row holds x and the arrays one after the other, None if there are none."""
        return Packing.of(x, self.arrays) if self.arrays else None

    def rows(self, x: Array, count: int | None = None) -> Array:
        """Return the first `count` rows of x (all by default), each followed by its entries of the arrays."""
        packing = self.packing(x)
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        return x[:count] if packing is None else packing.packed(x[:count], arrays)

    def applied_to(self, probe: Probe) -> Probe:
        """Return the probe with the arrays in its rows and its hash: rows that differ in them are different inputs."""
        if not self.arrays:
            return probe
        digest = hashlib.sha256(probe.sha256.encode())
        for name, array in self.arrays.items():
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return replace(probe, x=self.rows(probe.x), sha256=digest.hexdigest(), beside=None)


def extra_inputs(model: nn.Module | None, probe: Probe) -> ExtraInputs:
    """Return the arrays of a probe that a model takes by name, with a notice that names all others.

    Args:
        model: None for a plain chain, which takes x alone.
        probe: As it was read.

    Raises:
        InputError: An array that the model takes cannot be read, or is not made of finite numbers.
    """
    beside = probe.beside
    if beside is None:
        return ExtraInputs()
    arguments = () if model is None else sorted(named_arguments(model))
    arrays: dict[str, Array] = {}
    notices = []
    unused = dict(beside.shapes)
    for name in arguments:
        key = beside.arguments.get(name)
        if key is None:
            continue
        shape = unused.pop(key)
        if not shape or shape[0] != len(probe.x):
            notices.append(
                f"{beside.file}: {key} of shape {shape} has not one entry for each of the {len(probe.x)} rows, and is "
                f"not fed to the model's argument {name}."
            )
            continue
        arrays[name] = _checked(beside, key, name)
    keys = {name: beside.arguments[name] for name in arrays}
    if keys:
        named = ", ".join(keys.values())
        notices.append(f"{beside.file}: fed to the model's arguments of these names, row by row: {named}.")
    if unused:
        why = "a plain chain takes x alone" if model is None else "the model is fed nothing by these names"
        named = listed([f"{key} {shape}" for key, shape in unused.items()], MOST_NAMED)
        notices.append(f"{beside.file}: not used, as {why}: {named}.")
    return ExtraInputs(arrays, keys, tuple(notices))


def _checked(beside: Beside, key: str, name: str) -> Array:
    array = beside.read(key)
    where = f"{beside.file}: {key}, fed to the model's argument {name}"
    advice = f"mend it, or leave it out with #{key}=."
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where}, is of type {array.dtype}, but real numbers were expected; {advice}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where}, holds NaN or infinities, but finite numbers were expected; {advice}")
    if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > LARGEST_EXACT:
        raise InputError(f"{where}, holds integers beyond 2^53, which are not read exactly; {advice}")
    return array
