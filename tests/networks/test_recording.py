"""Where the layers of a network are: pre, post and kin of every layer, for every way people write a forward pass."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import Net, noisy_posts
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ibscan.core.network import JacobianSpec
from ibscan.errors import InputError
from ibscan.networks.admission import traced_network
from ibscan.networks.module import Module
from ibscan.networks.trace.recording import record
from ibscan.networks.trace.replay import Replay

relu, tanh, sigmoid = torch.relu, torch.tanh, torch.sigmoid
CPU = torch.device("cpu")


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def network_of(
    model: nn.Module, x: np.ndarray, extra: tuple[str, ...] = (), dtype: torch.dtype = torch.float64
) -> Module:
    return traced_network(model.eval().requires_grad_(False).to(dtype), x, extra, device=CPU, dtype=dtype)


def walked(network: Module, x: np.ndarray) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return {layer: (pre, post)} of all rows, each visited once."""
    found: dict[Any, Any] = {}

    def visit(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
        assert pre.dtype == post.dtype == torch.float64
        found.setdefault(network.layers[layer].name, []).append((pre[0].clone(), post[0].clone(), rows))

    network.walk(x, visit)
    for parts in found.values():
        assert [row for *_, rows in parts for row in range(len(x))[rows]] == list(range(len(x)))
    return {name: (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) for name, parts in found.items()}


def made(
    forward: Callable[..., Any], shape: tuple[int, ...] = (4,), rows: int = 5, **modules: Callable[..., Any] | nn.Module
) -> tuple[Net, np.ndarray]:
    torch.manual_seed(0)
    given: dict[str, Any] = {k: v() if isinstance(v, type(linear)) else v for k, v in modules.items()}
    model = Net(forward, **given)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return model, np.random.default_rng(0).standard_normal((rows, *shape))


def check(
    forward: Callable[..., Any],
    expected: Callable[..., Any],
    *,
    output: str = "identity",
    outputs: set[str] | None = None,
    first: set[str] | None = None,
    plain: bool = False,
    shape: tuple[int, ...] = (4,),
    **modules: Any,
) -> Any:
    """Hold every layer against pre and post computed by hand: `expected(modules, rows)` is {name: (pre, post)}."""
    model, x = made(forward, shape, **modules)
    network = network_of(model, x)
    values = expected(model, torch.from_numpy(x.copy()))
    assert [layer.name for layer in network.layers] == list(values)
    found = walked(network, x)
    for layer in network.layers:
        for got, wanted in zip(found[layer.name], values[layer.name], strict=True):
            assert got.flatten(1).shape == wanted.flatten(1).shape, layer
            torch.testing.assert_close(got.flatten(1), wanted.flatten(1), rtol=1e-10, atol=1e-12)
        assert layer.width == values[layer.name][0][0].numel()
    names = list(values)
    assert {layer.name for layer in network.layers if layer.output} == set(outputs or names[-1:])
    assert {layer.name for layer in network.layers if layer.first} == set(first or names[:1])
    assert network.output == output
    assert network.plain is plain
    return network


def two(f: Callable[..., Any], **settings: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """One hidden layer whose pre becomes its post by `f`, written in every way below."""

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = f(m.a(x))
        return {"a": (m.a(x), h), "b": (m.b(h), m.b(h))}

    return expected, {"a": linear, "b": linear, "plain": True} | settings


# A plain chain, written in many ways ---------------------------------------------------------------------------------


def ignored(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    s.act(h)  # in place, the result unused
    return s.b(h)


def method(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h.relu_()
    return s.b(h)


def sliced(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h[:, 0] = 0
    h[:, 1] = h[:, 2]
    return s.b(h)


def wrote(f: Callable[..., Any]) -> Callable[..., Any]:
    def by_hand(h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        f(h)
        return h

    return by_hand


def whole_view(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h.view(-1).relu_()
    return s.b(h * 1.0)


def through_data(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h.data.mul_(2)
    return s.b(h + 0)


def replaced_data(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h.data = tanh(h)
    return s.b(h)


def written_out(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    torch.relu(torch.add(h, 1, out=h))
    return s.b(h)


PLAIN = {
    "module": (lambda s, x: s.b(s.act(s.a(x))), *two(relu, act=nn.ReLU())),
    "functional": (lambda s, x: s.b(functional.leaky_relu(s.a(x), 0.3)), *two(lambda h: functional.leaky_relu(h, 0.3))),
    "method": (lambda s, x: s.b(s.a(x).tanh()), *two(tanh)),
    "nothing": (lambda s, x: s.b(s.a(x)), *two(lambda h: h)),
    "identity module": (lambda s, x: s.b(s.act(s.a(x))), *two(lambda h: h, act=nn.Identity())),
    "inplace module": (lambda s, x: s.b(s.act(s.a(x))), *two(relu, act=nn.ReLU(inplace=True))),
    "inplace, result ignored": (ignored, *two(relu, act=nn.ReLU(inplace=True))),
    "relu_": (lambda s, x: s.b(functional.relu_(s.a(x))), *two(relu)),
    "method relu_": (method, *two(relu)),
    "inplace elu and silu": (
        lambda s, x: s.b(functional.silu(functional.elu(s.a(x), inplace=True), inplace=True)),
        *two(lambda h: functional.silu(functional.elu(h))),
    ),
    "swish by hand": (lambda s, x: s.b((lambda h: h * sigmoid(h))(s.a(x))), *two(functional.silu)),
    "constants": (
        lambda s, x: s.b((lambda h: torch.maximum(h, torch.zeros_like(x)) + x.new_ones(4))(s.a(x))),
        *two(lambda h: relu(h) + 1),
    ),
    "where": (lambda s, x: s.b((lambda h: torch.where(h > 0, h, 0.01 * h))(s.a(x))), *two(functional.leaky_relu)),
    "batch norm, dropout": (
        lambda s, x: s.b(s.drop(relu(s.bn(s.a(x))))),
        lambda m, x: {"a": (m.a(x), relu(m.bn(m.a(x)))), "b": (m.b(relu(m.bn(m.a(x)))),) * 2},
        {"a": linear, "b": linear, "bn": nn.BatchNorm1d(4), "drop": nn.Dropout(0.7), "plain": True},
    ),
    "layer norm by hand": (
        lambda s, x: s.b((lambda h: (h - h.mean(-1, True)) / (h.var(-1, False, True) + 1e-5).sqrt())(s.a(x))),
        *two(lambda h: functional.layer_norm(h, (4,))),
    ),
    "sliced": (sliced, *two(wrote(lambda h: (h[:, 0].zero_(), h[:, 1].copy_(h[:, 2]))))),
    "glu by chunk": (
        lambda s, x: s.b((lambda p: p[0] * sigmoid(p[1]))(s.a(x).chunk(2, -1))),
        *two(lambda h: functional.glu(h), b=lambda: linear(2, 3)),
    ),
    "glu": (lambda s, x: s.b(functional.glu(s.a(x))), *two(lambda h: functional.glu(h), b=lambda: linear(2, 3))),
    "view changed in place, then used": (whole_view, *two(relu)),
    "data changed in place": (through_data, *two(lambda h: 2 * h)),
    "data replaced": (replaced_data, *two(tanh)),
    "out": (written_out, *two(lambda h: h + 1)),
    "detached": (lambda s, x: s.b(tanh(s.a(x)).detach()), *two(tanh)),
    "max and sort": (
        lambda s, x: s.b(s.a(x).sort(-1)[0] + s.a.weight.sum() - s.a.weight.sum()),
        *two(lambda h: h.sort(-1)[0]),
    ),
    "scale by a parameter": (
        lambda s, x: s.b(relu(s.a(x)) * s.c.bias),
        lambda m, x: {"a": (m.a(x), relu(m.a(x)) * m.c.bias), "b": (m.b(relu(m.a(x)) * m.c.bias),) * 2},
        {"a": linear, "b": linear, "c": linear, "plain": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_chain_is_found_however_it_is_written(case: str) -> None:
    forward, expected, settings = PLAIN[case]
    check(forward, expected, **settings)


def test_layers_of_a_sequential_are_found() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3), nn.Softmax(-1)
    ).double()
    x = np.random.default_rng(0).standard_normal((4, 2, 3))
    network = network_of(model, x)
    found, rows = walked(network, x), torch.from_numpy(x)
    for name, start, end in (("1", 2, 4), ("4", 5, 6)):
        torch.testing.assert_close(found[name][0], model[:start](rows), rtol=1e-12, atol=0)
        torch.testing.assert_close(found[name][1], model[:end](rows), rtol=1e-12, atol=0)
    assert [(k.kind, k.width, k.post_range) for k in network.layers] == [
        ("Linear", 5, (-1.0, 1.0)),
        ("Linear", 3, (0.0, 1.0)),
    ]
    assert (network.output, network.plain, network.size, network.alone(0)) == ("softmax", True, 1, network)


def test_one_linear_is_a_network() -> None:
    model = nn.Linear(3, 2).double()
    network = network_of(model, np.ones((2, 3)))
    assert [(k.name, k.first, k.output) for k in network.layers] == [("linear", True, True)]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolutions_post_includes_norm_activation_and_pooling(inplace: bool) -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.pool(s.act(s.bn(s.a(x))))
        return s.c(s.act(s.b(h)).flatten(1).reshape(len(x), -1).view(len(x), 8))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = functional.max_pool2d(relu(m.bn(m.a(x))), 2)
        k = relu(m.b(h))
        return {"a": (m.a(x), h), "b": (m.b(h), k), "c": (m.c(k.flatten(1)),) * 2}

    modules: dict[str, Any] = {
        "a": nn.Conv2d(1, 3, 3), "b": nn.Conv2d(3, 2, 1), "c": linear(8, 3), "bn": nn.BatchNorm2d(3),
        "act": nn.ReLU(inplace=inplace), "pool": nn.MaxPool2d(2),
    }  # fmt: skip
    network = check(forward, expected, shape=(1, 6, 6), plain=True, **modules)
    assert [layer.kind for layer in network.layers] == ["Conv2d", "Conv2d", "Linear"]


def test_convolutions_of_every_kind_are_layers() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = functional.avg_pool1d(tanh(s.a(x)), 2)
        k = sigmoid(s.b(h)).unsqueeze(2).unsqueeze(3)
        return s.c(k).mean((2, 3, 4))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = functional.avg_pool1d(tanh(m.a(x)), 2)
        k = sigmoid(m.b(h))
        out = m.c(k[:, :, None, None])
        return {"a": (m.a(x), h), "b": (m.b(h), k), "c": (out, out.mean((2, 3, 4)))}

    modules: dict[str, Any] = {"a": nn.Conv1d(2, 3, 2), "b": nn.ConvTranspose1d(3, 2, 2), "c": nn.Conv3d(2, 4, 1)}
    network = check(forward, expected, shape=(2, 7), plain=True, **modules)
    assert [k.kind for k in network.layers] == ["Conv1d", "ConvTranspose1d", "Conv3d"]
    assert [k.post_range for k in network.layers] == [(-1.0, 1.0), (0.0, 1.0), None]


# Joins ---------------------------------------------------------------------------------------------------------------


def test_a_post_ends_before_a_residual_sum() -> None:
    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = tanh(m.a(x))
        k = relu(m.b(h))
        return {"a": (m.a(x), h), "b": (m.b(h), k), "c": (m.c(h + k),) * 2}

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = tanh(s.a(x))
        return s.c(h + relu(s.b(h)))

    check(forward, expected, a=linear, b=linear, c=linear)


def test_a_post_ends_before_an_in_place_residual_sum() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        y = s.b(functional.relu(s.a(x), inplace=True))
        y += x
        return s.c(functional.relu(y, inplace=True))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = relu(m.a(x))
        return {"a": (m.a(x), h), "b": (m.b(h), m.b(h)), "c": (m.c(relu(m.b(h) + x)),) * 2}

    check(forward, expected, a=linear, b=linear, c=linear)


def test_in_preactivation_blocks_the_summed_layers_have_bare_posts() -> None:
    """What is summed is the layer's bare output; norm and activation belong to the branch."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.a(x)
        for b, c, n in ((s.b1, s.c1, s.n1), (s.b2, s.c2, s.n2)):
            h = h + c(relu(b(relu(n(h)))))
        return s.d(h)

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h0 = m.a(x)
        k1 = m.b1(relu(m.n1(h0)))
        c1 = m.c1(relu(k1))
        k2 = m.b2(relu(m.n2(h0 + c1)))
        c2 = m.c2(relu(k2))
        return {
            "a": (h0, h0), "b1": (k1, relu(k1)), "c1": (c1, c1), "b2": (k2, relu(k2)), "c2": (c2, c2),
            "d": (m.d(h0 + c1 + c2),) * 2,
        }  # fmt: skip

    modules: dict[str, Any] = dict.fromkeys(("a", "b1", "c1", "b2", "c2", "d"), linear)
    check(forward, expected, n1=nn.BatchNorm1d(4), n2=nn.BatchNorm1d(4), **modules)


def test_the_last_post_is_the_output_even_after_a_join() -> None:
    check(
        lambda s, x: tanh(x + s.b(relu(s.a(x)))),
        lambda m, x: {
            "a": (m.a(x), relu(m.a(x))),
            "b": (m.b(relu(m.a(x))), tanh(x + m.b(relu(m.a(x))))),
        },
        a=linear, b=linear, output="other", plain=True,
    )  # fmt: skip


def test_posts_around_squeeze_and_excite_end_where_paths_part() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = functional.silu(s.bn(s.a(x)))
        return s.d((h * sigmoid(s.c(relu(s.b(h.mean((2, 3), keepdim=True)))))).flatten(1))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = functional.silu(m.bn(m.a(x)))
        k = m.b(h.mean((2, 3), keepdim=True))
        g = m.c(relu(k))
        out = m.d((h * sigmoid(g)).flatten(1))
        return {"a": (m.a(x), h), "b": (k, relu(k)), "c": (g, sigmoid(g)), "d": (out, out)}

    modules: dict[str, Any] = {
        "a": nn.Conv2d(1, 3, 2),
        "b": nn.Conv2d(3, 2, 1),
        "c": nn.Conv2d(2, 3, 1),
        "d": linear(12, 2),
    }
    check(forward, expected, shape=(1, 3, 3), bn=nn.BatchNorm2d(3), **modules)


def test_two_heads_of_one_trunk_are_two_output_layers() -> None:
    """The first is the output, and what it is named after; the last called is a head of its own."""

    def forward(s: Net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = tanh(s.trunk(x))
        return s.mu(h), s.logvar(h).clamp(-1, 1)

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = tanh(m.trunk(x))
        return {"trunk": (m.trunk(x), h), "mu": (m.mu(h),) * 2, "logvar": (m.logvar(h), m.logvar(h).clamp(-1, 1))}

    check(forward, expected, trunk=linear, mu=linear, logvar=linear, outputs={"mu", "logvar"})


def test_posts_end_before_branches_are_concatenated() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.c(torch.cat([relu(s.a(x)), tanh(s.b(x)), x], 1))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h, k = relu(m.a(x)), tanh(m.b(x))
        return {"a": (m.a(x), h), "b": (m.b(x), k), "c": (m.c(torch.cat([h, k, x], 1)),) * 2}

    check(forward, expected, a=linear, b=linear, c=lambda: linear(12, 3), first={"a", "b"})


def test_branches_of_one_layer_that_join_again_are_part_of_its_post() -> None:
    """Both are computed from the layer alone, and all that is used passes their concatenation."""
    check(
        lambda s, x: s.b((lambda h: torch.cat([relu(h), -relu(-h)], 1))(s.a(x))),
        lambda m, x: {
            "a": (m.a(x), torch.cat([relu(m.a(x)), -relu(-m.a(x))], 1)),
            "b": (m.b(torch.cat([relu(m.a(x)), -relu(-m.a(x))], 1)),) * 2,
        },
        a=linear, b=lambda: linear(8, 3), plain=True,
    )  # fmt: skip


def test_a_post_ends_where_paths_part() -> None:
    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = m.a(x)
        return {"a": (h, h), "b": (m.b(relu(h)), m.b(relu(h))), "c": (m.c(m.b(relu(h)) + tanh(h)),) * 2}

    check(lambda s, x: (lambda h: s.c(s.b(relu(h)) + tanh(h)))(s.a(x)), expected, a=linear, b=linear, c=linear)


def test_a_post_ends_at_a_returned_feature() -> None:
    """The feature list holds the activation before dropout and pooling: nothing after it is on every way."""
    check(
        lambda s, x: (lambda h: (s.b(functional.avg_pool1d(h, 2)), [h]))(relu(s.a(x))),
        lambda m, x: {"a": (m.a(x), relu(m.a(x))), "b": (m.b(functional.avg_pool1d(relu(m.a(x)), 2)),) * 2},
        a=linear, b=lambda: linear(2, 2),
    )  # fmt: skip


def test_unused_branches_are_ignored() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        s.unused(tanh(h))
        (h * 2).exp()
        return s.b(h)

    network = check(
        forward,
        lambda m, x: {
            "a": (m.a(x), relu(m.a(x))),
            "unused": (m.unused(tanh(relu(m.a(x)))),) * 2,
            "b": (m.b(relu(m.a(x))),) * 2,
        },
        a=linear, b=linear, unused=linear, never=linear, outputs={"unused", "b"},
    )  # fmt: skip
    assert network.trace.unmeasured == (("never", "it is never called on the probe"),)
    assert network.trace.noisy == (0,)


def test_detached_branches_count_as_paths() -> None:
    """z + (q - z).detach(): a detached way is a way."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        z = s.a(x)
        return s.b(z + (torch.round(z) - z).detach())

    expected, settings = two(lambda z: z + (torch.round(z) - z))
    check(forward, expected, **settings)


# Attention, recurrence, inner layers ---------------------------------------------------------------------------------


def test_projections_of_attention_by_hand_are_layers() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = s.q(x), s.k(x), s.v(x)
        weight = torch.softmax(q @ k.mT / 2.0, -1)
        return s.o((weight @ v).transpose(1, 2).reshape(len(x), -1))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        out = m.o((torch.softmax(m.q(x) @ m.k(x).mT / 2.0, -1) @ m.v(x)).transpose(1, 2).flatten(1))
        # The transposed keys are computed from k alone.
        return {"q": (m.q(x),) * 2, "k": (m.k(x), m.k(x).mT), "v": (m.v(x),) * 2, "o": (out, out)}

    network = check(
        forward, expected, shape=(3, 4), q=linear, k=linear, v=linear, o=lambda: linear(12, 2), first=set("qkv")
    )
    assert [layer.width for layer in network.layers] == [12, 12, 12, 2]


def test_the_post_of_a_joint_projection_is_the_attended_value() -> None:
    """q, k and v of one Linear are computed from it alone, up to the attended values."""

    def attended(h: torch.Tensor) -> torch.Tensor:
        q, k, v = h.view(len(h), 3, 3, 4).unbind(2)
        return functional.scaled_dot_product_attention(q, k, v)

    check(
        lambda s, x: s.o(attended(s.qkv(x)).flatten(1)),
        lambda m, x: {"qkv": (m.qkv(x), attended(m.qkv(x))), "o": (m.o(attended(m.qkv(x)).flatten(1)),) * 2},
        shape=(3, 4), qkv=lambda: linear(4, 12), o=lambda: linear(12, 2), plain=True,
    )  # fmt: skip


def test_all_linear_layers_of_a_transformer_layer_are_found() -> None:
    """In eval mode torch would take a way of its own through one fused operation, and no layer would be called."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.head(s.block(tanh(s.embed(x))).mean(1))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = tanh(m.embed(x))
        b = m.block
        y = b.norm1(h + b.self_attn(h, h, h, need_weights=False)[0])
        k = b.linear1(y)
        z = b.linear2(relu(k))
        out = m.head(b.norm2(y + z).mean(1))
        return {
            "embed": (m.embed(x), h), "block.linear1": (k, relu(k)), "block.linear2": (z, z), "head": (out, out),
        }  # fmt: skip

    block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    network = check(forward, expected, shape=(3, 4), embed=linear, block=block, head=linear)
    assert dict(network.trace.unmeasured) == {
        "block.self_attn.in_proj_weight": "its weights are used by multi_head_attention_forward without a layer being "
        "called",
        "block.self_attn.out_proj": "its weights are used by multi_head_attention_forward without the layer being "
        "called",
    }  # fmt: skip


def test_attention_as_a_module_ends_a_post() -> None:
    """Its projections are no called layers: it ends a region as a layer does.

    It puts words before rows at once, and what is measured is measured row by row: the post stays where rows are first.
    """

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        return s.b(tanh(s.attention(h, h, h)[0]).flatten(1))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = relu(m.a(x))
        out = m.b(tanh(m.attention(h, h, h)[0]).flatten(1))
        return {"a": (m.a(x), h), "b": (out, out)}

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    check(forward, expected, shape=(3, 4), a=linear, b=lambda: linear(12, 2), attention=attention)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (lambda h, c: h @ c, "matmul"),
        (torch.mm, "mm"),
        (lambda h, c: torch.tensordot(h, c, 1), "tensordot"),
        (lambda h, c: torch.addmm(torch.zeros(4, dtype=h.dtype), h, c), "addmm"),
    ],
)
def test_a_product_with_a_bare_parameter_is_reported(product: Callable[..., Any], name: str) -> None:
    model, x = made(lambda s, x: s.b(tanh(product(relu(s.a(x)), s.c))), a=linear, b=linear)
    model.c = nn.Parameter(torch.eye(4, dtype=torch.float64) * 2)
    network = network_of(model, x)
    rows = torch.from_numpy(x)
    torch.testing.assert_close(walked(network, x)["a"][1], relu(model.a(rows)), rtol=1e-12, atol=0)
    assert network.trace.unmeasured == (("c", f"its weights are used by {name} without a layer being called"),)


def test_layers_of_recurrent_networks_are_found() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(2):
            h = tanh(s.w(x[:, t]) + s.u(h))
        return s.out(h)

    model, x = made(forward, (2, 4), w=linear, u=linear, out=linear)
    network = network_of(model, x)
    # The first u is fed zeros, so it does not depend on the rows.
    assert [layer.name for layer in network.layers] == ["w", "w#2", "u", "out"]
    assert [layer.first for layer in network.layers] == [True, True, False, False]

    def by_module(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.out(relu(s.rnn(tanh(s.w(x)))[0][:, -1]))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = tanh(m.w(x))
        return {"w": (m.w(x), h), "out": (m.out(relu(m.rnn(h)[0][:, -1])),) * 2}

    for kind in (nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")):
        check(by_module, expected, shape=(2, 4), w=linear, rnn=kind(4, 4, batch_first=True), out=linear)


def test_a_layer_that_does_not_depend_on_the_rows_is_reported() -> None:
    """Weights made by a layer from a constant (position biases, hypernetworks) make no layer of the probe's rows."""
    model, x = made(
        lambda s, x: s.b(relu(s.a(x)) + s.bias(torch.ones(1, 4, dtype=x.dtype))), a=linear, b=linear, bias=linear
    )
    network = network_of(model, x)
    assert [layer.name for layer in network.layers] == ["a", "b"]
    assert network.trace.unmeasured == (("bias", "its output does not depend on the probe's rows"),)
    bias = model.bias(torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(
        walked(network, x)["a"][1], relu(model.a(torch.from_numpy(x))) + bias, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("shared", ["called twice", "registered twice", "in a loop"])
def test_a_layer_called_twice_is_two_layers(shared: str) -> None:
    layer = linear()
    modules: dict[str, Any] = {"a": layer} | ({"b": layer} if shared == "registered twice" else {}) | {"out": linear}

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        if shared == "in a loop":
            for _ in range(2):
                x = tanh(s.a(x))
            return s.out(x)
        return s.out(tanh((s.b if shared == "registered twice" else s.a)(tanh(s.a(x)))))

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = tanh(m.a(x))
        k = tanh(m.a(h))
        return {"a": (m.a(x), h), "a#2": (m.a(h), k), "out": (m.out(k),) * 2}

    check(forward, expected, plain=True, **modules)


class LowRank(nn.Linear):
    """As adapters are written: a Linear with layers of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 1), nn.Linear(1, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(self.down(x))


def test_layers_within_a_layer_are_part_of_it() -> None:
    """Unless they are called outside it too."""
    network = check(
        lambda s, x: s.b(relu(s.a(x))),
        lambda m, x: {"a": (m.a(x), relu(m.a(x))), "b": (m.b(relu(m.a(x))),) * 2},
        a=LowRank(4, 4), b=LowRank(4, 3), plain=True,
    )  # fmt: skip
    assert [k.kind for k in network.layers] == ["LowRank", "LowRank"]
    inside = "it is called inside another layer, and counts as part of that"
    assert network.trace.unmeasured == tuple((f"{a}.{b}", inside) for a in "ab" for b in ("down", "up"))

    def outside(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = m.a.down(x)
        return {"a.down": (h, h), "a": (m.a(x), relu(m.a(x))), "b": (m.b(relu(m.a(x)) + h),) * 2}

    check(
        lambda s, x: (lambda h: s.b(relu(s.a(x)) + h))(s.a.down(x)), outside,
        a=LowRank(4, 4), b=linear, first={"a.down", "a"},
    )  # fmt: skip


def test_gradient_checkpointing_changes_nothing() -> None:
    expected, settings = two(tanh)
    check(lambda s, x: s.b(checkpoint(lambda v: tanh(s.a(v)), x, use_reentrant=False)), expected, **settings)


# Writes into other tensors -------------------------------------------------------------------------------------------


def joined(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    h, k = m.a(x), m.b(x)
    return {"a": (h, h), "b": (k, k), "c": (m.c(torch.cat([h, k], 1)),) * 2}


def by_slices(s: Net, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), 8, dtype=x.dtype)
    out[:, :4] = s.a(x)
    out[:, 4:] = s.b(x)
    return s.c(out)


def by_copies(s: Net, x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(len(x), 8)
    out[:, :4].copy_(s.a(x))
    out[:, 4:].copy_(s.b(x))
    return s.c(out * 1)


def by_sums(s: Net, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 8, dtype=x.dtype)
    out[:, :4] += s.a(x)
    out[:, 4:] += s.b(x)
    return s.c(out)


@pytest.mark.parametrize("forward", [by_slices, by_copies, by_sums])
def test_writing_into_a_buffer_is_a_join(forward: Callable[..., Any]) -> None:
    """What else the buffer holds, be it memory nobody wrote to, is not computed from the layer."""
    check(forward, joined, a=linear, b=linear, c=lambda: linear(8, 3), first={"a", "b"})


def stale_sibling(s: Net, x: torch.Tensor) -> Any:
    out = torch.zeros(len(x), 4, dtype=x.dtype)
    before = out.view(-1)
    out[:, :] = s.a(x)
    return s.b(relu(s.a(x)) + before.view(-1, 4))


def through_a_view(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    h[:, :2].relu_()
    return s.b(h)


def view_of_a_view(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    part = h.view(-1, 2, 2)[:, 0]
    part.mul_(2)
    return s.b(h)


@pytest.mark.parametrize("forward", [stale_sibling, through_a_view, view_of_a_view])
def test_changes_through_a_view_are_refused(forward: Callable[..., Any]) -> None:
    """The post is no operation's output: right or refused, never silently wrong."""
    model, x = made(forward, a=linear, b=linear)
    with pytest.raises(InputError, match="view"):
        network_of(model, x)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_post_ends_where_an_older_view_of_its_tensor_starts(in_place: bool) -> None:
    """The view is used after the change, and beside the tensor: the post is where both start."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.a(x)
        older = h.view(-1, 2, 2)
        h = h.relu_() if in_place else relu(h)
        return s.b(h + older.flatten(1))

    model, x = made(forward, a=linear, b=linear)
    network = network_of(model, x)
    rows = torch.from_numpy(x)
    h = model.a(rows)
    wanted = 2 * relu(h) if in_place else h + relu(h)
    torch.testing.assert_close(walked(network, x)["a"][1], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(walked(network, x)["b"][1], model.b(wanted), rtol=1e-12, atol=0)
    doubled = noisy_posts(network, x, 1, 0.5, torch.ones(5, 1, 4))
    torch.testing.assert_close(doubled[:, 0], model.b(wanted + 0.5), rtol=1e-12, atol=1e-12)


def test_the_probe_survives_a_model_that_changes_its_input() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return s.b(relu(s.a(x)))

    model, x = made(forward, a=linear, b=linear)
    before = x.copy()
    network = network_of(model, x)
    found = walked(network, x)
    network.jacobians(x, lambda *_: None, JacobianSpec("pre"))
    np.testing.assert_array_equal(x, before)
    torch.testing.assert_close(found["a"][0], model.a(2 * torch.from_numpy(x)), rtol=1e-12, atol=0)


# What comes out ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    features: torch.Tensor
    logits: torch.Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has it: a mapping and a dataclass in one."""


Pair = namedtuple("Pair", ["first", "second"])

RETURNED = {
    "tuple": lambda h, y: (y, h),
    "list": lambda h, y: [y, h],
    "dict": lambda h, y: {"features": h, "logits": y},
    "model output": lambda h, y: ModelOutput(features=h, logits=y),
    "dataclass": Outcome,
    "nested": lambda _, y: {"out": (None, [y, "text", 3])},
    "named tuple": lambda h, y: Pair(y, h),
}


@pytest.mark.parametrize("wrap", RETURNED.values(), ids=RETURNED)
def test_outputs_in_containers_are_found(wrap: Callable[..., Any] | type[Any]) -> None:
    expected, settings = two(tanh)
    check(lambda s, x: (lambda h: wrap(h, s.b(h)))(tanh(s.a(x))), expected, **settings)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda _: None, "NoneType without a tensor"),
        (lambda _: "text", "str without a tensor"),
        (lambda y: SimpleNamespace(out=y), "SimpleNamespace without a tensor"),
        (lambda _: torch.zeros(5, 4), "does not depend on its input"),
        (lambda y: y.sum(), "shape"),
    ],
)
def test_results_without_an_output_are_refused(wrap: Callable[..., Any], message: str) -> None:
    model, x = made(lambda s, x: wrap(s.a(x)), a=linear)
    with pytest.raises(InputError, match=message):
        network_of(model, x)


OUTPUTS: dict[str, Any] = {
    "identity": [lambda y: y, lambda y: y.flatten(1), lambda y: functional.dropout(y, training=False), nn.Identity()],
    "softmax": [lambda y: functional.softmax(y, -1), lambda y: y.softmax(1), lambda y: torch.softmax(y, dim=1)],
    "log_softmax": [lambda y: functional.log_softmax(y, dim=-1), nn.LogSoftmax(1)],
    "sigmoid": [sigmoid, nn.Sigmoid(), lambda y: y.sigmoid_()],
    "tanh": [nn.Tanh(), lambda y: torch.tanh(y, out=y)],
    "relu": [nn.ReLU(), nn.ReLU(inplace=True)],
    "leaky_relu": [nn.LeakyReLU(), lambda y: functional.leaky_relu(y, 0.01)],
    "gelu": [nn.GELU(), functional.gelu],
    "silu": [nn.SiLU()],
    "softplus": [nn.Softplus(), functional.softplus],
    "elu": [nn.ELU(), lambda y: functional.elu(y, 1.0)],
    "other": [
        nn.GELU(approximate="tanh"), nn.LeakyReLU(0.2), nn.Softplus(2.0), nn.ELU(0.5), lambda y: y / 2, lambda y: y + y,
        lambda y: tanh(tanh(y)), lambda y: y[:, :3], nn.LayerNorm(4), lambda y: torch.hardshrink(y),
        lambda y: y.view(-1, 2, 2).softmax(1), lambda y: torch.softmax(y.view(-1, 2, 2), dim=1), nn.Softmin(-1),
        lambda y: y.view(-1, 2, 2).softmax(-1), lambda y: y.softmax(1).view(-1, 2, 2).mT.flatten(1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_is_named_after_its_activation(name: str) -> None:
    for f in OUTPUTS[name]:
        model, x = made(lambda s, x, f=f: f(s.b(relu(s.a(x)))), a=linear, b=linear)
        if isinstance(f, nn.Module):
            model.last = f
        assert network_of(model, x).output == name, f


@pytest.mark.parametrize(
    ("f", "span"),
    [
        (nn.Tanh(), (-1.0, 1.0)),
        (lambda h: functional.avg_pool1d(sigmoid(h), 2).repeat(1, 2)[:, :4], None),
        (lambda h: functional.max_pool1d(sigmoid(h), 1), (0.0, 1.0)),
        (lambda h: functional.dropout(tanh(h), training=False).view(-1, 2, 2).flatten(1), (-1.0, 1.0)),
        (lambda h: functional.softmax(h, -1), (0.0, 1.0)),
        (lambda h: tanh(h) * 2, None),
        (lambda h: tanh(h) - tanh(2 * h), None),
        (relu, None),
        (lambda h: tanh(relu(h) * sigmoid(h)), (-1.0, 1.0)),
    ],
)
def test_a_post_has_the_range_of_its_activation(
    f: Callable[..., Any] | nn.Tanh, span: tuple[float, float] | None
) -> None:
    model, x = made(lambda s, x: s.b(f(s.a(x))), a=linear, b=linear)
    assert network_of(model, x).layers[0].post_range == span


# Modules asked for by name -------------------------------------------------------------------------------------------


def blocks() -> Any:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), act=nn.Tanh(), block=block, head=nn.Linear(4, 2))).double()


def test_named_modules_come_last_and_change_nothing() -> None:
    model, x = blocks(), np.random.default_rng(0).standard_normal((5, 4))
    bare, network = network_of(model, x), network_of(model, x, ("block", "block.1", "act"))
    assert network.layers[:3] == bare.layers
    assert [(k.name, k.kind, k.noisy, k.first, k.output) for k in network.layers[3:]] == [
        ("act", "Tanh", False, True, False),
        ("block.1", "BatchNorm1d", False, False, False),
        ("block", "Sequential", False, False, False),
    ]
    assert network.trace.noisy == bare.trace.noisy == (0, 1)
    assert (network.output, network.plain) == (bare.output, bare.plain)
    found, rows = walked(network, x), torch.from_numpy(x)
    stem = tanh(model.stem(rows))
    norm = model.block[:2](stem)
    for name, pre, post in (("act", stem, stem), ("block.1", norm, relu(norm)), ("block", relu(norm), relu(norm))):
        torch.testing.assert_close(found[name][0], pre, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[name][1], post, rtol=1e-12, atol=1e-14)


def test_a_named_module_at_the_post_of_a_layer_is_before_that_layers_noise() -> None:
    """act's post is stem's post: T there is S plus one noise, not two."""
    model, x = blocks(), np.random.default_rng(0).standard_normal((5, 4))
    network = network_of(model, x, ("act",))
    own, asked = (noisy_posts(network, x, k, 0.3, torch.empty(5, 3, 0)) for k in (0, 3))
    assert torch.equal(own, asked)
    torch.testing.assert_close(own[:, 2], tanh(model.stem(torch.from_numpy(x))), rtol=1e-12, atol=1e-14)


def test_a_named_module_that_passes_x_on_is_refused() -> None:
    model, x = made(
        lambda s, x: s.b(s.after(s.a(s.before(x)))), a=linear, b=linear, before=nn.Identity(), after=nn.Identity()
    )
    assert [k.name for k in network_of(model, x, ("after",)).layers] == ["a", "b", "after"]
    with pytest.raises(InputError, match="'before' passes the probe's rows on as they are"):
        network_of(model, x, ("before",))


def test_a_named_module_called_twice_is_two_layers() -> None:
    model, x = made(lambda s, x: s.b(s.act(s.a(s.act(x)))), a=linear, b=linear, act=nn.Tanh())
    network = network_of(model, x, ("act",))
    assert [k.name for k in network.layers] == ["a", "b", "act", "act#2"]
    torch.testing.assert_close(walked(network, x)["act"][0], tanh(torch.from_numpy(x)), rtol=1e-12, atol=0)


# Passes that differ --------------------------------------------------------------------------------------------------


def on_the_sign(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.b(relu(s.a(x))) if x.sum() > 0 else s.b(tanh(s.a(x)))


def choose_modes(s: Net, x: torch.Tensor) -> torch.Tensor:
    """The same operations with other weights: a mixture of experts."""
    return s.b(relu((s.a if x.sum() > 0 else s.c)(x)))


def early_exit(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = relu(s.a(x))
    return h if x.sum() > 0 else s.b(h)


def later_exit(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = relu(s.a(x))
    return h if x.sum() <= 0 else s.b(h)


def one_more(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.b(relu(s.a(x)))
    return h if x.sum() > 0 else tanh(h)


@pytest.mark.parametrize("forward", [on_the_sign, choose_modes, early_exit, later_exit, one_more])
def test_a_path_that_depends_on_the_data_is_refused(forward: Callable[..., Any]) -> None:
    model, _ = made(forward, a=linear, b=linear, c=linear)
    x = np.ones((3, 4))
    network = network_of(model, x)
    last = len(network.layers) - 1
    with pytest.raises(InputError, match="another way"):
        network.walk(-x, lambda *_: None)
    if forward not in (early_exit, one_more):  # these differ after the last layer known
        with pytest.raises(InputError, match="another way"):
            noisy_posts(network, -x, last, 0.1, torch.zeros(3, 1, 4 * last))
        with pytest.raises(InputError, match="another way"):
            network.jacobians(-x, lambda *_: None, JacobianSpec("post"))


def test_the_message_names_the_first_step_that_differs() -> None:
    model, _ = made(later_exit, a=linear, b=linear)
    network = network_of(model, np.ones((3, 4)))
    with pytest.raises(InputError, match=r"step 5 is its end, and was linear b\.weight b\.bias"):
        network.walk(-np.ones((3, 4)), lambda *_: None)


def test_a_loop_over_rows_is_refused() -> None:
    model, x = made(lambda s, x: torch.stack([s.a(row) for row in x]), a=linear)
    with pytest.raises(InputError, match="another way"):
        network_of(model, x)


def test_sequence_first_tensors_are_refused() -> None:
    """Sequences first, as attention had it for long: right for one row, silently another layout for many."""
    for rows in (1, 3, 5):
        model, x = made(lambda s, x: s.b(relu(s.a(x.transpose(0, 1)))).mean(0), (3, 4), rows, a=linear, b=linear)
        with pytest.raises(InputError, match=r"'a' .*batch_first"):
            network_of(model, x)


def test_parts_of_rows_may_be_the_first_dimension() -> None:
    """Patches and frames are folded into the batch: a row's are all its own."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x.flatten(0, 1)))
        return s.b(h).view(len(x), 3, 2).mean(1)

    def expected(m: Net, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        h = m.a(x)
        return {"a": (h, relu(h)), "b": (m.b(relu(h)), m.b(relu(h)).mean(1))}

    network = check(forward, expected, shape=(3, 4), plain=True, a=linear, b=lambda: linear(4, 2))
    x = np.random.default_rng(1).standard_normal((2, 3, 4))
    z = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 2, 12)))
    m, h = network.model, relu(network.model.a(torch.from_numpy(x))) + 0.5 * z[:, 1].view(2, 3, 4)
    found = noisy_posts(network, x, 1, 0.5, z)
    torch.testing.assert_close(found[:, 1], m.b(h).mean(1), rtol=1e-12, atol=1e-14)


def test_a_single_row_that_is_squeezed_is_measured() -> None:
    model, x = made(lambda s, x: s.b(relu(s.a(x))).squeeze(), a=linear, b=lambda: linear(4, 1))
    network = network_of(model, x)
    whole = walked(network, x)["b"][1]
    assert [tuple(walked(network, x[:n])["b"][1].shape) for n in (1, 2)] == [(1, 1), (2, 1)]
    torch.testing.assert_close(walked(network, x[:1])["b"][1], whole[:1], rtol=1e-12, atol=0)


def test_a_pass_keeps_no_tensor_alive() -> None:
    """Flat memory: a Replay pass keeps no tensor alive that the model has dropped."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        for _ in range(30):
            x = tanh(x + 1)
        return s.a(x)

    model, x = made(forward, a=linear)
    model.double()
    trace = record(model, torch.from_numpy(x))
    rows = torch.from_numpy(x)
    with torch.no_grad(), Replay(trace.operations, model, rows, {}) as mode:
        model(rows)
    assert len(trace.operations) == 61
    assert len(mode.activity) <= 3


def test_recording_leaves_no_hook() -> None:
    model, x = made(lambda s, x: s.b(relu(s.a(x))), a=linear, b=linear)
    network_of(model, x, ("function",))
    model.function = lambda s, x: s.a(x).nothing
    with pytest.raises(InputError, match="AttributeError"):
        network_of(model, x)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_model_without_layers_is_refused() -> None:
    model, x = made(lambda _, x: tanh(x))
    with pytest.raises(InputError, match="no Linear or Conv"):
        network_of(model, x)
