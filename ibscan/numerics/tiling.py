"""Cut work into tiles and run them on all cores, with flat memory and the same bits for any number of cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["aligned", "block_shape", "cuts", "mapped", "tiles"]

T = TypeVar("T")
Piece = TypeVar("Piece")


def cuts(start: int, stop: int, size: int) -> list[slice]:
    """Return consecutive slices from `start` to `stop` of length `size` (at least 1); the last may be shorter.

    Example:
        >>> cuts(0, 5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, size)
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def tiles(rows: int, columns: int, device: torch.device) -> list[slice]:
    """Return consecutive slices of `rows`, so that a (slice, columns) block of float64 stays small.

    On the CPU a block of 2^18 numbers stays in one core's cache; a GPU needs 2^26 to be busy.

    Example:
        >>> tiles(5, 2**17, torch.device("cpu"))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return cuts(0, rows, (2**18 if device.type == "cpu" else 2**26) // max(1, columns))


def aligned(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a copy of an array in torch's own memory, which is aligned to 64 bytes.

    The alignment of numpy's memory varies from run to run, and MKL groups the terms of its sums by it: the same numbers
    would not give the same bits.
    """
    return torch.tensor(array)


def block_shape(device: torch.device) -> tuple[int, int]:
    """Return rows and columns of a block of pairs: one that fits a core's cache, or keeps a GPU busy."""
    return (256, 1024) if device.type == "cpu" else (2**13, 2**13)


def mapped(function: Callable[[Piece], T], pieces: Sequence[Piece], device: torch.device) -> list[T]:
    """Return the function's value at every piece, in order; on the CPU with one thread per core.

    If torch splits every small operation instead, each ends in a barrier that waits for descheduled threads: thirty
    times slower on two cores shared with another process.

    Args:
        function: Pure, or writing only to rows of its own.
        pieces: What to apply it to.
        device: Where the tensors live; one thread keeps a GPU busy.
    """
    workers = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    if workers <= 1:
        return [function(piece) for piece in pieces]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Set in each worker too, as OpenMP keeps the number per thread: a BLAS that splits a sum on some calls only does
    # not give the same bits twice.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(function, pieces))
    finally:
        # After an exception or a signal, start no more pieces.
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
