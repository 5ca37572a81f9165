"""Accuracy and cross entropy against torch's own losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import oracles
from support.nets import Net
from support.oracles import ACTIVATION, Parameters, forward, network_of, probe_of, random_chain
from torch import nn
from torch.nn import functional

from ibscan.core.estimate import Status
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.fit import ProbeFit
from ibscan.measures.scores import decisions, fits
from ibscan.networks.admission import traced_network


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(
    chains: Sequence[Parameters],
    probe: Probe,
    output: str = "identity",
) -> Any:
    network = network_of(chains, "tanh", output)
    return ProbeFit()(network, probe, RandomStreams(0)), network


@pytest.mark.parametrize("output", ["identity", "softmax"])
def test_accuracy_and_loss_are_those_of_torch(output: str) -> None:
    """Logits are the input of the final softmax. 1e-10 relative in float64."""
    chains = [random_chain((5, 6, 4), seed, scale=2.0) for seed in (1, 2, 3)]
    x, y = rows_of(50, 5), np.arange(50) % 4
    result, network = measured(chains, probe_of(x, y), output)
    assert result["probe_accuracy"].value.shape == result["probe_loss"].value.shape == (3,)
    assert fits(network, probe_of(x, y))
    chosen = decisions(network, probe_of(x, y))
    for c, chain in enumerate(chains):
        logits = forward(*chain, "tanh", "identity", torch.from_numpy(x))[-1][0]
        assert chosen[c].tolist() == logits.argmax(1).tolist()
        assert result["probe_accuracy"].value[c] == (logits.argmax(1).numpy() == y).mean()
        loss = functional.cross_entropy(logits, torch.from_numpy(y)).item()
        assert result["probe_loss"].value[c] == pytest.approx(loss, rel=1e-10)
    assert (result["probe_loss"].status == Status.OK).all()


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
def test_a_single_unit_decides_at_one_half(output: str) -> None:
    chains = [random_chain((5, 6, 1), seed, scale=2.0) for seed in (1, 2)]
    x, y = rows_of(50, 5), np.arange(50) % 2
    result, network = measured(chains, probe_of(x, y), output)
    assert fits(network, probe_of(x, y))
    for c, chain in enumerate(chains):
        logits = forward(*chain, "tanh", "identity", torch.from_numpy(x))[-1][0][:, 0]
        assert 0 < (logits > 0).double().mean() < 1
        assert result["probe_accuracy"].value[c] == ((logits > 0).numpy() == y).mean()
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y).double()).item()
        assert result["probe_loss"].value[c] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(("output", "width", "classes"), [("softmax", 3, 3), ("sigmoid", 1, 2)])
def test_confident_mistakes_have_a_finite_loss(output: str, width: int, classes: int) -> None:
    """Logits of +-1000: the probability underflows, the loss does not (torch's from logits)."""
    weights, biases = random_chain((4, width), 1, scale=2000.0, bias=False)
    x, y = rows_of(20, 4), np.arange(20) % classes
    result, _ = measured([(weights, biases)], probe_of(x, y), output)
    logits = torch.from_numpy(x) @ weights[0].T
    if width == 1:
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], torch.from_numpy(y).double())
    else:
        loss = functional.cross_entropy(logits, torch.from_numpy(y))
    assert result["probe_loss"].value[0] == pytest.approx(loss.item(), rel=1e-10)
    assert loss > 100


@pytest.mark.parametrize(("width", "classes"), [(3, 4), (4, 3), (1, 3), (2, 3)])
def test_labels_that_do_not_fit_are_not_measured(width: int, classes: int) -> None:
    probe = probe_of(rows_of(24, 5), np.arange(24) % classes)
    result, network = measured([random_chain((5, 6, width), 1)], probe)
    assert not fits(network, probe)
    assert decisions(network, probe) is None
    for key in ("probe_accuracy", "probe_loss"):
        assert result[key].status.tolist() == [Status.NOT_MEASURED]
        assert np.isnan(result[key].value).all()


