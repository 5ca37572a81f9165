"""MEASURES: that a measure is declared once, that its declaration is whole, and that it is what is measured."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracles import network_of, probe_of, random_chain
from support.sources import nodes

import ibscan
from ibscan.core.estimate import Estimate
from ibscan.core.measure import Measure
from ibscan.core.option import settings_of
from ibscan.core.quantity import DIMENSIONS
from ibscan.core.streams import RandomStreams
from ibscan.engine.request import Request, requested, run_settings
from ibscan.errors import UsageError
from ibscan.measures import CHANNELS, MEASURES, VERBS, dimensions, measure_settings, quantities

PACKAGE = Path(ibscan.__file__).parent
SMALL = {"max_replicas": 8, "max_draws": 64, "tolerance": 1.0, "rel_noise": (0.5,)}


def small(measure: type[Measure]) -> Measure:
    names = {setting.field for setting in settings_of(measure)}
    return measure(**{name: value for name, value in SMALL.items() if name in names})


def measured(measure: Measure) -> dict[str, Estimate]:
    chain = network_of([random_chain((4, 5, 6, 70, 3), seed) for seed in range(2)])
    rows = np.random.default_rng(0).standard_normal((40, 4))
    return dict(measure(chain, probe_of(rows, np.arange(40) % 3), RandomStreams(0)))


def test_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, ibscan.measures, ibscan.engine.request; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_asks_which_measure_it_has() -> None:
    names = {measure.__name__ for measure in MEASURES}
    for path in PACKAGE.rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                assert not names & set(re.findall(r"\w+", ast.unparse(node.args[1]))), path


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_what_is_declared_is_what_is_measured(measure: type[Measure]) -> None:
    """Keys, companions, statuses and dimensions of every estimate are those of its quantity."""
    one = small(measure)
    found = measured(one)
    declared = {quantity.key: quantity for quantity in measure.quantities}
    assert found.keys() == declared.keys()
    assert set(measure.required_keys) <= declared.keys()
    for key, estimate in found.items():
        quantity = declared[key]
        there = {suffix for field, suffix in Estimate.COMPANIONS.items() if getattr(estimate, field) is not None}
        assert there == set(quantity.companions), key
        assert (estimate.status is None) == quantity.counted, key
        lead = (2, 4) if quantity.per_layer else (2,)
        assert estimate.value.shape[: len(lead)] == lead
        for dim, length in zip(quantity.dims, estimate.value.shape[len(lead) :], strict=True):
            assert len(one.coordinates.get(dim, range(length))) == length


def test_every_quantity_says_what_it_is_and_what_it_does_not_say() -> None:
    found = quantities()
    assert len({quantity.key for _, quantity in found}) == len(found)
    for _, quantity in found:
        assert all((quantity.symbol, quantity.unit, quantity.meaning, quantity.formula)), quantity.key
        assert quantity.caveat, quantity.key
    assert set(DIMENSIONS) == set(dimensions())


def test_every_option_is_one_keyword_with_flags_of_its_own() -> None:
    settings = (*run_settings(), *measure_settings())
    flags = [flag for setting in settings for declared in setting.flags for flag in declared.split("/")]
    assert len(set(flags)) == len(flags)
    assert len({setting.name for setting in settings}) == len(settings)
    assert all(setting.help.endswith((".", "600.")) and "{" not in setting.help for setting in settings)
    names = {setting.name for setting in settings}
    assert {option for dimension in dimensions().values() for option in dimension.options} <= names


def test_measures_that_share_a_keyword_share_its_option() -> None:
    options: dict[str, object] = {}
    for measure in MEASURES:
        for setting in settings_of(measure):
            assert options.setdefault(setting.name, setting.option) is setting.option, setting.name


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_fields_without_an_option_are_not_the_users(measure: type[Measure]) -> None:
    options = {setting.field for setting in settings_of(measure)}
    fields: Any = measure
    settled = {field.name for field in dataclasses.fields(fields) if "settle" in field.metadata}
    # Accuracy is of all rows.
    assert {field.name for field in dataclasses.fields(fields)} - options - settled <= {"samples"}
    assert measure.verb in ("", *VERBS)


@pytest.mark.parametrize("function", [ibscan.rank, ibscan.mi, ibscan.cluster, ibscan.scan])
def test_python_shows_every_option_with_its_default(function: object) -> None:
    shown = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert {"ckpts", "progress", *(setting.name for setting in (*run_settings(), *measure_settings()))} == set(shown)
    assert shown["ckpts"].default == "."
    assert shown["tolerance"].default == 0.05
    assert shown["from_layer"].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_is_not_given_keeps_its_default() -> None:
    request = requested(
        "mi", [Path()], {"noise": 0.3, "bin_range": "-1:1", "epochs": [1, 2], "probe_arg": "scale=2"}, ""
    )
    assert request.options == {"noise": (0.3,), "bin_range": (-1.0, 1.0)}
    assert (request.epochs, request.probe_arg) == ("1,2", {"scale": 2})
    assert request.option("tolerance") == 0.05
    assert Request("mi").device == "auto"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eps": -1}, "--eps -1: expected a finite number > 0"),
        ({"eps": ()}, "eps names no threshold"),
        ({"channel": "both"}, f"--channel both: expected {' or '.join(CHANNELS)}"),
        ({"rel_noise": 0}, "--rel-noise 0: expected a finite number > 0"),
        ({"bin_range": "0:1", "bin_width": 0.1}, "add --bins K"),
        ({"tolerance": None}, "--tolerance None"),
        ({"model_arg": 3}, "model_arg"),
        ({"depth": 3}, "there is no option 'depth'"),
    ],
)
def test_an_option_that_is_none_is_refused_by_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        requested("scan", [Path()], given, "")
