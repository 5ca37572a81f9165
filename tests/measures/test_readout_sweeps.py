"""Sweeps of the read-out channel: relative noise, slopes, principal components, many noises at once, extreme values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from support.oracles import weight_entropy
from support.readout_oracles import on_a_line, rms_radius, sampled, told

from ibscan.core.estimate import Estimate, Status

WIDE = 65  # the narrowest layer that is projected
PROJECTED = "mi_readout_projected"
FIELDS = ("value", "status", "stderr", "lower", "upper", "draws")


def cloud(n: int, d: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((n, d))


def alike(one: Estimate, other: Estimate, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Assert that two estimates agree in every field."""
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=max(atol, 1e-12), err_msg=name)


def only(found: Estimate, *where: slice) -> Estimate:
    """Return the part of an estimate at some checkpoints and one noise."""
    fields = {name: getattr(found, name) for name in FIELDS}
    return Estimate(**{name: None if v is None else v[where] for name, v in fields.items()})


def sane(result: Mapping[str, Estimate], ceiling: float, width: int) -> None:
    """0 <= I <= H(X), 0 <= slope <= units, all finite unless unresolved."""
    for name in ("mi_readout", "mi_readout_rel"):
        xt, slope = result[f"{name}_xt"], result[f"{name}_slope"]
        for found in (xt, slope, result[f"{name}_cap"]):
            assert np.isfinite(found.value).all()
        assert (xt.value >= -4 * xt.stderr - 1e-9).all()
        assert (xt.value <= ceiling + 4 * xt.stderr + 1e-9).all()
        assert (slope.value >= -4 * slope.stderr - 1e-6).all()
        assert (slope.value <= width + 4 * slope.stderr + 1e-6).all()


# Relative noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 15, 70])
def test_relative_noise_is_that_share_of_the_rms_radius(width: int) -> None:
    values, labels, shares = cloud(60, width, 3) * 5 + 2, np.arange(60) % 3, (0.05, 0.4)
    rel = told([values], rel_noise=shares, labels=labels)
    absolute = rel["noise_absolute"]
    assert absolute.value[0, 0] == pytest.approx([share * rms_radius(values) for share in shares], rel=1e-12)
    assert (absolute.status == Status.OK).all()
    other = told([values], noise=tuple(absolute.value[0, 0]), labels=labels)
    for end in ("xt", "ty", "cap", "slope"):
        alike(rel[f"mi_readout_rel_{end}"], other[f"mi_readout_{end}"])
    assert not any(name.startswith(PROJECTED) for name in rel)


def test_relative_values_do_not_depend_on_scale_or_offset() -> None:
    values, labels = np.round(cloud(50, 4, 1) * 1024) / 1024, np.arange(50) % 2
    one, other = (told([v], rel_noise=(0.1, 1.0), labels=labels) for v in (values, 8.0 * values + 512.0))
    for end in ("xt", "ty", "cap", "slope"):
        alike(one[f"mi_readout_rel_{end}"], other[f"mi_readout_rel_{end}"], rtol=1e-9, atol=1e-9)
    assert other["noise_absolute"].value == pytest.approx(8 * one["noise_absolute"].value, rel=1e-12)


def test_repeated_inputs_weigh_as_often_as_they_are_met() -> None:
    times, distinct = np.array([1, 2, 5, 3]), np.array([[-3.0], [-1], [1], [3]])
    inputs = np.repeat(np.arange(4), times)
    values = np.repeat(distinct, times, axis=0)
    found = told([distinct], rel_noise=(0.3,), inputs=inputs)
    noise = 0.3 * rms_radius(values)
    assert found["noise_absolute"].value[0, 0] == pytest.approx([noise], rel=1e-12)
    xt, slope = on_a_line(distinct[:, 0], times / 11, noise)
    assert found["mi_readout_rel_xt"].value[0, 0, 0] == pytest.approx(xt, abs=1e-9)
    assert found["mi_readout_rel_slope"].value[0, 0, 0] == pytest.approx(slope, abs=1e-5)
    assert (found["mi_readout_rel_ty"].status == Status.NOT_MEASURED).all()
    assert np.isnan(found["mi_readout_rel_ty"].value).all()


