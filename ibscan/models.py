"""What states the model, and what makes networks of checkpoints by it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from ibscan.errors import InputError, UsageError
from ibscan.inputs.checkpoint import load_tensors
from ibscan.inputs.code import Maker, called, code_hash, named_callable
from ibscan.inputs.config import config_beside, stated_class
from ibscan.inputs.huggingface import library_model
from ibscan.inputs.manifest import Manifest
from ibscan.networks.admission import recorded_taps
from ibscan.networks.chain import stacked_chain
from ibscan.networks.graph import Taps
from ibscan.networks.loading import loaded
from ibscan.networks.module import Module
from ibscan.networks.resolve import chain_order, parse_spec
from ibscan.types import Array, Checkpoint, Layer, Network, Probe

__all__ = ["Loaded", "Model", "Stated", "globbed", "model_of", "stated_model"]

# Rows on which a model is run once to see what it does.
FEW_ROWS = 3
# A checkpoint with its tensors.
Loaded: TypeAlias = tuple[Checkpoint, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Stated:
    """A model as it is stated: `mlp:ACT:OUT`, `hf:CLASS` with entries of its config, or a callable with arguments."""

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        # A file is the same wherever one stands; its content is told apart by its hash.
        place, _, name = self.spec.rpartition(":")
        spec = f"{Path(place).name}:{name}" if place.endswith(".py") else self.spec
        # A manifest's arguments may be dates, which JSON has no form for.
        return f"{spec} {json.dumps(self.arguments, sort_keys=True, default=str)}" if self.arguments else spec


@dataclass(frozen=True)
class Model:
    """A model that fits the series and the probe: its layers, and the way from checkpoints to a network.

    `inputs` counts the numbers of a row; `most` says how many checkpoints one network may hold; `untapped` lists
    layers that cannot be measured, with the reason; `code` is the hash of the file that makes it, if one does.
    """

    stated: Stated
    inputs: int
    layers: tuple[Layer, ...]
    most: int | None
    network: Callable[[Sequence[Loaded]], Network]
    untapped: tuple[tuple[str, str], ...] = ()
    code: str = ""

    @property
    def names(self) -> list[str]:
        """Layers as they are reported."""
        return [layer.name for layer in self.layers]


def stated_model(
    typed: str | None,
    arguments: Mapping[str, Any],
    manifest: Manifest | None,
    checkpoints: Sequence[Checkpoint],
    *,
    trust: bool,
) -> Stated:
    """Return the model: as typed, as the manifest has it, as metadata state it, or as `config.json` beside it does.

    Args:
        typed: `--model`, or None.
        arguments: `--model-arg`; they replace those of the manifest one by one.
        manifest: Beside the checkpoints, if there is one.
        checkpoints: The series.
        trust: Whether code named by files may run.

    Raises:
        UsageError: Nothing states the activation, the checkpoints contradict one another, the spec is unknown, or a
            plain chain was given arguments.
        InputError: A file names code, and `--trust` was not given; a `config.json` that is needed cannot be used.
    """
    stated = typed
    if stated is None and manifest is not None and manifest.model_spec is not None:
        stated, arguments = manifest.model_spec, {**manifest.model_args, **arguments}
    if stated is None:
        specs = {_metadata_spec(checkpoint) for checkpoint in checkpoints}
        if len(specs) > 1:
            raise UsageError(
                f"the checkpoints name different models: {', '.join(sorted(str(s) for s in specs))}. "
                "Say which with --model mlp:ACT, or scan the runs separately."
            )
        stated = specs.pop()
    if stated is None and config_beside(checkpoints[0]) is not None:
        stated = "hf"
    if stated is None:
        shapes = ", ".join(f"{name} {info.shape}" for name, info in list(checkpoints[0].tensors.items())[:12])
        raise UsageError(
            f"{checkpoints[0].name}: nothing states the activation between its layers ({shapes}). "
            "Add --model mlp:ACT, such as --model mlp:tanh or --model mlp:relu:softmax, or --model module:callable for "
            "a network that is no plain chain."
        )
    if stated.partition(":")[0] == "mlp":
        if arguments:
            raise UsageError(f"model arguments ({', '.join(arguments)}) are for a callable, and {stated} takes none.")
        return Stated(str(parse_spec(stated)))
    if typed is None and not trust and stated == "hf":
        raise InputError(
            f"{checkpoints[0].name}: the config.json beside it describes a model of the transformers library; add "
            "--model hf to have the library make it (no code of the folder runs), or --trust."
        )
    if typed is None and not trust:
        raise InputError(
            f"the series names code of its own as its model ({stated}), and code from files is not run unasked; "
            "name it yourself with --model, or add --trust."
        )
    if stated.partition(":")[0] == "hf":
        return Stated(f"hf:{stated_class(stated, checkpoints)}", dict(arguments))
    if typed is None:
        folder = manifest.path.parent if manifest is not None and manifest.model_spec else checkpoints[0].path.parent
        stated = str(folder / stated) if stated.partition(":")[0].endswith(".py") else stated
    return Stated(stated, dict(arguments))


def model_of(
    stated: Stated,
    first: Checkpoint,
    probe: Probe,
    *,
    globs: Sequence[str] = (),
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """Hold a model against the first checkpoint and the probe.

    Args:
        stated: The model.
        first: The series' first checkpoint; the others have the same architecture.
        probe: What it will be measured on.
        globs: `--layers`; one that matches no layer may match other modules, which are then measured too.
        device: Where.
        dtype: Of the forward pass.

    Returns:
        The model.

    Raises:
        InputError: The tensors do not form it, or the probe does not fit it.
    """
    if stated.spec.startswith("mlp:"):
        return _chain(stated, first, probe, device, dtype)
    maker = _maker(stated, first)

    def weighted(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> nn.Module:
        return loaded(maker.build, state, checkpoint.stored_names, checkpoint.name, saved=maker.names)

    model = weighted(first, load_tensors(first))
    rows = probe.x[:FEW_ROWS]
    network = recorded_taps(model, rows, (), device=device, dtype=dtype)
    unmatched = [glob for glob in globs if not any(globbed(layer.name, [glob]) for layer in network.layers)]
    extra = [path for path, _ in model.named_modules() if path and unmatched and globbed(path, unmatched)]
    if extra:
        network = recorded_taps(model, rows, extra, device=device, dtype=dtype)
    taps, exact = network.taps, None
    if dtype is not torch.float64:
        exact = _exact_taps(weighted(first, load_tensors(first)), rows, extra, device, taps)

    def one(pairs: Sequence[Loaded]) -> Network:
        ((checkpoint, state),) = pairs
        double = None if exact is None else partial(_exactly, weighted, checkpoint, state, exact, device)
        return Module(weighted(checkpoint, state).to(device, dtype), taps, device, dtype, double)

    return Model(stated, probe.x[0].size, taps.layers, 1, one, taps.untapped, maker.code)


def _exact_taps(model: nn.Module, rows: Array, extra: Sequence[str], device: torch.device, like: Taps) -> Taps | None:
    """Return where the layers are in float64, None where the model does not run in that, or not alike."""
    try:
        taps = recorded_taps(model, rows, extra, device=device, dtype=torch.float64).taps
    except InputError:
        return None
    sizes = [[(layer.name, layer.width) for layer in one.layers] for one in (taps, like)]
    return taps if sizes[0] == sizes[1] else None


def _exactly(
    weighted: Callable[[Checkpoint, Mapping[str, torch.Tensor]], nn.Module],
    checkpoint: Checkpoint,
    state: Mapping[str, torch.Tensor],
    taps: Taps,
    device: torch.device,
) -> Module:
    return Module(weighted(checkpoint, state).to(device, torch.float64), taps, device, torch.float64)


def globbed(name: str, globs: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the globs; no globs match every name."""
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _maker(stated: Stated, first: Checkpoint) -> Maker:
    """Return what makes the model, however it is stated."""
    where = f"--model {stated.spec}"
    kind, _, name = stated.spec.partition(":")
    if kind == "hf":
        config = {**(config_beside(first) or {}), **stated.arguments}
        found: Maker = called(partial(library_model, config, name, first.tensors, where), {}, where)
        return replace(found, build=partial(called, found.build, {}, where))
    function = named_callable(stated.spec, "--model")
    return Maker(partial(called, function, stated.arguments, where), code_hash(stated.spec))


