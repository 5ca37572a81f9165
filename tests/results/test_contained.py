"""A part is contained in a result that has every cell of it, measured alike, no less precise."""

import dataclasses
import json
from types import ModuleType
from typing import Any

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.results.contained import holds
from ibscan.results.join import join
from ibscan.results.select import selected


def changed(result: Result, name: str, place: Any, number: Any) -> Result:
    values = result[name].values.copy()
    values[place] = number
    variable = dataclasses.replace(result[name], values=values)
    return dataclasses.replace(result, variables={**result.variables, name: variable})


def test_what_was_joined_is_held(synthetic: ModuleType) -> None:
    part, others = synthetic.result([0, 1]), synthetic.result([2, 3])
    held = join(others, part)
    assert holds(held, part) == [True, True]
    assert holds(others, part) == [False, False]
    assert holds(join(others, synthetic.result([1])), part) == [False, True]


def test_a_result_in_which_a_cell_is_missing_or_failed_does_not_hold_it(synthetic: ModuleType) -> None:
    part = synthetic.result([0, 1])
    for status in (Status.NOT_MEASURED, Status.FAILED, Status.OUT_OF_MEMORY):
        held = changed(part, "mi_readout_xt_status", (1, 0, 0), status)
        assert holds(held, part) == [True, False]
        # What failed in the part itself is of no use to anybody.
        assert holds(part, held) == [True, True]
        assert holds(held, held) == [True, True]


def test_a_result_with_a_less_precise_cell_does_not_hold_it(synthetic: ModuleType) -> None:
    part = synthetic.result([0, 1])
    error = float(part["mi_readout_xt_se"].values[0, 0, 0])
    assert holds(changed(part, "mi_readout_xt_se", (0, 0, 0), 1.01 * error), part) == [False, True]
    assert holds(changed(part, "mi_readout_xt_se", (0, 0, 0), 0.5 * error), part) == [True, True]
    # Rounding makes no error a larger one.
    assert holds(changed(part, "mi_readout_xt_se", (0, 0, 0), error * (1 + 1e-12)), part) == [True, True]


def test_a_part_measured_elsewhere_is_not_held(synthetic: ModuleType) -> None:
    part = synthetic.result([0])
    for name in ("local_rank", "mi_readout_xt", "distance_within"):
        less = selected(part, variables=[main for main in part.variables if not main.startswith(name)])
        assert holds(less, part) == [False], name
        assert holds(part, less) == [True]
    thinner = selected(part, coordinates={"eps": part["eps"].values[:1].tolist()})
    assert (holds(thinner, part), holds(part, thinner)) == ([False], [True])
    attrs = {**part["local_rank"].attrs, "rows": 7}
    moved = {**part.variables, "local_rank": dataclasses.replace(part["local_rank"], attrs=attrs)}
    assert holds(dataclasses.replace(part, variables=moved), part) == [False]


def test_a_part_of_another_identity_is_not_held(synthetic: ModuleType) -> None:
    part = synthetic.result([0])
    for attrs in ({"seed": 99}, {"settings": json.dumps({**part.settings, "dtype": "other"})}):
        assert holds(dataclasses.replace(part, attrs={**part.attrs, **attrs}), part) == [False]


def test_rounding_does_not_make_an_old_value_the_better_one(synthetic: ModuleType) -> None:
    old = synthetic.result([0])
    new = changed(old, "mi_readout_xt_se", ..., np.array(old["mi_readout_xt_se"].values) * (1 + 1e-12))
    new = changed(new, "mi_readout_xt", (0, 0, 0), 1.25)
    assert join(old, new, tolerance=0.05)["mi_readout_xt"].values[0, 0, 0] == 1.25
