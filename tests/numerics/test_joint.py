"""The density of a draw under all inputs, by weighted pairs and by replicas, against dense algebra and quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from support.path_oracles import (
    QUADRATURE,
    OneLayer,
    assert_at_least,
    assert_exchanged,
    assert_mean,
    gaussian_log,
    tensor,
)

from ibscan.numerics.channels.joint import joint_densities
from ibscan.numerics.channels.pair_laws import FARTHEST, Inputs
from ibscan.numerics.channels.paths import Both
from ibscan.numerics.channels.replicas import GROUPS, Replicas, replica_densities


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def joint(*rows: tuple[float, ...]) -> torch.Tensor:
    weights = tensor(rows)
    return weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws t (q, d) of inputs taken by weight, each with its label, input and path; truths ln p(t, y), ln p(t|x)."""

    points: torch.Tensor
    owner: torch.Tensor
    label: torch.Tensor
    made: torch.Tensor
    joint: torch.Tensor
    inside: torch.Tensor

    @staticmethod
    def of(passes: OneLayer, weights: torch.Tensor, count: int, seed: int) -> Draws:
        source = generator(seed)
        pair = torch.multinomial(weights.flatten(), count, replacement=True, generator=source)
        owner, label = pair // weights.shape[1], pair % weights.shape[1]
        points, made = passes.drawn(owner, source)
        truth = passes.log_joint(weights, points)
        return Draws(points, owner, label, made, truth, passes.log_density(owner, points))

    def by_label(self, density: torch.Tensor) -> torch.Tensor:
        """Return ln p(t, y) at each draw's label."""
        return density.gather(1, self.label.unsqueeze(1)).squeeze(1)


ONE_CLASS = joint((1,), (1,), (1,))
# Passes and joint weights. A class without some inputs, and inputs of two classes, are among them.
CASES: dict[str, tuple[OneLayer, torch.Tensor]] = {
    "equal": (OneLayer.scalar("tanh", [-1.0, 0.1, 0.9], 0.7, 4.0), ONE_CLASS),
    "mixed labels": (OneLayer.scalar("tanh", [-1.0, 0.1, 0.9], 0.7, 4.0), joint((5, 1), (0, 2), (1, 1))),
    "unequal": (OneLayer.scalar("tanh", [-1.0, 0.1, 0.2, 0.9], 0.7, 4.0), joint((90, 0), (5, 0), (1, 1), (0, 3))),
    "one input": (OneLayer.scalar("tanh", [0.3], 0.7, 4.0), joint((2, 1))),
    "two far apart": (OneLayer.scalar("linear", [-3000.0, 3000.0], 2.0), joint((1, 0), (0, 3))),
    "most out of reach": (OneLayer.scalar("relu", [-1.0, 0.3, 40.0, 80.0, 1e4], 1.0, 3.0), joint(*((1,),) * 5)),
    # The likely pairs are of each class as often as they should: a place of another part is seen at once.
    "all in reach": (OneLayer.scalar("tanh", [-0.3, -0.1, 0.1, 0.3], 0.1), joint((1, 0), (1, 0), (0, 1), (0, 1))),
    "across a step": (
        OneLayer.scalar("step", [-0.5, -0.05, 0.1, 0.4], 0.3, 5.0),
        joint((1, 0), (1, 0), (0, 1), (0, 1)),
    ),
    "two units": (
        OneLayer("tanh", tensor([[0.2, -0.3], [0.4, 0.4], [-1.0, 0.3]]), tensor([[0.9, 0.2], [-0.4, 0.8]]), 3.0),
        joint((1, 0), (0, 2), (1, 1)),
    ),
}


@cache
def drawn(name: str, count: int = 1500) -> Draws:
    return Draws.of(*CASES[name], count, 11)


