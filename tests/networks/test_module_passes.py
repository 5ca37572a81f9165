"""Noisy passes of modules: the noisy network by its definition, its derivative, and where there is none."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import oracles
from support.nets import Net
from support.oracles import network_of, random_chain
from torch import nn
from torch.nn import functional

from ibscan.networks import module_passes
from ibscan.networks.admission import traced_network
from ibscan.networks.module import Module

relu, tanh = torch.relu, torch.tanh
# Posts of a model at a row (1, ...), normals z of a pass (enough of them for all layers), and a noise for each layer.
Written = Callable[[Any, torch.Tensor, torch.Tensor, tuple[float, ...]], list[torch.Tensor]]


def traced(model: Any, x: np.ndarray, extra: tuple[str, ...] = (), dtype: torch.dtype = torch.float64) -> Module:
    model = model.to(dtype).eval().requires_grad_(False)
    return traced_network(model, x, extra, device=oracles.DEVICE, dtype=dtype)


def reused() -> tuple[Net, Written, tuple[int, ...]]:
    """A layer that is called twice is two layers."""
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(tanh(s.a(tanh(s.a(x))))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))

    def written(m: Any, x: torch.Tensor, z: torch.Tensor, noise: tuple[float, ...]) -> list[torch.Tensor]:
        s = tanh(m.a(x))
        t = tanh(m.a(s + noise[0] * z[:4]))
        return [s, t, m.b(t + noise[1] * z[4:8])]

    return model, written, (4,)


def residual() -> tuple[Net, Written, tuple[int, ...]]:
    """The first layer's noise is seen by the second, and by the third past it."""
    torch.manual_seed(2)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.a(x)
        y = s.b(relu(s.n(h)))
        y += h
        return functional.softmax(s.c(tanh(y)), -1)

    def written(m: Any, x: torch.Tensor, z: torch.Tensor, noise: tuple[float, ...]) -> list[torch.Tensor]:
        h = m.a(x)
        t = h + noise[0] * z[:5]
        y = m.b(relu(m.n(t)))
        return [h, y, functional.softmax(m.c(tanh(y + noise[1] * z[5:10] + t)), -1)]

    return Net(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 3), n=nn.LayerNorm(5)), written, (4,)


def convolutional() -> tuple[Net, Written, tuple[int, ...]]:
    """Pooling is part of the post: fewer normals than the layer has units."""
    torch.manual_seed(3)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = functional.max_pool2d(functional.relu(s.n(s.a(x)), inplace=True), 2)
        return s.c(tanh(s.b(h)).flatten(1))

    def written(m: Any, x: torch.Tensor, z: torch.Tensor, noise: tuple[float, ...]) -> list[torch.Tensor]:
        h = functional.max_pool2d(relu(m.n(m.a(x))), 2)
        t = tanh(m.b(h + noise[0] * z[:12].view(h.shape)))
        return [h, t, m.c((t + noise[1] * z[12:14].view(t.shape)).flatten(1))]

    model = Net(forward, a=nn.Conv2d(2, 3, 2), n=nn.BatchNorm2d(3), b=nn.Conv2d(3, 2, 2), c=nn.Linear(2, 5))
    model.n.running_var.uniform_(0.5, 2)
    return model, written, (2, 5, 5)


NOISE = (0.3, 0.8, 5.0)  # the output's is not added
NETS = [reused, residual, convolutional]


def drawn(
    network: Module, layer: int, x: np.ndarray, queries: int = 5, paths: int = 3
) -> tuple[module_passes.ModulePasses, torch.Tensor, torch.Tensor]:
    """Return the passes of rows up to a layer, which rows are asked for, and normals."""
    passes = network.noisy_passes(x, layer, NOISE)
    g = torch.Generator().manual_seed(layer)
    inputs = torch.randint(len(x), (queries,), generator=g)
    z = torch.randn(queries, paths, passes.units, generator=g, dtype=torch.float64)
    return passes, inputs.to(oracles.DEVICE), z.to(oracles.DEVICE)


