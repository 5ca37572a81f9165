"""How much memory a scan would hold, layer by layer: an estimate from the sizes of what is kept at once."""

from __future__ import annotations

import dataclasses
import math

from ibscan.core.measure import NUMBER
from ibscan.engine.plan import Plan
from ibscan.networks import chain
from ibscan.networks.jacobians import sweeps

__all__ = ["BASE", "layer_memory", "weight_memory"]

# Python, torch, scipy and h5py without any data, bytes; and the blocks all layers share.
BASE = 350 * 2**20


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
    # A chain's first Jacobian is its first weight.
    inputs = min(model.inputs, model.layers[0].width) if stacked else model.inputs
    sizes = [dataclasses.replace(plan.sizes(one), inputs=inputs, factor_budget=budget) for one in plan.measures]
    return [
        max([0, *(one.memory(layer, size) for one, size in zip(plan.measures, sizes, strict=True))])
        for layer in model.layers
    ]


def weight_memory(plan: Plan) -> int:
    """Return the bytes that the weights of what is measured at a time take: as read, and as the network's own.

    Args:
        plan: What would be measured.
    """
    tensors = plan.series.checkpoints[0].tensors.values()
    return 2 * NUMBER * sum(math.prod(info.shape) for info in tensors)
