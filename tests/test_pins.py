"""What a file holds and what a part is named by, as they were: a change of these bytes orphans what users stored.

`python tests/test_pins.py` writes pins.json anew, where a change is meant; its diff says what changed.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ibscan.core.result import Result, Variable
from ibscan.engine.complete import planned
from ibscan.engine.plan import Plan
from ibscan.engine.request import Request, Silent, requested
from ibscan.engine.run import run

PINS = Path(__file__).with_name("pins.json")
SERIES = Path(__file__).parent.parent / "fixtures" / "szt-tanh"
REQUESTS: dict[str, dict[str, Any]] = {
    "scan": {"verb": "scan", "samples": 64, "tolerance": 0.5, "max_replicas": 64, "max_draws": 256},
    "usual": {"verb": "scan"},
    "rank": {"verb": "rank", "at": "post", "from_layer": "fc1", "eps": (0.5,), "rel_eps": (), "spectrum_rows": "all"},
    "mi": {"verb": "mi", "noise": (0.1, 0.3), "rel_noise": (0.2,), "bin_width": (0.5,), "bins": (10,), "seed": 3},
    "readout": {"verb": "mi", "channel": ("readout",), "layers": ("fc2",), "bin_range": (-1.0, 1.0), "samples": "all"},
    "cluster": {"verb": "cluster", "at": "pre", "dtype": "float32"},
}
# Rounding differs between processors and libraries of linear algebra.
RELATIVE, ABSOLUTE = 1e-10, 1e-12


def pinned() -> dict[str, Any]:
    result = run(request("scan")).result
    everything = {**result.coordinates, **result.variables}
    return {
        "settings": result.attrs["settings"],
        "attrs": sorted(result.attrs),
        "keys": {name: key(name) for name in REQUESTS},
        "measures": {name: [repr(measure) for measure in plan(name).measures] for name in REQUESTS},
        "variables": {name: described(variable) for name, variable in everything.items()},
        "hashes": {name: hashed(variable) for name, variable in result.variables.items() if not fractional(variable)},
        "numbers": {name: cells(variable) for name, variable in result.variables.items() if fractional(variable)},
    }


def request(name: str) -> Request:
    given = dict(REQUESTS[name])
    return requested(given.pop("verb"), [SERIES], {"epochs": "0,1000", "device": "cpu", **given}, "")


def plan(name: str) -> Plan:
    return planned(request(name), Silent())


def key(name: str) -> str:
    """Return the part key as of version 0.1.0: keys of a new version differ on purpose."""
    made = plan(name)
    return dataclasses.replace(made, attrs={**made.attrs, "ibscan_version": "0.1.0"}).part_key()


def described(variable: Variable) -> list[str]:
    attributes = {name: np.asarray(value).tolist() for name, value in variable.attrs.items()}
    return [" ".join(variable.dims), str(variable.values.dtype), json.dumps(attributes, sort_keys=True)]


def fractional(variable: Variable) -> bool:
    return variable.values.dtype.kind == "f"


def hashed(variable: Variable) -> str:
    """Return the hash of counts and statuses."""
    return hashlib.sha256(np.ascontiguousarray(variable.values).tobytes()).hexdigest()


def cells(variable: Variable) -> list[float]:
    """Return some cells of an array and, so that none is overlooked, their mean: where there is a number."""
    flat = variable.values[np.isfinite(variable.values)]
    spread = flat[np.linspace(0, len(flat) - 1, 5).astype(int)] if len(flat) else flat
    return [float(len(flat)), *spread.tolist(), *([flat.mean()] if len(flat) else [])]


@pytest.fixture(scope="module")
def pins() -> dict[str, Any]:
    return json.loads(PINS.read_text())


@pytest.fixture(scope="module")
def result() -> Result:
    return run(request("scan")).result


def test_settings_and_root_attributes_keep_their_bytes(pins: dict[str, Any], result: Result) -> None:
    assert result.attrs["settings"] == pins["settings"]
    assert sorted(result.attrs) == pins["attrs"]


@pytest.mark.parametrize("name", REQUESTS)
def test_part_keys_keep_their_bytes(pins: dict[str, Any], name: str) -> None:
    assert [repr(measure) for measure in plan(name).measures] == pins["measures"][name]
    assert key(name) == pins["keys"][name]


def test_variables_keep_dimensions_type_and_attributes(pins: dict[str, Any], result: Result) -> None:
    everything = {**result.coordinates, **result.variables}
    assert {name: described(variable) for name, variable in everything.items()} == pins["variables"]


def test_variables_keep_their_order(pins: dict[str, Any], result: Result) -> None:
    assert [*result.coordinates, *result.variables] == list(pins["variables"])


def test_counts_and_statuses_keep_their_bits(pins: dict[str, Any], result: Result) -> None:
    assert {name: hashed(v) for name, v in result.variables.items() if not fractional(v)} == pins["hashes"]


def test_numbers_stay_but_for_rounding(pins: dict[str, Any], result: Result) -> None:
    found = {name: cells(variable) for name, variable in result.variables.items() if fractional(variable)}
    assert found == {
        name: pytest.approx(numbers, rel=RELATIVE, abs=ABSOLUTE) for name, numbers in pins["numbers"].items()
    }


if __name__ == "__main__":
    PINS.write_text(json.dumps(pinned(), indent=1, ensure_ascii=False) + "\n")
