"""Noisy passes of chains: the noisy network by its definition, and its derivative by autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from support.oracles import ACTIVATION, DEVICE, network_of, random_chain

from ibscan.networks import chain_passes
from ibscan.networks.chain import Chain
from ibscan.numerics.tiling import cuts

WIDTHS = (6, 5, 7, 4, 3)
NOISE = (0.3, 0.05, 0.7, 0.2)  # the output's is not added
HIDDEN = sorted(set(ACTIVATION) - {"softmax"})


def made(
    activation: str, output: str = "identity", dtype: torch.dtype = torch.float64, seed: int = 1
) -> tuple[Chain, Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Return a chain, and its noisy pass written out: the post of a layer at one row x and the normals z."""
    weights, biases = random_chain(WIDTHS, seed, bias=activation != "relu", scale=1.5)
    last = len(weights) - 1

    def passed(layer: int, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        for k in range(layer + 1):
            x = weights[k] @ x + (0.0 if biases[k] is None else biases[k])
            x = ACTIVATION[output if k == last else activation](x)
            if k < layer:
                x, z = x + NOISE[k] * z[: len(x)], z[len(x) :]
        return x

    return network_of([(weights, biases)], activation, output, dtype=dtype), passed


def drawn(layer: int, rows: int = 9, queries: int = 8, paths: int = 5) -> tuple[torch.Tensor, ...]:
    """Return rows, which of them are asked for, and normals of so many passes of each."""
    g = torch.Generator().manual_seed(layer)
    x = torch.randn(rows, WIDTHS[0], generator=g, dtype=torch.float64)
    inputs = torch.randint(rows, (queries,), generator=g)
    z = torch.randn(queries, paths, sum(WIDTHS[1 : layer + 1]), generator=g, dtype=torch.float64)
    return x, inputs.to(DEVICE), z.to(DEVICE)


@pytest.mark.parametrize("output", ["identity", "softmax"])
@pytest.mark.parametrize("activation", HIDDEN)
def test_passes_and_their_derivative_are_those_of_the_definition(activation: str, output: str) -> None:
    network, passed = made(activation, output)
    for layer in range(len(WIDTHS) - 1):
        x, inputs, z = drawn(layer)
        passes = network.noisy_passes(x.numpy(), layer, NOISE)
        assert (passes.width, passes.units, passes.differentiable) == (WIDTHS[layer + 1], z.shape[2], True)
        found = passes.values(inputs, z)
        values, derivative = passes.linearised(inputs, z[:, 0])
        assert found.dtype == values.dtype == derivative.dtype == torch.float64
        assert found.shape == (*z.shape[:2], passes.width)
        torch.testing.assert_close(values, found[:, 0], rtol=1e-13, atol=1e-14)
        for k, one in enumerate(inputs.tolist()):
            expected = torch.stack([passed(layer, x[one], path.cpu()) for path in z[k]])
            torch.testing.assert_close(found[k].cpu(), expected, rtol=1e-12, atol=1e-13)
            slope = torch.autograd.functional.jacobian(partial(passed, layer, x[one]), z[k, 0].cpu())
            torch.testing.assert_close(derivative[k].cpu(), slope, rtol=1e-12, atol=1e-13)


def test_a_float32_chain_passes_in_float32_and_is_differentiated_in_float64() -> None:
    single, _ = made("tanh", dtype=torch.float32)
    double, _ = made("tanh")
    x, inputs, z = drawn(3)
    near, exact = (one.noisy_passes(x.numpy(), 3, NOISE) for one in (single, double))
    error = (near.values(inputs, z) - exact.values(inputs, z)).abs().max()
    assert 0 < error < 1e-5
    for found, expected in zip(near.linearised(inputs, z[:, 0]), exact.linearised(inputs, z[:, 0]), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_size_of_tiles_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = made("tanh")
    x, inputs, z = drawn(3)
    passes = network.noisy_passes(x.numpy(), 3, NOISE)
    whole = passes.values(inputs, z), *passes.linearised(inputs, z[:, 0])
    monkeypatch.setattr(chain_passes, "tiles", lambda rows, _, __: cuts(0, rows, size))
    tiled = passes.values(inputs, z), *passes.linearised(inputs, z[:, 0])
    for found, expected in zip(tiled, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# One tile, and many.
@pytest.mark.parametrize("queries", [400, 3000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_bits_from_any_number_of_threads(
    queries: int, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    network, _ = made("tanh", dtype=dtype)
    x, inputs, z = drawn(3, rows=300, queries=queries, paths=20)
    passes = network.noisy_passes(x.numpy(), 3, NOISE)
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append((passes.values(inputs, z), *passes.linearised(inputs, z[:, 0])))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_an_input_that_is_not_finite_spoils_its_own_passes_alone() -> None:
    network, _ = made("relu")
    x, inputs, z = drawn(3)
    clean = network.noisy_passes(x.numpy(), 3, NOISE).values(inputs, z)
    x[inputs[0]] = torch.nan
    found = network.noisy_passes(x.numpy(), 3, NOISE).values(inputs, z)
    bad = inputs == inputs[0]
    assert found[bad].isnan().all()
    assert torch.equal(found[~bad], clean[~bad])
