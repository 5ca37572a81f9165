"""Options and constants that several measures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ibscan.core.measure import Situation
from ibscan.core.option import (
    INPUT,
    MEASURE,
    PRECISION,
    RARE,
    Option,
    at_least,
    count,
    number,
    one_of,
    positive,
    whole,
)
from ibscan.core.records import Checkpoint, unbounded_layers
from ibscan.core.thresholds import AUTO
from ibscan.errors import UsageError

__all__ = [
    "AT",
    "BEYOND_Y",
    "DEFAULT_NOISE",
    "EPS",
    "GIVEN_Y",
    "MAX_DRAWS",
    "MOST_DRAWS",
    "NOISE",
    "RANK_ROWS",
    "READ_OUT",
    "REL_EPS",
    "REL_NOISE",
    "ROWS",
    "SAMPLES",
    "TARGET",
    "THRESHOLDS",
    "TOLERANCE",
    "WIDE",
    "all_rows",
]

# Default limits on probe rows: Jacobians cost more than values.
RANK_ROWS, ROWS = 1024, 4096
THRESHOLDS = (0.001, 0.01, 0.1)
# Title of the table, and caveat, of I(X;T|Y) through any channel.
BEYOND_Y = "information beyond the label, I(X;T|Y)"
GIVEN_Y = "It is there where equal rows have equal labels: only then is it what a layer keeps of them beyond the label."
# Defaults of the noisy channels: noise (unless the checkpoints state one), tolerance in nats, and draws.
DEFAULT_NOISE = (0.1,)
TARGET, MOST_DRAWS = 0.05, 65536
# Noise relative to the layer, measured beside the default where activations are unbounded.
UNBOUNDED_NOISE = (0.1, 0.3, 1.0)
# Wider layers are also measured on their principal components, at most so many.
WIDE = 64
# Key of the read-out's random stream, which first layers of the noisy network share.
READ_OUT = "mi_readout"


def all_rows(value: Any, situation: Situation) -> Any:  # noqa: ANN401, ARG001 - a number, or the word
    """Return a number of rows, None for `all`."""
    return None if value == "all" else value


def trained_noise(value: tuple[float, ...], situation: Situation) -> tuple[float, ...]:
    """Return the noise given, else the one checkpoints were trained with, else the default.

    Raises:
        UsageError: None was given, and the checkpoints do not agree on one.
    """
    return value if situation.given.get("noise") else _stated_noise(situation.series.checkpoints) or DEFAULT_NOISE


def chosen_eps(value: tuple[Any, ...], situation: Situation) -> tuple[float, ...]:
    """Return thresholds, with those at which the first and the last checkpoint differ most in place of `auto`."""
    if AUTO not in value:
        return value
    return tuple(dict.fromkeys((*(eps for eps in value if eps != AUTO), *situation.thresholds())))


def noise_is_typed(situation: Situation) -> bool:
    """Return whether any noise was asked for, absolute or relative."""
    return bool(situation.given.get("noise")) or situation.given.get("rel_noise") is not None


def noise_of_scale(value: tuple[float, ...], situation: Situation) -> tuple[float, ...]:
    """Return the relative noise given; where no noise was, the default of networks with an unbounded hidden layer.

    The layers of the model decide, whichever of them are asked for, and no value on the probe: so it is the same for
    every run on a series.
    """
    typed = noise_is_typed(situation)
    return UNBOUNDED_NOISE if not typed and unbounded_layers(situation.layers) else value


def _stated_noise(checkpoints: Sequence[Checkpoint]) -> tuple[float, ...]:
    stated = {checkpoint.metadata.get("ibscan.noise") for checkpoint in checkpoints}
    if stated == {None}:
        return ()
    try:
        noise = {float(text) for text in stated if text is not None}
    except ValueError:
        noise = set()
    if len(noise) != 1 or None in stated or not 0 < min(noise) < float("inf"):
        shown = ", ".join(sorted(str(text) for text in stated))
        raise UsageError(
            f"the checkpoints state no single training noise > 0 ({shown}); say which to measure with --noise."
        )
    return (noise.pop(),)


AT = Option(
    "Before or after the activation. Default: pre for rank, post for the rest.",
    MEASURE,
    metavar="pre|post",
    check=one_of("pre", "post"),
    shown=False,
)
SAMPLES = Option(
    f"Probe rows. Default: at most {RANK_ROWS} for rank, {ROWS} for the rest.",
    INPUT,
    flags=("-n", "--samples"),
    metavar="N|all",
    parse=count,
    check=at_least(1, "all"),
    settle=all_rows,
    shown=False,
    place=-1,
)
EPS = Option(
    "Threshold on singular values; repeatable. auto: those at which the first and the last checkpoint differ most. "
    "Default: {default}.",
    MEASURE,
    metavar="E|auto",
    several=True,
    parse=lambda text: AUTO if text == AUTO else number(text),
    check=lambda flag, value: None if value == AUTO else positive(flag, value),
    settle=chosen_eps,
    nothing="threshold",
    place=2,
)
REL_EPS = Option(
    "Threshold relative to the largest singular value, of the row's Jacobian or of the layer; repeatable.",
    MEASURE,
    metavar="E",
    several=True,
    parse=number,
    check=positive,
    place=3,
)
NOISE = Option(
    "Standard deviation of the channel noise, activation units; repeatable. "
    "Default: {default}, or the noise trained with.",
    MEASURE,
    metavar="S",
    several=True,
    parse=number,
    check=positive,
    settle=trained_noise,
)
REL_NOISE = Option(
    "Noise as a multiple of the layer's own root-mean-square distance from its mean, in the network without noise; "
    f"repeatable. Default: none; {' '.join(f'{r:g}' for r in UNBOUNDED_NOISE)} beside the default noise where a hidden "
    "layer is unbounded (ReLU).",
    MEASURE,
    metavar="R",
    several=True,
    parse=number,
    check=positive,
    settle=noise_of_scale,
    place=1,
)
TOLERANCE = Option(
    "Target 95% half width of noisy values, nats.", PRECISION, metavar="T", parse=number, check=positive, place=6
)
MAX_DRAWS = Option("Draws of one cell at most.", RARE, metavar="M", parse=whole, check=at_least(2), place=7)
