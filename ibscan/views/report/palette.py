"""Colours, markers and styles of lines of figures, as a browser takes them."""

from __future__ import annotations

import numpy as np

from ibscan.core.records import Array
from ibscan.views.figures.picture import Names, Picture, Scale
from ibscan.views.figures.style import COLOURS, LINES

__all__ = ["MAP", "SYMBOLS", "colour", "dashes", "fractions"]

# Viridis up to the end that figures use, evenly spaced; a test holds it to that of matplotlib.
MAP = (
    *("#440154", "#481c6e", "#463480", "#3e4a89", "#355f8d", "#2c728e", "#25848e"),
    *("#1f968b", "#22a884", "#38b977", "#5ec962", "#8bd646", "#bddf26"),
)
# Plotly's names of markers, by those of matplotlib.
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "<": "triangle-left",
    ">": "triangle-right",
    "*": "star",
    "p": "pentagon",
    "h": "hexagon",
}
_LINE = 2.0


def dashes() -> list[str]:
    """Return the styles of lines of results side by side, in pixels."""
    return ["solid" if line == "-" else ",".join(f"{_LINE * part:g}px" for part in line[1]) for line in LINES]


def fractions(picture: Picture, values: Array) -> Array:
    """Return where numbers lie on the colour scale of a picture, from 0 to 1."""
    scale = picture.colours
    assert isinstance(scale, Scale)
    high = scale.high if scale.high > scale.low else scale.low + 1.0
    with np.errstate(all="ignore"):
        if not scale.log:
            return np.asarray((values - scale.low) / (high - scale.low))
        if scale.low > 0:
            return np.asarray(np.log(values / scale.low) / np.log(high / scale.low))
        start, stop = np.log1p(np.array([scale.low, high]) / picture.first)
        return np.asarray((np.log1p(values / picture.first) - start) / (stop - start))


def colour(picture: Picture, shade: float) -> str:
    """Return the colour of a name, by its index, or of a number."""
    colours = picture.colours
    if not isinstance(colours, Names):
        return _mixed(float(fractions(picture, np.array(shade))))
    if len(colours.names) > len(COLOURS):
        return _mixed(shade / (len(colours.names) - 1))
    return COLOURS[int(shade) % len(COLOURS)]


def _mixed(fraction: float) -> str:
    place = min(max(fraction, 0.0), 1.0) * (len(MAP) - 1)
    left = min(int(place), len(MAP) - 2)
    parts = [[int(one[k : k + 2], 16) for k in (1, 3, 5)] for one in MAP[left : left + 2]]
    mixed = (round(a + (b - a) * (place - left)) for a, b in zip(*parts, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
