"""Build networks from checkpoints, by the model's spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from ibscan.core.network import Network
from ibscan.core.records import Array, Checkpoint, Layer, Probe
from ibscan.core.text import matches_glob
from ibscan.engine.extra_inputs import ExtraInputs, extra_inputs
from ibscan.engine.hints import ordered_chain, output_argument
from ibscan.engine.live_model import live_maker
from ibscan.engine.model_spec import ModelSpec
from ibscan.errors import InputError
from ibscan.inputs.code.hf_config import config_beside
from ibscan.inputs.code.hf_model import library_model
from ibscan.inputs.code.load import Maker, called, code_hash, named_callable
from ibscan.inputs.probes.probe_keys import HELD, split_spec
from ibscan.inputs.series.adapters import adapters_alone, adapters_sentence
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.networks.admission import traced_network
from ibscan.networks.loading import LastLayerDiffers, loaded
from ibscan.networks.module import Module
from ibscan.networks.packing import Packing
from ibscan.networks.resolve import left_out, parse_spec
from ibscan.networks.stacked import stacked_chain
from ibscan.networks.trace.graph import Trace

__all__ = ["Loaded", "Model", "model_of"]

# Rows on which a model is traced.
FEW_ROWS = 3
# A checkpoint with its tensors.
Loaded: TypeAlias = tuple[Checkpoint, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Model:
    """A model that fits the series and the probe: its layers, and how to make a network of checkpoints.

    `inputs` is the size of a row, `outputs` that of the network's output. A network holds at most `max_stacked`
    checkpoints, any number if None. `unmeasured` lists layers that cannot be measured, with the reason. `code` is the
    hash of the file the model comes from, if any. `extra` has the probe arrays that it takes by name. `guard` goes
    around everything that runs its code.
    """

    stated: ModelSpec
    inputs: int
    outputs: int
    layers: tuple[Layer, ...]
    max_stacked: int | None
    network: Callable[[Sequence[Loaded]], Network]
    unmeasured: tuple[tuple[str, str], ...] = ()
    code: str = ""
    extra: ExtraInputs = field(default_factory=ExtraInputs)
    guard: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def names(self) -> list[str]:
        """Names of the layers."""
        return [layer.name for layer in self.layers]


def model_of(
    stated: ModelSpec,
    first: Checkpoint,
    probe: Probe,
    *,
    globs: Sequence[str] = (),
    device: torch.device,
    dtype: torch.dtype,
    run_script: bool = False,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Model:
    """Build the model of the first checkpoint and check that the probe fits it.

    Args:
        stated: The model's spec.
        first: The series' first checkpoint; the others have the same architecture.
        probe: What it will be measured on.
        globs: `--layers`; one that matches no layer may match other modules, which are then measured too.
        device: Where the network runs.
        dtype: Of the forward pass.
        run_script: Also run code that trains or writes files when it is imported.
        guard: Goes around every call of the user's code.

    Raises:
        InputError: The tensors do not form the model, or the probe does not fit it.
    """
    if stated.spec.startswith("mlp:"):
        return _chain(stated, first, probe, device, dtype)
    with guard():
        maker = _maker(stated, first, run_script=run_script)

    with_weights = partial(_with_weights, maker)
    state = load_tensors(first)
    with guard():
        model = with_weights(first, state)
        extra = extra_inputs(model, probe)
        packing = extra.packing(probe.x)
        network, modules = _traced(model, probe, extra, globs, device, dtype)
        trace, exact_trace = network.trace, None
        if dtype is not torch.float64:
            again = with_weights(first, state)
            exact_trace = _float64_trace(again, extra.rows(probe.x, FEW_ROWS), modules, device, trace, packing)
        del state

    def network_of(pairs: Sequence[Loaded]) -> Network:
        ((checkpoint, state),) = pairs

        def in_float64() -> Module:
            assert exact_trace is not None
            return Module(
                with_weights(checkpoint, state).to(device, torch.float64), exact_trace, device, torch.float64, packing
            )

        double = None if exact_trace is None else in_float64
        return Module(with_weights(checkpoint, state).to(device, dtype), trace, device, dtype, packing, double)

    features, outputs = probe.x[0].size, trace.head.units
    return Model(stated, features, outputs, trace.layers, 1, network_of, trace.unmeasured, maker.code, extra, guard)


def _with_weights(maker: Maker, checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Make the model with the weights of a checkpoint."""
    try:
        return loaded(maker.build, state, checkpoint.stored_names, checkpoint.name, saved=maker.names)
    except LastLayerDiffers as error:
        options = output_argument(maker.function, error.units)
        add = f"Add {' '.join(options)}" if options else "Give the model as many, by an argument of its callable"
        raise InputError(f"{error} {add}{'.' if options else ' (--model-arg).'}", options=options) from None
    except InputError as error:
        # Code may know how to load adapters alone; if it failed, missing base weights are the likely cause.
        if adapters_alone(checkpoint):
            raise InputError(f"{adapters_sentence(checkpoint)} As it is: {error}") from None
        raise


