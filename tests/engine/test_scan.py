"""Measuring blocks: an error at one layer or checkpoint costs no other its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import network_of, probe_of, random_chain

from ibscan.core.estimate import Status
from ibscan.engine.scan import Block, _outcomes
from ibscan.measures import noisy_cells, readout_cells
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.numerics.channels.mixture import Mixture
from ibscan.numerics.geometry import class_means as geometry

WIDTHS = (4, 5, 6, 3)
PROBE = probe_of(np.random.default_rng(0).standard_normal((40, 4)), np.arange(40) % 2)
FAILING = 1


def chains(count: Any) -> Any:
    return network_of([random_chain(WIDTHS, seed) for seed in range(count)])


def outcome(measure: Any, chain: Any) -> Any:
    ((_, found, _),) = _outcomes(chain, [measure], PROBE, 0, None)
    return found


def failing_at(width: Any, error: Any) -> Any:
    """Return a wrapper that makes a function raise `error` for values of `width` units."""

    def guard(function: Any) -> Any:
        def guarded(values: Any, *rest: Any, **more: Any) -> Any:
            if (values.centres if isinstance(values, Mixture) else values).shape[-1] == width:
                raise error
            return function(values, *rest, **more)

        return guarded

    return guard


ERRORS = {
    Status.FAILED: torch.linalg.LinAlgError("no convergence"),  # type: ignore[attr-defined]
    Status.OUT_OF_MEMORY: MemoryError(),
}
PLACES = {
    "mi_readout": (ReadoutInformation(), readout_cells, "readout_cell"),
    "mi_network": (NetworkInformation(max_replicas=16, max_draws=64), noisy_cells, "principal_components"),
    "clustering": (Clustering(), geometry, "class_geometry"),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("status", ERRORS)
@pytest.mark.parametrize("name", PLACES)
def test_an_error_at_one_layer_leaves_the_others_measured(
    name: Any, status: Any, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, module, function = PLACES[name]
    whole = outcome(measure, chains(count))
    spoil = failing_at(WIDTHS[1 + FAILING], ERRORS[status])
    monkeypatch.setattr(module, function, spoil(getattr(module, function)))
    found = outcome(measure, chains(count))
    assert found.keys() == whole.keys()
    others = [layer for layer in range(len(WIDTHS) - 1) if layer != FAILING]
    for key, estimate in found.items():
        assert estimate.value.shape == whole[key].value.shape
        if estimate.status is None or estimate.status.ndim < 2:
            continue
        met = estimate.status[:, FAILING]
        assert ((met == status) | (whole[key].status[:, FAILING] == Status.NOT_MEASURED)).all(), key
        assert np.isnan(estimate.value[:, FAILING]).all()
        np.testing.assert_array_equal(estimate.status[:, others], whole[key].status[:, others])
        np.testing.assert_allclose(estimate.value[:, others], whole[key].value[:, others], rtol=1e-9)
        if estimate.stderr is not None:
            np.testing.assert_allclose(estimate.stderr[:, others], whole[key].stderr[:, others], rtol=1e-9)


def test_a_failed_layer_is_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, module, function = PLACES["mi_readout"]
    spoil = failing_at(WIDTHS[1 + FAILING], ERRORS[Status.FAILED])
    monkeypatch.setattr(module, function, spoil(getattr(module, function)))
    chain = chains(2)
    outcomes: Any = ((measure, outcome(measure, chain), 40),)
    block = Block((), chain.layers, outcomes, {})
    assert list(block.sentences()) == [("mi_readout of 'fc2' is failed: LinAlgError: no convergence.", True)]


@pytest.mark.parametrize("measure", [LocalRank(), BinnedInformation(), Clustering(), ReadoutInformation()])
def test_a_bug_is_raised_and_not_stored_as_a_status(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chains(1)
    monkeypatch.setattr(type(chain), "walk", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    monkeypatch.setattr(type(chain), "grams", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    monkeypatch.setattr(type(chain), "jacobians", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        outcome(measure, chain)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [ReadoutInformation(), NetworkInformation(max_replicas=32, tolerance=0.3)])
@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e-100, 1e100, 1e200, 1e300])
def test_a_layer_of_any_scale_is_measured_and_leaves_the_others_alone(measure: Any, scale: Any) -> None:
    """A layer of values far below the noise has no information, one far above it H(X)."""
    weights, biases = random_chain((4, 5, 4, 3), 0, bias=False)
    weights[1] = weights[1] * scale
    found = outcome(measure, network_of([(weights, biases)], "identity"))
    plain = outcome(measure, network_of([random_chain((4, 5, 4, 3), 0, bias=False)], "identity"))
    key = f"{measure.name}_xt"
    assert found[key].status[0, 0] == plain[key].status[0, 0]
    assert found[key].value[0, 0] == pytest.approx(plain[key].value[0, 0], abs=1e-9)
    if measure.name == "mi_readout":
        assert found[key].value[0, 1, 0] == pytest.approx(np.log(40) if scale > 1 else 0.0, abs=1e-9)
    else:
        assert found[key].status[0, 1] not in (Status.FAILED, Status.NONFINITE)
