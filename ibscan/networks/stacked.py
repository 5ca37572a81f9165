"""Stack the tensors of several checkpoints into one chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ibscan.core.records import Layer
from ibscan.networks.activations import ACTIVATIONS
from ibscan.networks.chain import Chain
from ibscan.networks.resolve import ChainSpec

__all__ = ["stacked_chain"]


def stacked_chain(
    spec: ChainSpec,
    order: Sequence[str],
    states: Sequence[Mapping[str, torch.Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Chain:
    """Stack the tensors of C checkpoints into one chain.

    Args:
        spec: Activations.
        order: Layer names in order of call, as `chain_order` gives them.
        states: One mapping from state-dict name to tensor for each checkpoint.
        device: Where to measure.
        dtype: Of the forward pass; results are float64.
    """

    def stack(key: str) -> torch.Tensor:
        cast = [state[key].to(dtype).contiguous().unsqueeze(0) for state in states]
        # A single checkpoint may be large: do not copy it.
        return (torch.cat(cast) if len(cast) > 1 else cast[0]).to(device)

    prefixes = [f"{name}." if name else "" for name in order]
    weights = tuple(stack(f"{prefix}weight") for prefix in prefixes)
    biases = tuple(stack(f"{prefix}bias").unsqueeze(1) if f"{prefix}bias" in states[0] else None for prefix in prefixes)
    spans = [ACTIVATIONS[spec.activation].span] * (len(order) - 1)
    spans.append((0.0, 1.0) if spec.output == "softmax" else ACTIVATIONS[spec.output].span)
    layers = tuple(
        Layer(name or "linear", "Linear", weight.shape[1], span, first=k == 0, output=k + 1 == len(order))
        for k, (name, weight, span) in enumerate(zip(order, weights, spans, strict=True))
    )
    exact = None
    if dtype is not torch.float64:
        exact = stacked_chain(spec, order, states, device=device, dtype=torch.float64)
    return Chain(layers, weights, biases, spec.activation, spec.output, exact)
