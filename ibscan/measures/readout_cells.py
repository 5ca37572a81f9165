"""Cells of the read-out channel: one layer of one checkpoint at one noise level, as estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.streams import RandomStreams
from ibscan.measures.driver import Seen, is_saturated, label_status
from ibscan.measures.shared import READ_OUT, WIDE
from ibscan.numerics.channels.mixture import Mixture, gaussian_cap
from ibscan.numerics.channels.readout import LEAST_SHARE, line_information, readout_information
from ibscan.numerics.tiling import aligned, mapped

if TYPE_CHECKING:
    from ibscan.measures.readout import ReadoutInformation

__all__ = ["Cell", "Labels", "components", "draws_of", "layer_estimates", "readout_cell"]

# Standard normals of draws that are kept for the next noise and checkpoint: two always, if they are no more than so
# many numbers each.
KEPT_DRAWS, KEPT_NUMBERS = 2, 2**22
Draws = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Labels:
    """Whether there are any, and whether equal inputs have equal ones."""

    known: bool
    follow: bool


def layer_estimates(
    measure: ReadoutInformation, seen: Seen, normals: Draws, weights: torch.Tensor, ceiling: float, labels: Labels
) -> dict[str, Estimate]:
    """Return the estimates of one layer, arrays (noise,) or (rel_noise,).

    Args:
        measure: With its noise levels and budget.
        seen: The layer.
        normals: Standard normals, common to checkpoints and noise levels.
        weights: Joint weights of rows and classes, (N, classes).
        ceiling: H(X), nats.
        labels: What is known of them.
    """
    measured = partial(readout_cell, ceiling=ceiling, tolerance=measure.tolerance, max_draws=measure.max_draws)
    absolute, levels = len(measure.noise), len(measure.noise) + len(measure.rel_noise)
    wide, constant = seen.values.shape[1] > WIDE, Cell.constant(seen.status)
    nothing = constant.xt
    if seen.status is not Status.OK:
        cells, noises = [constant] * levels, [math.nan] * absolute + [nothing] * (levels - absolute)
        parts, kept, tails = [constant] * absolute, [-1] * absolute, [nothing] * absolute
    else:
        mixture = Mixture.of(seen.values, weights)
        noises = [*measure.noise, *(share * mixture.rms_radius for share in measure.rel_noise)]
        cells = mapped(partial(measured, mixture, normals), noises, seen.values.device)
        if wide:
            chosen = [components(mixture, noise, measure.tolerance) for noise in measure.noise]
            kept, tails = [count for count, _ in chosen], [tail for _, tail in chosen]
            pieces = list(zip(measure.noise, kept, strict=True))
            parts = mapped(partial(_projected, measured, mixture, normals), pieces, seen.values.device)
    found = _estimates("mi_readout", cells[:absolute], labels)
    found |= _estimates("mi_readout_rel", cells[absolute:], labels)
    found["noise_absolute"] = Estimate(np.array(noises[absolute:]), _settled(cells[absolute:]))
    name = "mi_readout_projected"
    if not wide:  # nothing is told of them, not even that they are not finite
        parts, kept, tails = [Cell(Status.NOT_MEASURED)] * absolute, [-1] * absolute, [math.nan] * absolute
    found[f"{name}_xt"] = _estimates(name, parts, labels)[f"{name}_xt"]
    found[f"{name}_tail"] = Estimate(np.array(tails), _settled(parts))
    found[f"{name}_components"] = Estimate(np.array(kept), None)
    return found


@dataclass(frozen=True)
class Cell:
    """One (checkpoint, layer, noise): status, and numbers as in `Information` with bounds, cap and draws in all."""

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
    def constant(status: Status) -> Cell:
        """Return the cell of a layer that is dead, and tells nothing, or not finite."""
        return Cell(status, *(0.0 if status is Status.DEAD else math.nan,) * (len(fields(Cell)) - 1))


def draws_of(streams: RandomStreams, layer: int, values: torch.Tensor) -> Draws:
    """Return the function of a draw that gives its standard normals, of the shape of a layer's values (N, D)."""

    def drawn(draw: int) -> torch.Tensor:
        stream = streams.generator(READ_OUT, layer, draw)
        return aligned(stream.standard_normal(tuple(values.shape))).to(values.device)

    return lru_cache(KEPT_DRAWS)(drawn) if values.numel() <= KEPT_NUMBERS else drawn


def readout_cell(
    mixture: Mixture, normals: Draws, noise: float, *, ceiling: float, tolerance: float, max_draws: int
) -> Cell:
    """Return the read-out channel of one layer's values.

    Args:
        mixture: The values of one checkpoint, of which at least two differ.
        normals: Standard normals of every unit, also of those that are constant.
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
    return Cell(
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
    """Return how many principal components to look at, at most 64, and what the rest can tell beside them, nats.

    As few as leave no more than `most`: (1/2) sum ln(1 + lambda / noise^2) over the others, which is the capacity of
    independent Gaussian channels of their variances.
    """
    gains = 0.5 * torch.log1p((mixture.principal[0] / noise).square())
    left = gains.sum() - gains.cumsum(0)
    count = min(WIDE, 1 + int((left > most).sum()), len(gains))
    return count, max(0.0, float(gains[count:].sum()))


def _projected(
    measured: Callable[[Mixture, Draws, float], Cell], mixture: Mixture, normals: Draws, piece: tuple[float, int]
) -> Cell:
    noise, count = piece
    return measured(mixture.projected(count), normals, noise)


def _estimates(name: str, cells: Sequence[Cell], labels: Labels) -> dict[str, Estimate]:
    """Return the estimates of cells, one a noise level, whose names begin with `name`."""

    def column(field: str) -> Array:
        return np.array([getattr(cell, field) for cell in cells], dtype=np.float64)

    status = _statuses(cells)
    known = label_status(status, labelled=labels.known)
    unknown = known == Status.NOT_MEASURED
    beyond = label_status(status, labelled=labels.follow)
    # A slope has no target of its own: its error says how exact it is.
    settled = _settled(cells)
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
            np.where(unknown, np.nan, column("ty")), known, stderr=np.where(unknown, np.nan, column("ty_se"))
        ),
        f"{name}_xt_given_y": Estimate(
            np.where(beyond == Status.NOT_MEASURED, np.nan, column("xt") - column("ty")),
            beyond,
            stderr=np.where(beyond == Status.NOT_MEASURED, np.nan, column("given_se")),
        ),
        f"{name}_cap": Estimate(column("cap"), settled),
        f"{name}_slope": Estimate(column("slope"), settled, stderr=column("slope_se")),
    }


def _statuses(cells: Sequence[Cell]) -> Array:
    return np.array([cell.status for cell in cells], dtype=np.int8)


def _settled(cells: Sequence[Cell]) -> Array:
    """Return the status of what needs no more draws and cannot be too near H(X)."""
    status = _statuses(cells)
    return np.where(np.isin(status, (Status.SATURATED, Status.UNRESOLVED)), Status.OK, status).astype(np.int8)
