"""Choose the thresholds of `--eps auto` by the spectra of the first and the last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ibscan.core.measure import Situation
from ibscan.core.records import Array, Checkpoint, Probe
from ibscan.core.thresholds import moving_thresholds
from ibscan.engine.measures import with_parameters
from ibscan.engine.models import Model
from ibscan.engine.scan import blocks
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.shared import THRESHOLDS

__all__ = ["chosen_thresholds"]

_SPECTRUM = "singular_value"


def chosen_thresholds(situation: Situation, model: Model, probe: Probe, seed: int) -> tuple[float, ...]:
    """Return the thresholds at which the first and the last checkpoint that can be measured differ most, and say so.

    Their spectra are those that a scan stores: means over the same rows of the probe, at the same place. Where they
    differ at none, the defaults are returned.

    Args:
        situation: Checkpoints, the layers asked for, and options; those of the thresholds are passed over.
        model: Makes networks of checkpoints.
        probe: The whole probe.
        seed: Of its sample.
    """
    given = {name: value for name, value in situation.given.items() if name not in ("eps", "rel_eps")}
    rank = with_parameters(LocalRank, replace(situation, given=given, notice=lambda sentence: None))  # noqa: ARG005
    rows = [most for most in (rank.samples, rank.spectrum_rows) if most is not None]
    rank = replace(rank, rel_eps=(), samples=min(rows, default=None))
    checkpoints = situation.series.checkpoints
    first, last = (_spectrum(rank, one, situation, model, probe, seed) for one in (checkpoints, checkpoints[::-1]))
    found = moving_thresholds(first, last)
    ends = "the first and the last checkpoint"
    none = f"{ends} differ at no threshold" if len(checkpoints) > 1 else "there is one checkpoint alone"
    why = f"at which {ends} differ most" if found else f"the default, as {none}"
    situation.notice(f"--eps auto: {' '.join(f'{eps:g}' for eps in found or THRESHOLDS)}, {why}.")
    return found or THRESHOLDS


def _spectrum(
    rank: LocalRank, checkpoints: Sequence[Checkpoint], situation: Situation, model: Model, probe: Probe, seed: int
) -> Array:
    """Return the spectra of the first of some checkpoints that has any; no values if none has."""
    work = load_tensors, model.network, (rank,), probe, seed, situation.chosen
    for block in blocks([(one,) for one in checkpoints], *work, guard=model.guard):
        for _, estimates, _ in block.outcomes:
            if _SPECTRUM in estimates and np.isfinite(estimates[_SPECTRUM].value[0]).any():
                found: Array = estimates[_SPECTRUM].value[0]
                return found
    return np.empty((len(model.layers), 0))
