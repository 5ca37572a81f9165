"""The truth of the network channel for narrow noisy chains, by quadrature; families of them are in network_truth.py.

Float64, from the definitions of methods.md 2.1; it knows nothing of the package's estimators. Hidden layers are
T_k = f_k(T_{k-1}) + noise Z_k, k = 0, 1, ...; T_{-1} = X is discrete. Laws p(t | x) are carried from layer to layer
on grids. Layer k + 1 sees of T_k only its projection on the row space of W_{k+1}, on which the noise is as isotropic
as before: a grid has min(width of k, width of k + 1) dimensions, so that wide layers beside narrow ones cost nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Grids reach so many noises beyond every value: a tail of 2e-19.
REACH = 9.0
# Gauss-Legendre panels of so many points; a deviation of the narrowest Gaussian has so many points at fineness 1.
POINTS, PER_DEVIATION = 8, 4.0
# Centres whose Gaussians are in memory at once.
BLOCK = 2048
# Nodes that no input reaches with this mass are left out, a hundred thousand of them make 1e-12.
LEAST_MASS = 1e-17
# A plane is the most that a grid covers in seconds.
MOST_DIMENSIONS = 2
# Singular values under this share of the largest are rounding.
RANK_SHARE = 1e-10

ACTIVATION: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "sigmoid": lambda p: 0.5 + 0.5 * np.tanh(0.5 * p),
    "relu": lambda p: np.maximum(p, 0.0),
    "identity": lambda p: p,
}


class Information(NamedTuple):
    """I(X;T) and I(T;Y) in nats."""

    xt: float
    ty: float


@dataclass(frozen=True, eq=False)
class Noisy:
    """The hidden layers of a noisy chain: weights (out, in), biases (out,), one activation, standard deviation."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    activation: str
    noise: float

    def post(self, k: int, t: np.ndarray) -> np.ndarray:
        """f_k of rows (P, in), shape (P, out)."""
        return ACTIVATION[self.activation](t @ self.weights[k].T + self.biases[k])


# Quadrature --------------------------------------------------------------------------------------------------------


