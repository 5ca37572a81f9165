"""The read-out channel: information through Gaussian noise added at the measured layer alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import torch

from ibscan.measures.activations import input_weights, is_saturated, label_status, layer_status, layers_in_turn
from ibscan.numerics.mixture import Mixture, gaussian_cap
from ibscan.numerics.readout import LEAST_SHARE, line_information, readout_information
from ibscan.numerics.tiling import aligned, mapped
from ibscan.types import Array, At, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["Cell", "ReadoutInformation", "components", "draws_of", "readout_cell"]

# Layers wider than this are looked at through their principal components too, so many at most.
WIDE = 64
# Standard normals of draws that are kept for the next noise and checkpoint: two always, if they are no more than so
# many numbers each.
KEPT_DRAWS, KEPT_NUMBERS = 2, 2**22
Draws = Callable[[int], torch.Tensor]


def _quantities(prefix: str, dim: str, noisy: str) -> tuple[Quantity, ...]:
    dims = (dim,)
    return (
        Quantity(
            f"{prefix}_xt", "I(X; T+Z)", "nat", f"information of the layer's {noisy} read-out about the input", dims
        ),
        Quantity(
            f"{prefix}_ty", "I(T+Z; Y)", "nat", f"information of the layer's {noisy} read-out about the label", dims
        ),
        Quantity(
            f"{prefix}_cap",
            "cap of I(X; T+Z)",
            "nat",
            "smallest proven upper bound: H(X), the Gaussian of the same covariance, or the pairwise one",
            dims,
        ),
        Quantity(
            f"{prefix}_slope",
            "-dI/d ln noise",
            "1",
            "E||T - E[T|T+Z]||^2 / noise^2: nats that I(X; T+Z) loses per unit of ln noise",
            dims,
        ),
    )


@dataclass(frozen=True)
class ReadoutInformation:
    """I(X; T+Z) and I(T+Z; Y) of the deterministic layer T with Gaussian noise Z at that layer.

    Args:
        noise: Standard deviations, > 0, activation units.
        rel_noise: Standard deviations as multiples of the layer's own root-mean-square distance from its mean, > 0.
        tolerance: Target half width of the 95 % interval, nats.
        max_draws: Draws of one cell at most.
        at: `post` (the definition) or `pre`.
        samples: Probe rows at most.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728; bounds of Kolchinsky and Tracey 2017.
    """

    noise: tuple[float, ...] = (0.1,)
    rel_noise: tuple[float, ...] = ()
    tolerance: float = 0.05
    max_draws: int = 65536
    at: At = "post"
    samples: int | None = 4096

    name: ClassVar[str] = "mi_readout"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("mi_readout_xt", "mi_readout_rel_xt")
    quantities: ClassVar[tuple[Quantity, ...]] = (
        *_quantities("mi_readout", "noise", "noisy"),
        Quantity(
            "mi_readout_projected_xt",
            "I(X; PT+Z)",
            "nat",
            "information of the noisy read-out of the first principal components alone, of layers of over 64 units",
            ("noise",),
        ),
        Quantity(
            "mi_readout_projected_tail",
            "tail",
            "nat",
            "what the other components can add at most: 0 <= I(X; T+Z) - I(X; PT+Z) <= tail",
            ("noise",),
        ),
        Quantity(
            "mi_readout_projected_components", "k", "1", "how many principal components", ("noise",), counted=True
        ),
        *_quantities("mi_readout_rel", "rel_noise", "relatively noisy"),
        Quantity(
            "noise_absolute",
            "noise",
            "activation units",
            "the relative noise times the layer's root-mean-square distance from its mean",
            ("rel_noise",),
        ),
    )

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: of each."""
        return True

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """The noise levels."""
        return {"noise": self.noise, "rel_noise": self.rel_noise}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,
        layers: Sequence[int] | None = None,
    ) -> Mapping[str, Estimate]:
        """Measure every layer of every checkpoint at every noise level.

        Args:
            network: C checkpoints.
            probe: N rows, already sampled: they are the population.
            streams: Standard normals, common to checkpoints and noise levels.
            layers: Those to measure, None for all; of others there is nothing.

        Returns:
            Values in nats and slopes with Monte-Carlo standard errors (0 where they are by quadrature), pairwise
            bounds and caps. What principal components tell is there where a layer is wide enough.
        """
        weights, ceiling = input_weights(probe)
        joint = aligned(weights).to(network.device)
        measured = partial(readout_cell, ceiling=ceiling, tolerance=self.tolerance, max_draws=self.max_draws)
        absolute, levels = len(self.noise), len(self.noise) + len(self.rel_noise)
        lead = network.size, len(network.layers)
        cells = np.full((*lead, levels), NOTHING, dtype=object)
        parts = np.full((*lead, absolute), NOTHING, dtype=object)
        noises = np.full((*lead, levels), np.nan)
        kept = np.full((*lead, absolute), -1, dtype=np.int64)
        tails = np.full((*lead, absolute), np.nan)
        for layer, values in layers_in_turn(network, probe.x, self.at, layers):
            normals = draws_of(streams, layer, values[0])
            wide = values.shape[2] > WIDE
            for place in ((c, layer) for c in range(network.size)):
                state = layer_status(values[place[0]])
                if state is not Status.OK:
                    cells[place] = Cell.constant(state)
                    noises[place][absolute:] = 0.0 if state is Status.DEAD else np.nan
                    if wide:
                        parts[place], tails[place] = Cell.constant(state), 0.0 if state is Status.DEAD else np.nan
                    continue
                mixture = Mixture.of(values[place[0]], joint)
                noises[place] = [*self.noise, *(share * mixture.extent for share in self.rel_noise)]
                cells[place] = mapped(partial(measured, mixture, normals), noises[place].tolist(), network.device)
                if wide:
                    for k, noise in enumerate(self.noise):
                        kept[(*place, k)], tails[(*place, k)] = components(mixture, noise, self.tolerance)
                    pieces = list(zip(self.noise, kept[place].tolist(), strict=True))
                    parts[place] = mapped(partial(_projected, measured, mixture, normals), pieces, network.device)
        labelled = probe.y is not None
        found = _estimates("mi_readout", cells[..., :absolute], labelled=labelled)
        found |= _estimates("mi_readout_rel", cells[..., absolute:], labelled=labelled)
        found["noise_absolute"] = Estimate(noises[..., absolute:], _settled(cells[..., absolute:]))
        if (kept >= 0).any() or np.isfinite(tails).any():
            name = "mi_readout_projected"
            found[f"{name}_xt"] = _estimates(name, parts, labelled=labelled)[f"{name}_xt"]
            found[f"{name}_tail"] = Estimate(tails, _settled(parts))
            found[f"{name}_components"] = Estimate(kept, None)
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

    @staticmethod
    def constant(status: Status) -> Cell:
        """Return the cell of a layer that is dead, and tells nothing, or not finite."""
        return Cell(status, *(0.0 if status is Status.DEAD else math.nan,) * (len(fields(Cell)) - 1))


