"""Plan a scan: find, read and check everything a request names, before anything is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ibscan._version import __version__
from ibscan.core.measure import Measure, Situation, Sizes
from ibscan.core.records import Probe, Series
from ibscan.core.text import matches_glob
from ibscan.engine.hints import missing_probe
from ibscan.engine.measures import measures_of, stored_settings
from ibscan.engine.model_spec import ModelSpec, stated_model
from ibscan.engine.models import Model, model_of
from ibscan.engine.request import Reporter, Request
from ibscan.engine.series import folder_of, manifest_of
from ibscan.engine.thresholds import chosen_thresholds
from ibscan.errors import CheckpointError, InputError, NothingMatched, UsageError
from ibscan.inputs.code.live import Live
from ibscan.inputs.probes.read import find_probe, read_probe
from ibscan.inputs.series.manifest import Manifest
from ibscan.inputs.series.process_watch import process_watch
from ibscan.inputs.series.untouched import untouched
from ibscan.measures.work import seconds
from ibscan.results.parts import check_output

__all__ = [
    "Plan",
    "ResolvedInputs",
    "plan_of",
    "probe_of",
    "resolved_inputs",
    "skip_sentence",
]

# Estimated seconds of one core a block may take. It may take three times as long, so a killed run loses about 30 s.
BLOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What will be computed, on what: `layers` are the indices of those to report, `folder` if one folder was named."""

    series: Series
    probe: Probe
    model: Model
    layers: tuple[int, ...]
    measures: tuple[Measure, ...]
    device: torch.device
    attrs: Mapping[str, Any]
    folder: bool

    def rows(self, measure: Measure) -> int:
        """Return how many probe rows a measure uses."""
        return len(self.probe.x) if measure.samples is None else min(len(self.probe.x), measure.samples)

    @property
    def most(self) -> int:
        """How many checkpoints a block may stack: few of slow ones, as a killed run loses its block."""
        return self.model.max_stacked or max(1, int(BLOCK_SECONDS // self.seconds))

    @property
    def seconds(self) -> float:
        """Estimated seconds for one checkpoint of a chain on one core, from the sizes of the work alone."""
        return sum(seconds(measure, self.sizes(measure)) for measure in self.measures)

    def sizes(self, measure: Measure) -> Sizes:
        """Return the sizes of a measure's work on one checkpoint."""
        weights = sum(math.prod(tensor.shape) for tensor in self.series.checkpoints[0].tensors.values())
        layers = self.model.layers
        return Sizes([layers[k] for k in self.layers], layers, self.model.inputs, self.rows(measure), weights)

    def part_key(self) -> str:
        """Return the hash of everything that changes numbers, except the checkpoint itself."""
        # The axis changes no number, and may change as a folder grows.
        settings = {name: value for name, value in json.loads(self.attrs["settings"]).items() if name != "axis"}
        science = {
            "identity": [self.attrs[name] for name in ("model", "probe_sha256", "seed", "ibscan_version")],
            "settings": settings,
            "layers": self.layers,
            "measures": [repr(measure) for measure in self.measures],
        }
        return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ResolvedInputs:
    """What a request names beside checkpoints; `exclude` lists files that are never read as checkpoints."""

    device: torch.device
    manifest: Manifest | None
    probe: str | Live | None
    probe_arg: Mapping[str, Any]
    exclude: tuple[Path, ...]


def resolved_inputs(request: Request) -> ResolvedInputs:
    """Find the device, manifest and probe, and check the output, before any checkpoint is read.

    Raises:
        UsageError: There is no such device, or the output may not be written.
        InputError: The manifest cannot be used.
    """
    process_watch().begin()
    device = _device(request.device)
    manifest = manifest_of(request.paths, trust=request.trust)
    source, arguments = _probe_source(request, manifest)
    beside = [Path(source.partition("#")[0])] if isinstance(source, str) else []
    if request.output is not None:
        check_output(request.output, [*beside, *(path for path in request.paths if path.is_file())])
    return ResolvedInputs(device, manifest, source, arguments, (*beside, *([request.output] if request.output else [])))


def probe_of(request: Request, resolved: ResolvedInputs) -> tuple[Probe, tuple[str, ...]]:
    """Read the probe; return it with notices about it.

    Raises:
        InputError: There is no probe, or it cannot be used.
    """
    if resolved.probe is None:
        raise missing_probe(request.paths)
    code = resolved.probe.partition("#")[0] if isinstance(resolved.probe, str) else resolved.probe.spec
    with untouched(request.paths, code, "--probe", growing=request.follow):
        probe, notices = read_probe(resolved.probe, resolved.probe_arg, run_script=request.run_script)
    return probe, tuple(notices)


def plan_of(
    request: Request,
    reporter: Reporter,
    resolved: ResolvedInputs,
    series: Series,
    read: tuple[Probe, Sequence[str]],
    before: Plan | None = None,
) -> Plan:
    """Make the plan for a series and a probe.

    Args:
        request: What the user asks for.
        reporter: Hears what was skipped, sampled or left out.
        resolved: From `resolved_inputs`.
        series: The checkpoints.
        read: From `probe_of`.
        before: An earlier plan for the same folder, whose model is reused if the architecture is the same.

    Raises:
        IbscanError: Model, probe and request do not fit.
    """
    (probe, notices), device = read, resolved.device
    for sentence in (*series.notices, *notices):
        reporter.notice(sentence)
    for name, reason in series.skipped.items():
        reporter.problem(skip_sentence(name, reason))
    sources = request.model, request.model_arg, resolved.manifest, series.checkpoints
    stated = stated_model(*sources, trust=request.trust, chain=request.chain)
    if before is not None and (stated, _architecture(series)) == (before.model.stated, _architecture(before.series)):
        model = before.model
    else:
        series, model = _first_usable_model(request, reporter, series, stated, probe, device)
    probe = model.extra.applied_to(probe)
    chosen = _chosen(request, reporter, series, model)
    if probe.y is not None and len(probe.labels) not in (model.outputs, 2 if model.outputs == 1 else model.outputs):
        reporter.notice(
            f"accuracy is measured only where the output fits the labels: the probe has {len(probe.labels)} label "
            f"values, the network's output {model.outputs} units."
        )
    facts = series, model.layers, chosen, model.inputs, model.max_stacked is None
    thresholds = cache(lambda: chosen_thresholds(situation, model, probe, request.seed))
    situation = Situation(*facts, request.options, reporter.notice, thresholds)
    measures = measures_of(request, situation, len(probe.x))
    attrs = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ibscan_version": __version__,
        "torch_version": torch.__version__,
        "device": str(device),
        "seed": request.seed,
        "command": request.command,
        "model": str(stated),
        "probe": probe.source,
        "probe_sha256": probe.sha256,
        "settings": json.dumps(stored_settings(request, series, model, probe, measures), sort_keys=True),
        "skipped": json.dumps(dict(series.skipped), sort_keys=True),
        "complete": 0,
    }
    folder = len(request.paths) == 1 and request.paths[0].is_dir()
    return Plan(series, probe, model, chosen, measures, device, attrs, folder)


def _chosen(request: Request, reporter: Reporter, series: Series, model: Model) -> tuple[int, ...]:
    """Return the indices of the layers that `--layers` matches, and report those that cannot be measured.

    Raises:
        InputError: A layer has no units.
        NothingMatched: No layer matches.
    """
    for sentence in model.extra.notices:
        reporter.notice(sentence)
    for layer in model.layers:
        if not layer.width:
            raise InputError(f"{series.checkpoints[0].name}: layer {layer.name!r} has no units; expected at least one.")
    for name, reason in model.unmeasured:
        reporter.notice(f"{name} is not measured: {reason}.")
    chosen = tuple(k for k, name in enumerate(model.names) if matches_glob(name, request.layers))
    if not chosen:
        raise NothingMatched(
            f"--layers {' '.join(request.layers)} matches none of the layers {', '.join(model.names)}."
        )
    return chosen


def _first_usable_model(
    request: Request, reporter: Reporter, series: Series, stated: ModelSpec, probe: Probe, device: torch.device
) -> tuple[Series, Model]:
    """Build the model from the first checkpoint that can still be read; return the series without those before it."""
    while True:
        first, *rest = series.checkpoints
        try:
            dtype = getattr(torch, request.dtype)
            guard = partial(untouched, request.paths, stated.spec, "--model", growing=request.follow)
            options: dict[str, Any] = {"globs": request.layers, "run_script": request.run_script, "guard": guard}
            return series, model_of(stated, first, probe, device=device, dtype=dtype, **options)
        except CheckpointError as error:
            if not rest:
                raise
            reporter.problem(skip_sentence(first.name, str(error)))
            skipped = {**series.skipped, first.name: str(error)}
            series = dataclasses.replace(series, checkpoints=tuple(rest), skipped=skipped)


def _architecture(series: Series) -> tuple[Any, ...]:
    first = series.checkpoints[0]
    return dict(first.tensors), dict(first.stored_names), first.state_key


def skip_sentence(name: str, reason: str) -> str:
    """Return the message for a checkpoint left out; most reasons begin with its name already."""
    return f"skipped: {reason}" if reason.startswith(name) else f"skipped {name}: {reason}"


def _probe_source(request: Request, manifest: Manifest | None) -> tuple[str | Live | None, dict[str, Any]]:
    # The manifest's scale and mean belong to the probe it names, not to one given by --probe.
    if request.probe is not None:
        return request.probe, dict(request.probe_arg)
    arguments = {**(manifest.probe_arguments if manifest is not None else {}), **request.probe_arg}
    if manifest is not None and manifest.probe_path is not None:
        selection = f"#{manifest.probe_selection}" if manifest.probe_selection else ""
        return f"{manifest.probe_path}{selection}", arguments
    folder = folder_of(request.paths)
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
