"""A layer's values as the centres of a Gaussian mixture: sums of densities, bounds and caps.

The population is discrete: n centres s_i with joint weights W[i, c] = P(X = i, Y = c), summing to one; without labels
there is one class. p(t) = sum_i w_i N(t; s_i, noise^2 I) with w_i = sum_c W[i, c].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ibscan.numerics.channels import tree
from ibscan.numerics.channels.tree import Tree
from ibscan.numerics.equal_rows import all_differ
from ibscan.numerics.tiling import cuts, mapped

__all__ = [
    "LARGEST_EXPONENT",
    "NEGLIGIBLE",
    "Budget",
    "Mixture",
    "Sums",
    "collapsed",
    "entropy",
    "gaussian_cap",
    "principal_components",
]

Sums = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Terms left out of a sum are below this, relative to the term of the draw's own centre.
NEGLIGIBLE = 1e-12
# A ratio of densities beyond e^700 has probability < e^-700 under its own draw (Markov's inequality): the clamp never
# acts in practice and only keeps infinity out.
LARGEST_EXPONENT = 700.0
# Largest group of neighbours.
GROUP = 64
# Gathering rows of a block pays if at most this share of them is needed.
GATHER_SHARE = 0.7
# Points whose sums are computed together, and pairs of them with leaves.
BLOCK = {"cpu": (2**12, 2**20), "cuda": (2**18, 2**24)}


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
    centres = centres + 0.0
    if all_differ(centres):
        return centres, weights, torch.arange(len(centres), device=centres.device)
    distinct, owner = torch.unique(centres, dim=0, return_inverse=True)
    merged = torch.zeros(len(distinct), weights.shape[1], dtype=weights.dtype, device=weights.device)
    merged.index_add_(0, owner, weights)
    return distinct, merged, owner


def gaussian_cap(sigma: torch.Tensor, noise: float) -> float:
    """Return (1/2) ln det(I + Cov(S) / noise^2), an upper bound on I(X; S + Z), nats.

    Args:
        sigma: Square roots of the eigenvalues of Cov(S), any number of zeros left out.
        noise: Standard deviation, > 0.

    Returns:
        The bound: a Gaussian has the largest entropy of all laws with its covariance.
    """
    return 0.5 * float(torch.log1p((sigma / noise).square()).sum())


def principal_components(centres: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return square roots of the eigenvalues of Cov(S), descending, and their directions.

    Args:
        centres: Shape (n, d), float64.
        weights: Shape (n,), summing to 1.

    Returns:
        Shapes (k,) and (k, d), k = min(n, d); other eigenvalues are 0.
    """
    scaled = weights.sqrt().unsqueeze(1) * (centres - weights @ centres)
    if len(scaled) > scaled.shape[1]:
        scaled = torch.linalg.qr(scaled, mode="r")[1]
    _, sigma, directions = torch.linalg.svd(scaled, full_matrices=False)
    return sigma, directions


@dataclass(frozen=True)
class Budget:
    """How sums over centres are computed; they depend on it only by rounding.

    |a|^2 + |b|^2 - 2 a.b has an error of about 1e-16 max |b|^2: it is used up to `expansion`, in squared noises, where
    exponents are right to 1e-10. `block` is how many points, and pairs of points with leaves, are computed together;
    None for what suits the device.
    """

    tree: tree.Budget = tree.USUAL
    expansion: float = 1e6
    block: tuple[int, int] | None = None


USUAL = Budget()


