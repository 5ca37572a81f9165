"""Draw one panel: curves with bands, marks of statuses, open brackets, gaps, levels and caps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.views.figures.picture import Axis, Curve, Names, Panel, Picture, Scale
from ibscan.views.figures.signs import STATUS_MARKS
from ibscan.views.figures.style import COLOUR_MAP, COLOURS, GREY, LINES, MAP_END, MARKERS, Style
from ibscan.views.figures.ticks import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Look", "draw_panel", "fitted", "limit_y"]

# Points of longer series have no dots, but for those on their own.
_MOST_DOTS = 40
_FROM_ZERO = 0.5
# Values that are all smaller are zero but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Look:
    """The style of a picture, and what its colours stand for."""

    style: Style
    picture: Picture

    @cached_property
    def map(self) -> Any:  # noqa: ANN401 - a colour map of matplotlib
        """The colour map, without its light end."""
        import matplotlib as mpl
        from matplotlib.colors import ListedColormap

        return ListedColormap(mpl.colormaps[COLOUR_MAP](np.linspace(0.0, MAP_END, 256)))

    @cached_property
    def norm(self) -> Any:  # noqa: ANN401 - a norm of matplotlib, or None
        """What takes numbers to the colour map; None where colours stand for names."""
        from matplotlib.colors import FuncNorm, LogNorm, Normalize

        scale = self.picture.colours
        if not isinstance(scale, Scale):
            return None
        high = scale.high if scale.high > scale.low else scale.low + 1.0
        if not scale.log:
            return Normalize(scale.low, high)
        if scale.low > 0:
            return LogNorm(scale.low, high)
        unit = self.picture.first
        return FuncNorm((lambda v: np.log1p(v / unit), lambda v: np.expm1(v) * unit), scale.low, high)

    def colour(self, shade: float) -> Any:  # noqa: ANN401 - a colour of matplotlib
        """Return the colour of a name, by its index, or of a number."""
        colours = self.picture.colours
        if isinstance(colours, Names):
            many = len(colours.names) > len(COLOURS)
            return self.map(shade / (len(colours.names) - 1)) if many else COLOURS[int(shade) % len(COLOURS)]
        return self.map(self.norm(shade))

    def bar_ticks(self) -> tuple[list[float], list[str]] | None:
        """Return places and labels on a colour bar; None for those the library chooses."""
        scale = self.picture.colours
        if not isinstance(scale, Scale) or not (scale.log or scale.ends):
            return None
        if scale.ends:
            return [scale.low, scale.high], list(scale.ends)
        ticks = log_ticks(scale.low, scale.high, self.picture.first)
        return ticks, [tick_label(tick) for tick in ticks]


def tick_label(value: float) -> str:
    """Format a number on an axis: plain up to 10000, then as a power of ten."""
    if value == 0 or 0.9e-3 < abs(value) < 1e5:
        return f"{value:g}"
    power = np.log10(value)
    return f"$10^{{{round(power)}}}$" if abs(power - round(power)) < 1e-9 else f"{value:.0e}"


def fitted(text: str, room: int) -> str:
    """Shorten a text in its middle to so many characters; the end of a layer's name tells most."""
    if len(text) <= room:
        return text
    head = max(1, (room - 1) // 3)
    return f"{text[:head]}…{text[-max(1, room - 1 - head) :]}"


def draw_panel(axes: Axes, panel: Panel, look: Look, room: int) -> None:
    """Draw a panel on axes; its title gets so many characters."""
    if panel.title:
        axes.set_title(fitted(panel.title, room), loc="left", pad=2.5, parse_math=False)
    if panel.y.scale != "linear":
        axes.set_yscale(panel.y.scale)
    line = look.style.line
    for level in panel.levels:
        axes.axhline(level.y, color=GREY, linewidth=0.8 * line, linestyle=(0, (4, 2)), zorder=1, gid="level")
    for cap in panel.caps:
        colour = look.colour(cap.shade)
        axes.plot(cap.x, cap.y, color=colour, linewidth=0.7 * line, linestyle=":", zorder=1.5, gid="cap")
    for curve in panel.curves:
        if curve.steps:
            _histogram(axes, curve, look)
        elif curve.tint is not None:
            _tinted(axes, curve, curve.tint, look)
        else:
            _line(axes, curve, look)
    _x_axis(axes, look.picture.x, look)


def _histogram(axes: Axes, curve: Curve, look: Look) -> None:
    colour = look.colour(curve.shade)
    axes.stairs(curve.y, curve.x, color=colour, linewidth=0.8 * look.style.line, gid="histogram")
    axes.stairs(curve.y, curve.x, color=colour, alpha=0.25, fill=True, linewidth=0)
    axes.set_yticks([])


def _codes(curve: Curve) -> Array:
    return np.zeros(len(curve.y), dtype=np.int8) if curve.status is None else np.asarray(curve.status)


def _line(axes: Axes, curve: Curve, look: Look) -> None:
    """Draw a curve: it breaks where a value is missing or unresolved, which stands as a mark of its own."""
    colour, style, codes = look.colour(curve.shade), look.style, _codes(curve)
    known = np.isfinite(curve.y)
    drawn = np.where(known & (codes != Status.UNRESOLVED), curve.y, np.nan)
    axes.plot(
        curve.x,
        drawn,
        color=colour,
        linewidth=style.line,
        linestyle=LINES[curve.run % len(LINES)],
        zorder=3,
        gid="line",
    )
    if curve.half is not None:
        half = np.where(np.isfinite(curve.half), curve.half, 0.0)
        low, high = drawn - half, drawn + half
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2, gid="band")
        alone = np.isfinite(drawn) & _isolated(drawn)
        axes.vlines(curve.x[alone], low[alone], high[alone], color=colour, linewidth=0.6 * style.line, zorder=3)
    _bracket(axes, curve, colour, style)
    plain = known & ~np.isin(codes, list(STATUS_MARKS))
    dots = plain if len(curve.y) <= _MOST_DOTS else plain & _isolated(drawn)
    _marks(axes, curve, dots, ("o", colour, colour), style)
    for status, form in STATUS_MARKS.items():
        _marks(axes, curve, known & (codes == status), (form, "white", colour), style)


