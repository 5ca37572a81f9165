"""Ranks of weights and the bounds that follow from them: methods.md section 1, against SVDs of full matrices."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.nets import Net
from support.oracles import ACTIVATION, Parameters, full_jacobian, network_of, probe_of, random_chain
from torch import nn
from torch.nn import functional

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.weight_rank import WeightRank
from ibscan.networks.admission import traced_network
from ibscan.networks.budget import ChainBudget
from ibscan.networks.chain import Chain
from ibscan.networks.module import Module

STREAMS = RandomStreams(0)
EPS = (1e-8, 1e-3, 0.05, 0.2, 0.7, 2.0)
HIDDEN = sorted(set(ACTIVATION) - {"softmax"})
KEYS = ("weight_rank", "rank_bound_frobenius", "rank_limit_statement", "weight_stable_rank", "rank_bound_weights")


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def no_bias(*weights: np.ndarray | torch.Tensor) -> Parameters:
    return [torch.as_tensor(w, dtype=torch.float64) for w in weights], [None] * len(weights)


def module_of(model: nn.Module, x: np.ndarray) -> Any:
    model = model.double().eval().requires_grad_(False)
    # A copy: on another device it is moved there, away from the oracle.
    return traced_network(copy.deepcopy(model), x, (), device=oracles.DEVICE, dtype=torch.float64)


def sequential(chain: Parameters, activation: nn.Module) -> Any:
    """The chain as an nn.Sequential; `activation` a module."""
    parts = []
    for weight, bias in zip(*chain, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        parts += [linear, activation]
    return nn.Sequential(*parts[:-1])


def weights_measured(network: Chain | Module, x: np.ndarray, eps: tuple[float, ...] = EPS) -> Mapping[str, Estimate]:
    return WeightRank(eps)(network, probe_of(x), STREAMS)


def measured(network: Chain, x: np.ndarray, eps: tuple[float, ...] = EPS, **settings: Any) -> Mapping[str, Estimate]:
    return LocalRank(eps, **settings)(network, probe_of(x), STREAMS)


# The oracle --------------------------------------------------------------------------------------------------------


def spectrum(matrix: Any) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)


def above(sigma: np.ndarray, eps: Any) -> list[int]:
    return [int((sigma > e).sum()) for e in eps]


def bounds_of_rows(
    chain: Parameters, names: tuple[str, str], x: np.ndarray, layer: int, eps: tuple[float, ...]
) -> np.ndarray:
    """#{sigma(W_l) > eps / ||D_{l-1} J_{l-1}(x)||_2} (N, E): the norm is 1 at the first layer, 0 bounds by nothing."""
    sigma, found = spectrum(chain[0][layer]), []
    for row in torch.from_numpy(x):
        before = full_jacobian(*chain, names, row[None], layer - 1, "post")[0] if layer else torch.eye(1)
        norm = float(torch.linalg.matrix_norm(before, 2))
        found.append(above(sigma, [e / norm if norm else math.inf for e in eps]))
    return np.array(found)


def bounded_rows(rows: int, spectrum_rows: int | None) -> int:
    """Return how many of the rows the mean of `rank_bound_jacobian` is over, as the quantity itself says."""
    bound = next(q for q in LocalRank.quantities if q.key == "rank_bound_jacobian")
    return bound.rows(LocalRank(spectrum_rows=spectrum_rows), rows)


def rank_counts(
    chain: Parameters, names: tuple[str, str], x: np.ndarray, layer: int, at: At, eps: tuple[float, ...]
) -> np.ndarray:
    """#{sigma(J_l(x)) > eps}, (N, E)."""
    sigma = torch.linalg.svdvals(full_jacobian(*chain, names, torch.from_numpy(x), layer, at)).numpy()
    return np.array([above(s, eps) for s in sigma])


