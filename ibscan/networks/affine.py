"""Find the layers whose output is exactly their weight times their input plus their bias.

A subclass may add, scale, mask or quantise, and a hook may change input or output: only the numbers can tell.
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

# torch's convolutions, and the functions of the transposed ones.
CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Mapping[Any, Callable[..., torch.Tensor]] = {
    nn.ConvTranspose1d: functional.conv_transpose1d,
    nn.ConvTranspose2d: functional.conv_transpose2d,
    nn.ConvTranspose3d: functional.conv_transpose3d,
}
# Roundings allowed beside those of the sum itself: of the bias, and of partial sums.
SPARE = 8


def affine_calls(model: nn.Module, run: Callable[[], Any]) -> list[bool]:
    """Return for every call of a Linear or a convolution, in order, whether its output is W input + b.

    Args:
        model: In eval mode.
        run: Runs one forward pass.

    Returns:
        One bool a call; True where output and product agree up to the rounding of any order of summation.
    """
    found: list[bool] = []
    inside: list[tuple[int, torch.Tensor | None]] = []

    def entered(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
        given = next(tensors((args, kwargs)), None)
        # Clone: the layer may change its input in place.
        inside.append((len(found), None if given is None else given.clone()))
        found.append(False)

    def left(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:  # noqa: ANN401
        call, given = inside.pop()
        tensor = next(tensors(output), None)
        if given is not None and tensor is not None:
            found[call] = _is_product(module, given, tensor, (*args[1:], *kwargs.values()))

    handles = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            # Registered last, so that what the model's own hooks change is part of input and output.
            handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
            handles.append(module.register_forward_hook(left, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def weight_of(module: Any, width: int) -> Weight:  # noqa: ANN401
    """Return the weight of a Linear or convolution with `width` outputs a row."""
    weight = module.weight.detach().to(torch.float64)
    matrix = weight.flatten(1).unsqueeze(0)
    if isinstance(module, nn.Linear):
        return Weight(matrix, width // weight.shape[0])
    # A transposed or grouped convolution is no product of this matrix with patches of the input.
    whole = not module.transposed and module.groups == 1
    return Weight(matrix, width // weight.shape[0] if whole else None, separate=False)


def _is_product(module: Any, given: torch.Tensor, output: torch.Tensor, rest: Sequence[Any]) -> bool:  # noqa: ANN401
    try:
        weight, bias = module.weight.detach(), module.bias
        product = _product(module, given, weight, bias, rest)
    except (RuntimeError, TypeError, ValueError):  # another shape, or another argument, than a plain layer takes
        return False
    if product.shape != output.shape:
        return False
    if torch.equal(product, output):
        return True
    size = _product(module, given.abs(), weight.abs(), None if bias is None else bias.abs(), rest)
    terms = weight.numel() // weight.shape[getattr(module, "transposed", False)]
    error = (terms + SPARE) * torch.finfo(product.dtype).eps * size
    finite = torch.isfinite(product) & torch.isfinite(error)
    return bool(torch.where(finite, (product - output).abs() <= error, ~torch.isfinite(output)).all())


def _product(
    module: Any,  # noqa: ANN401
    given: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rest: Sequence[Any],
) -> torch.Tensor:
    """Return the output of torch's own class, whatever a subclass does."""
    if isinstance(module, nn.Linear):
        return functional.linear(given, weight, bias)
    for kind, function in TRANSPOSED.items():
        if isinstance(module, kind):
            sizes = (module.stride, module.padding, module.kernel_size, len(module.kernel_size), module.dilation)
            padding = kind._output_padding(module, given, next(iter(rest), None), *sizes)
            return function(given, weight, bias, module.stride, module.padding, padding, module.groups, module.dilation)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    output: torch.Tensor = kind._conv_forward(module, given, weight, bias)
    return output
