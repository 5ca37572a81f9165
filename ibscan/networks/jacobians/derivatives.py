"""Compute Jacobians row by row, in forward or reverse mode, whole, as Gram matrices, or as QR factors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ibscan.core.boundary import user_code
from ibscan.networks.trace.replay import forward_context
from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite
from ibscan.numerics.tiling import cuts

__all__ = [
    "Outputs",
    "full_jacobians",
    "gram",
    "gram_by_blocks",
    "gram_from_gradients",
    "grams",
    "norms_from_gradients",
    "qr_factor",
    "spectral_norms",
    "vjp",
]

# Power iteration ends when no row's estimate grows by more than this share, or after so many steps.
GROWTH = 1e-9
STEPS = 300


@dataclass(frozen=True)
class Outputs:
    """Values of some layers as a function of a variable, row by row.

    Attributes:
        values: Maps the variable (n, ...) to the values (n, D) of each layer.
        variable: Rows at which to differentiate, (n, ...).
        widths: D of each layer.
        columns: Returns a slice of the directions as (b, 1, ...): unit vectors, or the basis of a subspace.
        size: Number of directions.
        tangents: Directions carried through one pass.
    """

    values: Callable[[torch.Tensor], list[torch.Tensor]]
    variable: torch.Tensor
    widths: Sequence[int]
    columns: Callable[[slice], torch.Tensor]
    size: int
    tangents: int

    @property
    def rows(self) -> int:
        """n, the number of rows."""
        return len(self.variable)

    def parts(self, start: int = 0, stop: int | None = None) -> list[slice]:
        """Return the directions from `start` to `stop` in slices of one pass each."""
        return cuts(start, self.size if stop is None else stop, self.tangents)

    def images(self, part: slice) -> list[torch.Tensor]:
        """Return J v of every layer for a slice of the directions, (n, D, b): one pass in forward mode.

        Raises:
            InputError: An operation has no forward derivative, or none under vmap.
        """

        def image(direction: torch.Tensor) -> list[torch.Tensor]:
            tangent = direction.expand_as(self.variable).clone()
            tangents: list[torch.Tensor] = torch.func.jvp(self.values, (self.variable,), (tangent,))[1]
            return tangents

        # Any operation may lack a forward derivative, and the model's own may raise anything.
        with user_code("the model"), _quiet():
            found = torch.func.vmap(image)(self.columns(part).to(self.variable))
        return [tangents.to(torch.float64).permute(1, 2, 0) for tangents in found]


def full_jacobians(outputs: Outputs, *, reverse: bool = False) -> list[torch.Tensor]:
    """Return J of every layer, (n, D, directions), float64.

    `reverse` takes gradients of the layers' units: for a few narrow layers, or where an operation has no forward
    derivative, or none under vmap.
    """
    if reverse:
        return [_reversed(outputs, k, slice(0, width)) for k, width in enumerate(outputs.widths)]
    found = [_zeros(outputs, width, outputs.size) for width in outputs.widths]
    for part in outputs.parts():
        for whole, image in zip(found, outputs.images(part), strict=True):
            whole[..., part] = image
    return found


def grams(outputs: Outputs) -> list[torch.Tensor]:
    """Return the smaller Gram matrix of each layer's J, (n, m, m), then for each layer whether J is not zero, (n,).

    J J^T is summed direction by direction. J^T J, of a layer with more units than directions, needs all pairs of
    directions, and J is held.
    """
    outer = [width <= outputs.size for width in outputs.widths]
    results = [_zeros(outputs, w, w if o else outputs.size) for w, o in zip(outputs.widths, outer, strict=True)]
    positive = [torch.zeros(outputs.rows, dtype=torch.bool, device=whole.device) for whole in results]
    for part in outputs.parts():
        for k, image in enumerate(outputs.images(part)):
            positive[k] |= image.flatten(1).any(1)
            if outer[k]:
                results[k] += image @ image.mT
            else:
                results[k][..., part] = image
    return [*(whole if one else gram(whole) for one, whole in zip(outer, results, strict=True)), *positive]


def gram(jacobian: torch.Tensor) -> torch.Tensor:
    """Return the smaller of J J^T and J^T J."""
    return jacobian @ jacobian.mT if jacobian.shape[-2] <= jacobian.shape[-1] else jacobian.mT @ jacobian


def gram_by_blocks(outputs: Outputs, budget: int) -> list[torch.Tensor]:
    """Return J^T J of one layer too wide for its J to be held, (n, directions, directions), and whether J is not zero.

    Pairs of blocks of directions, of at most `budget` numbers, are multiplied.
    """
    whole = _zeros(outputs, outputs.size, outputs.size)
    positive = torch.zeros(outputs.rows, dtype=torch.bool, device=whole.device)
    for left in cuts(0, outputs.size, budget // (outputs.rows * outputs.widths[0])):
        block = _zeros(outputs, outputs.widths[0], left.stop - left.start)
        for part in outputs.parts(left.start, left.stop):
            block[..., part.start - left.start : part.stop - left.start] = outputs.images(part)[0]
        positive |= block.flatten(1).any(1)
        whole[:, left, left] = block.mT @ block
        for right in outputs.parts(left.stop):
            product = block.mT @ outputs.images(right)[0]
            whole[:, left, right], whole[:, right, left] = product, product.mT
    return [whole, positive]


def gram_from_gradients(outputs: Outputs, budget: int) -> list[torch.Tensor]:
    """Return what `gram_by_blocks` does, from gradients: J^T J summed over slices of the units."""
    whole = _zeros(outputs, outputs.size, outputs.size)
    positive = torch.zeros(outputs.rows, dtype=torch.bool, device=whole.device)
    for units in _slices(outputs, budget):
        block = _reversed(outputs, 0, units)
        positive |= block.flatten(1).any(1)
        whole += block.mT @ block
    return [whole, positive]


def qr_factor(outputs: Outputs, budget: int, *, reverse: bool = False) -> torch.Tensor:
    """Return R of J = Q R, (n, directions, directions), for one layer too wide for its J to be held.

    R has the singular values of J. It is updated with one slice of the units, of at most `budget` numbers, after the
    other.

    Source:
        Demmel, Grigori, Hoemmen and Langou 2012, sequential TSQR.
    """
    upper = _zeros(outputs, 0, outputs.size)
    for units in _slices(outputs, budget):
        if reverse:
            block = _reversed(outputs, 0, units)
        else:
            block = _zeros(outputs, units.stop - units.start, outputs.size)
            for part in outputs.parts():
                block[..., part] = outputs.images(part)[0][:, units]
        upper = torch.linalg.qr(torch.cat((upper, block), 1), mode="r").R
    return upper


def spectral_norms(outputs: Outputs, start: torch.Tensor) -> list[torch.Tensor]:
    """Return the largest singular value of every layer's J on the whole variable, (n,) each, by power iteration.

    A lower bound: iteration stops when it grows by less than 1e-9, or after 300 steps. `start` is a direction, of the
    shape of one row of the variable.
    """
    found = []
    for k in range(len(outputs.widths)):
        direction = start.expand_as(outputs.variable).to(outputs.variable)
        estimate = torch.zeros(outputs.rows, dtype=torch.float64, device=outputs.variable.device)
        for _ in range(STEPS):
            direction = direction / _lengths(direction)
            with user_code("the model"), _quiet():
                image = torch.func.jvp(lambda x, k=k: outputs.values(x)[k], (outputs.variable,), (direction,))[1]
            before, estimate = estimate, image.to(torch.float64).norm(dim=1)
            if bool((estimate <= before * (1.0 + GROWTH)).all()):
                break
            direction = vjp(outputs, k, outputs.variable, image / _lengths(image))
        found.append(estimate)
    return found


def norms_from_gradients(outputs: Outputs, budget: int) -> list[torch.Tensor]:
    """Return what `spectral_norms` does, from gradients: by the eigenvalues of J J^T, from pairs of slices of units."""
    size, width = outputs.variable[0].numel(), outputs.widths[0]
    whole = replace(outputs, size=size)
    products = _zeros(outputs, width, width)
    slices = cuts(0, width, budget // (2 * outputs.rows * size))
    for k, left in enumerate(slices):
        block = _reversed(whole, 0, left)
        for right in slices[k:]:
            product = block @ (block if right is left else _reversed(whole, 0, right)).mT
            products[:, left, right], products[:, right, left] = product, product.mT
    finite = finite_matrices(products)
    largest = torch.linalg.eigvalsh(made_finite(products, finite))[:, -1].clamp(min=0.0).sqrt()
    return [torch.where(finite, largest, torch.nan)]


def vjp(outputs: Outputs, layer: int, rows: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return J^T u for each row, of the variable's shape, by one backward pass as in training.

    Unlike functional transforms, it supports custom autograd functions and checkpointed segments, which insist on
    accumulated gradients. Without a path to the variable, the gradient is zero.

    Args:
        outputs: What is differentiated.
        layer: Which of its layers.
        rows: Values of the variable, (m, ...), a multiple of the rows.
        seed: u, the gradient of the values, (m, D).

    Raises:
        InputError: An operation has no derivative.
    """
    leaf = rows.detach().clone().requires_grad_()
    # A checkpointed segment is run again in the backward pass.
    with user_code("the model"), torch.enable_grad(), forward_context(leaf.dtype):
        value = outputs.values(leaf)[layer]
        if value.requires_grad:
            torch.autograd.backward([value], [seed.to(value)])
    return torch.zeros_like(rows) if leaf.grad is None else leaf.grad