def whole_matrix(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """A layer without its bias as a matrix, by its values at the unit vectors."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return (layer(units) - layer(torch.zeros_like(units))).flatten(1).T


def module_spectra(values: Any, x: np.ndarray, at: At) -> list[np.ndarray]:
    """Singular values (N, k) of every layer's Jacobian; `values(rows)` is [(pre, post), ...]."""
    rows = torch.from_numpy(x)
    found = []
    for layer in range(len(values(rows[:1]))):
        jacobian = torch.func.jacrev(lambda row, k=layer: values(row[None])[k][at == "post"].flatten())
        found.append(np.stack([spectrum(jacobian(row).flatten(1)) for row in rows]))
    return found


# Laws, held by every result ----------------------------------------------------------------------------------------


def assert_laws(
    weights: Mapping[str, Estimate], ranks: Mapping[str, Estimate], rows: int, spectrum_rows: int | None = None
) -> None:
    """Assert the inequalities between the two measures of any network at pre; cells not measured are skipped."""
    count, rank, bound = (ranks[key] for key in ("local_rank_count", "local_rank", "rank_bound_jacobian"))
    told = np.isfinite(rank.value[..., 0])
    assert count.status is None
    assert count.value.shape[:3] == rank.value.shape
    assert (count.value[told].sum(-1) == rows).all()
    assert (count.value[~told] == -1).all()
    number = np.arange(count.value.shape[-1])
    np.testing.assert_allclose((count.value[told] * number).sum(-1) / rows, rank.value[told], rtol=1e-14)
    present = count.value[told] > 0
    np.testing.assert_array_equal(present.argmax(-1), rank.minimum[told])
    np.testing.assert_array_equal(number[-1] - present[..., ::-1].argmax(-1), rank.maximum[told])
    with np.errstate(invalid="ignore"):
        assert not (weights["weight_rank"].value > weights["rank_bound_frobenius"].value * (1 + 1e-12)).any()
        assert not (rank.maximum > weights["rank_bound_weights"].value[..., None]).any()
        if bounded_rows(rows, spectrum_rows) == rows:
            assert not (rank.value > bound.value).any()
        for falling in (rank.value, bound.value, weights["weight_rank"].value):
            assert not (np.diff(falling) > 0).any()
        assert not (np.diff(weights["rank_bound_weights"].value, axis=1) > 0).any()
        stable = weights["weight_stable_rank"].value
        assert not (stable > weights["weight_rank"].value[..., 0] * (1 + 1e-12)).any()  # eps 1e-8
    for one in (*(weights[key] for key in KEYS), rank, bound):
        assert one.value.shape == one.status.shape
        assert (np.isnan(one.value) == np.isin(one.status, (Status.NOT_MEASURED, Status.NONFINITE))).all()


@pytest.mark.slow
@pytest.mark.parametrize("spectrum_rows", [None, 2])
@pytest.mark.parametrize("activation", HIDDEN)
def test_bounds_of_chains_are_those_of_the_definitions(activation: str, spectrum_rows: int | None) -> None:
    """Two checkpoints stacked, a narrow layer in the middle; counts from spectra and from Gram matrices."""
    chains, names = [random_chain((6, 7, 3, 5), seed, scale=1.5) for seed in (1, 2)], (activation, "identity")
    x, network = rows_of(9, 6, seed=3), network_of(chains, *names)
    weights, ranks = weights_measured(network, x), measured(network, x, spectrum_rows=spectrum_rows)
    assert_laws(weights, ranks, 9, spectrum_rows)
    used = bounded_rows(9, spectrum_rows)
    for c, chain in enumerate(chains):
        for layer, weight in enumerate(chain[0]):
            sigma = spectrum(weight)
            place = (c, layer)
            assert weights["weight_rank"].value[place].tolist() == above(sigma, EPS)
            squares = float((weight**2).sum())
            eps = np.array(EPS)
            np.testing.assert_allclose(weights["rank_bound_frobenius"].value[place], squares / eps**2, rtol=1e-12)
            np.testing.assert_allclose(
                weights["rank_limit_statement"].value[place], 2 * sigma[0] ** 2 / eps**2, rtol=1e-12
            )
            assert weights["weight_stable_rank"].value[place] == pytest.approx(squares / sigma[0] ** 2, rel=1e-12)
            least = min(np.linalg.matrix_rank(w) for w in chain[0][: layer + 1])
            assert weights["rank_bound_weights"].value[place] == least
            found, bounds = ranks["rank_bound_jacobian"], bounds_of_rows(chain, names, x, layer, EPS)
            np.testing.assert_allclose(found.value[place], bounds[:used].mean(0), rtol=1e-14)
            np.testing.assert_allclose(
                found.stderr[place], bounds[:used].std(0, ddof=1) / math.sqrt(used), rtol=1e-12, atol=1e-14
            )
            counts = rank_counts(chain, names, x, layer, "pre", EPS)
            assert (counts <= bounds).all()
            np.testing.assert_allclose(ranks["local_rank"].value[place], counts.mean(0), rtol=1e-14)
            for k in range(len(EPS)):
                histogram = ranks["local_rank_count"].value[(*place, k)]
                assert {r: int(h) for r, h in enumerate(histogram) if h} == Counter(counts[:, k].tolist())
    for one in (*(weights[key] for key in KEYS), ranks["local_rank"], ranks["rank_bound_jacobian"]):
        assert (one.status == Status.OK).all()


@st.composite
def nets(draw: Any) -> Any:
    widths = draw(st.lists(st.integers(1, 8), min_size=2, max_size=5))
    chains = []
    for _ in range(draw(st.integers(1, 2))):
        weights, biases = random_chain(widths, draw(st.integers(0, 10**6)), scale=draw(st.floats(0.05, 8.0)))
        for k, rank in enumerate(draw(st.lists(st.integers(0, 8), min_size=len(weights), max_size=len(weights)))):
            if rank < min(weights[k].shape):
                weights[k] = weights[k][:, :rank] @ weights[k].T[:rank, :1].expand(-1, weights[k].shape[1])
        chains.append((weights, biases))
    return widths[0], chains, draw(st.sampled_from(HIDDEN)), draw(st.sampled_from(["identity", "softmax"]))


@pytest.mark.slow
@settings(max_examples=60)
@given(net=nets(), rows=st.integers(1, 9), spectral=st.sampled_from([None, 1, 3]), seed=st.integers(0, 99))
def test_any_chain_obeys_the_laws_of_bounds(
    net: tuple[int, Sequence[Parameters], str, str], rows: int, spectral: int | None, seed: int
) -> None:
    inputs, chains, *names = net
    activation, output = names
    network, x = network_of(chains, activation, output), rows_of(rows, inputs, seed=seed)
    assert_laws(weights_measured(network, x), measured(network, x, spectrum_rows=spectral), rows, spectral)


def test_a_mean_rank_does_not_exceed_its_mean_bound() -> None:
    """It holds for every row, and so for means over the same rows."""
    network, x = network_of([random_chain((6, 7, 3, 5), seed, scale=1.5) for seed in (1, 2)]), rows_of(9, 6, seed=3)
    found = measured(network, x, spectrum_rows=None)
    assert (found["local_rank"].value <= found["rank_bound_jacobian"].value).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "softplus"])
