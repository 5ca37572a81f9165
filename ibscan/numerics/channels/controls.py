"""Control variates: functions of the noise with known means, subtracted from terms to reduce their variance."""

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
    "controlled_by_row",
    "controls",
    "gaussian",
    "near_enough",
    "quadratic",
]

# Up to this width all products of two coordinates are controls; in wider layers only the length of the noise is (and
# Gaussians fitted to replicas or to neighbours).
QUADRATIC_WIDTH = 12
# Degrees of freedom required for each control, so that fitting noise costs little.
DRAWS_A_CONTROL = 4
# With fewer strata than these, draws are split into halves instead.
FEW_STRATA = 64
# Relative eigenvalue below which controls are linearly dependent.
DEPENDENT = 1e-10
# Controls that grow with the centre are not used at centres more than FAR times as far from the middle as the OUTER-th
# farthest (or the CROWD-th part of all): coefficients fitted on other strata do not hold there, and a few such centres
# would dominate the error.
FAR, OUTER, CROWD = 2.0, 64, 16
# Factor on standard errors: the spread is estimated, from skewed terms, and 95 % intervals must hold all the same.
CAUTION = 1.15

# Root-mean-square deviation, nats, from which on what is known of rows counts.
SLIGHT = 0.05

Follow = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def quadratic(z: torch.Tensor) -> torch.Tensor:
    """Return z_k z_l - delta_kl for k <= l, of standard normals z (..., d): mean zero, shape (..., d (d + 1) / 2)."""
    width = z.shape[-1]
    first, second = torch.triu_indices(width, width, device=z.device)
    products: torch.Tensor = z[..., first] * z[..., second]
    return products.sub((first == second).to(z.dtype))


def controls(width: int, spare: int) -> Follow:
    """Return the function (z, s) -> controls of draws t = s + noise z, whose means are exactly zero.

    Up to 12 units: z_k, z_k s_l + s_k z_l and z_k z_l - delta_kl. For wider layers, or few draws, the one that matters
    most, |z|^2 - d; none if there are too few draws for that.

    Args:
        width: d.
        spare: Degrees of freedom: draws less one, summed over strata.

    Returns:
        Function of standard normals z (..., d) and centres s (..., d), giving (..., number of controls). Beyond 12
        units it ignores s.
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
    """Return at which strata controls that grow with the centre may be used, by distances from the middle (m,)."""
    outer = min(OUTER, max(1, len(lengths) // CROWD))
    return lengths <= FAR * lengths.topk(outer).values[-1]


def gaussian(z: torch.Tensor, offset: torch.Tensor, precision: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centred quadratic and linear parts in z of -ln N(offset + z; 0, precision^-1).

    Args:
        z: Standard normals (..., m, d).
        offset: Of each centre from the mean of the Gaussian, (..., m or 1, d).
        precision: Any symmetric matrices (..., d, d).

    Returns:
        Both parts, of mean 0 over z, shape (..., m).
    """
    product = z @ precision
    trace = precision.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    return 0.5 * ((product * z).sum(-1) - trace), (product * offset).sum(-1)


def controlled(terms: torch.Tensor, follow: torch.Tensor) -> torch.Tensor:
    """Return terms minus controls, with coefficients fitted on the other half of the strata.

    Args:
        terms: Shape (terms, strata, draws).
        follow: Their controls, shape (strata, draws, p).

    Returns:
        The shape of the terms, with the same expected means.
    """
    joint = torch.cat((terms.movedim(0, -1), follow), -1)
    left = terms.clone()
    for mine, other in _halves(*joint.shape[:2]):
        fitted = joint[other]
        # Centre within strata if they have more than one draw: differences between strata are not due to the noise.
        centred = fitted - (fitted.mean(1, keepdim=True) if fitted.shape[1] > 1 else fitted.mean((0, 1)))
        centred = centred.flatten(0, 1)
        fit = _fitted(centred.mT @ centred, len(terms))
        left[:, *mine] -= (follow[mine] @ fit).movedim(-1, 0)
    return left


