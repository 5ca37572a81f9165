"""Accuracy and cross entropy against torch's own losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import forward, network_of, probe_of, random_chain
from torch.nn import functional

from ibscan.measures.fit import ProbeFit, decisions, fits
from ibscan.types import Status, Streams


def rows_of(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(chains, probe, output="identity"):
    network = network_of(chains, "tanh", output)
    return ProbeFit()(network, probe, Streams(0)), network


@pytest.mark.parametrize("output", ["identity", "softmax"])
def test_classes_against_torch(output):
    """A softmax output is a probability: its logits are what went in. 1e-10 relative in float64."""
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
def test_a_single_unit_decides_at_one_half(output):
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
def test_confident_mistakes_have_a_finite_loss(output, width, classes):
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
def test_labels_that_do_not_fit(width, classes):
    probe = probe_of(rows_of(24, 5), np.arange(24) % classes)
    result, network = measured([random_chain((5, 6, width), 1)], probe)
    assert not fits(network, probe)
    assert decisions(network, probe) is None
    for key in ("probe_accuracy", "probe_loss"):
        assert result[key].status.tolist() == [Status.NOT_MEASURED]
        assert np.isnan(result[key].value).all()


def test_without_labels():
    result, network = measured([random_chain((5, 6, 3), 1)], probe_of(rows_of(20, 5)))
    assert not fits(network, probe_of(rows_of(20, 5)))
    assert result["probe_accuracy"].status.tolist() == [Status.NOT_MEASURED]


def test_nan_weights_spoil_their_own_checkpoint_only():
    chains = [random_chain((5, 6, 3), seed) for seed in (1, 2)]
    probe = probe_of(rows_of(20, 5), np.arange(20) % 3)
    clean, _ = measured(chains, probe)
    chains[0][0][0][0, 0] = float("nan")
    result, _ = measured(chains, probe)
    for key in ("probe_accuracy", "probe_loss"):
        assert result[key].status.tolist() == [Status.NONFINITE, Status.OK]
        assert np.isnan(result[key].value[0])
        assert result[key].value[1] == pytest.approx(clean[key].value[1], rel=1e-12)
