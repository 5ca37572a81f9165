"""Networks with parts that torch does not show, numpy and scripted code, against twins made of torch alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
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
def test_what_needs_no_derivative_is_what_the_twin_gives(way: str, place: int) -> None:
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
def test_layers_that_no_derivative_leads_to_are_failed_and_the_others_counted(way: str, place: int) -> None:
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


def test_the_loss_is_not_taken_of_numbers_of_which_nobody_knows_that_they_are_logits() -> None:
    fit = found(ProbeFit(), *placed(2, sine_by_numpy))
    assert fit["probe_loss"].status == Status.NOT_MEASURED
    assert fit["probe_accuracy"].status == Status.OK


def test_a_table_of_constants_is_no_activity() -> None:
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
