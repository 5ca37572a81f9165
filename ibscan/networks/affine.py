"""Which layers are their weight: whether what a layer makes is its weight times what it is fed, plus its bias.

A subclass may add, scale, mask or quantise, and a hook may change what goes in or comes out. Nothing but the numbers
says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ibscan.core.network import Weight
from ibscan.networks.trace.graph import LAYERS
from ibscan.networks.trace.trees import tensors

__all__ = ["affine_calls", "weight_of"]

# torch's own classes with the functions that make their products.
CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Mapping[Any, Callable[..., torch.Tensor]] = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}
# Roundings beside those of a sum: of the bias, and of a sum made in parts.
SPARE = 8


def affine_calls(model: nn.Module, run: Callable[[], Any]) -> list[bool]:
    """Return of every call of a Linear or a convolution, in the order they begin, whether it is its weight's product.

    Args:
        model: In eval mode.
        run: Makes one forward pass.

    Returns:
        One bool a call; True where output and product agree up to the rounding of any order of summation.
    """
    found: list[bool] = []
    inside: list[tuple[int, torch.Tensor | None]] = []

    def entered(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
        fed = next(tensors((args, kwargs)), None)
        # A copy: the layer may change its input in place.
        inside.append((len(found), None if fed is None else fed.clone()))
        found.append(False)

    def left(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:  # noqa: ANN401
        call, fed = inside.pop()
        made = next(tensors(output), None)
        if fed is not None and made is not None:
            found[call] = _is_product(module, fed, made, (*args[1:], *kwargs.values()))

    handles = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            # After every hook of the model's own: what they change is part of what is fed, or of what is made.
            handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
            handles.append(module.register_forward_hook(left, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def weight_of(module: Any, width: int) -> Weight:  # noqa: ANN401
    """Return the weight of a Linear or convolution that makes `width` numbers of a row."""
    weight = module.weight.detach().to(torch.float64)
    matrix = weight.flatten(1).unsqueeze(0)
    if isinstance(module, nn.Linear):
        return Weight(matrix, width // weight.shape[0])
    # A transposed convolution, or one of groups, is no product of this matrix with parts of what is fed.
    whole = not module.transposed and module.groups == 1
    return Weight(matrix, width // weight.shape[0] if whole else None, separate=False)


def _is_product(module: Any, fed: torch.Tensor, made: torch.Tensor, rest: Sequence[Any]) -> bool:  # noqa: ANN401
    try:
        weight, bias = module.weight.detach(), module.bias
        product = _product(module, fed, weight, bias, rest)
    except (RuntimeError, TypeError, ValueError):  # another shape, or another argument, than a plain layer takes
        return False
    if product.shape != made.shape:
        return False
    if torch.equal(product, made):
        return True
    size = _product(module, fed.abs(), weight.abs(), None if bias is None else bias.abs(), rest)
    terms = weight.numel() // weight.shape[getattr(module, "transposed", False)]
    error = (terms + SPARE) * torch.finfo(product.dtype).eps * size
    finite = torch.isfinite(product) & torch.isfinite(error)
    return bool(torch.where(finite, (product - made).abs() <= error, ~torch.isfinite(made)).all())


def _product(
    module: Any,  # noqa: ANN401
    fed: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rest: Sequence[Any],
) -> torch.Tensor:
    """Return what torch's own class makes of these, whatever a subclass does."""
    if isinstance(module, nn.Linear):
        return functional.linear(fed, weight, bias)
    for kind, function in TRANSPOSED.items():
        if isinstance(module, kind):
            sizes = (module.stride, module.padding, module.kernel_size, len(module.kernel_size), module.dilation)
            padding = kind._output_padding(module, fed, next(iter(rest), None), *sizes)
            return function(fed, weight, bias, module.stride, module.padding, padding, module.groups, module.dilation)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    made: torch.Tensor = kind._conv_forward(module, fed, weight, bias)
    return made
