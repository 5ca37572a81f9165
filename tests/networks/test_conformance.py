"""One suite over both networks: the same weights as a chain and as a module give the same numbers in every measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support import oracles
from support.oracles import network_of, probe_of, random_chain
from torch import nn
from torch.nn import functional

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.measures.representation import Representation
from ibscan.networks.admission import traced_network
from ibscan.networks.chain import Chain
from ibscan.networks.module import Module

WIDTHS = (6, 5, 4, 3)
MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "identity": nn.Identity}
IN_PLACE = {"tanh": torch.tanh_, "relu": functional.relu_, "sigmoid": torch.sigmoid_}

MEASURES: dict[str, Any] = {
    "local rank, pre": LocalRank(eps=(0.01, 0.3), rel_eps=(0.01, 0.3), spectrum_rows=10),
    "local rank, post": LocalRank(eps=(0.01, 0.3), rel_eps=(0.01, 0.3), at="post"),
    "binned": BinnedInformation(bins=(5, 30), widths=(0.1, 0.37)),
    "binned, pre": BinnedInformation(bins=(5,), widths=(0.25,), at="pre"),
    "readout": ReadoutInformation(noise=(0.2,), tolerance=0.3, max_draws=64),
    "readout, pre": ReadoutInformation(noise=(0.5,), tolerance=0.3, max_draws=64, at="pre"),
    "network": NetworkInformation(noise=(0.5,), tolerance=0.3, max_replicas=16, max_draws=64),
    "clustering": Clustering(),
    "clustering, pre": Clustering(at="pre"),
    "representation": Representation(),
    "fit": ProbeFit(),
}


class Functional(nn.Module):
    """The chain in torch.nn.functional, with in-place operations where there are any."""

    def __init__(self, linears: Sequence[nn.Linear], activation: str, output: str) -> None:
        super().__init__()
        self.layers, self.activation, self.output = nn.ModuleList(linears), activation, output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *hidden, last = self.layers
        x = x.flatten(1)
        for layer in hidden:
            x = layer(x)
            if self.activation in IN_PLACE:
                IN_PLACE[self.activation](x)
            else:
                x = getattr(functional, self.activation)(x)
        x = last(x)
        return functional.softmax(x, dim=-1) if self.output == "softmax" else IN_PLACE.get(self.output, torch.clone)(x)


def linears(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> list[nn.Linear]:
    made = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
        layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        made.append(layer)
    return made


def sequential(layers: Sequence[nn.Linear], activation: str, output: str) -> Any:
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in layers[:-1]:
        parts += [layer, MODULES[activation]()]
    return nn.Sequential(*parts, layers[-1], nn.Softmax(-1) if output == "softmax" else MODULES[output]())


def networks(
    widths: tuple[int, ...],
    activation: str,
    output: str,
    x: np.ndarray,
    *,
    spoil: int | None = None,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[Chain, list[Module]]:
    """Return the chain, and the two modules of the same weights."""
    weights, biases = random_chain(widths, 1, bias=bias, scale=1.5)
    if spoil is not None:
        weights[spoil][0, 0] = float("nan")
    chain = network_of([(weights, biases)], activation, output, dtype=dtype)
    kinds: tuple[Callable[..., nn.Module], ...] = (sequential, Functional)
    models = [kind(linears(weights, biases), activation, output) for kind in kinds]
    return chain, [
        traced_network(m.eval().requires_grad_(False).to(dtype), x, (), device=oracles.DEVICE, dtype=dtype)
        for m in models
    ]


def probe(rows: int = 24, inputs: int = 6, classes: int = 3) -> Probe:
    """Labelled rows, two of them equal."""
    g = np.random.default_rng(0)
    x = g.standard_normal((rows, inputs))
    x[7] = x[3]
    return probe_of(x, g.permutation(np.arange(rows) % classes))


def assert_equal(found: Mapping[str, Estimate], expected: Mapping[str, Estimate], rtol: float, atol: float) -> None:
    assert list(found) == list(expected)
    for key in expected:
        for part in dataclasses.fields(expected[key]):
            a, b = (getattr(one[key], part.name) for one in (found, expected))
            assert (a is None) == (b is None), (key, part.name)
            if b is None:
                continue
            assert a.shape == b.shape, (key, part.name)
            if part.name == "status" or np.issubdtype(b.dtype, np.integer):
                np.testing.assert_array_equal(a, b, err_msg=f"{key} {part.name}")
            else:
                np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=f"{key} {part.name}")


@cache
def pair(activation: str, output: str, spoil: int | None = None) -> tuple[Chain, list[Module]]:
    return networks(WIDTHS, activation, output, probe().x, spoil=spoil)


@pytest.mark.slow
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("activation", "output"), [("tanh", "identity"), ("relu", "softmax"), ("gelu", "sigmoid"), ("sigmoid", "tanh")]
)
def test_every_measure_agrees_on_chain_and_module(measure: str, activation: str, output: str) -> None:
    """1e-10 relative; 1e-12 absolute for what is zero but for rounding, as the last singular value of a softmax is."""
    chain, modules = pair(activation, output)
    expected = MEASURES[measure](chain, probe(), RandomStreams(0))
    assert (
        any(np.any(one.status == Status.OK) for one in expected.values() if one.status is not None) or measure == "fit"
    )
    for module in modules:
        assert (module.output, module.plain) == (chain.output, chain.plain)
        assert_equal(MEASURES[measure](module, probe(), RandomStreams(0)), expected, 1e-10, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("spoil", [0, 1, 2])
def test_chain_and_module_agree_on_weights_that_are_not_finite(measure: str, spoil: int) -> None:
    chain, modules = pair("relu", "softmax", spoil)
    expected = MEASURES[measure](chain, probe(), RandomStreams(0))
    bad = [np.any(one.status == Status.NONFINITE) for one in expected.values() if one.status is not None]
    assert any(bad) == (spoil < 2 or measure != "network")  # the network channel does not see the output layer
    for module in modules:
        assert_equal(MEASURES[measure](module, probe(), RandomStreams(0)), expected, 1e-10, 1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_chain_and_module_agree_without_labels_or_biases(measure: str) -> None:
    unlabelled = probe_of(probe().x)
    chain, modules = networks((6, 4, 3), "tanh", "identity", unlabelled.x, bias=False)
    expected = MEASURES[measure](chain, unlabelled, RandomStreams(3))
    for module in modules:
        assert_equal(MEASURES[measure](module, unlabelled, RandomStreams(3)), expected, 1e-10, 1e-12)


@pytest.mark.parametrize("measure", ["binned", "readout", "network", "clustering", "fit"])
def test_chain_and_module_agree_on_one_logit_for_two_classes(measure: str) -> None:
    two = probe(classes=2)
    for output in ("identity", "sigmoid"):
        chain, modules = networks((6, 4, 1), "relu", output, two.x)
        expected = MEASURES[measure](chain, two, RandomStreams(0))
        for module in modules:
            assert_equal(MEASURES[measure](module, two, RandomStreams(0)), expected, 1e-10, 1e-12)


def test_a_bottleneck_has_the_same_zeros_in_chain_and_module() -> None:
    """A chain's factor has no column where the first layer has no rank; a module's Jacobian has a zero there."""
    chain, modules = networks((6, 2, 5, 3), "tanh", "identity", probe().x)
    expected = MEASURES["local rank, pre"](chain, probe(), RandomStreams(0))
    assert (expected["singular_value"].value[0, 1, 2:] == 0.0).all()
    for module in modules:
        assert_equal(MEASURES["local rank, pre"](module, probe(), RandomStreams(0)), expected, 1e-10, 1e-12)


@pytest.mark.parametrize("measure", ["local rank, pre", "binned", "readout", "clustering", "fit"])
def test_chain_and_module_agree_in_float32(measure: str) -> None:
    """Both round to 24 bits in their own order: 1e-4; no count lies on an edge here."""
    chain, modules = networks(WIDTHS, "tanh", "softmax", probe().x, dtype=torch.float32)
    expected = MEASURES[measure](chain, probe(), RandomStreams(0))
    for module in modules:
        assert module.dtype is torch.float32
        assert_equal(MEASURES[measure](module, probe(), RandomStreams(0)), expected, 1e-4, 1e-5)


def test_images_are_flattened_by_the_model_and_by_the_chain() -> None:
    flat, image = probe(), probe_of(probe().x.reshape(-1, 1, 2, 3), probe().y)
    chain, modules = networks(WIDTHS, "tanh", "identity", image.x)
    for measure in ("local rank, pre", "network"):
        expected = MEASURES[measure](chain, flat, RandomStreams(0))
        for module in modules:
            assert_equal(MEASURES[measure](module, image, RandomStreams(0)), expected, 1e-10, 1e-12)
