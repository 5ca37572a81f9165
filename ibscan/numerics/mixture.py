"""Information through Gaussian noise: mixtures of Gaussians at a layer's values, their bounds and caps.

The population is discrete: n centres s_i (rows of `centres`) with joint weights W[i, c] = P(X = i, Y = c), summing to
one; without labels there is one class. p(t) = sum_i w_i N(t; s_i, noise^2 I) with w_i = sum_c W[i, c].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import mapped, tiles

__all__ = [
    "EXPANSION_LIMIT",
    "UNSEEN",
    "Information",
    "collapsed",
    "entropy",
    "gaussian_cap",
    "pairwise_bounds",
    "readout_information",
]

# The own term of every sum is its weight w; one of e^-60 beside it changes the logarithm by 1e-26 / w, far below
# rounding. Smaller exponentials would only take the slow path of subnormal numbers.
LEAST_EXPONENT = -60.0
# A ratio of densities beyond e^700 under its own draw has probability < e^-700 (Markov's inequality): the clamp never
# acts, it only keeps infinity out.
LARGEST_EXPONENT = 700.0
# Draws, counted by the weight of their strata, before the spread between them is trusted.
LEAST_DRAWS = 2048
# Overlaps rarer than 3/N escape N draws in 95 of 100 cases (the rule of three), and one moves a term by about a nat:
# an error of 1.5/N that no spread between the draws shows, the only one left where centres hardly overlap.
UNSEEN = 1.5
# |a|^2 + |b|^2 - 2 a.b loses about 1e-16 max|s|^2; up to this ratio to noise^2 the exponent is right to 1e-8.
EXPANSION_LIMIT = 1e8


@dataclass(frozen=True)
class Information:
    """I(X; T+Z) and I(T+Z; Y) in nats, with standard errors, and how many draws of how many strata gave them."""

    xt: float
    xt_se: float
    ty: float
    ty_se: float
    draws: int
    strata: int
    resolved: bool


def entropy(weights: torch.Tensor) -> float:
    """Return -sum w ln w over all entries, nats.

    Example:
        >>> round(entropy(torch.tensor([0.5, 0.5, 0.0])), 6)
        0.693147
    """
    return float(torch.special.entr(weights).sum())


def collapsed(centres: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge equal centres into one with the sum of their weights.

    Args:
        centres: Shape (N, d).
        weights: Joint weights, shape (N, C).

    Returns:
        Distinct centres (n, d), their weights (n, C), and the index of each row's centre (N,).
    """
    # Adding 0.0 turns -0.0 into 0.0, the same point.
    distinct, owner = torch.unique(centres + 0.0, dim=0, return_inverse=True)
    merged = torch.zeros(len(distinct), weights.shape[1], dtype=weights.dtype, device=weights.device)
    merged.index_add_(0, owner, weights)
    return distinct, merged, owner