def inputs_of(passes: OneLayer, weights: torch.Tensor, lines: int = 1, block: int = 100) -> Inputs:
    """Lines of every input, the first about the path without noise."""
    paths = gauss(len(weights), lines, passes.units, seed=9)
    paths[:, 0] = 0.0
    return Inputs.of(passes, weights, paths, block)


def by_pairs(name: str, count: int, lines: int, owner: torch.Tensor, fresh_own: torch.Tensor) -> Both:
    passes, weights = CASES[name]
    found, inputs = drawn(name), inputs_of(passes, weights, lines)
    return joint_densities(passes, inputs, found.points, owner, found.made, fresh_own, count, generator(count))


# Inputs by their linearisations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "block"), [(1, 1), (1, 100), (3, 2)])
@pytest.mark.parametrize(("width", "units"), [(1, 1), (2, 5), (5, 2), (12, 3)])
def test_shares_of_lines_are_their_gaussians(width: int, units: int, lines: int, block: int) -> None:
    passes = OneLayer("tanh", gauss(7, width), gauss(width, units, seed=1), 5.0)
    weights, paths = gauss(7, 2, seed=2).square(), gauss(7, lines, units, seed=4)
    inputs = Inputs.of(passes, weights, paths, block)
    assert inputs.sound
    assert inputs.count == lines
    points = 5 * gauss(4, width, seed=3)
    found = inputs.log_shares(points).view(4, 7, lines)
    for j in range(7):
        for k in range(lines):
            values, slope = passes.linearised(torch.tensor([j]), paths[j, k : k + 1])
            covariance = torch.eye(width, dtype=torch.float64) + slope[0] @ slope[0].mT
            dense = gaussian_log(points, values[0] - slope[0] @ paths[j, k], covariance)
            expected = dense + (weights[j].sum() / lines).log()
            torch.testing.assert_close(found[:, j, k], expected, rtol=1e-9, atol=1e-8)


def test_a_constant_added_to_all_units_changes_no_share() -> None:
    values, mixing, weights = gauss(7, 3), gauss(3, 2, seed=1), gauss(7, 2, seed=2).square()
    here, there = (inputs_of(OneLayer("linear", values + offset, mixing), weights, 2) for offset in (0.0, 1e4))
    points = 3 * gauss(4, 3, seed=3)
    torch.testing.assert_close(there.log_shares(points + 1e4), here.log_shares(points), rtol=1e-9, atol=1e-8)


def test_forms_that_lose_digits_are_not_sound() -> None:
    for distance, sound in ((0.5, True), (2.0, False)):
        places = [0.0, 0.0, distance * math.sqrt(FARTHEST)]
        assert inputs_of(OneLayer.scalar("linear", places, 1.0), ONE_CLASS).sound == sound


def test_an_input_without_weight_has_no_share() -> None:
    passes, weights = OneLayer.scalar("linear", [0.0, 1.0], 1.0), joint((1, 1), (0, 0))
    assert inputs_of(passes, weights).log_shares(gauss(3, 1))[:, 1].tolist() == [-math.inf] * 3


# Pairs -------------------------------------------------------------------------------------------------------------

COUNTS = [(2, 1), (5, 2), (16, 1), (16, 3)]  # pairs, and lines of an input