def axis(centres: np.ndarray, noise: float, step: float, breaks: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights (G,) over all places within reach of a centre (P,), about `step` apart.

    No panel has one of the `breaks` inside: a kink there would cost the rule its order.
    """
    places = np.unique(centres)
    gaps = np.flatnonzero(np.diff(places) > 2 * REACH * noise)
    lows, highs = places[np.r_[0, gaps + 1]] - REACH * noise, places[np.r_[gaps, -1]] + REACH * noise
    starts, widths = [], []
    for low, high in zip(lows, highs, strict=True):
        for a, b in itertools.pairwise([low, *sorted(c for c in set(breaks) if low < c < high), high]):
            bounds = np.linspace(a, b, math.ceil((b - a) / (POINTS * step)) + 1)
            starts.append(bounds[:-1])
            widths.append(np.diff(bounds))
    points, shares = np.polynomial.legendre.leggauss(POINTS)
    start, width = np.concatenate(starts)[:, None], np.concatenate(widths)[:, None]
    return (start + width * (points + 1) / 2).ravel(), (width * shares / 2).ravel()


def spread(
    centres: np.ndarray, masses: np.ndarray, noise: float, steps: Sequence[float], breaks: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Add noise: return nodes (G, d) and masses (n, G) of mixtures with masses (n, P) at centres (P, d)."""
    if not 1 <= centres.shape[1] <= MOST_DIMENSIONS:
        raise ValueError(f"a law of {centres.shape[1]} dimensions: the oracle has grids of 1 or 2; take a narrower net")
    axes = [axis(c, noise, step, breaks) for c, step in zip(centres.T, steps, strict=True)]
    grid = np.stack(np.meshgrid(*(nodes for nodes, _ in axes), indexing="ij"), -1).reshape(-1, len(axes))
    found = np.zeros((len(masses), *(len(nodes) for nodes, _ in axes)))
    for start in range(0, len(centres), BLOCK):
        part, mass = centres[start : start + BLOCK], masses[:, start : start + BLOCK]
        # Only the rectangle that this block of centres reaches.
        windows, kernels = [], []
        for c, (nodes, weights) in zip(part.T, axes, strict=True):
            ends = np.searchsorted(nodes, (c.min() - REACH * noise, c.max() + REACH * noise))
            windows.append(slice(*ends))
            gauss = np.exp(-0.5 * ((nodes[windows[-1]] - c[:, None]) / noise) ** 2)
            kernels.append(gauss * (weights[windows[-1]] / (noise * math.sqrt(2 * math.pi))))
        if len(axes) == 1:
            found[:, windows[0]] += mass @ kernels[0]
            continue
        for law, of_input in zip(found, mass, strict=True):
            kept = of_input > LEAST_MASS
            law[tuple(windows)] += (kernels[0][kept] * of_input[kept, None]).T @ kernels[1][kept]
    return grid, found.reshape(len(masses), -1)


def directions(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis (r, in) of the row space of a weight (out, in), and the singular values (r,)."""
    _, values, basis = np.linalg.svd(weight)
    rank = max(1, int((values > RANK_SHARE * values[0]).sum()))
    return basis[:rank], values[:rank]


def kinks(net: Noisy, k: int, basis: np.ndarray) -> list[float]:
    """Return where on a line of layer k - 1 a rectifier of layer k begins."""
    if net.activation != "relu" or len(basis) > 1:
        return []
    slopes = (net.weights[k] @ basis.T)[:, 0]
    return [-b / slope for slope, b in zip(slopes, net.biases[k], strict=True) if slope]


def grid_laws(net: Noisy, x: np.ndarray, layer: int, fineness: float = 1.0) -> np.ndarray:
    """Return masses (n, G) of p(t | x) of a hidden layer, of one or two units, on a grid; inputs x (n, in)."""
    nodes, masses = x, np.eye(len(x))
    for k in range(layer + 1):
        centres = net.post(k, nodes)
        step = net.noise / (PER_DEVIATION * fineness)
        if k == layer:
            return spread(centres, masses, net.noise, [step] * centres.shape[1])[1]
        basis, slopes = directions(net.weights[k + 1])
        # Seen through the next layer, whose slope is at most this, the next noise is so much narrower.
        steps = [step / max(1.0, float(slope)) for slope in slopes]
        nodes, masses = spread(centres @ basis.T, masses, net.noise, steps, kinks(net, k + 1, basis))
        kept = masses.max(0) > LEAST_MASS
        nodes, masses = nodes[kept] @ basis, masses[:, kept]
    raise ValueError(f"layer {layer}: expected a hidden layer, 0 or later")


def information(masses: np.ndarray, joint: np.ndarray) -> Information:
    """I(X;T), I(T;Y) of masses (n, G) of T given X and the joint weights (n, classes) of X and Y."""

    def divergence(p: np.ndarray) -> np.ndarray:
        there = p > 1e-290
        return (p * np.log(np.where(there, p, 1.0) / np.where(there, marginal, 1.0))).sum(-1)

    marginal, shares = joint.sum(1) @ masses, joint.sum(0)
    of_class = (joint / shares).T @ masses
    return Information(float(joint.sum(1) @ divergence(masses)), float(shares @ divergence(of_class)))


def grid_information(net: Noisy, x: np.ndarray, joint: np.ndarray, layer: int, fineness: float = 1.0) -> Information:
    """Return the truth by quadrature; doubling the fineness halves the steps of all grids."""
    return information(grid_laws(net, x, layer, fineness), joint)


def linear_law(net: Noisy, x: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, d) and covariance (d, d) of a layer of a linear net given x: exactly Gaussian."""
    mean, covariance = x, np.zeros((x.shape[1], x.shape[1]))
    for weight, bias in zip(net.weights[: layer + 1], net.biases, strict=False):
        mean = mean @ weight.T + bias
        covariance = weight @ covariance @ weight.T + net.noise**2 * np.eye(len(weight))
    return mean, covariance


def linear_information(net: Noisy, x: np.ndarray, joint: np.ndarray, layer: int, fineness: float = 1.0) -> Information:
    """Return the truth for a linear net of any width whose inputs (n, in) lie on a line or in a plane.

    Whitened, it is a channel of unit noise, of which only the directions in which the means differ say anything.
    """
    mean, covariance = linear_law(net, x, layer)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (mean - mean.mean(0)).T).T
    basis, values = directions(white)
    if values[0] < 1e-12:
        return Information(0.0, 0.0)
    return information(
        spread(white @ basis.T, np.eye(len(x)), 1.0, [1 / (PER_DEVIATION * fineness)] * len(basis))[1], joint
    )
