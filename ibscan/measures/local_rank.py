"""Local rank: the number of input directions that a layer responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ibscan.core.estimate import Estimate
from ibscan.core.measure import NUMBER, Layers, Measure, Situation, Sizes
from ibscan.core.network import DifferentiableNetwork, JacobianSpec
from ibscan.core.option import MEASURE, RARE, Option, at_least, count, option, whole
from ibscan.core.quantity import COMPONENT, EPS, RANK_VALUE, REL_EPS, Quantity
from ibscan.core.records import Array, At, Layer, Probe
from ibscan.core.streams import RandomStreams
from ibscan.errors import NothingMatched
from ibscan.measures import shared
from ibscan.measures.shared import AT, RANK_ROWS, SAMPLES, THRESHOLDS, all_rows

__all__ = ["LocalRank"]

# Gram matrices square the singular values: below this share of the largest they are rounding.
LEAST_RELATIVE = 3e-8
NO_NORM = "relative thresholds on a subspace need the norm of its whole Jacobian, and that gradients, which it has not"
# On a wider input than WIDEST_INPUT a module's Jacobian is restricted to SUBSPACE directions.
WIDEST_INPUT, SUBSPACE = 8192, 2048
# A block of Jacobians, their product and its decomposition are held at once.
FACTOR_COPIES = 3


def _origin(value: str | None, situation: Situation) -> str | None:
    """Check the name of the layer to differentiate by.

    Raises:
        NothingMatched: There is no such layer, or no layer asked for comes after it.
    """
    names = [layer.name for layer in situation.layers]
    allowed = [layer.name for layer in situation.layers if layer.noisy]
    if value is None:
        return None
    if value not in allowed:
        raise NothingMatched(f"--from {value}: expected one of the layers {', '.join(allowed)}.")
    if max(situation.chosen) <= names.index(value):
        raise NothingMatched(f"--from {value}: no layer asked for is called after it.")
    return value


def _directions(value: int | None, situation: Situation) -> int | None:
    """Return the number of random input directions that Jacobians are restricted to, None for all."""
    if value is not None or situation.given.get("from_layer") is not None:
        return value
    # A chain's Jacobian is a product of small matrices whatever the width of its input.
    if situation.stacked or situation.inputs <= WIDEST_INPUT:
        return None
    situation.notice(
        f"local_rank: the input has {situation.inputs} numbers; Jacobians are taken on {SUBSPACE} random orthonormal "
        "directions of it, and counts are lower bounds (--input-dims N takes N)."
    )
    return SUBSPACE


SPECTRUM_ROWS = Option(
    "Rows on which spectra are averaged. Default: {default}.",
    RARE,
    metavar="N|all",
    parse=count,
    read=lambda flag, given: "all" if given is None else given,  # noqa: ARG005 - None is all here
    check=at_least(1, "all"),
    settle=all_rows,
    shown=False,
    place=4,
)
FROM = Option(
    "Differentiate by this layer's post instead of the input: the rank of what comes after it.",
    MEASURE,
    "from_layer",
    ("--from",),
    metavar="LAYER",
    settle=_origin,
)
INPUT_DIMS = Option(
    f"Jacobians on N random orthonormal directions alone: lower bounds. Default: all, {SUBSPACE} where a model's input "
    f"has more than {WIDEST_INPUT}.",
    RARE,
    "input_dims",
    metavar="N",
    parse=whole,
    check=at_least(1),
    settle=_directions,
    place=1,
)


@dataclass(frozen=True)
class LocalRank(Measure):
    """Mean number of singular values of the input Jacobian above a threshold, absolute and relative.

    Args:
        eps: Absolute thresholds, > 0 (strict inequality).
        rel_eps: Thresholds relative to the row's largest singular value.
        at: `pre` (the definition) or `post`.
        samples: Probe rows at sizes.
        spectrum_rows: Rows on which spectra are averaged; counts use all.
        origin: Name of the layer whose post is the variable; None for the input.
        directions: Dimensions of a random orthonormal subspace of the variable, on which counts are lower bounds; None
            for all of it.
    """

    eps: tuple[float, ...] = option(THRESHOLDS, shared.EPS)
    rel_eps: tuple[float, ...] = option(THRESHOLDS, shared.REL_EPS)
    at: At = option("pre", AT)
    samples: int | None = option(RANK_ROWS, SAMPLES)
    spectrum_rows: int | None = option(64, SPECTRUM_ROWS)
    origin: str | None = option(None, FROM)
    directions: int | None = option(None, INPUT_DIMS)

    name: ClassVar[str] = "local_rank"
    verb: ClassVar[str] = "rank"
    trial: ClassVar[str] = "local_rank"
    draws: ClassVar[bool] = True
    source: ClassVar[str] = "Patel and Shwartz-Ziv 2024, arXiv 2410.07687, section 2"
    caveat: ClassVar[str] = (
        "It means nothing without its threshold, and an absolute threshold is not free of scale: rescaling a layer and "
        "the next keeps the function and changes the count."
    )
    required_keys: ClassVar[tuple[str, ...]] = ("local_rank", "local_rank_rel")
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "local_rank",
            "LR_eps",
            "1",
            "mean number of singular values of the input Jacobian > eps",
            (EPS,),
            companions=("se", "min", "max"),
            formula="LR_eps = mean over rows x of #{k : sigma_k(J(x)) > eps}, J(x) = d layer / d x",
        ),
        Quantity(
            "local_rank_count",
            "rows of a rank",
            "1",
            "number of probe rows with so many singular values of the input Jacobian > eps",
            (EPS, RANK_VALUE),
            counted=True,
            default_shown=False,
            formula="#{x : #{k : sigma_k(J(x)) > eps} = rank_value}",
        ),
        Quantity(
            "local_rank_rel",
            "LR_rel",
            "1",
            "mean number of singular values of the input Jacobian > rel_eps times the row's largest",
            (REL_EPS,),
            companions=("se", "min", "max"),
            formula="mean over rows x of #{k : sigma_k(J(x)) > rel_eps sigma_1(J(x))}",
            caveat="It is free of the scale of whole layers, not of that of single units.",
        ),
        Quantity(
            "rank_bound_jacobian",
            "#{sigma(W) > eps / ||D J||}",
            "1",
            "mean over the spectrum rows of the number of singular values of the weight > eps over the spectral norm "
            "of the input Jacobian of what feeds the layer: no row's count at pre exceeds it",
            (EPS,),
            limit="spectrum_rows",
            companions=("se",),
            formula="mean over rows x of #{k : sigma_k(W) > eps / ||d fed / d x||_2} >= #{k : sigma_k(J(x)) > eps}",
            caveat="It is there at pre alone, where the layer is its weight times what feeds it.",
        ),
        Quantity(
            "singular_value",
            "sigma_k",
            "1",
            "mean over rows of the k-th largest singular value of the input Jacobian",
            (COMPONENT,),
            default_shown=False,
            limit="spectrum_rows",
            formula="mean over rows x of sigma_k(J(x))",
            caveat="A mean over rows is no spectrum of any one row.",
        ),
        Quantity(
            "effective_rank",
            "exp H(sigma)",
            "1",
            "mean exponential of the entropy of normalised singular values",
            limit="spectrum_rows",
            formula="mean over rows of exp(-sum_k p_k ln p_k), p_k = sigma_k / sum_j sigma_j",
            source="Roy and Vetterli 2007",
            caveat="It has no threshold, and is no local rank: it also falls where directions are merely uneven.",
        ),
        Quantity(
            "stable_rank",
            "||J||_F^2/||J||_2^2",
            "1",
            "mean squared Frobenius over squared spectral norm",
            limit="spectrum_rows",
            formula="mean over rows of sum_k sigma_k^2 / sigma_1^2",
            source="Rudelson and Vershynin 2007",
            caveat="It has no threshold, and is no local rank: one large direction hides all others.",
        ),
    )

    @property
    def attributes(self) -> Mapping[str, str | int]:
        """What the Jacobian is by, and the dimensions of the subspace it is restricted to, 0 for none."""
        return {"from": self.origin or "input", "input_dims": self.directions or 0}

    def applies_to(self, layer: Layer, names: Sequence[str]) -> bool:
        """Return whether a layer comes after the origin."""
        return self.origin is None or names.index(layer.name) > names.index(self.origin)

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """Thresholds; the lengths of `component` and `rank_value` depend on the network."""
        return {"eps": self.eps, "rel_eps": self.rel_eps}

    def seconds(self, sizes: Sizes) -> float:
        """Return an estimate in seconds: Jacobians are carried from layer to layer and decomposed."""
        from ibscan.measures.work import DECOMPOSITIONS, PRODUCTS

        found, before = 0.0, 0
        spectral = sizes.rows if self.spectrum_rows is None else min(sizes.rows, self.spectrum_rows)
        variable = min(sizes.inputs, self.directions or sizes.inputs)
        for layer in sizes.layers:
            # A factor of the Jacobian is as narrow as the narrowest layer so far; the first is shared by all rows.
            small = min(layer.width, variable)
            carried = before * layer.width * variable + layer.width * small**2 if before else 0.0
            rows = sizes.rows if before else 1
            found += sizes.rows * (4e-6 + carried / PRODUCTS) + rows * small**3 / DECOMPOSITIONS
            found += spectral * 8 * layer.width * small**2 / DECOMPOSITIONS
            before, variable = layer.width, small
        return found

    def memory(self, layer: Layer, sizes: Sizes) -> int:
        """Return the bytes held at once: Jacobians come in blocks of at least one row."""
        one = layer.width * (self.directions or sizes.inputs)
        return FACTOR_COPIES * NUMBER * max(one, min(sizes.factor_budget, sizes.rows * one))

    def __call__(
        self, network: DifferentiableNetwork, probe: Probe, streams: RandomStreams, layers: Layers | None = None
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint; nothing is random but the directions of a subspace.

        Args:
            network: C checkpoints of L layers.
            probe: N rows, already sampled.
            streams: For the directions of a subspace.
            layers: Indices of the layers to measure, None for all; others, and those up to the origin, are
                `not_measured`.

        Returns:
            Mean counts, arrays (C, L, thresholds), with sd / sqrt(N) and extremes, and spectra averaged over the first
            `spectrum_rows` rows.
        """
        import numpy as np

        from ibscan.measures.rank_accumulator import RankAccumulator

        spec, sizes = self._jacobian_spec(network, probe.x, streams, layers)
        undefined = {layer: reason for layer, reason in network.undefined(spec).items() if spec.wants(layer)}
        wanted = tuple(k for k in range(len(network.layers)) if spec.wants(k) and k not in undefined)
        spec = replace(spec, layers=wanted)
        spectral = len(probe.x) if self.spectrum_rows is None else min(len(probe.x), self.spectrum_rows)
        affine = network.affine(probe.x) if spec.feeds else (False,) * len(network.layers)
        accumulator = RankAccumulator(network, (self.eps, self.rel_eps), spec, (len(probe.x), spectral), sizes, affine)
        accumulator.rounding.update(network.rounding(probe.x, spec))
        if spec.directions is not None and self.rel_eps:
            accumulator.norms = network.spectral_norms(probe.x, spec)
        # Thresholds smaller than the rounding of a Gram matrix need singular values.
        if spectral < len(probe.x) and min(self.rel_eps, default=1.0) > LEAST_RELATIVE:
            in_float64 = replace(spec, layers=tuple(k for k in wanted if k not in accumulator.rounding))
            accumulator.failed.update(network.grams(probe.x[spectral:], accumulator.count, in_float64))
            accumulator.certain[:, list(accumulator.failed)] = True
        accumulator.rows = np.flatnonzero(~accumulator.certain.all((0, 1)))
        if len(accumulator.rows):
            accumulator.failed.update(network.jacobians(probe.x[accumulator.rows], accumulator.decompose, spec))
        if accumulator.norms is not None:
            no_norm = [k for k in wanted if np.isnan(accumulator.norms[:, k]).any() and accumulator.finite[:, k].all()]
            accumulator.failed.update({k: NO_NORM for k in no_norm if k not in accumulator.failed})
        return accumulator.estimates(undefined)

    def _jacobian_spec(
        self, network: DifferentiableNetwork, x: Array, streams: RandomStreams, layers: Layers | None
    ) -> tuple[JacobianSpec, list[int]]:
        """Return which Jacobians to compute, and the number of singular values at each layer."""
        from ibscan.measures.driver import post_widths
        from ibscan.numerics.spectra.subspace import subspace

        names = [layer.name for layer in network.layers]
        origin = None if self.origin is None else names.index(self.origin)
        width = network.inputs_of(x) if origin is None else post_widths(network, x)[origin]
        directions = None if self.directions is None or self.directions >= width else self.directions
        basis = None if directions is None else subspace(streams.generator("subspace", width, 0), width, directions)
        spec = JacobianSpec(self.at, origin, None if layers is None else tuple(layers), directions, basis)
        widths = [layer.width for layer in network.layers] if self.at == "pre" else post_widths(network, x)
        return spec, [min(one, directions or width) for one in widths]
