"""What local rank gathers: counts of every row from Gram matrices or singular values, spectra of some, and bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import DifferentiableNetwork, JacobianSpec
from ibscan.core.records import Array
from ibscan.numerics.spectra.counting import Counts, Gram, bound_counts, gram_counts, rounding
from ibscan.numerics.spectra.spectrum import (
    effective_rank,
    finite_matrices,
    made_finite,
    numerical_rank,
    singular_values,
    stable_rank,
)

__all__ = ["RankAccumulator"]

# How much larger than its own rounding that of a Jacobian carried through a network is taken to be.
SAFETY = 4.0
# A mean of counts, or of spectra, that rounding may move by as much is not known.
OPEN = 0.01
COARSE = "it cannot be computed in float64 throughout, and the rounding of what it is computed in may reach a threshold"


class RankAccumulator:
    """Counts and spectra of one call, row by row, until they are estimates.

    Args:
        network: C checkpoints.
        thresholds: Absolute and relative ones.
        spec: Which Jacobians.
        rows: How many there are, and how many of the first have their spectrum averaged.
        most: How many singular values each layer's Jacobian has.
        affine: Which layers are their weight's product with what they are fed: of others it bounds nothing.
    """

    def __init__(
        self,
        network: DifferentiableNetwork,
        thresholds: tuple[Sequence[float], Sequence[float]],
        spec: JacobianSpec,
        rows: tuple[int, int],
        most: Sequence[int],
        affine: Sequence[bool],
    ) -> None:
        self.affine = affine
        self.network, self.spec, self.spectral = network, spec, rows[1]
        self.most, self.size = most, max(most)
        self.eps = torch.tensor(thresholds[0], dtype=torch.float64, device=network.device)
        self.relative = torch.tensor(thresholds[1], dtype=torch.float64, device=network.device)
        shape = (network.size, len(network.layers), rows[0])
        wanted = np.array([spec.wants(layer) for layer in range(shape[1])])
        self.visited = np.zeros(shape[1], dtype=bool)
        # Rows last, over which everything is reduced.
        self.counts = np.zeros((*shape[:2], len(self.eps) + len(self.relative), rows[0]), dtype=np.int64)
        self.bounds = np.full((*shape[:2], len(self.eps), rows[1]), -1, dtype=np.int64)
        self.nonzero, self.finite = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
        # Rows whose spectrum is wanted are decomposed whatever their counts.
        self.certain = np.broadcast_to(~wanted[None, :, None], shape).copy()
        self.spectrum = np.zeros((*shape[:2], self.size + 2))
        self.norms: Array | None = None
        # Layers whose Jacobian cannot be computed, with the reason.
        self.failed: dict[int, str] = {}
        # Of layers coarser than float64 how far rounding moves singular values, in units of the largest, and by how
        # much the counts of all rows together may then be off.
        self.rounding: dict[int, float] = {}
        self.open = np.zeros((*shape[:2], len(self.eps) + len(self.relative)), dtype=np.int64)
        self.rows = np.zeros(0, dtype=np.intp)
        self.shared: dict[int, Counts] = {}
        self.weights: dict[int, torch.Tensor | None] = {}

    def count(self, layer: int, gram: Gram, block: slice) -> None:
        """Count from Gram matrices; `block` is of the rows after those whose spectrum is wanted."""
        self.visited[layer] = True
        size, held = gram.values.shape[:2]
        rows = np.arange(block.start, block.stop) + self.spectral
        eps, relative = self._thresholds(layer, rows)
        # What is the same at every row is counted once, unless thresholds differ.
        shared = gram.shared and eps.shape[1] == 1
        counts = self.shared.get(layer) if shared else None
        if counts is None:
            eps = (eps / gram.scale.unsqueeze(-1)).expand(size, max(held, eps.shape[1]), -1)
            values = gram.values.expand(-1, eps.shape[1], -1, -1).flatten(0, 1)
            error = gram.error.expand(-1, eps.shape[1]).flatten()
            counts = gram_counts(values, error, eps.flatten(0, 1), relative)
            if shared:
                self.shared[layer] = counts
        finite = gram.finite.cpu().numpy()
        self.counts[:, layer, :, rows] = _by_row(counts.number, size).swapaxes(0, 1)
        self.nonzero[:, layer, rows] = _by_row(counts.positive, size)
        # What is not finite is so in any way of counting.
        self.certain[:, layer, rows] = _by_row(counts.certain, size) | ~finite
        self.finite[:, layer, rows] = finite

    def decompose(self, layer: int, factor: torch.Tensor, fed: torch.Tensor | None, block: slice) -> None:
        """Count from singular values, where that is needed, and average the spectra; `block` is of `self.rows`."""
        self.visited[layer] = True
        rows = self.rows[block]
        finite = finite_matrices(factor)
        needed = ~self.certain[:, layer, rows]
        if factor.shape[1] < len(rows):  # one for all
            needed = np.ones_like(needed)
        elif not needed.any():
            return
        if needed.all():
            sigma = singular_values(made_finite(factor, finite))
        else:
            places = torch.as_tensor(needed, device=factor.device)
            sigma = torch.zeros(*finite.shape, min(factor.shape[-2:]), dtype=factor.dtype, device=factor.device)
            sigma[places] = singular_values(made_finite(factor[places], finite[places]))
        eps, relative = self._thresholds(layer, rows)
        # A stretch of rows is written to in its place, others are copied out and in.
        at = slice(rows[0], rows[-1] + 1) if len(rows) == rows[-1] - rows[0] + 1 else rows
        held = max(eps.shape[1], sigma.shape[1])
        parts = [part.expand(-1, held, -1).movedim(-1, 0) for part in (eps, relative * sigma[..., :1])]
        limits = torch.cat(parts).movedim(0, -1)
        _note(self.counts[:, layer], at, needed[:, None], numerical_rank(sigma, limits).movedim(-1, 1))
        if layer in self.rounding:
            slack = self.rounding[layer] * sigma[..., :1]
            width = numerical_rank(sigma, limits - slack) - numerical_rank(sigma, limits + slack)
            # A Jacobian of nothing but zeros has no rounding.
            self.open[:, layer] += (width * (sigma[..., :1] > 0.0)).sum(1).cpu().numpy()
        _note(self.nonzero[:, layer], at, needed, sigma[..., 0] > 0.0)
        _note(self.finite[:, layer], at, needed, finite)
        first = int(np.searchsorted(rows, self.spectral))
        if first:
            self._spectra(layer, sigma, first)
            if fed is not None:
                # What is not finite makes all it feeds so.
                self._bound(layer, sigma, made_finite(fed, finite), rows[:first])

    def _thresholds(self, layer: int, rows: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Return absolute thresholds, (C, n or 1, E), and those relative to the row's largest singular value, (R,).

        On a subspace the largest is that of the whole Jacobian, which makes relative thresholds absolute.
        """
        eps = self.eps.expand(self.network.size, 1, -1)
        if self.norms is None:
            return eps, self.relative
        tops = torch.as_tensor(self.norms[:, layer, rows], device=self.eps.device).unsqueeze(-1)
        return torch.cat((eps.expand(-1, len(rows), -1), self.relative * tops), -1), self.relative[:0]

    def _spectra(self, layer: int, sigma: torch.Tensor, rows: int) -> None:
        share = sigma.expand(-1, max(rows, sigma.shape[1]), -1)[:, :rows]
        sums = [part.sum(1) for part in (share, effective_rank(share).unsqueeze(-1), stable_rank(share).unsqueeze(-1))]
        # What the factor has no column for is zero.
        at = [*range(sigma.shape[-1]), self.size, self.size + 1]
        self.spectrum[:, layer, at] += torch.cat(sums, -1).cpu().numpy() / self.spectral

    def _bound(self, layer: int, sigma: torch.Tensor, fed: torch.Tensor, rows: Array) -> None:
        """Bound the counts of rows by those of the weight above eps over the norm of what feeds it.

        Where the input itself feeds the layer, the singular values of its Jacobian are the weight's.
        """
        if layer not in self.weights:
            weight = self.network.weight(layer) if self.affine[layer] else None
            self.weights[layer] = None
            if weight is not None and weight.separate and weight.positions:
                whole = fed[0].numel() == 1 and weight.positions == 1 and bool((fed == 1.0).all())
                if whole and layer not in self.rounding:
                    self.weights[layer] = sigma[:, 0]
                else:
                    own = singular_values(made_finite(weight.matrix, finite_matrices(weight.matrix)))
                    self.weights[layer] = own.repeat(1, weight.positions)
        held = self.weights[layer]
        if held is not None:
            number = bound_counts(held, fed, self.eps)
            # Below the rounding of the product anything may be counted, up to all that there is.
            largest = held[:, :1] * fed.square().sum((-2, -1)).sqrt()
            rounded = SAFETY * rounding(max(held.shape[1], *fed.shape[-2:])) * largest.unsqueeze(-1)
            number = torch.where((self.eps <= rounded) & (number < self.most[layer]), -1, number)
            number = number.expand(-1, max(len(rows), number.shape[1]), -1)[:, : len(rows)]
            self.bounds[:, layer][..., rows] = number.movedim(1, -1).cpu().numpy()

    def estimates(self, reasons: Mapping[int, str]) -> dict[str, Estimate]:
        """Return what was gathered as estimates.

        Args:
            reasons: Why some layers were not visited.
        """
        finite, split = self.finite.all(2), len(self.eps)
        measured = Status.OK if self.spec.directions is None else Status.LOWER_BOUND
        status = np.where(self.nonzero.any(2), measured, Status.DEAD)
        status = np.where(finite, status, Status.NONFINITE)
        status = np.where(self.visited, status, Status.NOT_MEASURED).astype(np.int8)
        status[:, list(self.failed)] = Status.FAILED
        valid = finite & self.visited & (status != Status.FAILED)
        open_ = self.open >= OPEN * self.counts.shape[3]
        parts = (slice(0, split), slice(split, None))
        rank, relative = (_unresolved(_counted(self.counts[:, :, p], valid, status), open_[:, :, p]) for p in parts)
        if open_.any():
            reasons = {**{k: COARSE for k in self.rounding if open_[:, k].any()}, **reasons}
        own = np.arange(self.size) < np.array(self.most)[:, None]
        present = np.pad(own, ((0, 0), (0, 2)), constant_values=True)
        spectrum = np.where(present & valid[..., None], self.spectrum, np.nan)
        components = np.repeat(status[..., None], self.size, -1)
        components[np.isnan(spectrum[..., : self.size]) & valid[..., None]] = Status.NOT_MEASURED
        # Of a subspace's Jacobian these say nothing of the whole.
        shape = status if self.spec.directions is None else _untold(status)
        if self.spec.directions is not None:
            spectrum[..., self.size :] = np.nan
        # Where what is counted is rounding there is no bound on it.
        bounded = (self.bounds >= np.maximum(0, self.counts[:, :, :split, : self.spectral])).all(3)
        bounded &= ~open_[:, :, :split]
        bound = _counted(self.bounds, valid, status)
        assert bound.status is not None
        assert bound.stderr is not None
        spoilt = np.isin(bound.status, (Status.NONFINITE, Status.FAILED))
        of_bound = np.where(bounded | spoilt, bound.status, Status.NOT_MEASURED)
        return {
            "local_rank": dataclasses.replace(rank, reasons={**reasons, **self.failed} or None),
            "local_rank_count": Estimate(self._histogram(valid), None),
            "local_rank_rel": relative,
            "rank_bound_jacobian": Estimate(
                np.where(bounded, bound.value, np.nan),
                of_bound.astype(np.int8),
                stderr=np.where(bounded, bound.stderr, np.nan),
            ),
            "singular_value": _unresolved(
                Estimate(spectrum[..., : self.size], components),
                self._shares()[:, None] * spectrum[..., :1] > OPEN * spectrum[..., : self.size],
            ),
            "effective_rank": _unresolved(Estimate(spectrum[..., self.size], shape), self._blurred()),
            "stable_rank": _unresolved(Estimate(spectrum[..., self.size + 1], shape), self._blurred()),
        }

    def _shares(self) -> Array:
        """Return how far rounding moves the singular values of every layer, in units of the largest, (L,)."""
        return np.array([self.rounding.get(layer, 0.0) for layer in range(len(self.most))])

    def _blurred(self) -> Array:
        """Return whether rounding may move the ranks that all singular values enter by more than a hundredth, (L,)."""
        share = self._shares()
        least = np.where(share > 0.0, share, 1.0)
        return np.asarray(least * np.abs(np.log(least)) * np.sqrt(self.most) > OPEN) | (share >= 1.0)

    def _histogram(self, valid: Array) -> Array:
        """Return how many rows have each rank, (C, L, E, size + 1); -1 where there is none."""
        number = self.counts[:, :, : len(self.eps)]
        lead, values = number.shape[:3], self.size + 1
        # One count for all: every cell has numbers of its own.
        first = np.arange(int(np.prod(lead)))[:, None] * values
        found = np.bincount(
            (number.reshape(len(first), number.shape[3]) + first).ravel(), minlength=len(first) * values
        )
        return np.where(valid[..., None, None], found.reshape(*lead, values), -1)


