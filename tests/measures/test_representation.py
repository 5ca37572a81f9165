"""The spectrum of whole layers against numpy, its statuses, its thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import forward, network_of, probe_of, random_chain

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.representation import Representation

NAMES = ("effective_rank", "participation", "stable_rank", "entropy")


def measured(chains: Any, x: Any, **settings: Any) -> Mapping[str, Estimate]:
    return Representation(**settings)(network_of(chains), probe_of(x), RandomStreams(0))


@pytest.mark.parametrize("at", ["post", "pre"])
def test_every_layer_has_the_spectrum_of_numpy(at: At) -> None:
    """Equal rows count as often as they occur: the covariance is weighted."""
    x = np.random.default_rng(0).standard_normal((60, 5))
    x[40:] = x[7]
    chains = [random_chain((5, 12, 8, 3), seed) for seed in (1, 2)]
    found = measured(chains, x, at=at, rel_eps=(0.03, 0.5))
    for c, chain in enumerate(chains):
        for layer, pair in enumerate(forward(*chain, "tanh", "identity", torch.from_numpy(x))):
            roots = np.linalg.svd(pair[at == "post"].numpy() - pair[at == "post"].numpy().mean(0), compute_uv=False)
            roots = roots[roots > 1e-12 * roots[0]]
            p, q = roots**2 / (roots**2).sum(), roots / roots.sum()
            expected = (np.exp(-(q * np.log(q)).sum()), 1 / (p**2).sum(), 1 / p[0], -(p * np.log(p)).sum())
            for name, value in zip(NAMES, expected, strict=True):
                assert found[f"representation_{name}"].value[c, layer] == pytest.approx(value, rel=1e-9)
            ranks = [(roots > eps * roots[0]).sum() for eps in (0.03, 0.5)]
            assert found["representation_numerical_rank"].value[c, layer].tolist() == ranks
            first, last = math.ceil(len(roots) / 10), math.ceil(len(roots) / 2)
            alpha = found["representation_alpha"]
            if len(roots) >= 5:
                slope = np.polyfit(np.log(np.arange(first, last + 1)), -2 * np.log(roots[first - 1 : last]), 1)[0]
                assert alpha.value[c, layer] == pytest.approx(slope, rel=1e-9)
            assert alpha.status[c, layer] == (Status.OK if len(roots) >= 5 else Status.NOT_MEASURED)
            assert found["representation_alpha_first"].value[c, layer] == first
            assert found["representation_alpha_last"].value[c, layer] == last


def test_dead_and_nonfinite_layers_have_their_status() -> None:
    dead, broken = random_chain((4, 5, 3, 2), 2), random_chain((4, 5, 3, 2), 3)
    dead[0][1].zero_()
    broken[0][1][0, 0] = math.nan
    found = measured([dead, broken], np.random.default_rng(0).standard_normal((20, 4)))
    for name in (*NAMES, "numerical_rank", "alpha"):
        one = found[f"representation_{name}"]
        assert (one.status[0, 1:] == Status.DEAD).all()
        assert (one.status[1, 1:] == Status.NONFINITE).all()
        assert np.isnan(one.value[1, 1:]).all()
        assert name == "alpha" or (one.value[0, 1:] == 0.0).all()
    assert (found["representation_alpha_first"].value[1, 1:] == -1).all()


def test_without_thresholds_the_rest_is_measured() -> None:
    found = measured([random_chain((4, 5, 3), 2)], np.random.default_rng(0).standard_normal((20, 4)), rel_eps=())
    assert found["representation_numerical_rank"].value.shape == (1, 2, 0)
    assert (found["representation_entropy"].status == Status.OK).all()
