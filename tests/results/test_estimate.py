"""`Result.estimate` gives back what was laid out in the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Estimate, Status
from ibscan.core.quantity import NOISE, Quantity
from ibscan.core.result import Result
from ibscan.results.store import read, write

FIELDS = ("value", "status", *Estimate.COMPANIONS)


def assert_same(one: Estimate, other: Estimate) -> None:
    for name in FIELDS:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("key", ["mi_network_xt", "mi_network_ty", "local_rank", "nc1"])
def test_what_was_built_comes_back(synthetic: ModuleType, tmp_path: Path, key: str, stored: bool) -> None:
    measure = synthetic.Fake("m", (Quantity(key, "s", "nat", "a number", (NOISE,)),), {"noise": (0.1, 1.0)})
    checkpoints = [synthetic.checkpoint(k) for k in range(3)]
    shape = (3, len(synthetic.LAYERS), 2)
    arrays: dict[str, Any] = {
        name: np.arange(24.0).reshape(shape) + 100 * k for k, name in enumerate(Estimate.COMPANIONS)
    }
    status = np.zeros(shape, dtype=np.int8)
    status[1, 2, 0] = Status.UNRESOLVED
    made = Estimate(np.linspace(0, 1, 24).reshape(shape), status, **arrays)
    found = synthetic.build(checkpoints, synthetic.layers(), [(measure, {key: made}, 64)], attrs={})
    if stored:
        write(found, tmp_path / "r.h5")
        found = read(tmp_path / "r.h5")
    assert_same(found.estimate(key), made)
    assert found.quantities[0] == key
    beside = {Estimate.companion(key, suffix): name for name, suffix in Estimate.COMPANIONS.items()}
    for name, field in beside.items():
        assert Estimate.field_of(name) == field
        np.testing.assert_array_equal(found.status(name), status)


def test_counts_have_no_status_and_nothing_beside_them(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2)).estimate("distance_within")
    assert found.value.dtype == np.int64
    assert all(getattr(found, name) is None for name in FIELDS[1:])


def test_an_older_file_has_fewer_companions(synthetic: ModuleType) -> None:
    whole = synthetic.result(range(2), ["readout"])
    key = "mi_readout_xt"
    attrs = {**whole[key].attrs, "ancillary_variables": f"{key}_se {key}_status"}
    old = Result(whole.coordinates, whole.variables | {key: dataclasses.replace(whole[key], attrs=attrs)}, whole.attrs)
    found = old.estimate(key)
    assert found.lower is None
    np.testing.assert_array_equal(found.stderr, whole[f"{key}_se"].values)


def test_a_companion_of_another_shape_is_none(synthetic: ModuleType) -> None:
    whole = synthetic.result(range(2), ["rank", "fit"])
    found = dataclasses.replace(whole, variables={**whole.variables, "local_rank_se": whole["probe_loss"]})
    assert found.estimate("local_rank").stderr is None
    assert found.estimate("local_rank").maximum is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("local_rank_se", r"estimate\('local_rank'\)\.stderr"),
        ("local_rank_status", r"estimate\('local_rank'\)\.status"),
        ("epoch", "epoch is a coordinate; expected one of .*local_rank"),
        ("local_rnak", "not in this result; expected one of .*local_rank"),
    ],
)
def test_what_is_no_quantity_is_refused(synthetic: ModuleType, name: str, sentence: str) -> None:
    with pytest.raises(KeyError, match=sentence):
        synthetic.result([0], ["rank"]).estimate(name)


def test_no_name_of_a_companion_is_spelt_anywhere_else() -> None:
    """Names of companions are made and taken apart in `Estimate` alone."""
    package = Path(__file__).parents[2] / "ibscan"
    suffixes = (*Estimate.COMPANIONS.values(), "status")
    spelt = [f"}}_{suffix}{quote}" for suffix in suffixes for quote in "\"'"]
    spelt += [f'{word}("_{suffix}"' for suffix in suffixes for word in ("endswith", "removesuffix")]
    # The fields of a cell of the network channel: `xt_se` is no stored name.
    files = [path for path in package.rglob("*.py") if path.parts[-2:] != ("measures", "network.py")]
    found = [f"{path.name}: {text}" for path in files for text in spelt if text in path.read_text()]
    assert not found, found
