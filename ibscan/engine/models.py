"""Make networks of checkpoints by the model that was stated."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from ibscan.core.network import Network
from ibscan.core.records import Array, Checkpoint, Layer, Probe
from ibscan.engine.feeding import Fed, fed_beside
from ibscan.engine.model_spec import Stated
from ibscan.errors import InputError
from ibscan.inputs.code.hf_config import config_beside
from ibscan.inputs.code.hf_model import library_model
from ibscan.inputs.code.load import Maker, called, code_hash, named_callable
from ibscan.inputs.probes.probe_keys import split_spec
from ibscan.inputs.series.adapters import adapters_alone, adapters_sentence
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.networks.admission import traced_network
from ibscan.networks.loading import loaded
from ibscan.networks.module import Module
from ibscan.networks.packing import Packing
from ibscan.networks.resolve import chain_order, left_out, parse_spec
from ibscan.networks.stacked import stacked_chain
from ibscan.networks.trace.graph import Trace

__all__ = ["Loaded", "Model", "globbed", "model_of"]

# Rows on which a model is run once to see what it does.
FEW_ROWS = 3
# A checkpoint with its tensors.
Loaded: TypeAlias = tuple[Checkpoint, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Model:
    """A model that fits the series and the probe: its layers, and the way from checkpoints to a network.

    `inputs` counts the numbers of a row, `outputs` those of the network's output; `most` says how many checkpoints one
    network may hold; `untapped` lists layers that cannot be measured, with the reason; `code` is the hash of the file
    that makes it, if one does; `fed` are the arrays of the probe that it takes by name; `guard` is put around all that
    runs this code.
    """

    stated: Stated
    inputs: int
    outputs: int
    layers: tuple[Layer, ...]
    most: int | None
    network: Callable[[Sequence[Loaded]], Network]
    untapped: tuple[tuple[str, str], ...] = ()
    code: str = ""
    fed: Fed = field(default_factory=Fed)
    guard: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def names(self) -> list[str]:
        """Layers as they are reported."""
        return [layer.name for layer in self.layers]


def model_of(
    stated: Stated,
    first: Checkpoint,
    probe: Probe,
    *,
    globs: Sequence[str] = (),
    device: torch.device,
    dtype: torch.dtype,
    run_script: bool = False,
    guard: Callable[..., AbstractContextManager[None]] = nullcontext,
) -> Model:
    """Hold a model against the first checkpoint and the probe.

    Args:
        stated: The model.
        first: The series' first checkpoint; the others have the same architecture.
        probe: What it will be measured on.
        globs: `--layers`; one that matches no layer may match other modules, which are then measured too.
        device: Where.
        dtype: Of the forward pass.
        run_script: Also run code that trains or writes files when it is imported.
        guard: Put around every piece of somebody's code that runs; takes `proven` where that is for minutes.

    Returns:
        The model.

    Raises:
        InputError: The tensors do not form it, or the probe does not fit it.
    """
    if stated.spec.startswith("mlp:"):
        return _chain(stated, first, probe, device, dtype)
    with guard():
        maker = _maker(stated, first, run_script=run_script)

    weighted = partial(_weighted, maker)
    state = load_tensors(first)
    with guard():
        model = weighted(first, state)
        fed = fed_beside(model, probe)
        packing = fed.packing(probe.x)
        network, extra = _recorded(model, probe, fed, globs, device, dtype)
        trace, exact = network.trace, None
        if dtype is not torch.float64:
            again = weighted(first, state)
            exact = _exact_trace(again, fed.rows(probe.x, FEW_ROWS), extra, device, trace, packing)
        del state

    def one(pairs: Sequence[Loaded]) -> Network:
        ((checkpoint, state),) = pairs
        double = None if exact is None else partial(_exactly, weighted, checkpoint, state, exact, device, packing)
        return Module(weighted(checkpoint, state).to(device, dtype), trace, device, dtype, packing, double)

    later = guard if guard is nullcontext else partial(guard, proven=True)
    features, outputs = probe.x[0].size, trace.head.units
    return Model(stated, features, outputs, trace.layers, 1, one, trace.unmeasured, maker.code, fed, later)


def _weighted(maker: Maker, checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Make the model with the weights of a checkpoint."""
    try:
        return loaded(maker.build, state, checkpoint.stored_names, checkpoint.name, saved=maker.names)
    except InputError as error:
        # Code may be adapters and nothing else; where it is not, this is what is wrong.
        if adapters_alone(checkpoint):
            raise InputError(f"{adapters_sentence(checkpoint)} As it is: {error}") from None
        raise