def test_dead_and_nonfinite_layers_have_their_status() -> None:
    fine, broken = cloud(20, 3), np.full((20, 3), np.inf)
    found = told([fine, 0 * fine + 2, broken], noise=(0.5,), rel_noise=(0.5,), labels=np.arange(20) % 2)
    names = ["noise_absolute", *(f"mi_readout_{k}" for k in ("slope", "rel_xt", "rel_ty", "rel_cap", "rel_slope"))]
    for name in names:
        assert found[name].status[0, :, 0].tolist() == [Status.OK, Status.DEAD, Status.NONFINITE]
        assert found[name].value[0, 0, 0] > -0.1
        assert found[name].value[0, 1, 0] == 0.0
        assert np.isnan(found[name].value[0, 2, 0])


# Slopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("points", [[-1.0, 1.0], [-3.0, -1.0, 1.0, 3.0], [0.0, 0.1, 5.0]])
def test_slope_is_the_derivative_of_the_value(points: Sequence[float], noise: float) -> None:
    """On one unit by quadrature; on the corners of a rectangle, a product channel, by draws the sum of two."""
    xt, slope = on_a_line(points, [1 / len(points)] * len(points), noise)
    one = told([np.array(points)[:, None]], noise=(noise,))
    assert one["mi_readout_xt"].value[0, 0, 0] == pytest.approx(xt, abs=1e-8)
    assert one["mi_readout_slope"].value[0, 0, 0] == pytest.approx(slope, abs=1e-5)
    corners = np.array([[a, 2 * b] for a in points for b in (-1.0, 1.0)])
    both = told([corners], noise=(noise,), tolerance=0.02)
    other_xt, other_slope = on_a_line([-2.0, 2.0], [0.5, 0.5], noise)
    for key, truth in (("xt", xt + other_xt), ("slope", slope + other_slope)):
        found = both[f"mi_readout_{key}"]
        assert abs(found.value[0, 0, 0] - truth) <= 4 * found.stderr[0, 0, 0] + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "noise"), [(60, 3, 0.5), (60, 20, 2.0), (40, 80, 3.0), (60, 3, 0.05)])
def test_slope_equals_that_of_plain_draws(n: int, d: int, noise: float) -> None:
    values = cloud(n, d, n + d)
    truth, error = sampled(values, noise)
    found = told([values], noise=(noise,))
    sane_slope = found["mi_readout_slope"].value[0, 0, 0]
    assert 0 <= sane_slope <= min(d, (rms_radius(values) / noise) ** 2)
    for k, key in enumerate(("xt", "slope")):
        one = found[f"mi_readout_{key}"]
        # Of ten comparisons none is beyond five deviations by luck.
        assert abs(one.value[0, 0, 0] - truth[k]) <= 5 * math.hypot(one.stderr[0, 0, 0], error[k]) + 1e-3


@pytest.mark.slow
def test_slope_counts_directions_above_the_noise() -> None:
    sigma, noise = np.array([2.0, 0.6, 0.05]), 0.4
    found = told([cloud(4000, 3, 5) * sigma], noise=(noise,))["mi_readout_slope"].value[0, 0, 0]
    assert found == pytest.approx((sigma**2 / (sigma**2 + noise**2)).sum(), rel=0.05)


# Principal components ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [200, 30])
def test_projection_brackets_the_value(n: int) -> None:
    values, noises = cloud(n, 90, 2) * 0.9 ** np.arange(90) * 3, (0.5, 3.0)
    found = told([values], noise=noises, labels=np.arange(n) % 2)
    sigma = np.linalg.svd(values - values.mean(0), compute_uv=False) / math.sqrt(n)
    part, whole = found[f"{PROJECTED}_xt"], found["mi_readout_xt"]
    components, tail = found[f"{PROJECTED}_components"], found[f"{PROJECTED}_tail"]
    for k, noise in enumerate(noises):
        gains = [0.5 * math.log1p((s / noise) ** 2) for s in sigma]
        count = next(c for c in range(1, 65) if c == 64 or sum(gains[c:]) <= 0.05)
        assert components.value[0, 0, k] == count
        assert tail.value[0, 0, k] == pytest.approx(sum(gains[count:]), abs=1e-9)
        spare = 4 * math.hypot(part.stderr[0, 0, k], whole.stderr[0, 0, k]) + 1e-9
        difference = whole.value[0, 0, k] - part.value[0, 0, k]
        assert -spare <= difference <= tail.value[0, 0, k] + spare


