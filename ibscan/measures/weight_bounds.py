"""Count the ranks of weights, and bound local rank by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import Weight, WeightedNetwork
from ibscan.core.records import Array, Probe
from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite, numerical_rank, singular_values, stable_rank

__all__ = ["weight_estimates"]

# Largest slope of any activation here (gelu).
STEEPEST = 1.13
# Factor by which the rounding of a product of weights may exceed the sum of their own.
SAFETY = 4.0


def weight_estimates(network: WeightedNetwork, probe: Probe, thresholds: Sequence[float]) -> dict[str, Estimate]:
    """Return counts and bounds from the weight of every layer of every checkpoint.

    Args:
        network: C checkpoints of L layers.
        probe: N rows, on which a layer is tested for being its weight times its input, plus a bias.
        thresholds: Absolute, > 0.

    Returns:
        Estimates by quantity key, arrays (C, L, ...). Layers without a weight, or that are not affine on the probe, are
        `not_measured`, and so are bounds behind a layer whose input is more than the output of the one before it:
        ranks may add up.
    """
    shape = (network.size, len(network.layers))
    eps = torch.tensor(thresholds, dtype=torch.float64, device=network.device)
    found = {key: np.full((*shape, len(eps)), np.nan) for key in _THRESHOLDED}
    stable = np.full(shape, np.nan)
    status = np.full(shape, Status.NOT_MEASURED, dtype=np.int8)
    holds, weights = network.affine(probe.x), _Weights(network.size, network.plain)
    inputs = int(probe.x[0].size)
    for layer in range(shape[1]):
        weight = network.weight(layer) if holds[layer] else None
        if weight is None:
            weights.add_unbounded()
            continue
        is_finite = finite_matrices(weight.matrix)
        sigma = singular_values(made_finite(weight.matrix, is_finite))
        finite = is_finite.cpu().numpy()
        nonzero = (sigma[:, 0] > 0.0).cpu().numpy()
        status[:, layer] = np.where(finite, np.where(nonzero, Status.OK, Status.DEAD), Status.NONFINITE)
        # Divide before squaring, which could under- or overflow.
        ratios = sigma.unsqueeze(1) / eps.unsqueeze(-1)
        counts = {
            "weight_rank": numerical_rank(sigma, eps).to(torch.float64),
            "rank_bound_frobenius": ratios.square().sum(-1),
            "rank_limit_statement": 2.0 * ratios[..., 0].square(),
        }
        for key, values in counts.items():
            found[key][:, layer] = np.where(finite[:, None], values.cpu().numpy(), np.nan)
        stable[:, layer] = np.where(finite, stable_rank(sigma).cpu().numpy(), np.nan)
        weights.add(sigma, weight, finite, min(network.layers[layer].width, inputs))
    bound, bounded = weights.bounds(min(thresholds), status)
    by_threshold = np.repeat(status[..., None], len(eps), -1)
    is_affine = np.repeat(np.broadcast_to(np.array(holds, dtype=np.int64), shape)[..., None], len(eps), -1)
    return {
        **{key: _in_range(values, by_threshold) for key, values in found.items()},
        "weight_holds": Estimate(is_affine, None),
        "weight_stable_rank": Estimate(stable, status),
        "rank_bound_weights": Estimate(bound, bounded),
    }


_THRESHOLDED = ("weight_rank", "rank_bound_frobenius", "rank_limit_statement")


def _in_range(values: Array, status: Array) -> Estimate:
    """Return an estimate in which overflowed values are not measured."""
    overflow = np.isinf(values)
    return Estimate(np.where(overflow, np.nan, values), np.where(overflow, Status.NOT_MEASURED, status).astype(np.int8))


class _Weights:
    """Ranks of the weights of a plain network, layer by layer, as long as they bound the Jacobian.

    Singular values below the rounding of their matrix do not count towards its rank. But other layers may enlarge such
    a value beyond a threshold in the Jacobian; such counts are bounded by the sizes of the matrices alone.
    """

    def __init__(self, size: int, plain: bool) -> None:
        self.size, self.plain = size, plain
        self.ranks: list[Array] = []
        self.full: list[float] = []
        self.most: list[int] = []
        self.rounding: list[float] = []
        self.log_norm: list[Array] = []

    def add_unbounded(self) -> None:
        """Add a layer that no weight bounds, nor any layer after it."""
        self.plain = False

    def add(self, sigma: torch.Tensor, weight: Weight, finite: Array, most: int) -> None:
        """Add the next layer's weight, with its singular values (C, k).

        Args:
            sigma: The singular values.
            weight: The weight.
            finite: Whether it is finite, (C,).
            most: The smaller side of the layer's Jacobian.
        """
        self.plain = self.plain and weight.positions is not None
        if not self.plain or weight.positions is None:
            return
        relative = max(weight.matrix.shape[-2:]) * float(torch.finfo(torch.float64).eps)
        rank = numerical_rank(sigma, relative * sigma[:, :1])[:, 0].to(torch.float64).cpu().numpy()
        with np.errstate(divide="ignore"):
            self.log_norm.append(np.log(sigma[:, 0].cpu().numpy() * STEEPEST))
        self.ranks.append(np.where(finite, rank * weight.positions, np.nan))
        self.full.append(sigma.shape[1] * weight.positions)
        self.rounding.append(relative)
        self.most.append(most)

    def bounds(self, least: float, status: Array) -> tuple[Array, Array]:
        """Return the smallest rank up to every layer, (C, L), and its status.

        Args:
            least: The smallest threshold.
            status: Of the weights, (C, L).
        """
        bound = np.full(status.shape, np.nan)
        bound_status = np.full(status.shape, Status.NOT_MEASURED, dtype=np.int8)
        before = np.full(self.size, np.inf)
        growth = np.zeros(self.size)
        for k, most in enumerate(self.most):
            growth = growth + self.log_norm[k]
            rank, full = np.min(self.ranks[: k + 1], 0), min(self.full[: k + 1])
            # Behind a zero weight the Jacobian is zero, without rounding.
            noise = np.where(np.isneginf(growth), -np.inf, np.log(SAFETY * sum(self.rounding[: k + 1])) + growth)
            certain = noise < np.log(least)
            finite = ~np.isnan(rank)
            valid = finite & (certain | ((full >= most) & (full <= before)))
            bound[:, k] = np.where(valid, np.where(certain, rank, full), np.nan)
            before = np.fmin(before, bound[:, k])
            bound_status[:, k] = np.where(valid, status[:, k], np.where(finite, Status.NOT_MEASURED, Status.NONFINITE))
        return bound, bound_status
