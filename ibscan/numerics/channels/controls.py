"""Control variates: functions of the noise whose means are known, and what is left of terms once they are taken off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from scipy.special import stdtrit

__all__ = [
    "CAUTION",
    "QUADRATIC_WIDTH",
    "ReplicaControls",
    "Residuals",
    "controlled",
    "controls",
    "gaussian",
    "near_enough",
    "quadratic",
]

# Up to this width all products of two coordinates are followed; beyond, only the length of the noise (and what
# a Gaussian says, of replicas or of neighbours).
QUADRATIC_WIDTH = 12
# Differences between draws that one control needs, so that following it by chance costs little.
DRAWS_A_CONTROL = 4
# Fewer strata than these are not halved: their draws are.
FEW_STRATA = 64
# Directions in which controls vary by less than this share of the most are rounding.
DEPENDENT = 1e-10
# Controls that grow with the place are left out at places more than FAR times as far from the middle as the OUTER-th
# farthest (the CROWD-th part of all, where they are few): what is fitted on the others does not hold there, and a
# handful of places would make all of the error, which their own few draws cannot tell.
FAR, OUTER, CROWD = 2.0, 64, 16
# By how much errors exceed what the spread says: that is an estimate, and of skewed terms, and 95 % intervals must hold
# in so many cases all the same.
CAUTION = 1.15

Follow = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def quadratic(z: torch.Tensor) -> torch.Tensor:
    """Return z_k z_l - delta_kl for k <= l, of standard normals z (..., d): mean zero, shape (..., d (d + 1) / 2)."""
    width = z.shape[-1]
    first, second = torch.triu_indices(width, width, device=z.device)
    products: torch.Tensor = z[..., first] * z[..., second]
    return products.sub((first == second).to(z.dtype))


def controls(width: int, spare: int) -> Follow:
    """Return the function (z, s) -> controls of draws t = s + noise z, whose means are exactly zero.

    Up to 12 units: z_k, z_k s_l + s_k z_l and z_k z_l - delta_kl; of wider layers, and where there are few draws, the
    one that matters most, |z|^2 - d; none where even that could not be fitted.

    Args:
        width: d.
        spare: Differences between draws of one stratum there will be.

    Returns:
        Function of standard normals z (..., d) and of where they are added, s (..., d), giving (..., number of
        controls). Beyond 12 units it does not look at s.
    """
    first, second = torch.triu_indices(width, width) if width <= QUADRATIC_WIDTH else ((), ())

    def none(z: torch.Tensor, s: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG001
        return z[..., :0]

    def length(z: torch.Tensor, s: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG001
        excess: torch.Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True).square_() - width
        return excess.div(math.sqrt(2 * width))

    def every(z: torch.Tensor, s: torch.Tensor | None) -> torch.Tensor:
        assert s is not None
        return torch.cat((z, z[..., first] * s[..., second] + s[..., first] * z[..., second], quadratic(z)), -1)

    if width <= QUADRATIC_WIDTH and spare >= DRAWS_A_CONTROL * 2 * (width + width * (width + 1)):
        return every
    return length if spare >= DRAWS_A_CONTROL * 2 else none


def near_enough(lengths: torch.Tensor) -> torch.Tensor:
    """Return which strata are near enough for controls that grow with the place, by distances from the middle (m,)."""
    outer = min(OUTER, max(1, len(lengths) // CROWD))
    return lengths <= FAR * lengths.topk(outer).values[-1]


def gaussian(z: torch.Tensor, apart: torch.Tensor, precision: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what -ln N(apart + z; 0, precision^-1) does about its mean over z: the part quadratic in z and the linear.

    Args:
        z: Standard normals (..., m, d).
        apart: Where they are added, from the mean of the Gaussian, (..., m or 1, d).
        precision: Any symmetric matrices (..., d, d); of means zero are the parts whatever these are.

    Returns:
        Both of shape (..., m).
    """
    weighed = z @ precision
    trace = precision.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    return 0.5 * ((weighed * z).sum(-1) - trace), (weighed * apart).sum(-1)


def controlled(terms: torch.Tensor, follow: torch.Tensor) -> torch.Tensor:
    """Return terms of strata less the controls, as the other half of the strata follows them.

    Args:
        terms: Shape (terms, strata, draws).
        follow: Their controls, shape (strata, draws, p).

    Returns:
        The shape of the terms, with the same means in expectation.
    """
    both = torch.cat((terms.movedim(0, -1), follow), -1)
    left = terms.clone()
    for mine, other in _halves(*both.shape[:2]):
        fitted = both[other]
        # Within strata where they have more than one draw: what tells strata apart is not the noise's doing.
        apart = fitted - (fitted.mean(1, keepdim=True) if fitted.shape[1] > 1 else fitted.mean((0, 1)))
        apart = apart.flatten(0, 1)
        fit = _fitted(apart.mT @ apart, len(terms))
        left[:, *mine] -= (follow[mine] @ fit).movedim(-1, 0)
    return left