def _recorded(
    model: nn.Module, probe: Probe, fed: Fed, globs: Sequence[str], device: torch.device, dtype: torch.dtype
) -> tuple[Module, list[str]]:
    """Return the network, and the other modules that globs name where they match no layer."""
    rows = fed.rows(probe.x, FEW_ROWS)
    record = partial(traced_network, device=device, dtype=dtype, packing=fed.packing(probe.x))
    try:
        network = record(model, rows, ())
    except InputError as error:
        if not fed.arrays:
            raise
        file, selection = split_spec(probe.source)
        without = ",".join(part for part in (selection, *(f"{key}=" for key in fed.keys.values())) if part)
        raise InputError(
            f"{error} The model was fed the probe's {', '.join(fed.keys.values())} beside x; to leave that out, give "
            f"{file}#{without}."
        ) from error
    unmatched = [glob for glob in globs if not any(globbed(layer.name, [glob]) for layer in network.layers)]
    extra = [path for path, _ in model.named_modules() if path and unmatched and globbed(path, unmatched)]
    return (record(model, rows, extra) if extra else network), extra


def _exact_trace(
    model: nn.Module,
    rows: Array,
    extra: Sequence[str],
    device: torch.device,
    like: Trace,
    packing: Packing | None,
) -> Trace | None:
    """Return where the layers are in float64, None where the model does not run in that, or not alike."""
    try:
        trace = traced_network(model, rows, extra, device=device, dtype=torch.float64, packing=packing).trace
    except InputError:
        return None
    sizes = [[(layer.name, layer.width) for layer in one.layers] for one in (trace, like)]
    return trace if sizes[0] == sizes[1] else None


def _exactly(
    weighted: Callable[[Checkpoint, Mapping[str, torch.Tensor]], nn.Module],
    checkpoint: Checkpoint,
    state: Mapping[str, torch.Tensor],
    trace: Trace,
    device: torch.device,
    packing: Packing | None,
) -> Module:
    return Module(weighted(checkpoint, state).to(device, torch.float64), trace, device, torch.float64, packing)


def globbed(name: str, globs: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the globs; no globs match every name."""
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _maker(stated: Stated, first: Checkpoint, *, run_script: bool) -> Maker:
    """Return what makes the model, however it is stated."""
    where = f"--model {stated.spec}"
    kind, _, name = stated.spec.partition(":")
    if kind == "hf":
        config = {**(config_beside(first) or {}), **stated.arguments}
        found: Maker = called(partial(library_model, config, name, first.tensors, where), {}, where)
        return replace(found, build=partial(called, found.build, {}, where))
    function = named_callable(stated.spec, "--model", run_script=run_script)
    return Maker(partial(called, function, stated.arguments, where), code_hash(stated.spec))


def _chain(stated: Stated, first: Checkpoint, probe: Probe, device: torch.device, dtype: torch.dtype) -> Model:
    spec = parse_spec(stated.spec)
    try:
        order = chain_order(first.tensors, stated.chain, first.state_key)
    except InputError as error:
        raise InputError(f"{first.name}: {error}") from None
    absent = tuple((name, "no glob of --chain takes it") for name in left_out(first.tensors, order))
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
    return Model(
        stated,
        features,
        chain.layers[-1].width,
        chain.layers,
        None,
        lambda loaded: stack([state for _, state in loaded]),
        absent,
        fed=fed_beside(None, probe),
    )
