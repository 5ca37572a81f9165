"""How figures look: sizes for paper and screen, and colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ibscan.errors import UsageError

__all__ = ["COLOURS", "COLOUR_MAP", "GREY", "LINES", "MARKERS", "STYLES", "Style", "named_style"]

# Okabe and Ito 2008, without yellow, which is too light on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
GREY = "#777777"
# Light ends of the map are too light on white: so much of it is used.
COLOUR_MAP, MAP_END = "viridis", 0.9
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")


@dataclass(frozen=True)
class Style:
    """Sizes of a figure: millimetres of paper, points of text and lines, dots an inch.

    `heights` are those of a panel where one, two, or more are side by side.
    """

    width: float
    heights: tuple[float, float, float]
    font: float
    line: float
    marker: float
    dpi: int

    def height(self, columns: int) -> float:
        """Return the height of a panel, where so many are side by side."""
        return self.heights[min(columns, len(self.heights)) - 1]

    def settings(self) -> Any:  # noqa: ANN401 - a dictionary that matplotlib types by its keys
        """Return the settings of matplotlib; text in files stays as drawn, and files have the same bytes every time."""
        return {
            "font.family": "DejaVu Sans",
            "font.size": self.font,
            "axes.titlesize": self.font - 0.5,
            "axes.labelsize": self.font,
            "xtick.labelsize": self.font - 0.5,
            "ytick.labelsize": self.font - 0.5,
            "legend.fontsize": self.font - 0.5,
            "legend.title_fontsize": self.font + 0.5,
            "axes.linewidth": 0.6 * self.line,
            "xtick.major.width": 0.6 * self.line,
            "ytick.major.width": 0.6 * self.line,
            "xtick.minor.width": 0.4 * self.line,
            "ytick.minor.width": 0.4 * self.line,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "xtick.minor.size": 1.5,
            "ytick.minor.size": 1.5,
            "xtick.major.pad": 2.0,
            "ytick.major.pad": 2.0,
            "axes.labelpad": 2.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "savefig.dpi": self.dpi,
            "svg.hashsalt": "ibscan",
            "svg.fonttype": "path",
            "pdf.fonttype": 42,
        }


STYLES: Mapping[str, Style] = {
    "print": Style(85.0, (36.0, 27.0, 19.0), 7.0, 0.9, 2.0, 300),
    "screen": Style(180.0, (70.0, 52.0, 38.0), 10.0, 1.4, 3.5, 150),
}


def named_style(name: str) -> Style:
    """Return a style by its name.

    Raises:
        UsageError: There is no such style.
    """
    if name not in STYLES:
        raise UsageError(f"style {name!r}: expected {' or '.join(STYLES)}.")
    return STYLES[name]
