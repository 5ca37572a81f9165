"""The network channel: information through a network with Gaussian noise after every hidden layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch

from ibscan.measures.activations import (
    ROUNDING,
    distinct_rows,
    input_weights,
    is_saturated,
    label_status,
    layer_status,
    layer_values,
    misfortune,
    post_widths,
)
from ibscan.measures.readout import draws_of, readout_cell
from ibscan.numerics.bracket import Bracket
from ibscan.numerics.controls import ReplicaControls, controlled
from ibscan.numerics.mixture import Mixture, entropy, gaussian_cap, principal_components
from ibscan.numerics.propagation import Queries, bracket_terms, others_density, replica_sums
from ibscan.numerics.tiling import aligned
from ibscan.types import Array, Estimate, Layer, Network, Probe, Quantity, Status, Streams

__all__ = ["NetworkInformation"]

# Standard normals (rows, D) of (rows, layer index, replica).
RowNormals: TypeAlias = Callable[[int, int, int], Array]
FIELDS = ("xt", "xt_se", "xt_lower", "xt_upper", "ty", "ty_se", "ty_lower", "ty_upper", "cap")
# Replicas of the other inputs: as many as make so many centres (or numbers) in all, at least four; doubled, up to the
# most, while half of them give another value, or they may be blind, or their error or bias takes much of the tolerance.
MARGINAL_CENTRES, MARGINAL_BUDGET, MARGINAL_REPLICAS, MARGINAL_DOUBLINGS = 2**12, 2**22, 4, 3
MOST_CENTRES, MOST_NUMBERS = 2**17, 2**24
# A sum over fewer centres than these, in effect, may miss what replicas happen not to show.
SEEN_CENTRES = 16.0
# The bracket is first closed on few rows, on which many replicas cost little; the values need more rows.
PILOT_ROWS, PILOT_DRAWS, LEAST_REPLICAS = 256, 1024, 16
# What the pilot must reach of the tolerance, so that the whole sample reaches all of it.
MARGIN = 0.8
# Noises under which a layer is looked at before it is said to tell nothing.
DEAF_REPLICAS, SURELY_DEAF_REPLICAS = 16, 1024
# From here on a bracket is judged by how it closes.
HOPE_REPLICAS = 64
# Numbers the draws of one cell may hold, rows, draws and units together.
DRAWN_BUDGET = 2**26
# Standard normals of a block of replicas are drawn together: so many numbers a row.
NORMALS_A_ROW = 2048


@dataclass(frozen=True)
class NetworkInformation:
    """I(X; T) and I(T; Y) of a hidden layer T of the noisy network: noise after every hidden layer, propagated.

    Args:
        noise: Standard deviations, > 0, activation units.
        tolerance: Target half width, nats: of the 95 % interval of the draws, and of the replica bracket beside it.
        max_replicas: Noisy passes of one input at most, >= 2.
        max_draws: Draws of one cell at most.
        samples: Probe rows at most.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, sections 2 and 3.
    """

    noise: tuple[float, ...] = (0.1,)
    tolerance: float = 0.05
    max_replicas: int = 4096
    max_draws: int = 65536
    samples: int | None = 4096

    name: ClassVar[str] = "mi_network"
    attributes: ClassVar[Mapping[str, str | int]] = {}
    primary: ClassVar[tuple[str, ...]] = ("mi_network_xt",)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "mi_network_xt", "I(X; T)", "nat", "information of the noisy network's layer about the input", ("noise",)
        ),
        Quantity(
            "mi_network_ty", "I(T; Y)", "nat", "information of the noisy network's layer about the label", ("noise",)
        ),
        Quantity(
            "mi_network_cap",
            "cap of I(X; T)",
            "nat",
            "smallest proven upper bound: H(X), or the Gaussian of the same covariance at this layer or one before it",
            ("noise",),
        ),
    )

    @property
    def at(self) -> Literal["post"]:
        """Where the noise is."""
        return "post"

    @property
    def patient(self) -> bool:
        """Whether the budget is spent even where it will hardly do: one that was asked for is, the usual one is not."""
        usual = NetworkInformation
        return (self.max_replicas, self.max_draws) != (usual.max_replicas, usual.max_draws)

    def tells(self, layer: Layer, names: Sequence[str]) -> bool:  # noqa: ARG002
        """Return whether there is anything to say of a layer: not of one that is not noisy."""
        return not layer.output

    @property
    def coordinates(self) -> Mapping[str, Sequence[float]]:
        """The noise levels."""
        return {"noise": self.noise}

    def __call__(
        self,
        network: Network,
        probe: Probe,
        streams: Streams,
        layers: Sequence[int] | None = None,  # noqa: ARG002
    ) -> Mapping[str, Estimate]:
        """Measure every hidden layer of every checkpoint at every noise level.

        Args:
            network: C checkpoints.
            probe: N rows in random order, already sampled: they are the population.
            streams: Standard normals, common to checkpoints and noise levels.
            layers: Not used: a cap holds for all layers that follow.

        Returns:
            Values (mean of own and fresh) with Monte-Carlo standard errors, brackets and caps; nats. The output layer
            is not noisy, and not measured.
        """
        population = _Population.of(probe, network)
        shape = (network.size, len(network.layers), len(self.noise))
        cells = {field: np.full(shape, np.nan) for field in FIELDS}
        replicas = np.full(shape, np.nan)
        draws = np.full(shape, np.nan)
        status = np.full(shape, Status.NOT_MEASURED, dtype=np.int8)
        normals = partial(_normals, self.name, streams, post_widths(network, probe.x), {})
        for c in range(network.size):
            alone = network.alone(c)
            for place in ((c, layer, k) for layer in range(shape[1]) for k in range(shape[2])):
                layer = network.layers[place[1]]
                if layer.output:
                    continue
                measured = self._first if layer.first else self._later
                try:
                    cell = measured(alone, population, place[1], self.noise[place[2]], normals, streams)
                except (MemoryError, RuntimeError) as error:
                    cell = _Cell.constant(misfortune(error))
                status[place], replicas[place], draws[place] = cell.status, cell.replicas, cell.draws
                for field, number in zip(FIELDS, cell.numbers, strict=True):
                    cells[field][place] = number
        if network.plain:
            # Data processing: no layer of a plain chain knows more than one before it.
            cells["cap"] = np.where(np.isnan(cells["cap"]), np.nan, np.fmin.accumulate(cells["cap"], 1))
        # A bracket that closed on a value above what is proven has not closed on the truth.
        beyond = cells["xt"] - cells["cap"] > 1.96 * cells["xt_se"] + ROUNDING
        status[beyond & np.isin(status, (Status.OK, Status.SATURATED))] = Status.UNRESOLVED
        allowed = float(self.max_replicas) * self.max_draws
        budget = np.where(status == Status.NOT_MEASURED, np.nan, allowed)
        labelled = label_status(status, labelled=probe.y is not None)
        if probe.y is None:
            for field in FIELDS[4:8]:
                cells[field][:] = np.nan
        capped = np.where(np.isin(status, (Status.SATURATED, Status.UNRESOLVED)), Status.OK, status).astype(np.int8)

        def estimate(side: str, status: Array) -> Estimate:
            ends = {"stderr": f"{side}_se", "lower": f"{side}_lower", "upper": f"{side}_upper"}
            companions: dict[str, Any] = {key: cells[name] for key, name in ends.items()}
            return Estimate(cells[side], status, **companions)

        return {
            "mi_network_xt": replace(estimate("xt", status), draws=draws, replicas=replicas, budget=budget),
            "mi_network_ty": estimate("ty", labelled),
            "mi_network_cap": Estimate(cells["cap"], capped),
        }

    def _first(
        self,
        network: Network,
        population: _Population,
        layer: int,
        noise: float,
        normals: RowNormals,  # noqa: ARG002 - the draws are the read-out channel's
        streams: Streams,
    ) -> _Cell:
        """Return the cell of a layer no noise comes before: the read-out channel, exact densities."""
        values = layer_values(network, population.x, layer, "post")[0]
        state = layer_status(values)
        if state is not Status.OK:
            return _Cell.constant(state)
        cell = readout_cell(
            Mixture.of(values, population.rows),
            draws_of(streams, layer, values),
            noise,
            ceiling=population.ceiling,
            tolerance=self.tolerance,
            max_draws=self.max_draws,
        )
        ends = (
            (value, error, value - 1.96 * error, value + 1.96 * error)
            for value, error in ((cell.xt, cell.xt_se), (cell.ty, cell.ty_se))
        )
        return _Cell(cell.status, (*next(ends), *next(ends), cell.cap), 1, cell.draws)

    def _later(
        self,
        network: Network,
        population: _Population,
        layer: int,
        noise: float,
        normals: RowNormals,
        streams: Streams,  # noqa: ARG002
    ) -> _Cell:
        """Return the cell of a layer with noise before it, by sample propagation."""
        channel = _Channel(network, population, layer, noise, normals, self.max_replicas, self.patient)
        if channel.is_deaf(DEAF_REPLICAS) and channel.is_deaf(SURELY_DEAF_REPLICAS):
            return _Cell.constant(Status.DEAD)
        inner = channel.marginal(range(1))
        centres = min(MARGINAL_CENTRES, MARGINAL_BUDGET // inner.shape[-1])
        count = min(max(MARGINAL_REPLICAS, centres // len(inner[0])), self.max_replicas)
        most = min(MOST_CENTRES, MOST_NUMBERS // inner.shape[-1]) // len(inner[0])
        most = min(max(count << MARGINAL_DOUBLINGS, most), self.max_replicas)
        inner = torch.cat((inner, channel.marginal(range(1, count))))
        flat = inner.flatten(0, 1)
        state = layer_status(flat)
        if state is not Status.OK:
            return _Cell.constant(state)
        # Closed on few rows first; then as many rows, and draws of each, as the spread between them asks for.
        rows, numbers_a_draw = len(population.x), flat.shape[-1] + 32 * population.joint.shape[1]
        most_draws = max(2, min(self.max_draws, DRAWN_BUDGET // numbers_a_draw))
        replicas = min(LEAST_REPLICAS, self.max_replicas)
        size = min(PILOT_ROWS, rows, most_draws // 2)
        draws = min(max(2, min(PILOT_DRAWS, most_draws) // size), self.max_replicas)
        few = True
        while True:
            target = self.tolerance * (MARGIN if few else 1.0)
            found = channel.bracketed(size, draws, replicas, inner, target)
            replicas = found.replicas
            share = max(found.bias, found.blind, 1.96 * math.sqrt(found.common))
            # More of the others' replicas cost little on few rows: what is settled there is not found out later.
            coarse = max(found.half_change, (4 if few else 2) * share, found.width) > self.tolerance
            if coarse and found.gap - found.blind <= self.tolerance and 2 * len(inner) <= most:
                inner = torch.cat((inner, channel.marginal(range(len(inner), 2 * len(inner)))))
                continue
            # More draws cannot mend a bracket that the largest number of replicas leaves open; near the tolerance they
            # settle whether it does.
            closed = found.width <= self.tolerance
            if found.width > 2 * self.tolerance and not self.patient:
                break
            aim = self.tolerance if closed or self.patient else math.inf
            wanted = found.sample(aim, rows, most_draws, self.max_replicas)
            if wanted[0] * wanted[1] <= size * draws:
                break
            few, (size, draws) = False, wanted
        weights = population.share.repeat(len(inner)) / len(inner)
        spread = gaussian_cap(principal_components(inner.flatten(0, 1), weights)[0], noise)
        value, error, lower, upper = found.value, found.error, found.lower, found.upper
        numbers: tuple[float, ...] = (value[0], error[0], lower[0], upper[0], value[1], error[1], lower[1], upper[1])
        resolved = closed and 1.96 * max(error) <= self.tolerance
        state = Status.SATURATED if is_saturated(lower[0], population.ceiling) else Status.OK
        return _Cell(
            state if resolved else Status.UNRESOLVED,
            (*numbers, min(population.ceiling, spread)),
            found.replicas,
            size * draws,
        )


@dataclass(frozen=True)
class _Cell:
    """One (checkpoint, layer, noise): numbers in the order of FIELDS."""

    status: Status
    numbers: tuple[float, ...]
    replicas: float
    draws: float

    @staticmethod
    def constant(status: Status) -> _Cell:
        """Return the cell of a layer that tells nothing: zero where it is dead, NaN where it is not finite."""
        dead = status is Status.DEAD
        return _Cell(
            status, (0.0 if dead else math.nan,) * len(FIELDS), 1.0 if dead else math.nan, 0.0 if dead else math.nan
        )


@dataclass(frozen=True)
class _Population:
    """The probe as a population: N rows, the distinct inputs among them, and their joint weights with the classes."""

    x: Array
    first: Array  # the row each distinct input is met at first, (n,)
    owner: torch.Tensor  # the distinct input each row is, (N,)
    rows: torch.Tensor  # joint weights of rows and classes, (N, C)
    joint: torch.Tensor  # of distinct inputs and classes, (n, C)
    ceiling: float

    @staticmethod
    def of(probe: Probe, network: Network) -> _Population:
        """Collapse equal rows."""
        weights, ceiling = input_weights(probe)
        first, member, _ = distinct_rows(probe.x)
        owner = torch.as_tensor(member, device=network.device)
        rows = aligned(weights).to(network.device)
        joint = torch.zeros(len(first), rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, owner, rows)
        return _Population(probe.x, first, owner, rows, joint, ceiling)

    @property
    def share(self) -> torch.Tensor:
        """Weights of the distinct inputs, (n,)."""
        return self.joint.sum(1)

    @property
    def entropies(self) -> tuple[float, float]:
        """H(X) and H(Y), nats."""
        return self.ceiling, entropy(self.joint.sum(0))


@dataclass(frozen=True)
class _Channel:
    """One layer of one noisy network at one noise level, asked for replicas and brackets."""

    network: Network
    population: _Population
    layer: int
    noise: float
    normals: RowNormals
    max_replicas: int
    patient: bool

    def is_deaf(self, replicas: int) -> bool:
        """Return whether the layer is the same for every input, given the noise before it: it tells nothing of them."""
        count = min(replicas, self.max_replicas)
        x = self.population.x[self.population.first]

        def normals(layer: int, replica: int) -> Array:
            noise = self.normals(1, layer, replica)
            return np.broadcast_to(noise, (len(x), noise.shape[1]))

        walk = self.network.noisy_walk(x, self.layer, self.noise, normals, range(count))
        found = [(values.amax((0, 2)) - values.amin((0, 2)), values.abs().amax((0, 1, 2))) for _, values in walk]
        # Each unit by the rounding of its own values.
        scale = torch.stack([largest for _, largest in found]).amax(0)
        return all(bool((spread <= ROUNDING * scale).all()) for spread, _ in found)

    def marginal(self, replicas: range) -> torch.Tensor:
        """Return replicas of every distinct input, shape (R, n, D)."""
        first = self.population.first

        def normals(layer: int, replica: int) -> Array:
            return self.normals(len(self.population.x), layer, replica)[first]

        walk = self.network.noisy_walk(self.population.x[first], self.layer, self.noise, normals, replicas)
        return torch.cat([values[0] for _, values in walk])

    def bracketed(self, rows: int, draws: int, start: int, inner: torch.Tensor, target: float) -> Bracket:
        """Return the bracket of the first `rows` rows, replicas doubled from `start` until it is within the target."""
        x = self.population.x[:rows]
        normals = partial(self.normals, rows)

        def replicas(block: range) -> Sequence[tuple[range, torch.Tensor]]:
            walk = self.network.noisy_walk(x, self.layer, self.noise, normals, block)
            return ((part, values[0] / self.noise) for part, values in walk)  # type: ignore[return-value]

        # Every draw on a replica of its own: those of one replica would tell the same again.
        own = tuple(range(draws))
        made = torch.cat([values for _, values in replicas(range(draws))])
        noise = aligned(np.stack([normals(self.layer, draw) for draw in range(draws)])).to(made.device)
        points = made + noise
        queries = Queries(points.transpose(0, 1), 0.5 * noise.square().sum(-1).mT, own)
        joint, owner = self.population.joint, self.population.owner[:rows]
        others = torch.full(queries.energy.shape, -torch.inf, dtype=torch.float64, device=made.device)
        rest, effective = others_density(queries, owner, inner / self.noise, joint)
        # The own input seen by as few replicas as the others are.
        few, fair = range(len(inner)), others.clone()
        first_ones = torch.tensor([draw < len(few) for draw in own], device=made.device)
        follow = ReplicaControls(noise, made)
        count, goal, before = 0, max(start, draws), math.inf
        while True:
            for block, values in replicas(range(count, goal)):
                others = torch.logaddexp(others, replica_sums(queries, block, values))
                follow.add(values)
                if block.start in few:
                    part = block[: len(few) - block.start]
                    fair = torch.logaddexp(fair, replica_sums(queries, part, values[: len(part)]))
            count = goal
            seen = (min(count, len(few)) - first_ones.to(fair.dtype)).clamp(min=1.0)
            terms = bracket_terms(
                others, count, rest, joint[owner], joint.sum(0), fair - seen.log(), effective < SEEN_CENTRES
            )
            terms = controlled(terms.flatten(0, 2), follow.follow()).view(terms.shape)
            found = Bracket.of(terms, len(self.population.x), count, self.population.entropies)
            # A bracket closes like 1/K once replicas are dense, more slowly before: one that this could not close
            # within the budget is left open at once.
            # What the marginal's bias and blindness take is not these replicas' to mend.
            gap = found.gap - found.blind
            hopeless = not self.patient and count >= HOPE_REPLICAS and gap * count / self.max_replicas > target
            enough = gap <= max(target - found.bias, target / 2)
            if enough or count >= self.max_replicas or (hopeless and 2 * gap > before):
                return found
            goal, before = min(2 * count, self.max_replicas), gap


def _normals(
    measure: str,
    streams: Streams,
    widths: Sequence[int],
    kept: dict[int, tuple[tuple[int, int], Array]],
    rows: int,
    layer: int,
    replica: int,
) -> Array:
    """Return the standard normals of one replica at one layer, shape (rows, D): a prefix of those of more rows."""
    size = max(1, min(64, NORMALS_A_ROW // widths[layer]))
    wanted = (replica // size, rows)
    if layer not in kept or kept[layer][0] != wanted:
        stream = streams.generator(measure, layer, wanted[0])
        kept[layer] = (wanted, stream.standard_normal((rows, size, widths[layer])))
    return kept[layer][1][:, replica % size]
