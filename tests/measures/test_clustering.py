"""Distances and neural collapse of whole layers: shapes, counts, statuses, NC4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from support import oracles
from support.nets import Net
from support.oracles import Parameters, forward, network_of, probe_of, random_chain
from torch import nn

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.clustering import Clustering
from ibscan.networks.admission import traced_network
from ibscan.networks.module import Module

NC = ("nc1", "nc2_equinorm", "nc2_equiangle", "nearest_mean_error")


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(
    chains: Sequence[Parameters],
    probe: Probe,
    activation: str = "tanh",
    output: str = "identity",
    **settings: Any,
) -> Mapping[str, Estimate]:
    return Clustering(**settings)(network_of(chains, activation, output), probe, RandomStreams(0))


def labelled(n: int = 45, d: int = 4, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % classes
    return rows_of(n, d, seed) + 2.0 * rows_of(classes, d, seed + 1)[y], y


def collapse(points: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """NC1 and the two parts of NC2 by pinv of the explicit matrix (more rows than units here, so it is exact)."""
    classes = y.max() + 1
    means = np.stack([points[y == c].mean(0) for c in range(classes)])
    m = means - means.mean(0)
    within = sum(np.atleast_2d(np.cov(points[y == c].T, ddof=0)) for c in range(classes)) / classes
    norms = np.linalg.norm(m, axis=1)
    cosine = (m @ m.T / np.outer(norms, norms))[~np.eye(classes, dtype=bool)]
    nc1 = np.trace(within @ np.linalg.pinv(m.T @ m / classes, rcond=1e-10, hermitian=True)) / classes
    return nc1, norms.std() / norms.mean(), np.abs(cosine + 1 / (classes - 1)).mean()


@pytest.mark.parametrize("at", ["post", "pre"])
def test_every_layer_has_the_statistics_of_numpy(at: At) -> None:
    x, y = labelled()
    chains = [random_chain((4, 6, 5, 3), seed) for seed in (1, 2)]
    result = measured(chains, probe_of(x, y), at=at)
    same = pdist(y[:, None].astype(float)) == 0
    for c, chain in enumerate(chains):
        for layer, pair in enumerate(forward(*chain, "tanh", "identity", torch.from_numpy(x))):
            points, cell = pair[at == "post"].numpy(), (c, layer)
            distance = pdist(points)
            edges = np.linspace(0, distance.max(), 101)
            assert result["distance_within"].value[cell].tolist() == np.histogram(distance[same], edges)[0].tolist()
            assert result["distance_between"].value[cell].tolist() == np.histogram(distance[~same], edges)[0].tolist()
            np.testing.assert_allclose(result["distance_edge_low"].value[cell], edges[:-1], rtol=1e-12, atol=1e-300)
            np.testing.assert_allclose(result["distance_edge_high"].value[cell], edges[1:], rtol=1e-12)
            assert result["distance_within_mean"].value[cell] == pytest.approx(distance[same].mean(), rel=1e-10)
            assert result["distance_between_mean"].value[cell] == pytest.approx(distance[~same].mean(), rel=1e-10)
            nc1, norm, angle = collapse(points, y)
            assert result["nc1"].value[cell] == pytest.approx(nc1, rel=1e-10)
            assert result["nc2_equinorm"].value[cell] == pytest.approx(norm, rel=1e-10)
            assert result["nc2_equiangle"].value[cell] == pytest.approx(angle, rel=1e-10)
            means = np.stack([points[y == k].mean(0) for k in range(3)])
            nearest = ((points[:, None] - means[None]) ** 2).sum(-1).argmin(1)
            assert result["nearest_mean_error"].value[cell] == (nearest != y).mean()
            assert all(result[key].status[cell] == Status.OK for key in NC)


def test_counts_sum_to_all_pairs_and_have_no_status() -> None:
    x, y = labelled(50)
    result = measured([random_chain((4, 5, 3), 1)], probe_of(x, y))
    total = result["distance_within"].value + result["distance_between"].value
    assert np.issubdtype(total.dtype, np.integer)
    assert (total.sum(-1) == 50 * 49 // 2).all()
    assert result["distance_within"].value.shape == (1, 2, 100)
    for key in ("distance_within", "distance_between", "distance_edge_low", "distance_edge_high"):
        assert result[key].status is None


@pytest.mark.parametrize("output", ["identity", "softmax"])
def test_nc4_is_measured_at_the_last_hidden_layer_only(output: str) -> None:
    """Share of rows whose argmax differs from the nearest class mean of the last hidden layer."""
    x, y = labelled(60)
    chain = random_chain((4, 6, 5, 3), 3)
    found = measured([chain], probe_of(x, y), output=output)["nc4"]
    values = forward(*chain, "tanh", output, torch.from_numpy(x))
    hidden = values[1][1].numpy()
    means = np.stack([hidden[y == k].mean(0) for k in range(3)])
    nearest = ((hidden[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    share = (values[2][1].numpy().argmax(1) != nearest).mean()
    assert 0 < share < 1
    assert found.value[0, 1] == share
    assert found.status[0].tolist() == [Status.NOT_MEASURED, Status.OK, Status.NOT_MEASURED]
    assert np.isnan(found.value[0, [0, 2]]).all()


@pytest.mark.parametrize("output", ["identity", "softmax"])
def test_nc3_is_of_the_last_weight_and_the_class_means_that_feed_it(output: str) -> None:
    x, y = labelled(60)
    chains = [random_chain((4, 6, 5, 3), seed) for seed in (3, 4)]
    found = measured(chains, probe_of(x, y), output=output)["nc3"]
    for c, chain in enumerate(chains):
        hidden = forward(*chain, "tanh", output, torch.from_numpy(x))[1][1].numpy()
        means = np.stack([hidden[y == k].mean(0) for k in range(3)])
        means, weight = means - means.mean(0), chain[0][2].numpy()
        expected = np.linalg.norm(weight / np.linalg.norm(weight) - means / np.linalg.norm(means))
        assert found.value[c, 1] == pytest.approx(expected, rel=1e-10)
        assert found.status[c].tolist() == [Status.NOT_MEASURED, Status.OK, Status.NOT_MEASURED]
    assert (measured(chains, probe_of(x, y), output=output, at="pre")["nc3"].status == Status.NOT_MEASURED).all()


def module(forward_of: Any, x: Any, **layers: tuple[int, int]) -> Module:
    torch.manual_seed(2)
    model = Net(forward_of, **{name: nn.Linear(*shape) for name, shape in layers.items()}).double().eval()
    model = model.requires_grad_(False).to(oracles.DEVICE)
    return traced_network(model, x, (), device=oracles.DEVICE, dtype=torch.float64)


def test_nc3_is_of_the_head_that_decides() -> None:
    """Another head with as many units that is called first is not used."""

    def forward_of(s: Any, x: torch.Tensor) -> Any:
        h = torch.tanh(s.a(x))
        return {"aux": s.aux(h), "logits": s.b(h)}

    x, y = labelled(60)
    network = module(forward_of, x, a=(4, 5), aux=(5, 3), b=(5, 3))
    alone = module(lambda s, x: s.b(torch.tanh(s.a(x))), x, a=(4, 5), b=(5, 3))
    for mine, theirs in (("a", "a"), ("b", "b")):
        other = dict(network.model.named_modules())[theirs]
        dict(alone.model.named_modules())[mine].load_state_dict(other.state_dict())
    found, expected = (Clustering()(one, probe_of(x, y), RandomStreams(0))["nc3"] for one in (network, alone))
    assert found.status[0].tolist() == [Status.OK, Status.NOT_MEASURED, Status.NOT_MEASURED]
    assert found.value[0, 0] == pytest.approx(expected.value[0, 0], rel=1e-12)


def test_nc3_is_not_measured_where_more_than_the_last_hidden_layer_feeds_the_output() -> None:
    def forward_of(s: Any, x: torch.Tensor) -> Any:
        h = torch.tanh(s.a(x))
        return s.c(h + torch.tanh(s.b(h)))

    x, y = labelled(60)
    found = Clustering()(module(forward_of, x, a=(4, 5), b=(5, 5), c=(5, 3)), probe_of(x, y), RandomStreams(0))
    assert (found["nc3"].status == Status.NOT_MEASURED).all()
    assert found["nc4"].status[0].tolist() == [Status.NOT_MEASURED, Status.OK, Status.NOT_MEASURED]


def test_nc3_needs_every_label_value_and_a_finite_weight() -> None:
    x, y = labelled(40, classes=2)
    chain = random_chain((4, 5, 3), 1)
    assert (measured([chain], probe_of(x, y * 2))["nc3"].status == Status.NOT_MEASURED).all()
    chain[0][1][0, 0] = math.nan
    x, y = labelled(60)
    assert measured([chain], probe_of(x, y))["nc3"].status[0].tolist() == [Status.NONFINITE] * 2


def test_nc4_of_a_single_sigmoid_unit_decides_at_one_half() -> None:
    """Decision at 0.5 after the sigmoid: methods.md section 4."""
    x, y = labelled(60, classes=2)
    chain = random_chain((4, 5, 1), 4)
    found = measured([chain], probe_of(x, y), output="sigmoid")["nc4"]
    values = forward(*chain, "tanh", "sigmoid", torch.from_numpy(x))
    hidden = values[0][1].numpy()
    means = np.stack([hidden[y == k].mean(0) for k in range(2)])
    nearest = ((hidden[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    decision = values[1][1].numpy()[:, 0] > 0.5
    assert 0 < decision.mean() < 1
    assert found.value[0, 0] == (decision != nearest).mean()


def test_nc4_is_of_the_output_even_if_another_head_is_called_last() -> None:
    """The last hidden layer is the one before the output's, whichever is called between and after."""
    torch.manual_seed(2)

    def forward_of(s: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.tanh(s.a(x))
        return {"aux": s.aux(h), "logits": s.b(h), "more": s.more(h)}

    layers = {"a": nn.Linear(4, 5), "aux": nn.Linear(5, 6), "b": nn.Linear(5, 3), "more": nn.Linear(5, 2)}
    model = Net(forward_of, **layers).double().eval().requires_grad_(False)
    x, y = labelled(60)
    rows = torch.from_numpy(x)
    hidden, decision = torch.tanh(model.a(rows)).numpy(), model(rows)["logits"].argmax(1).numpy()
    network = traced_network(model.to(oracles.DEVICE), x, (), device=oracles.DEVICE, dtype=torch.float64)
    found = Clustering()(network, probe_of(x, y), RandomStreams(0))["nc4"]
    means = np.stack([hidden[y == k].mean(0) for k in range(3)])
    nearest = ((hidden[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    assert found.value[0, 0] == (decision != nearest).mean()
    assert found.status[0].tolist() == [Status.OK, *[Status.NOT_MEASURED] * 3]


def test_nc4_of_an_ensemble_is_not_measured() -> None:
    """Two networks side by side have no last hidden layer."""
    torch.manual_seed(2)
    layers = {name: nn.Linear(*shape) for name, shape in {"a": (4, 5), "b": (5, 3), "c": (4, 5), "d": (5, 3)}.items()}
    model = Net(lambda s, x: (s.b(s.a(x)).softmax(1) + s.d(s.c(x)).softmax(1)) / 2, **layers).double().eval()
    x, y = labelled(30)
    network = traced_network(
        model.requires_grad_(False).to(oracles.DEVICE), x, (), device=oracles.DEVICE, dtype=torch.float64
    )
    found = Clustering()(network, probe_of(x, y), RandomStreams(0))["nc4"]
    assert (found.status == Status.NOT_MEASURED).all()


@pytest.mark.parametrize("exponent", [-1040, -700, 700, 1021])
def test_statistics_do_not_depend_on_the_scale_of_activations(exponent: int) -> None:
    """Activations times a power of two, subnormal or near the largest number: the same counts and statistics."""
    x, y = labelled(40)
    weights = [torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:3] * 1e-3]
    plain, scaled = (
        Clustering()(network_of([(weights, [None, None])], "identity"), probe_of(np.ldexp(x, e), y), RandomStreams(0))
        for e in (0, exponent)
    )
    for key in ("distance_within", "distance_between"):
        np.testing.assert_array_equal(scaled[key].value[0, 0], plain[key].value[0, 0])
    for key in NC:
        np.testing.assert_allclose(scaled[key].value[0, 0], plain[key].value[0, 0], rtol=1e-8, atol=1e-8)
    for key in ("distance_within_mean", "distance_between_mean"):
        expected = np.ldexp(plain[key].value[0, 0], exponent)
        np.testing.assert_allclose(scaled[key].value[0, 0], expected, rtol=1e-9, atol=5e-324)


def test_a_large_constant_unit_does_not_hide_a_small_signal() -> None:
    """One unit is constant at 1e6: the statistics are those of the other units."""
    x, y = labelled(40)
    weights = [torch.cat((torch.zeros(1, 4), 1e-7 * torch.eye(4))).double(), torch.eye(5, dtype=torch.float64)[:3]]
    bias = torch.tensor([1e6, 0, 0, 0, 0], dtype=torch.float64)
    found = Clustering()(network_of([(weights, [bias, None])], "identity"), probe_of(x, y), RandomStreams(0))
    small = Clustering()(
        network_of([([torch.eye(4).double()] * 2, [None] * 2)], "identity"), probe_of(x, y), RandomStreams(0)
    )
    for key in NC:
        assert found[key].status[0, 0] == Status.OK
        np.testing.assert_allclose(found[key].value[0, 0], small[key].value[0, 0], rtol=1e-9)


def test_nc4_needs_labels_that_fit_the_output() -> None:
    x, y = labelled(60, classes=4)
    result = measured([random_chain((4, 6, 5, 3), 3)], probe_of(x, y))
    assert (result["nc4"].status == Status.NOT_MEASURED).all()
    assert (result["nc1"].status == Status.OK).all()


@pytest.mark.parametrize("y", [None, np.zeros(30, dtype=int)])
def test_without_two_classes_collapse_is_not_measured(y: np.ndarray | None) -> None:
    result = measured([random_chain((4, 5, 3), 1)], probe_of(rows_of(30, 4), y))
    for key in (*NC, "nc4", "distance_between_mean"):
        assert (result[key].status == Status.NOT_MEASURED).all()
        assert np.isnan(result[key].value).all()


def test_statistics_are_of_the_label_values_in_the_sample() -> None:
    """Three label values, two present: statistics over the two; no class mean of nothing, no NaN."""
    x, y = labelled(40, classes=2)
    probe = probe_of(x, y * 2)
    assert len(probe.labels) == 3
    chain = random_chain((4, 5, 3), 1)
    result = measured([chain], probe)
    points = forward(*chain, "tanh", "identity", torch.from_numpy(x))[0][1].numpy()
    assert result["nc1"].value[0, 0] == pytest.approx(collapse(points, y)[0], rel=1e-10)
    means = np.stack([points[y == k].mean(0) for k in range(2)])
    nearest = ((points[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    assert result["nearest_mean_error"].value[0, 0] == (nearest != y).mean()


def test_dead_and_nonfinite_layers_have_their_status() -> None:
    dead, broken = random_chain((4, 5, 3, 2), 2), random_chain((4, 5, 3, 2), 3)
    dead[0][1].zero_()
    broken[0][1][0, 0] = float("nan")
    x, y = labelled(30, classes=2)
    result = measured([dead, broken], probe_of(x, y))
    for key in (*NC, "distance_within_mean", "distance_between_mean"):
        found = result[key]
        assert (found.status[0, 1:] == Status.DEAD).all()
        assert (found.status[1, 1:] == Status.NONFINITE).all()
        assert (found.status[:, 0] == Status.OK).all()
        assert np.isnan(found.value[1, 1:]).all()
        assert (found.status[np.isnan(found.value)] != Status.OK).all()
    assert result["distance_within_mean"].value[0, 1:].tolist() == [0, 0]


def test_collapsed_classes_have_all_statistics_at_0() -> None:
    """One-hot inputs through the identity: a simplex without spread, all statistics 0 (methods.md 4)."""
    y = np.arange(12) % 4
    chain = [torch.eye(4, dtype=torch.float64)] * 2, [None, None]
    result = measured([chain], probe_of(np.eye(4)[y], y), "relu")
    for key in (*NC, "nc4", "distance_within_mean"):
        assert result[key].value[0, 0] == pytest.approx(0.0, abs=1e-12)
    assert result["distance_between_mean"].value[0, 0] == pytest.approx(math.sqrt(2), rel=1e-12)