@pytest.mark.slow
@pytest.mark.parametrize(("count", "lines"), COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_pairs_of_other_inputs_have_the_mean_of_their_density(name: str, count: int, lines: int) -> None:
    """By class, and without the owner; a class that only the owner has is left empty."""
    draws = drawn(name)
    found = by_pairs(name, count, lines, draws.owner, torch.full_like(draws.inside, -torch.inf))
    own = draws.inside.unsqueeze(1) + CASES[name][1][draws.owner].log()
    truth, scale = draws.joint.exp() - own.exp(), draws.joint.exp()
    for y in range(truth.shape[1]):
        some = truth[:, y] > 1e-9 * scale[:, y]
        if some.any():
            assert_mean(((found.fresh.exp() - truth) / scale)[some, y], 0.0, slack=QUADRATURE)
        assert (found.fresh[~some, y].exp() <= 1e-6 * scale[~some, y]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "lines"), COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_the_owner_s_density_completes_that_of_the_others(name: str, count: int, lines: int) -> None:
    draws = drawn(name)
    found = by_pairs(name, count, lines, draws.owner, draws.inside)
    for y in range(draws.joint.shape[1]):
        some = draws.joint[:, y] > draws.joint.logsumexp(1) - 20  # Of what is out of reach nothing is seen.
        assert_mean((found.fresh - draws.joint)[some, y].exp(), 1.0, slack=QUADRATURE)
    above = draws.joint.logsumexp(1) - found.own.logsumexp(1)
    assert_at_least(-above, 0.0, QUADRATURE)
    assert_at_least(draws.joint.logsumexp(1) - found.fresh.logsumexp(1), 0.0, QUADRATURE)
    assert_at_least(draws.by_label(found.own) - draws.by_label(draws.joint), 0.0, QUADRATURE)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "lines"), COUNTS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "one input"])
def test_the_pair_that_made_a_draw_changes_the_law_by_the_density(name: str, count: int, lines: int) -> None:
    """Pairs with it have density p^/p over pairs without: of p(t), and of p(t, y) at the label of the draw."""
    draws, inputs = drawn(name), len(CASES[name][1])
    nothing = torch.full_like(draws.inside, -torch.inf)
    above = by_pairs(name, count, lines, draws.owner, nothing).own
    # What all pairs say from below: of the same ones, those of all inputs but one, which leaves each n - 1 times.
    others = [by_pairs(name, count, lines, torch.full_like(draws.owner, j), nothing).fresh for j in range(inputs)]
    below = torch.stack(others).logsumexp(0) - math.log(inputs - 1)
    assert_exchanged(above.logsumexp(1), below.logsumexp(1), draws.joint.logsumexp(1), QUADRATURE)
    at_label = [draws.by_label(one) for one in (above, below, draws.joint)]
    assert_exchanged(at_label[0], at_label[1], at_label[2], QUADRATURE)


def test_pairs_of_one_input_are_its_paths() -> None:
    """Below there is nothing but the owner's density; the classes share one density by their weights."""
    draws = drawn("one input")
    found = by_pairs("one input", 7, 1, draws.owner, draws.inside)
    assert_close(found.fresh, draws.inside.unsqueeze(1) + CASES["one input"][1].log().squeeze(0))
    ratio = found.own[:, 0] - found.own[:, 1]
    assert_close(ratio, torch.full_like(ratio, math.log(2.0)))


# Replicas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "offset"), [(2.0, 0.0), (2.0, 1e6), (60.0, 0.0), (1e5, 0.0)])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_replicas_are_the_sums_they_stand_for(count: int, scale: float, offset: float) -> None:
    """Also where all are so far from a draw that only whose replicas are nearer is left, to e^-300 of the nearest."""
    centres, weights = scale * gauss(count, 4, 2), gauss(4, 3, seed=1).square()
    owner = torch.tensor([2, 0, 0, 3, 1])
    points, energy, fresh_own = scale * gauss(5, 2, seed=2), gauss(5, seed=3).square(), gauss(5, seed=4)
    found = replica_densities(Replicas(centres + offset, weights), points + offset, energy, owner, fresh_own)
    exponents = -0.5 * (points[:, None, None] - centres).square().sum(-1).numpy()  # (q, K, n)
    joint_weights = weights.numpy()
    # Groups of replicas, or of inputs where there is one replica of each.
    number = np.arange(4)[None] if count == 1 else np.arange(count)[:, None]
    groups = min(GROUPS, number.size)
    kept = [np.broadcast_to(number % GROUPS != k, (count, 4)).astype(float) for k in range(-1, groups)]
    assert found.crossed.own.shape == (1 + groups, 5, 3)
    for q, j in enumerate(owner.tolist()):
        fresh = logsumexp(exponents[q, :, j]) - math.log(count)
        own = logsumexp([*exponents[q, :-1, j], -float(energy[q])]) - math.log(count)
        assert float(found.owner.own[q]) == pytest.approx(own, abs=1e-8, rel=1e-10)
        assert float(found.owner.fresh[q]) == pytest.approx(fresh, abs=1e-8, rel=1e-10)
        nearest = np.delete(exponents[q], j, 1).max()
        clipped = np.maximum(exponents[q], nearest - 300.0)
        clipped[:, j] = nearest - 300.0
        for v, some in enumerate(kept):
            size = (some * joint_weights.sum(1)).sum() / joint_weights.sum()
            of_others = some / size
            for side, density in (
                (found.crossed.own, own),
                (found.paired.own, own),
                (found.paired.fresh, fresh),
                (found.crossed.fresh, float(fresh_own[q])),
            ):
                for label in range(3):
                    rest = logsumexp(clipped, b=of_others * joint_weights[:, label])
                    expected = np.logaddexp(rest, density + math.log(joint_weights[j, label]))
                    assert float(side[v, q, label]) == pytest.approx(expected, abs=1e-8, rel=1e-10)