def test_only_wide_layers_are_projected() -> None:
    wide, narrow = cloud(30, WIDE), cloud(30, WIDE - 1)
    assert not any(name.startswith(PROJECTED) for name in told([narrow], noise=(1.0,)))
    found = told([narrow, wide, 0 * wide, np.nan * wide], noise=(1.0, 2.0))
    states = [Status.NOT_MEASURED, Status.OK, Status.DEAD, Status.NONFINITE]
    for end in ("xt", "tail"):
        one = found[f"{PROJECTED}_{end}"]
        assert [int(s) if s != Status.SATURATED else 0 for s in one.status[0, :, 1]] == states
        assert np.isnan(one.value[0, [0, 3]]).all()
        assert (one.value[0, 2] == 0).all()
    assert found[f"{PROJECTED}_components"].value[0, [0, 2, 3]].tolist() == [[-1, -1]] * 3
    assert (found[f"{PROJECTED}_components"].value[0, 1] > 0).all()


# Many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("draws", [65536, 60])
def test_noises_and_checkpoints_together_equal_each_alone(draws: int) -> None:
    """Including budgets that visit only some of the rows."""
    first, second = ([cloud(50, d, seed + d) for d in (1, 4, 70)] for seed in (1, 2))
    settings: dict[str, Any] = {"labels": np.arange(50) % 2, "max_draws": draws}
    both = told(first, second, noise=(0.2, 1.0), rel_noise=(0.3,), **settings)
    for k, noise in enumerate((0.2, 1.0)):
        alone = told(second, noise=(noise,), **settings)
        for name in ("mi_readout_xt", "mi_readout_ty", "mi_readout_slope", f"{PROJECTED}_xt", f"{PROJECTED}_tail"):
            alike(only(both[name], slice(1, 2), slice(None), slice(k, k + 1)), alone[name], rtol=1e-9)
    assert ((both["mi_readout_xt"].draws <= 60) | (draws > 60)).all()


@pytest.mark.slow
def test_threads_do_not_matter(threads: Callable[[int], None]) -> None:
    values, found = cloud(3000, 3, 4), []
    for number in (1, 2):
        threads(number)
        found.append(told([values], noise=(0.3, 1.0), max_draws=4000))
    for name in ("mi_readout_xt", "mi_readout_slope", "mi_readout_cap"):
        alike(found[0][name], found[1][name], rtol=1e-9)


# Extremes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 3, 15])
@pytest.mark.parametrize("place", ["plain", "far", "small", "constant unit", "two rows", "one row apart"])
def test_extremes_stay_within_their_limits(place: str, width: int) -> None:
    values = cloud(40, width, 6)
    values = {
        "plain": values,
        "far": values + 1e12,
        "small": values * 1e-140,
        "constant unit": np.concatenate((values, np.full((40, 1), 1e3)), 1),
        "two rows": values[:2],
        "one row apart": np.eye(40)[:, :1] * np.ones(width),
    }[place]
    found = told([values], noise=(1e-8, 1.0, 1e8), rel_noise=(1e-8, 0.5, 1e8))
    sane(found, weight_entropy([1 / len(values)] * len(values)), width)


@pytest.mark.parametrize("ratio", [1e6, 1e12, 1e16, 1e20])
@pytest.mark.parametrize("width", [1, 3])
def test_a_diverged_layer_tells_every_row_apart(width: int, ratio: float) -> None:
    found = told([cloud(40, width, 6, ratio)], noise=(1.0,))
    assert found["mi_readout_xt"].value[0, 0, 0] == pytest.approx(math.log(40), abs=1e-6)
    assert abs(found["mi_readout_slope"].value[0, 0, 0]) < 1e-6


@pytest.mark.parametrize("scale", [1e-170, 1e155])
@pytest.mark.parametrize("width", [1, 3])
def test_relative_noise_is_right_where_squares_leave_the_range(width: int, scale: float) -> None:
    near, far = (told([cloud(40, width, 6, s)], rel_noise=(0.5,)) for s in (1.0, scale))
    for name in ("mi_readout_rel_xt", "mi_readout_rel_slope"):
        np.testing.assert_allclose(far[name].value, near[name].value, rtol=1e-9)
