"""The network channel: information through a network with Gaussian noise after every hidden layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ibscan.core import quantity
from ibscan.core.estimate import Estimate
from ibscan.core.measure import Measure, Situation, Sizes
from ibscan.core.network import NoisyNetwork
from ibscan.core.option import PRECISION, Option, at_least, derived, option, whole
from ibscan.core.quantity import Dimension, Quantity
from ibscan.core.records import Layer, Probe, unbounded_layers
from ibscan.core.streams import RandomStreams
from ibscan.measures.shared import (
    BEYOND_Y,
    DEFAULT_NOISE,
    GIVEN_Y,
    MAX_DRAWS,
    MOST_DRAWS,
    NOISE,
    REL_NOISE,
    ROWS,
    SAMPLES,
    TARGET,
    TOLERANCE,
    noise_is_typed,
)

__all__ = ["NetworkInformation"]

# Replicas of a cell at most, and of one at a relative noise that is a default.
MOST_REPLICAS, QUICK_REPLICAS = 4096, 512


def _unasked(situation: Situation) -> bool:
    """Return whether relative noise is a default, and no budget was set that could be for it."""
    usual = {"max_replicas": MOST_REPLICAS, "max_draws": MOST_DRAWS}
    budget = any(situation.given.get(name, default) != default for name, default in usual.items())
    return not budget and not noise_is_typed(situation) and bool(unbounded_layers(situation.layers))


MAX_REPLICAS = Option(
    "Replicas of an input, and weighted paths of a draw, at most; network channel.",
    PRECISION,
    metavar="K",
    parse=whole,
    check=at_least(2),
    place=8,
)


def _quantities(prefix: str, dim: Dimension, network: str) -> tuple[Quantity, ...]:
    return (
        Quantity(
            f"{prefix}_xt",
            "I(X; T)",
            "nat",
            f"information of the {network}'s layer about the input",
            (dim,),
            companions=("se", "lower", "upper", "draws", "replicas", "budget", "inputs", "paths"),
            formula="I(X; T) = E[ln p(T | X) - ln p(T)], both densities from noisy passes, too large with the one that "
            "made the draw (own) and too small without (fresh): the middle of the bracket that these make",
        ),
        Quantity(
            f"{prefix}_ty",
            "I(T; Y)",
            "nat",
            f"information of the {network}'s layer about the label",
            (dim,),
            companions=("se", "lower", "upper"),
            formula="I(T; Y) = E[ln p(T | Y) - ln p(T)], p(t | y) the mixture over the rows of the class",
        ),
        Quantity(
            f"{prefix}_xt_given_y",
            "I(X; T | Y)",
            "nat",
            f"information of the {network}'s layer about the input beyond the label, I(X; T) - I(T; Y)",
            (dim,),
            companions=("se", "lower", "upper"),
            formula="I(X; T | Y) = I(X; T) - I(T; Y) = E[ln p(T | X) - ln p(T | Y)], its error of the same draws",
            caveat=GIVEN_Y,
            table=BEYOND_Y,
        ),
        Quantity(
            f"{prefix}_cap",
            "cap of I(X; T)",
            "nat",
            "smallest proven upper bound: H(X), or the Gaussian of the same covariance at this layer or one before it",
            (dim,),
            formula="min over layers up to this of min(H(X), (1/2) ln det(I + Cov(S) / noise^2)), S before its noise",
        ),
    )


@dataclass(frozen=True)
class NetworkInformation(Measure):
    """I(X; T) and I(T; Y) of a hidden layer T of the noisy network: noise after every hidden layer, propagated.

    Args:
        noise: Standard deviations, > 0, activation units.
        rel_noise: Standard deviations as multiples of each layer's own root-mean-square distance from its mean in the
            network without noise, > 0.
        tolerance: Target half width, nats: of the 95 % interval of the draws, and of the bracket beside it.
        max_replicas: Replicas of an input, and weighted paths or pairs of a draw, at most, >= 2.
        max_draws: Draws of one cell at most.
        samples: Probe rows at most.
        rel_quick: Whether cells at relative noise, which is then a default, have at most `QUICK_REPLICAS` replicas and
            no weighted paths: wide layers behind others stay unresolved, in a hundredth of the time.
    """

    noise: tuple[float, ...] = option(DEFAULT_NOISE, NOISE)
    rel_noise: tuple[float, ...] = option((), REL_NOISE)
    tolerance: float = option(TARGET, TOLERANCE)
    max_replicas: int = option(MOST_REPLICAS, MAX_REPLICAS)
    max_draws: int = option(MOST_DRAWS, MAX_DRAWS)
    samples: int | None = option(ROWS, SAMPLES)
    rel_quick: bool = derived(False, _unasked)

    name: ClassVar[str] = "mi_network"
    verb: ClassVar[str] = "mi"
    channel: ClassVar[str] = "network"
    draws: ClassVar[bool] = True
    required_keys: ClassVar[tuple[str, ...]] = ("mi_network_xt", "mi_network_rel_xt")
    inapplicable: ClassVar[str] = "it feeds no other layer, so the noisy network has no noise there"
    source: ClassVar[str] = (
        "Goldfeld et al. 2019, arXiv 1810.05728, sections 2 and 3; densities from both sides: Grosse et al. 2015, "
        "arXiv 1511.02543"
    )
    caveat: ClassVar[str] = (
        "It is of the network with noise in it, which is the one measured only if it was trained so. It is of the rows "
        "of the probe, at most H(X), and another noise tells another story."
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        *_quantities("mi_network", quantity.NOISE, "noisy network"),
        *_quantities("mi_network_rel", quantity.REL_NOISE, "relatively noisy network"),
        Quantity(
            "mi_network_noise_absolute",
            "noise",
            "activation units",
            "the relative noise times the layer's root-mean-square distance from its mean in the network without noise",
            (quantity.REL_NOISE,),
            formula="rel_noise (E||S - E S||^2)^(1/2), S the layer of the network without noise",
        ),
    )

    @property
    def patient(self) -> bool:
        """Whether to spend the budget even if it will hardly suffice: only if the user set it."""
        default = NetworkInformation
        return (self.max_replicas, self.max_draws) != (default.max_replicas, default.max_draws)

    def allowed(self, key: str) -> float:
        """Return what may be spent on a cell of a quantity: replicas times draws at most."""
        quick = self.rel_quick and key.startswith("mi_network_rel_")
        return float(min(self.max_replicas, QUICK_REPLICAS) if quick else self.max_replicas) * self.max_draws

    def applies_to(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether a layer is noisy: the output layer is not."""
        return not layer.output

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """The noise levels."""
        return {"noise": self.noise, "rel_noise": self.rel_noise}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds for networks that need many draws; much too long for others."""
        from ibscan.measures.work import BUDGET, CELL, CELL_BUDGET, SPENT, drawn

        by_rows = math.sqrt(sizes.rows / 1024)
        budget = float(self.max_replicas) * self.max_draws
        whole_budget = CELL_BUDGET * math.sqrt(budget / BUDGET)
        precision = TARGET / self.tolerance
        cell = CELL * precision ** (2.0 if precision > 1 else 0.5) + (SPENT * whole_budget if self.patient else 0.0)
        total, levels = 0.0, len(self.noise) + (0 if self.rel_quick else len(self.rel_noise))
        for layer in sizes.layers:
            if layer.first:
                total += (len(self.noise) + len(self.rel_noise)) * drawn(self, sizes.rows, layer.width)
            elif not layer.output:
                total += levels * min(cell, whole_budget) * by_rows * max(1.0, layer.width / 10)
        return total

    def __call__(
        self,
        network: NoisyNetwork,
        probe: Probe,
        streams: RandomStreams,
        layers: Sequence[int] | None = None,  # noqa: ARG002 - a cap needs all layers before
    ) -> Mapping[str, Estimate]:
        """Measure every hidden layer of every checkpoint at every noise level.

        Args:
            network: C checkpoints of L layers.
            probe: N rows in random order, already sampled: they are the population.
            streams: Standard normals, the same for all checkpoints and noise levels.
            layers: Ignored.

        Returns:
            Values (mean of own and fresh) with Monte-Carlo standard errors, brackets and caps, nats; arrays (C, L,
            noise) or (C, L, rel_noise). The output layer is not noisy, and not measured.
        """
        from ibscan.measures.noisy_cells import network_estimates

        return network_estimates(self, network, probe, streams)
