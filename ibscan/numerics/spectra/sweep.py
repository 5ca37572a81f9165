"""Carry the Jacobian of a chain from layer to layer as a small factor, with its Gram matrix and a bound on its error.

J_{l+1} = W_{l+1} diag(slope) J_l. In J = A Q, Q with orthonormal rows, only A matters to singular values. Units of
slope zero are dropped from A, and if it has more columns than rows it is replaced by the Cholesky factor of A A^T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ibscan.numerics.spectra.counting import Gram, rounding
from ibscan.numerics.spectra.jacobian import row_factor

__all__ = ["Carried", "carried_on", "carried_post", "exactly_on", "started"]

# Units are dropped if at most this share of a layer has a slope; above, gathering costs more than it saves.
ACTIVE_SHARE = 0.7
# Columns are removed from a factor if at least so many go; fewer cost less than the decomposition.
LEAST_GAIN = 16
# Size of a matrix below which a library call costs more than its work.
TINY = 2**10
# Factors with a largest entry beyond these are scaled, so that squares stay in the range of float64.
LEAST, MOST = 2.0**-100, 2.0**100


@dataclass(frozen=True)
class Carried:
    """J / scale of one layer, as a factor and its smaller Gram matrix.

    `factor` A is (C, n, d, k); `gram` (C, n, m, m), m = min(d, k), is A A^T if `outer`, else A^T A; n is 1 if all rows
    share them. `error` (C, n) bounds the spectral norm of the error of A A^T, `norm` (C, n) its own spectral norm.
    `scale` (C, n) is a power of two. `finite` (C, N or 1) says where J is finite; elsewhere A is zero.
    """

    factor: torch.Tensor
    gram: torch.Tensor
    outer: bool
    error: torch.Tensor
    norm: torch.Tensor
    scale: torch.Tensor
    finite: torch.Tensor

    def counted(self, *, shared: bool = False) -> Gram:
        """Return the Gram matrix to count singular values from; `shared` if it is that of every row."""
        error = self.error + rounding(self.factor.shape[-1]) * self.norm
        return Gram(self.gram, torch.where(self.norm > 0.0, error, 0.0), self.scale, self.finite, shared)


def started(factor: torch.Tensor) -> Carried:
    """Return the first layer's Jacobian, the same at every row.

    Args:
        factor: Of the first weight, shape (C, d, k), float64, from `row_factor`.
    """
    finite = torch.ones(factor.shape[0], 1, dtype=torch.bool, device=factor.device)
    own = factor.unsqueeze(1)
    zero = torch.zeros(own.shape[:2], dtype=own.dtype, device=own.device)
    begun = _scaled(own.clone(), zero, torch.ones_like(zero), finite)
    # The only error is that of the QR, which is backward stable.
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
        # All rows share the factor: one product for all of them.
        rows = (weight.unsqueeze(1) * slope.unsqueeze(-2)).flatten(1, 2)
        factor = (rows @ before.factor[:, 0]).view(*slope.shape[:2], *weight.shape[1:2], -1)
    else:
        factor = _times(weight, _active_rows(before.factor, slope, index), index).contiguous()
    steepest = slope.abs().amax(-1)
    growth = (norm.unsqueeze(-1) * steepest).square()
    error = growth * (before.error + 2.0 * rounding(max(before.factor.shape[-2:])) * before.norm)
    return _scaled(factor, error, before.scale, before.finite)


def exactly_on(factor: torch.Tensor, slope: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors of the next layer's Jacobian and of diag(slope) J, without forming a Gram matrix.

    Units of slope zero are dropped here too; columns beyond the number of rows are removed by QR.

    Args:
        factor: Of J, shape (C, n or 1, d, k).
        slope: The activation's slope, shape (C, n, d).
        weight: Of the next layer, shape (C, d', d).

    Source:
        Patel and Shwartz-Ziv 2024, section 2.
    """
    index = _active(slope)
    if index is None and _tiny(weight, factor):
        # Rows of the probe last in memory, as operations on tiny matrices run along them.
        inner = (slope.mT.contiguous().unsqueeze(2) * factor.movedim(1, -1)).movedim(-1, 1)
    else:
        inner = _active_rows(factor, slope, index)
    if inner.shape[-1] - inner.shape[-2] >= LEAST_GAIN:
        inner = row_factor(inner)
    return _times(weight, inner, index), inner


