"""Linearised passes and weighted paths against dense algebra, quadrature, and the law that each bound stands on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.path_oracles import (
    QUADRATURE,
    OneLayer,
    assert_at_least,
    assert_exchanged,
    assert_mean,
    gaussian_log,
    log_posterior,
    placed_densities,
    standard,
    tensor,
)

from ibscan.numerics.channels.linearised import STEEPEST, Linearised
from ibscan.numerics.channels.paths import (
    PRIOR_SHARE,
    Both,
    mixture_density,
    path_counts,
    path_densities,
    shared_densities,
)

SHAPES = [(2, 5), (5, 2), (3, 3), (1, 1)]
# Passes whose densities quadrature knows: (name, passes). Noise moves the steep ones from one end to the other.
KNOWN = {
    "tanh": OneLayer.scalar("tanh", [0.4], 0.8, 4.0),
    "step": OneLayer.scalar("step", [0.1], 0.3, 5.0),
    "relu": OneLayer.scalar("relu", [-0.2], 1.0, 4.0),
    "one of two": OneLayer("tanh", tensor([[0.3]]), tensor([[0.7, -0.5]]), 5.0),
    "two of one": OneLayer("tanh", tensor([[0.3, -0.6]]), tensor([[1.0], [0.8]]), 3.0),
    "two of two": OneLayer("tanh", tensor([[0.2, -0.3]]), tensor([[0.9, 0.2], [-0.4, 0.8]]), 3.0),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def lines(width: int, units: int, scale: float = 1.0) -> tuple[Linearised, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random linearisations, and the values, slopes and paths that they are of."""
    values, slope = gauss(4, width, seed=1), scale * gauss(4, width, units, seed=2)
    path = gauss(4, units, seed=3)
    return Linearised.of(values, slope, path), values, slope, path


# Linearised passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize(("width", "units"), SHAPES)
def test_a_linearisation_is_its_dense_algebra(width: int, units: int, scale: float) -> None:
    law, values, slope, path = lines(width, units, scale)
    points, z = gauss(4, width, seed=4), gauss(4, 6, units, seed=5)
    for k in range(4):
        a = slope[k].numpy()
        covariance = np.eye(width) + a @ a.T
        offset = values[k].numpy() - a @ path[k].numpy()
        gain = np.linalg.solve(covariance, a).T
        left = points[k].numpy() - offset
        log_det = 0.5 * np.linalg.slogdet(covariance)[1]
        np.testing.assert_allclose(law.offset[k], offset, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(law.gain[k], gain, rtol=1e-9, atol=1e-12)
        assert float(law.log_det[k]) == pytest.approx(log_det, rel=1e-11, abs=1e-12)
        np.testing.assert_allclose(law.mean_path(points)[k], gain @ left, rtol=1e-8, atol=1e-9)
        square = left @ np.linalg.solve(covariance, left)
        assert float(law.log_density(points)[k]) == pytest.approx(-0.5 * square - log_det, rel=1e-9)
        kernel = -0.5 * ((left - z[k].numpy() @ a.T) ** 2).sum(-1)
        np.testing.assert_allclose(law.log_kernel(points, z)[k], kernel, rtol=1e-11)
    index = torch.tensor([[3, 0], [1, 1]])
    taken = law.taken(index)
    assert torch.equal(taken.gain, law.gain[index])
    assert torch.equal(taken.log_det, law.log_det[index])


@pytest.mark.parametrize(("width", "units"), SHAPES)
def test_kernel_and_density_make_the_posterior(width: int, units: int) -> None:
    """q(z|t) = N(z; 0, I) N(t; offset + A z, I) / N(t; offset, I + A A^T)."""
    law, *_ = lines(width, units)
    points, z = gauss(4, width, seed=4), gauss(4, 6, units, seed=5)
    prior = -0.5 * z.square().sum(-1)
    found = prior + law.log_kernel(points, z) - law.log_density(points).unsqueeze(1)
    torch.testing.assert_close(found, log_posterior(law, points, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "units"), SHAPES)
def test_paths_have_the_mean_and_covariance_of_the_posterior(width: int, units: int) -> None:
    law, *_ = lines(width, units)
    points, count = gauss(4, width, seed=4), 40000
    z = law.paths(points, gauss(4, count, units, seed=5), gauss(4, count, width, seed=6))
    for k in range(4):
        a = law.slope[k]
        covariance = torch.linalg.inv(torch.eye(units, dtype=torch.float64) + a.mT @ a)
        left = z[k] - covariance @ a.mT @ (points[k] - law.offset[k])
        variances = covariance.diagonal()
        assert (left.mean(0).abs() <= 4 * (variances / count).sqrt()).all()
        error = ((variances.outer(variances) + covariance.square()) / count).sqrt()
        assert ((left.mT @ left / count - covariance).abs() <= 4 * error).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.01 * math.sqrt(STEEPEST)])
