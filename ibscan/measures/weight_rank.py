"""Ranks of the weights, and the bounds on local rank that follow from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ibscan.core import quantity
from ibscan.core.estimate import Estimate
from ibscan.core.measure import Layers, Measure, Sizes
from ibscan.core.network import WeightedNetwork
from ibscan.core.option import option
from ibscan.core.quantity import Quantity
from ibscan.core.records import At, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.shared import EPS, THRESHOLDS

__all__ = ["WeightRank"]

DIMS = (quantity.EPS,)


@dataclass(frozen=True)
class WeightRank(Measure):
    """Singular values of every layer's weight matrix above thresholds, its norms over them, and the rank they allow.

    A convolution's weight is its kernel as a matrix, one row an output channel (an input channel where it is
    transposed). A weight counts where the layer is found, on every probe row, to be its product with the layer's
    input plus the bias: no number is of the rows.

    Args:
        eps: Absolute thresholds, > 0 (strict inequality).
    """

    eps: tuple[float, ...] = option(THRESHOLDS, EPS)

    name: ClassVar[str] = "weight_rank"
    verb: ClassVar[str] = "rank"
    rows_counted: ClassVar[int] = 0
    required_keys: ClassVar[tuple[str, ...]] = ("weight_holds",)
    source: ClassVar[str] = "Patel and Shwartz-Ziv 2024, arXiv 2410.07687, section 2 and propositions 2 and 3"
    caveat: ClassVar[str] = (
        "It is of the weight alone, whatever the data; the local rank above eps may exceed it at thresholds that are "
        "not small."
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "weight_rank",
            "#{sigma(W) > eps}",
            "1",
            "number of singular values of the weight > eps",
            DIMS,
            limit="rows_counted",
            formula="#{k : sigma_k(W) > eps}",
        ),
        Quantity(
            "weight_holds",
            "W",
            "1",
            "1 where the layer makes, on all probe rows, its weight times what it is fed plus its bias, else 0",
            DIMS,
            counted=True,
            default_shown=False,
            formula="1 if layer = W fed + b on every row of the probe, else 0",
        ),
        Quantity(
            "weight_stable_rank",
            "||W||_F^2/||W||_2^2",
            "1",
            "squared Frobenius over squared spectral norm",
            limit="rows_counted",
            formula="sum_k sigma_k(W)^2 / sigma_1(W)^2",
        ),
        Quantity(
            "rank_bound_weights",
            "min rank W",
            "1",
            "smallest rank, at eps -> 0, of the weights up to the layer (as maps of one row): the rank of no input "
            "Jacobian at pre exceeds it",
            limit="rows_counted",
            formula="min over layers i <= l of rank W_i",
            caveat="It holds where every layer is fed by the one before it alone.",
        ),
        Quantity(
            "rank_bound_frobenius",
            "||W||_F^2/eps^2",
            "1",
            "squared Frobenius norm of the weight over eps squared, which weight_rank does not exceed",
            DIMS,
            limit="rows_counted",
            formula="sum_k sigma_k(W)^2 / eps^2 >= #{k : sigma_k(W) > eps}",
        ),
        Quantity(
            "rank_limit_statement",
            "2 ||W||_2^2/eps^2",
            "1",
            "twice the squared spectral norm of the weight over eps squared: a statement about some layer of a "
            "minimum-norm solution as depth goes to infinity, and no bound on this network",
            DIMS,
            limit="rows_counted",
            formula="2 sigma_1(W)^2 / eps^2",
            caveat="It is a statement in the limit of depth, and bounds nothing in a network of a finite number of "
            "layers.",
        ),
    )

    @property
    def at(self) -> At:
        """Before the activation: what a weight makes."""
        return "pre"

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds."""
        return {"eps": self.eps}

    def applies_to(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether it is a layer of the network, not a module added by --layers."""
        return layer.noisy

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: one decomposition for each layer."""
        from ibscan.measures.work import DECOMPOSITIONS

        pairs = zip([sizes.inputs, *(layer.width for layer in sizes.layers)], sizes.layers, strict=False)
        work = [5e-4 + inputs * layer.width * min(inputs, layer.width) / DECOMPOSITIONS for inputs, layer in pairs]
        return float(sum(work))

    def __call__(
        self,
        network: WeightedNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Layers | None = None,  # noqa: ARG002 - the smallest rank is of all layers before
    ) -> Mapping[str, Estimate]:
        """Return counts and bounds from the weight of every layer of every checkpoint, arrays (C, L, ...)."""
        from ibscan.measures.weight_bounds import weight_estimates

        return weight_estimates(network, probe, self.eps)
