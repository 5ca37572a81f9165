"""`ibscan ls`: a series as it was understood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ibscan.cli.output import Output
from ibscan.errors import IbscanError, NothingMatched
from ibscan.inputs.probe import find_probe
from ibscan.models import globbed, stated_model
from ibscan.networks.resolve import chain_order
from ibscan.planning import manifest_of, series_of
from ibscan.request import PARTIAL, Request
from ibscan.types import Checkpoint, Series

__all__ = ["COLUMNS", "listed"]

COLUMNS = (
    "order",
    "epoch",
    "step",
    "value",
    "step_source",
    "size",
    "dtype",
    "sha256",
    "format",
    "tensors",
    "model",
    "chain",
    "checkpoint",
    "skipped",
)


def listed(request: Request, output: Output) -> int:
    """Print one row a checkpoint, those skipped last with the reason.

    Args:
        request: Which checkpoints.
        output: Where to.

    Returns:
        The exit code: 4 where files were skipped, else 0.
    """
    manifest = manifest_of(request.paths, trust=request.trust)
    exclude = [] if manifest is None or manifest.probe_path is None else [manifest.probe_path]
    folder = request.paths[0]
    if len(request.paths) == 1 and folder.is_dir() and not exclude:
        found = find_probe(folder)
        exclude = [] if found is None else [found]
    series = series_of(request, manifest, exclude=exclude)
    for notice in series.notices:
        output.notice(notice)
    try:
        model = str(stated_model(request.model, request.model_arg, manifest, series.checkpoints, trust=request.trust))
    except IbscanError as error:
        output.notice(str(error))
        model = ""
    output.rows(COLUMNS, list(_rows(series, request, model, output)))
    return PARTIAL if series.skipped else 0


def _rows(series: Series, request: Request, model: str, output: Output) -> Iterator[dict[str, Any]]:
    chain = _chain(series.checkpoints[0], request, output)
    for order, checkpoint in enumerate(series.checkpoints):
        epoch = checkpoint.epoch
        dtypes = sorted({info.dtype for info in checkpoint.tensors.values()})
        yield {
            "order": order,
            # A whole epoch is a count and is printed as one.
            "epoch": int(epoch) if epoch is not None and epoch.is_integer() else epoch,
            "step": checkpoint.step,
            "value": checkpoint.value,
            "step_source": checkpoint.step_source,
            "size": checkpoint.size,
            "dtype": "+".join(dtypes),
            "sha256": checkpoint.sha256 if output.format != "table" else checkpoint.sha256[:12],
            "format": checkpoint.format,
            "tensors": len(checkpoint.tensors),
            "model": model,
            "chain": chain,
            "checkpoint": checkpoint.name,
        }
    for name, reason in series.skipped.items():
        yield {"checkpoint": name, "skipped": reason}


def _chain(checkpoint: Checkpoint, request: Request, output: Output) -> str:
    try:
        order = chain_order(checkpoint.tensors)
    except IbscanError as error:
        output.notice(f"{checkpoint.name}: {error}")
        return ""
    names = [name or "linear" for name in order]
    if request.layers and not any(globbed(name, request.layers) for name in names):
        raise NothingMatched(f"--layers {' '.join(request.layers)} matches none of {', '.join(names)}.")
    shapes = [checkpoint.tensors[f"{name}.weight" if name else "weight"].shape for name in order]
    return "-".join(str(width) for width in (shapes[0][1], *(shape[0] for shape in shapes)))