def test_the_jacobian_bound_holds_row_by_row(activation: str) -> None:
    """With a probe of one row the bound is that row's count, and its standard error is NaN."""
    chain, names = random_chain((5, 6, 4, 4), 7, scale=2.0), (activation, "softmax")
    network = network_of([chain], *names)
    for row in rows_of(12, 1, 5, seed=1):
        found = measured(network, row)
        for layer in range(3):
            bounds = bounds_of_rows(chain, names, row, layer, EPS)[0]
            assert found["rank_bound_jacobian"].value[0, layer].tolist() == bounds.tolist()
            assert (found["local_rank"].maximum[0, layer] <= bounds).all()
        assert not (found["rank_bound_jacobian"].stderr > 0).any()


@pytest.mark.parametrize("spectrum_rows", [2, None])
@pytest.mark.parametrize("smallest", [0.01, 1e-9])
def test_blocks_of_rows_do_not_change_bounds(smallest: float, spectrum_rows: int | None) -> None:
    """Relative thresholds below what Gram matrices hold send every row to the SVD."""
    chain, x = random_chain((5, 6, 4), 3, scale=1.5), rows_of(11, 5)
    options: dict[str, Any] = {"rel_eps": (smallest,), "spectrum_rows": spectrum_rows}
    expected = bounds_of_rows(chain, ("tanh", "identity"), x, 1, EPS)
    used = bounded_rows(11, spectrum_rows)
    for budget in (None, ChainBudget(factors=1, sweep=1)):
        network = dataclasses.replace(network_of([chain]), budget=budget)
        found = measured(network, x, **options)["rank_bound_jacobian"]
        assert (found.status == Status.OK).all()
        np.testing.assert_allclose(found.value[0, 1], expected[:used].mean(0), rtol=1e-14)


def test_there_is_no_bound_after_the_activation() -> None:
    """At post the bound would be of another matrix and is not measured; counts of rows are."""
    chain, x = random_chain((5, 6, 4), 3), rows_of(8, 5)
    found = measured(network_of([chain]), x, at="post")
    assert (found["rank_bound_jacobian"].status == Status.NOT_MEASURED).all()
    assert np.isnan(found["rank_bound_jacobian"].value).all()
    counts = rank_counts(chain, ("tanh", "identity"), x, 0, "post", EPS)
    for k in range(len(EPS)):
        histogram = found["local_rank_count"].value[0, 0, k]
        assert {r: int(h) for r, h in enumerate(histogram) if h} == Counter(counts[:, k].tolist())


