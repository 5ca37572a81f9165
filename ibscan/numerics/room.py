"""How many numbers may be held at once, and whether an error says that there were too many."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["is_out_of_memory", "keep_freed", "numbers_at_hand"]

# Of what is free, what one block may take: its products and LAPACK's copies need the rest.
SHARE = 8
LEAST = 2**16
# Bytes of the largest block by which glibc raises its limits (32 MiB), less room for what it adds to a block.
LARGEST = 2**25 - 2**16


def numbers_at_hand(device: torch.device, most: int) -> int:
    """Return how many float64 numbers a block may hold: `most`, or less where memory is short.

    A power of two below it, so that runs that differ a little in what is free cut their work alike.

    Args:
        device: Where the block will live.
        most: More is not asked for, however much is free.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free()
    room = max(LEAST, free // (8 * SHARE))
    return most if room >= most else 2 ** (room.bit_length() - 1)


def keep_freed() -> None:
    """Have what is freed stay with this process, up to some 64 MiB, for the next operation to take.

    glibc returns large blocks to the system, which clears every page of the next: a sixth of the time of small
    networks, whose operations are short. Freeing one block raises the size that it keeps; the block itself is never
    written to, so it costs next to nothing, and with other libraries does nothing.

    Source:
        The GNU C Library, mallopt(3): M_MMAP_THRESHOLD is adjusted dynamically, and M_TRIM_THRESHOLD with it.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of torch or Python says that memory did not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free() -> int:
    """Return the bytes this process may still take, by the machine and by its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")] if hasattr(os, "sysconf") else []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        # What the page cache would give back counts as free.
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or found
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # no Linux, no control group, or "max"
    return max(0, min(found, default=2**31))
