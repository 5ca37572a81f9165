"""A random orthonormal subspace whose basis is computed when needed: a random part of a cosine transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

__all__ = ["subspace"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def subspace(generator: np.random.Generator, width: int, dims: int) -> Callable[[int, slice], Array]:
    """Return a function that computes columns of an orthonormal basis of a random subspace.

    Column k has the entries s_i sqrt(2 / d) cos(pi (2 i + 1) f_k / (2 d)), s random signs, f a random subset of the d
    frequencies of the discrete cosine transform, which is orthonormal.

    Args:
        generator: Random numbers.
        width: d, dimensions of the space.
        dims: Dimensions of the subspace, at most d.

    Returns:
        A function (d, slice of columns) -> those columns, shape (d, columns).

    Source:
        Halko, Martinsson and Tropp 2011, section 4.6, for transforms in the place of Gaussian matrices.

    Example:
        >>> basis = subspace(np.random.default_rng(0), 5, 3)(5, slice(0, 3))
        >>> bool(abs(basis.T @ basis - np.eye(3)).max() < 1e-15)
        True
    """
    signs = np.where(generator.random(width) < 0.5, -1.0, 1.0)
    frequencies = generator.permutation(width)[:dims]

    def columns(size: int, part: slice) -> Array:
        assert size == width
        chosen = frequencies[part]
        # Reduce angles in integers first: the cosine of a large angle loses digits.
        angles = np.outer(2 * np.arange(width) + 1, chosen) % (4 * width)
        found = np.cos(angles * (math.pi / (2 * width)))
        found *= np.where(chosen == 0, math.sqrt(1.0 / width), math.sqrt(2.0 / width))
        return np.asarray(found * signs[:, None])

    return columns
