"""Noisy passes linearised about a path: Gaussian approximations of p(t|x) and of the noise behind a draw t.

A path z is the standard normals of all noisy layers before the one measured, S(z) the layer's post at that path, in
units of its own noise. About a path z*, S(z) is nearly `offset` + A z with A = dS/dz, so that p(t|x) is nearly
N(offset, I + A A^T), and given t the path is nearly N(B (t - offset), I - B A) with B = A^T (I + A A^T)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Linearised"]

# Slopes beyond this (squared, summed) are taken as zero: I - B A would be rounding, and drawing by it another law.
STEEPEST = 1e10


@dataclass(frozen=True)
class Linearised:
    """S(z) of some inputs, each linearised about a path of its own.

    `offset` (..., d), `slope` A (..., d, m), `gain` B (..., m, d), `log_det` (...,) = ln det(I + A A^T) / 2. Where
    the derivative is not finite or too steep, A and B are zero: what is drawn is then the plain normal law.
    """

    offset: torch.Tensor
    slope: torch.Tensor
    gain: torch.Tensor
    log_det: torch.Tensor

    @staticmethod
    def of(values: torch.Tensor, slope: torch.Tensor, path: torch.Tensor) -> Linearised:
        """Linearise about paths z* (q, m), given S(z*) (q, d) and A (q, d, m), in units of the noise."""
        sound = (slope.square().sum((-2, -1)) <= STEEPEST).unsqueeze(-1)  # False for NaN too.
        slope = torch.where(sound.unsqueeze(-1), slope, 0.0)
        wide = slope.shape[-2] <= slope.shape[-1]
        small = slope @ slope.mT if wide else slope.mT @ slope
        small.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor = torch.linalg.cholesky(small)
        gain = torch.cholesky_solve(slope if wide else slope.mT, factor)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        offset = values - (slope @ path.unsqueeze(-1)).squeeze(-1)
        return Linearised(torch.nan_to_num(offset, 0.0, 0.0, 0.0), slope, gain.mT if wide else gain, log_det)

    def taken(self, index: torch.Tensor) -> Linearised:
        """Return those of some inputs, by index (any shape)."""
        return Linearised(self.offset[index], self.slope[index], self.gain[index], self.log_det[index])

    def mean_path(self, points: torch.Tensor) -> torch.Tensor:
        """Return the mean of the path given t (q, d): a Gauss-Newton step towards the likeliest path, (q, m)."""
        return (self.gain @ (points - self.offset).unsqueeze(-1)).squeeze(-1)

    def log_density(self, points: torch.Tensor) -> torch.Tensor:
        """Return ln N(t; offset, I + A A^T) + (d/2) ln 2 pi at t (q, d), shape (q,)."""
        residual = (points - self.offset).unsqueeze(-1)
        path = self.gain @ residual
        # The smallest |r - A z|^2 + |z|^2 is r^T (I + A A^T)^-1 r, as a sum of squares.
        square = (residual - self.slope @ path).square().sum((-2, -1)) + path.square().sum((-2, -1))
        return -0.5 * square - self.log_det

    def paths(self, points: torch.Tensor, normals: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return paths given t, by Matheron's rule: z' + B (t - offset - A z' - e).

        Args:
            points: t, shape (q, d).
            normals: z', standard normals (q, k, m).
            noise: e, standard normals (q, k, d).

        Returns:
            Shape (q, k, m), drawn from N(B (t - offset), I - B A).

        Source:
            Matheron's rule: Wilson et al. 2021, JMLR 22(105), section 3.
        """
        left = (points - self.offset).unsqueeze(-2) - normals @ self.slope.mT - noise
        return normals + left @ self.gain.mT

    def log_kernel(self, points: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Return ln N(t; offset + A z, I) + (d/2) ln 2 pi at t (q, d) and paths z (q, k, m), shape (q, k)."""
        left = (points - self.offset).unsqueeze(-2) - paths @ self.slope.mT
        return -0.5 * left.square().sum(-1)
