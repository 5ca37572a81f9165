"""Ranks of the weights, and the bounds on local rank that follow from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ibscan.numerics.spectrum import finite_matrices, made_finite, numerical_rank, singular_values, stable_rank
from ibscan.types import Array, At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["WeightRank"]


@dataclass(frozen=True)
class WeightRank:
    """Singular values of every layer's weight matrix above thresholds, its norms over them, and the rank they allow.

    A convolution's weight is its kernel as a matrix, one row an output channel. All is exact; no probe row is used.

    Args:
        eps: Absolute thresholds, > 0 (strict inequality).

    Source:
        Patel and Shwartz-Ziv 2024, arXiv 2410.07687, section 2 and propositions 2 and 3.
    """

    eps: tuple[float, ...] = (0.001, 0.01, 0.1)

    name: ClassVar[str] = "weight_rank"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    at: ClassVar[At] = "pre"
    samples: ClassVar[int | None] = 0
    primary: ClassVar[tuple[str, ...]] = ("rank_limit_statement",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("weight_rank", "#{sigma(W) > eps}", "1", "number of singular values of the weight > eps", ("eps",)),
        Quantity("weight_stable_rank", "||W||_F^2/||W||_2^2", "1", "squared Frobenius over squared spectral norm"),
        Quantity(
            "rank_bound_weights",
            "min rank W",
            "1",
            "smallest rank, at eps -> 0, of the weights up to the layer (as maps of one row): the rank of no input "
            "Jacobian at pre exceeds it",
        ),
        Quantity(
            "rank_bound_frobenius",
            "||W||_F^2/eps^2",
            "1",
            "squared Frobenius norm of the weight over eps squared, which weight_rank does not exceed",
            ("eps",),
        ),
        Quantity(
            "rank_limit_statement",
            "2 ||W||_2^2/eps^2",
            "1",
            "twice the squared spectral norm of the weight over eps squared: a statement about some layer of a "
            "minimum-norm solution as depth goes to infinity, and no bound on this network",
            ("eps",),
        ),
    )

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: not of modules asked for by name, which are no layers."""
        return layer.noisy

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds."""
        return {"eps": self.eps}

    def __call__(
        self,
        network: Network,
        probe: Probe,  # noqa: ARG002
        streams: Streams,  # noqa: ARG002
        layers: Sequence[int] | None = None,  # noqa: ARG002
    ) -> Mapping[str, Estimate]:
        """Measure the weight of every layer of every checkpoint.

        Args:
            network: C checkpoints.
            probe: Not used.
            streams: Not used.
            layers: Not used: the smallest rank is of all layers before.

        Returns:
            Counts and bounds; `not_measured` for modules that have no weight, and for bounds that a network does not
            obey: where a layer is fed by more than the one before it, ranks may add up.
        """
        shape = (network.size, len(network.layers))
        eps = torch.tensor(self.eps, dtype=torch.float64, device=network.device)
        found = {key: np.full((*shape, len(eps)), np.nan) for key in _THRESHOLDED}
        stable, bound = np.full(shape, np.nan), np.full(shape, np.nan)
        status = np.full(shape, Status.NOT_MEASURED, dtype=np.int8)
        bounded = np.full(shape, Status.NOT_MEASURED, dtype=np.int8)
        least, known = np.full(shape[0], np.inf), network.plain
        for layer in range(shape[1]):
            weight = network.weight(layer)
            if weight is None:
                continue
            sound = finite_matrices(weight.matrix)
            sigma = singular_values(made_finite(weight.matrix, sound))
            finite = sound.cpu().numpy()
            alive = (sigma[:, 0] > 0.0).cpu().numpy()
            status[:, layer] = np.where(finite, np.where(alive, Status.OK, Status.DEAD), Status.NONFINITE)
            counts = {
                "weight_rank": numerical_rank(sigma, eps).to(torch.float64),
                "rank_bound_frobenius": sigma.square().sum(-1, keepdim=True) / eps.square(),
                "rank_limit_statement": 2.0 * sigma[:, :1].square() / eps.square(),
            }
            for key, values in counts.items():
                found[key][:, layer] = np.where(finite[:, None], values.cpu().numpy(), np.nan)
            stable[:, layer] = np.where(finite, stable_rank(sigma).cpu().numpy(), np.nan)
            known = known and weight.positions is not None
            if known:
                own = _rank(sigma, weight.matrix) * (weight.positions or 1)
                # Of layers behind one that is not finite nothing is known.
                least = np.minimum(least, np.where(finite, own, np.nan))
                bounded[:, layer] = np.where(np.isnan(least), Status.NONFINITE, status[:, layer])
                bound[:, layer] = least
        spread = np.repeat(status[..., None], len(eps), -1)
        return {
            **{key: Estimate(values, spread) for key, values in found.items()},
            "weight_stable_rank": Estimate(stable, status),
            "rank_bound_weights": Estimate(bound, bounded),
        }


_THRESHOLDED = ("weight_rank", "rank_bound_frobenius", "rank_limit_statement")


def _rank(sigma: torch.Tensor, matrix: torch.Tensor) -> Array:
    """Return the rank at eps -> 0: singular values above rounding, as numerical libraries count them."""
    limit = max(matrix.shape[-2:]) * torch.finfo(torch.float64).eps * sigma[:, :1]
    found: Array = numerical_rank(sigma, limit)[:, 0].to(torch.float64).cpu().numpy()
    return found
