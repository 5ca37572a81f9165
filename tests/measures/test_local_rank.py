"""Local rank: known answers and laws of methods.md section 1, counts against an SVD of the full Jacobian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import Parameters, full_jacobian, network_of, probe_of, random_chain

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank

STREAMS = RandomStreams(0)
EPS = (0.001, 0.03, 0.1, 0.3, 1.0)


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def no_bias(*weights: np.ndarray) -> Parameters:
    return [torch.as_tensor(w, dtype=torch.float64) for w in weights], [None] * len(weights)


def measured(
    chains: Sequence[Parameters],
    x: np.ndarray,
    activation: str = "tanh",
    output: str = "identity",
    **settings: Any,
) -> Mapping[str, Estimate]:
    return LocalRank(**settings)(network_of(chains, activation, output), probe_of(x), STREAMS)


def svd_counts(
    chain: Parameters,
    names: tuple[str, str],
    x: np.ndarray,
    layer: int,
    at: At,
    eps: tuple[float, ...],
    relative: bool = False,
) -> Any:
    """Counts (N, E) from the full Jacobian."""
    sigma = torch.linalg.svdvals(full_jacobian(*chain, names, torch.from_numpy(x), layer, at))
    limit = torch.tensor(eps, dtype=torch.float64) * (sigma[:, :1] if relative else torch.ones_like(sigma[:, :1]))
    return (sigma[:, :, None] > limit[:, None, :]).sum(1).double().numpy(), sigma.numpy()


# Known answers -----------------------------------------------------------------------------------------------------


def test_linear_net_has_the_rank_of_the_product() -> None:
    """A rank-2 weight in the middle, a rank-5 one before it: 5, 2, 2 at every x."""
    g = np.random.default_rng(1)
    weights = [
        g.normal(size=(8, 5)) @ g.normal(size=(5, 9)),
        g.normal(size=(7, 2)) @ g.normal(size=(2, 8)),
        g.normal(size=(6, 7)),
    ]
    result = measured([no_bias(*weights)], rows_of(13, 9), "identity", eps=(1e-8,))["local_rank"]
    products = [weights[0], weights[1] @ weights[0], weights[2] @ weights[1] @ weights[0]]
    assert [np.linalg.matrix_rank(p) for p in products] == [5, 2, 2]
    for found in (result.value, result.minimum, result.maximum):
        assert found[0, :, 0].tolist() == [5, 2, 2]
    assert result.stderr[0, :, 0].tolist() == [0, 0, 0]
    assert (result.status == Status.OK).all()


def test_relu_halves_the_rank() -> None:
    """W_1 = W_2 = I, ReLU, x ~ N(0, I_d): mean d/2, sd sqrt(d)/2 a row (methods.md 1). n = 2000, 4 se of each.

    The standard deviation of a sample deviation is sd / sqrt(2 n).
    """
    d, n = 12, 2000
    x = rows_of(n, d, 3)
    result = measured([no_bias(np.eye(d), np.eye(d))], x, "relu", eps=(0.5,), samples=None)["local_rank"]
    assert result.value[0, 1, 0] == (x > 0).sum(1).mean()
    assert abs(result.value[0, 1, 0] - d / 2) <= 4 * result.stderr[0, 1, 0]
    deviation = result.stderr[0, 1, 0] * math.sqrt(n)
    assert deviation == pytest.approx(math.sqrt(d) / 2, abs=4 * math.sqrt(d) / 2 / math.sqrt(2 * n))
    assert (result.value[0, 0, 0], result.stderr[0, 0, 0]) == (d, 0)
    assert (result.minimum[0, 1, 0], result.maximum[0, 1, 0]) == ((x > 0).sum(1).min(), (x > 0).sum(1).max())


def test_saturated_tanh_units_do_not_count() -> None:
    """W = I, post: LR^eps / d = P(|x| < arccosh(eps^-1/2)) = 0.99724, 0.93100, 0.62188 (methods.md 1)."""
    d = 10
    eps, known = (0.01, 0.1, 0.5), (0.99724, 0.93100, 0.62188)
    x = rows_of(4000, d, 4)
    result = measured([no_bias(np.eye(d), np.eye(d))], x, eps=eps, at="post", samples=None)["local_rank"]
    for k in range(3):
        p = math.erf(math.acosh(eps[k] ** -0.5) / math.sqrt(2))
        assert p == pytest.approx(known[k], abs=5e-6)
        assert result.value[0, 0, k] == pytest.approx((np.abs(x) < math.acosh(eps[k] ** -0.5)).sum(1).mean(), rel=1e-12)
        assert abs(result.value[0, 0, k] / d - p) <= 4 * result.stderr[0, 0, k] / d


# Against the full Jacobian -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sigmoid"])
@pytest.mark.parametrize("widths", [(12, 7, 5, 4), (3, 9, 6, 4)])
def test_counts_equal_an_svd_of_the_full_jacobian(at: At, activation: str, widths: tuple[int, int, int, int]) -> None:
    chains = [random_chain(widths, seed, scale=1.5) for seed in (1, 2)]
    x = rows_of(17, widths[0], 2)
    relative = (0.01, 0.2, 0.6)
    result = measured(chains, x, activation, "softmax", eps=EPS, rel_eps=relative, at=at, spectrum_rows=None)
    assert result["local_rank"].value.shape == (2, 3, len(EPS))
    assert result["local_rank_rel"].value.shape == (2, 3, 3)
    for c, chain in enumerate(chains):
        for layer in range(3):
            counts, sigma = svd_counts(chain, (activation, "softmax"), x, layer, at, EPS)
            found = result["local_rank"]
            np.testing.assert_allclose(found.value[c, layer], counts.mean(0), rtol=1e-14)
            assert found.minimum[c, layer].tolist() == counts.min(0).tolist()
            assert found.maximum[c, layer].tolist() == counts.max(0).tolist()
            np.testing.assert_allclose(
                found.stderr[c, layer], counts.std(0, ddof=1) / math.sqrt(17), rtol=1e-10, atol=1e-14
            )
            counts, _ = svd_counts(chain, (activation, "softmax"), x, layer, at, relative, relative=True)
            found = result["local_rank_rel"]
            np.testing.assert_allclose(found.value[c, layer], counts.mean(0), rtol=1e-14)
            np.testing.assert_allclose(
                found.stderr[c, layer], counts.std(0, ddof=1) / math.sqrt(17), rtol=1e-10, atol=1e-14
            )
            mean = sigma.mean(0)
            got = result["singular_value"].value[c, layer]
            k = min(len(mean), int(np.isfinite(got).sum()))
            # Values below 1e-12 of the largest are rounding in either computation.
            np.testing.assert_allclose(got[:k], mean[:k], rtol=1e-10, atol=1e-12 * mean[0])
            p = sigma / np.maximum(sigma.sum(1, keepdims=True), 1e-300)  # a row of dead units has none: rank 0
            effective = (sigma[:, 0] > 0) * np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)), 1))
            # Rounding-size singular values enter with p ln p of 1e-14: hence 1e-9.
            assert result["effective_rank"].value[c, layer] == pytest.approx(effective.mean(), rel=1e-9)
            stable = ((sigma**2).sum(1) / np.maximum(sigma[:, 0] ** 2, 1e-300)).mean()
            assert result["stable_rank"].value[c, layer] == pytest.approx(stable, rel=1e-10)


def test_spectrum_beyond_a_layers_own_number_says_why() -> None:
    chains = [random_chain((6, 5, 2, 4), 1)]
    found = measured(chains, rows_of(9, 6))["singular_value"]
    assert found.value.shape == found.status.shape == (1, 3, found.value.shape[2])
    assert np.isfinite(found.value[0, 0, :5]).all()
    assert np.isfinite(found.value[0, 1, :2]).all()
    assert np.isnan(found.value[0, 1, 2:]).all()  # a width of 2 has two singular values
    missing = np.isnan(found.value)
    assert (found.status[missing] == Status.NOT_MEASURED).all()
    assert (found.status[~missing] == Status.OK).all()


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_spectra_use_fewer_rows_than_counts(rows: int) -> None:
    chain, x = random_chain((5, 6, 4), 3), rows_of(20, 5)
    result = measured([chain], x, spectrum_rows=rows, eps=(0.5,))
    counts, sigma = svd_counts(chain, ("tanh", "identity"), x, 1, "pre", (0.5,))
    assert result["local_rank"].value[0, 1, 0] == counts.mean()
    found = result["singular_value"]
    np.testing.assert_allclose(found.value[0, 1, :4], sigma[:rows].mean(0), rtol=1e-10)  # a probe comes permuted
    spectral = next(q for q in LocalRank.quantities if q.key == "singular_value")
    assert spectral.rows(LocalRank(spectrum_rows=rows), 20) == min(rows, 20)


# Laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_local_rank_obeys_its_laws(seed: int) -> None:
    """rank J_l <= min rank W_i; #{sigma(W_l) > eps ...}: the bound through the slope; Frobenius; monotone in eps."""
    g = np.random.default_rng(seed)
    weights = [
        g.normal(size=(6, 3)) @ g.normal(size=(3, 8)),
        g.normal(size=(5, 6)),
        g.normal(size=(7, 4)) @ g.normal(size=(4, 5)),
    ]
    chain, x = no_bias(*weights), rows_of(30, 8, seed)
    eps = (1e-9, 1e-3, 0.1, 0.5, 2.0, 8.0)
    found = measured([chain], x, eps=eps, rel_eps=(1e-9, 0.1, 0.5, 0.9))
    rank = found["local_rank"]
    ranks = [np.linalg.matrix_rank(w) for w in weights]
    for layer in range(3):
        assert rank.maximum[0, layer, 0] <= min(ranks[: layer + 1])
        assert (np.diff(rank.value[0, layer]) <= 0).all()
        assert (np.diff(found["local_rank_rel"].value[0, layer]) <= 0).all()
        jacobian = full_jacobian(*chain, ("tanh", "identity"), torch.from_numpy(x), layer, "pre")
        frobenius = (jacobian**2).sum((1, 2)).max().item()
        assert (rank.maximum[0, layer] <= frobenius / np.array(eps) ** 2 + 1e-9).all()
        if layer:
            before = full_jacobian(*chain, ("tanh", "identity"), torch.from_numpy(x), layer - 1, "post")
            norm = torch.linalg.matrix_norm(before, 2).max().item()
            sigma = np.linalg.svd(weights[layer], compute_uv=False)
            assert all(rank.maximum[0, layer, k] <= (sigma > e / norm).sum() for k, e in enumerate(eps))
    assert (np.diff(rank.value[0, :, 0]) <= 0).all()  # eps -> 0: non-increasing in depth for a plain chain


