"""Ends of brackets of the network channel with tiny efforts, over many repetitions, against truths by quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from support.network_truth import FAMILIES, Family
from support.oracles import network_of, probe_of
from support.path_oracles import assert_at_least

from ibscan.core.estimate import Status
from ibscan.core.streams import RandomStreams
from ibscan.measures.network import NetworkInformation
from ibscan.measures.noisy_channel import Channel, Effort
from ibscan.measures.noisy_population import Budget, Population
from ibscan.numerics.channels.bracket import crossed_ends, paired_ends
from ibscan.numerics.channels.joint import joint_densities
from ibscan.numerics.channels.paths import Both, path_densities, shared_densities
from ibscan.numerics.channels.replicas import Replicas, replica_densities

NAMES = ("plain", "straddling", "near kinks", "unequal weights", "three layers", "straddling, wide")
NAMED = {family.name: family for family in FAMILIES}
FLOOR, ROUNDING = 1e-3, 2e-5  # The truth is right to 1e-5.
# Draws of every row, replicas among which a path looks for one near a draw.
DRAWS, NEARBY = 2, 6


@dataclass(frozen=True)
class Repetitions:
    """One family's channel, and its ends, one set of draws, paths and replicas after another."""

    family: Family
    seed: int

    @cached_property
    def channel(self) -> Channel:
        """The layer's passes."""
        network, probe, noise = self.family.network, self.family.probe, self.family.net.noise
        population = Population.of(probe, network)
        passes = network.noisy_passes(population.distinct, self.family.layer, [noise] * len(network.layers))
        return Channel(
            passes,
            population,
            noise,
            lambda stage, draw: torch.Generator().manual_seed((self.seed * 8 + stage) * 2**20 + draw),
            Budget(0.05, 2**14, 2**14, patient=False),
        )

    @cached_property
    def truth(self) -> tuple[float, float, float]:
        """I(X;T), I(T;Y) and I(X;T|Y)."""
        found = self.family.truth
        return found.xt, found.ty, found.xt - found.ty

    def ends(self, source: torch.Generator, count: int) -> dict[str, torch.Tensor]:
        """Mean ends (2, 3) over two draws of every row, by how the densities were found, each by `count` paths."""
        channel, population = self.channel, self.channel.population
        rows = population.owner
        made, around, noise = (
            torch.randn(len(rows), number, size, generator=source, dtype=torch.float64)
            for number, size in ((DRAWS, channel.units), (NEARBY, channel.units), (DRAWS, channel.width))
        )
        points, energy = channel.values(rows, made) + noise, 0.5 * noise.square().sum(-1)
        near, _ = path_densities(channel, rows, points, made, around, count, source)
        by = {"paths": near, "replicas": shared_densities(channel.values(rows, around[:, :count]), points, energy)}
        owner, t, at = rows.repeat_interleave(DRAWS), points.flatten(0, 1), made.flatten(0, 1)
        inner = torch.randn(len(channel.every), count, channel.units, generator=source, dtype=torch.float64)
        centres = channel.values(channel.every, inner).transpose(0, 1).contiguous()
        given, prior = (population.joint / population.share.unsqueeze(1))[owner], population.joint.sum(0)
        spread = 1 + 2 * centres.flatten(0, 1).var(0)
        broad = -0.5 * ((t - centres.mean((0, 1))).square() / spread + spread.log()).sum(-1)
        assert channel.inputs is not None
        found = {}
        for name, density in by.items():
            inside = Both(density.own.flatten(), density.fresh.flatten())
            pairs = joint_densities(channel, channel.inputs, t, owner, at, inside.fresh, count, source)
            outside = Both(pairs.own.unsqueeze(0), pairs.fresh.unsqueeze(0))
            found[f"{name}, pairs"] = crossed_ends(inside, outside, given, prior, broad, FLOOR)
            every = replica_densities(Replicas(centres, population.joint), t, energy.flatten(), owner, inside.fresh)
            found[f"{name}, replicas"] = crossed_ends(inside, every.crossed, given, prior, broad, FLOOR)
        found["paired"] = paired_ends(every.owner, every.paired, given, prior, FLOOR)
        return {name: ends[:, :, 0].mean(-1) for name, ends in found.items()}