@dataclass(frozen=True)
class Mixture:
    """Distinct centres with their weights, for sums over Gaussians at any noise.

    `centres` (n, d), float64, are centred on the median of the rows; `weights` (n, classes); `owner` (N,) is the index
    of each row's centre and `rows` (N,) its weight; `units` (d,) are the units that vary. Constant units carry no
    information and are left out (but for one, if all are constant).
    """

    centres: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor
    rows: torch.Tensor
    units: torch.Tensor
    budget: Budget = USUAL
    _overlaps: dict[float, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of(values: torch.Tensor, joint: torch.Tensor, budget: Budget = USUAL) -> Mixture:
        """Make the mixture of a layer's values.

        Args:
            values: Shape (N, D), finite, float64.
            joint: Joint weights of rows and classes, shape (N, C), summing to 1.
            budget: How its sums are computed.
        """
        moving = (values != values[0]).any(0)
        moving[0] |= ~moving.any()
        units = moving.nonzero().squeeze(1)
        rows = joint.sum(1)
        if len(units) < values.shape[1]:
            values = values[:, units]
        # Centre first, as an offset would cost digits. On the median: the mean follows a single far row.
        centres, weights, owner = collapsed(values - values.median(0).values, joint)
        return Mixture(centres, weights, owner, rows, units, budget)

    @cached_property
    def share(self) -> torch.Tensor:
        """Weights of the centres, shape (n,)."""
        return self.weights.sum(1)

    @cached_property
    def rms_radius(self) -> float:
        """Root-mean-square distance of the rows from their mean."""
        centred = self.centres - self.share @ self.centres
        # Scale by the largest, whose square may leave the range of float64.
        largest = float(centred.abs().amax())
        return largest * math.sqrt(float(self.share @ (centred / largest).square().sum(1))) if largest > 0 else 0.0

    @cached_property
    def principal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`principal_components` of the centres."""
        return principal_components(self.centres, self.share)

    def chosen(self, normals: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        """Return a function from draws to the standard normals of `units`, given that for all units."""

        def drawn(draw: int) -> torch.Tensor:
            z = normals(draw)
            return z if len(self.units) == z.shape[1] else z[:, self.units]

        return drawn

    def projected(self, components: int) -> Mixture:
        """Return the mixture of the first `components` principal components."""
        centres, weights, owner = collapsed(self.centres @ self.principal[1][:components].mT, self.weights)
        units = torch.arange(centres.shape[1], device=centres.device)
        return Mixture(centres, weights, owner[self.owner], self.rows, units, self.budget)

    def bounds(self, noise: float) -> tuple[float, float]:
        """Return the lower and upper pairwise-distance bounds on I(X; S + Z), nats.

        Args:
            noise: Standard deviation, > 0.

        Returns:
            Lower and upper; lower(noise) = upper(2 noise).

        Source:
            Kolchinsky and Tracey 2017, Entropy 19(7) 361, equations 10 and 11 with the Chernoff (1/2) and
            Kullback-Leibler distances of equal Gaussians.
        """
        lower, upper = (-float(self.share @ self._overlap(width).log()) for width in (2.0 * noise, noise))
        return lower, upper

    def pairwise(self, noise: float) -> torch.Tensor:
        """Return a prediction, from distances of centres, of the mean terms of draws from each centre.

        For E[ln p(t|i) - ln p(t)] it is the centre's part of the pairwise upper bound. For E[ln p(t|Y) - ln p(t)] it is
        the same expression for both densities, and no bound.

        Args:
            noise: Standard deviation, > 0.

        Returns:
            Shape (2, n), nats.

        Source:
            Kolchinsky and Tracey 2017, Entropy 19(7) 361, equation 10: Jensen's inequality, which holds for every term.
        """
        return self.predicted(self.centres, self.weights / self.share.unsqueeze(1), noise)

    def predicted(self, points: torch.Tensor, given: torch.Tensor, noise: float) -> torch.Tensor:
        """Return `pairwise`, (2, q), at points (q, d) near the centres, with their P(Y | point), (q, classes)."""
        by_class = self._near(self.weights, noise, points)
        total = by_class.sum(1, keepdim=True)
        ratio = by_class.log() - total.log() - self.weights.sum(0).log()
        return torch.stack((-total.log().squeeze(1), torch.where(given > 0, given * ratio, 0.0).sum(1)))

    @cached_property
    def _tree(self) -> Tree:
        return Tree.of(self.centres, budget=self.budget.tree)

    @cached_property
    def groups(self) -> Tree:
        """Groups of neighbours, the same on every device."""
        return Tree.of(self.centres, GROUP, self.budget.tree) if self._tree.order.shape[1] > GROUP else self._tree

    def _overlap(self, noise: float) -> torch.Tensor:
        # Cached, as bounds at doubled noises share most of them.
        if noise not in self._overlaps:
            self._overlaps[noise] = self._near(self.share.unsqueeze(1), noise, self.centres).squeeze(1)
        return self._overlaps[noise]

    def _near(self, columns: torch.Tensor, noise: float, points: torch.Tensor) -> torch.Tensor:
        none = torch.zeros(len(points), dtype=points.dtype, device=points.device)
        return self.sums(columns, noise)(points / noise, none)

    def sums(self, columns: torch.Tensor, noise: float, size: float = 1.0) -> Sums:
        """Return the function (t, shift) -> sum_j exp(shift_i - ||t_i - s_j / noise||^2 / 2) columns_j.

        Centres are skipped if all their terms together are below 1e-12 of the smallest weight.

        Args:
            columns: What is summed, shape (n, q).
            noise: Standard deviation, > 0.
            size: Scale of the columns relative to weights, for that threshold.

        Returns:
            A function of points t in units of the noise, (m, d), and shifts (m,), giving (m, q).
        """
        order, real = self._tree.order, self._tree.real
        leaves = self.centres[order].div_(noise)
        squares = leaves.square().sum(-1, keepdim=True)
        expands = float(squares.amax()) <= self.budget.expansion
        # One matrix product gives the exponents: t . s - |s|^2 / 2 + (shift - |t|^2 / 2).
        whole = torch.cat((leaves, -0.5 * squares, torch.ones_like(squares)), -1).mT
        columns = columns[order].masked_fill_(~real.unsqueeze(-1), 0.0)
        cut = -math.log(NEGLIGIBLE * float(self.share[self.share > 0].amin())) + math.log(max(1.0, size))

        def exponents(at: torch.Tensor, leaf: int) -> torch.Tensor:
            if expands:
                return at @ whole[leaf]
            distance = torch.cdist(at[:, :-2], leaves[leaf], compute_mode="donot_use_mm_for_euclid_dist")
            return distance.square_().mul_(-0.5).add_(at[:, -1:])

        def add(at: torch.Tensor, shift: torch.Tensor, total: torch.Tensor) -> None:
            near, lift = self._tree.reached(at, 2.0 * (shift + cut), noise), shift.unsqueeze(1)
            if expands:
                lift = lift - 0.5 * torch.linalg.vector_norm(at, dim=1, keepdim=True).square_()
            at = torch.cat((at, torch.ones_like(lift), lift), 1)
            every = torch.arange(len(at), device=at.device)
            parts = [every] * len(order) if near is None else torch.split(near[0], near[1])
            for leaf, part in enumerate(parts):
                if not len(part):
                    continue
                exponent = exponents(at if part is every else at.index_select(0, part), leaf)
                # Boxes are loose in many dimensions: drop points by their exponents too.
                reached = (exponent.amax(1) > -cut).nonzero().squeeze(1)
                if len(reached) < GATHER_SHARE * len(part):
                    part, exponent = part[reached], exponent[reached]
                share = exponent.clamp_(-cut, LARGEST_EXPONENT).exp_() @ columns[leaf]
                if part is every:
                    total += share
                else:
                    total.index_add_(0, part, share)

        def all_sums(points: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            largest, pairs = self.budget.block or BLOCK.get(points.device.type, BLOCK["cuda"])
            blocks = cuts(0, len(points), min(largest, pairs // len(order)))
            total = torch.zeros(len(points), columns.shape[-1], dtype=points.dtype, device=points.device)
            mapped(lambda rows: add(points[rows], shift[rows], total[rows]), blocks, points.device)
            return total

        return all_sums
