"""Memory that is freed and taken again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ibscan.numerics.memory import KEPT

# Twelve blocks at a time, of sizes that change: 100 MiB at most, 6 GiB in all.
COUNT = """
import random
import resource
import torch
from ibscan.numerics.memory import keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed()
draws, before = random.Random(0), faults()
for _ in range(60):
    held = [torch.ones(draws.randrange(2**20, 2**24), dtype=torch.uint8) for _ in range(12)]
    del held
print((faults() - before) * resource.getpagesize())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of one C library")
def test_what_is_freed_is_not_cleared_again_by_the_system() -> None:
    """In a process of its own: what other tests left in the heap decides what of it is given back."""
    pytest.importorskip("resource")
    env = {name: value for name, value in os.environ.items() if name not in KEPT}
    ended = subprocess.run([sys.executable, "-c", COUNT], env=env, capture_output=True, text=True, check=True)
    # About 180 MiB, that is once and some for what lies between blocks; 500 to 800 without.
    assert int(ended.stdout) < 300 * 2**20
