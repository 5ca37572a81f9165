"""Forward passes and Jacobian factors of stacked chains against torch.func and finite differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import ACTIVATION, forward, full_jacobian, network_of, random_chain
from torch.nn import functional

from ibscan.core.network import JacobianSpec
from ibscan.core.records import At
from ibscan.networks.budget import ChainBudget
from ibscan.networks.chain import Chain

HIDDEN = sorted(set(ACTIVATION) - {"softmax"})
SMOOTH = ["tanh", "sigmoid", "gelu", "silu", "softplus"]


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def walked(network: Chain, x: np.ndarray) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return {layer: (pre, post)} of all rows."""
    found: dict[Any, Any] = {}

    def visit(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
        assert pre.dtype == post.dtype == torch.float64
        assert pre.shape == post.shape == (network.size, len(range(len(x))[rows]), network.layers[layer].width)
        found.setdefault(layer, []).append((rows.start, pre.cpu().clone(), post.cpu().clone()))

    network.walk(x, visit)
    return {
        k: (torch.cat([p[1] for p in ordered], 1), torch.cat([p[2] for p in ordered], 1))
        for k, ordered in ((k, sorted(v, key=lambda p: p[0])) for k, v in found.items())
    }


def factors(network: Chain, x: np.ndarray, at: At) -> dict[int, torch.Tensor]:
    """Return {layer: factor} of all rows, where each row is visited once; one factor may stand for all rows."""
    found: dict[Any, Any] = {}

    def visit(layer: int, factor: torch.Tensor, _: object, rows: slice) -> None:
        n = len(range(len(x))[rows])
        assert factor.dtype == torch.float64
        assert factor.shape[0] == network.size
        assert factor.shape[2] == network.layers[layer].width
        assert factor.shape[1] == n or (factor.shape[1] == 1 and layer == 0)  # d p_1 / d x = W_1 at every x
        found.setdefault(layer, []).append((rows.start, factor.expand(-1, n, -1, -1).cpu().clone()))

    network.jacobians(x, visit, JacobianSpec(at))
    # Blocks of rows may need different numbers of columns; more zeros change nothing.
    most = {k: max(p[1].shape[-1] for p in v) for k, v in found.items()}
    wide = {k: [(s, functional.pad(f, (0, most[k] - f.shape[-1]))) for s, f in v] for k, v in found.items()}
    return {k: torch.cat([p[1] for p in sorted(v, key=lambda p: p[0])], 1) for k, v in wide.items()}


def assert_same_map(factor: torch.Tensor, jacobian: torch.Tensor) -> None:
    """J = A Q with orthonormal rows of Q holds exactly when A A^T = J J^T, up to 1e-10 of the largest entry."""
    gram, expected = factor @ factor.mT, jacobian @ jacobian.mT
    scale = expected.abs().amax((-2, -1), keepdim=True).clamp(min=1e-300)
    assert ((gram - expected).abs() / scale).max() < 1e-10
    sigma = torch.linalg.svdvals(jacobian)
    got = torch.linalg.svdvals(factor)
    k = min(got.shape[-1], sigma.shape[-1])
    assert ((got[..., :k] - sigma[..., :k]).abs() <= 1e-10 * sigma[..., :1] + 1e-300).all()
    assert (sigma[..., k:] <= 1e-12 * sigma[..., :1]).all()  # what the factor has no column for is zero
    assert (got[..., k:] <= 1e-12 * sigma[..., :1]).all()


@pytest.mark.parametrize("activation", HIDDEN)
def test_walk_visits_pre_and_post_as_defined(activation: str) -> None:
    weights, biases = random_chain((6, 9, 4, 3), 1)
    x = rows_of(11, 6)
    network = network_of([(weights, biases)], activation)
    found = walked(network, x)
    for layer, (pre, post) in enumerate(forward(weights, biases, activation, "identity", torch.from_numpy(x))):
        torch.testing.assert_close(found[layer][0][0], pre, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(found[layer][1][0], post, rtol=1e-10, atol=1e-13)
    assert [(layer.name, layer.width) for layer in network.layers] == [("fc1", 9), ("fc2", 4), ("fc3", 3)]
    assert network.size == 1


@pytest.mark.parametrize("output", sorted(ACTIVATION))
def test_an_output_activation_is_part_of_the_last_post_and_its_jacobian(output: str) -> None:
    weights, biases = random_chain((5, 4, 3), 2)
    x = rows_of(7, 5)
    network = network_of([(weights, biases)], "tanh", output)
    pre, post = forward(weights, biases, "tanh", output, torch.from_numpy(x))[-1]
    torch.testing.assert_close(walked(network, x)[1][1][0], post, rtol=1e-10, atol=1e-13)
    assert network.output == output
    for at in ("pre", "post"):
        jacobian = full_jacobian(weights, biases, ("tanh", output), torch.from_numpy(x), 1, at)
        assert_same_map(factors(network, x, at)[1][0], jacobian)
    assert pre.shape == (7, 3)


# Wide input, narrow input, a bottleneck, one unit; with and without biases.
@pytest.mark.slow
@pytest.mark.parametrize("widths", [(12, 7, 5, 3), (2, 8, 6, 4), (6, 2, 9, 3), (4, 1, 5)])
@pytest.mark.parametrize("activation", HIDDEN)
def test_factors_agree_with_autograd(widths: tuple[int, ...], activation: str) -> None:
    bias = activation != "relu"
    weights, biases = random_chain(widths, len(activation), bias=bias, scale=2.0)
    x = rows_of(5, widths[0], 3)
    network = network_of([(weights, biases)], activation)
    for at in ("pre", "post"):
        found = factors(network, x, at)
        assert sorted(found) == list(range(len(weights)))
        for layer, factor in found.items():
            assert factor.shape[-1] <= min(widths[:2])  # a small factor: no more than the first weight's rank
            jacobian = full_jacobian(weights, biases, (activation, "identity"), torch.from_numpy(x), layer, at)
            assert_same_map(factor[0], jacobian)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "softplus"])
