"""Jacobians of common networks in every mode: the counts of autograd and an SVD, or failed with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import Net
from support.oracles import probe_of
from torch import nn
from torch.nn import functional as f
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ibscan.core.estimate import Estimate, Status
from ibscan.core.network import JacobianSpec, Network
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank
from ibscan.networks.admission import traced_network
from ibscan.networks.jacobians.rounding import expected_rounding
from ibscan.networks.module import Module

CPU = torch.device("cpu")
EPS = (1e-3, 1e-2, 0.1, 0.5)
line = nn.Linear


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def network_of(model: nn.Module, x: np.ndarray, dtype: torch.dtype = torch.float64) -> Module:
    return traced_network(model.eval().requires_grad_(False).to(dtype), x[:3], (), device=CPU, dtype=dtype)


def ranks(network: Network, x: np.ndarray, eps: tuple[float, ...] = EPS, **options: Any) -> Mapping[str, Estimate]:
    with torch.no_grad():
        return LocalRank(eps=eps, rel_eps=(0.01,), spectrum_rows=2, **options)(network, probe_of(x), RandomStreams(0))


def counts(function: Callable[..., Any] | Net, x: np.ndarray, eps: tuple[float, ...] = EPS) -> list[float]:
    """Mean counts by autograd and an SVD, row by row, float64."""
    rows = torch.from_numpy(x)
    found = [torch.autograd.functional.jacobian(lambda r: function(r[None]).flatten(), row) for row in rows]
    sigma = torch.linalg.svdvals(torch.stack(found).flatten(2))
    return [float((sigma > limit).sum(1).double().mean()) for limit in eps]


def assert_counts(model: Net, x: np.ndarray, function: Callable[..., Any] | None = None, layer: int = -1) -> None:
    """The last layer's counts are those of autograd, or of a function that computes the same in plain words."""
    network = network_of(model, x)
    found = ranks(network, x)["local_rank"]
    assert found.reasons is None
    assert (found.status[0, layer] == Status.OK).all()
    np.testing.assert_allclose(found.value[0, layer], counts(function or model, x), rtol=1e-12)


# Recurrent networks ---------------------------------------------------------------------------------------------------