# Known answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum_rows", [None, 1])
def test_diagonal_weights_give_the_numbers_by_hand(spectrum_rows: Any) -> None:
    """diag(4, 2, 1, 1/2), then diag(1, 1, 1/4, 0), linear: every number by hand."""
    first, second = np.diag([4.0, 2.0, 1.0, 0.5]), np.diag([1.0, 1.0, 0.25, 0.0])
    network, x, eps = network_of([no_bias(first, second)], "identity"), rows_of(6, 4), (0.125, 0.5, 1.0, 3.0, 4.0)
    weights, ranks = weights_measured(network, x, eps), measured(network, x, eps, spectrum_rows=spectrum_rows)
    assert weights["weight_rank"].value[0].tolist() == [[4, 3, 2, 1, 0], [3, 2, 0, 0, 0]]
    assert weights["weight_stable_rank"].value[0] == pytest.approx([21.25 / 16, 2.0625], rel=1e-14)
    assert weights["rank_bound_weights"].value[0].tolist() == [4, 3]
    assert weights["rank_bound_frobenius"].value[0, 0] == pytest.approx([1360, 85, 21.25, 21.25 / 9, 21.25 / 16])
    assert weights["rank_bound_frobenius"].value[0, 1] == pytest.approx([132, 8.25, 2.0625, 2.0625 / 9, 2.0625 / 16])
    assert weights["rank_limit_statement"].value[0, 0] == pytest.approx([2048, 128, 32, 32 / 9, 2])
    assert weights["rank_limit_statement"].value[0, 1] == pytest.approx([128, 8, 2, 2 / 9, 0.125])
    # J_2 = diag(4, 2, 1/4, 0); the norm of what feeds layer 2 is 4: sigma(W_2) > eps / 4.
    assert ranks["local_rank"].value[0].tolist() == [[4, 3, 2, 1, 0], [3, 2, 2, 1, 0]]
    assert ranks["rank_bound_jacobian"].value[0].tolist() == [[4, 3, 2, 1, 0], [3, 3, 2, 2, 0]]
    for layer, of_eps in enumerate(ranks["local_rank"].value[0].astype(int)):
        for k, rank in enumerate(of_eps):
            assert ranks["local_rank_count"].value[0, layer, k].tolist() == [6 * (r == rank) for r in range(5)]


def test_rank_deficient_weights_bound_the_rank() -> None:
    """Integer products of rank 3, 5 and 2: the bound is 3, 3, 2, and at a generic input so is the rank."""
    g = np.random.default_rng(5)
    weights = [g.integers(-3, 4, (o, r)) @ g.integers(-3, 4, (r, i)) for o, r, i in ((8, 3, 6), (7, 5, 8), (6, 2, 7))]
    assert [np.linalg.matrix_rank(w) for w in weights] == [3, 5, 2]
    x = rows_of(7, 6)
    for scale in (1.0, 1e-3):
        network = network_of([no_bias(*(scale * w for w in weights))], "identity")
        found = weights_measured(network, x, (1e-8,))
        assert found["weight_rank"].value[0, :, 0].tolist() == [3, 5, 2]
        assert found["rank_bound_weights"].value[0].tolist() == [3, 3, 2]
        ranks = measured(network, x, (1e-8,))["local_rank"]
        assert ranks.maximum[0, :, 0].tolist() == ranks.minimum[0, :, 0].tolist() == [3, 3, 2]


def test_rounding_counted_below_it_is_bounded_too() -> None:
    """The same weights a thousand times larger: at 1e-8 rounding of the products is counted, and is bounded too."""
    g = np.random.default_rng(5)
    weights = [g.integers(-3, 4, (o, r)) @ g.integers(-3, 4, (r, i)) for o, r, i in ((8, 3, 6), (7, 5, 8), (6, 2, 7))]
    network, x = network_of([no_bias(*(1e3 * w for w in weights))], "identity"), rows_of(7, 6)
    assert measured(network, x, (1e-8,))["local_rank"].maximum[0, 2, 0] > 2
    assert_laws(weights_measured(network, x), measured(network, x), 7)
    # At 1 nothing of it is.
    assert weights_measured(network, x, (1.0,))["rank_bound_weights"].value[0].tolist() == [3, 3, 2]


def test_equality_does_not_count() -> None:
    found = weights_measured(
        network_of([no_bias(0.5 * np.eye(4)[[2, 0, 3, 1]])]), rows_of(2, 4), (0.5, math.nextafter(0.5, 0))
    )
    assert found["weight_rank"].value[0, 0].tolist() == [0, 4]


def test_a_rank_at_eps_to_zero_has_no_threshold_of_its_own() -> None:
    """Singular values 1 and 1e-7 are both there, below every eps asked for; 1e-20 is rounding."""
    found = weights_measured(network_of([no_bias(np.diag([1.0, 1e-7]))]), rows_of(2, 2), (0.01,))
    assert found["weight_rank"].value[0, 0].tolist() == [1]
    assert found["rank_bound_weights"].value[0].tolist() == [2]
    found = weights_measured(network_of([no_bias(np.diag([1.0, 1e-20]))]), rows_of(2, 2), (0.01,))
    assert found["rank_bound_weights"].value[0].tolist() == [1]


