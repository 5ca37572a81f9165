"""What is said of cells whose tolerance was not reached: how many, what was spent on them, what else may be done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ibscan.results.axes import families
from ibscan.types import Array, Estimate, Result, Status

__all__ = ["unresolved_sentences"]


# By what names of variables begin with; binned values have no draws.
CHANNELS = {"mi_network": "network", "mi_readout": "read-out"}


@dataclass
class _Tally:
    """Cells of one channel, counted: (checkpoint, layer, noise), whatever is told of each."""

    measured: int = 0
    unresolved: int = 0
    replicas: list[float] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)


def unresolved_sentences(result: Result, *, tolerance: float, max_replicas: int, max_draws: int) -> list[str]:
    """Return a sentence for each noisy channel that has unresolved cells.

    Args:
        result: The cells asked for. What an older file does not tell of its draws or replicas is left out.
        tolerance: That was asked for, nats.
        max_replicas: That were allowed.
        max_draws: That were allowed.
    """
    tallies: dict[str, _Tally] = {}
    for main in families(result):
        channel = next((word for start, word in CHANNELS.items() if main.startswith(start)), None)
        status = result.status(main) if main.endswith("_xt") else None
        if status is None or channel is None:
            continue
        tally = tallies.setdefault(channel, _Tally())
        open_ones = status == Status.UNRESOLVED
        side = f"{main[:-3]}_ty"
        if side in result and result[f"{side}_status"].values.shape == status.shape:
            open_ones = open_ones | (result[f"{side}_status"].values == Status.UNRESOLVED)
        tally.measured += int((status != Status.NOT_MEASURED).sum())
        tally.unresolved += int(open_ones.sum())
        tally.draws += _spent(result, Estimate.companion(main, "draws"), open_ones)
        tally.replicas += _spent(result, Estimate.companion(main, "replicas"), open_ones)
    return [
        _sentence(channel, tally, tolerance, max_replicas, max_draws)
        for channel, tally in tallies.items()
        if tally.unresolved
    ]


def _spent(result: Result, name: str, where: Array) -> list[float]:
    if name not in result or result[name].values.shape != where.shape:
        return []
    numbers = result[name].values[where]
    return [float(number) for number in numbers[np.isfinite(numbers)]]


def _sentence(channel: str, tally: _Tally, tolerance: float, max_replicas: int, max_draws: int) -> str:
    spent, allowed, options = [], [], []
    # Those of the read-out channel have no replicas.
    if channel == "network":
        options.append("--max-replicas")
        if tally.replicas:
            spent.append(_range(tally.replicas, "replica"))
            allowed.append((max(tally.replicas), max_replicas))
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
