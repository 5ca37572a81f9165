"""Local rank: how many directions of the input a layer still responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ibscan.measures.activations import post_widths
from ibscan.measures.rank_tally import RankTally
from ibscan.numerics.subspace import subspace
from ibscan.types import Array, At, Derivative, Estimate, Layer, Network, Probe, Quantity, Streams

__all__ = ["LocalRank"]

# Gram matrices square the singular values: below this share of the largest they hold nothing but rounding.
LEAST_RELATIVE = 3e-8
NO_NORM = "relative thresholds on a subspace need the norm of its whole Jacobian, and that gradients, which it has not"


@dataclass(frozen=True)
class LocalRank:
    """Mean number of singular values of the input Jacobian above a threshold, absolute and relative.

    Args:
        eps: Absolute thresholds, > 0 (strict inequality).
        rel_eps: Thresholds relative to the row's largest singular value.
        at: `pre` (the definition) or `post`.
        samples: Probe rows at most.
        spectrum_rows: Rows on which spectra are averaged; counts use all.
        origin: Name of the layer whose post is the variable; None for the input.
        directions: Dimensions of a random orthonormal subspace of the variable, on which counts are lower bounds; None
            for all of it.

    Source:
        Patel and Shwartz-Ziv 2024, arXiv 2410.07687, section 2.
    """

    eps: tuple[float, ...] = (0.001, 0.01, 0.1)
    rel_eps: tuple[float, ...] = (0.001, 0.01, 0.1)
    at: At = "pre"
    samples: int | None = 1024
    spectrum_rows: int | None = 64
    origin: str | None = None
    directions: int | None = None

    name: ClassVar[str] = "local_rank"
    primary: ClassVar[tuple[str, ...]] = ("local_rank", "local_rank_rel")
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("local_rank", "LR_eps", "1", "mean number of singular values of the input Jacobian > eps", ("eps",)),
        Quantity(
            "local_rank_count",
            "rows of a rank",
            "1",
            "number of probe rows with so many singular values of the input Jacobian > eps",
            ("eps", "rank_value"),
            counted=True,
            default_shown=False,
        ),
        Quantity(
            "local_rank_rel",
            "LR_rel",
            "1",
            "mean number of singular values of the input Jacobian > rel_eps times the row's largest",
            ("rel_eps",),
        ),
        Quantity(
            "rank_bound_jacobian",
            "#{sigma(W) > eps / ||D J||}",
            "1",
            "mean over the spectrum rows of the number of singular values of the weight > eps over the spectral norm "
            "of the input Jacobian of what feeds the layer: no row's count at pre exceeds it",
            ("eps",),
            limit="spectrum_rows",
        ),
        Quantity(
            "singular_value",
            "sigma_k",
            "1",
            "mean over rows of the k-th largest singular value of the input Jacobian",
            ("component",),
            default_shown=False,
            limit="spectrum_rows",
        ),
        Quantity(
            "effective_rank",
            "exp H(sigma)",
            "1",
            "mean exponential of the entropy of normalised singular values",
            limit="spectrum_rows",
        ),
        Quantity(
            "stable_rank",
            "||J||_F^2/||J||_2^2",
            "1",
            "mean squared Frobenius over squared spectral norm",
            limit="spectrum_rows",
        ),
    )

    @property
    def attributes(self) -> Mapping[str, str | int]:
        """The variable of the Jacobian, and the dimensions of the subspace it is restricted to, 0 for none."""
        return {"from": self.origin or "input", "input_dims": self.directions or 0}

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:
        """Return whether there is anything to say of a layer: of those called after the origin."""
        return self.origin is None or names.index(layer.name) > names.index(self.origin)

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds; `component` and `rank_value` are as long as the network makes them."""
        return {"eps": self.eps, "rel_eps": self.rel_eps}

    def __call__(
        self, network: Network, probe: Probe, streams: Streams, layers: Sequence[int] | None = None
    ) -> Mapping[str, Estimate]:
        """Measure every layer asked for of every checkpoint; only a subspace's directions are random.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled.
            streams: Of the subspace.
            layers: Indices of the layers to measure, None for all; others, and those up to the origin, are
                `not_measured`.

        Returns:
            Counts with sd / sqrt(N), extremes, and spectra averaged over the first `spectrum_rows` rows.
        """
        which, most = self._derivative(network, probe.x, streams, layers)
        undefined = {layer: reason for layer, reason in network.undefined(which).items() if which.wants(layer)}
        wanted = tuple(k for k in range(len(network.layers)) if which.wants(k) and k not in undefined)
        which = replace(which, layers=wanted)
        spectral = len(probe.x) if self.spectrum_rows is None else min(len(probe.x), self.spectrum_rows)
        affine = network.affine(probe.x) if which.feeds else (False,) * len(network.layers)
        tally = RankTally(network, (self.eps, self.rel_eps), which, (len(probe.x), spectral), most, affine)
        tally.rounding.update(network.rounding(probe.x, which))
        if which.directions is not None and self.rel_eps:
            tally.norms = network.spectral_norms(probe.x, which)
        # What small thresholds ask for is beyond any Gram matrix.
        if spectral < len(probe.x) and min(self.rel_eps, default=1.0) > LEAST_RELATIVE:
            exact = replace(which, layers=tuple(k for k in wanted if k not in tally.rounding))
            tally.failed.update(network.grams(probe.x[spectral:], tally.count, exact))
            tally.certain[:, list(tally.failed)] = True
        tally.rows = np.flatnonzero(~tally.certain.all((0, 1)))
        if len(tally.rows):
            tally.failed.update(network.jacobians(probe.x[tally.rows], tally.decompose, which))
        if tally.norms is not None:
            lost = [k for k in wanted if np.isnan(tally.norms[:, k]).any() and tally.sound[:, k].all()]
            tally.failed.update({k: NO_NORM for k in lost if k not in tally.failed})
        return tally.estimates(undefined)

    def _derivative(
        self, network: Network, x: Array, streams: Streams, layers: Sequence[int] | None
    ) -> tuple[Derivative, list[int]]:
        """Return which Jacobians are meant, and how many singular values each layer's has."""
        names = [layer.name for layer in network.layers]
        origin = None if self.origin is None else names.index(self.origin)
        width = network.inputs_of(x) if origin is None else post_widths(network, x)[origin]
        directions = None if self.directions is None or self.directions >= width else self.directions
        basis = None if directions is None else subspace(streams.generator("subspace", width, 0), width, directions)
        which = Derivative(self.at, origin, None if layers is None else tuple(layers), directions, basis)
        widths = [layer.width for layer in network.layers] if self.at == "pre" else post_widths(network, x)
        return which, [min(one, directions or width) for one in widths]
