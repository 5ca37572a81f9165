"""Any nn.Module as a network: Jacobians against autograd, noise against its law, weights, and models that misbehave."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.nets import Net, noisy_posts
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibscan.core.network import JacobianSpec
from ibscan.errors import InputError
from ibscan.networks import hooked
from ibscan.networks.admission import traced_network
from ibscan.networks.jacobians import sweeps as sweeps_module
from ibscan.networks.jacobians.derivatives import Outputs
from ibscan.networks.loading import built, loaded
from ibscan.networks.module import Module

relu, tanh = torch.relu, torch.tanh
CPU = torch.device("cpu")


def network_of(model: Any, x: np.ndarray, extra: tuple[str, ...] = (), dtype: torch.dtype = torch.float64) -> Module:
    return traced_network(model.eval().requires_grad_(False).to(dtype), x, extra, device=CPU, dtype=dtype)


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def walked(network: Any, x: np.ndarray) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    found: dict[Any, Any] = {}
    network.walk(x, lambda layer, pre, post, rows: found.setdefault(layer, []).append((rows.start, pre, post)))
    return {k: (torch.cat([p[1] for p in v], 1)[0], torch.cat([p[2] for p in v], 1)[0]) for k, v in found.items()}


def jacobians(network: Any, x: np.ndarray, at: Any) -> dict[int, torch.Tensor]:
    """Return {layer: J} of all rows, each visited once, in order."""
    found: dict[Any, Any] = {}

    def visit(layer: int, factor: torch.Tensor, _: object, rows: slice) -> None:
        assert factor.dtype == torch.float64
        assert factor.shape[:2] == (1, len(range(len(x))[rows]))
        assert factor.shape[3] == x[0].size
        found.setdefault(layer, []).append((rows.start, factor[0]))

    network.jacobians(x, visit, JacobianSpec(at))
    for parts in found.values():
        assert [start for start, _ in parts] == [sum(len(p) for _, p in parts[:k]) for k in range(len(parts))]
    return {layer: torch.cat([p for _, p in parts]) for layer, parts in found.items()}


def assert_derivative(network: Any, values: Callable[..., Any], x: np.ndarray) -> None:
    """`values(row)` is [(pre, post), ...] of one row, written without in-place; rtol 1e-10 of the largest entry."""

    def expected(layer: int, k: int) -> torch.Tensor:
        rows = torch.from_numpy(x.copy())
        with sdpa_kernel(SDPBackend.MATH):  # as what is held against it; the fused one warns under vmap
            jacobian = torch.func.jacrev(lambda row: values(row.unsqueeze(0))[layer][k].flatten())
            return torch.stack([jacobian(row).flatten(1) for row in rows])

    for k, at in enumerate(("pre", "post")):
        found = jacobians(network, x, at)
        assert sorted(found) == list(range(len(network.layers)))
        for layer, jacobian in found.items():
            wanted = expected(layer, k)
            assert jacobian.shape == wanted.shape
            assert (jacobian - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def convolutional() -> tuple[Net, Callable[..., Any], tuple[int, int, int]]:
    torch.manual_seed(1)
    bn = nn.BatchNorm2d(3)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    model = Net(
        lambda s, x: s.c(functional.max_pool2d(functional.relu(s.bn(s.a(x)), inplace=True), 2).flatten(1)),
        a=nn.Conv2d(2, 3, 2), bn=bn, c=nn.Linear(12, 3),
    )  # fmt: skip

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = model.a(x)
        h = functional.max_pool2d(relu(model.bn(p)), 2)
        return [(p, h), (model.c(h.flatten(1)),) * 2]

    return model, values, (2, 5, 5)


def residual() -> tuple[Net, Callable[..., Any], tuple[int]]:
    torch.manual_seed(2)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = s.a(x)
        y = s.b(relu(s.n(h)))
        y += h
        return functional.softmax(s.c(tanh(y)), -1)

    model = Net(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 3), n=nn.LayerNorm(5))

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        h = model.a(x)
        y = model.b(relu(model.n(h)))
        p = model.c(tanh(h + y))
        return [(h, h), (y, y), (p, functional.softmax(p, -1))]

    return model, values, (4,)


def attention() -> tuple[Net, Callable[..., Any], tuple[int, int]]:
    torch.manual_seed(3)
    block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.3, activation="gelu", norm_first=True)
    model = Net(lambda s, x: s.head(s.block(tanh(s.embed(x))).mean(1)), embed=nn.Linear(3, 4), block=block,
                head=nn.Linear(4, 2))  # fmt: skip

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = model.embed(x)
        h = tanh(p)
        y = h + block.self_attn(*[block.norm1(h)] * 3, need_weights=False)[0]
        q = block.linear1(block.norm2(y))
        r = block.linear2(functional.gelu(q))
        return [(p, h), (q, functional.gelu(q)), (r, r), (model.head((y + r).mean(1)),) * 2]

    return model, values, (3, 3)


def shared() -> tuple[Net, Callable[..., Any], tuple[int]]:
    torch.manual_seed(4)
    model = Net(lambda s, x: s.b(tanh(s.a(tanh(s.a(x))))), a=nn.Linear(4, 4), b=nn.Linear(4, 3))

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = model.a(x)
        q = model.a(tanh(p))
        return [(p, tanh(p)), (q, tanh(q)), (model.b(tanh(q)),) * 2]

    return model, values, (4,)


def buffered() -> tuple[Net, Callable[..., Any], tuple[int]]:
    """In-place writes into a tensor that carries no direction of the input."""
    torch.manual_seed(5)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(len(x), 6, dtype=x.dtype)
        h[:, :3] = tanh(s.a(x))
        h[:, 3:] += s.b(x)
        h[:, 0] = 0
        return s.c(h)

    model = Net(forward, a=nn.Linear(4, 3), b=nn.Linear(4, 3), c=nn.Linear(6, 2))

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p, q = model.a(x), model.b(x)
        h = torch.cat([0 * p[:, :1], tanh(p)[:, 1:], q], 1)
        return [(p, tanh(p)), (q, q), (model.c(h),) * 2]

    return model, values, (4,)


def recurrent() -> tuple[Net, Callable[..., Any], tuple[int, int]]:
    torch.manual_seed(6)
    model = Net(lambda s, x: s.b(s.rnn(tanh(s.a(x)))[0][:, -1]), a=nn.Linear(3, 3), b=nn.Linear(4, 2),
                rnn=nn.LSTM(3, 4, batch_first=True))  # fmt: skip

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        p = model.a(x)
        return [(p, tanh(p)), (model.b(model.rnn(tanh(p))[0][:, -1]),) * 2]

    return model, values, (3, 3)


NETS = [convolutional, residual, attention, shared, buffered, recurrent]


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_jacobians_are_those_of_autograd(net: Callable[..., Any]) -> None:
    model, values, shape = net()
    x = rows_of(3, *shape)
    network = network_of(model, x)
    assert_derivative(network, values, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "budget"), [(shared, 1), (recurrent, 1), (shared, 60), (residual, 200), (convolutional, 2000)]
)
def test_groups_of_layers_and_blocks_of_rows_change_no_jacobian(
    net: Callable[..., Any], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, shape = net()
    x = rows_of(7, *shape)
    network = network_of(model, x)
    whole = {at: jacobians(network, x, at) for at in ("pre", "post")}
    for constant in ("BLOCK_BUDGET", "ROW_BUDGET"):
        monkeypatch.setattr(sweeps_module, constant, {"cpu": budget, "cuda": budget})
    monkeypatch.setattr(sweeps_module, "TANGENTS", 3)
    visits = []
    network.jacobians(x, lambda layer, _, __, rows: visits.append((layer, rows.start)), JacobianSpec("post"))
    assert len(visits) > len(network.layers)
    if budget == 1:
        assert visits == [(layer, row) for layer in range(len(network.layers)) for row in range(7)]
    for at, expected in whole.items():
        for layer, jacobian in jacobians(network, x, at).items():
            # Of a layer too wide for the budget it is a triangle with the same J^T J.
            torch.testing.assert_close(
                jacobian.mT @ jacobian, expected[layer].mT @ expected[layer], rtol=1e-11, atol=1e-13
            )


def test_named_modules_have_jacobians_too() -> None:
    model, values, shape = residual()
    x = rows_of(4, *shape)
    found = jacobians(network_of(model, x, ("n",)), x, "pre")
    rows = torch.from_numpy(x)
    expected = torch.stack([torch.func.jacrev(lambda r: model.n(model.a(r)))(row) for row in rows])
    torch.testing.assert_close(found[3], expected, rtol=1e-10, atol=1e-12)
    assert values(rows)[0][0].shape == (4, 5)


def no_forward_rule(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.b(torch.cdist(s.a(x)[:, None], s.a.weight[None]).squeeze(1))


def no_batching_rule(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = s.a(x)
    return s.b(tanh(h) + functional.grid_sample(h.view(-1, 1, 2, 2), tanh(h).view(-1, 2, 2, 1).expand(-1, 2, 2, 2),
                                                align_corners=False).flatten(1))  # fmt: skip


@pytest.mark.parametrize("forward", [no_forward_rule, no_batching_rule])
@pytest.mark.parametrize("budget", [1, 2**22])
def test_operations_without_forward_mode_have_jacobians(
    forward: Callable[..., Any], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against central differences, step 1e-5: rounding and truncation near 1e-10; torch's vmap of cdist is wrong."""
    torch.manual_seed(0)
    model, x = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3)), rows_of(5, 4)
    network = network_of(model, x)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(model, (torch.from_numpy(x),), (torch.from_numpy(x),))
    monkeypatch.setattr(hooked, "ACTIVATION_BUDGET", budget)
    rows, h = torch.from_numpy(x), 1e-5
    steps = h * torch.eye(4, dtype=torch.float64)
    for at in ("pre", "post"):
        found = jacobians(network, x, at)
        torch.testing.assert_close(found[0][0], model.a.weight if at == "pre" else found[0][0], rtol=1e-12, atol=0)
        expected = torch.stack([(model(rows + s) - model(rows - s)) / (2 * h) for s in steps], -1)
        torch.testing.assert_close(found[1], expected, rtol=1e-7, atol=1e-8)


