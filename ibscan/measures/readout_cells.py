"""Estimate cells of the read-out channel: one layer of one checkpoint at one noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.streams import RandomStreams
from ibscan.measures.driver import LayerValues, is_saturated, label_status
from ibscan.measures.shared import READ_OUT, WIDE
from ibscan.measures.work import Drawing
from ibscan.numerics.channels.mixture import Mixture, gaussian_cap
from ibscan.numerics.channels.readout import LEAST_SHARE, line_information, readout_information
from ibscan.numerics.tiling import aligned, mapped

__all__ = ["Labels", "ReadoutCell", "components", "draws_of", "layer_estimates", "readout_cell"]

# Draws of standard normals cached for the next noise and checkpoint, if they have no more than KEPT_NUMBERS each.
KEPT_DRAWS, KEPT_NUMBERS = 2, 2**22
Draws = Callable[[int], torch.Tensor]


class Noisy(Drawing, Protocol):
    """Parameters of the read-out channel: noise levels and the budget of draws."""

    @property
    def noise(self) -> tuple[float, ...]:
        """Standard deviations, activation units."""
        ...

    @property
    def rel_noise(self) -> tuple[float, ...]:
        """Standard deviations relative to the layer's root-mean-square distance from its mean."""
        ...


@dataclass(frozen=True)
class Labels:
    """Whether the probe has labels, and whether equal inputs have equal ones."""

    present: bool
    consistent: bool


def layer_estimates(
    measure: Noisy,
    data: LayerValues,
    normals: Draws,
    weights: torch.Tensor,
    ceiling: float,
    labels: Labels,
) -> dict[str, Estimate]:
    """Return the estimates of one layer, arrays (noise,) or (rel_noise,).

    Args:
        measure: With its noise levels and budget.
        data: The layer's values.
        normals: Standard normals, the same for all checkpoints and noise levels.
        weights: Joint weights of rows and classes, (N, classes).
        ceiling: H(X), nats.
        labels: Which quantities about labels can be measured.
    """
    cell_of = partial(readout_cell, ceiling=ceiling, tolerance=measure.tolerance, max_draws=measure.max_draws)
    absolute, levels = len(measure.noise), len(measure.noise) + len(measure.rel_noise)
    wide, constant = data.values.shape[1] > WIDE, ReadoutCell.constant(data.status)
    if data.status is not Status.OK:
        cells, noises = [constant] * levels, [math.nan] * absolute + [constant.xt] * (levels - absolute)
        parts, counts, tails = [constant] * absolute, [-1] * absolute, [constant.xt] * absolute
    else:
        mixture = Mixture.of(data.values, weights)
        noises = [*measure.noise, *(factor * mixture.rms_radius for factor in measure.rel_noise)]
        cells = mapped(partial(cell_of, mixture, normals), noises, data.values.device)
        if wide:
            chosen = [components(mixture, noise, measure.tolerance) for noise in measure.noise]
            counts, tails = [count for count, _ in chosen], [tail for _, tail in chosen]
            parts = mapped(
                lambda piece: cell_of(mixture.projected(piece[1]), normals, piece[0]),
                list(zip(measure.noise, counts, strict=True)),
                data.values.device,
            )
    found = _estimates("mi_readout", cells[:absolute], labels)
    found |= _estimates("mi_readout_rel", cells[absolute:], labels)
    found["noise_absolute"] = Estimate(np.array(noises[absolute:]), _untargeted_status(cells[absolute:]))
    name = "mi_readout_projected"
    if not wide:  # not measured, even if the layer is not finite
        parts, counts, tails = [ReadoutCell(Status.NOT_MEASURED)] * absolute, [-1] * absolute, [math.nan] * absolute
    found[f"{name}_xt"] = _estimates(name, parts, labels)[f"{name}_xt"]
    found[f"{name}_tail"] = Estimate(np.array(tails), _untargeted_status(parts))
    found[f"{name}_components"] = Estimate(np.array(counts), None)
    return found


@dataclass(frozen=True)
class ReadoutCell:
    """One (checkpoint, layer, noise): status, the numbers of `Information`, bounds, cap, and the number of draws."""

    status: Status
    xt: float = math.nan
    xt_se: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    ty: float = math.nan
    ty_se: float = math.nan
    cap: float = math.nan
    slope: float = math.nan
    slope_se: float = math.nan
    draws: float = math.nan
    given_se: float = math.nan

    @staticmethod
    def constant(status: Status) -> ReadoutCell:
        """Return the cell of a layer without information: zeros if it is dead, else NaN."""
        return ReadoutCell(status, *(0.0 if status is Status.DEAD else math.nan,) * (len(fields(ReadoutCell)) - 1))