def graded(g: np.random.Generator, o: int, i: int) -> np.ndarray:
    """A matrix: Gaussian, deficient of any scale, integer of low rank, diagonal, or graded by 1e20."""
    least, kind = min(o, i), g.integers(5)
    if kind == 0:
        return g.normal(size=(o, i))
    if kind == 1:
        rank = g.integers(0, least + 1)
        return g.normal(size=(o, rank)) @ g.normal(size=(rank, i)) * 10.0 ** g.uniform(-3, 3)
    if kind == 2:
        rank = g.integers(1, least + 1)
        return (g.integers(-3, 4, (o, rank)) @ g.integers(-3, 4, (rank, i))).astype(float)
    sizes = 10.0 ** g.uniform(-10, 10, least)
    left, right = (np.linalg.qr(g.normal(size=(n, n)))[0][:, :least] for n in (o, i))
    return np.eye(o, least)[g.permutation(o)] * sizes @ np.eye(least, i) if kind == 3 else left * sizes @ right.T


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_no_count_exceeds_a_bound_whatever_the_sizes(seed: int) -> None:
    """Chain and module, at pre and post, against SVDs of full Jacobians: every row, every threshold."""
    g = np.random.default_rng(seed)
    widths = g.integers(1, 13, g.integers(2, 6))
    chain = no_bias(*(graded(g, o, i) for i, o in itertools.pairwise(widths)))
    name = ("relu", "tanh", "identity", "gelu")[seed % 4]
    activation = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "identity": nn.Identity(), "gelu": nn.GELU()}[name]
    x = g.normal(size=(5, widths[0]))
    eps = tuple(sorted(g.choice([1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 1e5], 2, replace=False)))
    for network in (network_of([chain], name), module_of(sequential(chain, activation), x)):
        weights = weights_measured(network, x, eps)
        for at in ("pre", "post"):
            ranks = LocalRank(eps, (0.001, 0.1), at, spectrum_rows=None)(network, probe_of(x), STREAMS)
            least = weights["rank_bound_weights"].value[0, :, None]
            with np.errstate(invalid="ignore"):
                assert not (ranks["local_rank"].maximum[0] > least).any()
                assert not (ranks["local_rank_rel"].maximum[0] > least).any()
                for layer in range(len(widths) - 1):
                    counts = rank_counts(chain, (name, "identity"), x, layer, at, eps)
                    assert not (counts.max(0) > least[layer]).any()
                    bound = ranks["rank_bound_jacobian"].value[0, layer]
                    assert at == "post" or not (counts.mean(0) > bound + 1e-9).any()


def test_weights_of_many_scales_are_counted_and_bounded() -> None:
    """Singular values 1e10, 1e-8 and 1 at 1e-9: all are counted, and no bound is lower; at 1 two are."""
    chain = no_bias(np.diag([1e10, 1e-8, 1.0]), np.eye(3))
    network, x = network_of([chain], "identity"), rows_of(4, 3)
    assert measured(network, x, (1e-9,))["local_rank"].minimum[0, :, 0].tolist() == [3, 3]
    assert weights_measured(network, x, (1e-9,))["rank_bound_weights"].value[0].tolist() == [3, 3]


def test_squares_beyond_the_range_are_right_or_not_measured() -> None:
    """Norms and thresholds whose squares under- or overflow: correct, or not measured."""
    chain, x = no_bias(1e-170 * np.eye(3)), rows_of(2, 3)
    found = weights_measured(network_of([chain]), x, (1e-200, 1e-171))
    assert found["weight_rank"].value[0, 0].tolist() == [3, 3]
    np.testing.assert_allclose(found["rank_bound_frobenius"].value[0, 0], [3e60, 300], rtol=1e-12)
    found = weights_measured(network_of([no_bias(1e200 * np.eye(3))]), x, (0.001,))
    assert found["rank_bound_frobenius"].status[0, 0, 0] == Status.NOT_MEASURED
    assert np.isnan(found["rank_bound_frobenius"].value[0, 0, 0])


# Statuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum_rows", [None, 1])
def test_a_zero_weight_is_dead(spectrum_rows: int | None) -> None:
    chains = [random_chain((5, 4, 3, 2), seed) for seed in (1, 2)]
    chains[0][0][1].zero_()
    x, network = rows_of(8, 5), network_of(chains)
    weights, ranks = weights_measured(network, x), measured(network, x, spectrum_rows=spectrum_rows)
    for key in KEYS:
        found = weights[key]
        assert (found.value[0, 1] == 0).all(), key
        assert (found.status[0, 1] == Status.DEAD).all(), key
        assert (found.status[0, 0] == Status.OK).all(), key
        assert (found.status[1] == Status.OK).all(), key
    assert weights["rank_bound_weights"].value[0].tolist() == [4, 0, 0]
    assert (weights["weight_rank"].status[0, 2] == Status.OK).all()
    for key in ("local_rank", "rank_bound_jacobian"):
        assert (ranks[key].value[0, 1:] == 0).all(), key
        assert (ranks[key].status[0, 1:] == Status.DEAD).all(), key
        assert (ranks[key].status[1] == Status.OK).all(), key
    assert (ranks["local_rank_count"].value[0, 1:, :, 0] == 8).all()
    assert (ranks["local_rank_count"].value[0, 1:, :, 1:] == 0).all()
    assert_laws(weights, ranks, 8, spectrum_rows)


