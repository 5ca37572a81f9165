"""Binned information of whole layers against dictionary counts over symbols cut with numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import Parameters, forward, network_of, probe_of, random_chain, symbol_entropy

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.binned import BinnedInformation


def rows_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def measured(
    chains: Sequence[Parameters],
    probe: Probe,
    activation: str = "tanh",
    output: str = "identity",
    **settings: Any,
) -> tuple[BinnedInformation, Mapping[str, Estimate]]:
    measure = BinnedInformation(**settings)
    return measure, measure(network_of(chains, activation, output), probe, RandomStreams(0))


def cut(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Cut the closed range into K equal cells; the top edge is in the last cell, values outside in the end cells."""
    if high == low:
        return np.zeros_like(values)
    return np.clip(np.floor((values - low) / (high - low) * bins), 0, bins - 1)


def expected(cells: np.ndarray, y: np.ndarray) -> tuple[float, float, int]:
    entropy, occupied = symbol_entropy(cells)
    given = sum((y == c).mean() * symbol_entropy(cells[y == c])[0] for c in np.unique(y))
    return entropy, entropy - given, occupied


@pytest.mark.parametrize("at", ["post", "pre"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_every_layer_has_the_entropy_of_a_dictionary_of_symbols(activation: str, at: At) -> None:
    """Ranges: the activation's own (tanh, sigmoid, softmax) after it; else the closed range of the whole layer."""
    chains = [random_chain((5, 4, 3), seed) for seed in (1, 2)]
    x, y = rows_of(60, 5), np.arange(60) % 3
    measure, result = measured(chains, probe_of(x, y), activation, "softmax", bins=(3, 30), widths=(0.07, 0.5), at=at)
    names = list(measure.coordinates["binning"])
    assert sorted(names) == sorted(["3 bins", "30 bins", "width 0.07", "width 0.5"])
    for c, chain in enumerate(chains):
        for layer, pair in enumerate(forward(*chain, activation, "softmax", torch.from_numpy(x))):
            values = pair[at == "post"].numpy()
            own = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0)}.get(
                "softmax" if layer else activation
            )
            low, high = own if own and at == "post" else (values.min(), values.max())
            for k, name in enumerate(names):
                if name.startswith("width"):
                    width = float(name.split()[1])
                    cells = np.floor(values / width)
                else:
                    bins = int(name.split()[0])
                    cells, width = cut(values, low, high, bins), (high - low) / bins
                entropy, information, occupied = expected(cells, y)
                assert result["mi_binned_xt"].value[c, layer, k] == pytest.approx(entropy, rel=1e-12)
                assert result["mi_binned_ty"].value[c, layer, k] == pytest.approx(information, rel=1e-12, abs=1e-12)
                assert result["mi_binned_cells"].value[c, layer, k] == occupied
                assert result["mi_binned_width"].value[c, layer, k] == pytest.approx(width, rel=1e-12)
                if not name.startswith("width"):
                    assert result["mi_binned_outside"].value[c, layer, k] == 0


def test_given_limits_set_the_cells_and_the_share_outside() -> None:
    chain, x = random_chain((4, 3), 2, scale=2.0), rows_of(50, 4)
    values = forward(*chain, "relu", "identity", torch.from_numpy(x))[0][1].numpy()
    _, result = measured([chain], probe_of(x), "relu", bins=(8,), limits=(-1.0, 1.5))
    assert result["mi_binned_xt"].value[0, 0, 0] == pytest.approx(symbol_entropy(cut(values, -1, 1.5, 8))[0], rel=1e-12)
    share = np.mean((values < -1) | (values > 1.5))
    assert 0.1 < share < 0.9
    assert result["mi_binned_outside"].value[0, 0, 0] == share
    assert result["mi_binned_width"].value[0, 0, 0] == 2.5 / 8


def test_saturated_tanh_uses_the_end_cells() -> None:
    """Values of exactly +-1 and thirty bins: two symbols a unit, none outside."""
    weights, biases = [100.0 * torch.eye(3, dtype=torch.float64)], [None]
    x = np.sign(rows_of(40, 3))
    measure = BinnedInformation(bins=(30,))
    result = measure(network_of([(weights, biases)], "relu", "tanh"), probe_of(x), RandomStreams(0))
    entropy, occupied = symbol_entropy(x)
    assert result["mi_binned_xt"].value[0, 0, 0] == pytest.approx(entropy, rel=1e-12)
    assert result["mi_binned_cells"].value[0, 0, 0] == occupied == 8
    assert result["mi_binned_outside"].value[0, 0, 0] == 0


def test_fine_bins_saturate_at_ln_n() -> None:
    """methods.md 3: in wide layers H(bin T) is ln n; coarse ones are not marked."""
    probe = probe_of(rows_of(100, 4), np.arange(100) % 2)
    measure, result = measured([random_chain((4, 20, 2), 1)], probe, widths=(1e-6, 8.0), bins=())
    fine = list(measure.coordinates["binning"]).index("width 1e-06")
    assert result["mi_binned_xt"].value[0, :, fine] == pytest.approx([math.log(100)] * 2, rel=1e-12)
    for key in ("mi_binned_xt", "mi_binned_ty"):
        assert (result[key].status[0, :, fine] == Status.SATURATED).all()
        assert (result[key].status[0, :, 1 - fine] == Status.OK).all()


def test_duplicates_saturate_at_their_own_entropy() -> None:
    """50 rows, each twice: the ceiling is ln 50, and H(bin T) reaches but never exceeds it."""
    x = np.repeat(rows_of(50, 4), 2, axis=0)
    _, result = measured([random_chain((4, 20, 2), 1)], probe_of(x), widths=(1e-6,), bins=())
    assert result["mi_binned_xt"].value[0, 0, 0] == pytest.approx(math.log(50), rel=1e-12)
    assert (result["mi_binned_xt"].status == Status.SATURATED).all()


def test_a_dead_layer_has_entropy_0_and_a_nonfinite_one_none() -> None:
    dead, broken = random_chain((4, 5, 3, 2), 2), random_chain((4, 5, 3, 2), 3)
    dead[0][1].zero_()
    broken[0][1][0, 0] = float("nan")
    _, result = measured([dead, broken], probe_of(rows_of(30, 4), np.arange(30) % 2), "relu", bins=(30,), widths=(0.1,))
    for key in ("mi_binned_xt", "mi_binned_ty"):
        found = result[key]
        assert (found.status[0, 1:] == Status.DEAD).all()
        assert found.value[0, 1:] == pytest.approx(np.zeros((2, 2)), abs=1e-12)
        assert (found.status[1, 1:] == Status.NONFINITE).all()
        assert np.isnan(found.value[1, 1:]).all()
        assert np.isfinite(found.value[:, 0]).all()
        assert not np.isin(found.status[:, 0], [Status.DEAD, Status.NONFINITE]).any()


def test_without_labels_ty_is_not_measured() -> None:
    _, result = measured([random_chain((4, 3), 2)], probe_of(rows_of(30, 4)))
    assert (result["mi_binned_ty"].status == Status.NOT_MEASURED).all()
    assert np.isnan(result["mi_binned_ty"].value).all()


def test_halving_an_aligned_grid_never_lowers_the_entropy() -> None:
    measure, result = measured(
        [random_chain((4, 5, 3), 4)], probe_of(rows_of(200, 4)), widths=(2.0, 1.0, 0.5, 0.25), bins=()
    )
    order = np.argsort([-float(name.split()[1]) for name in measure.coordinates["binning"]])
    values = result["mi_binned_xt"].value[0][:, order]
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert (values[:, 0] < values[:, -1]).all()