def readout_information(
    centres: torch.Tensor,
    weights: torch.Tensor,
    noise: float,
    normals: Callable[[int], torch.Tensor],
    *,
    tolerance: float,
    max_draws: int,
    owner: torch.Tensor | None = None,
    gap: float = math.inf,
) -> Information:
    """Return I(X; S + Z) and I(S + Z; Y) of the discrete population, Z ~ N(0, noise^2 I), by Monte Carlo.

    Every draw t = s_i + z gives ln p(t|i) - ln p(t): the conditional density is exact, and ||z||^2 cancels between
    the two. Every stratum has two draws or more, so that the spread between strata is no error. Draws are added until
    1.96 standard errors of both values are within `tolerance`. Where the budget does not allow two draws a stratum, a
    systematic sample of the strata, which must come in random order, is visited, and their spread counts.

    Near ln n the terms are constant but for rare draws between centres; the standard error includes 1.5 over the number
    of draws, or `gap` if that is less, for those that were not met.

    Args:
        centres: s_i, shape (n, d), float64.
        weights: Joint weights, shape (n, C), summing to 1.
        noise: Standard deviation, > 0, in the units of the centres.
        normals: Standard normals of draw m, shape (strata, d), the same for the same m.
        tolerance: Half width of the 95 % interval that ends the sampling, nats, > 0.
        max_draws: Draws over all strata at most; two are always made.
        owner: The centre of each of N strata of weight 1/N (the rows from which centres were collapsed), so that a
            heavy centre has as many draws as its rows; None for one stratum a centre, of the centre's weight.
        gap: Proven upper less proven lower bound on I(X; S + Z), nats: no draw that was not met can move a value by
            more.

    Returns:
        Values, standard errors, draws a stratum, and whether the tolerance was reached.

    Source:
        Goldfeld et al. 2019, arXiv 1810.05728, section 4 and arXiv 1810.11589 (sample propagation with the exact
        conditional); pairing and strata as in the README, "How the numbers are made".
    """
    share = weights.sum(1)
    if owner is None:
        owner = torch.arange(len(centres), device=centres.device)
    else:
        share = torch.full((len(owner),), 1.0 / len(owner), dtype=weights.dtype, device=weights.device)
    stratified = 2 * len(owner) <= max_draws
    if not stratified:
        # Midpoints (k + 1/2) / m through the cumulative weights: rows come in a random order already.
        size = max(2, max_draws // 2)
        steps = (torch.arange(size, dtype=share.dtype, device=centres.device) + 0.5) / size
        owner = owner[torch.searchsorted(share.cumsum(0), steps).clamp(max=len(owner) - 1)]
        share = torch.full((size,), 1.0 / size, dtype=share.dtype, device=share.device)
    budget = max(2, max_draws // len(owner))
    # A spread seen in a handful of draws may be small by luck and would end the sampling.
    goal = min(budget, max(2, math.ceil(LEAST_DRAWS * float(share.square().sum()))))
    mean = torch.zeros(2, len(owner), dtype=centres.dtype, device=centres.device)
    spread = torch.zeros_like(mean)
    done = 0
    errors = torch.full((2,), math.inf)
    while done < goal:
        terms = _paired_terms(centres, weights, noise, normals(done)[: len(owner)], owner)
        done += 1
        # Welford, one update a draw: sums of squares would cancel where the spread is small.
        step = terms - mean
        mean += step / done
        spread += step * (terms - mean)
        if done == goal:
            errors = _standard_errors(mean, spread, share, done, stratified=stratified).cpu()
            errors = torch.hypot(errors, torch.full_like(errors, min(gap, UNSEEN / (done * len(owner)))))
            excess = 1.96 * float(errors.max()) / tolerance
            if excess > 1.0:
                goal = min(budget, max(done + 1, math.ceil(done * min(excess, 1e4) ** 2)))
    value = (mean @ share).cpu()
    resolved = 1.96 * float(errors.max()) <= tolerance
    return Information(float(value[0]), float(errors[0]), float(value[1]), float(errors[1]), done, len(owner), resolved)


def _standard_errors(
    mean: torch.Tensor, spread: torch.Tensor, share: torch.Tensor, draws: int, *, stratified: bool
) -> torch.Tensor:
    if stratified:
        return ((spread / ((draws - 1) * draws)) @ share.square()).sqrt()
    # Not every centre was visited: the spread between those that were is part of the error.
    return mean.std(1) / math.sqrt(mean.shape[1])


def _paired_terms(
    centres: torch.Tensor, weights: torch.Tensor, noise: float, normals: torch.Tensor, owner: torch.Tensor
) -> torch.Tensor:
    """Return, for one draw of every owner, ln p(t|i) - ln p(t) and E_Y|i [ln p(t|Y) - ln p(t)], shape (2, m)."""
    unit = (centres - weights.sum(1) @ centres) / noise
    prior = weights.sum(0)
    given = weights / weights.sum(1, keepdim=True)
    terms = torch.empty(2, len(owner), dtype=centres.dtype, device=centres.device)
    exponents = gaussian_exponents(unit)

    def fill(rows: slice) -> None:
        z, own = normals[rows], owner[rows]
        # Own-centre reference: each term is a ratio to the density of the centre that made the draw, so no running
        # maximum is needed and the own term is exactly its weight.
        exponent = exponents(unit[own] + z, 0.5 * z.square().sum(1))
        joint = exponent.clamp_(LEAST_EXPONENT, LARGEST_EXPONENT).exp_() @ weights
        total = joint.sum(1)
        terms[0, rows] = -total.log()
        ratio = joint.log() - total.log().unsqueeze(1) - prior.log()
        terms[1, rows] = torch.where(given[own] > 0, given[own] * ratio, 0.0).sum(1)

    mapped(fill, tiles(len(owner), len(centres), centres.device), centres.device)
    return terms


def pairwise_bounds(centres: torch.Tensor, weights: torch.Tensor, noise: float) -> tuple[float, float]:
    """Return the lower and upper pairwise-distance bounds on I(X; S + Z), nats.

    Args:
        centres: Shape (n, d), float64.
        weights: Weights of the centres, shape (n,), summing to 1.
        noise: Standard deviation, > 0.

    Returns:
        Lower and upper; lower(noise) = upper(2 noise).

    Source:
        Kolchinsky and Tracey 2017, Entropy 19(7) 361, equations 10 and 11 with the Chernoff (1/2) and
        Kullback-Leibler distances of equal Gaussians.
    """
    # Halved, so that the exponent is -d^2/8.
    half = (centres - weights @ centres) / (2.0 * noise)
    exponents = gaussian_exponents(half)

    def sums(rows: slice) -> tuple[float, float]:
        overlap = exponents(half[rows], torch.zeros(1, dtype=half.dtype, device=half.device))
        overlap = overlap.clamp_(LEAST_EXPONENT, 0.0).exp_()
        narrow = float(weights[rows] @ (overlap @ weights).log())
        # exp(-d^2/2) is the fourth power of exp(-d^2/8): two squarings are cheaper than a second exponential.
        return narrow, float(weights[rows] @ (overlap.square_().square_() @ weights).log())

    found = mapped(sums, tiles(len(half), len(half), half.device), half.device)
    return -math.fsum(pair[0] for pair in found), -math.fsum(pair[1] for pair in found)


def gaussian_cap(centres: torch.Tensor, weights: torch.Tensor, noise: float) -> float:
    """Return (1/2) ln det(I + Cov(S) / noise^2), an upper bound on I(X; S + Z), nats.

    Args:
        centres: Shape (n, d), float64.
        weights: Weights of the centres, shape (n,), summing to 1.
        noise: Standard deviation, > 0.

    Returns:
        The bound: a Gaussian has the largest entropy of all laws with its covariance.
    """
    scaled = weights.sqrt().unsqueeze(1) * (centres - weights @ centres) / noise
    sigma = torch.linalg.svdvals(scaled if scaled.shape[0] <= scaled.shape[1] else torch.linalg.qr(scaled, mode="r")[1])
    return 0.5 * float(torch.log1p(sigma.square()).sum())


def gaussian_exponents(centres: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function (a, shift) -> shift_i - ||a_i - c_j||^2 / 2, float64.

    One matrix product with two columns more, a . c - |c|^2/2 + (shift - |a|^2/2), where that is right to 1e-8; from
    differences elsewhere.

    Args:
        centres: c, shape (n, d), float64, centred, in units of the noise.

    Returns:
        A function of a (m, d) and shift (m,) or (1,), giving shape (m, n).
    """
    squared = centres.square().sum(1, keepdim=True)
    if float(squared.max()) > EXPANSION_LIMIT:

        def from_differences(a: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            distance = torch.cdist(a, centres, compute_mode="donot_use_mm_for_euclid_dist")
            return distance.square_().mul_(-0.5).add_(shift.unsqueeze(1))

        return from_differences
    right = torch.cat((centres, -0.5 * squared, torch.ones_like(squared)), 1).mT.contiguous()

    def from_product(a: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        rest = shift.unsqueeze(1) - 0.5 * a.square().sum(1, keepdim=True)
        return torch.cat((a, torch.ones_like(rest), rest), 1) @ right

    return from_product