RECURRENT: dict[str, Any] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn tanh": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
    "both ways": (nn.LSTM, {"bidirectional": True}),
    "two layers": (nn.GRU, {"num_layers": 2, "dropout": 0.4}),
    "projected": (nn.LSTM, {"proj_size": 3}),
    "no bias": (nn.LSTM, {"bias": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [3, 25])
@pytest.mark.parametrize("name", RECURRENT)
def test_counts_of_recurrent_layers_agree_with_autograd(name: str, outputs: int) -> None:
    torch.manual_seed(0)
    kind, options = RECURRENT[name]
    width = options.get("proj_size", 6) * (2 if options.get("bidirectional") else 1)
    model = Net(lambda s, x: s.c(s.r(x)[0][:, -1]), r=kind(4, 6, batch_first=True, **options), c=line(width, outputs))
    assert_counts(model, rows_of(4, 5, 4))


def fed_by_a_layer(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.c(s.r(s.a(x).tanh())[0].flatten(1))


def sequence_first_inside(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.c(s.r(x.transpose(0, 1))[0][-1])


def by_lengths(s: Net, x: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(x, (x[..., 0] != 0).sum(1).cpu(), batch_first=True, enforce_sorted=False)
    return s.c(pad_packed_sequence(s.r(packed)[0], batch_first=True, total_length=5)[0].mean(1))


def by_cells(s: Net, x: torch.Tensor) -> torch.Tensor:
    h, c = x.new_zeros(len(x), 6), x.new_zeros(len(x), 6)
    for step in x.unbind(1):
        h, c = s.cell(step, (h, c))
    return s.c(h)


def by_gru_cells(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = None
    for step in x.unbind(1):
        h = s.cell(step, h)
    return s.c(h)


def first_state(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, len(x), 6), torch.zeros(2, len(x), 6)


def from_a_state(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.c(s.r(x, first_state(x))[0][:, -1])


def checkpointed_from_a_state(s: Net, x: torch.Tensor) -> torch.Tensor:
    run = checkpoint(lambda x: s.r(x, first_state(x)[0])[0], x, use_reentrant=True)
    return s.c(run[:, -1])


LOOPS: dict[str, Any] = {
    "fed by a layer": (fed_by_a_layer, {"a": (line, 4, 7), "r": (nn.LSTM, 7, 6), "c": (line, 30, 4)}),
    "sequence first inside": (sequence_first_inside, {"r": (nn.LSTM, 4, 6), "c": (line, 6, 3)}),
    "packed": (by_lengths, {"r": (nn.GRU, 4, 6), "c": (line, 6, 3)}),
    "LSTMCell": (by_cells, {"cell": (nn.LSTMCell, 4, 6), "c": (line, 6, 3)}),
    "from a state": (from_a_state, {"r": (partial(nn.LSTM, num_layers=2), 4, 6), "c": (line, 6, 3)}),
    "checkpointed": (checkpointed_from_a_state, {"r": (partial(nn.GRU, num_layers=2), 4, 6), "c": (line, 6, 3)}),
    "GRUCell": (by_gru_cells, {"cell": (nn.GRUCell, 4, 6), "c": (line, 6, 3)}),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", LOOPS)
def test_recurrent_networks_of_all_kinds_are_measured(name: str) -> None:
    torch.manual_seed(0)
    forward, parts = LOOPS[name]
    first = {"batch_first": True} if name != "sequence first inside" else {}
    modules = {k: kind(*sizes, **(first if k == "r" else {})) for k, (kind, *sizes) in parts.items()}
    x = rows_of(4, 5, 4)
    if name == "packed":
        x[1, 3:], x[2, 1:] = 0.0, 0.0
    model = Net(forward, **modules)

    def plain(x: torch.Tensor) -> torch.Tensor:
        """The same in float64, as a checkpointed segment has no functional derivative."""
        state = first_state(x)
        return model.c(
            model.r(x, tuple(h.double() for h in state) if name == "from a state" else state[0].double())[0][:, -1]
        )

    assert_counts(model, x, plain if name in ("from a state", "checkpointed") else None)


# Functions with a derivative of their own -----------------------------------------------------------------------------


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x / (1 + x.abs())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs()).square()


class Once(Old):
    backward: Any = staticmethod(torch.autograd.function.once_differentiable(Old.backward))


class New(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x / (1 + x.abs())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs()).square()


class NewForward(New):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return tangent / (1 + x.abs()).square()


class OwnVmap(New):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Any) -> Any:  # noqa: ARG004
        return OwnVmap.apply(x), dims[0]  # type: ignore[no-untyped-call]


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        y = x.tanh_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [3, 13])
@pytest.mark.parametrize("function", [Old, Once, New, NewForward, OwnVmap, InPlace], ids=lambda f: f.__name__)
def test_custom_autograd_functions_are_differentiated(function: type[Any], outputs: int) -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(function.apply(s.a(x))), a=line(6, 8), b=line(8, outputs))
    assert_counts(model, rows_of(4, 6))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return grad


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return -2 * grad


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = 2 * x
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> None:  # noqa: ARG004
        return None


class Broken(Straight):
    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:  # noqa: ARG004
        raise AssertionError("no way back")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [(Straight, "central differences"), (Reversed, "central differences"), (Cut, "central differences"),
     (Broken, "no way back")],
)  # fmt: skip
@pytest.mark.parametrize("beside", [0.0, 1.0])
@pytest.mark.parametrize("outputs", [3, 13])
def test_a_wrong_derivative_is_failed(function: type[Any], said: str, beside: float, outputs: int) -> None:
    """With or without a parallel path that is correct: the layer after it is failed, the one before it is measured."""
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(function.apply(h := s.a(x)) + beside * h), a=line(6, 8), b=line(8, outputs))
    found = ranks(network_of(model, rows_of(4, 6)), rows_of(4, 6))
    for key, estimate in found.items():
        if estimate.status is not None:
            assert (estimate.status[0, 1] == Status.FAILED).all(), key
            assert np.isnan(estimate.value[0, 1]).all(), key
    assert (found["local_rank"].status[0, 0] == Status.OK).all()
    assert list(found["local_rank"].reasons) == [1]
    assert said in found["local_rank"].reasons[1]


def test_custom_operators_are_measured_or_failed_with_the_reason() -> None:
    """With a registered derivative the operator is measured; without one the reason says what is missing."""

    @torch.library.custom_op("ibscan_tests::bend", mutates_args=())
    def bend(x: torch.Tensor) -> torch.Tensor:
        return x / (1 + x.abs())

    model = Net(lambda s, x: s.b(bend(s.a(x))), a=line(6, 8), b=line(8, 3))
    x = rows_of(4, 6)
    found = ranks(network_of(model, x), x)["local_rank"]
    assert (found.status[0, 1] == Status.FAILED).all()
    assert "no autograd formula" in found.reasons[1]
    bend.register_autograd(
        lambda ctx, grad: grad / (1 + ctx.saved_tensors[0].abs()).square(),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),  # noqa: ARG005
    )
    assert_counts(model, x)


