"""How much memory a scan would hold, layer by layer: an estimate from the sizes of what is kept at once."""

from __future__ import annotations

import math

from ibscan.measures.local_rank import LocalRank
from ibscan.networks import chain, sweeps
from ibscan.planning import Plan

__all__ = ["BASE", "layer_memory", "weight_memory"]

# Python, torch, scipy and h5py without any data, bytes; and the blocks all layers share.
BASE = 350 * 2**20
NUMBER = 8
# A layer's values, as passed, collected, distinct, decomposed and in the order of their tree, and a draw about each;
# Jacobians, their product and its SVD.
VALUE_COPIES, FACTOR_COPIES = 12, 3


def layer_memory(plan: Plan) -> list[int]:
    """Return for every layer of the model the bytes a scan holds while it measures it, without what it always holds.

    Values of all rows of one layer are there at once; Jacobians come in blocks of rows, of one row at least.

    Args:
        plan: What would be measured.

    Returns:
        Bytes, one number a layer; within a factor of two or so of what is seen.
    """
    model, stacked = plan.model, plan.model.most is None
    budget = chain.FACTOR_BUDGET if stacked else sweeps.BLOCK_BUDGET[plan.device.type]
    directions = min(model.inputs, model.layers[0].width) if stacked else model.inputs
    found = []
    for layer in model.layers:
        held = [0]
        for measure in plan.measures:
            rows = plan.rows(measure)
            if isinstance(measure, LocalRank):
                one = layer.width * (measure.directions or directions)
                held.append(FACTOR_COPIES * NUMBER * max(one, min(budget, rows * one)))
            else:
                held.append(VALUE_COPIES * NUMBER * rows * layer.width)
        found.append(max(held))
    return found


def weight_memory(plan: Plan) -> int:
    """Return the bytes that the weights of what is measured at a time take: as read, and as the network's own.

    Args:
        plan: What would be measured.
    """
    tensors = plan.series.checkpoints[0].tensors.values()
    return 2 * NUMBER * sum(math.prod(info.shape) for info in tensors)