def _note(noted: Array, rows: Array | slice, needed: Array, found: torch.Tensor) -> None:
    """Put what was found of rows, the last axis, in its place where it was needed."""
    part = noted[..., rows]
    # In place: of two orders of memory `np.where` would make a third, at many times the cost.
    np.copyto(part, found.cpu().numpy(), where=True if needed.all() else needed)
    if not isinstance(rows, slice):
        noted[..., rows] = part


def _by_row(values: torch.Tensor, size: int) -> Array:
    """Return what was counted of C x n matrices by checkpoint and row."""
    found: Array = values.view(size, -1, *values.shape[1:]).cpu().numpy()
    return found


def _unresolved(estimate: Estimate, open_: Array) -> Estimate:
    """Return an estimate with the status that its number is not known, where it was measured and that is so."""
    assert estimate.status is not None
    known = np.isin(estimate.status, (Status.OK, Status.LOWER_BOUND))
    status = np.where(known & open_, Status.UNRESOLVED, estimate.status).astype(np.int8)
    return dataclasses.replace(estimate, status=status)


def _untold(status: Array) -> Array:
    return np.where(status == Status.LOWER_BOUND, Status.NOT_MEASURED, status).astype(np.int8)


def _counted(number: Array, valid: Array, status: Array) -> Estimate:
    """Return the mean, its standard error and the extremes of integers (C, L, T, rows), NaN where not valid."""
    rows = number.shape[3]
    total = number.sum(3)
    # Of integers, so that equal counts have no spread at all. One row has none: its error is unknown, not zero.
    squares = np.square(number).sum(3) * rows - total**2
    with np.errstate(all="ignore"):
        error = np.sqrt(squares / (rows * (rows - 1.0))) / np.sqrt(rows) if rows > 1 else np.full(total.shape, np.nan)

    def shown(values: Array) -> Array:
        return np.where(valid[..., None], values, np.nan)

    return Estimate(
        shown(total / rows),
        np.repeat(status[..., None], number.shape[2], -1),
        stderr=shown(error),
        minimum=shown(number.min(3)),
        maximum=shown(number.max(3)),
    )