def test_without_labels_fit_is_not_measured() -> None:
    result, network = measured([random_chain((5, 6, 3), 1)], probe_of(rows_of(20, 5)))
    assert not fits(network, probe_of(rows_of(20, 5)))
    assert result["probe_accuracy"].status.tolist() == [Status.NOT_MEASURED]


def test_nan_weights_affect_their_own_checkpoint_only() -> None:
    chains = [random_chain((5, 6, 3), seed) for seed in (1, 2)]
    probe = probe_of(rows_of(20, 5), np.arange(20) % 3)
    clean, _ = measured(chains, probe)
    chains[0][0][0][0, 0] = float("nan")
    result, _ = measured(chains, probe)
    for key in ("probe_accuracy", "probe_loss"):
        assert result[key].status.tolist() == [Status.NONFINITE, Status.OK]
        assert np.isnan(result[key].value[0])
        assert result[key].value[1] == pytest.approx(clean[key].value[1], rel=1e-12)


# The network's own output, whatever makes it -------------------------------------------------------------------------


@pytest.mark.parametrize("output", sorted(ACTIVATION))
def test_a_chain_decides_by_its_output(output: str) -> None:
    """Whatever the output's activation: labels that are its own decisions are all right; torch's loss of the output."""
    chain, x = random_chain((5, 6, 4), 4, scale=2.0), rows_of(60, 5)
    pre, post = forward(*chain, "tanh", output, torch.from_numpy(x))[-1]
    y = post.argmax(1).numpy().copy()
    result, network = measured([chain], probe_of(x, y), output)
    assert result["probe_accuracy"].value.tolist() == [1.0]
    y = np.arange(60) % 4
    result, network = measured([chain], probe_of(x, y), output)
    assert result["probe_accuracy"].value[0] == (post.argmax(1).numpy() == y).mean()
    assert decisions(network, probe_of(x, y))[0].tolist() == post.argmax(1).tolist()
    if output == "sigmoid":  # four probabilities that know nothing of one another
        assert result["probe_loss"].status.tolist() == [Status.NOT_MEASURED]
    else:
        loss = functional.cross_entropy(pre if output == "softmax" else post, torch.from_numpy(y)).item()
        assert result["probe_loss"].value[0] == pytest.approx(loss, rel=1e-12)


