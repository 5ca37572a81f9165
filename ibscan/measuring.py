"""Which measures a request asks for, and with which parameters."""

from __future__ import annotations

from ibscan.errors import NothingMatched, UsageError
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation
from ibscan.measures.weight_rank import WeightRank
from ibscan.models import Model
from ibscan.request import CHANNELS, Reporter, Request
from ibscan.types import Measure, Series

__all__ = ["directions_of", "measures_of"]

DEFAULT_NOISE = 0.1
RANK_SAMPLES, OTHER_SAMPLES = 1024, 4096
# A module's Jacobian on an input wider than the first is taken on so many directions as the second.
WIDEST_INPUT, SUBSPACE = 8192, 2048


def directions_of(request: Request, model: Model, reporter: Reporter) -> int | None:
    """Return how many random directions of the input Jacobians are restricted to, None for all.

    Raises:
        NothingMatched: There is no layer of the name that --from gives.
    """
    if request.verb not in ("rank", "scan"):
        return None
    names = [layer.name for layer in model.layers if layer.noisy]
    if request.from_layer is not None and request.from_layer not in names:
        raise NothingMatched(f"--from {request.from_layer}: expected one of the layers {', '.join(names)}.")
    if request.input_dims is not None or request.from_layer is not None:
        return request.input_dims
    # A chain's Jacobian is a product of small matrices whatever the width of its input.
    if model.most is None or model.inputs <= WIDEST_INPUT:
        return None
    reporter.notice(
        f"local_rank: the input has {model.inputs} numbers; Jacobians are taken on {SUBSPACE} random orthonormal "
        "directions of it, and counts are lower bounds (--input-dims N takes N)."
    )
    return SUBSPACE


def measures_of(
    request: Request, series: Series, reporter: Reporter, rows: int, directions: int | None
) -> tuple[Measure, ...]:
    """Return the measures of a verb with the parameters asked for, or the usual ones.

    Args:
        request: What the user asks for.
        series: Whose training noise is the default.
        reporter: Told which measures do not use the whole probe unasked.
        rows: Of the probe.
        directions: Of the input, as `directions_of` returned it.

    Raises:
        UsageError: No noise is named, and the checkpoints do not agree on one.
    """

    def limit(default: int) -> int | None:
        if request.samples == "all":
            return None
        return default if request.samples is None else request.samples

    at = request.at
    measures: list[Measure] = [ProbeFit()]
    if request.verb in ("rank", "scan"):
        spectral = None if request.spectrum_rows == "all" else request.spectrum_rows
        place = at or "pre"
        measures.append(
            LocalRank(
                request.eps, request.rel_eps, place, limit(RANK_SAMPLES), spectral, request.from_layer, directions
            )
        )
        measures.append(WeightRank(request.eps))
    if request.verb in ("mi", "scan"):
        bins = request.bins if request.bins or request.bin_width else BinnedInformation.bins
        measures.append(
            BinnedInformation(bins, request.bin_width, request.bin_range, at or "post", limit(OTHER_SAMPLES))
        )
        noise = request.noise or _trained_noise(series)
        samples, tolerance, draws = limit(OTHER_SAMPLES), request.tolerance, request.max_draws
        channels = request.channel or CHANNELS
        if "network" in channels:
            measures.append(NetworkInformation(noise, tolerance, request.max_replicas, draws, samples))
        if "readout" in channels:
            measures.append(ReadoutInformation(noise, request.rel_noise, tolerance, draws, at or "post", samples))
    if request.verb in ("cluster", "scan"):
        measures.append(Clustering(at or "post", limit(OTHER_SAMPLES)))
    limits = {measure.samples for measure in measures if request.samples is None and measure.samples is not None}
    for size in sorted(limit for limit in limits if 0 < limit < rows):
        names = ", ".join(measure.name for measure in measures if measure.samples == size)
        reporter.notice(f"{names}: measured on {size} of the probe's {rows} rows; --samples all takes every row.")
    return tuple(measures)


def _trained_noise(series: Series) -> tuple[float, ...]:
    stated = {checkpoint.metadata.get("ibscan.noise") for checkpoint in series.checkpoints}
    if stated == {None}:
        return (DEFAULT_NOISE,)
    try:
        noise = {float(number) for number in stated if number is not None}
    except ValueError:
        noise = set()
    if len(noise) != 1 or None in stated or not 0 < min(noise) < float("inf"):
        shown = ", ".join(sorted(str(number) for number in stated))
        raise UsageError(
            f"the checkpoints state no single training noise > 0 ({shown}); say which to measure with --noise."
        )
    return (noise.pop(),)