def test_rows_without_a_slope_are_bounded_by_zero() -> None:
    """At some rows every ReLU is off: the Jacobian of layer 2's input has norm 0 there, and 1 elsewhere."""
    x = np.array([[1.0, 2.0], [-1.0, -2.0], [-3.0, -1.0]])
    found = measured(network_of([no_bias(np.eye(2), np.eye(2))], "relu"), x, (0.5,))
    assert found["rank_bound_jacobian"].value[0, 1, 0] == pytest.approx(2 / 3, rel=1e-15)
    assert found["local_rank_count"].value[0, 1, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("spoilt", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spectrum_rows", [None, 2])
def test_weights_that_are_not_finite_have_no_numbers_from_there_on(
    spoilt: int, value: float, spectrum_rows: int | None
) -> None:
    """The layer's numbers and later bounds are not finite; earlier layers and the other checkpoint are unaffected."""
    chains, x = [random_chain((5, 4, 3, 2), seed) for seed in (1, 2)], rows_of(8, 5)
    clean = weights_measured(network_of(chains), x), measured(network_of(chains), x, spectrum_rows=spectrum_rows)
    chains[0][0][spoilt][0, 0] = value
    spoiled = weights_measured(network_of(chains), x), measured(network_of(chains), x, spectrum_rows=spectrum_rows)
    own, later = {*KEYS} - {"rank_bound_weights"}, ("rank_bound_weights", "local_rank", "rank_bound_jacobian")
    for before, after in zip(clean, spoiled, strict=True):
        for key in before.keys() & {*own, *later}:
            reached = [k == spoilt if key in own else k >= spoilt for k in range(3)]
            assert (after[key].status[0, reached] == Status.NONFINITE).all(), key
            assert np.isnan(after[key].value[0, reached]).all(), key
            for field in ("value", "status"):
                a, b = getattr(before[key], field), getattr(after[key], field)
                np.testing.assert_allclose(b[1], a[1], rtol=1e-12, err_msg=key)
                np.testing.assert_allclose(
                    b[0, np.logical_not(reached)], a[0, np.logical_not(reached)], rtol=1e-12, err_msg=key
                )
    counts = spoiled[1]["local_rank_count"].value
    assert (counts[0, spoilt:] == -1).all()
    np.testing.assert_array_equal(counts[0, :spoilt], clean[1]["local_rank_count"].value[0, :spoilt])
    np.testing.assert_array_equal(counts[1], clean[1]["local_rank_count"].value[1])


def test_a_bias_that_is_not_finite_does_not_affect_weights() -> None:
    chain, x = random_chain((5, 4, 3), 1), rows_of(4, 5)
    clean = weights_measured(network_of([chain]), x)
    chain[1][0][0] = math.nan
    for key, found in weights_measured(network_of([chain]), x).items():
        np.testing.assert_array_equal(found.value, clean[key].value)
        assert found.status is None or (found.status == Status.OK).all()


# Modules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum_rows", [None, 3])
@pytest.mark.parametrize(("name", "activation"), [("tanh", nn.Tanh()), ("relu", nn.ReLU()), ("gelu", nn.GELU())])
def test_chain_and_module_agree(name: str, activation: nn.Module, spectrum_rows: int | None) -> None:
    chain, x = random_chain((6, 7, 3, 5), 2, scale=1.5), rows_of(10, 6)
    plain, module = network_of([chain], name), module_of(sequential(chain, activation), x)
    calls: list[tuple[Any, dict[str, Any]]] = [(weights_measured, {}), (measured, {"spectrum_rows": spectrum_rows})]
    for call, options in calls:
        expected, found = call(plain, x, **options), call(module, x, **options)
        parts = [part.name for part in dataclasses.fields(Estimate)]
        for key, part in itertools.product(expected, parts):
            a, b = (getattr(one[key], part) for one in (expected, found))
            assert (a is None) == (b is None), (key, part)
            if a is not None:
                np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12, err_msg=f"{key} {part}")


def test_a_token_wise_linear_counts_once_a_token() -> None:
    """Of T tokens the map is diag(W, ..., W): T times the singular values of W."""
    torch.manual_seed(1)
    a, b, c = (nn.Linear(*sizes).double() for sizes in ((4, 3), (3, 2), (10, 4)))
    c.weight.data *= 3
    model = Net(lambda s, x: s.c(torch.tanh(s.b(torch.tanh(s.a(x)))).flatten(1)), a=a, b=b, c=c)

    def values(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = a(rows)
        q = b(torch.tanh(p))
        r = c(torch.tanh(q).flatten(1))
        return [(p, torch.tanh(p)), (q, torch.tanh(q)), (r, r)]

    x = rows_of(6, 5, 4)
    network = module_of(model, x)
    weights, ranks = weights_measured(network, x), measured(network, x)
    assert_laws(weights, ranks, 6)
    assert weights["rank_bound_weights"].value[0].tolist() == [15, 10, 4]
    shapes = ((5, 4), (5, 3), (10,))
    jacobians = [module_spectra(values, x, at) for at in ("pre", "post")]
    for layer, (module, shape) in enumerate(zip((a, b, c), shapes, strict=True)):
        assert weights["weight_rank"].value[0, layer].tolist() == above(spectrum(module.weight), EPS)
        sigma = spectrum(whole_matrix(module, shape))
        norms = jacobians[1][layer - 1][:, 0] if layer else np.ones(6)
        bounds = np.array([above(sigma, np.array(EPS) / norm) for norm in norms])
        counts = np.array([above(s, EPS) for s in jacobians[0][layer]])
        assert (counts <= bounds).all()
        np.testing.assert_allclose(ranks["rank_bound_jacobian"].value[0, layer], bounds.mean(0), rtol=1e-14)
        np.testing.assert_allclose(ranks["local_rank"].value[0, layer], counts.mean(0), rtol=1e-14)
    assert np.linalg.matrix_rank(whole_matrix(a, (5, 4)).numpy()) == 15


def test_tokens_of_a_deficient_linear_have_its_rank_each() -> None:
    a, b = nn.Linear(4, 3, bias=False).double(), nn.Linear(15, 6).double()
    a.weight.data = torch.tensor([[1.0, 2, 0, 1], [2, 4, 0, 2], [0, 0, 1, 1]], dtype=torch.float64)  # rank 2
    network = module_of(Net(lambda s, x: s.b(s.a(x).flatten(1)), a=a, b=b), x := rows_of(3, 5, 4))
    found = weights_measured(network, x)
    assert found["weight_rank"].value[0, 0, 0] == 2
    assert found["rank_bound_weights"].value[0].tolist() == [10, 6]
    assert measured(network, x)["local_rank"].maximum[0, :, 0].tolist() == [10, 6]


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({"kernel_size": 2}, 5),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 5),
        ({"kernel_size": 2, "dilation": 2}, 6),
        ({"kernel_size": 1}, 4),
    ],
)
def test_a_convolution_has_at_most_positions_times_the_rank_of_its_kernel(options: Any, inputs: int) -> None:
    """Kernel matrix (out, in * k); never more than the width. The exact map's rank, and every row's, lie below."""
    torch.manual_seed(2)
    conv = nn.Conv2d(2, 5, **options).double()
    conv.weight.data[3] = conv.weight.data[0] - 2 * conv.weight.data[1]
    shape = (2, inputs, inputs)
    width = conv(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    head = nn.Linear(width, 7).double()
    x = rows_of(4, *shape)
    network = module_of(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), head), x)
    weights, ranks = weights_measured(network, x), measured(network, x)
    assert_laws(weights, ranks, 4)
    kernel = conv.weight.flatten(1).numpy()
    assert weights["weight_rank"].value[0, 0].tolist() == above(spectrum(kernel), EPS)
    assert weights["weight_stable_rank"].value[0, 0] == pytest.approx((kernel**2).sum() / spectrum(kernel)[0] ** 2)
    bound = min(width, width // 5 * np.linalg.matrix_rank(kernel))
    assert weights["rank_bound_weights"].value[0].tolist() == [bound, min(bound, 7)]
    assert np.linalg.matrix_rank(whole_matrix(conv, shape).numpy()) <= bound
    # The singular values of overlapping patches are not those of the kernel: no bound through them.
    assert (ranks["rank_bound_jacobian"].status[0, 0] == Status.NOT_MEASURED).all()
    assert np.isnan(ranks["rank_bound_jacobian"].value[0, 0]).all()


def test_ranks_of_a_plain_convolutional_net_are_within_bounds() -> None:
    """Pooling between two convolutions and a head: every row's rank below the bound, the head's bound exact."""
    torch.manual_seed(3)
    a, b, c = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Conv2d(3, 2, 2).double(), nn.Linear(8, 4).double()
    c.weight.data *= 4
    model = nn.Sequential(a, nn.ReLU(), nn.MaxPool2d(2), b, nn.Tanh(), nn.Flatten(), c)

    def values(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = a(rows)
        h = functional.max_pool2d(torch.relu(p), 2)
        q = b(h)
        return [(p, h), (q, torch.tanh(q)), (r := c(torch.tanh(q).flatten(1)), r)]

    x = rows_of(5, 1, 6, 6)
    network = module_of(model, x)
    weights, ranks = weights_measured(network, x), measured(network, x)
    assert_laws(weights, ranks, 5)
    assert weights["rank_bound_weights"].value[0].tolist() == [108, 8, 4]  # 36 x 3; 4 x 2; 4
    counts, norms = module_spectra(values, x, "pre"), module_spectra(values, x, "post")[1][:, 0]
    for layer in range(3):
        expected = np.array([above(s, EPS) for s in counts[layer]])
        np.testing.assert_allclose(ranks["local_rank"].value[0, layer], expected.mean(0), rtol=1e-14)
    bounds = np.array([above(spectrum(c.weight), np.array(EPS) / norm) for norm in norms])
    np.testing.assert_allclose(ranks["rank_bound_jacobian"].value[0, 2], bounds.mean(0), rtol=1e-14)


@pytest.mark.parametrize(
    "layer",
    [nn.ConvTranspose2d(2, 1, 1), nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Conv2d(2, 4, 2, groups=2)],
)
def test_other_convolutions_are_not_bounded_too_low(layer: Any) -> None:
    """Their maps are no products of this matrix with parts of the input, and exceed what its rank of 1 would allow."""
    torch.manual_seed(4)
    layer = layer.double()
    layer.weight.data[:] = layer.weight.data[:1].clone()
    x = rows_of(3, 2, 3, 3)
    width = layer(torch.from_numpy(x)).flatten(1).shape[1]
    network = module_of(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 20)), x)
    weights, ranks = weights_measured(network, x), measured(network, x)
    assert_laws(weights, ranks, 3)
    assert weights["weight_rank"].value[0, 0, 1] == 1
    assert (weights["weight_rank"].status == Status.OK).all()


