"""Networks with numpy or scripted code inside give the numbers of twins made of torch alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.nets import noisy_posts
from torch import nn

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Measure
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.scan import measured
from ibscan.errors import InputError
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.networks.admission import traced_network
from ibscan.networks.module import Module
from ibscan.networks.packing import Packing
from ibscan.training.noisy import noisy

Part = Callable[[torch.Tensor], torch.Tensor]
ROWS = 24


class Net(nn.Module):
    """Three layers with something before, between and after them."""

    def __init__(self, before: Part, between: Part, after: Part) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.parts = before, between, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, between, after = self.parts
        h = between(torch.tanh(self.a(before(x))))
        return after(self.c(torch.tanh(self.b(h))))


def nothing(x: torch.Tensor) -> torch.Tensor:
    return x


def sine(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2.0


def sine_by_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.detach().numpy()) * 2.0)


def sine_by_lists(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[2.0 * float(np.sin(number)) for number in row] for row in x.tolist()], dtype=x.dtype)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says that scripting is going
    sine_scripted: Part = torch.jit.script(sine)


def network(*parts: Part) -> Module:
    x = probe().x[:3]
    model = Net(*parts).double().eval().requires_grad_(False)
    return traced_network(model, x, (), device=torch.device("cpu"), dtype=torch.float64)


def probe() -> Probe:
    rng = np.random.default_rng(0)
    return Probe(rng.standard_normal((ROWS, 6)), np.arange(ROWS) % 3, (0, 1, 2), "", "")


def found(measure: Measure, *parts: Part) -> dict[str, Estimate]:
    return dict(measured(measure, network(*parts), probe(), RandomStreams(0)))


UNSEEN = {"numpy": sine_by_numpy, "lists": sine_by_lists, "scripted": sine_scripted}


def placed(place: int, part: Part) -> list[Part]:
    return [part if k == place else nothing for k in range(3)]


@pytest.mark.parametrize("way", UNSEEN)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["before", "between", "after"])
def test_measures_without_derivatives_equal_those_of_the_twin(way: str, place: int) -> None:
    # What unseen code makes of a layer is part of no post: noise is added before it.
    noisy = () if place == 1 else (NetworkInformation(noise=(0.3,), max_replicas=64, max_draws=256),)
    for measure in (ProbeFit(), Clustering(), *noisy):
        given, twin = found(measure, *placed(place, UNSEEN[way])), found(measure, *placed(place, sine))
        if isinstance(measure, ProbeFit):
            # Whether numbers that come out of unseen code are logits is not known.
            np.testing.assert_allclose(given["probe_accuracy"].value, twin["probe_accuracy"].value)
            continue
        layers = (slice(3), slice(1, 3), slice(2))[place]
        for key, estimate in given.items():
            for name in ("value", "status", "stderr"):
                one, other = getattr(estimate, name), getattr(twin[key], name)
                if one is not None and one.ndim > 1:
                    np.testing.assert_allclose(one[:, layers], other[:, layers], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("way", UNSEEN)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["before", "between", "after"])
def test_layers_behind_unseen_code_are_failed_and_the_others_counted(way: str, place: int) -> None:
    given, twin = found(LocalRank(), *placed(place, UNSEEN[way])), found(LocalRank(), *placed(place, sine))
    beyond = slice(3) if way == "scripted" else slice({0: 0, 1: 1, 2: 3}[place])
    key = "local_rank"
    np.testing.assert_array_equal(given[key].value[:, beyond], twin[key].value[:, beyond])
    status = given[key].status
    assert status is not None
    assert (status[:, beyond] == Status.OK).all()
    assert (status[:, beyond.stop :] == Status.FAILED).all()
    if beyond.stop < 3:
        assert set(given[key].reasons or {}) == set(range(beyond.stop, 3))


def test_the_loss_is_not_measured_if_logits_are_unknown() -> None:
    fit = found(ProbeFit(), *placed(2, sine_by_numpy))
    assert fit["probe_loss"].status == Status.NOT_MEASURED
    assert fit["probe_accuracy"].status == Status.OK


def test_a_layer_on_constants_is_reported() -> None:
    class Biased(Net):
        def __init__(self) -> None:
            super().__init__(nothing, nothing, nothing)
            self.d = nn.Linear(4, 8)
            self.table = torch.ones(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.d(self.table.to(x)).sum(0)
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)) + bias)))

    model = Biased().double().eval().requires_grad_(False)
    taken = traced_network(model, probe().x[:3], (), device=torch.device("cpu"), dtype=torch.float64)
    assert [layer.name for layer in taken.layers] == ["a", "b", "c"]
    assert taken.trace.unmeasured == (("d", "its output does not depend on the probe's rows"),)


def test_an_output_that_is_the_same_for_all_rows_is_refused() -> None:
    with pytest.raises(InputError, match="does not depend on its input"):
        network(nothing, nothing, lambda x: torch.from_numpy(np.ones(x.shape)))


def twice(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """Unseen code two times, one after the other."""
    return net.c(torch.tanh(net.b(part(part(torch.tanh(net.a(x)))))))


def shared(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """One layer called on what is followed, then on what comes out of unseen code."""
    h = torch.tanh(net.s(torch.tanh(net.a(x))))
    return net.c(torch.tanh(net.b(torch.tanh(net.s(part(h))))))


def shared_first_unseen(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """One layer called twice, both times on what comes out of unseen code."""
    h = torch.tanh(net.s(part(torch.tanh(net.a(x)))))
    return net.c(torch.tanh(net.b(torch.tanh(net.s(part(h))))))


def shared_with_constants(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """One layer called on constants, then on what comes out of unseen code, then on constants again."""
    h, ones = torch.tanh(net.a(x)), torch.ones(8, dtype=x.dtype)
    h = part(h)
    bias = net.s(ones)
    h = net.s(h) + bias + net.s(0.5 * ones)
    return net.c(torch.tanh(net.b(torch.tanh(h))))


def keywords(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """A product whose operands are given by name, the weight first."""
    h = part(torch.tanh(net.a(input=x)))
    p = nn.functional.linear(weight=net.d.weight, bias=net.d.bias, input=h)
    return net.c(torch.tanh(net.b(input=torch.tanh(p))))


def residual(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """Unseen code in a branch that is added to one that is followed."""
    h = torch.tanh(net.a(x))
    return net.c(torch.tanh(net.b(h + part(torch.tanh(net.s(h))))))


def read_twice(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """A post that a layer and unseen code read, then a visible operation on it."""
    h = torch.tanh(net.a(x))
    return net.c(torch.tanh(net.b(torch.relu(h)) + net.e(part(h))))


def compared(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """What comes out of unseen code is compared before it is used."""
    h = torch.tanh(net.a(x))
    p = part(h)
    assert not torch.equal(h, p)
    return net.c(torch.tanh(net.b(h + p)))


def two_heads(part: Part, net: Shaped, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A head called before the unseen code, which does not read it."""
    h = torch.tanh(net.a(x))
    other = net.d(h)
    return net.c(torch.tanh(net.b(part(h)))), other


