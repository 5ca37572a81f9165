"""Choose the measures of a request and settle their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from ibscan.core.measure import Measure, Situation
from ibscan.core.option import settings_of
from ibscan.core.records import Probe, Series, unbounded_layers
from ibscan.engine.models import Model
from ibscan.engine.request import Request
from ibscan.measures import MEASURES
from ibscan.measures.driver import input_weights

M = TypeVar("M", bound=Measure)

__all__ = ["measures_of", "stored_settings", "with_parameters"]


def measures_of(request: Request, situation: Situation, rows: int) -> tuple[Measure, ...]:
    """Return the measures of a verb with the parameters given, or their defaults.

    Args:
        request: What the user asks for.
        situation: Checkpoints, model and options; its `notice` says which measures use only part of the probe.
        rows: Number of probe rows.

    Raises:
        UsageError: An option contradicts the checkpoints.
        NothingMatched: An option names a layer that does not exist.
    """
    channels = request.options.get("channel")
    measures = tuple(
        with_parameters(measure, situation)
        for measure in MEASURES
        if measure.verb in ("", request.verb) or request.verb == "scan"
        if not (measure.channel and channels) or measure.channel in channels
    )
    by_default = request.options.get("samples") is None
    limits = {measure.samples for measure in measures if by_default and measure.samples is not None}
    for size in sorted(limit for limit in limits if 0 < limit < rows):
        names = ", ".join(measure.name for measure in measures if measure.samples == size)
        situation.notice(f"{names}: measured on {size} of the probe's {rows} rows; --samples all takes every row.")
    return measures


def with_parameters(measure: type[M], situation: Situation) -> M:
    """Make a measure with the parameters given, or their defaults.

    Raises:
        IbscanError: As `measures_of`.
    """
    parameters: dict[str, Any] = {}
    for setting in settings_of(measure):
        value = situation.given.get(setting.name, setting.default)
        settle = setting.option.settle
        parameters[setting.field] = value if settle is None else settle(value, situation)
    return measure(**parameters)


def stored_settings(
    request: Request, series: Series, model: Model, probe: Probe, measures: Sequence[Measure]
) -> dict[str, Any]:
    """Return what two results must agree in to be joined, and the parameters of every measure."""
    settings: dict[str, Any] = {
        "dtype": request.dtype,
        "axis": series.axis,
        # Modules added by --layers do not identify the network.
        "layers": [layer.name for layer in model.layers if layer.noisy],
        "widths": [model.inputs, *(layer.width for layer in model.layers if layer.noisy)],
        "weights": series.checkpoints[0].state_key,
        "code": model.code,
        "measures": {
            measure.name: {field.name: getattr(measure, field.name) for field in fields(measure)}  # type: ignore[arg-type]
            for measure in measures
        },
    }
    # By it the relative noise was chosen, and tables choose what they begin with.
    unbounded = unbounded_layers(model.layers)
    if unbounded:
        settings["unbounded"] = list(unbounded)
    noisy = [measure for measure in measures if measure.channel]
    if noisy:
        settings["input_entropy"] = input_weights(probe.sampled(noisy[0].samples, request.seed))[1]
    return settings
