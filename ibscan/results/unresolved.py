"""Describe the values whose tolerance was not reached: how many, what was spent on them, what would help."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.result import Result

__all__ = ["unresolved_sentences"]


# Noisy channels by the beginning of their keys.
CHANNELS = {"mi_network": "network", "mi_readout": "read-out"}


@dataclass
class _Tally:
    """Count the values of one channel, one for each checkpoint, layer and noise."""

    measured: int = 0
    unresolved: int = 0
    passes: list[float] = field(default_factory=list)  # replicas of an input, or weighted paths of a draw
    draws: list[float] = field(default_factory=list)


def unresolved_sentences(result: Result, *, tolerance: float, max_replicas: int, max_draws: int) -> list[str]:
    """Return a sentence on the unresolved values of each noisy channel; older files lack draws and replicas."""
    tallies: dict[str, _Tally] = {}
    for key in result.quantities:
        channel = next((word for start, word in CHANNELS.items() if key.startswith(start)), None)
        sides = Estimate.sides(key)
        if channel is None or key not in sides[:1]:
            continue
        found, label = (result.estimate(side) if side in result else None for side in sides)
        if found is None or found.status is None:
            continue
        tally = tallies.setdefault(channel, _Tally())
        unresolved = found.status == Status.UNRESOLVED
        if label is not None and label.status is not None and label.status.shape == unresolved.shape:
            unresolved = unresolved | (label.status == Status.UNRESOLVED)
        tally.measured += int((found.status != Status.NOT_MEASURED).sum())
        tally.unresolved += int(unresolved.sum())
        tally.draws += _spent(found.draws, unresolved)
        paths = found.paths if found.replicas is None or found.paths is None else np.fmax(found.replicas, found.paths)
        tally.passes += _spent(found.replicas if paths is None else paths, unresolved)
    return [
        _sentence(channel, tally, tolerance, max_replicas, max_draws)
        for channel, tally in tallies.items()
        if tally.unresolved
    ]


def _spent(spent: Array | None, where: Array) -> list[float]:
    numbers = np.empty(0) if spent is None else spent[where]
    return [float(number) for number in numbers[np.isfinite(numbers)]]


def _sentence(channel: str, tally: _Tally, tolerance: float, max_replicas: int, max_draws: int) -> str:
    spent, allowed, options = [], [], []
    # Those of the read-out channel have no replicas.
    if channel == "network":
        options.append("--max-replicas")
        if tally.passes:
            spent.append(_range(tally.passes, "replica"))
            allowed.append((max(tally.passes), max_replicas))
    options.append("--max-draws")
    if tally.draws:
        spent.append(_range(tally.draws, "draw"))
        allowed.append((max(tally.draws), max_draws))
    cells = "1 cell" if tally.measured == 1 else f"{tally.unresolved} of {tally.measured} cells"
    said = f"{cells} of the {channel} channel {'is' if tally.unresolved == 1 else 'are'} unresolved: --tolerance "
    said += f"{tolerance:g} was not reached"
    if spent:
        said += f" with {' and '.join(spent)}"
        # A cell of an earlier command may have had more.
        if all(most <= limit for most, limit in allowed):
            said += f", of {' and '.join(f'{limit:,}' for _, limit in allowed)} allowed"
    them = "it" if tally.unresolved == 1 else "them"
    named = f"a larger {options[0]} or {options[1]}" if len(options) > 1 else f"a larger {options[0]}"
    return f"{said}. To have more spent on {them}, give {named}; a larger --tolerance or --noise asks less."


def _range(numbers: list[float], unit: str) -> str:
    least, most = round(min(numbers)), round(max(numbers))
    if least == most:
        return f"{most:,} {unit}{'' if most == 1 else 's'}"
    return f"{least:,} to {most:,} {unit}s"