def carried_post(before: Carried, mapped: torch.Tensor, growth: torch.Tensor) -> Carried:
    """Return the Jacobian of a layer's post.

    Args:
        before: J of the layer's pre.
        mapped: The activation's Jacobian times the factor, shape (C, n, d, k).
        growth: Upper bound on the squared spectral norm of the activation's Jacobian, shape (C, n).
    """
    error = growth * (before.error + rounding(1) * before.norm)
    return _scaled(mapped, error, before.scale, before.finite)


def _scaled(factor: torch.Tensor, error: torch.Tensor, scale: torch.Tensor, finite: torch.Tensor) -> Carried:
    """Return the factor with its Gram matrix, divided by a power of two if that would over- or underflow."""
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
        # Divide twice, as the square of the unit could overflow.
        error = error / unit / unit
    error = torch.where(largest > 0.0, error, 0.0)
    outer = factor.shape[-2] <= factor.shape[-1]
    gram = factor @ factor.mT if outer else factor.mT @ factor
    return Carried(factor, gram, outer, error, gram.flatten(2).norm(dim=-1), scale * unit, finite)


def _active_rows(factor: torch.Tensor, slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return _gathered(slope, index).unsqueeze(-1) * (factor if index is None else _rows(factor, index))


def _times(weight: torch.Tensor, inner: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    if index is None and _tiny(weight, inner) and inner.shape[1] > 1:
        # One product for each checkpoint, as one for each row would cost more in calls than in work.
        rows = inner.movedim(1, -1)
        return (weight @ rows.flatten(2)).view(*weight.shape[:2], *rows.shape[2:]).movedim(-1, 1)
    if index is None:
        return weight.unsqueeze(1) @ inner
    # Gather rows of W^T, which are contiguous in memory.
    return _rows(weight.mT.contiguous().unsqueeze(1), index).mT @ inner


def _tiny(weight: torch.Tensor, factor: torch.Tensor) -> bool:
    return weight.shape[-1] * factor.shape[-1] <= TINY


def _active(slope: torch.Tensor) -> torch.Tensor | None:
    """Return indices of units with a slope, (C, n, s), s the most of any row, padded; None if too few are dropped."""
    if slope.shape[-1] < LEAST_GAIN:
        return None
    inactive = slope == 0.0
    most = slope.shape[-1] - int(inactive.sum(-1).min())
    if most > ACTIVE_SHARE * slope.shape[-1]:
        return None
    return torch.sort(inactive.to(torch.uint8), dim=-1, stable=True).indices[..., : max(1, most)]


def _compressed(before: Carried, slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor | None:
    """Return the Cholesky factor of diag(slope) A A^T diag(slope) on the active units.

    None if it would not be smaller than A, or if the matrix is singular.
    """
    own = _gathered(slope, index)
    if before.factor.shape[-1] - own.shape[-1] < LEAST_GAIN:
        return None
    if before.outer:
        chosen = before.gram if index is None else _rows(_rows(before.gram, index).mT, index)
    else:
        rows = before.factor if index is None else _rows(before.factor, index)
        chosen = rows @ rows.mT
    square = chosen * own.unsqueeze(-1) * own.unsqueeze(-2)
    inactive = own == 0.0
    # Rows have different numbers of inactive units: give those a 1 on the diagonal, so that the factor exists.
    square.diagonal(dim1=-2, dim2=-1).add_(inactive.to(own.dtype))
    root: torch.Tensor
    root, failed = torch.linalg.cholesky_ex(square)
    return None if bool(failed.any()) else root.masked_fill_(inactive.unsqueeze(-1), 0.0)


def _gathered(slope: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return slope if index is None else slope.gather(-1, index)


def _rows(matrix: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the rows (C, n, s, k) of matrices (C, n or 1, d, k) that an index (C, n, s) names."""
    size, rows, _ = index.shape
    first = torch.arange(size, device=index.device).view(-1, 1, 1)
    if matrix.shape[1] == 1:
        return matrix[first, 0, index]
    return matrix[first, torch.arange(rows, device=index.device).view(1, -1, 1), index]