def controlled_by_row(terms: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return terms minus what is known of their rows, with coefficients fitted on the other half of the rows.

    Args:
        terms: Shape (terms, rows, draws), of a sample of the rows.
        known: Of each row less its mean over all rows, sampled or not, shape (rows, p).

    Returns:
        The shape of the terms, with the same expected means up to the order of one in so many rows, as halves of a
        sample without replacement are not independent; the terms themselves where rows are few.
    """
    if len(known) < FEW_STRATA:
        return terms
    joint, left = torch.cat((terms.mean(-1).mT, known), 1), terms.clone()
    for mine, other in ((0, 1), (1, 0)):
        centred = joint[other::2] - joint[other::2].mean(0)
        spread = centred.mT @ centred
        # What hardly varies in one half may vary in the other.
        spread.diagonal()[len(terms) :].add_(len(centred) * SLIGHT**2)
        fit = _fitted(spread, len(terms))
        left[:, mine::2] -= (known[mine::2] @ fit).mT.unsqueeze(-1)
    return left


def _halves(strata: int, draws: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return, for each half, its strata and draws, and those of the other half.

    Strata alternate between halves; few strata differ too much for that, and their draws alternate instead.
    """
    every = slice(None)
    by_draws = strata < FEW_STRATA and draws >= 4
    first, second = ((every, slice(k, None, 2)) if by_draws else (slice(k, None, 2), every) for k in (0, 1))
    return [(first, second), (second, first)]


class ReplicaControls:
    """Controls of draws at replicas: those of `controls`, and one from a Gaussian fitted to each row's replicas.

    The latter is -ln N(s + z; mean, covariance + I) less its mean over z, which approximates the density of the row's
    own replicas. In units of the noise.
    """

    def __init__(self, z: torch.Tensor, s: torch.Tensor) -> None:
        """Begin without replicas, with standard normals z added to centres s, both (draws, rows, D)."""
        draws, _, width = z.shape
        self._z, self._s, self._count = z.transpose(0, 1), s.transpose(0, 1), 0
        centres = self._s - self._s.flatten(0, 1).median(0).values
        # Scale to 1, so that controls are comparable when linearly dependent ones are dropped; by the largest first, as
        # squares may leave the range of float64.
        tiny = torch.finfo(centres.dtype).tiny
        centres /= centres.abs().amax().clamp(min=tiny)
        centres /= centres.square().mean().sqrt().clamp(min=tiny)
        self._common = controls(width, len(self._s) * max(1, draws - 1))(self._z, centres)
        if width <= QUADRATIC_WIDTH:
            near = near_enough(centres.square().sum(-1).mean(1).sqrt())
            self._common = self._common * near.view(-1, 1, 1)
        # Sum squares about a point near each row's replicas, which loses no digits.
        self._origin = self._s[:, :1]
        self._first, self._second = z.new_zeros(len(self._s), 1, width), z.new_zeros(())

    def add(self, values: torch.Tensor) -> None:
        """Add replicas (K, rows, D); layers too wide to hold a matrix for every row are ignored."""
        if values.shape[-1] > QUADRATIC_WIDTH:
            return
        centred = values.transpose(0, 1) - self._origin
        self._count += len(values)
        self._first = self._first + centred.sum(1, keepdim=True)
        self._second = self._second + centred.mT @ centred

    def follow(self) -> torch.Tensor:
        """Return the controls, shape (rows, draws, p)."""
        if self._count == 0:
            return self._common
        mean = self._first / self._count
        covariance = self._second / self._count - mean.mT @ mean
        # If squares left the range of float64 the control is 0.
        finite = torch.isfinite(covariance).flatten(1).all(1).view(-1, 1, 1)
        covariance = torch.where(finite, covariance, 0.0)
        width = covariance.shape[-1]
        precision = torch.linalg.inv(covariance + torch.eye(width, dtype=mean.dtype, device=mean.device))
        own = torch.stack(gaussian(self._z, self._s - self._origin - mean, precision)).sum(0)
        return torch.cat((self._common, torch.where(finite, own.unsqueeze(-1), 0.0)), -1)


@dataclass
class Residuals:
    """Means and errors of terms of strata minus controls, accumulated draw by draw.

    Controls subtracted in one half (see `_halves`) have coefficients fitted in the other half, so that they are
    independent of its draws and keep their mean of zero. `share` are the weights of the strata, which are all there are
    (`stratified`) or a sample. At a few `far` strata no controls are subtracted; as each may dominate the error, its
    variance gets Student's factor for its number of draws.
    """

    share: torch.Tensor
    stratified: bool
    far: torch.Tensor | None = None
    draws: int = 0
    _halves: list[_Half] = field(default_factory=list)
    _far_terms: list[torch.Tensor] = field(default_factory=list)

    def add(self, terms: torch.Tensor, follow: torch.Tensor) -> None:
        """Add some draws of every stratum.

        Args:
            terms: Shape (terms, draws, strata).
            follow: Their controls, shape (draws, strata, p).
        """
        if self.far is not None:
            follow = follow * ~self.far.unsqueeze(-1)
            self._far_terms.append(terms[..., self.far])
        joint = torch.cat((terms.movedim(0, -1), follow), -1).transpose(0, 1)
        if not self._halves:
            self._halves = [_Half(self.share[mine[0]], mine, len(terms)) for mine, _ in _halves(*joint.shape[:2])]
        for half in self._halves:
            half.add(joint[half.part])
        self.draws += joint.shape[1]

    def result(self) -> tuple[list[float], list[float]]:
        """Return means and standard errors of the terms."""
        one, two = self._halves
        fitted = [(one, two.fit()), (two, one.fit())]
        means = [half.mean(fit) for half, fit in fitted]
        # Halves of the draws are weighted by their number of draws; halves of the strata have all draws.
        by_draws = one.draws < self.draws
        value = torch.stack([half.draws * (half.share @ m) for half, m in zip(self._halves, means, strict=True)]).sum(0)
        value /= self.draws
        if self.stratified:
            scatter = torch.stack([half.scatter(fit) for half, fit in fitted]).sum(0).clamp(min=0.0)
            error = (scatter / ((self.draws - (2 if by_draws else 1)) * self.draws) + self._doubt()).sqrt()
        else:
            # The strata are a sample: the spread between them is part of the error.
            strata = torch.stack(means).mean(0) if by_draws else torch.cat(means)
            error = strata.std(0) / len(strata) ** 0.5
        return value.tolist(), (CAUTION * error).tolist()

    def difference(self) -> float:
        """Return the standard error of the first term minus the second, which the same draws make smaller."""
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
        """Return what Student's factor adds to the variance of the terms, from the far strata."""
        if self.far is None or self.draws < 2:
            return 0.0
        far_terms = torch.cat(self._far_terms, 1)
        own = (far_terms[0] - far_terms[1] if difference else far_terms).var(-2) / self.draws
        factor = (float(stdtrit(self.draws - 1, 0.975)) / 1.96) ** 2
        return (own @ self.share[self.far].square()) * (factor - 1.0)


@dataclass
class _Half:
    """Means of strata, and scatter within strata weighted by squared share, of terms and controls together."""

    share: torch.Tensor
    part: tuple[slice, slice]
    terms: int
    draws: int = 0
    _mean: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    _scatter: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, joint: torch.Tensor) -> None:
        """Add draws (strata, draws, terms and controls)."""
        before, number = self.draws, joint.shape[1]
        if number == 0:  # the other half has the only draw
            return
        self.draws += number
        # Update mean and scatter (Chan et al.): sums of squares would cancel where the spread is small.
        middle = joint.mean(1)
        centred = (self.share.view(-1, 1, 1) * (joint - middle.unsqueeze(1))).flatten(0, 1)
        step = self.share.unsqueeze(1) * (middle - self._mean)
        self._scatter = self._scatter + centred.mT @ centred + (before * number / self.draws) * (step.mT @ step)
        self._mean = self._mean + (middle - self._mean) * (number / self.draws)

    def fit(self) -> torch.Tensor:
        """Return the regression coefficients of the terms on the controls, (p, terms)."""
        return _fitted(self._scatter, self.terms)

    def mean(self, fit: torch.Tensor) -> torch.Tensor:
        """Return the means of the strata, (strata, terms), with controls subtracted."""
        return self._mean[:, : self.terms] - self._mean[:, self.terms :] @ fit

    def scatter(self, fit: torch.Tensor) -> torch.Tensor:
        """Return the scatter of the terms, (terms,), with controls subtracted."""
        left = torch.cat((torch.eye(self.terms, dtype=fit.dtype, device=fit.device), -fit))
        return torch.einsum("it,ij,jt->t", left, self._scatter, left)

    def scatter_of_difference(self, fit: torch.Tensor) -> float:
        """Return the scatter of the first term minus the second, with controls subtracted."""
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
