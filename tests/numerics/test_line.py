"""One unit behind one noisy unit: known answers, the oracle's grids, laws, limits, steep layers, far inputs, kinks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.network_grids import Noisy, grid_information
from support.network_truth import FAMILIES, Family, cloud, dense, scalars
from support.oracles import line_ty, line_xt, weight_entropy

from ibscan.numerics.channels import line
from ibscan.numerics.channels.line import LineInformation, Segments, line_of_passes

FOUR = np.array([[-3.0], [-1.0], [1.0], [3.0]])
SIX = np.array([[-2.5], [-1.5], [-0.4], [0.3], [1.2], [2.6]])
LAST = np.eye(2)[[0, 0, 0, 1]] / 4
UNEVEN = np.array([[0.1, 0.05], [0.2, 0.0], [0.0, 0.25], [0.02, 0.08], [0.05, 0.05], [0.1, 0.1]])
TWO = scalars("tanh", 0.3, (0.5, 0.0), (3.0, 0.3))
# Families whose layer is one unit behind one unit.
SCALAR = [
    family for family in FAMILIES if not family.parts and [len(weight) for weight in family.net.weights] == [1, 1]
]
Post = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Bent:
    """Passes S = post(place + deviation z) of inputs at places (n,), in units of the noise."""

    places: torch.Tensor
    deviation: float
    post: Post
    units: int = 1
    width: int = 1

    def values(self, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.post(self.places[inputs].view(-1, 1, 1) + self.deviation * z)

    def linearised(self, inputs: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


def passes_of(net: Noisy, x: np.ndarray) -> Bent:
    """The second layer of a net of two layers of one unit."""
    places = torch.from_numpy(net.post(0, x)[:, 0])
    return Bent(
        places, net.noise, lambda t: torch.from_numpy(net.post(1, t.reshape(-1, 1).numpy())).view(t.shape) / net.noise
    )


def measured(net: Noisy, x: np.ndarray, joint: np.ndarray) -> LineInformation:
    return found_by(passes_of(net, x), joint)


def found_by(passes: Bent, joint: np.ndarray, most: float = 1e-6) -> LineInformation:
    found = line_of_passes(passes, torch.from_numpy(joint.copy()), most)
    assert found is not None
    assert found.change <= most
    return found


def near(found: LineInformation, expected: tuple[float, float], rounding: float = 1e-9) -> None:
    assert (found.xt, found.ty) == pytest.approx(tuple(expected), abs=rounding)


def linear(gain: float, x: np.ndarray, joint: np.ndarray) -> tuple[float, float]:
    """I(X; g (x + Z) + Z') and that about the class."""
    noise = math.hypot(gain, 1.0)
    return line_xt(gain * x, joint.sum(1), noise), line_ty(gain * x, joint, noise)


def drawn_variance(passes: Bent, share: np.ndarray) -> float:
    """The variance of S on a fine even grid."""
    z = torch.arange(-9, 9, 1e-3, dtype=torch.float64)
    mass = torch.exp(-0.5 * z.square())
    each = passes.values(torch.arange(len(share)), z.expand(len(share), -1).unsqueeze(2)).squeeze(2)
    weights = torch.from_numpy(share).unsqueeze(1) * mass / mass.sum()
    mean = (weights * each).sum()
    return float((weights * (each - mean).square()).sum())


# Known answers -----------------------------------------------------------------------------------------------------


def test_two_layers_of_methods() -> None:
    near(measured(TWO, FOUR, LAST), (0.619409, 0.218239), 1e-6)


@pytest.mark.parametrize("gain", [0.0, 1e-3, 0.3, 3.0, 100.0, 2000.0])
@pytest.mark.parametrize("joint", [UNEVEN, np.full((6, 1), 1 / 6)], ids=["uneven", "no labels"])
def test_a_linear_layer_is_one_line_with_more_noise(gain: float, joint: np.ndarray) -> None:
    passes = Bent(torch.from_numpy(SIX[:, 0]), 1.0, lambda t: gain * t)
    found = found_by(passes, joint)
    near(found, linear(gain, SIX[:, 0], joint), 1e-10)
    mean = joint.sum(1) @ SIX[:, 0]
    assert found.variance == pytest.approx(gain**2 * (1 + joint.sum(1) @ (SIX[:, 0] - mean) ** 2), rel=1e-9)


@pytest.mark.parametrize("family", SCALAR, ids=lambda family: family.name)
def test_families_are_what_the_grids_say(family: Family) -> None:
    x, joint = family.population
    found = measured(family.net, x, joint)
    near(found, family.computed(2.0))
    assert found.variance == pytest.approx(drawn_variance(passes_of(family.net, x), joint.sum(1)), rel=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("noise", [0.05, 0.3, 2.0])
def test_many_classes_and_mixed_labels_are_what_the_grids_say(activation: str, noise: float) -> None:
    rng = np.random.default_rng(3)
    joint = rng.random((9, 5)) * (rng.random((9, 5)) < 0.5)
    joint[:, 0] += 0.01
    joint /= joint.sum()
    net, x = scalars(activation, noise, (1.0, 0.2), (3.0, -0.4)), cloud(9, 1, 4)
    near(measured(net, x, joint), grid_information(net, x, joint, 1, 2.0))


# Steep, bent and far -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [100.0, 1e3, 1e5])
@pytest.mark.parametrize("noise", [0.005, 0.3])
def test_steep_steps_are_two_points(gain: float, noise: float) -> None:
    """A tanh so steep that it is a step: two centres, with the probability of the first layer's noise."""
    places = np.array([-0.02, -0.004, 0.001, 0.003, 0.011, 0.3]) * noise / 0.005
    found = found_by(Bent(torch.from_numpy(places), noise, lambda t: torch.tanh(1e14 * gain * t) / noise), UNEVEN)
    above = np.array([0.5 * math.erfc(-place / noise / math.sqrt(2)) for place in places])
    nodes = np.arange(-1 / noise - 9, 1 / noise + 9, 0.05)
    kernels = np.exp(-0.5 * (nodes - np.array([[-1], [1]]) / noise) ** 2) * 0.05 / math.sqrt(2 * math.pi)
    laws = np.stack((1 - above, above), 1) @ kernels
    marginal, of_class = UNEVEN.sum(1) @ laws, (UNEVEN / UNEVEN.sum(0)).T @ laws
    xt, ty = (
        float(share @ (p * np.log(np.maximum(p, 1e-300) / np.maximum(marginal, 1e-300))).sum(1))
        for share, p in ((UNEVEN.sum(1), laws), (UNEVEN.sum(0), of_class))
    )
    near(found, (xt, ty), 1e-9)


@pytest.mark.parametrize(("gain", "noise"), [(40.0, 0.05), (300.0, 0.05), (300.0, 0.005), (3000.0, 0.3)])
def test_steep_layers_are_what_the_grids_say(gain: float, noise: float) -> None:
    x = np.array([[-0.9], [-0.05], [-0.01], [0.0], [0.004], [0.7]])
    net = scalars("tanh", noise, (1.0, 0.0), (gain, 0.0))
    near(measured(net, x, UNEVEN), grid_information(net, x, UNEVEN, 1, 2.0))


@pytest.mark.parametrize("slope", [3.0, 200.0])
def test_kinks_anywhere_cost_nothing(slope: float) -> None:
    """Three kinks: the same layer as a grid with panels that begin at each."""
    kinks = [-0.31, 0.123, 0.77]

    def post(t: torch.Tensor) -> torch.Tensor:
        bent = [(t - kink).clamp(min=0.0) * sign for kink, sign in zip(kinks, (1.0, -2.0, 1.5), strict=True)]
        return slope * torch.stack(bent).sum(0)

    passes, x = Bent(torch.from_numpy(SIX[:, 0]), 0.4, post), SIX[:, 0]
    ends = np.array([-8.0, *kinks, 8.0])
    bounds = np.concatenate([np.linspace(a, b, 3000)[:-1] for a, b in itertools.pairwise(ends)] + [[8.0]])
    points, shares = np.polynomial.legendre.leggauss(5)
    left, width = bounds[:-1, None], np.diff(bounds)[:, None]
    places, weights = (left + width * (points + 1) / 2).ravel(), (width / 2 * shares).ravel()
    masses = np.exp(-0.5 * ((places - x[:, None]) / 0.4) ** 2) * weights / (0.4 * math.sqrt(2 * math.pi))
    centres = post(torch.from_numpy(places)).numpy()
    t = np.arange(centres.min() - 9, min(centres.max(), slope * 20) + 9, 0.125)
    laws = np.zeros((6, len(t)))
    for part in np.array_split(np.arange(len(t)), 20):
        laws[:, part] = masses @ np.exp(-0.5 * (t[part] - centres[:, None]) ** 2) * 0.125 / math.sqrt(2 * math.pi)
    marginal, of_class = UNEVEN.sum(1) @ laws, (UNEVEN / UNEVEN.sum(0)).T @ laws
    xt, ty = (
        float(share @ (p * np.log(np.maximum(p, 1e-300) / np.maximum(marginal, 1e-300))).sum(1))
        for share, p in ((UNEVEN.sum(1), laws), (UNEVEN.sum(0), of_class))
    )
    near(found_by(passes, UNEVEN), (xt, ty), 1e-8)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_far_inputs_cost_nothing_and_are_known(far: float) -> None:
    """Two halves with nothing between: the information within each, and which half it is."""
    x = np.concatenate((SIX[:, 0], SIX[:, 0] + far))
    joint = np.concatenate((UNEVEN, UNEVEN[:, ::-1])) / 2
    found = found_by(Bent(torch.from_numpy(x), 1.0, lambda t: 1.5 * t), joint)
    within, _ = linear(1.5, SIX[:, 0], UNEVEN)
    near(replace(found, ty=0.0), (within + math.log(2), 0.0), 1e-8)


@pytest.mark.parametrize("gain", [3.0, 30.0])
def test_a_float32_network_is_right_to_its_own_precision(gain: float) -> None:
    def post(kind: torch.dtype) -> Post:
        return lambda t: torch.tanh(gain * t.to(kind)).to(torch.float64) / 0.02

    places = torch.from_numpy(SIX[:, 0]).tanh()
    exact, single = (found_by(Bent(places, 0.02, post(kind)), UNEVEN) for kind in (torch.float64, torch.float32))
    near(single, (exact.xt, exact.ty), 1e-6)


@pytest.mark.parametrize("place", [0.0, 1e-9, 0.001, -0.004, 0.0099, 0.25, 0.499, 0.5, 0.501, 1.0, 2.0 - 1e-5])
@pytest.mark.parametrize("width", [0.0, 1e-5, 1e-3])
def test_a_step_near_an_end_of_a_panel_is_seen(place: float, width: float) -> None:
    """Whole panels and halves agree wherever no point of either sees a step: there must be none such place."""
    above = np.array([0.5 * math.erfc((place - x) / math.sqrt(2)) for x in (0.0, 1.0)])
    places, joint = torch.tensor([0.0, 1.0], dtype=torch.float64), np.eye(2) / 2
    found = found_by(
        Bent(places, 1.0, lambda t: 20.0 * ((t - place) / width).tanh() if width else 20.0 * (t - place).sign()), joint
    )
    share = above.mean()
    truth = [-s * math.log(s) - (1 - s) * math.log1p(-s) for s in (share, *above)]
    # A step of some width has places between: two ends and little else.
    near(found, (truth[0] - sum(truth[1:]) / 2,) * 2, 3 * width or 1e-9)


# Laws and limits ---------------------------------------------------------------------------------------------------


def test_halving_the_steps_changes_little_and_finer_panels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SCALAR:
        x, joint = family.population
        found = measured(family.net, x, joint)
        assert found.change < 1e-8
        with monkeypatch.context() as finer:
            finer.setattr(line, "PANELS", 48)
            finer.setattr(line, "CELLS_PER_NOISE", 16)
            finer.setattr(line, "SPREAD", 18)
            finer.setattr(line, "BLUR", 128)
            near(measured(family.net, x, joint), (found.xt, found.ty), 1e-8)


def test_tiles_order_signs_and_halves_of_inputs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = dense("tanh", 0.3, (3, 1, 1), 1, (1.5, 3.0)), cloud(6, 3, 3)
    found = measured(net, x, UNEVEN)
    order = [3, 0, 5, 1, 2, 4]
    near(measured(net, x[order], UNEVEN[order][:, ::-1]), (found.xt, found.ty), 1e-12)
    turned = replace(net, weights=(-net.weights[0], -net.weights[1]), biases=(-net.biases[0], net.biases[1]))
    near(measured(turned, x, UNEVEN), (found.xt, found.ty), 1e-12)
    halves = np.vstack((UNEVEN, UNEVEN[2:3]))
    halves[[2, 6]] /= 2
    near(measured(net, np.vstack((x, x[2:3])), halves), (found.xt, found.ty), 1e-12)
    monkeypatch.setattr(line, "TOGETHER", 2)
    monkeypatch.setattr(line, "FEW", 1)
    near(measured(net, x, UNEVEN), (found.xt, found.ty), 1e-12)


def test_no_noise_leaves_the_entropies_and_much_leaves_nothing() -> None:
    net, x = dense("tanh", 1e-4, (3, 1, 1), 1, (0.7, 0.7)), cloud(4, 3, 3)
    joint = np.array([[0.1, 0.2], [0.3, 0.0], [0.0, 0.15], [0.25, 0.0]])
    mutual = weight_entropy(joint.sum(0)) + weight_entropy(joint.sum(1)) - weight_entropy(joint)
    near(measured(net, x, joint), (weight_entropy(joint.sum(1)), mutual))
    found = measured(replace(net, noise=100.0), x, joint)
    assert -1e-12 < found.ty <= found.xt < 1e-3
    assert found.xt <= 0.5 * math.log1p(found.variance) + 1e-12


def test_equal_inputs_tell_nothing() -> None:
    near(found_by(Bent(torch.ones(6, dtype=torch.float64), 1.0, torch.tanh), UNEVEN), (0.0, 0.0), 1e-12)


def test_what_is_not_finite_too_far_too_steep_or_changes_too_much_is_left_to_draws() -> None:
    joint, places = torch.from_numpy(UNEVEN), torch.from_numpy(SIX[:, 0])
    posts: list[Post] = [lambda t: t / 0.0, lambda t: 1e8 * t, lambda t: 1e6 * torch.sin(t), lambda t: t.sqrt()]
    for post in posts:
        assert line_of_passes(Bent(places, 1.0, post), joint, 1e-6) is None
    assert line_of_passes(Bent(places, 1.0, lambda t: t.clamp(min=0.1)), joint, 0.0) is None


def test_segments_cover_each_integer_once() -> None:
    first, last = torch.tensor([7, -5, 0, 8, 30]), torch.tensor([9, -3, 2, 12, 30])
    segments = Segments.covering(first, last)
    expected = sorted({k for a, b in zip(first.tolist(), last.tolist(), strict=True) for k in range(a, b + 1)})
    numbers = torch.arange(segments.size)
    assert segments.integers(numbers).tolist() == expected
    assert segments.numbers(torch.tensor(expected)).tolist() == numbers.tolist()
    # One range within another, and one that begins where another ends.
    within = Segments.covering(torch.tensor([0, 2, 11]), torch.tensor([10, 3, 12]))
    assert (within.first.tolist(), within.length.tolist()) == ([0], [13])