def _traced(
    model: nn.Module, probe: Probe, extra: ExtraInputs, globs: Sequence[str], device: torch.device, dtype: torch.dtype
) -> tuple[Module, list[str]]:
    """Return the network, and the modules that globs name which match no layer."""
    rows = extra.rows(probe.x, FEW_ROWS)
    trace = partial(traced_network, device=device, dtype=dtype, packing=extra.packing(probe.x))
    try:
        network = trace(model, rows, ())
    except InputError as error:
        if not extra.arrays:
            raise
        file, selection = split_spec(probe.source)
        without = ",".join(part for part in (selection, *(f"{key}=" for key in extra.keys.values())) if part)
        how = "hand over arrays without it" if file.startswith(HELD) else f"give {file}#{without}"
        raise InputError(
            f"{error} The model was fed the probe's {', '.join(extra.keys.values())} beside x; to leave that out, "
            f"{how}."
        ) from error
    unmatched = [glob for glob in globs if not any(matches_glob(layer.name, [glob]) for layer in network.layers)]
    modules = [path for path, _ in model.named_modules() if path and unmatched and matches_glob(path, unmatched)]
    return (trace(model, rows, modules) if modules else network), modules


def _float64_trace(
    model: nn.Module, rows: Array, modules: Sequence[str], device: torch.device, like: Trace, packing: Packing | None
) -> Trace | None:
    """Return the trace of the model traced in float64, None if it does not run in float64 or has other layers there."""
    try:
        trace = traced_network(model, rows, modules, device=device, dtype=torch.float64, packing=packing).trace
    except InputError:
        return None
    sizes = [[(layer.name, layer.width) for layer in one.layers] for one in (trace, like)]
    return trace if sizes[0] == sizes[1] else None


def _maker(stated: ModelSpec, first: Checkpoint, *, run_script: bool) -> Maker:
    """Return the maker of a model of transformers, of a callable, or of an object that Python handed over."""
    if stated.live is not None:
        return live_maker(stated.live, stated.arguments, f"--model {stated.live}")
    where = f"--model {stated.spec}"
    kind, _, name = stated.spec.partition(":")
    if kind == "hf":
        config = {**(config_beside(first) or {}), **stated.arguments}
        maker: Maker = called(partial(library_model, config, name, first.tensors, where), {}, where)
        return replace(maker, build=partial(called, maker.build, {}, where))
    function = named_callable(stated.spec, "--model", run_script=run_script)
    return Maker(partial(called, function, stated.arguments, where), code_hash(stated.spec), function=function)


def _chain(stated: ModelSpec, first: Checkpoint, probe: Probe, device: torch.device, dtype: torch.dtype) -> Model:
    spec = parse_spec(stated.spec)
    order = ordered_chain(first, stated.chain)
    absent = tuple((name, "no glob of --chain takes it") for name in left_out(first.tensors, order))
    # Layers and shapes are all that is needed here: no tensor is read.
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
        lambda pairs: stack([state for _, state in pairs]),
        absent,
        extra=extra_inputs(None, probe),
    )