def test_one_replica_beside_a_far_draw_counts_whatever_group_it_is_in() -> None:
    """Without its group nothing is near; the sum of all must not be taken for that."""
    centres = torch.zeros(4, 2, 1, dtype=torch.float64)
    centres[3, 1] = 100.0
    weights, energy = tensor([[0.1, 0.0], [0.0, 0.9]]), tensor([0.125])
    found = replica_densities(Replicas(centres, weights), tensor([[100.5]]), energy, torch.tensor([0]), -energy)
    expected = [math.log(0.1 / 4) - 0.125, math.log(0.9 / 4) - 0.125]
    assert found.crossed.own[0, 0].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", CASES)
def test_replicas_have_the_mean_and_the_law_of_the_density(name: str, count: int) -> None:
    """Ten draws share the replicas of a repetition, and are one value of it."""
    (passes, weights), draws, at_once = CASES[name], drawn(name), 10
    energy = 0.5 * (draws.points - passes.values(draws.owner, draws.made.unsqueeze(1))[:, 0]).square().sum(-1)
    every, found = torch.arange(len(weights)), []
    for k, part in enumerate(torch.arange(len(energy)).split(at_once)):
        normals = gauss(len(weights), count, passes.units, seed=100 + k)
        centres = passes.values(every, normals).transpose(0, 1).contiguous()
        given = (draws.points[part], energy[part], draws.owner[part], draws.inside[part])
        found.append(replica_densities(Replicas(centres, weights), *given))
        assert torch.equal(found[-1].crossed.own, found[-1].paired.own)

    def assert_law(above: torch.Tensor, below: torch.Tensor, truth: torch.Tensor) -> None:
        exchanged = (truth - above).sigmoid() - (below - truth).sigmoid()
        assert_mean(exchanged.view(-1, at_once).mean(1), 0.0, slack=QUADRATURE)

    own = torch.cat([one.paired.own[0] for one in found])
    paired = torch.cat([one.paired.fresh[0] for one in found])
    crossed = torch.cat([one.crossed.fresh[0] for one in found])
    total = draws.joint.logsumexp(1)
    assert_law(own.logsumexp(1), paired.logsumexp(1), total)
    assert_law(draws.by_label(own), draws.by_label(paired), draws.by_label(draws.joint))
    inside = Both(torch.cat([one.owner.own for one in found]), torch.cat([one.owner.fresh for one in found]))
    assert_law(inside.own, inside.fresh, draws.inside)
    # With the owner's density known, what is left to chance are other inputs.
    crossed_ratio = (crossed.logsumexp(1) - total).exp()
    assert_mean(crossed_ratio.view(-1, at_once).mean(1), 1.0, slack=QUADRATURE)
