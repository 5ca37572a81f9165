"""Memory that is freed and taken again."""

from __future__ import annotations

import platform

import pytest
import torch

from ibscan.numerics.room import keep_freed

# Bytes of a block, how many are held at once, how often.
BYTES, HELD, TIMES = 2**23, 4, 6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of one C library")
def test_what_is_freed_is_not_cleared_again_by_the_system():
    resource = pytest.importorskip("resource")

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep_freed()
    before = faults()
    for _ in range(TIMES):
        held = [torch.ones(BYTES, dtype=torch.uint8) for _ in range(HELD)]
        del held
    # Once for all, and some for what lies between blocks; not once each time.
    assert faults() - before < 2 * HELD * BYTES / resource.getpagesize()