def test_relu_rescaling_keeps_relative_and_changes_absolute() -> None:
    """(W_1, b_1) by a and W_2 by 1/a is the same function; layer 1's absolute count is not the same."""
    weights, biases = random_chain((6, 7, 5), 5)
    a, x = 20.0, rows_of(25, 6)
    scaled = [weights[0] * a, weights[1] / a], [biases[0] * a, biases[1]]
    eps = (0.3, 1.0)
    first, second = (measured([c], x, "relu", eps=eps, rel_eps=(0.1, 0.5)) for c in ((weights, biases), scaled))
    np.testing.assert_array_equal(first["local_rank_rel"].value, second["local_rank_rel"].value)
    np.testing.assert_array_equal(first["local_rank"].value[0, 1], second["local_rank"].value[0, 1])
    assert (first["local_rank"].value[0, 0] < second["local_rank"].value[0, 0]).any()


def test_equality_does_not_count() -> None:
    """Singular values exactly 0.5 (a signed permutation over 2) at eps 0.5: none; just below: all."""
    chain = no_bias(0.5 * np.eye(4)[[2, 0, 3, 1]])
    found = measured([chain], rows_of(3, 4), "identity", eps=(0.5, math.nextafter(0.5, 0)))["local_rank"]
    assert found.value[0, 0].tolist() == [0, 4]


