"""Trace a model, and check that it can be measured: that it is a deterministic function of each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.core.records import Array
from ibscan.errors import InputError
from ibscan.networks.hooked import layer_hooks
from ibscan.networks.module import Module
from ibscan.networks.packing import Packing, model_inputs
from ibscan.networks.trace.graph import Trace
from ibscan.networks.trace.recording import record
from ibscan.networks.trace.replay import forward_context

__all__ = ["traced_network"]

# Relative difference by rounding allowed between two passes over the same rows.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


def traced_network(
    model: nn.Module,
    x: Array,
    extra: Sequence[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    packing: Packing | None = None,
) -> Module:
    """Trace a model on a few rows, check that it is a function of each row alone, and return it as a network.

    Args:
        model: Loaded, in eval mode.
        x: A few rows of the probe, shape (n, ...), at least one.
        extra: Paths of modules to measure beside the layers.
        device: Where.
        dtype: Of the forward pass.
        packing: How the rows hold the arguments beside x.

    Raises:
        InputError: The model raises on these rows, is random, or mixes rows.
    """
    rows = torch.as_tensor(x)
    if len(rows) == 1:  # the check needs a second row
        rows = torch.cat([rows, rows])
    with user_code("the model"):
        # Moved in place, not copied.
        model = model.to(device)
    try:
        trace = _trace(model, model_inputs(rows.to(device), packing, dtype), extra)
    except InputError as error:
        if dtype is torch.float64 and _runs(model, model_inputs(rows.to(device), packing, torch.float32), extra):
            model.to(dtype)
            raise InputError(f"{error} It runs in float32: add --dtype float32.") from None
        raise
    network = Module(model, trace, device, dtype, packing)
    _check_function(network, rows.to(device))
    return network


def _trace(model: nn.Module, given: tuple[torch.Tensor, dict[str, torch.Tensor]], extra: Sequence[str]) -> Trace:
    rows, named = given
    with torch.no_grad(), user_code("the model"), forward_context(rows.dtype):
        return record(model.to(rows.dtype), rows, extra, named=named)


def _runs(model: nn.Module, given: tuple[torch.Tensor, dict[str, torch.Tensor]], extra: Sequence[str]) -> bool:
    try:
        _trace(model, given, extra)
    except InputError:
        return False
    return True


def _check_function(network: Module, rows: torch.Tensor) -> None:
    def values(block: torch.Tensor) -> list[torch.Tensor]:
        """Return the output, then every layer's pre and post."""
        found: dict[tuple[str, int], torch.Tensor] = {}

        def keep(at: str, layer: int, value: torch.Tensor) -> torch.Tensor:
            found[at, layer] = value.clone()
            return value

        trace = network.trace
        hooks = [*layer_hooks(trace.pre, partial(keep, "pre")), *layer_hooks(trace.post, partial(keep, "post"))]
        with torch.no_grad():
            output = network.hooked.run(block, hooks)
        assert output is not None
        return [output, *(found[at, layer] for layer in range(len(network.layers)) for at in ("pre", "post"))]

    once, again = values(rows), values(rows)
    if not all(_close(a, b, network.dtype) for a, b in zip(once, again, strict=True)):
        raise InputError(
            "two passes of the model over the same rows differ: its forward pass is random (dropout called with "
            "training=True?) although it is in eval mode. Only a deterministic network can be measured."
        )
    mixed = (
        "the model mixes the rows of a batch (batch statistics in eval mode?), or its tensors do not have the rows "
        "first (batch_first=False?). What is measured here is a function of each row alone."
    )
    try:
        alone = [values(row) for row in torch.split(rows, 1)]
    except InputError as error:
        raise InputError(f"a row cannot be run alone ({str(error).rstrip('.')}): {mixed}") from error
    for k, (whole, parts) in enumerate(zip(once, zip(*alone, strict=True), strict=True)):
        what = "the model's output" if k == 0 else f"'{network.layers[(k - 1) // 2].name}'"
        if whole.numel() != sum(part.numel() for part in parts):
            raise InputError(
                f"{what} has shape {tuple(whole.shape)} for {len(rows)} rows and {tuple(parts[0].shape)} for one; "
                "expected as many numbers for each row."
            )
        singly = torch.cat([part.reshape(1, -1) for part in parts])
        if not _close(whole.reshape(len(rows), -1), singly, network.dtype):
            raise InputError(f"{what} is not the same for a row alone and for the row among others: {mixed}")


def _close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    # A post may be boolean or integer.
    a, b = (one if one.is_floating_point() or one.is_complex() else one.to(torch.float64) for one in (a, b))
    scale = float(torch.nan_to_num(a).abs().max()) if a.numel() else 0.0
    tolerance = ROUNDING[dtype]
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