def test_factors_agree_with_autograd_for_large_pre_activations(activation: str) -> None:
    """Pre-activations of +-100: beyond softplus' threshold of 20, deep in elu's flat side."""
    weights, biases = random_chain((3, 6, 5), 7, scale=60.0)
    x = rows_of(6, 3, 5)
    jacobian = full_jacobian(weights, biases, (activation, "identity"), torch.from_numpy(x), 1, "pre")
    assert_same_map(factors(network_of([(weights, biases)], activation), x, "pre")[1][0], jacobian)


@pytest.mark.parametrize("p", [5.0, 15.0, 30.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_jacobian_of_saturated_tanh_keeps_twelve_digits(p: float, sign: int) -> None:
    """d tanh(w x) / dx = w / cosh(w x)^2: relative 1e-12 at |w x| = 30, where 1 - tanh^2 is 0 in float64."""
    weights, biases = [torch.tensor([[2.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)], [None, None]
    network = network_of([(weights, biases)])
    x = np.array([[sign * p / 2]])
    expected = 2.0 / np.cosh(p) ** 2
    assert abs(factors(network, x, "post")[0].item()) == pytest.approx(expected, rel=1e-12)
    assert abs(factors(network, x, "pre")[1].item()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("activation", SMOOTH)
def test_singular_values_agree_with_central_differences(activation: str) -> None:
    """Step 1e-5: truncation h^2 and rounding 1e-16 / h both near 1e-10; hence 1e-8 of the largest value."""
    weights, biases = random_chain((4, 6, 5), 3)
    x, h = rows_of(3, 4, 1), 1e-5
    factor = factors(network_of([(weights, biases)], activation), x, "pre")[1][0]
    for row in range(3):
        columns = []
        for k in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[k] = h
            up, down = (
                forward(weights, biases, activation, "identity", torch.from_numpy(x[row]) + s * step)[1][0]
                for s in (1, -1)
            )
            columns.append((up - down) / (2 * h))
        sigma = torch.linalg.svdvals(torch.stack(columns, 1))
        got = torch.linalg.svdvals(factor[row])
        assert (got[:4] - sigma).abs().max() < 1e-8 * sigma[0]


@pytest.mark.parametrize("widths", [(9, 5, 4), (3, 5, 4)])
def test_three_stacked_checkpoints_equal_each_alone(widths: tuple[int, int, int]) -> None:
    chains = [random_chain(widths, seed) for seed in range(3)]
    x = rows_of(8, widths[0])
    stacked = network_of(chains, "tanh", "softmax")
    assert stacked.size == 3
    for c, one in enumerate(chains):
        single = network_of([one], "tanh", "softmax")
        for layer, (pre, post) in walked(single, x).items():
            torch.testing.assert_close(walked(stacked, x)[layer][0][c], pre[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(walked(stacked, x)[layer][1][c], post[0], rtol=1e-12, atol=1e-14)
        for at in ("pre", "post"):
            together, alone = factors(stacked, x, at), factors(single, x, at)
            for layer in alone:
                sigma = torch.linalg.svdvals(alone[layer][0])
                torch.testing.assert_close(torch.linalg.svdvals(together[layer][c]), sigma, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("budget", [1, 100, 300])
def test_the_size_of_row_blocks_changes_nothing(budget: int) -> None:
    chains = [random_chain((6, 8, 5, 3), seed) for seed in range(2)]
    x = rows_of(23, 6)
    network = network_of(chains, "relu", "softmax")
    whole_values, whole_factors = walked(network, x), {at: factors(network, x, at) for at in ("pre", "post")}
    network = dataclasses.replace(network, budget=ChainBudget(activations=budget, factors=budget))
    blocks = set()
    network.walk(x, lambda _layer, _pre, _post, rows: blocks.add(rows.start))
    assert len(blocks) > 1  # else this test would say nothing
    for layer, values in walked(network, x).items():
        for got, expected in zip(values, whole_values[layer], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    for at in ("pre", "post"):
        for layer, factor in factors(network, x, at).items():
            torch.testing.assert_close(
                torch.linalg.svdvals(factor), torch.linalg.svdvals(whole_factors[at][layer]), rtol=1e-10, atol=1e-13
            )


@pytest.mark.parametrize("widths", [(9, 5, 4, 3), (3, 5, 4, 3)])
def test_a_nan_stays_in_its_checkpoint(widths: tuple[int, int, int, int]) -> None:
    """A QR or SVD of a stack must not let one bad matrix spoil, or stop, the others."""
    chains = [random_chain(widths, seed) for seed in range(3)]
    clean = network_of(chains)
    broken = [([w.clone() for w in ws], bs) for ws, bs in chains]
    broken[1][0][0][0, 0] = float("nan")
    network = network_of(broken)
    x = rows_of(6, widths[0])
    for layer, (pre, post) in walked(network, x).items():
        assert torch.isnan(pre[1]).any()
        assert torch.equal(pre[[0, 2]], walked(clean, x)[layer][0][[0, 2]])
        assert torch.isfinite(post[[0, 2]]).all()
    for layer, factor in factors(network, x, "pre").items():
        assert not torch.isfinite(factor[1]).all()
        expected = torch.linalg.svdvals(factors(clean, x, "pre")[layer][[0, 2]])
        torch.testing.assert_close(torch.linalg.svdvals(factor[[0, 2]]), expected, rtol=1e-12, atol=1e-14)


def test_float32_forward_stays_within_1e_5() -> None:
    """24 bits, three layers of width 8: 1e-5 relative to the size of the layer. What is visited is float64."""
    weights, biases = random_chain((6, 8, 8, 4), 4)
    x = rows_of(20, 6)
    single, double = (network_of([(weights, biases)], "tanh", dtype=d) for d in (torch.float32, torch.float64))
    for layer, (pre, _) in walked(double, x).items():
        got = walked(single, x)[layer][0]
        assert (got - pre).abs().max() < 1e-5 * pre.abs().max()
        assert not torch.equal(got, pre)  # it did run in float32
        sigma, near = (torch.linalg.svdvals(factors(n, x, "pre")[layer]) for n in (double, single))
        assert (near - sigma).abs().max() < 1e-5 * sigma.max()


def test_float32_weights_are_not_rounded_again() -> None:
    """Checkpoints are float32 as a rule: measured in float64 they are the same numbers, not re-rounded."""
    weights, biases = random_chain((5, 4, 3), 5)
    weights, biases = [w.float() for w in weights], [b.float() for b in biases]
    network = network_of([(weights, biases)])
    x = rows_of(6, 5)
    expected = forward(
        [w.double() for w in weights], [b.double() for b in biases], "tanh", "identity", torch.from_numpy(x)
    )
    torch.testing.assert_close(walked(network, x)[1][0][0], expected[1][0], rtol=1e-12, atol=1e-14)


def test_layers_have_the_range_of_their_activation() -> None:
    """Hidden tanh states [-1, 1], softmax [0, 1], identity nothing: methods.md section 3."""
    chains = [random_chain((4, 3, 3), 1)]
    assert [layer.post_range for layer in network_of(chains, "tanh", "softmax").layers] == [(-1.0, 1.0), (0.0, 1.0)]
    assert [layer.post_range for layer in network_of(chains, "relu", "identity").layers] == [None, None]
    assert [layer.post_range for layer in network_of(chains, "sigmoid", "tanh").layers] == [(0.0, 1.0), (-1.0, 1.0)]


def test_rows_of_images_are_flattened() -> None:
    """Probes have shape (N, ...): a chain reads them flat."""
    weights, biases = random_chain((12, 4, 3), 6)
    x = rows_of(5, 12)
    network = network_of([(weights, biases)])
    flat, image = walked(network, x), walked(network, x.reshape(5, 1, 3, 4))
    assert torch.equal(flat[1][0], image[1][0])


def test_one_linear_layer_is_a_chain() -> None:
    weights, biases = random_chain((4, 3), 8)
    x = rows_of(5, 4)
    network = network_of([(weights, biases)], "relu", "softmax")
    jacobian = full_jacobian(weights, biases, ("relu", "softmax"), torch.from_numpy(x), 0, "post")
    assert_same_map(factors(network, x, "post")[0][0], jacobian)
    torch.testing.assert_close(
        torch.linalg.svdvals(factors(network, x, "pre")[0][0, 2]),
        torch.linalg.svdvals(weights[0]),
        rtol=1e-10,
        atol=1e-13,
    )
