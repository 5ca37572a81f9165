"""Estimate how much memory a scan needs, layer by layer, from the sizes of the arrays it holds at once."""

from __future__ import annotations

import dataclasses
import math

from ibscan.core.measure import NUMBER
from ibscan.engine.plan import Plan
from ibscan.networks.budget import CHAIN_BUDGETS, MODULE_BUDGETS

__all__ = ["BASE", "layer_memory", "weight_memory"]

# Bytes of Python, torch, scipy and h5py without any data, and of the blocks that all layers share.
BASE = 350 * 2**20


def layer_memory(plan: Plan) -> list[int]:
    """Return the bytes a scan holds while it measures each layer, beside `BASE` and the weights.

    A layer's values of all rows are held at once; Jacobians come in blocks of at least one row.

    Returns:
        Bytes, one number for each of the L layers, right within a factor of about two.
    """
    model, stacked = plan.model, plan.model.max_stacked is None
    device = plan.device.type
    budget = CHAIN_BUDGETS[device].factors if stacked else MODULE_BUDGETS[device].block
    # A chain's first Jacobian is its first weight.
    inputs = min(model.inputs, model.layers[0].width) if stacked else model.inputs
    sizes = [dataclasses.replace(plan.sizes(one), inputs=inputs, factor_budget=budget) for one in plan.measures]
    return [
        max([0, *(one.memory(layer, size) for one, size in zip(plan.measures, sizes, strict=True))])
        for layer in model.layers
    ]


def weight_memory(plan: Plan) -> int:
    """Return the bytes of one checkpoint's weights, held twice: as read, and in the network."""
    tensors = plan.series.checkpoints[0].tensors.values()
    return 2 * NUMBER * sum(math.prod(info.shape) for info in tensors)
