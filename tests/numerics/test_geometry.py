"""Neural-collapse statistics against methods.md section 4 with explicit d x d matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ibscan.numerics.geometry.class_means import class_geometry, self_duality


def reference(points: Any, labels: Any, classes: Any) -> Any:
    """The formulas of methods.md section 4, literally: NC1, equinorm, equiangle."""
    means = np.stack([points[labels == c].mean(0) for c in range(classes)])
    centred = means - means.mean(0)
    between = sum(np.outer(m, m) for m in centred) / classes
    within = sum(np.cov(points[labels == c].T, ddof=0).reshape(2 * between.shape[:1]) for c in range(classes)) / classes
    values, vectors = np.linalg.eigh(between)
    keep = [k for k in np.argsort(values)[::-1][: classes - 1] if values[k] > 1e-10 * values.max()]
    inverse = sum(np.outer(vectors[:, k], vectors[:, k]) / values[k] for k in keep)
    norms = np.linalg.norm(centred, axis=1)
    cosines = [centred[a] @ centred[b] / norms[a] / norms[b] for a in range(classes) for b in range(classes) if a != b]
    angle = np.mean([abs(v + 1 / (classes - 1)) for v in cosines])
    return np.trace(within @ inverse) / classes, norms.std() / norms.mean(), angle


def data(classes: Any, d: Any, seed: Any, sizes: Any = None) -> Any:
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), sizes if sizes is not None else 12)
    points = g.normal(size=(classes, d))[labels] * 2 + g.normal(size=(len(labels), d)) * 0.5 + 1.0
    order = g.permutation(len(labels))
    return points[order], labels[order]


def measured(points: Any, labels: Any, classes: Any) -> Any:
    return class_geometry(torch.from_numpy(points), torch.from_numpy(labels), classes)


# d < C, d = C - 1, d > C, and d larger than the number of rows.
@pytest.mark.parametrize(("classes", "d"), [(5, 2), (4, 3), (3, 8), (2, 1), (2, 5), (4, 120)])
@pytest.mark.parametrize("balanced", [True, False])
def test_statistics_are_those_of_explicit_matrices(classes: Any, d: Any, balanced: Any) -> None:
    """Unbalanced sizes tell the unweighted mean of means from the mean of all rows."""
    points, labels = data(classes, d, classes * d, None if balanced else np.arange(classes) * 9 + 3)
    result = measured(points, labels, classes)
    assert (result.nc1, result.equinorm, result.equiangle) == pytest.approx(
        reference(points, labels, classes), rel=1e-10
    )


def test_nearest_means_are_those_of_a_loop() -> None:
    points, labels = data(4, 3, 1, [5, 40, 9, 20])
    means = [points[labels == c].mean(0) for c in range(4)]
    expected = [int(np.argmin([np.linalg.norm(p - m) for m in means])) for p in points]
    assert measured(points, labels, 4).nearest.tolist() == expected
    assert expected != labels.tolist()  # some rows are nearer to another mean, else the test would be weak


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_simplex_without_spread_is_all_zero(classes: Any) -> None:
    """methods.md section 4; atol 1e-12 since the means are rounded."""
    vertices = np.eye(classes) - 1 / classes
    labels = np.repeat(np.arange(classes), np.arange(classes) + 2)
    rotation = np.linalg.qr(np.random.default_rng(classes).normal(size=(classes, classes)))[0]
    result = measured(vertices[labels] @ rotation + 5.0, labels, classes)
    assert (result.nc1, result.equinorm, result.equiangle) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert result.nearest.tolist() == labels.tolist()


def test_classes_on_a_line_have_the_known_nc1() -> None:
    """Means -1 and 1, deviations +-e: Sigma_B = 1, Sigma_W = e^2, NC1 = e^2 / 2; equinorm and equiangle 0."""
    e = 0.3
    points = np.array([[-1 - e], [-1 + e], [1 - e], [1 + e]])
    result = measured(points, np.array([0, 0, 1, 1]), 2)
    assert result.nc1 == pytest.approx(e**2 / 2, rel=1e-12)
    assert (result.equinorm, result.equiangle) == pytest.approx((0, 0), abs=1e-12)


def test_spread_orthogonal_to_the_means_is_not_counted() -> None:
    """pinv(Sigma_B) is zero there; a plain inverse, or more than C - 1 eigenvalues, would explode."""
    points = np.array([[-1.0, 5], [-1, -5], [1, 5], [1, -5]])
    assert measured(points, np.array([0, 0, 1, 1]), 2).nc1 == pytest.approx(0.0, abs=1e-12)


def test_collinear_means_use_the_cutoff() -> None:
    """Three means on a line: Sigma_B has rank 1 < C - 1; rounding must not be inverted."""
    g = np.random.default_rng(4)
    direction = g.normal(size=6)
    labels = np.repeat(np.arange(3), 30)
    spread = g.normal(size=(90, 6)) * 0.1
    for c in range(3):
        spread[labels == c] -= spread[labels == c].mean(0)
    points = np.array([-1.0, 0.3, 2.0])[labels][:, None] * direction + spread
    result = measured(points, labels, 3)
    centred = np.array([-1.0, 0.3, 2.0]) - 1.3 / 3
    unit = direction / np.linalg.norm(direction)
    within = np.mean([(spread[labels == c] @ unit).var() for c in range(3)])
    assert result.nc1 == pytest.approx(within / (np.mean(centred**2) * direction @ direction) / 3, rel=1e-10)


def test_coinciding_means_are_nan() -> None:
    points = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    result = measured(points, np.array([0, 0, 1, 1]), 2)
    assert math.isnan(result.nc1)
    assert math.isnan(result.equinorm)
    assert math.isnan(result.equiangle)


@pytest.mark.parametrize("d", [2, 7])
def test_rotation_shift_scale_and_order_do_not_matter(d: Any) -> None:
    """All three numbers are dimensionless and blind to rotation, translation and order."""
    points, labels = data(4, d, 3, [4, 9, 16, 8])
    base = measured(points, labels, 4)
    g = np.random.default_rng(9)
    rotation = np.linalg.qr(g.normal(size=(d, d)))[0]
    order = g.permutation(len(labels))
    other = measured((3.7 * points @ rotation - 20)[order], labels[order], 4)
    assert (other.nc1, other.equinorm, other.equiangle) == pytest.approx(
        (base.nc1, base.equinorm, base.equiangle), rel=1e-10
    )
    assert other.nearest.tolist() == base.nearest[torch.from_numpy(order)].tolist()


def test_class_means_that_differ_by_rounding_coincide() -> None:
    """The same rows under both labels: the means differ by rounding, and NC1 would be the inverse of that."""
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points, labels = torch.cat((rows, rows)), torch.arange(2).repeat_interleave(8)
    found = class_geometry(points + 7.0, labels, 2)
    assert math.isnan(found.nc1)
    assert math.isnan(found.equiangle)


def duality(points: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> float:
    return self_duality(torch.from_numpy(points), torch.from_numpy(labels), torch.from_numpy(weight))


def test_nc3_of_a_weight_that_is_the_class_means_of_a_simplex() -> None:
    """W = a M gives 0 for every a > 0, W = -M gives 2, and a weight across M the root of 2."""
    labels = np.arange(12) % 4
    points = np.concatenate((np.eye(4)[labels] * 3.0 + 7.0, np.zeros((12, 4))), 1)
    means = np.concatenate((np.eye(4) - 0.25, np.zeros((4, 4))), 1)
    assert duality(points, labels, 5.0 * means) == pytest.approx(0.0, abs=1e-12)
    assert duality(points, labels, -means) == pytest.approx(2.0, rel=1e-12)
    assert duality(points, labels, np.roll(means, 4, 1)) == pytest.approx(math.sqrt(2.0), rel=1e-12)


@pytest.mark.parametrize(("classes", "d"), [(5, 2), (3, 8), (2, 1)])
def test_nc3_is_its_formula(classes: int, d: int) -> None:
    points, labels = data(classes, d, classes * d, np.arange(classes) * 9 + 3)
    weight = np.random.default_rng(0).normal(size=(classes, d))
    means = np.stack([points[labels == c].mean(0) for c in range(classes)])
    means = means - means.mean(0)
    expected = np.linalg.norm(weight / np.linalg.norm(weight) - means / np.linalg.norm(means))
    assert duality(points, labels, weight) == pytest.approx(expected, rel=1e-12)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    assert duality(1e9 * points @ turn + 3.0, labels, 1e-200 * weight @ turn) == pytest.approx(expected, rel=1e-9)


def test_nc3_of_coinciding_means_or_zero_weights_is_nan() -> None:
    points, labels = data(3, 4, 0)
    weight = np.random.default_rng(0).normal(size=(3, 4))
    assert math.isnan(duality(np.ones_like(points), labels, weight))
    assert math.isnan(duality(points, labels, 0.0 * weight))
    assert math.isnan(duality(points, labels, np.where(weight == weight.max(), np.nan, weight)))
