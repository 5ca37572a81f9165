"""The scale of layers: how much they grew, and the noise that would tell something."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.face.scan import scan
from ibscan.views.cells import number

PAIRS = ("distance_within", "distance_between", "distance_edge_low", "distance_edge_high")


def told(synthetic: ModuleType, found: Result, **options: object) -> str:
    return "\n".join(line for block in synthetic.printed(found, 160, **options) for line in block)


def at_distance(found: Result, distances: np.ndarray) -> Result:
    """Put every pair of rows of layers at a distance (C, L), in the last of five bins from 0 on."""
    width = distances[..., None] / 4.5
    for name, edges in zip(PAIRS[2:], (np.arange(5), np.arange(1, 6)), strict=True):
        found[name].values[...] = width * edges
    for name in PAIRS[:2]:
        found[name].values[...] = np.array([0, 0, 0, 0, 100])
    return found


def saturated(found: Result, share: float = 1.0) -> Result:
    codes = found["mi_readout_xt_status"].values
    codes.reshape(-1)[: round(share * codes.size)] = Status.SATURATED
    return found


def test_the_noise_named_tells_half_of_what_there_is(synthetic: ModuleType) -> None:
    """Of rows all at distance d, -ln(1/n + (1 - 1/n) exp(-d^2/4s^2)) is half of ln n."""
    found = saturated(at_distance(synthetic.result((0, 1)), np.full((2, 4), 30.0)))
    rows = 64
    alike = (rows**-0.5 - 1 / rows) / (1 - 1 / rows)
    exact = 30.0 / math.sqrt(-4 * math.log(alike))
    assert f"--noise {float(f'{exact:.1g}'):g} would tell more." in told(synthetic, found)


def test_it_is_named_where_most_cells_say_nothing_alone(synthetic: ModuleType) -> None:
    found = at_distance(synthetic.result((0, 1)), np.full((2, 4), 30.0))
    assert "would tell more" not in told(synthetic, saturated(found, 0.5))
    for options in ({"full": True}, {"full": False}, {"summary": True}):
        assert "62 % of cells at absolute noise are saturated" in told(synthetic, saturated(found, 0.6), **options)


def test_a_noise_that_was_measured_is_not_named(synthetic: ModuleType) -> None:
    found = saturated(at_distance(synthetic.result((0, 1)), np.full((2, 4), 0.3)))
    assert "would tell more" not in told(synthetic, found)


def test_without_labels_or_distances_it_goes_by_what_is_known(synthetic: ModuleType) -> None:
    found = at_distance(synthetic.result((0, 1)), np.full((2, 4), 27.0))
    bare = {name: variable for name, variable in found.variables.items() if name not in PAIRS[:2]}
    unlabelled = saturated(Result(found.coordinates, bare, found.attrs))
    assert "--noise 3 would tell more." in told(synthetic, unlabelled)  # a tenth of 30, the largest
    spread = synthetic.result((0, 1), ["readout", "relative"])
    spread["noise_absolute"].values[...] = 10.0 * 0.1
    assert "--noise 3 would tell more." in told(synthetic, saturated(spread))
    nothing = saturated(synthetic.result((0, 1), ["readout"]))
    assert "--rel-noise 0.3 would tell more." in told(synthetic, nothing)


def test_distances_at_another_place_say_nothing_of_it(synthetic: ModuleType) -> None:
    pre = synthetic.Fake("readout", synthetic.READOUT, {"noise": (0.1,)}, at="pre")
    found = saturated(at_distance(synthetic.result((0, 1), [pre, "cluster"]), np.full((2, 4), 30.0)))
    assert "--rel-noise 0.3 would tell more." in told(synthetic, found)


def test_the_head_says_how_much_unbounded_layers_grew(synthetic: ModuleType) -> None:
    distances = np.array([[1.0, 1.0, 1.0, 1.0], [1.5, 4.0, 10.0, 10.0]])
    found = at_distance(synthetic.result((0, 1), settings={"unbounded": ["fc1", "fc2", "fc10"]}), distances)
    head = synthetic.printed(found, 160)[0]
    (line,) = [line for line in head if line.startswith("scale")]
    assert "fc2 ×4, fc10 ×10 since the first epoch" in line
    assert "do not compare" in line
    bounded = at_distance(synthetic.result((0, 1)), distances)
    assert not any(line.startswith("scale") for line in synthetic.printed(bounded, 160)[0])


def test_relative_noise_leads_where_layers_are_unbounded(synthetic: ModuleType) -> None:
    measures = ("readout", "relative", "fit")
    bounded = synthetic.result((0, 1), measures)
    unbounded = synthetic.result((0, 1), measures, settings={"unbounded": ["fc1"]})
    for options in ({"full": True}, {"full": False}, {"summary": True}):
        first, second = (told(synthetic, one, **options) for one in (bounded, unbounded))
        rest = first[first.index("noise 0.1") :]
        assert not rest.startswith("noise 0.1 rms")
        assert second.index("noise 0.1 rms") == second.index("noise 0.1")


@pytest.mark.slow
def test_the_noise_named_tells_something_of_a_trained_relu_network() -> None:
    series = Path(__file__).parents[2] / "fixtures" / "fashion-mlp"
    named = 3.0  # by the summary at noise 0.1
    found = scan(series, epochs="5,27,90", noise=named, channel="readout", eps=0.1, layers=["fc*"])
    values, codes = (found[name].values[..., 0] for name in ("mi_readout_xt", "mi_readout_xt_status"))
    assert (codes == Status.OK).all()
    entropy = math.log(512)
    assert (values > 0.1 * entropy).all(), number(float(values.min()))
    assert (values < 0.95 * entropy).all(), number(float(values.max()))
