"""Ranks of weights, counted, and the bounds on local rank that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import Weight, WeightedNetwork
from ibscan.core.records import Array, Probe
from ibscan.numerics.spectra.spectrum import finite_matrices, made_finite, numerical_rank, singular_values, stable_rank

__all__ = ["weight_estimates", "without_exceeded_bounds"]

# No activation here is steeper than gelu, whose slope is 1.13 at most.
STEEPEST = 1.13
# How much larger than the rounding of each weight that of a product of them is taken to be.
SAFETY = 4.0


def weight_estimates(network: WeightedNetwork, probe: Probe, thresholds: Sequence[float]) -> dict[str, Estimate]:
    """Return counts and bounds of the weight of every layer of every checkpoint.

    Args:
        network: C checkpoints.
        probe: N rows, on which a layer is its weight or is not.
        thresholds: Absolute, > 0.

    Returns:
        Estimates by quantity key; `not_measured` for layers that make something else of what they are fed than its
        product with their weight, for modules that have no weight, and for bounds that a network does not obey: where a
        layer is fed by more than the one before it, ranks may add up.
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
            weights.unknown()
            continue
        sound = finite_matrices(weight.matrix)
        sigma = singular_values(made_finite(weight.matrix, sound))
        finite = sound.cpu().numpy()
        alive = (sigma[:, 0] > 0.0).cpu().numpy()
        status[:, layer] = np.where(finite, np.where(alive, Status.OK, Status.DEAD), Status.NONFINITE)
        # Divided first: squares of very small or large values would under- or overflow.
        shares = sigma.unsqueeze(1) / eps.unsqueeze(-1)
        counts = {
            "weight_rank": numerical_rank(sigma, eps).to(torch.float64),
            "rank_bound_frobenius": shares.square().sum(-1),
            "rank_limit_statement": 2.0 * shares[..., 0].square(),
        }
        for key, values in counts.items():
            found[key][:, layer] = np.where(finite[:, None], values.cpu().numpy(), np.nan)
        stable[:, layer] = np.where(finite, stable_rank(sigma).cpu().numpy(), np.nan)
        weights.add(sigma, weight, finite, min(network.layers[layer].width, inputs))
    bound, bounded = weights.bounds(min(thresholds), status)
    spread = np.repeat(status[..., None], len(eps), -1)
    whole = np.repeat(np.broadcast_to(np.array(holds, dtype=np.int64), shape)[..., None], len(eps), -1)
    return {
        **{key: _in_range(values, spread) for key, values in found.items()},
        "weight_holds": Estimate(whole, None),
        "weight_stable_rank": Estimate(stable, status),
        "rank_bound_weights": Estimate(bound, bounded),
    }


_THRESHOLDED = ("weight_rank", "rank_bound_frobenius", "rank_limit_statement")


def _in_range(values: Array, status: Array) -> Estimate:
    """Return an estimate without what is beyond the largest number."""
    beyond = np.isinf(values)
    return Estimate(np.where(beyond, np.nan, values), np.where(beyond, Status.NOT_MEASURED, status).astype(np.int8))


class _Weights:
    """Singular values of the weights of a plain network, layer by layer while they make the layers, as ranks.

    As in numerical libraries, singular values below the rounding of their matrix do not count towards its rank. But the
    other layers may enlarge such a value, in a Jacobian, beyond a threshold: what is counted there may be rounding, and
    nothing bounds it but the numbers of rows and columns.
    """

    def __init__(self, size: int, plain: bool) -> None:
        self.size, self.plain = size, plain
        self.ranks: list[Array] = []
        self.full: list[float] = []
        self.most: list[int] = []
        self.rounding: list[float] = []
        self.log_norm: list[Array] = []

    def unknown(self) -> None:
        """Note that nothing bounds the next layer, nor any after it."""
        self.plain = False

    def add(self, sigma: torch.Tensor, weight: Weight, finite: Array, most: int) -> None:
        """Note the next layer's weight.

        Args:
            sigma: Its singular values, (C, k).
            weight: The weight.
            finite: Which checkpoints' are finite, (C,).
            most: The smaller side of the layer's Jacobian.
        """
        self.plain = self.plain and weight.positions is not None
        if not self.plain or weight.positions is None:
            return
        share = max(weight.matrix.shape[-2:]) * float(torch.finfo(torch.float64).eps)
        rank = numerical_rank(sigma, share * sigma[:, :1])[:, 0].to(torch.float64).cpu().numpy()
        with np.errstate(divide="ignore"):
            self.log_norm.append(np.log(sigma[:, 0].cpu().numpy() * STEEPEST))
        self.ranks.append(np.where(finite, rank * weight.positions, np.nan))
        self.full.append(sigma.shape[1] * weight.positions)
        self.rounding.append(share)
        self.most.append(most)

    def bounds(self, least: float, status: Array) -> tuple[Array, Array]:
        """Return the smallest rank up to every layer, (C, L), and its status.

        Args:
            least: The smallest threshold.
            status: Of the weights, (C, L).
        """
        bound = np.full(status.shape, np.nan)
        known = np.full(status.shape, Status.NOT_MEASURED, dtype=np.int8)
        before = np.full(self.size, np.inf)
        growth = np.zeros(self.size)
        for k, most in enumerate(self.most):
            growth = growth + self.log_norm[k]
            rank, full = np.min(self.ranks[: k + 1], 0), min(self.full[: k + 1])
            # A layer before which all is zero is zero, without rounding.
            noise = np.where(np.isneginf(growth), -np.inf, np.log(SAFETY * sum(self.rounding[: k + 1])) + growth)
            certain = noise < np.log(least)
            # Of layers behind one that is not finite nothing is known.
            finite = ~np.isnan(rank)
            told = finite & (certain | ((full >= most) & (full <= before)))
            bound[:, k] = np.where(told, np.where(certain, rank, full), np.nan)
            before = np.fmin(before, bound[:, k])
            known[:, k] = np.where(told, status[:, k], np.where(finite, Status.NOT_MEASURED, Status.NONFINITE))
        return bound, known


def without_exceeded_bounds(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return estimates without bounds that a count exceeds.

    Only rounding can bring that about: at thresholds below that of a Jacobian nothing else is counted.

    Args:
        found: Estimates of the same checkpoints and layers, of several measures.
    """
    bound = found.get("rank_bound_weights")
    if bound is None or bound.status is None:
        return dict(found)
    broken = np.zeros(bound.value.shape, dtype=bool)
    for key in ("local_rank", "local_rank_rel"):
        most = found[key].maximum if key in found else None
        if most is not None and most.shape[-1]:
            broken |= (most > bound.value[..., None]).any(-1)
    value = np.where(broken, np.nan, bound.value)
    status = np.where(broken, Status.NOT_MEASURED, bound.status).astype(np.int8)
    return {**found, "rank_bound_weights": Estimate(value, status)}
