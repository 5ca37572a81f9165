"""The oracle behind the truths of tests/support/calibration.py; it knows nothing of the package's estimators.

A trapezoidal rule on the line, nested quadrature for narrow noisy networks, and elsewhere randomised quasi Monte Carlo
with a dense log-sum-exp from differences. `PYTHONPATH=tests python -m
support.calibration_oracle [NAME ...]` prints the truths anew.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from support.calibration import CASES, CHAINS, Case, Chain
from support.network_oracles import exact_information, layer_of, linear_law, noisy_grid
from support.oracles import line_ty, line_xt

# Draws of one truth, over all rows and repetitions; the spread between repetitions is the truth's standard error.
DRAWS, SHIFTS, BLOCK = 2**21, 16, 2**8
# Nested quadrature of smooth laws at four steps a deviation is right to rounding; this much is allowed for a kink.
PER_NOISE, GRID_ERROR, LEAST_MASS = 4, 1e-4, 1e-17
# A draw that takes a grid of the noise before it is so much dearer.
GRID_SHARE = 16
# The trapezoidal rule of a smooth mixture at 40 steps a deviation is wrong by rounding alone.
LINE_ERROR = 1e-12


def read_out_truth(case: Case, draws: int = DRAWS) -> tuple[float, float, float, float]:
    """Return I(X;T+Z), its standard error, I(T+Z;Y), its standard error."""
    centred = case.values - case.values.mean(0)
    if centred.shape[1] == 1:
        joint = np.eye(case.labels.max() + 1)[case.labels] / len(centred)
        xt = line_xt(centred[:, 0], np.ones(len(centred)), case.noise)
        return float(xt), LINE_ERROR, float(line_ty(centred[:, 0], joint, case.noise)), LINE_ERROR
    return mixture_truth(centred / case.noise, case.labels, draws)


def mixture_truth(unit: np.ndarray, labels: np.ndarray, draws: int = DRAWS) -> tuple[float, float, float, float]:
    """Return the same of rows in units of the noise, all of one weight."""
    points = torch.from_numpy(unit)

    def exponent(rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(
            (points[rows, None] + z).flatten(0, 1), points, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return 0.5 * (z.flatten(0, 1).square().sum(1, keepdim=True) - distance.square())

    return averaged(exponent, labels, unit.shape[1], draws)


def chain_truth(case: Chain, draws: int = DRAWS) -> tuple[float, float, float, float]:
    """Return I(X;T), its standard error, I(T;Y), its standard error of a layer of the noisy network.

    Where every layer has one or two units, by nested quadrature. Else of the second layer: that of a linear chain is
    Gaussian given the input; before any other one stands a layer of one or two units, whose noise is integrated out.
    """
    x = torch.from_numpy(case.x)
    if all(len(weight) <= 2 for weight in case.chain[0]):
        joint = torch.from_numpy(np.eye(case.labels.max() + 1)[case.labels] / len(x))
        xt, ty = exact_information(case.chain, case.activation, x, joint, case.noise, PER_NOISE)[case.layer]
        return xt, GRID_ERROR, ty, GRID_ERROR
    if case.activation == "identity":
        mean, covariance = linear_law(case.chain, x, case.noise)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), mean.T, upper=False).T
        return mixture_truth(white.numpy(), case.labels, draws)
    first, second = (layer_of(case.chain, k, case.activation) for k in (0, 1))
    before = first(x)
    nodes, masses = noisy_grid(before, torch.eye(len(x), dtype=torch.float64), case.noise)
    kept = masses.amax(0) > LEAST_MASS
    centres, masses = second(nodes[kept]) / case.noise, masses[:, kept]

    def exponent(rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        made = (
            second(before[rows, None] + case.noise * z[..., : before.shape[1]]) / case.noise + z[..., before.shape[1] :]
        )
        distance = torch.cdist(made.flatten(0, 1), centres, compute_mode="donot_use_mm_for_euclid_dist")
        least = distance.amin(1, keepdim=True)
        law = (torch.exp(0.5 * (least.square() - distance.square())) @ masses.T).log()
        return law - law.gather(1, rows.repeat_interleave(z.shape[1])[:, None])

    return averaged(exponent, case.labels, before.shape[1] + centres.shape[1], draws // GRID_SHARE)


def averaged(exponent: Callable[..., Any], labels: np.ndarray, d: int, draws: int) -> tuple[float, float, float, float]:
    """Return means and standard errors of ln p(t|i) - ln p(t) and ln p(t|y) - ln p(t).

    Sobol points are shifted at random, anew for every row i and every one of SHIFTS repetitions.

    Args:
        exponent: Of rows (m,) and normals (m, points, d): ln p(t|j) - ln p(t|i) at each, for all j, (m * points, n).
        labels: Classes of the n rows.
        d: Normals a draw takes.
        draws: In all; rounded so that a row has a power of two in each repetition.
    """
    points = 2 ** max(0, round(math.log2(draws / len(labels) / SHIFTS)))
    even, g = torch.quasirandom.SobolEngine(d).draw(points, dtype=torch.float64), torch.Generator().manual_seed(0)
    classes, each = torch.from_numpy(labels), torch.zeros(SHIFTS, 2, dtype=torch.float64)
    shares = torch.bincount(classes).double() / len(classes)
    for shift in range(SHIFTS):
        for rows in torch.arange(len(classes)).split(max(1, BLOCK // points)):
            z = torch.special.ndtri((even + torch.rand(len(rows), 1, d, generator=g, dtype=torch.float64)) % 1.0)
            found, label = exponent(rows, z), classes[rows].repeat_interleave(points)
            given = [
                torch.logsumexp(found[:, classes == c], 1) - math.log((classes == c).sum()) for c in range(len(shares))
            ]
            of_class = torch.stack(given, 1)
            marginal = torch.logsumexp(of_class + shares.log(), 1)
            own = of_class.gather(1, label[:, None])[:, 0]
            each[shift] += torch.stack((-marginal.sum(), (own - marginal).sum())) / (len(classes) * points)
    (xt, ty), (xt_se, ty_se) = each.mean(0).tolist(), (each.std(0) / math.sqrt(SHIFTS)).tolist()
    return xt, xt_se, ty, ty_se


if __name__ == "__main__":
    for name in sys.argv[1:] or (*CASES, *CHAINS):
        xt, xt_se, ty, ty_se = read_out_truth(CASES[name]) if name in CASES else chain_truth(CHAINS[name])
        print(f'    "{name}": ({xt!r}, {xt_se:.1e}, {ty!r}, {ty_se:.1e}),', flush=True)
