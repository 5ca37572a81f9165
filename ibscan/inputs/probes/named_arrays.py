"""Define the result of all readers of probe files, and check the size limit that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ibscan.core.records import Array
from ibscan.errors import InputError
from ibscan.inputs.probes.naming import Shapes

__all__ = ["MAX_ARRAY_BYTES", "NamedArrays", "Pick", "check_size"]

MAX_ARRAY_BYTES = 4 << 30


@dataclass(frozen=True)
class NamedArrays:
    """Shapes by name, and the arrays that were picked from them."""

    shapes: Shapes
    picked: Mapping[str, Array]


Pick = Callable[[Shapes], Sequence[str]]


def check_size(shape: Sequence[int], itemsize: int, key: str, name: str) -> None:
    """Refuse an array that takes more memory than a probe may.

    Raises:
        InputError: It is larger than `MAX_ARRAY_BYTES`.
    """
    # Ignore sizes of 0: numpy refuses even 0 rows of 2^64 numbers.
    size = math.prod(filter(None, shape)) * itemsize
    if size > MAX_ARRAY_BYTES:
        raise InputError(
            f"{name}: array {key!r} of shape {tuple(shape)} takes {size} bytes, at most {MAX_ARRAY_BYTES} are read; "
            "save fewer rows."
        )