def in_place(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:
    """A model that changes its rows."""
    x.mul_(0.5)
    return net.c(torch.tanh(net.b(part(torch.relu_(net.a(x))))))


SHAPES = [
    twice,
    shared,
    shared_first_unseen,
    shared_with_constants,
    keywords,
    residual,
    read_twice,
    compared,
    two_heads,
    in_place,
]


class Shaped(nn.Module):
    """Layers, called as a function says."""

    def __init__(self, forward: Callable[..., object], part: Part) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.s, self.d, self.e = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 7)
        self.shape, self.part = forward, part

    def forward(self, x: torch.Tensor) -> object:
        return self.shape(self.part, self, x)


def shaped(forward: Callable[..., object], part: Part, dtype: torch.dtype = torch.float64) -> Module:
    model = Shaped(forward, part).to(dtype).eval().requires_grad_(False)
    return traced_network(model, probe().x[:3], (), device=torch.device("cpu"), dtype=dtype)


def sine_behind_a_product(x: torch.Tensor) -> torch.Tensor:
    """The twin of unseen code, no part of the post before it either: a product with a parameter comes first."""
    return sine(nn.functional.linear(x, nn.Parameter(torch.eye(8, dtype=x.dtype), requires_grad=False)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("way", UNSEEN)
@pytest.mark.parametrize("forward", SHAPES)
def test_layers_and_noise_around_unseen_code_are_those_of_the_twin(
    forward: Callable[..., object], way: str, dtype: torch.dtype
) -> None:
    given, twin = shaped(forward, UNSEEN[way], dtype), shaped(forward, sine_behind_a_product, dtype)
    assert given.layers == twin.layers
    assert (given.hidden, given.output, given.trace.noisy) == (twin.hidden, twin.output, twin.trace.noisy)
    for layer in range(len(given.layers)):
        units = twin.noisy_passes(probe().x, layer, (0.3,) * len(given.layers)).units
        z = torch.randn(ROWS, 2, units, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
        drawn, expected = (noisy_posts(one, probe().x, layer, 0.3, z) for one in (given, twin))
        torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)


def traced(model: nn.Module, x: np.ndarray, **named: np.ndarray) -> Module:
    packing = Packing.of(x, named) if named else None
    rows = x if packing is None else packing.packed(x, named)
    model = model.double().eval().requires_grad_(False)
    return traced_network(model, rows, (), device=torch.device("cpu"), dtype=torch.float64, packing=packing)


class Fed(nn.Module):
    """Two layers with an array beside x that goes through numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.d = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = torch.from_numpy((np.arange(5)[None] < lengths.numpy()).astype(float))
        h = torch.from_numpy(np.tanh(self.a(x).numpy())) * mask
        return self.b(h + self.d(mask))


def test_an_array_beside_x_is_no_activity_in_numpy_either() -> None:
    rng = np.random.default_rng(0)
    network = traced(Fed(), rng.standard_normal((3, 4)), lengths=np.array([[1], [3], [5]]))
    assert [(layer.name, layer.first, layer.output) for layer in network.layers] == [
        ("a", True, False),
        ("b", False, True),
    ]
    assert network.trace.unmeasured == (("d", "its output does not depend on the probe's rows"),)


class Columns(nn.Module):
    """Whole numbers, each column with a range of its own, looked up in numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = x.long().numpy()
        tables = np.linspace(-1.0, 1.0, 9), np.array([0.5, -0.5])
        looked_up = np.stack([table[ids[:, k]] for k, table in enumerate(tables)], axis=1)
        return self.b(torch.tanh(self.a(torch.from_numpy(looked_up).to(x))))


def test_indices_with_a_range_for_each_column_are_followed_through_numpy() -> None:
    x = np.array([[8.0, 1.0], [3.0, 0.0], [5.0, 1.0]])
    network = traced(Columns(), x)
    assert [layer.name for layer in network.layers] == ["a", "b"]
    rank = dict(measured(LocalRank(), network, Probe(x, None, (), "", ""), RandomStreams(0)))["local_rank"]
    assert rank.status is not None
    assert not (rank.status == Status.OK).any()


class Particular(nn.Module):
    """A model that runs on rows in one order alone, beside an array that belongs to them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(1, 5)

    def forward(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        if not torch.equal(x.amax(1, keepdim=True), largest):
            raise ValueError("not the largest numbers of these rows")
        return self.b(torch.tanh(self.a(x) + self.d(largest)))


def test_a_model_that_refuses_rows_in_another_order_is_measured() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    network = traced(Particular(), x, largest=x.max(1, keepdims=True))
    assert [layer.name for layer in network.layers] == ["a", "b"]


def test_random_numbers_without_an_effect_are_no_activity() -> None:
    def forward(part: Part, net: Shaped, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return net.c(torch.tanh(net.b(torch.tanh(net.a(x)) + 0.0 * net.s(torch.randn(8, dtype=x.dtype)))))

    network = shaped(forward, nothing)
    assert [layer.name for layer in network.layers] == ["a", "b", "c"]
    assert network.plain


def test_random_numbers_without_an_effect_are_not_read_by_unseen_code() -> None:
    def forward(part: Part, net: Shaped, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(net.a(x))
        other = net.d(h)
        return net.c(torch.tanh(net.b(part(h) + 0.0 * torch.rand(8, dtype=x.dtype)))), other

    given, twin = shaped(forward, sine_by_numpy), shaped(forward, sine_behind_a_product)
    assert given.layers == twin.layers


def test_a_single_row_is_followed_through_unseen_code() -> None:
    model = Net(nothing, sine_by_numpy, nothing)
    assert [layer.name for layer in traced(model, probe().x[:1]).layers] == ["a", "b", "c"]


def test_training_puts_noise_behind_scripted_code_too() -> None:
    seen, scripted = (Shaped(residual, part).double().eval() for part in (sine_behind_a_product, sine_scripted))
    x = torch.from_numpy(probe().x)
    outputs = []
    for model in (seen, scripted):
        torch.manual_seed(0)
        with noisy(model, 0.2):
            outputs.append(model(x))
    torch.testing.assert_close(*outputs)
    outputs[1].sum().backward()
    assert all(p.grad is not None for p in (scripted.a.weight, scripted.s.weight, scripted.b.weight))


class NumpyLinear(nn.Linear):
    """A layer whose product is made in numpy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() @ self.weight.numpy().T + self.bias.numpy())


def test_a_layer_made_in_numpy_is_named_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), NumpyLinear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    network = traced(model, probe().x[:3])
    assert [layer.name for layer in network.layers] == ["0", "4"]
    assert network.trace.unmeasured == (("2", "its output is made by code that calls no function of torch"),)
