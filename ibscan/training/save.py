"""What a training loop imports: `save` writes one self-describing checkpoint, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import struct
import warnings
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import nn

from ibscan.core.atomic import write_whole
from ibscan.errors import UsageError
from ibscan.networks.resolve import parse_spec

__all__ = ["save"]

MODULE_NAMES: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.ELU: "elu",
    nn.Identity: "identity",
    nn.Softmax: "softmax",
}


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    epoch: float | None = None,
    step: int | None = None,
    value: float | None = None,
    spec: str | None = None,
    noise: float | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write the model's state as `epoch-00012.safetensors` (or `step-...`), with what ibscan needs to read it.

    A sweep's value is part of the name: `epoch-00012-value=0.1.safetensors`. The same place of the same network is
    written again, as when training is run again; a file of another one is never replaced.

    Args:
        folder: Where the run's checkpoints are; made if absent.
        model: The network; its state dict is stored as it is, on the CPU.
        epoch: Epochs of training so far; 0 before the first.
        step: Optimiser steps so far. One of epoch, step and value is needed.
        value: Coordinate of a sweep (say the weight of a KL term), where the series is one.
        spec: What `--model` takes: `mlp:ACT`, `mlp:ACT:OUT`, or code such as `net.py:build`, which is run with
            `--trust`; may be left out for an `nn.Sequential` of Linear layers and known activations with default
            parameters.
        noise: Standard deviation of the channel noise the network was trained with, activation units; None for none.
        metrics: Numbers to keep beside the weights, such as losses.

    Returns:
        The path of the file.

    Raises:
        UsageError: No epoch, step or value, an impossible number, a spec that cannot be read or inferred, or a file
            of that name that holds another step, value, noise or network.

    Example:
        >>> import tempfile, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save(run, net, epoch=12, metrics={"loss": 0.3}).name
        'epoch-00012.safetensors'
    """
    if epoch is None and step is None and value is None:
        raise UsageError(
            "ibscan.save: no epoch, step or value was given, and a checkpoint without has no place in a run."
        )
    spec = inferred_spec(model) if spec is None else spec
    if spec.startswith("mlp:"):
        parse_spec(spec)
    numbers = {"epoch": epoch, "step": step, "value": value, "noise": noise}
    metadata = {"ibscan.model": spec} | _numbers(numbers, metrics or {})
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{_stem(epoch, step, value)}.safetensors"
    _refuse_another(path, metadata, tensors)
    write_whole(path, _ordered(serialise(tensors, metadata=metadata)))
    return path


def _numbers(numbers: Mapping[str, float | None], metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the metadata of the numbers that are given, and of the metrics that are finite."""
    given = {name: number for name, number in numbers.items() if number is not None}
    for name, metric in metrics.items():
        # A run that diverges must not lose its checkpoint to its own loss.
        if isinstance(metric, Real) and not math.isfinite(metric):
            warnings.warn(f"ibscan.save: metric {name} is {metric} and is left out of the checkpoint.", stacklevel=3)
        elif metric is not None:
            given[f"metric.{name}"] = metric
    return {f"ibscan.{name}": _number(name, number) for name, number in given.items()}


def inferred_spec(model: nn.Module) -> str:
    """Return the spec `mlp:ACT:OUT` of an `nn.Sequential` of Linear layers and one kind of known activation.

    Raises:
        UsageError: The model is anything else; the sentence says which module did not fit.
    """
    names: list[str] = []
    for position, module in enumerate(model.children() if isinstance(model, nn.Sequential) else [model]):
        name = "linear" if isinstance(module, nn.Linear) else MODULE_NAMES.get(type(module), "")
        # An activation with other parameters, such as nn.LeakyReLU(0.2), has another repr.
        plain = isinstance(module, nn.Linear | nn.ReLU) or not name or repr(module) == repr(type(module)())
        plain |= isinstance(module, nn.Softmax) and module.dim in (-1, 1)
        if not name or not plain:
            # Only the class of a nested network, whose repr would fill the screen.
            kind = type(module).__name__ if any(module.children()) else repr(module)
            raise UsageError(
                f"ibscan.save: module {position} is {kind}, and only an nn.Sequential of Linear layers and known "
                "activations with default parameters describes itself; give spec='mlp:ACT', 'mlp:ACT:OUT', or the code "
                "that makes the model, as in spec='net.py:build'."
            )
        names.append(name)
    last = len(names) - 1 - names[::-1].index("linear") if "linear" in names else -1
    hidden, output = names[:last], names[last + 1 :]
    kinds = set(hidden) - {"linear"}
    # Exactly one activation between two Linear layers.
    alternates = all((a == "linear") != (b == "linear") for a, b in zip(hidden, names[1 : last + 1], strict=False))
    if last < 0 or len(kinds) > 1 or len(output) > 1 or not alternates or names[0] != "linear":
        raise UsageError(
            f"ibscan.save: the modules in order are {', '.join(names)}, which no mlp:ACT:OUT describes; "
            "a plain chain has one kind of activation between its Linear layers."
        )
    activation = kinds.pop() if kinds else "identity"
    return f"mlp:{activation}:{output[0]}" if output else f"mlp:{activation}"


def _number(name: str, number: float) -> str:
    try:
        finite = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite or (name in ("epoch", "step", "noise") and number < 0):
        raise UsageError(f"ibscan.save: {name} is {number!r}; expected a finite number (epoch, step, noise: >= 0).")
    if name == "step" and not float(number).is_integer():
        raise UsageError(f"ibscan.save: step is {number!r}; expected a whole number.")
    return repr(int(number)) if float(number).is_integer() else repr(float(number))


def _stem(epoch: float | None, step: int | None, value: float | None) -> str:
    place = f"epoch-{_label(epoch)}" if epoch is not None else f"step-{_label(step)}" if step is not None else ""
    # Members of a sweep have the same epoch.
    own = "" if value is None else f"value={repr(float(value) + 0.0).removesuffix('.0')}"
    return "-".join(part for part in (place, own) if part)


def _refuse_another(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse to replace a file unless it is an earlier save of the same network at the same epoch or step."""
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            there = file.metadata() or {}
            # Slices give shapes without reading the tensors.
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        # A file of this name that is no checkpoint was left by a crash.
        return
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in ("epoch", "step", "value", "noise", "model"):
        before, now = there.get(f"ibscan.{name}", ""), metadata.get(f"ibscan.{name}", "")
        # The same code may be named in several ways, but another activation is another network.
        coded = name == "model" and not (before.startswith("mlp:") and now.startswith("mlp:"))
        if before != now and not coded:
            raise UsageError(_another(path, f"{name} {before or 'unknown'}", f"{name} {now or 'unknown'}"))
    if shapes != wanted:
        odd = next(name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name))
        raise UsageError(_another(path, f"{odd!r} {shapes.get(odd, 'absent')}", f"{wanted.get(odd, 'absent')}"))


def _another(path: Path, before: str, now: str) -> str:
    return (
        f"ibscan.save: {path} is there already and holds another checkpoint ({before}; to be saved: {now}); it was not "
        "replaced. Save to another folder, move the old file away, or tell the two apart: by value, by epoch (4.5), or "
        "by step with no epoch beside it."
    )


def _label(number: float) -> str:
    # Every digit of a fraction: two epochs must not share a name.
    return f"{int(number):05d}" + ("" if float(number).is_integer() else f"{Decimal(repr(number % 1)):f}"[1:])


def _ordered(blob: bytes) -> bytes:
    # The library writes metadata in random order; sorted, equal states give equal hashes.
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + blob[8 + length :]
