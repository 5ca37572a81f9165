"""`ibscan ls`: print a series as ibscan understands it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ibscan.cli.output import Output
from ibscan.core.records import Checkpoint, Series
from ibscan.core.text import matches_glob
from ibscan.engine.model_spec import ModelSpec, chain_globs, stated_model
from ibscan.engine.request import PARTIAL, Request
from ibscan.engine.series import manifest_of, series_of
from ibscan.errors import IbscanError, NothingMatched
from ibscan.inputs.probes.read import find_probe
from ibscan.networks.resolve import chain_order
from ibscan.results.export import COLUMNS as ROWS

__all__ = ["COLUMNS", "listed"]

COLUMNS: Mapping[str, str] = {
    "order": "Place of the checkpoint in the series, from 0.",
    **{name: ROWS[name] for name in ("epoch", "step", "value")},
    "step_source": "Where epoch and step were found.",
    "size": "Size of the checkpoint's file in bytes.",
    "dtype": "Number formats of the tensors.",
    "sha256": "SHA-256 of the file; a table shows its first 12 digits.",
    "format": "Format of the file.",
    "tensors": "How many tensors of weights the file holds.",
    "model": "Model the series states, or that --model names.",
    "chain": "Widths of the chain of Linear layers, from input to output.",
    "checkpoint": ROWS["checkpoint"],
    "skipped": "Why the file is no checkpoint of the series.",
    "layer": "Dotted name of the layer.",
    "kind": "Kind of module, such as Linear.",
    "units": "Units of the layer.",
    "measures": "Measures that a scan would take of the layer.",
    "not_measured": "Measures that a scan would not take of the layer, and why.",
    "memory": "Memory the layer's measures would hold, in bytes (an estimate).",
}


def listed(request: Request, output: Output) -> int:
    """Print one row a checkpoint, skipped files last with the reason; with a probe also one row a layer.

    Returns:
        The exit code: 4 where files were skipped, else 0.

    Raises:
        IbscanError: With a probe: the error that a scan would end with; the rows are printed before.
    """
    failure: IbscanError | None = None
    stated: ModelSpec | None
    layers: list[dict[str, Any]] = []
    if request.probe is None:
        series, stated = _read(request, output)
    else:
        try:
            from ibscan.cli.probing import probed

            series, stated, layers = probed(request, output)
        except IbscanError as error:
            failure = error
            series, stated = _read(request, output)
    rows = [*_rows(series, request, stated, output), *layers]
    # One table for programs; two for people, as checkpoints and layers have different columns.
    parts = [rows] if output.format != "table" else [rows[: len(rows) - len(layers)], layers]
    for part in parts:
        if part:
            output.rows(tuple(COLUMNS), part)
    if failure is not None:
        raise failure
    return PARTIAL if series.skipped else 0


def _read(request: Request, output: Output) -> tuple[Series, ModelSpec | None]:
    """Read the series, and the model where it is stated."""
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
        # Trust is not needed: no code is run here.
        stated = stated_model(
            request.model, request.model_arg, manifest, series.checkpoints, trust=True, chain=request.chain
        )
    except IbscanError as error:
        output.notice(str(error))
        return series, None
    return series, stated


def _rows(series: Series, request: Request, stated: ModelSpec | None, output: Output) -> Iterator[dict[str, Any]]:
    coded = stated is not None and not stated.spec.startswith("mlp:")
    chain = "" if coded else _chain(series.checkpoints[0], request, stated, output)
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
            "model": "" if stated is None else str(stated),
            "chain": chain,
            "checkpoint": checkpoint.name,
        }
    for name, reason in series.skipped.items():
        yield {"checkpoint": name, "skipped": reason}


def _chain(checkpoint: Checkpoint, request: Request, stated: ModelSpec | None, output: Output) -> str:
    globs = chain_globs(request.chain) if stated is None else stated.chain
    try:
        order = chain_order(checkpoint.tensors, globs, checkpoint.state_key)
    except IbscanError as error:
        output.notice(f"{checkpoint.name}: {error}")
        return ""
    names = [name or "linear" for name in order]
    if request.layers and not any(matches_glob(name, request.layers) for name in names):
        raise NothingMatched(f"--layers {' '.join(request.layers)} matches none of {', '.join(names)}.")
    shapes = [checkpoint.tensors[f"{name}.weight" if name else "weight"].shape for name in order]
    return "-".join(str(width) for width in (shapes[0][1], *(shape[0] for shape in shapes)))