def _isolated(values: Array) -> Array:
    """Return which numbers have no neighbour, and so no line."""
    padded = np.concatenate([[np.nan], values, [np.nan]])
    return np.asarray(np.isnan(padded[:-2]) & np.isnan(padded[2:]))


def _marks(axes: Axes, curve: Curve, where: Array, mark: tuple[str, Any, Any], style: Style) -> None:
    if where.any():
        form, face, edge = mark
        size = style.marker * (0.9 if face is edge else 1.5)
        axes.plot(
            curve.x[where],
            curve.y[where],
            linestyle="none",
            marker=form,
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=edge,
            markeredgewidth=0.6 * style.line,
            zorder=4,
            gid="dots" if face is edge else f"mark {form}",
        )


def _bracket(axes: Axes, curve: Curve, colour: Any, style: Style) -> None:  # noqa: ANN401 - a colour
    """Draw brackets that did not close as lines with ends."""
    if curve.ends is None:
        return
    low, high = curve.ends
    opened = np.isfinite(low) & np.isfinite(high)
    if opened.any():
        middle = (low[opened] + high[opened]) / 2
        axes.errorbar(
            curve.x[opened],
            middle,
            yerr=(high[opened] - low[opened]) / 2,
            fmt="none",
            ecolor=colour,
            elinewidth=0.6 * style.line,
            capsize=style.marker * 0.8,
            capthick=0.6 * style.line,
            zorder=2.5,
        )


def _tinted(axes: Axes, curve: Curve, tint: Array, look: Look) -> None:
    """Draw points that have a colour each, along a thin line."""
    style, codes = look.style, _codes(curve)
    line = LINES[curve.run % len(LINES)]
    path = np.where(codes == Status.UNRESOLVED, np.nan, curve.y)
    axes.plot(curve.x, path, color=GREY, linewidth=0.4 * style.line, linestyle=line, alpha=0.7, zorder=1, gid="path")
    if curve.half is not None:
        axes.errorbar(curve.x, curve.y, yerr=curve.half, fmt="none", ecolor=GREY, elinewidth=0.5 * style.line, zorder=1)
    known = np.isfinite(curve.x) & np.isfinite(curve.y) & np.isfinite(tint)
    for hollow in (False, True):
        chosen = known & (np.isin(codes, list(STATUS_MARKS)) == hollow)
        if chosen.any():
            colours = look.map(look.norm(tint[chosen]))
            axes.scatter(
                curve.x[chosen],
                curve.y[chosen],
                s=(1.8 * style.marker) ** 2,
                marker=MARKERS[curve.mark % len(MARKERS)],
                facecolors="white" if hollow else colours,
                edgecolors=colours if hollow else "none",
                linewidths=0.7 * style.line,
                zorder=3,
                gid="hollow" if hollow else "points",
            )


def _x_axis(axes: Axes, axis: Axis, look: Look) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    if axis.names:
        most = 6
        shown = sorted({*np.linspace(0, len(axis.names) - 1, min(most, len(axis.names))).round().astype(int).tolist()})
        labels = [fitted(axis.names[k], 14) for k in shown]
        axes.set_xticks(shown)
        axes.set_xticklabels(labels, rotation=30, ha="right", parse_math=False)
        return
    if axis.scale == "linear":
        return
    at = np.concatenate([np.empty(0), *(c.x for panel in look.picture.panels for c in panel.curves)])
    at = at[np.isfinite(at)]
    if not (at > 0).any():
        return
    first = float(at[at > 0].min())
    if axis.scale == "symlog":
        axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    else:
        axes.set_xscale(axis.scale)
    ticks = log_ticks(float(at.min()), float(at.max()), first)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([tick_label(tick) for tick in ticks]))
    minor = [k * tick for tick in ticks for k in range(2, 10) if first <= k * tick <= float(at.max())]
    axes.xaxis.set_minor_locator(FixedLocator(minor))
    axes.xaxis.set_minor_formatter(NullFormatter())


def limit_y(axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Begin linear axes at zero, where values come near it, once all panels that share them are drawn."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    curves = [curve for panel in panels for curve in panel.curves]
    values = np.concatenate([np.empty(0), *(curve.y[np.isfinite(curve.y)] for curve in curves)])
    if any(panel.y.scale != "linear" for panel in panels) or not len(values) or any(curve.steps for curve in curves):
        return
    top = axes[0].get_ylim()[1]
    for one in axes:
        if np.abs(values).max() < _ROUNDING:
            one.set_ylim(-0.05, 1.0)
        elif 0 <= values.min() <= _FROM_ZERO * values.max():
            one.set_ylim(-0.02 * top, top)
        one.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