NOTHING = Cell(Status.NOT_MEASURED)


def draws_of(streams: Streams, layer: int, values: torch.Tensor) -> Draws:
    """Return the function of a draw that gives its standard normals, of the shape of a layer's values (N, D)."""

    def drawn(draw: int) -> torch.Tensor:
        stream = streams.generator(ReadoutInformation.name, layer, draw)
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
    if mixture.centres.shape[1] == 1 and noise >= LEAST_SHARE * mixture.extent:
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


def _estimates(name: str, cells: Array, *, labelled: bool) -> dict[str, Estimate]:
    """Return the estimates of cells (C, L, noises) whose names begin with `name`."""

    def column(field: str) -> Array:
        return np.array([getattr(cell, field) for cell in cells.flat], dtype=np.float64).reshape(cells.shape)

    status = _statuses(cells)
    known = label_status(status, labelled=labelled)
    unknown = known == Status.NOT_MEASURED
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
        f"{name}_cap": Estimate(column("cap"), settled),
        f"{name}_slope": Estimate(column("slope"), settled, stderr=column("slope_se")),
    }


def _statuses(cells: Array) -> Array:
    return np.array([cell.status for cell in cells.flat], dtype=np.int8).reshape(cells.shape)


def _settled(cells: Array) -> Array:
    """Return the status of what needs no more draws and cannot be too near H(X)."""
    status = _statuses(cells)
    return np.where(np.isin(status, (Status.SATURATED, Status.UNRESOLVED)), Status.OK, status).astype(np.int8)
