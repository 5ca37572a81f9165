"""Spectra of representations: in how many directions a layer's activations vary over the probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ibscan.core import quantity
from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure, Sizes
from ibscan.core.network import LayeredNetwork
from ibscan.core.option import option
from ibscan.core.quantity import Quantity
from ibscan.core.records import At, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.shared import AT, REL_EPS, ROWS, SAMPLES, THRESHOLDS

if TYPE_CHECKING:
    from ibscan.measures.driver import LayerValues

__all__ = ["Representation"]

TITLE = "spectra of representations"
SPECTRUM = "lambda_i the eigenvalues of the layer's covariance over the probe"


@dataclass(frozen=True)
class Representation(Measure):
    """Ranks, entropy and decay of the spectrum of a layer's covariance over the probe.

    Args:
        rel_eps: Thresholds of the numerical rank, relative to the largest singular value.
        at: `post` or `pre`.
        samples: Probe rows at most.
    """

    rel_eps: tuple[float, ...] = option(THRESHOLDS, REL_EPS)
    at: At = option("post", AT)
    samples: int | None = option(ROWS, SAMPLES)

    name: ClassVar[str] = "representation"
    verb: ClassVar[str] = "cluster"
    required_keys: ClassVar[tuple[str, ...]] = ("representation_effective_rank",)
    caveat: ClassVar[str] = (
        "It is of the activations over the whole probe, and no local rank: a layer that keeps one direction at every "
        "input may fill all of them over the inputs. No more than the number of rows less one can be seen."
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "representation_effective_rank",
            "erank",
            "1",
            "exponential of the entropy of the normalised singular values of the layer's centred activations",
            formula=f"exp(-sum_i q_i ln q_i), q_i = s_i / sum_j s_j, s_i^2 = lambda_i, {SPECTRUM}",
            table=TITLE,
            source="Roy and Vetterli 2007; Garrido et al. 2023, arXiv 2210.02885 (RankMe)",
        ),
        Quantity(
            "representation_participation",
            "PR",
            "1",
            "participation ratio of the eigenvalues of the layer's covariance",
            formula=f"(sum_i lambda_i)^2 / sum_i lambda_i^2, {SPECTRUM}",
            table=TITLE,
            source="Gao et al. 2017",
        ),
        Quantity(
            "representation_numerical_rank",
            "#{s > rel_eps s_1}",
            "1",
            "number of singular values of the layer's centred activations > rel_eps times the largest",
            (quantity.REL_EPS,),
            formula=f"#{{i : s_i > rel_eps s_1}}, s_i^2 = lambda_i, {SPECTRUM}",
            table=TITLE,
        ),
        Quantity(
            "representation_stable_rank",
            "sum lambda/lambda_1",
            "1",
            "sum of the eigenvalues of the layer's covariance over the largest",
            formula=f"sum_i lambda_i / lambda_1, {SPECTRUM}",
            table=TITLE,
            source="Rudelson and Vershynin 2007",
        ),
        Quantity(
            "representation_entropy",
            "H(lambda)",
            "nat",
            "entropy of the normalised eigenvalues of the layer's covariance",
            formula=f"-sum_i p_i ln p_i, p_i = lambda_i / sum_j lambda_j, {SPECTRUM}",
            table=TITLE,
            source="Skean et al. 2025, arXiv 2502.02013",
        ),
        Quantity(
            "representation_alpha",
            "alpha",
            "1",
            "exponent by which the eigenvalues of the layer's covariance fall with their place, in the middle of them",
            formula=f"slope of -ln lambda_i on ln i for i from r/10 to r/2, r the number above rounding of {SPECTRUM}",
            table=TITLE,
            source="Stringer et al. 2019; Agrawal et al. 2022, arXiv 2202.05808 (alpha-ReQ)",
            caveat="It is a number whether or not the spectrum is a power law, and is not measured where its range has "
            "fewer than three places.",
        ),
        Quantity(
            "representation_alpha_first",
            "i",
            "1",
            "first place of the spectrum that the exponent is fitted on",
            counted=True,
            default_shown=False,
            formula="r/10, rounded up, of the r eigenvalues above rounding",
        ),
        Quantity(
            "representation_alpha_last",
            "i",
            "1",
            "last place of the spectrum that the exponent is fitted on",
            counted=True,
            default_shown=False,
            formula="r/2, rounded up, of the r eigenvalues above rounding",
        ),
    )

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds."""
        return {"rel_eps": self.rel_eps}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: one decomposition of every layer's values."""
        from ibscan.measures.work import DECOMPOSITIONS

        return sum(
            1e-3 + sizes.rows * layer.width * min(sizes.rows, layer.width) / DECOMPOSITIONS for layer in sizes.wanted
        )

    def __call__(
        self,
        network: LayeredNetwork,
        probe: Probe,
        streams: RandomStreams,  # noqa: ARG002 - nothing is random
        layers: Layers | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint, arrays (C, L, ...); exact. Ranks of a dead layer are 0."""
        from ibscan.measures.driver import measure_each_layer

        return measure_each_layer(self, network, probe, self._measure_layer, layers)

    def _measure_layer(self, data: LayerValues) -> dict[str, Estimate]:
        """Return the estimates of one layer."""
        import numpy as np
        import torch

        from ibscan.measures.driver import scalar_estimate
        from ibscan.numerics.spectra.representation import (
            covariance_roots,
            decay_exponent,
            participation_ratio,
            spectral_entropy,
        )
        from ibscan.numerics.spectra.spectrum import effective_rank, numerical_rank, stable_rank

        if data.status is Status.NONFINITE:
            return {}
        roots = covariance_roots(data.values)
        eps = torch.tensor(self.rel_eps, dtype=roots.dtype, device=roots.device)
        ranks = numerical_rank(roots, eps * roots[0]).to(torch.float64).cpu().numpy()
        alpha, first, last = decay_exponent(roots)
        alpha_status = data.status if data.status is Status.DEAD or math.isfinite(alpha) else Status.NOT_MEASURED
        numbers = {
            "effective_rank": float(effective_rank(roots)),
            "participation": participation_ratio(roots),
            "stable_rank": float(stable_rank(roots)),
            "entropy": spectral_entropy(roots),
        }
        return {
            **{f"representation_{name}": scalar_estimate(value, data.status) for name, value in numbers.items()},
            "representation_numerical_rank": Estimate(ranks, np.full(len(ranks), data.status, dtype=np.int8)),
            "representation_alpha": scalar_estimate(alpha, alpha_status),
            "representation_alpha_first": Estimate(np.array(first), None),
            "representation_alpha_last": Estimate(np.array(last), None),
        }
