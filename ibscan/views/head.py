"""What stands above all tables: which series, on what probe, and whether the two belong together."""

from __future__ import annotations

import json

import numpy as np
from rich.text import Text

from ibscan.types import Status
from ibscan.views.cells import number
from ibscan.views.frame import Frame, measured, name_of

__all__ = ["head"]

_MOST_SKIPPED = 3


def head(frame: Frame) -> Text:
    """Return the block above the tables.

    Args:
        frame: The result and how it is shown.

    Returns:
        Series, model, probe, first and last accuracy and loss, and what was left out.
    """
    arrow = " → " if frame.unicode else " -> "
    attrs = frame.result.attrs
    axis, labels = frame.axis
    count = f"{frame.size} checkpoint{'s' if frame.size != 1 else ''}"
    span = f"{labels[0]} .. {labels[-1]}" if len(labels) > 1 else "".join(labels)
    lines = [("series", f"{count}, {axis} {span}")]
    lines += [(name, name_of(str(attrs[name]), frame.unicode)) for name in ("model", "probe") if attrs.get(name)]
    for name, label in (("probe_accuracy", "accuracy"), ("probe_loss", "loss")):
        if measured(frame, name, "checkpoint"):
            lines.append((label, _ends(frame, name, arrow)))
    skipped = json.loads(attrs.get("skipped", "{}"))
    for name, reason in list(skipped.items())[:_MOST_SKIPPED]:
        lines.append(("skipped", f"{name_of(name, frame.unicode)}: {name_of(str(reason), frame.unicode)}"))
    if len(skipped) > _MOST_SKIPPED:
        lines.append(("skipped", f"and {len(skipped) - _MOST_SKIPPED} more"))
    text = Text(overflow="fold")
    for label, content in lines:
        text.append(f"{label:<9}", style="dim")
        text.append(content + "\n")
    return text


def _ends(frame: Frame, name: str, arrow: str) -> str:
    values, status = frame.scaled(name), frame.result.status(name)
    known = values if status is None else values[status != Status.NOT_MEASURED]
    ends = [number(value) if np.isfinite(value) else "not finite" for value in (known[0], known[-1])]
    text = arrow.join(ends if len(known) > 1 else ends[:1])
    unit = frame.unit(name)
    return f"{text} {unit}".strip() + " on the probe"
