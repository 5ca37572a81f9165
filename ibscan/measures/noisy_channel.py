"""One layer of one noisy network at one noise level: its passes, and brackets from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from ibscan.core.network import NoisyPasses
from ibscan.measures.driver import ROUNDING
from ibscan.measures.noisy_population import Budget, Population
from ibscan.numerics.channels.bracket import Bracket, crossed_ends, paired_ends
from ibscan.numerics.channels.controls import QUADRATIC_WIDTH, ReplicaControls, controlled, controlled_by_row
from ibscan.numerics.channels.joint import MOST_UNITS, joint_densities
from ibscan.numerics.channels.mixture import Mixture
from ibscan.numerics.channels.pair_laws import Inputs
from ibscan.numerics.channels.paths import STARTS, Both, path_densities, shared_densities
from ibscan.numerics.channels.replicas import Replicas, replica_densities
from ibscan.numerics.tiling import cuts, mapped

__all__ = ["NEARBY", "Channel", "Effort", "Found", "Generators", "Inside"]

Tiled = TypeVar("Tiled")
# Generators on the device of (stage, draw or tile).
Generators = Callable[[int, int], torch.Generator]
# Stages of a cell with random numbers of their own.
DRAWS, MARGINAL, PATHS, SAME_NOISE, NEAR, WITHIN, AMONG = range(7)
# Replicas of the other inputs, for the marginal: at first as many as make so many centres (or numbers) in all, at least
# one; at most MOST_CENTRES.
MARGINAL_CENTRES, MARGINAL_BUDGET = 2**11, 2**21
MOST_CENTRES, MOST_NUMBERS = 2**17, 2**24
# Replicas among which weighted paths look for one near a draw, and that controls are fitted to.
NEARBY = 64
# Inputs, and replicas of each, that the spread of a layer given the input is taken from, up to a width; the noise, in
# units of that spread, at which distances of inputs predict their information best (tried on trained networks).
WITHIN_INPUTS, WITHIN_REPLICAS, WITHIN_WIDTH, PREDICTIVE = 256, 16, 512, math.sqrt(3.0)
# Inputs that predict, if so many of them are near each on average; else all do, of which few are near.
FEW_CENTRES, NEAR_CENTRES = 1024, 32
# Numbers of one tile on the CPU, and of all linearised inputs.
TILE, TILE_ON_GPU, LINEARISED = 2**20, 2**26, 2**23
# Lines of all inputs, and of one, that pairs are drawn by.
LINES, MOST_LINES = 2**12, 8
# Share of a broader density in those from below, at most.
FLOOR = 1e-3
# Numbers of one linearisation, and its smaller side, up to which weighted paths pay.
SLOPE_NUMBERS, SLOPE_SIDE = 2**16, 128


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


# Rows, draws of each, paths, replicas, and whether likely paths are looked for thoroughly.
Task = tuple[int, int, int, int, bool]


@dataclass(frozen=True)
class Inside:
    """Densities given the input of M draws of each of r rows, found by a task.

    ln p(t|x) from above (`own`) and below (`fresh`), (r, M); the passes that made the draws, `centres` (r, M, D); and
    some replicas of the rows, `seen` (r, K, D).
    """

    task: Task
    own: torch.Tensor
    fresh: torch.Tensor
    centres: torch.Tensor
    seen: torch.Tensor

    def of(self, part: slice) -> Inside:
        """Return those of some rows."""
        return Inside(self.task, self.own[part], self.fresh[part], self.centres[part], self.seen[part])


@dataclass(frozen=True)
class Found:
    """A bracket, the part of its width that is due to the densities given the input, nats, and these."""

    bracket: Bracket
    inside: float
    densities: Inside

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
        """Whether weighted paths can be had: the passes have a derivative that is not too large."""
        side = min(self.width, self.units)
        return side <= SLOPE_SIDE and self.width * self.units <= SLOPE_NUMBERS and self.passes.differentiable

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

    @cached_property
    def predicted(self) -> torch.Tensor | None:
        """What distances of inputs predict of the terms of each row, less its mean over all rows, (N, 2).

        Distances are between layers without noise, relative to the mean spread that noise makes of a layer. None where
        the layer is too wide.
        """
        if self.width > WITHIN_WIDTH:
            return None
        some = self.every[:WITHIN_INPUTS]
        made = self.values(some, self._normals(WITHIN, 0, len(some), WITHIN_REPLICAS, self.units))
        offsets = (made - made.mean(1, keepdim=True)).flatten(0, 1)
        spread = offsets.mT @ offsets / (len(offsets) * (1 - 1 / WITHIN_REPLICAS))
        spread.diagonal().add_(1.0)
        clean = self.values(self.every, offsets.new_zeros(len(self.every), 1, self.units))[:, 0]
        factor, failed = torch.linalg.cholesky_ex(spread)
        if failed or not bool(torch.isfinite(clean).all()):
            return None
        points = torch.linalg.solve_triangular(factor, (clean - clean.median(0).values).mT, upper=False).mT
        joint = self.population.joint
        for step in sorted({max(1, len(points) // FEW_CENTRES), 1}, reverse=True):
            centres, every = points[::step].contiguous(), self.every[::step]
            weights = joint[::step] / joint[::step].sum()
            mixture = Mixture(centres, weights, every, weights.sum(1), every[:0])
            known = mixture.predicted(points, joint / joint.sum(1, keepdim=True), PREDICTIVE)
            # Some of the centres are enough where several are near each input, of its class too.
            if bool(known.isfinite().all()) and float(known[0].mean()) < math.log(len(centres) / NEAR_CENTRES):
                break
        known = known.mT[self.population.owner]
        return known - known.mean(0) if bool(known.isfinite().all()) else None

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
        count = max(1, min(MARGINAL_CENTRES, MARGINAL_BUDGET // self.width) // inputs)
        largest = min(MOST_CENTRES, MOST_NUMBERS // self.width) // inputs
        return self.marginal(range(min(count, most))), min(max(count, largest), most)

    def bracketed(self, rows: int, draws: int, effort: Effort, before: Inside | None = None) -> Found:
        """Return the bracket of `draws` draws of each of the first `rows` rows.

        Densities given the input are those found `before`, if an equal effort found them.

        Raises:
            MemoryError, RuntimeError: From the network.
        """
        inputs = self.population.owner[:rows]
        normals = [self._normals(DRAWS, draw, 1, rows, self.units + self.width)[0] for draw in range(draws)]
        made, noise = torch.stack(normals, 1).split((self.units, self.width), -1)
        task = (rows, draws, effort.paths, effort.replicas, effort.search)
        inside = before if before is not None and before.task == task else self._inside(task, inputs, made, noise)
        slope = self.width * self.units
        held = max(effort.pairs * slope, LINES // 2) if effort.pairs else self.width * (4 + len(effort.inner.centres))
        per_row = draws * held
        # Made before threads ask for it.
        assert self.inputs is not None if effort.pairs else effort.inner.sums
        broad = effort.inner.broad()

        def kinds(number: int, part: slice) -> list[torch.Tensor]:
            tile = _Tile(self, number, inputs[part], made[part], noise[part])
            return tile.ends(effort, inside.of(part), broad)

        ends = [torch.cat(kind, 3) for kind in zip(*self._by_tile(kinds, rows, per_row), strict=True)]
        follow = ReplicaControls(noise.transpose(0, 1), inside.centres.transpose(0, 1))
        if self.width <= QUADRATIC_WIDTH:
            follow.add(inside.seen.transpose(0, 1))
        controls = follow.follow()
        # One set of coefficients a term and end.
        known = self.predicted[:rows] if rows < self.population.size and self.predicted is not None else None
        for k, kind in enumerate(ends):
            left = controlled(kind.flatten(0, 2), controls)
            ends[k] = (left if known is None else controlled_by_row(left, known)).view(kind.shape)
        bracket = Bracket.of(ends, self.population.size, self.population.entropies)
        # Crossed ends of two informations are apart by the gaps of two densities each, of three in all.
        of_xt, of_ty, of_given = (ends[0][0, :, 0] - ends[0][1, :, 0]).mean((-2, -1)).tolist()
        return Found(bracket, max(0.0, (of_xt + of_given - of_ty) / 4), inside)

    def _inside(self, task: Task, inputs: torch.Tensor, made: torch.Tensor, noise: torch.Tensor) -> Inside:
        """Return the densities given the input of draws that paths `made` (m, M, m) and `noise` (m, M, D) make."""
        rows, draws, paths, replicas, search = task
        slope = self.width * self.units
        numbers = draws * (paths + 4) * (self.units + 3 * self.width) + replicas * self.units
        per_row = max(numbers, draws * (1 + STARTS if search else 2) * slope if paths else 0)

        def found(number: int, part: slice) -> Inside:
            return _Tile(self, number, inputs[part], made[part], noise[part]).inside(task)

        done = self._by_tile(found, rows, per_row)
        return Inside(
            task, *(torch.cat([getattr(one, k) for one in done]) for k in ("own", "fresh", "centres", "seen"))
        )

    def _by_tile(self, function: Callable[[int, slice], Tiled], rows: int, per_row: int) -> list[Tiled]:
        """Return the function's values at tiles of rows, given their numbers, so that a tile stays small."""
        parts = list(enumerate(cuts(0, rows, max(1, self._tile // per_row))))
        if self.passes.concurrent:
            return mapped(lambda tile: function(*tile), parts, self.population.joint.device)
        return [function(*tile) for tile in parts]

    @property
    def _tile(self) -> int:
        return TILE if self.population.joint.device.type == "cpu" else TILE_ON_GPU

    def _normals(self, stage: int, draw: int, *shape: int) -> torch.Tensor:
        device = self.population.joint.device
        return torch.randn(shape, generator=self.generators(stage, draw), dtype=torch.float64, device=device)


@dataclass(frozen=True)
class _Tile:
    """Some rows (r,) with the paths that made their draws, (r, M, m), and the noise of the layer itself, (r, M, D)."""

    channel: Channel
    number: int
    rows: torch.Tensor
    made: torch.Tensor
    noise: torch.Tensor

    def inside(self, task: Task) -> Inside:
        """Return the densities of the draws given their inputs."""
        channel, (_, _, paths, replicas, search) = self.channel, task
        centres = channel.values(self.rows, self.made)
        points, energy = centres + self.noise, 0.5 * self.noise.square().sum(-1)
        generator = channel.generators(PATHS, self.number)
        size = (len(self.rows), min(NEARBY, replicas) if paths else replicas, channel.units)
        around = torch.randn(size, generator=generator, dtype=points.dtype, device=points.device)
        if paths:
            found, seen = path_densities(
                channel, self.rows, points, self.made, around, paths, generator, thorough=search
            )
        else:
            seen = channel.values(self.rows, around)
            found = shared_densities(seen, points, energy)
        return Inside(task, found.own, found.fresh, centres, seen[:, :NEARBY])

    def ends(self, effort: Effort, inside: Inside, broad: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """Return the terms of the draws, kinds of ends (2, 3, V, r, M).

        `broad` is ln of the density that those from below are mixed with.
        """
        channel, population = self.channel, self.channel.population
        points, energy = inside.centres + self.noise, 0.5 * self.noise.square().sum(-1)
        owner = self.rows.repeat_interleave(points.shape[1])
        flat, t = Both(inside.own.flatten(), inside.fresh.flatten()), points.flatten(0, 1)
        given = (population.joint / population.share.unsqueeze(1))[owner]
        prior, below, floor = population.joint.sum(0), broad(t), min(FLOOR, channel.budget.tolerance / 50)
        if effort.pairs:
            assert channel.inputs is not None
            generator, made = channel.generators(AMONG, self.number), self.made.flatten(0, 1)
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
            kinds = [crossed_ends(flat, outside, given, prior, below, floor)]
        else:
            found = replica_densities(effort.inner, t, energy.flatten(), owner, flat.fresh)
            kinds = [
                crossed_ends(flat, found.crossed, given, prior, below, floor),
                paired_ends(found.owner, found.paired, given, prior, floor),
            ]
        return [kind.reshape(*kind.shape[:-1], *points.shape[:2]) for kind in kinds]