def hidden(s: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(s.a(x))


def two(s: Net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return s.b(hidden(s, x)).softmax(1), s.d(torch.tanh(s.c(x))).softmax(1)


TWIN = {"c": (4, 5), "d": (5, 3)}
# Name: the forward pass, more layers, what is the output in it, and what the loss takes it for.
HEADS: dict[str, Any] = {
    "bare": (lambda s, x: s.b(hidden(s, x)), {}, None, "logits"),
    "temperature": (lambda s, x: s.b(hidden(s, x)) / 2.5, {}, None, "logits"),
    "temperature, softmax": (lambda s, x: (s.b(hidden(s, x)) / 2.5).softmax(-1), {}, None, "probabilities"),
    "negated": (lambda s, x: -s.b(hidden(s, x)), {}, None, "logits"),
    "flipped": (lambda s, x: s.b(hidden(s, x)).flip(1), {}, None, "logits"),
    "flipped, softmax": (lambda s, x: s.b(hidden(s, x)).flip(1).softmax(1), {}, None, "probabilities"),
    "softmax, flipped": (lambda s, x: s.b(hidden(s, x)).softmax(1).flip(1), {}, None, "probabilities"),
    "another order": (lambda s, x: s.b(hidden(s, x))[:, [2, 0, 1]], {}, None, "logits"),
    "residual": (lambda s, x: x[:, :3] + s.b(hidden(s, x)), {}, None, "logits"),
    "residual, softmax": (lambda s, x: (x[:, :3] + s.b(hidden(s, x))).softmax(1), {}, None, "probabilities"),
    "log-softmax": (lambda s, x: functional.log_softmax(s.b(hidden(s, x)), 1), {}, None, "logits"),
    "softmax of a column": (
        lambda s, x: s.b(hidden(s, x)).unsqueeze(-1).softmax(1).squeeze(-1), {}, None, "probabilities",
    ),
    "softmax of single numbers": (lambda s, x: s.b(hidden(s, x)).unsqueeze(-1).softmax(-1)[..., 0], {}, None, None),
    "sigmoids": (lambda s, x: s.b(hidden(s, x)).sigmoid(), {}, None, None),
    "two heads": (lambda s, x: (s.b(h := hidden(s, x)), s.c(h)), {"c": (5, 7)}, lambda out: out[0], "logits"),
    "another head first": (
        lambda s, x: {"aux": s.c(x), "logits": s.b(hidden(s, x))}, {"c": (4, 7)}, lambda out: out["logits"], "logits",
    ),
    "ensemble": (lambda s, x: sum(two(s, x)) / 2, TWIN, None, "probabilities"),
    "stacked ensemble": (lambda s, x: torch.stack(two(s, x)).mean(0), TWIN, None, "probabilities"),
    "logarithm of an ensemble": (lambda s, x: torch.stack(two(s, x)).mean(0).log(), TWIN, None, "logits"),
    "pooled": (lambda s, x: s.b(x.unsqueeze(1).expand(-1, 2, -1) * 1.5).mean(1), {"b": (4, 3)}, None, "logits"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_its_accuracy_and_loss(name: str) -> None:
    run, more, output, kind = HEADS[name]
    torch.manual_seed(3)
    shapes = {"a": (4, 5), "b": (5, 3)} | more
    model = Net(run, **{key: nn.Linear(*shape) for key, shape in shapes.items()}).double().eval().requires_grad_(False)
    x = rows_of(60, 4, seed=5)
    out = (output or (lambda whole: whole))(model(torch.from_numpy(x)))
    y = out.argmax(1).numpy().copy()
    y[:30] = np.arange(30) % 3
    network = traced_network(model.to(oracles.DEVICE), x, (), device=oracles.DEVICE, dtype=torch.float64)
    result = ProbeFit()(network, probe_of(x, y), RandomStreams(0))
    assert result["probe_accuracy"].value[0] == (out.argmax(1).numpy() == y).mean()
    if kind is None:
        assert result["probe_loss"].status.tolist() == [Status.NOT_MEASURED]
    else:
        scores = out if kind == "logits" else out.log()
        loss = functional.cross_entropy(scores, torch.from_numpy(y)).item()
        assert result["probe_loss"].value[0] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(
    ("f", "threshold"),
    [
        (lambda y: y, 0.0),
        (lambda y: y[:, 0], 0.0),
        (lambda y: y.squeeze(1), 0.0),
        (torch.tanh, 0.0),
        (torch.sigmoid, 0.5),
        (lambda y: torch.sigmoid(y / 3 + 0.2), 0.5),
        (lambda y: torch.sigmoid(y)[:, 0], 0.5),
        (lambda y: torch.sigmoid(y.mT.flatten()), 0.5),
        (lambda y: 1 / (1 + torch.exp(-y)), None),
    ],
)
def test_one_unit_is_enough_for_two_labels(f: Callable[..., Any], threshold: float | None) -> None:
    """The threshold is 0, after a sigmoid 1/2; for other activations accuracy is not measured."""
    torch.manual_seed(4)
    model = Net(lambda s, x: f(s.b(torch.tanh(s.a(x)))), a=nn.Linear(4, 5), b=nn.Linear(5, 1)).double().eval()
    x, y = rows_of(40, 4), np.arange(40) % 2
    out = model.requires_grad_(False)(torch.from_numpy(x)).numpy().ravel()
    network = traced_network(model.to(oracles.DEVICE), x, (), device=oracles.DEVICE, dtype=torch.float64)
    result = ProbeFit()(network, probe_of(x, y), RandomStreams(0))
    if threshold is None:
        assert result["probe_accuracy"].status.tolist() == [Status.NOT_MEASURED]
        return
    assert result["probe_accuracy"].value[0] == ((out > threshold) == y).mean()
    right = np.where(y == 1, out, 1 - out) if threshold else 1 / (1 + np.exp(np.where(y == 1, -out, out)))
    assert result["probe_loss"].value[0] == pytest.approx(-np.log(right).mean(), rel=1e-12)
