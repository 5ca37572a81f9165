"""The Jacobian of a chain carried from layer to layer as a small factor, with its Gram matrix and its error.

J_{l+1} = W_{l+1} diag(slope) J_l. Of J = A Q with orthonormal rows Q only A matters to singular values; units whose
slope is zero drop out of it, and where more columns are left than rows A gives way to the Cholesky factor of A A^T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ibscan.numerics.spectra.counting import Gram, rounding
from ibscan.numerics.spectra.jacobian import row_factor

__all__ = ["Carried", "carried_on", "carried_post", "exactly_on", "started"]

# Units are dropped where at most this share of a layer has a slope; above, gathering costs more than it saves.
ACTIVE_SHARE = 0.7
# Columns are taken off a factor where so many go; fewer cost less than the decomposition.
LEAST_GAIN = 16
# Numbers of a matrix so small that calling a library costs more than the work.
TINY = 2**10
# Between these the largest entry's square and its products with errors are exact to rounding.
LEAST, MOST = 2.0**-100, 2.0**100


@dataclass(frozen=True)
class Carried:
    """J of one layer over `scale`, as a factor and its smaller Gram matrix.

    `factor` A (C, n, d, k) and `gram` (C, n, m, m), m = min(d, k), A A^T where `outer` else A^T A; n is 1 where all
    rows share them. `error` (C, n) bounds what A A^T lacks in the spectral norm, `norm` (C, n) is at least its spectral
    norm. `scale` (C, n) is a power of two; `finite` (C, rows or 1) says where J is finite, A is zero elsewhere.
    """

    factor: torch.Tensor
    gram: torch.Tensor
    outer: bool
    error: torch.Tensor
    norm: torch.Tensor
    scale: torch.Tensor
    finite: torch.Tensor

    def counted(self, *, shared: bool = False) -> Gram:
        """Return what singular values are counted from; `shared` says that they are those of every row."""
        error = self.error + rounding(self.factor.shape[-1]) * self.norm
        return Gram(self.gram, torch.where(self.norm > 0.0, error, 0.0), self.scale, self.finite, shared)


def started(factor: torch.Tensor) -> Carried:
    """Return the first layer's Jacobian, the same at every row.

    Args:
        factor: With the singular values of the first weight, shape (C, d, k), float64; its own QR is its only error.
    """
    finite = torch.ones(factor.shape[0], 1, dtype=torch.bool, device=factor.device)
    own = factor.unsqueeze(1)
    zero = torch.zeros(own.shape[:2], dtype=own.dtype, device=own.device)
    begun = _scaled(own.clone(), zero, torch.ones_like(zero), finite)
    # Householder QR is backward stable; W itself is exact.
    return replace(begun, error=rounding(max(factor.shape[1:])) * begun.norm)


def carried_on(before: Carried, slope: torch.Tensor, weight: torch.Tensor, norm: torch.Tensor) -> Carried:
    """Return the next layer's Jacobian.

    Args:
        before: J of a layer.
        slope: Its activation's slope, shape (C, n, d), zero at rows that are not finite.
        weight: Of the next layer, shape (C, d', d).
        norm: The spectral norm of each weight, shape (C,).

    Source:
        Patel and Shwartz-Ziv 2024, section 2; errors: |W D E D W^T| <= |W|^2 max(slope)^2 |E|.
    """
    index = _active(slope)
    inner = _compressed(before, slope, index)
    if inner is not None:
        factor = _times(weight, inner, index)
    elif index is None and before.factor.shape[1] == 1:
        # What is the same at every row is multiplied by all of them at once.
        rows = (weight.unsqueeze(1) * slope.unsqueeze(-2)).flatten(1, 2)
        factor = (rows @ before.factor[:, 0]).view(*slope.shape[:2], *weight.shape[1:2], -1)
    else:
        factor = _times(weight, _active_rows(before.factor, slope, index), index).contiguous()
    steepest = slope.abs().amax(-1)
    growth = (norm.unsqueeze(-1) * steepest).square()
    error = growth * (before.error + 2.0 * rounding(max(before.factor.shape[-2:])) * before.norm)
    return _scaled(factor, error, before.scale, before.finite)


def exactly_on(factor: torch.Tensor, slope: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors of the next layer's Jacobian and of diag(slope) J, with no Gram matrix between.

    Units without a slope drop out here too; more columns than rows are taken off by QR.

    Args:
        factor: Of J, shape (C, n or 1, d, k).
        slope: The activation's slope, shape (C, n, d).
        weight: Of the next layer, shape (C, d', d).

    Source:
        Patel and Shwartz-Ziv 2024, section 2.
    """
    index = _active(slope)
    if index is None and _tiny(weight, factor):
        # Rows last in memory, along which operations on tiny matrices run, the product below as well.
        inner = (slope.mT.contiguous().unsqueeze(2) * factor.movedim(1, -1)).movedim(-1, 1)
    else:
        inner = _active_rows(factor, slope, index)
    if inner.shape[-1] - inner.shape[-2] >= LEAST_GAIN:
        inner = row_factor(inner)
    return _times(weight, inner, index), inner


def carried_post(before: Carried, mapped: torch.Tensor, growth: torch.Tensor) -> Carried:
    """Return the Jacobian of what follows a layer.

    Args:
        before: J of the layer.
        mapped: The factor times the activation's own Jacobian, shape (C, n, d, k).
        growth: At least the squared spectral norm of that Jacobian, shape (C, n).
    """
    error = growth * (before.error + rounding(1) * before.norm)
    return _scaled(mapped, error, before.scale, before.finite)


def _scaled(factor: torch.Tensor, error: torch.Tensor, scale: torch.Tensor, finite: torch.Tensor) -> Carried:
    """Take a power of two out of a factor, so that its Gram matrix neither over- nor underflows."""
    least, most = torch.aminmax(factor.flatten(2), dim=-1)
    largest = torch.maximum(-least, most)
    finite_here = torch.isfinite(largest)
    finite = finite & finite_here
    if not bool(finite.all()):
        whole = finite if factor.shape[1] == finite.shape[1] else finite_here
        factor, largest = torch.where(whole[..., None, None], factor, 0.0), torch.where(whole, largest, 0.0)
        error = torch.where(whole, error, 0.0)
    unit = torch.ones_like(largest)
    if bool(((largest < LEAST) | (largest > MOST)).any()):
        unit = torch.ldexp(unit, torch.frexp(largest).exponent)
        factor = factor.div_(unit[..., None, None])
        # Divided twice: the square of the unit would overflow first.
        error = error / unit / unit
    error = torch.where(largest > 0.0, error, 0.0)
    outer = factor.shape[-2] <= factor.shape[-1]
    gram = factor @ factor.mT if outer else factor.mT @ factor
    return Carried(factor, gram, outer, error, gram.flatten(2).norm(dim=-1), scale * unit, finite)


def _active_rows(factor: torch.Tensor, slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return _taken(slope, index).unsqueeze(-1) * (factor if index is None else _rows(factor, index))


def _times(weight: torch.Tensor, inner: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    if index is None and _tiny(weight, inner) and inner.shape[1] > 1:
        # One product a checkpoint in place of one a row, whose call would cost more than its work.
        rows = inner.movedim(1, -1)
        return (weight @ rows.flatten(2)).view(*weight.shape[:2], *rows.shape[2:]).movedim(-1, 1)
    if index is None:
        return weight.unsqueeze(1) @ inner
    # Rows of W^T are copied whole, a row of memory each.
    return _rows(weight.mT.contiguous().unsqueeze(1), index).mT @ inner


def _tiny(weight: torch.Tensor, factor: torch.Tensor) -> bool:
    return weight.shape[-1] * factor.shape[-1] <= TINY


def _active(slope: torch.Tensor) -> torch.Tensor | None:
    """Return the units with a slope first, as many as the row with most has: (C, n, s); None where that is no gain."""
    if slope.shape[-1] < LEAST_GAIN:
        return None
    silent = slope == 0.0
    most = slope.shape[-1] - int(silent.sum(-1).min())
    if most > ACTIVE_SHARE * slope.shape[-1]:
        return None
    return torch.sort(silent.to(torch.uint8), dim=-1, stable=True).indices[..., : max(1, most)]


def _compressed(before: Carried, slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor | None:
    """Return the Cholesky factor of diag(slope) A A^T diag(slope) on the active units.

    None where it would not be smaller than A, or does not exist because units depend on one another.
    """
    own = _taken(slope, index)
    if before.factor.shape[-1] - own.shape[-1] < LEAST_GAIN:
        return None
    if before.outer:
        chosen = before.gram if index is None else _rows(_rows(before.gram, index).mT, index)
    else:
        rows = before.factor if index is None else _rows(before.factor, index)
        chosen = rows @ rows.mT
    square = chosen * own.unsqueeze(-1) * own.unsqueeze(-2)
    silent = own == 0.0
    # Units without a slope, of which rows have different numbers, are decomposed as if they were units of their own.
    square.diagonal(dim1=-2, dim2=-1).add_(silent.to(own.dtype))
    root: torch.Tensor
    root, failed = torch.linalg.cholesky_ex(square)
    return None if bool(failed.any()) else root.masked_fill_(silent.unsqueeze(-1), 0.0)


def _taken(slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return slope if index is None else slope.gather(-1, index)


def _rows(matrix: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the rows (C, n, s, k) of matrices (C, n or 1, d, k) that an index (C, n, s) names."""
    size, rows, _ = index.shape
    first = torch.arange(size, device=index.device).view(-1, 1, 1)
    if matrix.shape[1] == 1:
        return matrix[first, 0, index]
    return matrix[first, torch.arange(rows, device=index.device).view(1, -1, 1), index]
