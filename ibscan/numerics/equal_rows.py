"""Tell whether all rows of an array differ, without sorting whole rows."""

from __future__ import annotations

import torch

from ibscan.numerics.tiling import block_shape, cuts

__all__ = ["all_differ"]


def all_differ(rows: torch.Tensor) -> bool:
    """Return whether all rows differ, from a hash of each, which is far faster than sorting whole rows.

    Args:
        rows: Shape (N, D), float64; 0.0 and -0.0 count as different.

    Returns:
        True if no two rows are equal. False if two are, and hardly ever if none are.

    Example:
        >>> all_differ(torch.eye(3, dtype=torch.float64)), all_differ(torch.ones(2, 3, dtype=torch.float64))
        (True, False)
    """
    # Sums of the rows' bits times odd numbers: integers that wrap around, so the same in any order. Low bits of whole
    # numbers are zero, so the high half of each number is folded onto its low half.
    odd = torch.arange(1, rows.shape[1] + 1, device=rows.device) * 0x9E3779B97F4A7C1 % 2**61 * 2 + 1
    bits = [rows[block].view(torch.int64) for block in cuts(0, len(rows), block_shape(rows.device)[0])]
    hashes = torch.cat([((part ^ part >> 32) * odd).sum(1) for part in bits])
    return len(torch.unique(hashes)) == len(rows)
