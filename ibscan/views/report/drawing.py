"""Turn pictures into what the page's script draws: numbers as they are in the results, names, colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ibscan.core.records import Array
from ibscan.views.figures.picture import Axis, Curve, Panel, Picture, Scale
from ibscan.views.figures.ticks import log_ticks
from ibscan.views.report.palette import colour, fractions

__all__ = ["drawing"]

_LARGEST_WHOLE = 2.0**53
# Of densities, which are no numbers of the result: what a screen can show.
_DIGITS = 5


def drawing(picture: Picture) -> dict[str, Any]:
    """Return a picture as data for JSON, in which None is a number that is missing.

    Panels that differ in their `place` alone are frames of one panel.
    """
    return {
        "id": picture.name,
        "x": _axis(picture.x),
        "scale": _scale(picture),
        "shareX": picture.share_x == "all",
        "shareY": picture.share_y,
        "places": picture.places,
        "panels": list(_panels(picture)),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {"name": axis.name, "label": axis.label, "unit": axis.unit, "scale": axis.scale, "names": axis.names}


def _scale(picture: Picture) -> dict[str, Any] | None:
    """Return the colour bar: its label, and the fractions and labels of its ticks; None where points have no tint."""
    scale = picture.colours
    if not isinstance(scale, Scale) or not any(c.tint is not None for panel in picture.panels for c in panel.curves):
        return None
    if scale.ends:
        return {"label": scale.label, "at": [0, 1], "labels": scale.ends}
    even = np.linspace(scale.low, scale.high, 5).tolist()
    at = log_ticks(scale.low, scale.high, picture.first) if scale.log else even
    return {"label": scale.label, "at": _numbers(fractions(picture, np.array(at))), "labels": [f"{v:.4g}" for v in at]}


def _panels(picture: Picture) -> Iterator[dict[str, Any]]:
    frames: dict[str, list[dict[str, Any]]] = {}
    for panel in picture.panels:
        curves = [_curve(picture, panel, curve) for curve in panel.curves]
        if panel.place is None:
            yield _panel(picture, panel, panel.title) | {"curves": curves}
            continue
        frame = {"place": panel.place, "curves": curves}
        if panel.layer in frames:
            frames[panel.layer].append(frame)
        else:
            frames[panel.layer] = [frame]
            yield _panel(picture, panel, panel.layer) | {"frames": frames[panel.layer]}


def _panel(picture: Picture, panel: Panel, title: str) -> dict[str, Any]:
    caps = [_curve(picture, panel, cap) for cap in panel.caps]
    levels = [{"y": level.y, "label": level.label} for level in panel.levels]
    return {"title": title, "layer": panel.layer, "y": _axis(panel.y), "levels": levels, "caps": caps}


def _curve(picture: Picture, panel: Panel, curve: Curve) -> dict[str, Any]:
    """Return a curve; what it lacks is left out."""
    colours, tint = picture.colours, curve.tint
    shade = 0.0 if tint is not None else curve.shade
    layer = panel.layer or curve.label
    what = "" if tint is not None else _what(picture, curve)
    made: dict[str, Any] = {
        "layer": layer,
        "what": what,
        "legend": what or layer,
        "run": curve.run,
        "mark": curve.mark,
        "colour": "" if tint is not None else colour(picture, shade),
    }
    if curve.steps:
        return made | {"steps": True, "x": _rounded(curve.x), "y": _rounded(curve.y)}
    made |= {"x": _numbers(curve.x), "y": _numbers(curve.y)}
    if tint is not None and isinstance(colours, Scale):
        made["tint"] = _numbers(fractions(picture, tint))
        if picture.places:
            made["at"] = _numbers(tint)
    if curve.half is not None:
        made["half"] = _numbers(curve.half)
    if curve.ends is not None and np.isfinite(curve.ends[0]).any():
        made["low"], made["high"] = _numbers(curve.ends[0]), _numbers(curve.ends[1])
    if curve.status is not None:
        made["status"] = np.asarray(curve.status).tolist()
    if curve.told:
        made["told"] = [
            {"name": t.name, "unit": t.unit, "values": _numbers(t.values), "half": _numbers(t.half)} for t in curve.told
        ]
    return made


def _what(picture: Picture, curve: Curve) -> str:
    """Return what tells a curve from others of its layer: a checkpoint or a quantity; empty where nothing does."""
    colours = picture.colours
    if isinstance(colours, Scale):
        return f"{colours.label} {curve.label}"
    return "" if colours.ordered else colours.names[int(curve.shade)]


def _numbers(values: Array | None) -> list[float | int | None] | None:
    """Return numbers for JSON: whole ones without a point, None for what is not finite."""
    if values is None:
        return None
    return [_number(value) for value in np.asarray(values, dtype=np.float64).tolist()]


def _number(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < _LARGEST_WHOLE else value


def _rounded(values: Array) -> list[float | int | None]:
    return [_number(float(f"{value:.{_DIGITS}g}")) for value in values.tolist()]
