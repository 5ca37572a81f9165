"""Jacobians of modules held against torch.func.jacrev, layer by layer and row by row: counts, routes, memory, sizes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import Net
from support.oracles import network_of as chain_of
from support.oracles import probe_of, random_chain
from torch import nn
from torch.nn import functional as f
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import JacobianSpec
from ibscan.core.records import At, Checkpoint
from ibscan.core.streams import RandomStreams
from ibscan.engine import scan as scanning
from ibscan.measures import rank_accumulator
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.driver import post_widths
from ibscan.measures.local_rank import LocalRank
from ibscan.networks.admission import traced_network
from ibscan.networks.budget import ChainBudget
from ibscan.networks.chain import Chain
from ibscan.networks.jacobians import layer_jacobians, sweeps
from ibscan.networks.jacobians.derivatives import Outputs
from ibscan.networks.module import Module
from ibscan.numerics.memory import LEAST, available_floats

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
DECADES = tuple(10.0**-k for k in range(1, 8))
# A singular value so near to the threshold, in units of the row's largest, may count or not.
BAND = {torch.float64: 1e-8, torch.float32: 1e-4}
relu, tanh, sigmoid, softmax = torch.relu, torch.tanh, torch.sigmoid, torch.softmax


def network_of(model: Any, x: np.ndarray, dtype: torch.dtype = torch.float64) -> Module:
    return traced_network(model.eval().requires_grad_(False).to(dtype), x, (), device=CPU, dtype=dtype)


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# The oracle ----------------------------------------------------------------------------------------------------------


def oracle(
    model: nn.Module | None, values: Callable[..., Any], x: np.ndarray, at: At, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """J (n, D, d) of every layer, float64; `values(model, rows)` is [(pre, post), ...], written without in-place."""

    def layers(row: torch.Tensor) -> list[torch.Tensor]:
        return [pair[at == "post"].flatten() for pair in values(model, row.unsqueeze(0))]

    with sdpa_kernel(SDPBackend.MATH):
        rows = [torch.func.jacrev(layers)(row) for row in torch.from_numpy(x).to(dtype)]
    return [torch.stack(per_row).flatten(2).double() for per_row in zip(*rows, strict=True)]


def assert_estimate(found: Estimate, spectra: Sequence[np.ndarray], limits: Callable[..., Any], band: float) -> None:
    """Sum, least and largest count of all rows lie between those of thresholds a band above and below."""
    for layer, sigma in enumerate(spectra):
        slack, limit = band * sigma[:, :1], limits(sigma)
        low, high = ((sigma[:, None] > (limit + s)[..., None]).sum(-1) for s in (slack, -slack))
        for values, of in ((found.value * len(sigma), np.sum), (found.minimum, np.min), (found.maximum, np.max)):
            got, least, most = np.rint(values[0, layer]), of(low, axis=0), of(high, axis=0)
            np.testing.assert_allclose(values[0, layer], got, rtol=1e-12)
            assert ((least <= got) & (got <= most)).all(), f"layer {layer}, {of.__name__}: {least} {got} {most}"


def assert_no_wrong_count(
    network: Any, x: np.ndarray, jacobians: Sequence[torch.Tensor], at: At, dtype: torch.dtype = torch.float64
) -> None:
    """At seven decades below every layer's median row, few thresholds, and one alone (inertia, one factorization)."""
    spectra = [torch.linalg.svdvals(jacobian).numpy() for jacobian in jacobians]
    tops = sorted({float(np.median(sigma[:, 0])) for sigma in spectra} - {0.0}) or [1.0]
    middle = tops[len(tops) // 2]
    calls = [(tuple(d * top for top in tops for d in DECADES), DECADES), ((1e-5 * middle,), (1e-3,))]
    for eps, relative in [*calls, *(((d * middle,), ()) for d in DECADES[::2]), ((1e-2 * middle,), (1e-9,))]:
        measure = LocalRank(eps=eps, rel_eps=relative, at=at, spectrum_rows=1)
        found = measure(network, probe_of(x), RandomStreams(0))
        one, share = np.array([eps]), np.array([relative])
        assert_estimate(found["local_rank"], spectra, lambda _, e=one: e, BAND[dtype])
        assert_estimate(found["local_rank_rel"], spectra, lambda s, r=share: r * s[:, :1], BAND[dtype])
        histograms = found["local_rank_count"].value[0]
        for (layer, sigma), (k, limit) in itertools.product(enumerate(spectra), enumerate(eps)):
            if (abs(sigma - limit) > BAND[dtype] * sigma[:, :1]).all():
                number = np.bincount((sigma > limit).sum(1), minlength=histograms.shape[-1])
                assert histograms[layer, k].tolist() == number.tolist()


# Networks: (shape of x, forward pass, [(pre, post), ...] written as functions, modules) ------------------------------


def odd(norm: nn.Module) -> Any:
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.4)
    return norm