def detached(s: Net, x: torch.Tensor) -> torch.Tensor:
    z = s.a(x)
    return s.b(z + (torch.sin(z) - z).detach())


def without_grad(s: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = torch.sin(s.a(x))
    return s.b(h)


def in_inference_mode(s: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        h = torch.sin(s.a(x))
    return s.b(h)


def through_data(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.b(torch.sin(s.a(x).data))


@pytest.mark.parametrize("forward", [detached, without_grad, in_inference_mode, through_data])
@pytest.mark.parametrize("reverse", [False, True])
def test_detached_parts_are_differentiated(
    forward: Callable[..., Any], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen trunk under no_grad still maps the input: its Jacobian is not zero."""
    torch.manual_seed(0)
    model, x = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3)), rows_of(5, 4)
    network = network_of(model, x)
    if reverse:
        monkeypatch.setattr(Outputs, "images", lambda *_: (_ for _ in ()).throw(InputError("none")))
    rows = torch.from_numpy(x)
    expected = model.b.weight @ (torch.cos(model.a(rows)).unsqueeze(-1) * model.a.weight)
    torch.testing.assert_close(jacobians(network, x, "post")[1], expected, rtol=1e-10, atol=1e-12)
    assert torch.is_grad_enabled()


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    """relu'(NaN) is 0: without a mark the layers after it would look sound."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = rows_of(4, 3)
    network = network_of(model, x)
    clean = jacobians(network, x, "post")
    x[1, 0] = np.nan
    x[3, 2] = np.inf
    for layer, jacobian in jacobians(network, x, "post").items():
        assert torch.isnan(jacobian[[1, 3]]).all()
        torch.testing.assert_close(jacobian[[0, 2]], clean[layer][[0, 2]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_the_row_block_of_a_walk_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, shape = convolutional()
    x = rows_of(9, *shape)
    network = network_of(model, x)
    whole = walked(network, x)
    monkeypatch.setattr(hooked, "ACTIVATION_BUDGET", budget)
    blocks = []
    network.walk(x, lambda layer, _pre, _post, rows: blocks.append(rows.start) if layer == 0 else None)
    assert len(blocks) > 1
    for layer, values in walked(network, x).items():
        for got, expected in zip(values, whole[layer], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_float32_modules_run_in_float32() -> None:
    """24 bits, few layers of width 5: 1e-5 of the largest value. What is visited is float64."""
    model, _, shape = residual()
    x = rows_of(6, *shape)
    double = network_of(copy.deepcopy(model), x)
    exact, slopes = walked(double, x), jacobians(double, x, "pre")
    single = network_of(model, x, dtype=torch.float32)
    for layer, values in walked(single, x).items():
        for got, expected in zip(values, exact[layer], strict=True):
            assert got.dtype == torch.float64
            assert not torch.equal(got, expected)
            assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    for layer, jacobian in jacobians(single, x, "pre").items():
        assert (jacobian - slopes[layer]).abs().max() < 1e-5 * slopes[layer].abs().max()


# Models that cannot be measured ---------------------------------------------------------------------------------------


def refused(
    forward: Callable[..., Any],
    message: str,
    shape: tuple[int] = (4,),
    rows: int = 3,
    dtype: torch.dtype = torch.float64,
    **modules: nn.Module,
) -> InputError:
    torch.manual_seed(0)
    modules = modules or {"a": nn.Linear(4, 4)}
    with pytest.raises(InputError, match=message) as caught:
        network_of(Net(forward, **modules), rows_of(rows, *shape), dtype=dtype)
    return caught.value


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    refused(lambda s, x: s.a(functional.dropout(x, training=True)), "random.*training=True")
    refused(lambda s, x: s.a(x) + torch.rand_like(x), "random")
    # Not seen in the output.
    refused(lambda s, x: s.b(s.a(x + torch.rand_like(x))) * 0, "random", a=nn.Linear(4, 4), b=nn.Linear(4, 2))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_model_that_mixes_rows_is_refused(rows: int) -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    parts: dict[str, Any] = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": norm}
    refused(lambda s, x: s.b(s.norm(s.a(x))), "mixes the rows", rows=rows, **parts)
    refused(lambda s, x: s.a(x) - s.a(x).sum(0), "mixes the rows", rows=rows)


def test_a_model_with_a_hidden_layer_that_mixes_rows_is_refused() -> None:
    parts: dict[str, Any] = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    refused(lambda s, x: s.b((lambda h: h - h.mean(0))(s.a(x))) * 0, "'a' .*mixes the rows", **parts)


def test_exceptions_of_a_model_become_input_errors() -> None:
    def raising(error: Any) -> Callable[..., Any]:
        return lambda *_: (_ for _ in ()).throw(error)

    assert isinstance(
        refused(
            raising(ValueError("wrong\nlong")), r"the model raised ValueError: wrong long \(test_module.py, line \d+\)"
        ).__cause__,
        ValueError,
    )
    refused(raising(NotImplementedError()), r"the model raised NotImplementedError \(test_module.py")
    refused(raising(SystemExit(3)), "the model raised SystemExit: 3")
    refused(lambda s, x: s.a(x[:, :2]), "the model raised RuntimeError: mat1 and mat2")
    with pytest.raises(InputError, match="raised NotImplementedError"):
        network_of(nn.ModuleDict({"a": nn.Linear(4, 4)}), rows_of(3, 4))
    with pytest.raises(KeyboardInterrupt):
        network_of(Net(raising(KeyboardInterrupt()), a=nn.Linear(4, 4)), rows_of(3, 4))
    with pytest.raises(MemoryError):
        network_of(Net(raising(MemoryError()), a=nn.Linear(4, 4)), rows_of(3, 4))


def test_prints_of_a_model_go_to_standard_error() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        print("noise on standard output")
        sys.stdout.write("more")
        return s.b(tanh(s.a(x)))

    model, x = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), rows_of(3, 4)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        network = network_of(model, x)
        walked(network, x)
        jacobians(network, x, "pre")
        noisy_posts(network, x, 1, 0.1, torch.zeros(3, 1, 4))
    assert out.getvalue() == ""
    assert "noise on standard output" in err.getvalue()


def test_a_model_that_runs_in_float32_alone_gets_that_advice() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.a(x @ torch.eye(4, dtype=torch.float32))  # whatever x is

    error = refused(forward, "--dtype float32")
    assert "RuntimeError" in str(error)
    assert network_of(Net(forward, a=nn.Linear(4, 4)), rows_of(3, 4), dtype=torch.float32).dtype is torch.float32
    assert "--dtype" not in str(refused(lambda s, x: s.a(x @ torch.eye(5)), "raised RuntimeError"))


def test_tensors_created_in_the_model_have_its_dtype() -> None:
    x = rows_of(3, 4)
    for dtype in (torch.float64, torch.float32):
        network_of(Net(lambda s, x: s.a(x @ torch.eye(4)), a=nn.Linear(4, 4)), x, dtype=dtype)
        assert torch.get_default_dtype() is torch.float32


# Models and weights --------------------------------------------------------------------------------------------------


def small(**settings: Any) -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), **settings)


def state(model: nn.Module | None = None, **changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    named = {key: tensor.clone() for key, tensor in (model or small()).state_dict().items()} | changed
    return {key: tensor for key, tensor in named.items() if tensor is not None}


def test_a_built_model_is_in_eval_mode_and_draws_nothing() -> None:
    model = built(lambda: small().train())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    before = torch.get_rng_state()
    once, again = cast("Any", built(small)), cast("Any", built(small))
    assert torch.equal(once[0].weight, again[0].weight)
    assert torch.equal(torch.get_rng_state(), before)
    bare = small()
    assert built(lambda: nn.DataParallel(bare)) is bare
    assert built(lambda: torch.compile(nn.DataParallel(bare), backend="eager")) is bare


@pytest.mark.parametrize("wrong", [lambda: lambda x: x, lambda: None, lambda: {"a": 1}, lambda: nn.Linear])
def test_a_callable_that_returns_no_module_is_refused(wrong: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"callable returned a \w+; expected an nn\.Module"):
        built(wrong)


def test_loading_sets_every_tensor() -> None:
    tensors = state()
    tensors["1.running_mean"] += 3  # a buffer
    model = loaded(small, tensors, {}, "a.pt")
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(prefix: str) -> None:
    """The series strips them, and says what the file has."""
    tensors = state()
    loaded(small, tensors, {key: prefix + key for key in tensors}, "a.pt")


def test_a_submodule_called_module_is_loaded() -> None:
    def build() -> Any:
        return Net(lambda s, x: s.module(x), module=small())

    full = state(build())
    assert all(key.startswith("module.") for key in full)
    stripped = {key.removeprefix("module."): tensor for key, tensor in full.items()}
    stored = {key: f"module.{key}" for key in stripped}
    model = loaded(build, stripped, stored, "a.pt")
    assert all(torch.equal(tensor, full[key]) for key, tensor in model.state_dict().items())


def test_tensors_that_do_not_fit_are_refused() -> None:
    wide = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    tensors = state()
    cases = [
        (state(**{"3.bias": None}), r"of 9, 1 missing, such as '3\.bias' \(2,\)\. Give"),
        (
            {key.replace("3.", "head."): tensor for key, tensor in tensors.items()},
            r"2 missing, such as '3\.weight' \(2, 4\) \(nearest in the file: 'head\.weight' \(2, 4\)\); "
            r"2 unexpected, such as 'head\.weight' \(2, 4\)",
        ),
        (state(extra=torch.zeros(7)), r"1 unexpected, such as 'extra' \(7,\)"),
        (state(wide), r"7 of another shape, such as '0\.weight' \(5, 3\) where the model has \(4, 3\)"),
        ({}, "9 missing"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=rf"^a\.pt: its tensors are not those of the model: .*{message}"):
            loaded(small, given, {}, "a.pt")


def test_lazy_modules_and_states_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="the model raised ValueError: Attempted to use an uninitialized parameter"):
        loaded(lambda: nn.LazyLinear(3), {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, {}, "a.pt")

    class Stateful(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

        def set_extra_state(self, state: Any) -> None:
            pass

    tensors = {key: t for key, t in Stateful(3, 2).state_dict().items() if isinstance(t, torch.Tensor)}
    with pytest.raises(InputError, match="_extra_state"):
        loaded(lambda: Stateful(3, 2), tensors, {}, "a.pt")


def test_the_trace_of_one_checkpoint_serves_the_next() -> None:
    """As a series is measured: recorded once, then other weights under the same trace."""
    x = rows_of(5, 3)
    first = network_of(small(), x)
    torch.manual_seed(9)
    other = small().double().eval().requires_grad_(False)
    network = Module(other, first.trace, CPU, torch.float64)
    torch.testing.assert_close(walked(network, x)[0][1], other[:3](torch.from_numpy(x)), rtol=1e-12, atol=0)
