"""A kd-tree of points: leaves of neighbours, and the leaves that a ball reaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ibscan.numerics.tiling import cuts

__all__ = ["Budget", "Tree"]

# Axes along which boxes are compared at most: one more costs as much as a few centres.
AXES = 8
# Balls probed to estimate the share of leaves within reach.
PROBED = 128
# The search starts at the first level with so many nodes, all of which are compared with every ball.
COARSE = 64
# Numbers compared together: what fits a core's cache, or keeps a GPU busy.
NUMBERS = {"cpu": 2**16, "cuda": 2**24}


@dataclass(frozen=True)
class Budget:
    """How a tree is built and searched; numbers depend on it only by rounding.

    A leaf has at most `leaf` points, or as many as coordinates, up to `largest`: small leaves are skipped more often,
    large ones cost fewer calls. If balls reach more than the share `dense` of the leaves, searching does not pay.
    """

    leaf: int = 64
    largest: int = 256
    dense: float = 0.4


USUAL = Budget()


@dataclass(frozen=True)
class Tree:
    """Points split in halves along the widest axis, recursively.

    `order` (leaves, size) are indices of points, padded by repeats where `real` (leaves, size) is False. `boxes` has,
    root first, the low and high corners (nodes, k) of every node along orthonormal `axes` (d, k), None for the
    coordinates themselves.
    """

    order: torch.Tensor
    real: torch.Tensor
    boxes: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    axes: torch.Tensor | None
    dense: float = USUAL.dense

    @staticmethod
    def of(points: torch.Tensor, most: int | None = None, budget: Budget = USUAL) -> Tree:
        """Build the tree of points (n, d), n >= 1, with leaves of at most `most` points, by default what is fastest.

        In many dimensions boxes are along a few directions of largest spread: a distance along these is a lower bound.
        """
        count, width = points.shape
        axes = _widest(points) if width > AXES else None
        along = points if axes is None else points @ axes
        if most is None:
            most = budget.largest if points.is_cuda else min(max(budget.leaf, width), budget.largest)
        depth = max(0, (-(-count // most) - 1).bit_length())
        size = -(-count // 2**depth)
        place = torch.arange(2**depth * size, device=points.device)
        # Pad with repeats of the last point, which are left out of every sum.
        nodes = place.clamp(max=count - 1).view(1, -1)
        fillers = place.ge(count).view(1, -1)
        boxes = []
        for level in range(depth + 1):
            inside = along[nodes]
            low, high = inside.amin(1), inside.amax(1)
            boxes.append((low, high))
            if level < depth:
                axis = (high - low).argmax(1).view(-1, 1, 1).expand(-1, nodes.shape[1], 1)
                halves = inside.gather(2, axis).squeeze(2).argsort(dim=1, stable=True)
                nodes, fillers = (kind.gather(1, halves).view(2 * len(nodes), -1) for kind in (nodes, fillers))
        return Tree(nodes, ~fillers, tuple(boxes), axes, budget.dense)

    def reached(
        self, points: torch.Tensor, squared: torch.Tensor, unit: float = 1.0
    ) -> tuple[torch.Tensor, list[int]] | None:
        """Return the points whose ball may reach each leaf; no leaf that a ball reaches is missed.

        Args:
            points: Centres of the balls, shape (m, d), in units of `unit`.
            squared: Squared radii, shape (m,), in the same units.
            unit: Divides the tree's points.

        Returns:
            Indices of points, leaf by leaf, and how many each leaf has; None if most leaves are within reach of most
            points, so that searching does not pay.
        """
        leaves = len(self.order)
        along = points if self.axes is None else points @ self.axes
        boxes = [(low / unit, high / unit) for low, high in self.boxes]
        probed = torch.linspace(0, len(points) - 1, min(PROBED, len(points)), device=points.device).long()
        if leaves == 1 or float(_reach_table(along[probed], squared[probed], *boxes[-1]).double().mean()) > self.dense:
            return None
        coarse = min(len(boxes), COARSE.bit_length()) - 1
        # Ordered by node, so that points end up ordered by leaf.
        node, point = _reach_table(along, squared, *boxes[coarse]).nonzero(as_tuple=True)
        for low, high in boxes[coarse + 1 :]:
            node, point = torch.cat((2 * node, 2 * node + 1)), point.repeat(2)
            distance = _beyond(low[node], along[point], high[node]).square_().sum(1)
            kept = (distance <= squared[point]).nonzero().squeeze(1)
            node, point = node[kept], point[kept]
        if coarse < len(boxes) - 1:
            node, by_leaf = node.sort(stable=True)
            point = point[by_leaf]
        return point, torch.bincount(node, minlength=leaves).tolist()


def _reach_table(along: torch.Tensor, squared: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return whether balls (m) reach boxes (nodes), shape (nodes, m)."""
    numbers = NUMBERS.get(along.device.type, NUMBERS["cuda"])
    low, high, turned = low.mT.unsqueeze(2), high.mT.unsqueeze(2), along.mT.contiguous()
    found = []
    for part in cuts(0, len(along), numbers // low.shape[1]):
        distance = turned.new_zeros(())
        for axis in zip(low, turned[:, part], high, strict=True):
            beyond = _beyond(*axis)
            distance = torch.addcmul(distance, beyond, beyond)
        found.append(distance <= squared[part])
    return torch.cat(found, 1)


def _beyond(low: torch.Tensor, at: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.maximum(low - at, at - high).clamp_(min=0.0)


def _widest(points: torch.Tensor) -> torch.Tensor:
    """Return orthonormal directions (d, k) near those of the largest spread: two power iterations from coordinates."""
    centred = points - points.mean(0)
    # Scale by the largest, so that squares stay in the range of float64.
    centred /= torch.stack(centred.aminmax()).abs().amax().clamp(min=torch.finfo(centred.dtype).tiny)
    start = centred.square().sum(0).argsort(descending=True)[:AXES]
    axes = torch.zeros(points.shape[1], len(start), dtype=points.dtype, device=points.device)
    axes[start, torch.arange(len(start), device=points.device)] = 1.0
    for _ in range(2):
        axes = torch.linalg.qr(centred.mT @ (centred @ axes))[0]
    return axes