def rows_of(shape: tuple[int, ...], rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, *shape))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("budget", [1, 100, 2**22])
def test_passes_and_their_derivative_are_those_of_the_definition(
    net: Callable[[], tuple[Net, Written, tuple[int, ...]]], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PASS_BUDGET", "DERIVATIVE_BUDGET"):
        monkeypatch.setattr(module_passes, name, {oracles.DEVICE.type: budget})
    model, written, shape = net()
    x = rows_of(shape)
    network = traced(model, x)
    rows = torch.from_numpy(x).to(oracles.DEVICE)
    for layer in range(3):
        passes, inputs, z = drawn(network, layer, x)
        assert passes.differentiable
        found = passes.values(inputs, z)
        values, derivative = passes.linearised(inputs, z[:, 0])
        assert found.dtype == values.dtype == derivative.dtype == torch.float64
        assert found.shape == (*z.shape[:2], passes.width)
        torch.testing.assert_close(values, found[:, 0], rtol=1e-12, atol=1e-13)
        for k, one in enumerate(inputs.tolist()):
            row = rows[one : one + 1]

            def written_out(path: torch.Tensor, row: torch.Tensor = row, layer: int = layer) -> torch.Tensor:
                return written(model, row, functional.pad(path, (0, 14)), NOISE)[layer].flatten()

            for path, value in zip(z[k], found[k], strict=True):
                torch.testing.assert_close(value, written_out(path), rtol=1e-11, atol=1e-13)
            slope = torch.autograd.functional.jacobian(written_out, z[k, 0])
            torch.testing.assert_close(derivative[k], slope, rtol=1e-10, atol=1e-13)


def test_chain_and_module_have_the_same_passes() -> None:
    weights, biases = random_chain((4, 5, 6, 3), 1, scale=1.5)
    x = rows_of((4,))
    chain = network_of([(weights, biases)], "tanh")
    layers = [nn.Linear(weight.shape[1], weight.shape[0]).double() for weight in weights]
    for one, weight, bias in zip(layers, weights, biases, strict=True):
        one.load_state_dict({"weight": weight, "bias": bias})
    module = traced(nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]), x)
    for layer in range(3):
        passes, inputs, z = drawn(module, layer, x)
        expected = chain.noisy_passes(x, layer, NOISE)
        assert (passes.width, passes.units) == (expected.width, expected.units)
        torch.testing.assert_close(passes.values(inputs, z), expected.values(inputs, z), rtol=1e-12, atol=1e-13)
        for a, b in zip(passes.linearised(inputs, z[:, 0]), expected.linearised(inputs, z[:, 0]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_float32_module_passes_in_float32_and_is_differentiated_in_float64() -> None:
    x = rows_of((4,))
    model, _, _ = residual()
    double = traced(copy.deepcopy(model), x)
    single = dataclasses.replace(traced(model, x, dtype=torch.float32), exact=lambda: double)
    (near, inputs, z), (exact, *_) = (drawn(one, 2, x) for one in (single, double))
    error = (near.values(inputs, z) - exact.values(inputs, z)).abs().max()
    assert 0 < error < 1e-4
    for a, b in zip(near.linearised(inputs, z[:, 0]), exact.linearised(inputs, z[:, 0]), strict=True):
        assert torch.equal(a, b)


def test_a_model_that_runs_in_float32_alone_is_differentiated_in_it() -> None:
    x = rows_of((4,))
    (near, inputs, z), (exact, *_) = (
        drawn(traced(residual()[0], x, dtype=d), 2, x) for d in (torch.float32, torch.float64)
    )
    assert near.differentiable
    for a, b in zip(near.linearised(inputs, z[:, 0]), exact.linearised(inputs, z[:, 0]), strict=True):
        assert 0 < (a - b).abs().max() < 1e-4 * b.abs().max()


def test_noise_of_a_layer_run_later_is_no_part_of_a_pass() -> None:
    """Of a module asked for by name, which comes after all layers, and whose post may be that of one of them."""
    model = nn.Sequential(
        OrderedDict(a=nn.Linear(4, 3), act=nn.Tanh(), b=nn.Linear(3, 5), bend=nn.Tanh(), c=nn.Linear(5, 2))
    )
    x = rows_of((4,))
    network = traced(model, x, ("act", "bend"))
    assert [layer.name for layer in network.layers] == ["a", "b", "c", "act", "bend"]
    passes = [network.noisy_passes(x, layer, (0.3, 0.8, 5.0, 5.0, 5.0)) for layer in range(5)]
    assert [one.units for one in passes] == [0, 3, 8, 0, 3]
    assert [one.width for one in passes] == [3, 5, 2, 3, 5]
    z, inputs = torch.randn(4, 2, 3, dtype=torch.float64).to(oracles.DEVICE), torch.arange(4, device=oracles.DEVICE)
    assert torch.equal(passes[4].values(inputs, z), passes[1].values(inputs, z))
    found = passes[3].values(inputs, z[..., :0])
    assert torch.equal(found, passes[0].values(inputs, z[..., :0]))
    values, derivative = passes[3].linearised(inputs, z[:, 0, :0])
    assert torch.equal(values, found[:, 0])
    assert derivative.shape == (4, 3, 0)


def by_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.detach().cpu().numpy())).to(x)


