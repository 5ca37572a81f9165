"""Control variates: functions of the noise whose means are known, and what is left of terms once they are taken off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

__all__ = ["Residuals", "controls", "quadratic"]

# Up to this width all products of two coordinates are followed; beyond, only the length of the noise.
QUADRATIC_WIDTH = 12
# Differences between draws that one control needs, so that following it by chance costs little.
DRAWS_A_CONTROL = 8
# Directions in which controls vary by less than this share of the most are rounding.
DEPENDENT = 1e-10

Follow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def quadratic(z: torch.Tensor) -> torch.Tensor:
    """Return z_k z_l - delta_kl for k <= l, of standard normals z (..., d): mean zero, shape (..., d (d + 1) / 2)."""
    width = z.shape[-1]
    first, second = torch.triu_indices(width, width, device=z.device)
    products: torch.Tensor = z[..., first] * z[..., second]
    return products.sub((first == second).to(z.dtype))


def controls(centres: torch.Tensor, spare: int) -> Follow:
    """Return the function (z, owner) -> controls of draws s_owner + noise z, whose means are exactly zero.

    Up to 12 units: z_k, z_k s_l + s_k z_l and z_k z_l - delta_kl; of wider layers, and where there are few draws, the
    one that matters most, |z|^2 - d; none where even that could not be fitted.

    Args:
        centres: s, shape (n, d), about their mean.
        spare: Differences between draws of one stratum there will be.

    Returns:
        Function of standard normals (m, d) and indices of centres (m,), giving (m, number of controls).
    """
    width = centres.shape[1]
    # Of the size of one, so that all controls weigh alike when dependent ones are looked for.
    scaled = centres / centres.square().mean().sqrt().clamp(min=torch.finfo(centres.dtype).tiny)
    first, second = torch.triu_indices(width, width, device=centres.device) if width <= QUADRATIC_WIDTH else ((), ())

    def none(z: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return z[:, :0]

    def length(z: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        excess: torch.Tensor = z.square().sum(1, keepdim=True) - width
        return excess.div(math.sqrt(2 * width))

    def every(z: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        s = scaled[owner]
        return torch.cat((z, z[:, first] * s[:, second] + s[:, first] * z[:, second], quadratic(z)), 1)

    if width <= QUADRATIC_WIDTH and spare >= DRAWS_A_CONTROL * 2 * (width + width * (width + 1)):
        return every
    return length if spare >= DRAWS_A_CONTROL * 2 else none


@dataclass
class Residuals:
    """Terms of strata, draw by draw, less the controls as the other half of the strata follows them.

    Strata alternate between two halves. What is subtracted in one has coefficients fitted in the other, so that it does
    not know the draws it is subtracted from and keeps its mean of zero. `share` are the weights of the strata, which
    are all there are (`stratified`) or a sample.
    """

    share: torch.Tensor
    stratified: bool
    draws: int = 0
    terms: int = 0
    _mean: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    _spread: list[torch.Tensor] = field(default_factory=list)

    def add(self, terms: torch.Tensor, follow: torch.Tensor) -> None:
        """Add some draws of every stratum.

        Args:
            terms: Shape (terms, draws, strata).
            follow: Their controls, shape (draws, strata, p).
        """
        both = torch.cat((terms.movedim(0, -1), follow), -1)
        before, number = self.draws, len(both)
        if before == 0:
            self.terms = len(terms)
            self._mean = torch.zeros_like(both[0])
            self._spread = [both.new_zeros(both.shape[-1], both.shape[-1]) for _ in range(2)]
        self.draws += number
        # About the mean of what came together, and that about the mean before: sums of squares would cancel where the
        # spread is small.
        middle = both.mean(0)
        apart = self.share.unsqueeze(1) * (both - middle)
        shift = self.share.unsqueeze(1) * (middle - self._mean)
        self._mean = self._mean + (middle - self._mean) * (number / self.draws)
        for half, spread in enumerate(self._spread):
            inside, step = apart[:, half::2].flatten(0, 1), shift[half::2]
            spread += inside.mT @ inside + (before * number / self.draws) * (step.mT @ step)

    def result(self) -> tuple[list[float], list[float]]:
        """Return means and standard errors of the terms."""
        terms = self.terms
        fitted = [_fitted(spread, terms) for spread in self._spread]
        means = self._mean[:, :terms].clone()
        variance = means.new_zeros(terms)
        for half, spread in enumerate(self._spread):
            # Strata of one half alone have nothing to be fitted to but themselves.
            fit = fitted[1 - half]
            means[half::2] -= self._mean[half::2, terms:] @ fit
            left = torch.cat((torch.eye(terms, dtype=fit.dtype, device=fit.device), -fit))
            variance += torch.einsum("it,ij,jt->t", left, spread, left)
        value = self.share @ means
        if self.stratified:
            error = (variance.clamp(min=0.0) / ((self.draws - 1) * self.draws)).sqrt()
        else:
            # Not every stratum was visited: the spread between those that were is part of the error.
            error = means.std(0) / len(means) ** 0.5
        return value.tolist(), error.tolist()


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
