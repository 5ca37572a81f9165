"""Memory that is freed and taken again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Bytes of a block, how many are held at once, how often.
BYTES, HELD, TIMES = 2**24, 8, 6
COUNT = f"""
import resource
import torch
from ibscan.numerics.room import keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed()
before = faults()
for _ in range({TIMES}):
    held = [torch.ones({BYTES}, dtype=torch.uint8) for _ in range({HELD})]
    del held
print((faults() - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of one C library")
def test_what_is_freed_is_not_cleared_again_by_the_system():
    """In a process of its own: what other tests left in the heap decides what of it is given back."""
    pytest.importorskip("resource")
    ended = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    # Once for all, and some for what lies between blocks; not once each time.
    assert int(ended.stdout) < 2 * HELD * BYTES