# Statuses ----------------------------------------------------------------------------------------------------------


def test_dead_layers_have_rank_zero() -> None:
    weights, biases = random_chain((5, 4, 3, 2), 6)
    weights[1] = torch.zeros_like(weights[1])
    result = measured([(weights, biases)], rows_of(8, 5))
    for key in ("local_rank", "local_rank_rel"):
        found = result[key]
        assert (found.value[0, 1:] == 0).all()
        assert (found.status[0, 0] == Status.OK).all()
        assert (found.status[0, 1:] == Status.DEAD).all()
        assert (found.value[0, 0] > 0).all()
    for key in ("effective_rank", "stable_rank"):
        assert result[key].value[0, 1:].tolist() == [0, 0]
        assert (result[key].status[0, 1:] == Status.DEAD).all()


def test_nan_weights_are_nonfinite_only_where_they_reach() -> None:
    chains = [random_chain((5, 4, 3, 2), seed) for seed in (1, 2)]
    clean = measured(chains, rows_of(8, 5))
    chains[0][0][1][0, 0] = float("nan")
    result = measured(chains, rows_of(8, 5))
    for key, found in result.items():
        if found.status is None:
            continue
        assert (found.status[0, 1:].reshape(2, -1)[:, 0] == Status.NONFINITE).all()
        assert np.isnan(found.value[0, 1:]).all()
        np.testing.assert_allclose(found.value[0, 0], clean[key].value[0, 0], rtol=1e-12)
        np.testing.assert_allclose(found.value[1], clean[key].value[1], rtol=1e-12)
        np.testing.assert_array_equal(found.status[1], clean[key].status[1])
        assert (found.status[np.isnan(found.value)] != Status.OK).all()


