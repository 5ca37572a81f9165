"""Counter-based random numbers, which no order of work can change."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RandomStreams"]


@dataclass(frozen=True)
class RandomStreams:
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