def assert_ends_hold(family: Family, count: int, repetitions: int) -> None:
    """Assert that, on average over repetitions, the upper ends are above the truth, and the lower ones below it."""
    of_family, source = Repetitions(family, 3), torch.Generator().manual_seed(count)
    each = [of_family.ends(source, count) for _ in range(repetitions)]
    for kind in each[0]:
        ends = torch.stack([one[kind] for one in each], -1)
        assert ends.isfinite().all()
        for quantity, truth in enumerate(of_family.truth):
            assert_at_least(ends[0, quantity], truth, ROUNDING)
            assert_at_least(-ends[1, quantity], -truth, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_upper_ends_are_above_the_truth_and_lower_ones_below(name: str, count: int) -> None:
    assert_ends_hold(NAMED[name], count, 150)


def test_ends_of_a_small_net_hold() -> None:
    assert_ends_hold(NAMED["unequal weights"], 3, 30)


@pytest.mark.slow
@pytest.mark.parametrize("effort", ["pairs", "replicas"])
@pytest.mark.parametrize("name", ["plain", "straddling", "unequal weights"])
def test_brackets_hold_without_their_errors(name: str, effort: str) -> None:
    """The ends of whole brackets, with controls, and with the nearest of the kinds of ends: on average they hold."""
    uppers, lowers = [], []
    for seed in range(60):
        repetition = Repetitions(NAMED[name], seed)
        channel = repetition.channel
        assert channel.inputs is not None
        inner = Replicas(channel.marginal(range(4)), channel.population.joint)
        found = channel.bracketed(channel.population.size, 8, Effort(4, 8, 4 if effort == "pairs" else 0, inner))
        error = 1.96 * np.array(found.bracket.error)
        uppers.append(np.array(found.bracket.upper) - error)
        lowers.append(np.array(found.bracket.lower) + error)
    high, low = (torch.from_numpy(np.stack(ends, 1)) for ends in (uppers, lowers))
    for quantity, truth in enumerate(repetition.truth):
        assert_at_least(high[quantity], truth, ROUNDING)
        assert_at_least(-low[quantity], -truth, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_open_brackets_are_within_what_is_proven_and_hold(name: str) -> None:
    """A budget that closes nothing: ends between 0 and the cap, and no layer above one before it."""
    family = NAMED[name]
    measure = NetworkInformation(
        noise=(family.net.noise,), tolerance=0.003, max_replicas=4, max_draws=256, samples=None
    )
    held = 0
    for seed in range(10):
        result = measure(family.network, family.probe.sampled(None, seed), RandomStreams(seed))
        xt, ty, cap = (result[f"mi_network_{key}"] for key in ("xt", "ty", "cap"))
        assert xt.lower is not None
        assert xt.upper is not None
        assert ty.lower is not None
        assert ty.upper is not None
        is_open = xt.status == Status.UNRESOLVED
        for one in (xt, ty):
            assert (one.lower[is_open] >= 0.0).all()
            assert (one.upper[is_open] <= cap.value[is_open] + ROUNDING).all()
            np.testing.assert_allclose(one.value[is_open], ((one.lower + one.upper) / 2)[is_open])
        between = is_open[:, 1:] & ~np.isnan(xt.upper[:, :-1])
        assert (xt.upper[:, 1:] <= xt.upper[:, :-1])[between].all()
        place = family.place
        held += bool(xt.lower[place] <= family.truth.xt <= xt.upper[place])
        held += bool(ty.lower[place] <= family.truth.ty <= ty.upper[place])
    assert held >= 18


@pytest.mark.slow
def test_rows_of_a_wrong_label_within_tight_clusters_are_measured() -> None:
    """Some of the rows predict the others: the only one of its label nearby may not be among them."""
    draws, rows = np.random.default_rng(0), 4096
    corners = np.array([[-3.0, -3.0], [-3.0, 3.0], [3.0, -3.0], [3.0, 3.0]])
    cluster = draws.permutation(np.arange(rows) % 4)
    x, labels = corners[cluster] + 0.02 * draws.standard_normal((rows, 2)), cluster.copy()
    labels[draws.permutation(rows)[:8]] = draws.integers(0, 4, 8)
    eye = torch.eye(2, dtype=torch.float64)
    network = network_of([([eye, eye, eye], [None] * 3)], "tanh")
    found = NetworkInformation(noise=(0.04,))(network, probe_of(x, labels), RandomStreams(0))
    joint = np.zeros((4, 4))
    np.add.at(joint, (cluster, labels), 1 / rows)
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    truth = float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())
    ty = found["mi_network_ty"]
    assert ty.lower is not None
    assert ty.upper is not None
    assert ty.status[0, 1, 0] == Status.OK
    assert ty.lower[0, 1, 0] <= truth <= ty.upper[0, 1, 0]