def normed(n: Any, p: torch.Tensor) -> torch.Tensor:
    """Batch normalization in eval mode, channels second."""
    by = [1, -1, *[1] * (p.ndim - 2)]
    scale = n.weight / torch.sqrt(n.running_var + n.eps)
    return (p - n.running_mean.view(by)) * scale.view(by) + n.bias.view(by)


def conv1d(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.conv1d(x, s.a.weight, s.a.bias, stride=2, padding=1)
    h = relu(normed(s.n, p))
    q = f.conv1d(h, s.b.weight, s.b.bias, dilation=2, groups=2)
    t = f.avg_pool1d(tanh(q), 2)
    return [(p, h), (q, t), (f.linear(t.flatten(1), s.c.weight, s.c.bias),) * 2]


def conv2d(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.conv2d(x, s.a.weight, s.a.bias, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    h = f.max_pool2d(f.silu(f.group_norm(p, 2, s.n.weight, s.n.bias)), 2)
    q = f.conv2d(h, s.b.weight)
    t = f.adaptive_avg_pool2d(f.leaky_relu(normed(s.m, q), 0.1), 1)
    return [(p, h), (q, t), (f.linear(t.flatten(1), s.c.weight, s.c.bias),) * 2]


def conv3d(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.conv3d(x, s.a.weight, s.a.bias, padding=1)
    h = f.adaptive_avg_pool3d(f.elu(p), 2)
    return [(p, h), (f.linear(h.flatten(1), s.b.weight, s.b.bias),) * 2]


def transposed(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.linear(x, s.a.weight, s.a.bias)
    h = relu(p).unflatten(1, (2, 3))
    q = f.conv_transpose1d(h, s.b.weight, s.b.bias, stride=2, padding=1)
    t = f.gelu(q).unsqueeze(1)
    r = f.conv_transpose2d(t, s.c.weight, s.c.bias, stride=2, output_padding=1)
    return [(p, h), (q, t), (r, r)]


def heads(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, number: int) -> list[torch.Tensor]:
    return [part.unflatten(-1, (number, -1)).transpose(1, 2) for part in f.linear(x, weight, bias).chunk(3, -1)]


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(1, 2).flatten(2)


def self_attended(m: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    return f.linear(attended(*heads(x, m.in_proj_weight, m.in_proj_bias, 2)), m.out_proj.weight, m.out_proj.bias)


def multihead(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.linear(x, s.a.weight, s.a.bias)
    h = tanh(p)
    y = f.layer_norm(h + self_attended(s.m, h), (4,), s.n.weight, s.n.bias)
    return [(p, h), (f.linear(y.mean(1), s.c.weight, s.c.bias),) * 2]


def by_hand(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = f.linear(x, s.qkv.weight, s.qkv.bias)
    o = attended(*heads(x, s.qkv.weight, s.qkv.bias, 2))
    q = f.linear(o, s.out.weight, s.out.bias)
    y = x + q
    r = f.linear(y, s.up.weight, s.up.bias)
    t = f.linear(f.gelu(r), s.down.weight, s.down.bias)
    return [(p, o), (q, q), (r, f.gelu(r)), (t, y + t)]


def encoder(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    b = s.b
    y = f.layer_norm(x + self_attended(b.self_attn, x), (4,), b.norm1.weight, b.norm1.bias)
    p = f.linear(y, b.linear1.weight, b.linear1.bias)
    q = f.linear(relu(p), b.linear2.weight, b.linear2.bias)
    z = f.layer_norm(y + q, (4,), b.norm2.weight, b.norm2.bias)
    return [(p, relu(p)), (q, q), (f.linear(z.flatten(1), s.c.weight, s.c.bias),) * 2]


def residual(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    h = f.linear(x, s.a.weight, s.a.bias)
    y = f.linear(relu(f.layer_norm(h, (7,), s.n.weight, s.n.bias)), s.b.weight, s.b.bias)
    p = f.linear(tanh(h + y), s.c.weight, s.c.bias)
    return [(h, h), (y, y), (p, softmax(p, -1))]


def twice(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = x @ s.fc.weight.T + s.fc.bias
    q = tanh(p) @ s.fc.weight.T + s.fc.bias
    return [(p, tanh(p)), (q, tanh(q)), (tanh(q) @ s.c.weight.T + s.c.bias,) * 2]


def cell(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two steps from a state of zeros: z = sigmoid(Z [x, h]), h = (1 - z) h + z tanh(U [x, z h])."""
    h, found = torch.zeros(len(x), 3, dtype=x.dtype), []
    for t in range(2):
        z = torch.cat([x[:, t], h], 1) @ s.z.weight.T + s.z.bias
        u = torch.cat([x[:, t], sigmoid(z) * h], 1) @ s.u.weight.T + s.u.bias
        found += [(z, sigmoid(z)), (u, tanh(u))]
        h = (1 - sigmoid(z)) * h + sigmoid(z) * tanh(u)
    return [*found, (h @ s.c.weight.T + s.c.bias,) * 2]


def gates(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p, g = x @ s.a.weight.T + s.a.bias, x @ s.g.weight.T + s.g.bias
    q = (p * sigmoid(g)) @ s.b.weight.T + s.b.bias
    return [(p, p), (g, sigmoid(g)), (q, q[:, :4] * sigmoid(q[:, 4:])), (f.glu(q, 1) @ s.c.weight.T + s.c.bias,) * 2]


def in_place(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = x @ s.a.weight.T + s.a.bias
    h = relu(p) * 0.7 + 0.1
    q = h @ s.b.weight.T + s.b.bias
    return [(p, h), (q, f.leaky_relu(q, 0.2)), (f.leaky_relu(q, 0.2) @ s.c.weight.T + s.c.bias,) * 2]


def wide(s: Net, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    p = x @ s.a.weight.T + s.a.bias
    q = tanh(p) @ s.b.weight.T + s.b.bias
    return [(p, tanh(p)), (q, relu(q)), (relu(q) @ s.c.weight.T + s.c.bias,) * 2]


def cell_forward(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = torch.zeros(len(x), 3, dtype=x.dtype)
    for step in x.unbind(1):
        z = sigmoid(s.z(torch.cat([step, h], 1)))
        h = (1 - z) * h + z * tanh(s.u(torch.cat([step, z * h], 1)))
    return s.c(h)


def by_hand_forward(s: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in s.qkv(x).chunk(3, -1))
    y = x + s.out(f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return y + s.down(f.gelu(s.up(y)))


def made(name: str) -> tuple[Net, Callable[..., Any], tuple[int, ...]]:
    """Return (model, values, shape of a row)."""
    torch.manual_seed(len(name))
    attention = functools.partial(nn.MultiheadAttention, 4, 2, batch_first=True)
    line, conv, up = nn.Linear, nn.Conv2d, nn.ConvTranspose1d
    flat = functools.partial(torch.flatten, start_dim=1)
    values, shape, forward, modules = {
        "conv1d": (conv1d, (2, 9), lambda s, x: s.c(flat(f.avg_pool1d(tanh(s.b(f.relu_(s.n(s.a(x))))), 2))),
                   {"a": nn.Conv1d(2, 4, 3, stride=2, padding=1), "n": odd(nn.BatchNorm1d(4)),
                    "b": nn.Conv1d(4, 4, 2, dilation=2, groups=2), "c": line(4, 3)}),
        "conv2d": (conv2d, (2, 5, 6), lambda s, x: s.c(s.flat(s.avg(f.leaky_relu(
                       s.m(s.b(s.max(f.silu(s.n(s.a(x)), inplace=True)))), 0.1)))),
                   {"a": conv(2, 4, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
                    "n": odd(nn.GroupNorm(2, 4)), "max": nn.MaxPool2d(2), "b": conv(4, 5, 1, bias=False),
                    "m": odd(nn.BatchNorm2d(5)), "avg": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(),
                    "c": line(5, 3)}),
        "conv3d": (conv3d, (1, 3, 3, 2), lambda s, x: s.b(flat(f.adaptive_avg_pool3d(f.elu(s.a(x)), 2))),
                   {"a": nn.Conv3d(1, 2, 2, padding=1), "b": line(16, 3)}),
        "transposed": (transposed, (5,), lambda s, x: s.c(f.gelu(s.b(s.a(x).relu().view(-1, 2, 3)))[:, None]),
                       {"a": line(5, 6), "b": up(2, 3, 3, stride=2, padding=1),
                        "c": nn.ConvTranspose2d(1, 2, 2, stride=2, output_padding=1)}),
        "multihead": (multihead, (3, 4), lambda s, x: s.c(s.n((h := tanh(s.a(x))) + s.m(h, h, h)[0]).mean(1)),
                      {"a": line(4, 4), "m": attention(), "n": odd(nn.LayerNorm(4)), "c": line(4, 2)}),
        "by hand": (by_hand, (3, 4), by_hand_forward,
                    {"qkv": line(4, 12), "out": line(4, 4), "up": line(4, 6), "down": line(6, 4)}),
        "encoder": (encoder, (3, 4), lambda s, x: s.c(flat(s.b(x))),
                    {"b": nn.TransformerEncoderLayer(4, 2, 5, dropout=0.4, batch_first=True), "c": line(12, 3)}),
        "residual": (residual, (6,), lambda s, x: softmax(s.c(tanh((h := s.a(x)) + s.b(relu(s.n(h))))), -1),
                     {"a": line(6, 7), "n": odd(nn.LayerNorm(7)), "b": line(7, 7), "c": line(7, 4)}),
        "twice": (twice, (5,), lambda s, x: s.c(tanh(s.fc(tanh(s.fc(x))))), {"fc": line(5, 5), "c": line(5, 3)}),
        "cell": (cell, (2, 2), cell_forward, {"z": line(5, 3), "u": line(5, 3), "c": line(3, 3)}),
        "gates": (gates, (5,), lambda s, x: s.c(f.glu(s.b(s.a(x) * sigmoid(s.g(x))), 1)),
                  {"a": line(5, 6), "g": line(5, 6), "b": line(6, 8), "c": line(4, 3)}),
        "in place": (in_place, (5,), lambda s, x: s.c(f.leaky_relu_(s.b(f.relu_(s.a(x)).mul_(0.7).add_(0.1)), 0.2)),
                     {"a": line(5, 6), "b": line(6, 5), "c": line(5, 3)}),
        "wide": (wide, (5,), lambda s, x: s.c(relu(s.b(tanh(s.a(x))))),
                 {"a": line(5, 8), "b": line(8, 30), "c": line(30, 3)}),
    }[name]  # fmt: skip
    return Net(forward, **modules).double().eval().requires_grad_(False), values, shape


NETS = ("conv1d", "conv2d", "conv3d", "transposed", "multihead", "by hand", "encoder", "residual", "twice", "cell",
        "gates", "in place", "wide")  # fmt: skip


@functools.cache
def case(name: str, rows: int = 5) -> Any:
    model, values, shape = made(name)
    x = rows_of(rows, *shape)
    return network_of(model, x), x, {at: oracle(model, values, x, at) for at in ("pre", "post")}


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", NETS)
def test_no_count_is_wrong(name: str, at: At) -> None:
    network, x, jacobians = case(name)
    widths = [layer.width for layer in network.layers] if at == "pre" else post_widths(network, x)
    assert widths == [jacobian.shape[1] for jacobian in jacobians[at]]
    assert_no_wrong_count(network, x, jacobians[at], at)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", ["conv2d", "multihead", "twice", "cell", "wide"])
def test_no_count_is_wrong_in_float32(name: str, at: At) -> None:
    """Against the SVD, in float64, of the Jacobian computed in float32."""
    model, values, shape = made(name)
    x = rows_of(5, *shape)
    network = network_of(model, x, torch.float32)
    jacobians = oracle(model, values, x, at, torch.float32)
    assert next(model.parameters()).dtype is torch.float32
    assert_no_wrong_count(network, x, jacobians, at, torch.float32)


# Routes --------------------------------------------------------------------------------------------------------------


def spied(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[Any]:
    """Replace a function by one that records its calls; return the list of calls."""
    calls, real = [], getattr(place, name)

    def spy(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return real(*given, **named)

    monkeypatch.setattr(place, name, spy)
    return calls


def assert_same(
    network: Module,
    x: np.ndarray,
    jacobians: Sequence[torch.Tensor],
    at: At,
    layers: Any = None,
    rtol: float = 1e-10,
) -> None:
    """Smaller Gram matrices, and J^T J of factors, of all rows, each visited once, in order."""
    grams: dict[Any, Any] = {}
    factors: dict[Any, Any] = {}
    spec = JacobianSpec(at, layers=layers)
    network.grams(x, lambda k, gram, rows: grams.setdefault(k, []).append((rows, gram.values[0])), spec)
    network.jacobians(x, lambda k, factor, _, rows: factors.setdefault(k, []).append((rows, factor[0])), spec)
    assert sorted(grams) == sorted(factors) == list(layers or range(len(jacobians)))
    for k in grams:
        for found in (grams, factors):
            assert [n for rows, _ in found[k] for n in range(len(x))[rows]] == list(range(len(x)))
        gram, factor = (torch.cat([values for _, values in found[k]]) for found in (grams, factors))
        wide = jacobians[k].shape[1] > jacobians[k].shape[2]
        expected = jacobians[k].mT @ jacobians[k]
        for got, wanted in (
            (gram, expected if wide else jacobians[k] @ jacobians[k].mT),
            (factor.mT @ factor, expected),
        ):
            assert (got - wanted).abs().amax() <= rtol * wanted.abs().amax()


def assert_routes(
    network: Module, x: np.ndarray, jacobians: Sequence[torch.Tensor], at: At, layers: Any = None
) -> None:
    """Assert what every route visits, and the measure's estimates."""
    assert_same(network, x, jacobians, at, layers)
    found = LocalRank(eps=(0.03, 0.3), rel_eps=(0.01,), at=at, spectrum_rows=2)(
        network, probe_of(x), RandomStreams(0), layers
    )
    for k in layers or range(len(jacobians)):
        sigma = torch.linalg.svdvals(jacobians[k]).numpy()
        spectrum = found["singular_value"].value[0, k][: sigma.shape[1]]
        np.testing.assert_allclose(spectrum, sigma[:2].mean(0), rtol=1e-10, atol=1e-10 * sigma.max())
        for key, limits in (("local_rank", np.array([[0.03, 0.3]])), ("local_rank_rel", 0.01 * sigma[:, :1])):
            counts = (sigma[:, None] > limits[..., None]).sum(-1).mean(0)
            np.testing.assert_allclose(found[key].value[0, k], counts, rtol=1e-12)


# Budgets of rows and blocks in units of the Jacobians of one row.
BUDGETS: dict[str, Any] = {
    "groups of layers": {"row": 0.6, "tangents": 3},
    "row by row": {"block": 0.1},
    "two rows at a time": {"block": 2, "one_pass": 100},
    "a tangent a pass": {"one_pass": 1},
    "two tangents a pass": {"tangents": 2},
    "too wide": {"row": 0.1, "tangents": 2},
    "all of it": {"row": 0.05, "one_pass": 1, "block": 0.1, "tangents": 1},
}


def with_budget(network: Module, budget: Mapping[str, float], size: int) -> Module:
    """Return the network with a budget whose rows and blocks hold so many times `size` numbers."""
    most = {name: max(1, int(value * (size if name in ("row", "block") else 1))) for name, value in budget.items()}
    return dataclasses.replace(network, budget=dataclasses.replace(network.limits, **most))


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", ["wide", "transposed", "cell"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_memory_budgets_change_no_jacobian(name: str, budget: str, at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, jacobians = case(name, 4)
    network = with_budget(network, BUDGETS[budget], sum(jacobian[0].numel() for jacobian in jacobians[at]))
    sweeps_run, by_blocks, factors = (
        spied(monkeypatch, *of)
        for of in ((layer_jacobians, "run_sweep"), (sweeps, "gram_by_blocks"), (sweeps, "qr_factor"))
    )
    passes = spied(monkeypatch, torch.func, "vmap")
    assert_routes(network, x, jacobians[at], at)
    assert len(passes) > 4  # one for each of two calls, twice, without these budgets
    if "row" in BUDGETS[budget]:
        assert len(sweeps_run) > 4
        wide = any(jacobian.shape[1] > jacobian.shape[2] for jacobian in jacobians[at])
        assert bool(by_blocks) == bool(factors) == wide


def no_forward_mode(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make forward mode fail; return the list of calls of it."""
    asked = []

    def jvp(*given: Any, **_: object) -> None:
        asked.append(given)
        raise RuntimeError("no forward mode")

    monkeypatch.setattr(torch.func, "jvp", jvp)
    return asked


@pytest.mark.parametrize("name", ["conv2d", "multihead", "encoder"])
@pytest.mark.parametrize("budget", [{}, {"tangents": 2}, {"block": 0.001, "one_pass": 1}])
def test_narrow_layers_in_reverse_mode_agree_with_autograd(
    name: str, budget: Mapping[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, jacobians = case(name)
    size = sum(jacobian[0].numel() for jacobian in jacobians["pre"])
    network = with_budget(dataclasses.replace(network, failures={}), budget, size)
    asked = no_forward_mode(monkeypatch)
    for at in ("pre", "post"):
        assert_routes(network, x, jacobians[at], at, (len(jacobians[at]) - 1,))
    assert not asked
    assert_routes(network, x, jacobians["pre"], "pre")
    assert asked


@pytest.mark.parametrize("budget", [{}, {"tangents": 3}, {"block": 0.1}, {"row": 0.1}])
def test_operations_without_forward_mode_are_differentiated_by_gradients(budget: Mapping[str, float]) -> None:
    """cdist has none, and torch's vmap of it is wrong: the oracle does without."""
    torch.manual_seed(0)
    centres = torch.randn(1, 6, 4, dtype=torch.float64)
    model = Net(lambda s, x: s.b(torch.cdist(s.a(x)[:, None], centres)[:, 0]), a=nn.Linear(4, 4), b=nn.Linear(6, 9))
    x = rows_of(4, 4)
    network = network_of(model, x)
    rows = [torch.autograd.functional.jacobian(lambda row: model(row[None])[0], row) for row in torch.from_numpy(x)]
    jacobians = [model.a.weight.expand(4, 4, 4), torch.stack(rows)]
    assert_routes(with_budget(network, budget, 4 * (4 + 9)), x, jacobians, "pre")
    with pytest.raises(NotImplementedError):
        torch.func.jvp(model, (torch.from_numpy(x),), (torch.from_numpy(x),))


def test_chains_in_blocks_of_one_row_give_the_same_counts() -> None:
    """As with wide layers: counts of one block do not carry over to the next."""
    weights, biases = random_chain((6, 8, 5), 1, scale=1.5)
    x = rows_of(7, 6)

    def values(_: object, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = x @ weights[0].T + biases[0]
        return [(p, relu(p)), (relu(p) @ weights[1].T + biases[1],) * 2]

    network = dataclasses.replace(chain_of([(weights, biases)], "relu"), budget=ChainBudget(sweep=1))
    assert_no_wrong_count(network, x, oracle(None, values, x, "pre"), "pre")


# Memory --------------------------------------------------------------------------------------------------------------

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "python": MemoryError(),
}


def limited(monkeypatch: pytest.MonkeyPatch, rows: Any, tangents: Any, error: Any) -> Any:
    """Let passes with more rows or tangents fail; return the sizes of those that went well."""
    real, sizes = Outputs.images, []

    def images(self: Outputs, part: Any) -> Any:
        if self.rows > rows or part.stop - part.start > tangents:
            raise error
        sizes.append((self.rows, part.stop - part.start))
        return real(self, part)

    monkeypatch.setattr(Outputs, "images", images)
    return sizes


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("rows", "tangents", "largest"), [(3, 99, (2, 5)), (1, 99, (1, 5)), (1, 2, (1, 2)), (1, 1, (1, 1))]
)
def test_blocks_are_halved_when_memory_runs_out(
    rows: int, tangents: int, largest: tuple[int, int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, jacobians = case("wide")
    sizes = limited(monkeypatch, rows, tangents, ERRORS[error])
    assert_routes(network, x, jacobians["pre"], "pre")
    assert max(sizes) <= (rows, tangents)
    assert max(sizes) >= largest


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("most", "layers"), [(2, None), (1, None), (4, (1,)), (1, (1,))])
def test_blocks_are_halved_when_memory_runs_out_inside_the_model(
    most: int, layers: tuple[int] | None, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By reverse mode, where one layer is wanted, units are rows."""
    model, values, shape = made("multihead")
    x, forward = rows_of(5, *shape), model.function
    network, jacobians = network_of(model, x), oracle(model, values, x, "pre")

    def failing(s: Any, rows: Any) -> Any:
        if len(rows) > most:
            raise ERRORS[error]
        return forward(s, rows)

    model.function = failing
    if layers:
        no_forward_mode(monkeypatch)
    assert_same(network, x, jacobians, "pre", layers)


@pytest.mark.parametrize("error", ERRORS)
def test_a_layer_beyond_all_memory_has_that_status_and_other_measures_go_on(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, _ = case("wide")
    assert not limited(monkeypatch, 0, 0, ERRORS[error])
    one = Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | {"name": "a"})
    measures: list[Any] = [LocalRank(), BinnedInformation(), LocalRank(at="post")]
    probe = probe_of(x)
    [block] = scanning.blocks([[one]], lambda _: {}, lambda _: network, measures, probe, 0)
    first, binned, second = (found for _, found, _ in block.outcomes)
    for found in (first, second):
        assert (found["local_rank"].status == Status.OUT_OF_MEMORY).all()
        assert np.isnan(found["local_rank"].value).all()
    assert any((one.status == Status.OK).all() for one in binned.values() if one.status is not None)


def memory(monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    """Replace the contents of system files; others are missing."""

    def read_text(self: Path, *_: object) -> str:
        if self.name in said:
            return said[self.name]
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read_text)


def test_available_floats_are_a_power_of_two_within_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(kilobytes: int, **group: str) -> list[int]:
        memory(monkeypatch, meminfo=f"MemTotal: 1 kB\nMemAvailable:  {kilobytes} kB\n", **group)
        return [available_floats(CPU, most) for most in (1, 1000, LEAST, 3 * LEAST, 2**27, 3 * 2**40)]

    for kilobytes in (0, 1, 2**10, 2**17, 10**6, 2**24, 10**9, 2**40):
        for most, numbers in zip((1, 1000, LEAST, 3 * LEAST, 2**27, 3 * 2**40), free(kilobytes), strict=True):
            assert min(most, LEAST) <= numbers <= most
            assert numbers == most or numbers.bit_count() == 1
            assert 8 * numbers <= max(1024 * kilobytes // 8, 8 * LEAST)
            assert numbers in (most, LEAST) or 16 * numbers > 1024 * kilobytes // 8
    plenty = 2**40
    assert free(plenty, **{"memory.max": "max\n", "memory.current": "7"}) == free(plenty)
    assert free(plenty, **{"memory.max": str(2**30), "memory.current": str(2**29)}) == free(2**19)
    assert free(plenty, **{"memory.max": "5", "memory.current": "7"}) == free(0)
    memory(monkeypatch)
    assert LEAST <= available_floats(CPU, 2**27) <= 2**27
    monkeypatch.delattr("os.sysconf")
    assert available_floats(CPU, 2**27) == 2**25


# Numbers of any size -------------------------------------------------------------------------------------------------


def scaled(
    factors: tuple[float, float, float], dead: tuple[int, ...] = ()
) -> tuple[nn.Sequential, Callable[..., Any], Chain]:
    """A network of ReLU without biases whose weights are multiplied, as a module and as a chain of the same weights."""
    weights, _ = random_chain((6, 8, 12, 4), 3, scale=1.5)
    weights = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    for index in dead:
        weights[index] = -weights[index].abs()
    layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False).double() for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(weight)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval().requires_grad_(False)

    def values(_: object, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = x @ weights[0].T
        q = relu(p) @ weights[1].T
        return [(p, relu(p)), (q, relu(q)), (relu(q) @ weights[2].T,) * 2]

    return model, values, chain_of([(weights, [None] * 3)], "relu")


@pytest.mark.parametrize(
    "factors", [(1e-170, 1, 1), (1e140, 1, 1), (1e-170, 1e300, 1e-50), (1, 1e-61, 1), (1e59, 10, 1e3)]
)
@pytest.mark.parametrize("at", ["pre", "post"])
def test_counts_do_not_depend_on_the_scale_of_weights(factors: tuple[float, float, float], at: At) -> None:
    model, values, chain = scaled(factors)
    x = rows_of(6, 6)
    jacobians = oracle(model, values, x, at)
    assert all(1e-200 < jacobian.abs().max() < 1e200 for jacobian in jacobians)
    assert_no_wrong_count(network_of(model, x), x, jacobians, at)
    assert_no_wrong_count(chain, x, jacobians, at)


@pytest.mark.parametrize("kind", ["module", "chain"])
@pytest.mark.parametrize("measure", [LocalRank(spectrum_rows=1), LocalRank(eps=(0.1,), rel_eps=(), spectrum_rows=1)])
def test_dead_layers_are_not_decomposed(kind: str, measure: LocalRank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 rows one is decomposed, for its spectrum: of the first layer, of the second, and of the third."""
    model, values, chain = scaled((1, 1, 1), dead=(0,))
    x = np.abs(rows_of(40, 6))
    assert all(not jacobian.any() for jacobian in oracle(model, values, x, "pre")[1:])
    network = network_of(model, x) if kind == "module" else chain
    calls = spied(monkeypatch, rank_accumulator, "singular_values")
    found = measure(network, probe_of(x), RandomStreams(0))
    assert found["local_rank"].status[0, :, 0].tolist() == [Status.OK, Status.DEAD, Status.DEAD]
    for counts in (found["local_rank"].value, found["local_rank"].maximum, found["local_rank_rel"].value):
        assert not counts[0, 1:].any()
    decomposed = sum(matrix.shape[:-2].numel() for (matrix,) in calls if matrix.shape[-2:].numel())
    assert decomposed <= 3 + 3  # the rows', and the weights' for the bound


# The bound on the error of a Gram matrix -----------------------------------------------------------------------------


def bounded(network: Any, x: Any, jacobians: Any, at: Any) -> None:
    """Assert that no Gram matrix is farther from J J^T than it says, and that it says no more than 1e-6 of its norm."""
    seen = []

    def visit(layer: Any, gram: Any, rows: Any) -> None:
        seen.append(layer)
        jacobian = jacobians[layer][rows]
        for row, one in enumerate(jacobian):
            k = row if gram.values.shape[1] > 1 else 0
            matrix, error, scale = gram.values[0, k], float(gram.error[0, k]), float(gram.scale[0, k])
            wanted = one / scale
            norm = float(torch.linalg.matrix_norm(wanted, 2)) ** 2
            if len(matrix) == len(one):
                off = float(torch.linalg.matrix_norm(matrix - wanted @ wanted.T, 2))
            else:  # A^T A of a factor A = J Q is another matrix of the same eigenvalues
                eigenvalues = torch.linalg.eigvalsh(matrix).flip(0)
                squares = torch.zeros(max(len(eigenvalues), min(one.shape)), dtype=torch.float64)
                squares[: min(one.shape)] = torch.linalg.svdvals(wanted) ** 2
                squares[: len(eigenvalues)] -= eigenvalues
                off = float(squares.abs().max())
            assert off <= error + 1e-14 * norm, (layer, row, off / norm, error / norm)
            assert error <= 1e-6 * norm

    network.grams(x, visit, JacobianSpec(at))
    assert sorted(set(seen)) == list(range(len(jacobians)))


ACTIVATIONS = {"tanh": tanh, "relu": relu, "gelu": f.gelu, "sigmoid": sigmoid, "silu": f.silu, "softplus": f.softplus}


@pytest.mark.parametrize("seed", range(30))
def test_error_bounds_of_random_networks_hold(seed: int) -> None:
    g = np.random.default_rng(seed)
    widths = [int(w) for w in g.integers(2, 24, g.integers(2, 6))]
    name, at, x = g.choice(list(ACTIVATIONS)), g.choice(["pre", "post"]), rows_of(6, widths[0], seed=seed)
    weights, biases = random_chain(widths, seed, scale=10 ** g.uniform(-0.5, 0.7))

    def values(_: object, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found, fed = [], x
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            pre = fed @ weight.T + bias
            fed = pre if k == len(weights) - 1 else ACTIVATIONS[name](pre)
            found.append((pre, fed))
        return found

    layers = nn.ModuleList(nn.Linear(*weight.T.shape).double() for weight in weights)
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(s: Any, x: Any) -> Any:
        for layer in s.layers[:-1]:
            x = ACTIVATIONS[name](layer(x))
        return s.layers[-1](x)

    jacobians = oracle(None, values, x, at)
    bounded(chain_of([(weights, biases)], name), x, jacobians, at)
    bounded(network_of(Net(forward, layers=layers), x), x, jacobians, at)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", NETS)
def test_error_bounds_hold(name: str, at: At) -> None:
    network, x, jacobians = case(name)
    bounded(network, x, jacobians[at], at)