def test_a_layer_called_twice_has_its_weight_twice() -> None:
    torch.manual_seed(5)
    a, b = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    a.weight.data[2] = a.weight.data[0] + a.weight.data[1]
    model = Net(lambda s, x: s.b(torch.tanh(s.a(torch.tanh(s.a(x))))), a=a, b=b)
    x = rows_of(5, 4)
    network = module_of(model, x)
    weights = weights_measured(network, x)
    assert_laws(weights, measured(network, x), 5)
    assert weights["weight_rank"].value[0, 0].tolist() == weights["weight_rank"].value[0, 1].tolist()
    assert weights["rank_bound_weights"].value[0].tolist() == [3, 3, 3]


def test_residual_nets_have_no_bounds() -> None:
    """Ranks of two paths add up: here the sum of two maps of rank 1 has rank 2."""
    a, b, c = (nn.Linear(3, 3, bias=False).double() for _ in range(3))
    for layer, diagonal in ((a, (1.0, 0, 0)), (b, (1.0, 1, 1)), (c, (1.0, 1, 1))):
        layer.weight.data = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    model = Net(lambda s, x: s.c(s.b(s.a(x)) + x), a=a, b=b, c=c)
    x = rows_of(4, 3)
    network = module_of(model, x)
    weights, ranks = weights_measured(network, x), measured(network, x)
    assert_laws(weights, ranks, 4)
    assert weights["weight_rank"].value[0, :, 0].tolist() == [1, 3, 3]
    assert ranks["local_rank"].value[0, :, 0].tolist() == [1, 1, 3]
    for key in ("weight_rank", "weight_stable_rank", "rank_bound_frobenius", "rank_limit_statement"):
        assert (weights[key].status == Status.OK).all(), key
    for found in (weights["rank_bound_weights"], ranks["rank_bound_jacobian"]):
        assert (found.status == Status.NOT_MEASURED).all()
        assert np.isnan(found.value).all()


