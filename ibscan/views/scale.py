"""The scale of layers: how far the rows of the probe lie apart, how that grew, and which noise would tell them apart.

Shapes: C checkpoints, L layers, B bins of distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.quantity import DIMENSIONS
from ibscan.core.records import Array
from ibscan.views.channels import NOISY, ChannelColumn, channel_columns, input_entropy
from ibscan.views.view import View, is_measured, name_of, statuses

__all__ = ["grown", "telling_noise", "telling_noises"]

_WITHIN, _BETWEEN, _LOW, _HIGH = ("distance_within", "distance_between", "distance_edge_low", "distance_edge_high")
# Of the relative noise: its size in activation units. Network channel and read-out have the same scale.
_ABSOLUTE = ("noise_absolute", "mi_network_noise_absolute")
# Growth that is told, and how far from the noise named one may lie that tells as much.
_GROWN, _NEAR = 2.0, 2.0
_SILENT = (Status.SATURATED, Status.UNRESOLVED)
# Where nothing but a scale is known: shares of it at which rows of several probes were half told apart.
_OF_LARGEST, _OF_SPREAD = 0.1, 0.3
_GRID = np.geomspace(1e-4, 1.0, 200)


def grown(view: View) -> str | None:
    """Say by how much the hidden layers without bounds have grown from the first checkpoint to the last, if at all."""
    names = view.result["layer"].values.tolist()
    unbounded = view.result.settings.get("unbounded")
    found = _spreads(view, "post")
    if found is None or not isinstance(unbounded, list):
        return None
    with np.errstate(all="ignore"):
        factors = found[-1] / found[0]
    sign = "×" if view.unicode else "x"
    said = [
        f"{name_of(name, view.unicode)} {sign}{float(f'{factor:.2g}'):g}"
        for name, factor in zip(names, factors.tolist(), strict=True)
        if name in unbounded and math.isfinite(factor) and factor >= _GROWN
    ]
    if not said:
        return None
    axis, _ = view.axis
    return (
        f"{', '.join(said)} since the first {axis}: values at an absolute noise, or in bins that move, do not compare"
    )


def telling_noises(view: View) -> list[str]:
    """Return a line for each kind of noise at which most of I(X;T) is saturated or unresolved."""
    found: dict[str, list[ChannelColumn]] = {}
    for channel in NOISY:
        found.setdefault(channel.dim, []).extend(channel_columns(view, channel, "xt"))
    return [line for columns in found.values() if (line := telling_noise(view, columns)) is not None]


def telling_noise(view: View, columns: Sequence[ChannelColumn]) -> str | None:
    """Name the noise that would tell something where most cells of noisy columns are saturated or unresolved.

    It is the geometric mean, over those cells, of the noise at which -ln of the mean over pairs of rows of
    exp(-d^2 / (4 noise^2)) is half of H(X): information of order 2, which the stored distances d give. Without labels
    it is a tenth of the largest distance; without distances, 0.3 of the layer's rms distance from its mean.

    Args:
        view: The result.
        columns: Of any channels; those without noise are passed over.
    """
    noisy = [one for one in columns if one.channel.dim in ("noise", "rel_noise")]
    if not noisy:
        return None
    dim = noisy[0].channel.dim
    noisy = [one for one in noisy if one.channel.dim == dim]
    codes = np.stack([_codes(view, one) for one in noisy])
    silent, measured = np.isin(codes, _SILENT), codes != Status.NOT_MEASURED
    if 2 * silent.sum() <= measured.sum():
        return None
    at = str(view.result[noisy[0].key].attrs.get("at", "post"))
    wanted = _wanted(view, at, np.asarray(silent.any(0)), relative=dim == "rel_noise")
    own, named = (dim, wanted) if wanted is not None else ("rel_noise", _OF_SPREAD)
    known = view.result[own].values.tolist() if own in view.result else []
    if any(named / _NEAR <= noise <= named * _NEAR for noise in known):
        return None
    share = f"{100 * silent.sum() / measured.sum():.0f} %"
    of = "noise relative to the layer" if dim == "rel_noise" else "absolute noise"
    flag, digit = DIMENSIONS[own].flags, float(f"{named:.1g}")
    return f"{share} of cells at {of} are saturated or unresolved; {flag} {digit:g} would tell more."


def _codes(view: View, one: ChannelColumn) -> Array:
    """Return the statuses of a column, (C, L)."""
    found = statuses(view, one.key)
    shape = view.result[one.key].values[..., one.index].shape
    return np.full(shape, Status.OK, dtype=int) if found is None else found[..., one.index]


def _wanted(view: View, at: str, silent: Array, *, relative: bool) -> float | None:
    """Return the noise that would tell rows half apart in cells (C, L), None where no scale is known."""
    rows = view.shown()
    halves, spreads = _halves(view, at, rows), _spreads(view, at)
    if halves is None and spreads is not None:
        halves = _OF_SPREAD * spreads[rows]
    if halves is None or (relative and spreads is None):
        return None
    with np.errstate(all="ignore"):
        noise = halves / spreads[rows] if relative and spreads is not None else halves
        logs = np.log(noise[silent[rows]])
    logs = logs[np.isfinite(logs)]
    return math.exp(logs.mean()) if len(logs) else None


def _halves(view: View, at: str, rows: Sequence[int]) -> Array | None:
    """Return the noise at which rows are half told apart at some checkpoints, (c, L); None without distances."""
    if not _is_of(view, _HIGH, "distance_bin", at):
        return None
    largest = view.result[_HIGH].values[rows][..., -1]
    pairs = _pairs(view, at)
    if pairs is None:
        return _OF_LARGEST * largest
    entropy = input_entropy(view, _WITHIN)[0]
    shares, squares = pairs[0][rows], pairs[1][rows]
    found = np.full(largest.shape, np.nan)
    with np.errstate(all="ignore"):
        for index in np.ndindex(*largest.shape):
            noises = _GRID * largest[index]
            alike = np.exp(-squares[index] / (4 * noises[:, None] ** 2)) @ shares[index]
            found[index] = noises[min(int((-np.log(alike) > entropy / 2).sum()), len(_GRID) - 1)]
    return found


def _is_of(view: View, name: str, own: str, at: str) -> bool:
    """Return whether a variable was measured at that place, `pre` or `post`."""
    return is_measured(view, name, own) and view.result[name].attrs.get("at", "post") == at


def _spreads(view: View, at: str) -> Array | None:
    """Return the root-mean-square distance of rows from their mean, (C, L); None where it is not known."""
    for name in _ABSOLUTE:
        if _is_of(view, name, "rel_noise", at):
            with np.errstate(all="ignore"):
                factors = view.values(name) / view.result["rel_noise"].values
            known = np.isfinite(factors)
            total = np.where(known, factors, 0.0).sum(-1)
            return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    pairs = _pairs(view, at)
    if pairs is None:
        return None
    # Of two rows drawn independently, half the mean squared distance is the squared distance from the mean.
    with np.errstate(all="ignore"):
        return np.asarray(np.sqrt((pairs[0] * pairs[1]).sum(-1) / 2))


def _pairs(view: View, at: str) -> tuple[Array, Array] | None:
    """Return shares of pairs of rows, a row and itself included, and their squared distances, each (C, L, B + 1)."""
    if not all(_is_of(view, name, "distance_bin", at) for name in (_WITHIN, _BETWEEN, _LOW, _HIGH)):
        return None
    counts, low, high = (
        view.result[_WITHIN].values.astype(float) + view.result[_BETWEEN].values,
        view.result[_LOW].values,
        view.result[_HIGH].values,
    )
    rows = max(1, int(view.result[_WITHIN].attrs.get("rows", 1)))
    with np.errstate(all="ignore"):
        shares = (1 - 1 / rows) * counts / counts.sum(-1, keepdims=True)
        squares = ((low + high) / 2) ** 2
    own = np.ones((*shares.shape[:-1], 1))
    return np.concatenate([own / rows, shares], -1), np.concatenate([0 * own, squares], -1)
