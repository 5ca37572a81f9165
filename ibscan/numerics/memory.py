"""How many numbers may be held at once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

__all__ = ["available_floats", "free_bytes", "keep_freed"]

# Of what is free, what one block may take: its products and LAPACK's copies need the rest.
SHARE = 8
LEAST = 2**16
# Settings of glibc's mallopt by the variables that set them from outside: freed bytes at the end of the heap that stay
# with the process (M_TRIM_THRESHOLD), and from what size on a block is no part of the heap (M_MMAP_THRESHOLD; 32 MiB is
# the largest it takes).
KEPT = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**28), "MALLOC_MMAP_THRESHOLD_": (-3, 2**25)}


def available_floats(device: torch.device, most: int) -> int:
    """Return how many float64 numbers a block may hold: `most`, or less where memory is short.

    A power of two below it, so that runs that differ a little in what is free cut their work alike.

    Args:
        device: Where the block will live.
        most: More is not asked for, however much is free.
    """
    room = max(LEAST, free_bytes(device) // (8 * SHARE))
    return most if room >= most else 2 ** (room.bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes this process may still take on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free()


@functools.cache
def keep_freed() -> None:
    """Have what is freed stay with this process, up to 256 MiB, for the next operation to take; once is enough.

    glibc returns large blocks to the system, which clears every page of the next: a sixth of the time of small
    networks, whose operations are short, and a third of that of convolutional ones. What the environment sets stays as
    it is set, and other libraries are left alone.

    Source:
        The GNU C Library, mallopt(3).
    """
    if sys.platform == "linux":
        # musl has no such function; a static build has no library to ask.
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for variable, (setting, size) in KEPT.items():
                if variable not in os.environ:
                    library.mallopt(setting, size)


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