def _halves(strata: int, draws: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return, for each half, its strata and draws, and those of the other half.

    Strata alternate; few of them differ too much for what one half does to say what the other does: there draws do.
    """
    every = slice(None)
    by_draws = strata < FEW_STRATA and draws >= 4
    first, second = ((every, slice(k, None, 2)) if by_draws else (slice(k, None, 2), every) for k in (0, 1))
    return [(first, second), (second, first)]


class ReplicaControls:
    """Controls of draws at replicas of rows: those of `controls`, and what a Gaussian of each row's replicas does.

    The latter is ln N(s + z; mean, covariance + I), up to its sign, less its mean over z, mean and covariance being of
    the row's replicas as they come: what the density of its own replicas does near them. In units of the noise.
    """

    def __init__(self, z: torch.Tensor, s: torch.Tensor) -> None:
        """Begin without replicas, with standard normals z added to s, both (draws, rows, D)."""
        draws, _, width = z.shape
        self._z, self._s, self._count = z.transpose(0, 1), s.transpose(0, 1), 0
        places = self._s - self._s.flatten(0, 1).median(0).values
        # Of the size of one, so that all controls weigh alike when dependent ones are looked for; by the largest first,
        # whose square may leave the range of float64.
        tiny = torch.finfo(places.dtype).tiny
        places /= places.abs().amax().clamp(min=tiny)
        places /= places.square().mean().sqrt().clamp(min=tiny)
        self._common = controls(width, len(self._s) * max(1, draws - 1))(self._z, places)
        if width <= QUADRATIC_WIDTH:
            near = near_enough(places.square().sum(-1).mean(1).sqrt())
            self._common = self._common * near.view(-1, 1, 1)
        # Sums of squares about a point near each row's replicas lose no digits.
        self._origin = self._s[:, :1]
        self._first, self._second = z.new_zeros(len(self._s), 1, width), z.new_zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Add replicas (R, rows, D); of layers too wide to have a matrix for every row nothing is kept."""
        if values.shape[-1] > QUADRATIC_WIDTH:
            return
        apart = values.transpose(0, 1) - self._origin
        self._count += len(values)
        self._first = self._first + apart.sum(1, keepdim=True)
        self._second = self._second + apart.mT @ apart

    def follow(self) -> torch.Tensor:
        """Return the controls, shape (rows, draws, p)."""
        if self._count == 0:
            return self._common
        mean = self._first / self._count
        covariance = self._second / self._count - mean.mT @ mean
        # Replicas so far apart that their squares leave the range of float64 are followed by nothing.
        finite = torch.isfinite(covariance).flatten(1).all(1).view(-1, 1, 1)
        covariance = torch.where(finite, covariance, 0.0)
        width = covariance.shape[-1]
        precision = torch.linalg.inv(covariance + torch.eye(width, dtype=mean.dtype, device=mean.device))
        own = torch.stack(gaussian(self._z, self._s - self._origin - mean, precision)).sum(0)
        return torch.cat((self._common, torch.where(finite, own.unsqueeze(-1), 0.0)), -1)


@dataclass
class Residuals:
    """Terms of strata, draw by draw, less the controls as the other half of the draws follows them.

    Strata alternate between two halves, draws where there are few strata. What is subtracted in one half has
    coefficients fitted in the other, so that it does not know the draws it is subtracted from and keeps its mean of
    zero. `share` are the weights of the strata, which are all there are (`stratified`) or a sample. Where `far`, a few
    strata, controls are not subtracted; as each of them may be most of the error, each has Student's factor of its own
    draws.
    """

    share: torch.Tensor
    stratified: bool
    far: torch.Tensor | None = None
    draws: int = 0
    _halves: list[_Half] = field(default_factory=list)
    _alone: list[torch.Tensor] = field(default_factory=list)

    def add(self, terms: torch.Tensor, follow: torch.Tensor) -> None:
        """Add some draws of every stratum.

        Args:
            terms: Shape (terms, draws, strata).
            follow: Their controls, shape (draws, strata, p).
        """
        if self.far is not None:
            follow = follow * ~self.far.unsqueeze(-1)
            self._alone.append(terms[..., self.far])
        both = torch.cat((terms.movedim(0, -1), follow), -1).transpose(0, 1)
        if not self._halves:
            self._halves = [_Half(self.share[mine[0]], mine, len(terms)) for mine, _ in _halves(*both.shape[:2])]
        for half in self._halves:
            half.add(both[half.part])
        self.draws += both.shape[1]

    def result(self) -> tuple[list[float], list[float]]:
        """Return means and standard errors of the terms."""
        one, two = self._halves
        fitted = [(one, two.fit()), (two, one.fit())]
        means = [half.mean(fit) for half, fit in fitted]
        # Halves of the draws count for as many as they are; halves of the strata have them all.
        by_draws = one.draws < self.draws
        value = torch.stack([half.draws * (half.share @ m) for half, m in zip(self._halves, means, strict=True)]).sum(0)
        value /= self.draws
        if self.stratified:
            scatter = torch.stack([half.scatter(fit) for half, fit in fitted]).sum(0).clamp(min=0.0)
            error = (scatter / ((self.draws - (2 if by_draws else 1)) * self.draws) + self._doubt()).sqrt()
        else:
            # Not every stratum was visited: the spread between those that were is part of the error.
            strata = torch.stack(means).mean(0) if by_draws else torch.cat(means)
            error = strata.std(0) / len(strata) ** 0.5
        return value.tolist(), (CAUTION * error).tolist()

    def difference(self) -> float:
        """Return the standard error of the first term less the second, of the same draws: less than both errors say."""
        one, two = self._halves
        fitted = [(one, two.fit()), (two, one.fit())]
        by_draws = one.draws < self.draws
        if self.stratified:
            scatter = max(0.0, sum(half.scatter_of_difference(fit) for half, fit in fitted))
            variance = scatter / ((self.draws - (2 if by_draws else 1)) * self.draws)
            return CAUTION * math.sqrt(variance + float(self._doubt(difference=True)))
        means = [half.mean(fit)[:, 0] - half.mean(fit)[:, 1] for half, fit in fitted]
        strata = torch.stack(means).mean(0) if by_draws else torch.cat(means)
        return CAUTION * float(strata.std(0)) / math.sqrt(len(strata))

    def _doubt(self, *, difference: bool = False) -> torch.Tensor | float:
        """Return what Student's factor adds to the variance of the terms in the strata that are far."""
        if self.far is None or self.draws < 2:
            return 0.0
        alone = torch.cat(self._alone, 1)
        own = (alone[0] - alone[1] if difference else alone).var(-2) / self.draws
        factor = (float(stdtrit(self.draws - 1, 0.975)) / 1.96) ** 2
        return (own @ self.share[self.far].square()) * (factor - 1.0)


@dataclass
class _Half:
    """Mean of every stratum, and scatter within strata by squared share, of terms and controls together."""

    share: torch.Tensor
    part: tuple[slice, slice]
    terms: int
    draws: int = 0
    _mean: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    _scatter: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, both: torch.Tensor) -> None:
        """Add draws (strata, draws, terms and controls)."""
        before, number = self.draws, both.shape[1]
        if number == 0:  # of a single draw the other half has it
            return
        self.draws += number
        # About the mean of what came together, and that about the mean before: sums of squares would cancel where the
        # spread is small.
        middle = both.mean(1)
        apart = (self.share.view(-1, 1, 1) * (both - middle.unsqueeze(1))).flatten(0, 1)
        step = self.share.unsqueeze(1) * (middle - self._mean)
        self._scatter = self._scatter + apart.mT @ apart + (before * number / self.draws) * (step.mT @ step)
        self._mean = self._mean + (middle - self._mean) * (number / self.draws)

    def fit(self) -> torch.Tensor:
        """Return the coefficients by which these terms follow the controls."""
        return _fitted(self._scatter, self.terms)

    def mean(self, fit: torch.Tensor) -> torch.Tensor:
        """Return the means of the strata (strata, terms) once that much of the controls is taken off."""
        return self._mean[:, : self.terms] - self._mean[:, self.terms :] @ fit

    def scatter(self, fit: torch.Tensor) -> torch.Tensor:
        """Return the scatter of the terms once that much of the controls is taken off."""
        left = torch.cat((torch.eye(self.terms, dtype=fit.dtype, device=fit.device), -fit))
        return torch.einsum("it,ij,jt->t", left, self._scatter, left)

    def scatter_of_difference(self, fit: torch.Tensor) -> float:
        """Return the same of the first term less the second."""
        step = fit[:, 1] - fit[:, 0]
        left = torch.cat((step.new_tensor([1.0, -1.0, *[0.0] * (self.terms - 2)]), step))
        return float(left @ self._scatter @ left)


def _fitted(spread: torch.Tensor, terms: int) -> torch.Tensor:
    """Return least-squares coefficients (p, terms) of the terms on the controls, from their joint scatter."""
    scatter, crossed = spread[terms:, terms:], spread[terms:, :terms]
    scale = scatter.diagonal().sqrt()
    scale = torch.where(scale > 0, scale.reciprocal(), 0.0)
    value, vector = torch.linalg.eigh(scale.unsqueeze(1) * scatter * scale)
    kept = value > DEPENDENT * value.amax() if len(value) else value > 0
    inverse = torch.where(kept, value.reciprocal(), 0.0)
    fit: torch.Tensor = vector @ (inverse.unsqueeze(1) * (vector.mT @ (scale.unsqueeze(1) * crossed)))
    return fit.mul(scale.unsqueeze(1))
