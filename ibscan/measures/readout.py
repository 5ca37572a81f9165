"""The read-out channel: information through Gaussian noise added at the measured layer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ibscan.core import quantity
from ibscan.core.estimate import Estimate
from ibscan.core.measure import Layers, Measure, Sizes
from ibscan.core.network import LayeredNetwork
from ibscan.core.option import option
from ibscan.core.quantity import Dimension, Quantity
from ibscan.core.records import At, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.shared import (
    AT,
    BEYOND_Y,
    DEFAULT_NOISE,
    GIVEN_Y,
    MAX_DRAWS,
    MOST_DRAWS,
    NOISE,
    READ_OUT,
    REL_NOISE,
    ROWS,
    SAMPLES,
    TARGET,
    TOLERANCE,
    WIDE,
)

if TYPE_CHECKING:
    from ibscan.measures.driver import LayerValues
    from ibscan.measures.readout_cells import Draws

__all__ = ["ReadoutInformation"]


def _quantities(prefix: str, dim: Dimension, noisy: str) -> tuple[Quantity, ...]:
    return (
        Quantity(
            f"{prefix}_xt",
            "I(X; T+Z)",
            "nat",
            f"information of the layer's {noisy} read-out about the input",
            (dim,),
            companions=("se", "lower", "upper", "draws"),
            formula="I(X; T+Z) = E[ln p(T+Z | X) - ln p(T+Z)], p(t | x) Gaussian about T(x), p(t) the mixture over the "
            "probe; lower and upper are the pairwise bounds of Kolchinsky and Tracey 2017",
        ),
        Quantity(
            f"{prefix}_ty",
            "I(T+Z; Y)",
            "nat",
            f"information of the layer's {noisy} read-out about the label",
            (dim,),
            companions=("se",),
            formula="I(T+Z; Y) = E[ln p(T+Z | Y) - ln p(T+Z)], p(t | y) the mixture over the rows of the class",
        ),
        Quantity(
            f"{prefix}_xt_given_y",
            "I(X; T+Z | Y)",
            "nat",
            f"information of the layer's {noisy} read-out about the input beyond the label, I(X; T+Z) - I(T+Z; Y)",
            (dim,),
            companions=("se",),
            formula="I(X; T+Z | Y) = I(X; T+Z) - I(T+Z; Y) = E[ln p(T+Z | X) - ln p(T+Z | Y)], its error of the same "
            "draws",
            caveat=GIVEN_Y,
            table=BEYOND_Y,
        ),
        Quantity(
            f"{prefix}_cap",
            "cap of I(X; T+Z)",
            "nat",
            "smallest proven upper bound: H(X), the Gaussian of the same covariance, or the pairwise one",
            (dim,),
            formula="min(H(X), (1/2) ln det(I + Cov(T) / noise^2), -sum_i w_i ln sum_j w_j exp(-d_ij^2 / (2 noise^2)))",
        ),
        Quantity(
            f"{prefix}_slope",
            "-dI/d ln noise",
            "1",
            "E||T - E[T|T+Z]||^2 / noise^2: nats that I(X; T+Z) loses per unit of ln noise",
            (dim,),
            companions=("se",),
            formula="-dI/d ln noise = E||T - E[T | T+Z]||^2 / noise^2",
            source="Guo, Shamai, Verdu 2005 (I-MMSE)",
            caveat="It tends to the local rank as the noise falls, while the noise is above the spacing of the rows.",
        ),
    )


@dataclass(frozen=True)
class ReadoutInformation(Measure):
    """I(X; T+Z) and I(T+Z; Y) of the deterministic layer T with Gaussian noise Z at that layer.

    Args:
        noise: Standard deviations, > 0, activation units.
        rel_noise: Standard deviations as multiples of the layer's own root-mean-square distance from its mean, > 0.
        tolerance: Target half width of the 95 % interval, nats.
        max_draws: Draws of one cell at most.
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.
    """

    noise: tuple[float, ...] = option(DEFAULT_NOISE, NOISE)
    rel_noise: tuple[float, ...] = option((), REL_NOISE)
    tolerance: float = option(TARGET, TOLERANCE)
    max_draws: int = option(MOST_DRAWS, MAX_DRAWS)
    at: At = option("post", AT)
    samples: int | None = option(ROWS, SAMPLES)

    name: ClassVar[str] = READ_OUT
    verb: ClassVar[str] = "mi"
    channel: ClassVar[str] = "readout"
    draws: ClassVar[bool] = True
    required_keys: ClassVar[tuple[str, ...]] = ("mi_readout_xt", "mi_readout_rel_xt")
    source: ClassVar[str] = "Goldfeld et al. 2019, arXiv 1810.05728; bounds of Kolchinsky and Tracey 2017"
    caveat: ClassVar[str] = (
        "The noise is the observer's, not the network's: without it I(X; T) is H(X) whatever is learned. It is of the "
        "rows of the probe, at most H(X), and another noise tells another story."
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        *_quantities("mi_readout", quantity.NOISE, "noisy"),
        Quantity(
            "mi_readout_projected_xt",
            "I(X; PT+Z)",
            "nat",
            "information of the noisy read-out of the first principal components alone, of layers of over 64 units",
            (quantity.NOISE,),
            companions=("se", "lower", "upper", "draws"),
            formula="I(X; PT+Z), P the projection on the first k principal components of T over the probe",
        ),
        Quantity(
            "mi_readout_projected_tail",
            "tail",
            "nat",
            "what the other components can add at most: 0 <= I(X; T+Z) - I(X; PT+Z) <= tail",
            (quantity.NOISE,),
            formula="sum over the other eigenvalues lambda of Cov(T) of (1/2) ln(1 + lambda / noise^2)",
        ),
        Quantity(
            "mi_readout_projected_components",
            "k",
            "1",
            "how many principal components",
            (quantity.NOISE,),
            counted=True,
            formula="smallest k <= 64 whose tail is within the tolerance",
        ),
        *_quantities("mi_readout_rel", quantity.REL_NOISE, "relatively noisy"),
        Quantity(
            "noise_absolute",
            "noise",
            "activation units",
            "the relative noise times the layer's root-mean-square distance from its mean",
            (quantity.REL_NOISE,),
            formula="rel_noise (E||T - E T||^2)^(1/2)",
        ),
    )

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """The noise levels."""
        return {"noise": self.noise, "rel_noise": self.rel_noise}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: densities of all centres at all draws."""
        from ibscan.measures.work import PRODUCTS, drawn

        total = 0.0
        for layer in sizes.wanted:
            cells = (len(self.noise) + len(self.rel_noise)) * drawn(self, sizes.rows, layer.width)
            if layer.width > WIDE:
                # Principal components are measured too.
                cells += len(self.noise) * drawn(self, sizes.rows, WIDE)
                cells += 20 * layer.width**2 * min(sizes.rows, layer.width) / PRODUCTS
            total += cells
        return total

    def __call__(
        self, network: LayeredNetwork, probe: Probe, streams: RandomStreams, layers: Layers | None = None
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint at every noise level.

        Returns:
            Values in nats and slopes with Monte-Carlo standard errors (0 by quadrature), pairwise bounds and caps,
            arrays (C, L, noise). Those on principal components are left out if no layer is wide enough.
        """
        import numpy as np

        from ibscan.measures.driver import input_weights, labels_consistent, measure_each_layer
        from ibscan.measures.readout_cells import Labels, draws_of, layer_estimates
        from ibscan.numerics.tiling import aligned

        weights, ceiling = input_weights(probe)
        labels = Labels(probe.y is not None, labels_consistent(probe))
        joint = aligned(weights).to(network.device)
        kept: dict[int, Draws] = {}

        def measure_layer(data: LayerValues) -> dict[str, Estimate]:
            # Keep only the draws of one layer: its checkpoints come one after another.
            if data.index not in kept:
                kept.clear()
                kept[data.index] = draws_of(streams, data.index, data.values)
            return layer_estimates(self, data, kept[data.index], joint, ceiling, labels)

        found = measure_each_layer(self, network, probe, measure_layer, layers)
        projected = [key for key in found if key.startswith("mi_readout_projected_")]
        if not np.isfinite(found["mi_readout_projected_tail"].value).any():
            for key in projected:
                del found[key]
        return found