def test_float32_passes_leave_weights_as_stored() -> None:
    """Of rank one as stored, of more where their rounding to float32 is; beyond float32's range; too small for it."""
    u = torch.tensor([1 / 3, 0.7, 0.1, 0.9], dtype=torch.float64)
    for weight in (torch.outer(u, u + 0.1), torch.diag(torch.tensor([1e60, 1.0, 1e-3, 1e-60], dtype=torch.float64))):
        chain, eps = no_bias(weight, torch.eye(4)), (1e-9, 1e-70)
        single = weights_measured(network_of([chain], "identity", dtype=torch.float32), rows_of(5, 4), eps)
        double = weights_measured(network_of([chain], "identity"), rows_of(5, 4), eps)
        for key in KEYS:
            np.testing.assert_array_equal(single[key].value, double[key].value)
            np.testing.assert_array_equal(single[key].status, double[key].status)


def test_modules_asked_for_by_name_have_no_weight() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double().eval().requires_grad_(False)
    x = rows_of(4, 4)
    network = traced_network(model, x, ("1",), device=oracles.DEVICE, dtype=torch.float64)
    names = [layer.name for layer in network.layers]
    found, here = weights_measured(network, x), names.index("1")
    for key in KEYS:
        assert (found[key].status[0, here] == Status.NOT_MEASURED).all(), key
        assert (np.delete(found[key].status, here, 1) == Status.OK).all(), key


def test_weight_rank_needs_no_probe_rows_and_is_at_pre() -> None:
    """Numbers of no probe row, held against all of them; always at pre; thresholds are the coordinates."""
    measure = WeightRank((0.5, 0.1))
    assert (measure.at, measure.samples, measure.name) == ("pre", None, "weight_rank")
    assert measure.coordinates == {"eps": (0.5, 0.1)}
    assert {q.key for q in measure.quantities} == {*KEYS, "weight_holds"}
    assert {q.key: q.rows(measure, 9) for q in measure.quantities} == dict.fromkeys(KEYS, 0) | {"weight_holds": 9}
    assert {q.key: q.counted for q in LocalRank.quantities}["local_rank_count"]
