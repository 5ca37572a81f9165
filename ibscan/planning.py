"""A request understood: inputs found, read and held against each other, before anything is computed."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ibscan import __version__
from ibscan.errors import InputError, NothingMatched, UsageError
from ibscan.inputs.manifest import Manifest, read_manifest
from ibscan.inputs.probe import find_probe, read_probe
from ibscan.inputs.series import read_series, select_epochs
from ibscan.measures.activations import input_weights
from ibscan.measures.binned import BinnedInformation
from ibscan.measures.clustering import Clustering
from ibscan.measures.fit import ProbeFit
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.readout import ReadoutInformation
from ibscan.networks.resolve import ChainSpec, chain_order, parse_spec
from ibscan.request import Reporter, Request
from ibscan.results.parts import check_output
from ibscan.types import Checkpoint, Measure, Probe, Series

__all__ = ["Plan", "globbed", "layer_names", "manifest_of", "planned", "series_of", "skip_sentence", "stated_model"]

DEFAULT_NOISE = 0.1
RANK_SAMPLES, OTHER_SAMPLES = 1024, 4096


@dataclass(frozen=True)
class Plan:
    """What will be computed, on what.

    `order` are state-dict names of layers, `layers` the indices to report; `folder` says that the series is a whole
    folder.
    """

    series: Series
    probe: Probe
    spec: ChainSpec
    order: tuple[str, ...]
    layers: tuple[int, ...]
    measures: tuple[Measure, ...]
    device: torch.device
    attrs: Mapping[str, Any]
    folder: bool

    def part_key(self) -> str:
        """Return the hash of everything that changes numbers, the checkpoint itself excepted."""
        science = {
            "identity": [self.attrs[name] for name in ("model", "probe_sha256", "seed", "settings", "ibscan_version")],
            "layers": self.layers,
            "measures": [repr(measure) for measure in self.measures],
        }
        return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()


def planned(request: Request, reporter: Reporter) -> Plan:
    """Read and check everything a request names.

    Args:
        request: What the user asks for.
        reporter: Told what was skipped, sampled or left out.

    Returns:
        The plan.

    Raises:
        UsageError: The request contradicts itself or the inputs, or the output may not be written.
        InputError: An input cannot be used, or probe and model do not fit.
        NothingMatched: An empty folder or a filter that matches nothing.
    """
    device = _device(request.device)
    manifest = manifest_of(request.paths, trust=request.trust)
    source, arguments = _probe_source(request, manifest)
    beside = [] if source is None else [Path(source.partition("#")[0])]
    if request.output is not None:
        check_output(request.output, [*beside, *(path for path in request.paths if path.is_file())])
    series = series_of(request, manifest, exclude=[*beside, *([request.output] if request.output else [])])
    if source is None:
        raise InputError(
            f"{request.paths[0]}: no probe was found beside the checkpoints (probe.npz, probe.npy, probe.mat, ...) and "
            "none was given; name the inputs to measure on with --probe FILE."
        )
    probe, notices = read_probe(source, arguments)
    for sentence in (*series.notices, *notices):
        reporter.notice(sentence)
    for name, reason in series.skipped.items():
        reporter.problem(skip_sentence(name, reason))
    spec = stated_model(request.model, manifest, series.checkpoints, trust=request.trust)
    order, widths = _architecture(series.checkpoints[0], probe)
    names = layer_names(order)
    chosen = tuple(k for k, name in enumerate(names) if globbed(name, request.layers))
    if not chosen:
        raise NothingMatched(f"--layers {' '.join(request.layers)} matches none of the layers {', '.join(names)}.")
    measures = _measures(request, series, reporter, len(probe.x))
    settings: dict[str, Any] = {
        "dtype": request.dtype,
        "axis": series.axis,
        "layers": names,
        "widths": widths,
        "weights": series.checkpoints[0].state_key,
        "measures": {m.name: _fields(m) for m in measures},
    }
    noisy = [measure for measure in measures if isinstance(measure, ReadoutInformation)]
    if noisy:
        settings["input_entropy"] = input_weights(probe.sampled(noisy[0].samples, request.seed))[1]
    attrs = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ibscan_version": __version__,
        "torch_version": torch.__version__,
        "device": str(device),
        "seed": request.seed,
        "command": request.command,
        "model": str(spec),
        "probe": probe.source,
        "probe_sha256": probe.sha256,
        "settings": json.dumps(settings, sort_keys=True),
        "skipped": json.dumps(dict(series.skipped), sort_keys=True),
        "complete": 0,
    }
    folder = len(request.paths) == 1 and request.paths[0].is_dir()
    return Plan(series, probe, spec, order, chosen, measures, device, attrs, folder)


def manifest_of(paths: Sequence[Path], *, trust: bool) -> Manifest | None:
    """Return the manifest beside the checkpoints: in the folder, or in the one folder all files lie in."""
    folder = _folder(paths)
    return None if folder is None else read_manifest(folder, trust=trust)


def series_of(request: Request, manifest: Manifest | None, *, exclude: Sequence[Path]) -> Series:
    """Return the series a request names, `--epochs` applied."""
    series = read_series(
        request.paths, manifest=manifest, state_key=request.state_key, weights=request.weights, exclude=exclude
    )
    return series if request.epochs is None else select_epochs(series, request.epochs)


def skip_sentence(name: str, reason: str) -> str:
    """Return what is said of a checkpoint left out; most reasons name it already."""
    return f"skipped: {reason}" if reason.startswith(name) else f"skipped {name}: {reason}"


def layer_names(order: Sequence[str]) -> list[str]:
    """Return layer names as reported: a Linear without a name of its own is called `linear`."""
    return [name or "linear" for name in order]


def stated_model(
    typed: str | None, manifest: Manifest | None, checkpoints: Sequence[Checkpoint], *, trust: bool
) -> ChainSpec:
    """Return the model: as typed, as the manifest has it, or as the checkpoints' metadata state it.

    Raises:
        UsageError: Nothing states the activation, the checkpoints contradict one another, or the spec is unknown.
        InputError: A file names code, and `--trust` was not given.
    """
    if typed is not None:
        return parse_spec(typed)
    stated = manifest.model_spec if manifest is not None else None
    if stated is None:
        specs = {_metadata_spec(checkpoint) for checkpoint in checkpoints}
        if len(specs) > 1:
            raise UsageError(
                f"the checkpoints name different models: {', '.join(sorted(str(s) for s in specs))}. "
                "Say which with --model mlp:ACT, or scan the runs separately."
            )
        stated = specs.pop()
    if stated is None:
        shapes = ", ".join(f"{name} {info.shape}" for name, info in list(checkpoints[0].tensors.items())[:12])
        raise UsageError(
            f"{checkpoints[0].name}: nothing states the activation between its layers ({shapes}). "
            "Add --model mlp:ACT, such as --model mlp:tanh or --model mlp:relu:softmax."
        )
    if stated.startswith("mlp:") and manifest is not None and manifest.model_args:
        raise UsageError(f"{manifest.path}: [model] args are for a callable, and spec = {stated!r} takes none.")
    if not stated.startswith("mlp:") and not trust:
        raise InputError(
            f"the series names code of its own as its model ({stated}), and code from files is not run unasked; "
            "name it yourself with --model, or add --trust."
        )
    return parse_spec(stated)


def _metadata_spec(checkpoint: Checkpoint) -> str | None:
    metadata = checkpoint.metadata
    if "ibscan.model" in metadata:
        return metadata["ibscan.model"]
    if "activation" not in metadata:
        return None
    return f"mlp:{metadata['activation']}" + (f":{metadata['output']}" if "output" in metadata else "")


def _architecture(first: Checkpoint, probe: Probe) -> tuple[tuple[str, ...], list[int]]:
    try:
        order = chain_order(first.tensors)
    except InputError as error:
        raise InputError(f"{first.name}: {error}") from None
    shapes = [first.tensors[f"{name}.weight" if name else "weight"].shape for name in order]
    features = probe.x[0].size
    if features != shapes[0][1]:
        raise InputError(
            f"{probe.source}: a row has {features} numbers (shape {tuple(probe.x.shape[1:])}), but the first layer "
            f"'{layer_names(order)[0]}' of {first.name} takes {shapes[0][1]}. Give the probe this model was made for."
        )
    return order, [shapes[0][1], *(shape[0] for shape in shapes)]


def _folder(paths: Sequence[Path]) -> Path | None:
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
    parents = {path.parent for path in paths}
    return parents.pop() if len(parents) == 1 else None


def _probe_source(request: Request, manifest: Manifest | None) -> tuple[str | None, dict[str, Any]]:
    # What the manifest says of scale and mean belongs to the probe it names, not to another one typed.
    if request.probe is not None:
        return request.probe, dict(request.probe_arg)
    arguments = {**(manifest.probe_arguments if manifest is not None else {}), **request.probe_arg}
    if manifest is not None and manifest.probe_path is not None:
        selection = f"#{manifest.probe_selection}" if manifest.probe_selection else ""
        return f"{manifest.probe_path}{selection}", arguments
    folder = _folder(request.paths)
    found = find_probe(folder) if folder is not None and folder.is_dir() else None
    return None if found is None else str(found), arguments


def _device(name: str) -> torch.device:
    present = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device("cuda:0" if len(present) > 1 else "cpu")
    if name == "mps":
        raise UsageError("--device mps comes in a later version: it has no float64, in which all is measured here.")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        raise UsageError(f"--device {name}: expected auto or one of the devices here: {', '.join(present)}.")
    return torch.device(wanted)


def _fields(measure: Measure) -> dict[str, Any]:
    return {field.name: getattr(measure, field.name) for field in dataclasses.fields(measure)}  # type: ignore[arg-type]


def globbed(name: str, globs: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the globs; no globs match every name."""
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _measures(request: Request, series: Series, reporter: Reporter, rows: int) -> tuple[Measure, ...]:
    def limit(default: int) -> int | None:
        if request.samples == "all":
            return None
        return default if request.samples is None else request.samples

    at = request.at
    measures: list[Measure] = [ProbeFit()]
    if request.verb in ("rank", "scan"):
        spectral = None if request.spectrum_rows == "all" else request.spectrum_rows
        measures.append(LocalRank(request.eps, request.rel_eps, at or "pre", limit(RANK_SAMPLES), spectral))
    if request.verb in ("mi", "scan"):
        bins = request.bins if request.bins or request.bin_width else BinnedInformation.bins
        measures.append(
            BinnedInformation(bins, request.bin_width, request.bin_range, at or "post", limit(OTHER_SAMPLES))
        )
        noise = request.noise or _trained_noise(series)
        measures.append(
            ReadoutInformation(noise, request.tolerance, request.max_draws, at or "post", limit(OTHER_SAMPLES))
        )
        if not request.channel:
            reporter.notice("the network channel comes in a later version; --channel readout is measured.")
    if request.verb in ("cluster", "scan"):
        measures.append(Clustering(at or "post", limit(OTHER_SAMPLES)))
    limits = {measure.samples for measure in measures if request.samples is None and measure.samples is not None}
    for size in sorted(limit for limit in limits if limit < rows):
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