# What training puts into a model -------------------------------------------------------------------------------------


# What torch says of a pass without gradients, as the first ones are.
unasked = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


@unasked
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_are_differentiated(reentrant: bool) -> None:
    torch.manual_seed(0)
    parts = nn.Sequential(line(6, 8), nn.Tanh(), line(8, 8), nn.ReLU())

    def segment(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.b(checkpoint(lambda z: s.a(z).tanh(), x, use_reentrant=reentrant))

    one = Net(segment, a=line(6, 8), b=line(8, 3))
    two = Net(lambda s, x: s.b(checkpoint_sequential(s.m, 2, x, use_reentrant=reentrant)), m=parts, b=line(8, 3))
    assert_counts(one, rows_of(4, 6), lambda x: one.b(one.a(x).tanh()))
    assert_counts(two, rows_of(4, 6), lambda x: two.b(two.m(x)))


def detached(s: Net, x: torch.Tensor, bend: Callable[..., Any]) -> torch.Tensor:
    return s.b(bend(s.a(x)).detach() + x.mean(1, keepdim=True))


def without_gradients(s: Net, x: torch.Tensor, bend: Callable[..., Any]) -> torch.Tensor:
    with torch.no_grad():
        h = s.a(x).tanh()
    return s.b(bend(h) + x.mean(1, keepdim=True))


def of_its_data(s: Net, x: torch.Tensor, bend: Callable[..., Any]) -> torch.Tensor:
    return s.b(bend(s.a(x.data)) + x.mean(1, keepdim=True))


@pytest.mark.parametrize("forward", [detached, without_gradients, of_its_data])
@pytest.mark.parametrize("bend", [lambda h: h / (1 + h.abs()), Old.apply], ids=["plain", "own"])
def test_detached_parts_are_differentiated_in_every_mode(forward: Callable[..., Any], bend: Callable[..., Any]) -> None:
    """Forward mode, and where a function of the model's own leaves gradients alone."""
    torch.manual_seed(0)
    model = Net(lambda s, x: forward(s, x, bend), a=line(6, 8), b=line(8, 3))

    def same(x: torch.Tensor) -> torch.Tensor:
        h = model.a(x).tanh() if forward is without_gradients else model.a(x)
        return model.b(h / (1 + h.abs()) + x.mean(1, keepdim=True))

    assert_counts(model, rows_of(4, 6), same)


@unasked
def test_parts_detached_in_a_checkpointed_segment_are_failed() -> None:
    torch.manual_seed(0)

    def segment(s: Net, x: torch.Tensor) -> torch.Tensor:
        return s.b(checkpoint(lambda z: (h := s.a(z)).tanh() + h.detach(), x, use_reentrant=True))

    model = Net(segment, a=line(6, 8), b=line(8, 3))
    found = ranks(network_of(model, rows_of(4, 6)), rows_of(4, 6))["local_rank"]
    assert (found.status[0, 1] == Status.FAILED).all()


def written_into(s: Net, x: torch.Tensor) -> torch.Tensor:
    h = x.new_zeros(len(x), 8)
    h[:, :4] = s.a(x)[:, 4:]
    h[:, 4:] = Old.apply(x[:, :4])  # type: ignore[no-untyped-call]
    return s.b(h)


def test_in_place_operations_and_attention_are_differentiated() -> None:
    torch.manual_seed(0)
    assert_counts(Net(written_into, a=line(6, 8), b=line(8, 3)), rows_of(4, 6))

    def attended(s: Net, x: torch.Tensor) -> torch.Tensor:
        q = s.a(x)
        own = Old.apply(q)  # type: ignore[no-untyped-call]
        return s.b(f.scaled_dot_product_attention(q, q, own, is_causal=True).flatten(1))

    assert_counts(Net(attended, a=line(4, 4), b=line(12, 9)), rows_of(4, 3, 4))


# No false alarm ------------------------------------------------------------------------------------------------------

image = np.zeros((3, 1, 8, 8))
image[:, :, 2:6, 2:6] = np.random.default_rng(0).random((3, 1, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "x"),
    [
        (lambda s, x: f.max_pool2d(s.conv(x).relu(), 2).flatten(1), image),  # kinks and ties at zeros
        (lambda _, x: torch.cat([torch.sin(2.0**k * x) for k in range(20)], 1), image[:, 0, 2, :2]),
        (lambda _, x: torch.softmax(1e3 * x, 1), rows_of(3, 6)),
        (lambda _, x: f.normalize(x), np.concatenate([np.zeros((1, 6)), rows_of(2, 6)])),
        (lambda _, x: x.round() + x.floor(), np.arange(18.0).reshape(3, 6)),  # dead, and on the edge of steps
        (lambda _, x: torch.tanh((x + 1e6) - 1e6), rows_of(3, 6)),
        (lambda _, x: 1e-9 * x, rows_of(3, 6)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("outputs", [2, 9])
def test_ordinary_networks_pass_the_derivative_check(forward: Callable[..., Any], x: np.ndarray, outputs: int) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        conv = nn.Conv2d(1, 2, 3, bias=False).double()
        width = forward(Net(None, conv=conv), torch.from_numpy(x)).shape[1]
    model = Net(lambda s, x: s.b(forward(s, x)), conv=conv, b=line(width, outputs))
    found = ranks(network_of(model, x), x)["local_rank"]
    assert found.reasons is None
    assert np.isin(found.status, (Status.OK, Status.DEAD)).all()


# A subspace, and other variables -------------------------------------------------------------------------------------


def test_spectral_norms_without_forward_mode_agree_with_autograd() -> None:
    """By gradients, of all of the variable, whatever the subspace; in slices of units too."""
    torch.manual_seed(0)
    model = Net(lambda s, x: s.b(Old.apply(s.a(x))), a=line(6, 8), b=line(8, 5))  # type: ignore[no-untyped-call]
    x = rows_of(4, 6)
    network = network_of(model, x)
    rows = [torch.autograd.functional.jacobian(lambda r: model(r[None])[0], row) for row in torch.from_numpy(x)]
    expected_norms = torch.linalg.matrix_norm(torch.stack(rows), 2)
    with torch.no_grad():
        np.testing.assert_allclose(network.spectral_norms(x, JacobianSpec())[0, 1], expected_norms, rtol=1e-12)
        found = LocalRank(directions=3, rel_eps=(1e-3, 0.5))(network, probe_of(x), RandomStreams(0))
    assert (found["local_rank_rel"].status == Status.LOWER_BOUND).all()


# Numbers coarser than float64 ----------------------------------------------------------------------------------------

SMALL = (1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 1.0)


def narrow(cast: Callable[..., Any] = lambda h: h, at: Callable[..., Any] = lambda h: h) -> Any:
    """A net of rank two throughout."""
    torch.manual_seed(0)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        wide = cast(s.b(s.a(x)))
        return at(s.c((wide - 0.5 * wide).to(s.c.weight.dtype)))

    sizes = {"a": (12, 2), "b": (2, 10), "c": (10, 6)}
    modules = {name: line(*shape, bias=False) for name, shape in sizes.items()}
    for module in modules.values():
        nn.init.normal_(module.weight)
    return Net(forward, **modules)


# The dtype of the pass, what is done inside, the same in float64, and the rounding.
COARSE = {
    "float64": (torch.float64, lambda h: h, lambda h: h, 0.0),
    "float32": (torch.float32, lambda h: h, lambda h: h, 1e-7),
    "float": (torch.float64, lambda h: h.float().double(), lambda h: h, 1e-7),
    "to": (torch.float64, lambda h: h.to(torch.float32), lambda h: h, 1e-7),
    "softplus": (torch.float64, lambda h: f.softplus(h.float()), f.softplus, 1e-7),
    "dtype=": (
        torch.float64,
        lambda h: torch.softmax(h, 1, dtype=torch.float32),
        lambda h: torch.softmax(h, 1),
        1e-7,
    ),
    "half": (torch.float64, lambda h: h.half().double(), lambda h: h, 1e-3),
    "bfloat16": (torch.float64, lambda h: h.bfloat16().float(), lambda h: h, 1e-2),
    "amplified": (
        torch.float64,
        lambda h: torch.tanh((0.02 * h.float() + 1e3) - 1e3),
        lambda h: torch.tanh(0.02 * h),
        1e-5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", COARSE)
def test_a_count_within_rounding_is_not_ok(name: str, at: At) -> None:
    """A count with status ok is correct, and thresholds far above the rounding have that status."""
    dtype, cast, fine, unit = COARSE[name]
    after = torch.tanh if at == "post" else lambda h: h
    x = rows_of(6, 12)
    found = ranks(network_of(narrow(cast, after), x, dtype), x, SMALL, at=at)
    wanted = counts(narrow(fine, after).double().requires_grad_(False), x, SMALL)
    cells = found["local_rank"]
    for got, status, want in zip(cells.value[0, 2], cells.status[0, 2], wanted, strict=True):
        assert status == Status.UNRESOLVED or abs(got - want) < 1e-12
    assert (cells.status[0, 2, 0] == Status.UNRESOLVED) == (unit > 0.0)
    if unit < 1e-6:
        assert (cells.status[0, 2, 5:] == Status.OK).all()
        # What has no small singular values has none that rounding could have made.
        assert cells.status[0, 0, 0] == Status.OK
    # The Jacobian has six singular values, of which two are not zero.
    assert (found["singular_value"].status[0, 2, 2:6] == (Status.UNRESOLVED if unit else Status.OK)).all()
    assert found["effective_rank"].status[0, 2] == (Status.UNRESOLVED if unit > 1e-4 else Status.OK)
    assert (cells.reasons is None) == (unit == 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("seed", range(3))
def test_the_estimated_rounding_is_an_upper_bound(depth: int, act: type[Any], seed: int) -> None:
    torch.manual_seed(seed)
    parts = [part for _ in range(depth) for part in (line(24, 24), act())]
    model = nn.Sequential(*parts, line(24, 24)).eval().requires_grad_(False)
    x = rows_of(3, 24, seed=seed).astype(np.float32).astype(np.float64)
    model.double()
    exact = [torch.autograd.functional.jacobian(lambda r: model(r[None])[0], row) for row in torch.tensor(x)]
    network = network_of(model, x, torch.float32)
    found = []
    with torch.no_grad():
        network.jacobians(x, lambda _, j, *__: found.append(j[0]), JacobianSpec(layers=(depth,)))
        bound = network.rounding(x, JacobianSpec())[depth]
    norms = [torch.linalg.matrix_norm(one, 2) for one in (torch.cat(found) - torch.stack(exact), torch.stack(exact))]
    assert ((norms[0] / norms[1]) < bound).all()
    assert bound < 1e-3


def test_expected_rounding_grows_with_sums_and_depth() -> None:
    assert expected_rounding(1e-7, 1, 1) == pytest.approx(6e-7)
    assert expected_rounding(1e-7, 400, 1) < expected_rounding(1e-7, 400, 16) == pytest.approx(4 * 44e-7)


# Ids -----------------------------------------------------------------------------------------------------------------

TABLE = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
USED_AS_IDS: dict[str, Any] = {
    "embedding": lambda s, x: s.e(x.long()),  # (n, 6, 4) each
    "int": lambda s, x: s.e(x.int()),
    "to": lambda s, x: s.e(x.to(torch.int64)),
    "rounded": lambda _, x: f.embedding(x.round().long(), TABLE),
    "offset": lambda s, x: s.e((x.long() + torch.arange(6)).clamp(max=19)),
    "one_hot": lambda _, x: f.one_hot(x.long(), 20).double() @ TABLE,
    "indexed": lambda _, x: TABLE[x.long()],
    "selected": lambda _, x: TABLE.index_select(0, x.long().flatten()).view(len(x), 6, 4),
    "gathered": lambda _, x: TABLE.expand(len(x), 20, 4).gather(1, x.long()[..., None].expand(-1, -1, 4)),
    "compared": lambda _, x: (x[..., None] == torch.arange(20.0)).double() @ TABLE,
    "scattered": lambda _, x: x.new_zeros(len(x), 6, 20).scatter_(2, x.long()[..., None], 1.0) @ TABLE,
    "masked": lambda s, x: s.e(x.long()) * (x != 0)[..., None] * x.sign()[..., None],
    "recurrent": lambda s, x: s.r(s.e(x.long()))[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USED_AS_IDS)
def test_layers_behind_indices_have_no_derivative(name: str) -> None:
    torch.manual_seed(0)
    parts = {"e": nn.Embedding(20, 4), "r": nn.LSTM(4, 4, batch_first=True), "a": line(4, 8), "b": line(8, 3)}
    model = Net(lambda s, x: s.b(s.a(USED_AS_IDS[name](s, x)).tanh().mean(1)), **parts)
    ids = np.random.default_rng(0).integers(0, 20, (8, 6)).astype(float)
    network = network_of(model, ids)
    found = ranks(network, ids)
    for key, estimate in found.items():
        assert estimate.status is None or (estimate.status == Status.NOT_MEASURED).all(), key
    assert set(found["local_rank"].reasons) == {0, 1}
    assert "no derivative by an id" in found["local_rank"].reasons[0]
    # By a layer's values there is one.
    after = ranks(network, ids, origin="a")["local_rank"]
    assert (after.status[0, 1] == Status.OK).all()
    assert after.reasons is None


floats = rows_of(5, 6)
whole = np.random.default_rng(0).integers(0, 20, (5, 6)).astype(float)


@pytest.mark.parametrize(
    ("forward", "x", "status"),
    [
        (lambda s, x: s.b(s.a(x).round()), floats, Status.DEAD),
        (lambda s, x: s.b(s.a(x.sign())), floats, Status.DEAD),
        (lambda s, x: s.b(s.a(x.sign())), whole, Status.DEAD),
        (lambda s, x: s.b(s.a(x.long().double())), whole, Status.DEAD),
        (lambda s, x: s.b(TABLE.repeat(1, 2)[s.a(x).argmax(1)]), floats, Status.DEAD),
        (lambda s, x: s.b(TABLE.repeat(1, 2)[(3 * s.a(x)).long().clamp(0, 19)].mean(1)), floats, Status.DEAD),
        (lambda s, x: s.b(s.a(x).tanh()), whole, Status.OK),  # counts, pixels: whole numbers are no ids in themselves
        (lambda s, x: s.b(s.a(x) + TABLE.repeat(1, 2)[x[:, 0].long()]), whole, Status.OK),  # some of each
    ],
)  # fmt: skip
def test_a_derivative_of_zero_is_not_missing(forward: Callable[..., Any], x: np.ndarray, status: int) -> None:
    torch.manual_seed(0)
    found = ranks(network_of(Net(forward, a=line(6, 8), b=line(8, 3)), x), x)["local_rank"]
    assert (found.status[0, -1] == status).all()
    assert found.reasons is None