def draws_of(streams: RandomStreams, layer: int, values: torch.Tensor) -> Draws:
    """Return the function from the number of a draw to its standard normals (N, D), the shape of a layer's values."""

    def drawn(draw: int) -> torch.Tensor:
        stream = streams.generator(READ_OUT, layer, draw)
        return aligned(stream.standard_normal(tuple(values.shape))).to(values.device)

    return lru_cache(KEPT_DRAWS)(drawn) if values.numel() <= KEPT_NUMBERS else drawn


def readout_cell(
    mixture: Mixture, normals: Draws, noise: float, *, ceiling: float, tolerance: float, max_draws: int
) -> ReadoutCell:
    """Measure the read-out channel of one layer's values at one noise.

    Args:
        mixture: The values of one checkpoint, of which at least two differ.
        normals: Standard normals of all units, constant ones included.
        noise: Standard deviation, > 0.
        ceiling: H(X), nats.
        tolerance: Target half width, nats.
        max_draws: Draws at most.
    """
    lower, upper = mixture.bounds(noise)
    cap = min(ceiling, gaussian_cap(mixture.principal[0], noise), upper)
    if mixture.centres.shape[1] == 1 and noise >= LEAST_SHARE * mixture.rms_radius:
        found = line_information(mixture, noise)
    else:
        found = readout_information(
            mixture,
            noise,
            mixture.chosen(normals),
            tolerance=tolerance,
            max_draws=max_draws,
            bounds=(lower, cap),
        )
    status = Status.SATURATED if is_saturated(found.xt, ceiling) else Status.OK
    return ReadoutCell(
        status if found.resolved else Status.UNRESOLVED,
        found.xt,
        found.xt_se,
        lower,
        upper,
        found.ty,
        found.ty_se,
        cap,
        found.slope,
        found.slope_se,
        float(found.draws * found.strata),
        found.given_se,
    )


def components(mixture: Mixture, noise: float, most: float) -> tuple[int, float]:
    """Return how many principal components to measure, at most 64, and a bound on what the others add, nats.

    The bound is (1/2) sum ln(1 + lambda / noise^2) over the others, the capacity of independent Gaussian channels of
    their variances. The number is the smallest for which it is within `most`.
    """
    capacities = 0.5 * torch.log1p((mixture.principal[0] / noise).square())
    rest = capacities.sum() - capacities.cumsum(0)
    count = min(WIDE, 1 + int((rest > most).sum()), len(capacities))
    return count, max(0.0, float(capacities[count:].sum()))


def _estimates(name: str, cells: Sequence[ReadoutCell], labels: Labels) -> dict[str, Estimate]:
    """Return the estimates of cells, one for each noise level, by keys that begin with `name`."""

    def column(field: str) -> Array:
        return np.array([getattr(cell, field) for cell in cells], dtype=np.float64)

    status = _statuses(cells)
    ty_status = label_status(status, labelled=labels.present)
    no_ty = ty_status == Status.NOT_MEASURED
    given_status = label_status(status, labelled=labels.consistent)
    no_given = given_status == Status.NOT_MEASURED
    # The tolerance does not apply to slopes: their error says how exact they are.
    untargeted = _untargeted_status(cells)
    return {
        f"{name}_xt": Estimate(
            column("xt"),
            status,
            stderr=column("xt_se"),
            lower=column("lower"),
            upper=column("upper"),
            draws=column("draws"),
        ),
        f"{name}_ty": Estimate(
            np.where(no_ty, np.nan, column("ty")), ty_status, stderr=np.where(no_ty, np.nan, column("ty_se"))
        ),
        f"{name}_xt_given_y": Estimate(
            np.where(no_given, np.nan, column("xt") - column("ty")),
            given_status,
            stderr=np.where(no_given, np.nan, column("given_se")),
        ),
        f"{name}_cap": Estimate(column("cap"), untargeted),
        f"{name}_slope": Estimate(column("slope"), untargeted, stderr=column("slope_se")),
    }


def _statuses(cells: Sequence[ReadoutCell]) -> Array:
    return np.array([cell.status for cell in cells], dtype=np.int8)


def _untargeted_status(cells: Sequence[ReadoutCell]) -> Array:
    """Return the status of quantities that neither the tolerance nor saturation at H(X) concerns."""
    status = _statuses(cells)
    return np.where(np.isin(status, (Status.SATURATED, Status.UNRESOLVED)), Status.OK, status).astype(np.int8)
