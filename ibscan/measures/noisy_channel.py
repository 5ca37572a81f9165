"""One layer of one noisy network at one noise level: its passes, and brackets from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ibscan.core.network import NoisyNetwork, NoisyPasses
from ibscan.core.records import Array, Probe
from ibscan.measures.driver import ROUNDING, distinct_rows, input_weights
from ibscan.numerics.channels.bracket import Bracket, crossed_ends, paired_ends
from ibscan.numerics.channels.controls import QUADRATIC_WIDTH, ReplicaControls, controlled
from ibscan.numerics.channels.joint import MOST_UNITS, joint_densities
from ibscan.numerics.channels.mixture import entropy
from ibscan.numerics.channels.pair_laws import Inputs
from ibscan.numerics.channels.paths import STARTS, Both, path_densities, shared_densities
from ibscan.numerics.channels.replicas import Replicas, replica_densities
from ibscan.numerics.tiling import aligned, cuts, mapped

__all__ = ["Budget", "Channel", "Effort", "Found", "Generators", "Population"]

# Generators on the device of (stage, draw or tile).
Generators = Callable[[int, int], torch.Generator]
# Stages of a cell with random numbers of their own.
DRAWS, MARGINAL, PATHS, SAME_NOISE, NEAR = range(5)
# Replicas of the other inputs, for the marginal: at first as many as make so many centres (or numbers) in all, at least
# four; at most MOST_CENTRES.
MARGINAL_CENTRES, MARGINAL_BUDGET, MARGINAL_REPLICAS = 2**11, 2**21, 4
MOST_CENTRES, MOST_NUMBERS = 2**17, 2**24
# Replicas among which weighted paths look for one near a draw, and that controls are fitted to.
NEARBY = 64
# Numbers of one tile on the CPU, and of all linearised inputs.
TILE, TILE_ON_GPU, LINEARISED = 2**20, 2**26, 2**23
# Lines of all inputs, and of one, that pairs are drawn by.
LINES, MOST_LINES = 2**12, 8
# Share of a broader density in those from below, at most.
FLOOR = 1e-3
# Numbers of one linearisation, and its smaller side, up to which weighted paths pay.
SLOPE_NUMBERS, SLOPE_SIDE = 2**16, 128


@dataclass(frozen=True)
class Budget:
    """The tolerance of a cell and what may be spent on it, as in `NetworkInformation`.

    `plain` leaves out weighted paths and pairs, which cost most.
    """

    tolerance: float
    max_replicas: int
    max_draws: int
    patient: bool
    plain: bool = False


@dataclass(frozen=True)
class Population:
    """The probe as a population: N rows, the distinct inputs among them, and their joint weights with the classes."""

    x: Array
    distinct: Array  # the distinct inputs among x, (n, ...)
    owner: torch.Tensor  # index of the distinct input each row is, (N,)
    rows: torch.Tensor  # joint weights of rows and classes, (N, classes)
    joint: torch.Tensor  # joint weights of distinct inputs and classes, (n, classes)
    ceiling: float  # H(X), nats

    @staticmethod
    def of(probe: Probe, network: NoisyNetwork) -> Population:
        """Make the population of a probe, with equal rows merged."""
        weights, ceiling = input_weights(probe)
        first, member, _ = distinct_rows(probe.x)
        owner = torch.as_tensor(member, device=network.device)
        rows = aligned(weights).to(network.device)
        joint = torch.zeros(len(first), rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, owner, rows)
        return Population(probe.x, probe.x[first], owner, rows, joint, ceiling)

    @property
    def size(self) -> int:
        """N, the number of rows."""
        return len(self.owner)

    @cached_property
    def share(self) -> torch.Tensor:
        """Weights of the distinct inputs, (n,)."""
        return self.joint.sum(1)

    @cached_property
    def entropies(self) -> tuple[float, float]:
        """H(X) and H(Y), nats."""
        return self.ceiling, entropy(self.joint.sum(0))


@dataclass(frozen=True)
class Effort:
    """How densities are estimated.

    Given the input: by `paths` weighted paths a draw, or, if 0, by `replicas` of each row. Under all inputs: by `pairs`
    weighted pairs of an input and a path a draw, or, if 0, by `inner`, replicas of every input. `search` and
    `pair_search` say whether likely paths are looked for thoroughly.
    """

    paths: int
    replicas: int
    pairs: int
    inner: Replicas
    search: bool = False
    pair_search: bool = False


@dataclass(frozen=True)
class Found:
    """A bracket and the part of its width that is due to the densities given the input, nats."""

    bracket: Bracket
    inside: float

    @property
    def outside(self) -> float:
        """The rest of the width."""
        return max(0.0, self.bracket.width - self.inside)


@dataclass(frozen=True)
class Channel:
    """One layer of one noisy network at one noise level, in units of the layer's noise."""

    passes: NoisyPasses
    population: Population
    noise: float
    generators: Generators
    budget: Budget

    @property
    def units(self) -> int:
        """Standard normals of one pass."""
        return self.passes.units

    @property
    def width(self) -> int:
        """Units of the layer."""
        return self.passes.width

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the layer's post, (q, K, D), of inputs (q,) at paths z (q, K, m)."""
        return self.passes.values(inputs, z) / self.noise

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's post (q, D) and its derivative (q, D, m) at paths z (q, m)."""
        values, slope = self.passes.linearised(inputs, z)
        return values / self.noise, slope / self.noise

    @cached_property
    def steerable(self) -> bool:
        """Whether weighted paths may and can be had: the passes have a derivative that is not too large."""
        side, numbers = min(self.width, self.units), self.width * self.units
        small = side <= SLOPE_SIDE and numbers <= SLOPE_NUMBERS
        return not self.budget.plain and small and self.passes.differentiable

    @cached_property
    def every(self) -> torch.Tensor:
        """Indices of all distinct inputs."""
        return torch.arange(len(self.population.joint), device=self.population.joint.device)

    @cached_property
    def inputs(self) -> Inputs | None:
        """All inputs linearised, None where that does not pay or is not possible."""
        numbers = self.width * self.units
        if not self.steerable or self.width > MOST_UNITS or len(self.every) * numbers > LINEARISED:
            return None
        # About the path without noise, and some others where there is room.
        count = max(1, min(LINES // len(self.every), LINEARISED // (len(self.every) * numbers), MOST_LINES))
        paths = self._normals(NEAR, 0, count, len(self.every), self.units).transpose(0, 1).contiguous()
        paths[:, 0] = 0.0
        found = Inputs.of(self, self.population.joint, paths, self._tile // (4 * numbers * count))
        return found if found.sound else None

    def is_input_independent(self, replicas: int) -> bool:
        """Return whether, under each of `replicas` draws of noise, the layer is the same for every input."""
        for part in cuts(0, min(replicas, self.budget.max_replicas), max(1, self._tile // len(self.every))):
            z = self._normals(SAME_NOISE, part.start, 1, part.stop - part.start, self.units)
            values = self.passes.values(self.every, z.expand(len(self.every), -1, -1))
            # A unit varies only by rounding if it does so relative to its own values.
            scale = values.abs().amax((0, 1))
            if not bool((values.amax(0) - values.amin(0) <= ROUNDING * scale).all()):
                return False
        return True

    def marginal(self, replicas: range) -> torch.Tensor:
        """Return replicas of every distinct input, shape (R, n, D)."""
        shape = (len(self.every), self.units)
        found = []
        for part in cuts(replicas.start, replicas.stop, max(1, self._tile // (shape[0] * shape[1]))):
            made = [self._normals(MARGINAL, replica, *shape) for replica in range(part.start, part.stop)]
            found.append(self.values(self.every, torch.stack(made, 1)))
        return torch.cat(found, 1).transpose(0, 1).contiguous()

    def first_replicas(self) -> tuple[torch.Tensor, int]:
        """Return the first replicas of every distinct input, (K, n, D), and how many there may be of each."""
        inputs, most = len(self.every), self.budget.max_replicas
        count = max(MARGINAL_REPLICAS, min(MARGINAL_CENTRES, MARGINAL_BUDGET // self.width) // inputs)
        largest = min(MOST_CENTRES, MOST_NUMBERS // self.width) // inputs
        return self.marginal(range(min(count, most))), min(max(count, largest), most)

    def bracketed(self, rows: int, draws: int, effort: Effort) -> Found:
        """Return the bracket of `draws` draws of each of the first `rows` rows.

        Raises:
            MemoryError, RuntimeError: From the network.
        """
        inputs = self.population.owner[:rows]
        normals = [self._normals(DRAWS, draw, 1, rows, self.units + self.width)[0] for draw in range(draws)]
        made, noise = torch.stack(normals, 1).split((self.units, self.width), -1)
        numbers = draws * (effort.paths + 4) * (self.units + 3 * self.width) + effort.replicas * self.units
        slope = self.width * self.units
        of_pairs = max(effort.pairs * slope, LINES // 2) if effort.pairs else 0
        of_paths = (1 + STARTS if effort.search else 2) * slope if effort.paths else 0
        per_row = max(numbers, draws * of_pairs, draws * of_paths)
        parts = cuts(0, rows, max(1, self._tile // per_row))
        broad = effort.inner.broad(self.population.share)
        tiles = [_Tile(self, k, inputs[part], made[part], noise[part], broad) for k, part in enumerate(parts)]
        # Made before threads ask for it.
        assert self.inputs is not None if effort.pairs else effort.inner.exponents is not None
        if self.passes.concurrent:
            done = mapped(lambda tile: tile.ends(effort), tiles, inputs.device)
        else:
            done = [tile.ends(effort) for tile in tiles]
        follow = ReplicaControls(noise.transpose(0, 1), torch.cat([one.centres for one in done]).transpose(0, 1))
        if self.width <= QUADRATIC_WIDTH:
            follow.add(torch.cat([one.seen for one in done]).transpose(0, 1))
        controls = follow.follow()
        ends = [torch.cat(kind, 3) for kind in zip(*(one.kinds for one in done), strict=True)]
        # One set of coefficients a term and end.
        ends = [controlled(kind.flatten(0, 2), controls).view(kind.shape) for kind in ends]
        bracket = Bracket.of(ends, self.population.size, self.population.entropies)
        # Crossed ends of two informations are apart by the gaps of two densities each, of three in all.
        of_xt, of_ty, of_given = (ends[0][0, :, 0] - ends[0][1, :, 0]).mean((-2, -1)).tolist()
        return Found(bracket, max(0.0, (of_xt + of_given - of_ty) / 4))

    @property
    def _tile(self) -> int:
        return TILE if self.population.joint.device.type == "cpu" else TILE_ON_GPU

    def _normals(self, stage: int, draw: int, *shape: int) -> torch.Tensor:
        device = self.population.joint.device
        return torch.randn(shape, generator=self.generators(stage, draw), dtype=torch.float64, device=device)


@dataclass(frozen=True)
class _Ends:
    """What a tile of r rows with M draws gives: kinds of ends (2, 3, V, r, M), and passes."""

    kinds: list[torch.Tensor]
    centres: torch.Tensor  # the passes that made the draws, (r, M, D)
    seen: torch.Tensor  # replicas of the rows, (r, K, D)


@dataclass(frozen=True)
class _Tile:
    """Some rows (r,) with the paths that made their draws, (r, M, m), and the noise of the layer itself, (r, M, D)."""

    channel: Channel
    number: int
    rows: torch.Tensor
    made: torch.Tensor
    noise: torch.Tensor
    broad: Callable[[torch.Tensor], torch.Tensor]  # ln of the density that those from below are mixed with

    def ends(self, effort: Effort) -> _Ends:
        """Return the terms of the draws."""
        channel, population = self.channel, self.channel.population
        centres = channel.values(self.rows, self.made)
        points, energy = centres + self.noise, 0.5 * self.noise.square().sum(-1)
        generator = channel.generators(PATHS, self.number)
        size = (len(self.rows), min(NEARBY, effort.replicas) if effort.paths else effort.replicas, channel.units)
        replicas = torch.randn(size, generator=generator, dtype=points.dtype, device=points.device)
        if effort.paths:
            inside, seen = path_densities(
                channel, self.rows, points, self.made, replicas, effort.paths, generator, thorough=effort.search
            )
        else:
            seen = channel.values(self.rows, replicas)
            inside = shared_densities(seen, points, energy)
        owner = self.rows.repeat_interleave(points.shape[1])
        flat = Both(inside.own.flatten(), inside.fresh.flatten())
        t = points.flatten(0, 1)
        given = (population.joint / population.share.unsqueeze(1))[owner]
        prior = population.joint.sum(0)
        broad, floor = self.broad(t), min(FLOOR, channel.budget.tolerance / 50)
        if effort.pairs:
            assert channel.inputs is not None
            made = self.made.flatten(0, 1)
            pairs = joint_densities(
                channel,
                channel.inputs,
                t,
                owner,
                made,
                flat.fresh,
                effort.pairs,
                generator,
                thorough=effort.pair_search,
            )
            outside = Both(pairs.own.unsqueeze(0), pairs.fresh.unsqueeze(0))
            kinds = [crossed_ends(flat, outside, given, prior, broad, floor)]
        else:
            found = replica_densities(effort.inner, population.joint, t, energy.flatten(), owner, flat.fresh)
            kinds = [
                crossed_ends(flat, found.crossed, given, prior, broad, floor),
                paired_ends(found.owner, found.paired, given, prior, floor),
            ]
        shape = (*kinds[0].shape[:-1], *points.shape[:2])
        return _Ends(
            [kind.reshape(*kind.shape[:-1], *shape[-2:]) for kind in kinds],
            centres,
            seen[:, :NEARBY],
        )