def _slices(outputs: Outputs, budget: int) -> list[slice]:
    """Return slices of the units of a layer whose J can be held."""
    return cuts(0, outputs.widths[0], budget // (outputs.rows * outputs.size))


def _reversed(outputs: Outputs, layer: int, units: slice) -> torch.Tensor:
    """Return the rows of J for some units, from gradients.

    The variable is repeated for every unit instead of using vmap, whose rules are wrong for rare operations (cdist).
    """
    parts = []
    for chosen in torch.split(torch.arange(units.start, units.stop, device=outputs.variable.device), outputs.tangents):
        repeated = outputs.variable.repeat(len(chosen), *[1] * (outputs.variable.ndim - 1))
        seed = torch.zeros(len(repeated), outputs.widths[layer], dtype=repeated.dtype, device=repeated.device)
        seed[torch.arange(len(seed), device=seed.device), chosen.repeat_interleave(outputs.rows)] = 1.0
        gradient = vjp(outputs, layer, repeated, seed)
        parts.append(_projected(outputs, gradient.view(len(chosen), outputs.rows, -1).to(torch.float64)))
    return torch.cat(parts).transpose(0, 1)


def _projected(outputs: Outputs, gradients: torch.Tensor) -> torch.Tensor:
    """Return gradients (..., d) projected on the directions."""
    if outputs.size == gradients.shape[-1]:
        return gradients
    columns = [outputs.columns(part).flatten(1).to(gradients) for part in outputs.parts()]
    return torch.cat([gradients @ column.mT for column in columns], -1)


def _zeros(outputs: Outputs, *shape: int) -> torch.Tensor:
    return torch.zeros(outputs.rows, *shape, dtype=torch.float64, device=outputs.variable.device)


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    lengths = rows.flatten(1).norm(dim=1)
    return torch.where(lengths > 0.0, lengths, 1.0).view(-1, *[1] * (rows.ndim - 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide a warning that torch emits when a forward derivative is first asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated", DeprecationWarning)
        yield