def test_infinite_weights_are_nonfinite() -> None:
    chain = random_chain((5, 4, 3), 1)
    chain[0][0][0, 0] = float("inf")
    result = measured([chain], rows_of(8, 5))["local_rank"]
    assert (result.status[0, 0] == Status.NONFINITE).all()
    assert np.isnan(result.value[0, 0]).all()


def test_one_probe_row_has_a_count_and_no_spread() -> None:
    """One row has a count; its standard error is NaN or zero, never a finite positive number."""
    chain, x = random_chain((5, 6, 4), 3), rows_of(1, 5)
    found = measured([chain], x, eps=EPS)["local_rank"]
    counts, _ = svd_counts(chain, ("tanh", "identity"), x, 1, "pre", EPS)
    for got in (found.value, found.minimum, found.maximum):
        assert got[0, 1].tolist() == counts[0].tolist()
    assert not (found.stderr > 0).any()
    assert (found.status != Status.NONFINITE).all()


def test_stacked_checkpoints_do_not_influence_one_another() -> None:
    chains = [random_chain((6, 5, 4), seed) for seed in range(3)]
    x = rows_of(10, 6)
    together = measured(chains, x)
    for c, chain in enumerate(chains):
        for key, found in measured([chain], x).items():
            np.testing.assert_allclose(together[key].value[c], found.value[0], rtol=1e-12)
            if found.status is not None:
                np.testing.assert_array_equal(together[key].status[c], found.status[0])


def test_order_of_rows_does_not_matter() -> None:
    chain, x = random_chain((6, 5, 4), 1), rows_of(30, 6)
    order = np.random.default_rng(1).permutation(30)
    a, b = (measured([chain], rows, spectrum_rows=None) for rows in (x, x[order]))
    for key, found in a.items():
        np.testing.assert_allclose(b[key].value, found.value, rtol=1e-10, atol=1e-13)