class Unsigned(torch.autograd.Function):
    """The sine, with a backward that leaves out the sign."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * context.saved_tensors[0].cos().abs()


class Undefined(torch.autograd.Function):
    """The sine, without a backward."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


@pytest.mark.parametrize("part", [by_numpy, Unsigned.apply, Undefined.apply])
def test_a_layer_without_a_derivative_by_the_noise_says_so_and_still_has_values(part: Callable[..., Any]) -> None:
    """Noise goes into unseen code, or is added inside an activation of the model's own."""
    torch.manual_seed(0)
    model = Net(lambda s, x: s.c(part(s.b(tanh(s.a(x))))), a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    model.b.weight.data *= 5.0
    x = rows_of((4,))
    network = traced(model, x)
    assert [network.noisy_passes(x, layer, NOISE).differentiable for layer in range(3)] == [True, True, False]
    passes, inputs, z = drawn(network, 2, x)
    first, second = z.split([6, 5], -1)
    h = model.b(tanh(model.a(torch.from_numpy(x).to(oracles.DEVICE)[inputs])).unsqueeze(1) + NOISE[0] * first)
    h = torch.sin(h + NOISE[1] * second) if part is by_numpy else torch.sin(h) + NOISE[1] * second
    torch.testing.assert_close(passes.values(inputs, z), model.c(h), rtol=1e-11, atol=1e-12)


def test_unseen_code_before_the_noise_does_not_matter() -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(tanh(s.a(by_numpy(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = rows_of((4,))
    passes, inputs, z = drawn(traced(model, x), 1, x)
    assert passes.differentiable
    derivative = passes.linearised(inputs, z[:, 0])[1]
    torch.testing.assert_close(derivative, (NOISE[0] * model.b.weight).expand(len(inputs), -1, -1), rtol=1e-12, atol=0)


def test_what_a_model_detaches_is_differentiated_like_anything_else() -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(tanh(s.a(x)).detach()), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = rows_of((4,))
    passes, inputs, z = drawn(traced(model, x), 1, x)
    assert passes.differentiable
    derivative = passes.linearised(inputs, z[:, 0])[1]
    torch.testing.assert_close(derivative, (NOISE[0] * model.b.weight).expand(len(inputs), -1, -1), rtol=1e-12, atol=0)


def test_a_network_of_ids_is_differentiated_by_its_noise() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.b(tanh(s.a(s.e(x.long()).flatten(1)))),
        e=nn.Embedding(9, 3),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 2),
    )
    x = np.random.default_rng(0).integers(0, 9, (4, 2)).astype(np.float64)
    passes, inputs, z = drawn(traced(model, x), 1, x)
    assert passes.differentiable
    derivative = passes.linearised(inputs, z[:, 0])[1]
    torch.testing.assert_close(derivative, (NOISE[0] * model.b.weight).expand(len(inputs), -1, -1), rtol=1e-12, atol=0)
