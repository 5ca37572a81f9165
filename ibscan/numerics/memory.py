"""Ask how much memory is free, and let the process keep what it frees."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

__all__ = ["available_floats", "free_bytes", "keep_freed"]

# One block may take this fraction (1/8) of the free memory: its products and LAPACK's copies need the rest.
SHARE = 8
LEAST = 2**16
# Parameters of glibc's mallopt with their values, by the environment variable that sets them: bytes of freed memory
# kept at the end of the heap (M_TRIM_THRESHOLD), and the size from which a block lies outside it (M_MMAP_THRESHOLD, at
# most 32 MiB).
KEPT = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**28), "MALLOC_MMAP_THRESHOLD_": (-3, 2**25)}


def available_floats(device: torch.device, most: int) -> int:
    """Return how many float64 numbers a block may hold: `most`, or less where memory is short.

    Less is rounded down to a power of two, so that runs with slightly different free memory cut their work alike.

    Args:
        device: Where the block will live.
        most: Largest number wanted.
    """
    available = max(LEAST, free_bytes(device) // (8 * SHARE))
    return most if available >= most else 2 ** (available.bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes this process may still allocate on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free()


@functools.cache
def keep_freed() -> None:
    """Make glibc keep up to 256 MiB of freed memory for the next allocation (mallopt); further calls do nothing.

    By default glibc returns large blocks to the system, which clears every page of the next one: a sixth of the time of
    small networks, a third of that of convolutional ones. Values set in the environment are respected.

    Source:
        The GNU C Library, mallopt(3).
    """
    if sys.platform == "linux":
        # musl has no mallopt, and a static build has no library to load.
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for variable, (setting, size) in KEPT.items():
                if variable not in os.environ:
                    library.mallopt(setting, size)


def _free() -> int:
    """Return the bytes this process may still allocate, by the machine and by its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")] if hasattr(os, "sysconf") else []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        # MemAvailable counts the page cache as free.
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or found
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # no Linux, no control group, or "max"
    return max(0, min(found, default=2**31))
