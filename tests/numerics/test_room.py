"""Memory that is freed and taken again."""

from __future__ import annotations

import platform

import pytest
import torch

from ibscan.numerics.room import keep_freed

BYTES = 2**24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of one C library")
def test_what_is_freed_is_not_cleared_again_by_the_system():
    resource = pytest.importorskip("resource")

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep_freed()
    torch.ones(BYTES, dtype=torch.uint8)
    before = faults()
    torch.ones(BYTES, dtype=torch.uint8)
    assert faults() - before < BYTES / resource.getpagesize() / 2