@pytest.mark.parametrize(("width", "units"), SHAPES)
def test_a_slope_without_meaning_leaves_the_prior(width: int, units: int, bad: float) -> None:
    _, values, slope, path = lines(width, units)
    slope[2, 0, 0] = bad
    law = Linearised.of(values, slope, path)
    points, z = gauss(4, width, seed=4), gauss(4, 6, units, seed=5)
    assert not law.slope[2].any()
    assert not law.gain[2].any()
    assert float(law.log_det[2]) == 0
    torch.testing.assert_close(law.offset[2], values[2])
    assert torch.equal(law.paths(points, z, gauss(4, 6, width, seed=6))[2], z[2])
    torch.testing.assert_close(law.log_kernel(points, z)[2], law.log_density(points)[2].expand(6))
    # The others are as before.
    kept, (whole, *_) = [0, 1, 3], lines(width, units)
    torch.testing.assert_close(law.gain[kept], whole.gain[kept])


def test_values_without_meaning_leave_numbers() -> None:
    values = tensor([[math.nan], [math.inf]])
    law = Linearised.of(values, torch.ones(2, 1, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    assert law.offset.isfinite().all()


def test_a_path_of_steep_passes_is_right() -> None:
    """Just under the steepest, I - B A is 1e-10: paths lie that close to what t says."""
    slope = math.sqrt(0.99 * STEEPEST)
    law = Linearised.of(tensor([[0.0]]), tensor([[[slope]]]), tensor([[0.0]]))
    z = law.paths(tensor([[2 * slope]]), gauss(1, 20000, 1), gauss(1, 20000, 1, seed=1))
    assert float(z.mean()) == pytest.approx(2.0, abs=4 / slope / math.sqrt(20000) + 1e-9)
    assert float(z.std()) * slope == pytest.approx(1.0, abs=0.03)


# Counts and replicas -----------------------------------------------------------------------------------------------


def test_counts_of_paths_add_up() -> None:
    for count in range(2, 200):
        for laws in range(4):
            counts = path_counts(count, laws)
            assert sum(counts) == count
            assert len(counts) == laws + 1
            assert counts[0] >= 1
            assert min(counts) >= 0
            assert counts[1:] == sorted(counts[1:])
            assert not laws or counts[-1] >= 1
            assert not laws or abs(counts[0] - PRIOR_SHARE * count) <= 0.6


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("numbers", [2**22, 20, 1])
def test_shared_replicas_are_the_sums_they_stand_for(offset: float, numbers: int) -> None:
    seen, made, noise = gauss(3, 7, 2), gauss(3, 4, 2, seed=1), gauss(3, 4, 2, seed=2)
    points, energy = offset + made + noise, 0.5 * noise.square().sum(-1)
    found = shared_densities(seen + offset, points, energy, numbers)
    terms = -0.5 * (points.unsqueeze(2) - offset - seen.unsqueeze(1)).square().sum(-1)
    above = torch.cat((terms[..., :-1], -energy.unsqueeze(-1)), -1)
    torch.testing.assert_close(found.fresh, terms.logsumexp(-1) - math.log(7), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.own, above.logsumexp(-1) - math.log(7), rtol=1e-9, atol=1e-9)


# Weighted paths of one input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize(("width", "units"), SHAPES)
def test_linear_passes_leave_only_the_prior_s_paths_to_chance(width: int, units: int, count: int) -> None:
    """Every law beside the prior is the posterior: a weight is p / (1 - s + s p / kernel), s the prior's share."""
    passes = OneLayer("linear", gauss(3, width), gauss(width, units, seed=1))
    inputs = torch.arange(3).repeat_interleave(2000)
    points, made = passes.drawn(inputs, generator(2))
    shape = (3, 2000, -1)
    found, seen = path_densities(
        passes, torch.arange(3), points.view(shape), made.view(shape), gauss(3, 5, units, seed=3), count, generator(4)
    )
    assert seen.shape == (3, 5, width)
    covariance = torch.eye(width, dtype=torch.float64) + passes.mixing @ passes.mixing.mT
    truth = gaussian_log(points, passes.places[inputs], covariance).view(3, 2000)
    prior = path_counts(count, 3)[0] / count
    for bound in (found.own, found.fresh):
        assert float((bound - truth).max()) <= -math.log(1 - prior) + 1e-9
        assert float((bound - truth).abs().median()) <= -math.log(1 - prior)
    other = found.fresh - truth
    assert_mean(other.exp(), 1.0)
    assert_at_least(found.own - truth, 0.0)
    assert_at_least(-other, 0.0)


def test_linear_passes_are_exact_where_weights_are_constant() -> None:
    """A slope of zero: the posterior is the prior, and every weight is the density itself."""
    passes = OneLayer("linear", gauss(3, 2), torch.zeros(2, 3, dtype=torch.float64))
    points, made = gauss(3, 4, 2, seed=1), gauss(3, 4, 3, seed=2)
    found, _ = path_densities(passes, torch.arange(3), points, made, gauss(3, 5, 3, seed=3), 6, generator(4))
    truth = -0.5 * (points - passes.places.unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(found.own, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.fresh, truth, rtol=1e-12, atol=1e-12)


def test_more_paths_of_linear_passes_come_to_the_closed_form() -> None:
    passes = OneLayer("linear", gauss(1, 2), 3 * gauss(2, 3, seed=1))
    points, made = passes.drawn(torch.zeros(50, dtype=torch.int64), generator(2))
    found, _ = path_densities(
        passes, torch.zeros(1, dtype=torch.int64), points[None], made[None], gauss(1, 5, 3, seed=3), 8192, generator(4)
    )
    covariance = torch.eye(2, dtype=torch.float64) + passes.mixing @ passes.mixing.mT
    truth = gaussian_log(points, passes.places, covariance)
    assert float((found.own - truth).abs().max()) < 0.05
    assert float((found.fresh - truth).abs().max()) < 0.05


def estimated(passes: OneLayer, rows: int, count: int, seed: int, replicas: int = 16) -> tuple[Both, torch.Tensor]:
    """Estimates of one draw each of `rows` repetitions, and the truth; every one has paths and replicas of its own."""
    inputs = torch.zeros(rows, dtype=torch.int64)
    points, made = passes.drawn(inputs, generator(seed))
    around = gauss(rows, replicas, passes.units, seed=seed + 1)
    found, _ = path_densities(
        passes, inputs, points.unsqueeze(1), made.unsqueeze(1), around, count, generator(seed + 2)
    )
    return Both(found.own[:, 0], found.fresh[:, 0]), passes.log_density(inputs, points)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_the_density_lies_between_own_and_fresh_and_they_meet(name: str) -> None:
    gaps = []
    for count in (2, 8, 64):
        found, truth = estimated(KNOWN[name], 3000, count, 10 * count)
        assert_at_least(found.own - truth, 0.0, QUADRATURE)
        assert_at_least(truth - found.fresh, 0.0, QUADRATURE)
        gaps.append(standard(found.own - found.fresh)[0])
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("name", KNOWN)
def test_the_mean_of_the_lower_density_is_the_density(name: str, count: int) -> None:
    found, truth = estimated(KNOWN[name], 3000, count, count)
    assert_mean((found.fresh - truth).exp(), 1.0, slack=QUADRATURE)


def placed(
    passes: OneLayer, rows: int, count: int, seed: int, starts: Sequence[float] | None
) -> tuple[Both, tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """`mixture_density` with lines about given paths, the obvious version of it at the same paths, truth and kernel."""
    inputs = torch.zeros(rows, dtype=torch.int64)
    points, made = passes.drawn(inputs, generator(seed))
    laws = []
    for start in starts or ():
        path = torch.full((rows, passes.units), start, dtype=torch.float64)
        laws.append(Linearised.of(*passes.linearised(inputs, path), path))
    if laws:  # The last one as it is used: about where the first one points to.
        path = laws[0].mean_path(points)
        laws[-1] = Linearised.of(*passes.linearised(inputs, path), path)
    found = mixture_density(passes, inputs, points, made, laws, count, generator(seed + 1))
    z = passes.ran[-1]
    assert torch.equal(z[:, -1], made)
    kernel = -0.5 * (points.unsqueeze(1) - passes.values(inputs, z)).square().sum(-1)
    return found, placed_densities(kernel, points, z, laws), passes.log_density(inputs, points), kernel


@pytest.mark.parametrize("starts", [None, (0.0,), (0.0, 0.7, -0.4)])
@pytest.mark.parametrize("count", [2, 3, 11])
@pytest.mark.parametrize("name", KNOWN)
def test_weighted_paths_are_the_sums_they_stand_for(name: str, count: int, starts: Sequence[float] | None) -> None:
    found, (below, above, likely), _, kernel = placed(KNOWN[name], 20, count, 3, starts)
    torch.testing.assert_close(found.fresh, below, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.own, (likely * above).sum(-1), rtol=1e-8, atol=1e-8)
    # A weight is no more than the kernel over the share of the prior.
    share = path_counts(count, len(starts or ()))[0] / count
    most = kernel[:, :-1].logsumexp(1) - math.log(count) - math.log(share)
    assert (found.fresh <= most + 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("starts", [None, (0.0,), (0.0, 0.7, -0.4)])
@pytest.mark.parametrize("count", [3, 11])
@pytest.mark.parametrize("name", KNOWN)
def test_the_path_that_made_a_draw_changes_the_law_by_the_density(
    name: str, count: int, starts: Sequence[float] | None
) -> None:
    """Paths with it have density p^/p over paths without, whatever its place, each with its probability."""
    _, (below, above, likely), truth, _ = placed(KNOWN[name], 4000, count, 5, starts)
    place = torch.multinomial(likely, 1, generator=generator(7))
    assert_exchanged(above.gather(1, place).squeeze(1), below, truth, QUADRATURE)
