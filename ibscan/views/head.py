"""The block above all tables: series, model, probe, accuracy and loss."""

from __future__ import annotations

import json

import numpy as np
from rich.text import Text

from ibscan.core.estimate import Status
from ibscan.views.cells import number
from ibscan.views.scale import grown
from ibscan.views.view import View, is_measured, name_of

__all__ = ["facts", "head"]

_MOST_SKIPPED = 3


def facts(view: View) -> list[tuple[str, str]]:
    """Return what stands above the tables, by label: series, model, probe, accuracy, loss, growth, skipped files."""
    arrow = " → " if view.unicode else " -> "
    attrs = view.result.attrs
    axis, labels = view.axis
    count = f"{view.size} checkpoint{'s' if view.size != 1 else ''}"
    span = f"{labels[0]} .. {labels[-1]}" if len(labels) > 1 else "".join(labels)
    lines = [("series", f"{count}, {axis} {span}")]
    lines += [(name, name_of(str(attrs[name]), view.unicode)) for name in ("model", "probe") if attrs.get(name)]
    for name, label in (("probe_accuracy", "accuracy"), ("probe_loss", "loss")):
        if is_measured(view, name, "checkpoint"):
            lines.append((label, _ends(view, name, arrow)))
    scale = grown(view)
    lines += [("scale", scale)] if scale is not None else []
    skipped = json.loads(attrs.get("skipped", "{}"))
    for name, reason in list(skipped.items())[:_MOST_SKIPPED]:
        lines.append(("skipped", f"{name_of(name, view.unicode)}: {name_of(str(reason), view.unicode)}"))
    if len(skipped) > _MOST_SKIPPED:
        lines.append(("skipped", f"and {len(skipped) - _MOST_SKIPPED} more"))
    return lines


def head(view: View) -> Text:
    """Return the block above the tables."""
    text = Text(overflow="fold")
    for label, content in facts(view):
        text.append(f"{label:<9}", style="dim")
        text.append(content + "\n")
    return text


def _ends(view: View, name: str, arrow: str) -> str:
    values, status = view.values(name), view.result.status(name)
    known = values if status is None else values[status != Status.NOT_MEASURED]
    ends = [number(value) if np.isfinite(value) else "not finite" for value in (known[0], known[-1])]
    text = arrow.join(ends if len(known) > 1 else ends[:1])
    unit = view.unit(name)
    return f"{text} {unit}".strip() + " on the probe"