def _chain(stated: Stated, first: Checkpoint, probe: Probe, device: torch.device, dtype: torch.dtype) -> Model:
    spec = parse_spec(stated.spec)
    try:
        order = chain_order(first.tensors)
    except InputError as error:
        raise InputError(f"{first.name}: {error}") from None
    # Its layers and shapes without its numbers.
    state = {name: torch.empty(info.shape, device="meta") for name, info in first.tensors.items()}
    chain = stacked_chain(spec, order, [state], device=torch.device("meta"), dtype=dtype)
    features = probe.x[0].size
    if features != chain.inputs:
        raise InputError(
            f"{probe.source}: a row has {features} numbers (shape {tuple(probe.x.shape[1:])}), but the first layer "
            f"'{chain.layers[0].name}' of {first.name} takes {chain.inputs}. Give the probe this model was made for."
        )
    stack = partial(stacked_chain, spec, order, device=device, dtype=dtype)
    return Model(stated, features, chain.layers, None, lambda loaded: stack([state for _, state in loaded]))


def _metadata_spec(checkpoint: Checkpoint) -> str | None:
    metadata = checkpoint.metadata
    if "ibscan.model" in metadata:
        return metadata["ibscan.model"]
    if "activation" not in metadata:
        return None
    return f"mlp:{metadata['activation']}" + (f":{metadata['output']}" if "output" in metadata else "")
