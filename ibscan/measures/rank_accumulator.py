"""Accumulate local rank: counts of every row from Gram matrices or singular values, spectra of some rows, bounds."""

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

# Factor by which the rounding of a Jacobian carried through a network may exceed that of one product.
SAFETY = 4.0
# Relative change by rounding beyond which a mean of counts, or of spectra, is unresolved.
UNCERTAIN = 0.01
COARSE = "it cannot be computed in float64 throughout, and the rounding of what it is computed in may reach a threshold"


class RankAccumulator:
    """Counts, spectra and bounds of all rows, from which `estimates` makes the results.

    Args:
        network: C checkpoints of L layers.
        thresholds: Absolute and relative ones.
        spec: Which Jacobians.
        rows: How many there are, and how many of the first have their spectrum averaged.
        sizes: Number of singular values of each layer's Jacobian.
        affine: Which layers are their weight times their input, plus a bias: a weight bounds no other.
    """

    def __init__(
        self,
        network: DifferentiableNetwork,
        thresholds: tuple[Sequence[float], Sequence[float]],
        spec: JacobianSpec,
        rows: tuple[int, int],
        sizes: Sequence[int],
        affine: Sequence[bool],
    ) -> None:
        self.affine = affine
        self.network, self.spec, self.spectral = network, spec, rows[1]
        self.sizes, self.size = sizes, max(sizes)
        self.eps = torch.tensor(thresholds[0], dtype=torch.float64, device=network.device)
        self.relative = torch.tensor(thresholds[1], dtype=torch.float64, device=network.device)
        shape = (network.size, len(network.layers), rows[0])
        wanted = np.array([spec.wants(layer) for layer in range(shape[1])])
        self.visited = np.zeros(shape[1], dtype=bool)
        # Rows are the last axis, as everything is reduced over them.
        self.counts = np.zeros((*shape[:2], len(self.eps) + len(self.relative), rows[0]), dtype=np.int64)
        self.bounds = np.full((*shape[:2], len(self.eps), rows[1]), -1, dtype=np.int64)
        self.nonzero, self.finite = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
        # Not yet for the rows whose spectrum is wanted: those are decomposed in any case.
        self.certain = np.broadcast_to(~wanted[None, :, None], shape).copy()
        self.spectrum = np.zeros((*shape[:2], self.size + 2))
        self.norms: Array | None = None
        # Layers whose Jacobian cannot be computed, with the reason.
        self.failed: dict[int, str] = {}
        # For layers computed in less than float64: how far rounding moves singular values, relative to the largest,
        # and by how much it may change the counts of all rows together.
        self.rounding: dict[int, float] = {}
        self.uncertain = np.zeros((*shape[:2], len(self.eps) + len(self.relative)), dtype=np.int64)
        self.rows = np.zeros(0, dtype=np.intp)
        self.shared: dict[int, Counts] = {}
        self.weights: dict[int, torch.Tensor | None] = {}

    def count(self, layer: int, gram: Gram, block: slice) -> None:
        """Count from the Gram matrices of a block of the rows after those whose spectrum is wanted."""
        self.visited[layer] = True
        size, gram_rows = gram.values.shape[:2]
        rows = np.arange(block.start, block.stop) + self.spectral
        eps, relative = self._thresholds(layer, rows)
        # A Gram matrix shared by all rows is counted once, unless thresholds differ between rows.
        shared = gram.shared and eps.shape[1] == 1
        counts = self.shared.get(layer) if shared else None
        if counts is None:
            eps = (eps / gram.scale.unsqueeze(-1)).expand(size, max(gram_rows, eps.shape[1]), -1)
            values = gram.values.expand(-1, eps.shape[1], -1, -1).flatten(0, 1)
            error = gram.error.expand(-1, eps.shape[1]).flatten()
            counts = gram_counts(values, error, eps.flatten(0, 1), relative)
            if shared:
                self.shared[layer] = counts
        finite = gram.finite.cpu().numpy()
        self.counts[:, layer, :, rows] = _by_row(counts.number, size).swapaxes(0, 1)
        self.nonzero[:, layer, rows] = _by_row(counts.positive, size)
        # Singular values would not help a Jacobian that is not finite.
        self.certain[:, layer, rows] = _by_row(counts.certain, size) | ~finite
        self.finite[:, layer, rows] = finite

    def decompose(self, layer: int, factor: torch.Tensor, input_factor: torch.Tensor | None, block: slice) -> None:
        """Count from singular values where Gram matrices did not, and add spectra; `block` is of `self.rows`.

        Args:
            layer: Its index.
            factor: Of the Jacobians, shape (C, n or 1, D, k).
            input_factor: A factor of the Jacobian of the layer's input, (C, n or 1, s, k), if bounds are wanted.
            block: Which of `self.rows`.
        """
        self.visited[layer] = True
        rows = self.rows[block]
        finite = finite_matrices(factor)
        needed = ~self.certain[:, layer, rows]
        if factor.shape[1] < len(rows):  # shared by all rows
            needed = np.ones_like(needed)
        elif not needed.any():
            return
        if needed.all():
            sigma = singular_values(made_finite(factor, finite))
        else:
            chosen = torch.as_tensor(needed, device=factor.device)
            sigma = torch.zeros(*finite.shape, min(factor.shape[-2:]), dtype=factor.dtype, device=factor.device)
            sigma[chosen] = singular_values(made_finite(factor[chosen], finite[chosen]))
        eps, relative = self._thresholds(layer, rows)
        # A slice of rows is written in place; other rows are copied out and in.
        at = slice(rows[0], rows[-1] + 1) if len(rows) == rows[-1] - rows[0] + 1 else rows
        count = max(eps.shape[1], sigma.shape[1])
        parts = [part.expand(-1, count, -1).movedim(-1, 0) for part in (eps, relative * sigma[..., :1])]
        limits = torch.cat(parts).movedim(0, -1)
        _write_rows(self.counts[:, layer], at, needed[:, None], numerical_rank(sigma, limits).movedim(-1, 1))
        if layer in self.rounding:
            slack = self.rounding[layer] * sigma[..., :1]
            width = numerical_rank(sigma, limits - slack) - numerical_rank(sigma, limits + slack)
            # A zero Jacobian has no rounding.
            self.uncertain[:, layer] += (width * (sigma[..., :1] > 0.0)).sum(1).cpu().numpy()
        _write_rows(self.nonzero[:, layer], at, needed, sigma[..., 0] > 0.0)
        _write_rows(self.finite[:, layer], at, needed, finite)
        first = int(np.searchsorted(rows, self.spectral))
        if first:
            self._add_spectra(layer, sigma, first)
            if input_factor is not None:
                # Replaced by zero: rows that are not finite get no bound anyway.
                self._add_bounds(layer, sigma, made_finite(input_factor, finite), rows[:first])

    def _thresholds(self, layer: int, rows: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Return absolute thresholds, (C, n or 1, E), and those relative to the row's largest singular value, (R,).

        On a subspace they are relative to the norm of the whole Jacobian, and so absolute.
        """
        eps = self.eps.expand(self.network.size, 1, -1)
        if self.norms is None:
            return eps, self.relative
        norms = torch.as_tensor(self.norms[:, layer, rows], device=self.eps.device).unsqueeze(-1)
        return torch.cat((eps.expand(-1, len(rows), -1), self.relative * norms), -1), self.relative[:0]

    def _add_spectra(self, layer: int, sigma: torch.Tensor, rows: int) -> None:
        """Add the spectra of the first rows, and their effective and stable ranks."""
        part = sigma.expand(-1, max(rows, sigma.shape[1]), -1)[:, :rows]
        sums = [one.sum(1) for one in (part, effective_rank(part).unsqueeze(-1), stable_rank(part).unsqueeze(-1))]
        # Singular values beyond the factor's columns stay zero.
        at = [*range(sigma.shape[-1]), self.size, self.size + 1]
        self.spectrum[:, layer, at] += torch.cat(sums, -1).cpu().numpy() / self.spectral

    def _add_bounds(self, layer: int, sigma: torch.Tensor, input_factor: torch.Tensor, rows: Array) -> None:
        """Bound the counts of rows by #{sigma(W) > eps / |B|}, W the weight and B the Jacobian of the layer's input."""
        if layer not in self.weights:
            weight = self.network.weight(layer) if self.affine[layer] else None
            self.weights[layer] = None
            if weight is not None and weight.separate and weight.positions:
                # B is 1 if the layer's input is the network's: its Jacobian is then the weight, and decomposed already.
                is_first = input_factor[0].numel() == 1 and weight.positions == 1 and bool((input_factor == 1.0).all())
                if is_first and layer not in self.rounding:
                    self.weights[layer] = sigma[:, 0]
                else:
                    own = singular_values(made_finite(weight.matrix, finite_matrices(weight.matrix)))
                    self.weights[layer] = own.repeat(1, weight.positions)
        weight_values = self.weights[layer]
        if weight_values is not None:
            number = bound_counts(weight_values, input_factor, self.eps)
            # At thresholds below the rounding of the product the count is not bounded.
            largest = weight_values[:, :1] * input_factor.square().sum((-2, -1)).sqrt()
            rounded = SAFETY * rounding(max(weight_values.shape[1], *input_factor.shape[-2:])) * largest.unsqueeze(-1)
            number = torch.where((self.eps <= rounded) & (number < self.sizes[layer]), -1, number)
            number = number.expand(-1, max(len(rows), number.shape[1]), -1)[:, : len(rows)]
            self.bounds[:, layer][..., rows] = number.movedim(1, -1).cpu().numpy()

    def estimates(self, reasons: Mapping[int, str]) -> dict[str, Estimate]:
        """Return the estimates by quantity key, arrays (C, L, ...).

        Args:
            reasons: Why some layers were not measured.
        """
        finite, split = self.finite.all(2), len(self.eps)
        measured = Status.OK if self.spec.directions is None else Status.LOWER_BOUND
        status = np.where(self.nonzero.any(2), measured, Status.DEAD)
        status = np.where(finite, status, Status.NONFINITE)
        status = np.where(self.visited, status, Status.NOT_MEASURED).astype(np.int8)
        status[:, list(self.failed)] = Status.FAILED
        valid = finite & self.visited & (status != Status.FAILED)
        uncertain = self.uncertain >= UNCERTAIN * self.counts.shape[3]
        parts = (slice(0, split), slice(split, None))
        rank, relative = (
            _unresolved(_mean_of_counts(self.counts[:, :, p], valid, status), uncertain[:, :, p]) for p in parts
        )
        if uncertain.any():
            reasons = {**{k: COARSE for k in self.rounding if uncertain[:, k].any()}, **reasons}
        present = np.arange(self.size) < np.array(self.sizes)[:, None]
        present = np.pad(present, ((0, 0), (0, 2)), constant_values=True)
        spectrum = np.where(present & valid[..., None], self.spectrum, np.nan)
        components = np.repeat(status[..., None], self.size, -1)
        components[np.isnan(spectrum[..., : self.size]) & valid[..., None]] = Status.NOT_MEASURED
        rank_status = status
        if self.spec.directions is not None:
            # Effective and stable rank of a part of the Jacobian are no bounds on those of the whole.
            rank_status = np.where(status == Status.LOWER_BOUND, Status.NOT_MEASURED, status).astype(np.int8)
            spectrum[..., self.size :] = np.nan
        # A count that is rounding has no bound.
        bounded = (self.bounds >= np.maximum(0, self.counts[:, :, :split, : self.spectral])).all(3)
        bounded &= ~uncertain[:, :, :split]
        bound = _mean_of_counts(self.bounds, valid, status)
        assert bound.status is not None
        assert bound.stderr is not None
        broken = np.isin(bound.status, (Status.NONFINITE, Status.FAILED))
        bound_status = np.where(bounded | broken, bound.status, Status.NOT_MEASURED)
        return {
            "local_rank": dataclasses.replace(rank, reasons={**reasons, **self.failed} or None),
            "local_rank_count": Estimate(self._histogram(valid), None),
            "local_rank_rel": relative,
            "rank_bound_jacobian": Estimate(
                np.where(bounded, bound.value, np.nan),
                bound_status.astype(np.int8),
                stderr=np.where(bounded, bound.stderr, np.nan),
            ),
            "singular_value": _unresolved(
                Estimate(spectrum[..., : self.size], components),
                self._relative_rounding()[:, None] * spectrum[..., :1] > UNCERTAIN * spectrum[..., : self.size],
            ),
            "effective_rank": _unresolved(Estimate(spectrum[..., self.size], rank_status), self._ranks_uncertain()),
            "stable_rank": _unresolved(Estimate(spectrum[..., self.size + 1], rank_status), self._ranks_uncertain()),
        }

    def _relative_rounding(self) -> Array:
        """Return how far rounding moves singular values, relative to the largest, at every layer (L,)."""
        return np.array([self.rounding.get(layer, 0.0) for layer in range(len(self.sizes))])

    def _ranks_uncertain(self) -> Array:
        """Return whether rounding may move effective and stable rank by more than `UNCERTAIN`, at every layer (L,)."""
        relative = self._relative_rounding()
        least = np.where(relative > 0.0, relative, 1.0)
        return np.asarray(least * np.abs(np.log(least)) * np.sqrt(self.sizes) > UNCERTAIN) | (relative >= 1.0)

    def _histogram(self, valid: Array) -> Array:
        """Return how many rows have each rank, (C, L, E, size + 1); -1 if not valid."""
        number = self.counts[:, :, : len(self.eps)]
        lead, values = number.shape[:3], self.size + 1
        # One bincount for all: the values of every cell are shifted into a range of their own.
        first = np.arange(int(np.prod(lead)))[:, None] * values
        found = np.bincount(
            (number.reshape(len(first), number.shape[3]) + first).ravel(), minlength=len(first) * values
        )
        return np.where(valid[..., None, None], found.reshape(*lead, values), -1)


def _write_rows(target: Array, rows: Array | slice, needed: Array, values: torch.Tensor) -> None:
    """Write values of rows, the last axis, where `needed`."""
    part = target[..., rows]
    # In place: the arrays differ in memory order, where `np.where` is many times slower.
    np.copyto(part, values.cpu().numpy(), where=True if needed.all() else needed)
    if not isinstance(rows, slice):
        target[..., rows] = part


def _by_row(values: torch.Tensor, size: int) -> Array:
    """Return values of C n matrices as an array (C, n, ...)."""
    found: Array = values.view(size, -1, *values.shape[1:]).cpu().numpy()
    return found


def _unresolved(estimate: Estimate, uncertain: Array) -> Estimate:
    """Return an estimate that is UNRESOLVED where it was measured and is `uncertain`."""
    assert estimate.status is not None
    known = np.isin(estimate.status, (Status.OK, Status.LOWER_BOUND))
    status = np.where(known & uncertain, Status.UNRESOLVED, estimate.status).astype(np.int8)
    return dataclasses.replace(estimate, status=status)


def _mean_of_counts(number: Array, valid: Array, status: Array) -> Estimate:
    """Return the mean, its standard error and the extremes of integers (C, L, E, N) over rows, NaN if not valid."""
    rows = number.shape[3]
    total = number.sum(3)
    # In integers, so that equal counts have a spread of exactly 0. The error of a single row is unknown, not 0.
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
