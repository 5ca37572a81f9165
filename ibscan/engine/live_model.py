"""Make models of what Python handed over: a network, or a class or function that makes one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.live import Live, source_hash
from ibscan.inputs.code.load import Maker, argument_fault, called
from ibscan.networks.loading import built, unwrapped

__all__ = ["live_maker"]


def live_maker(given: Live, arguments: Mapping[str, Any], where: str) -> Maker:
    """Return the Maker of a model that Python handed over. It makes copies: the network itself stays as it is.

    A class or function at the top of a file has the hash that it has when it is named by path. Anything else was made
    with arguments that nobody knows, so its hash is of the source and of the model: its modules, their settings, and
    the tensors that checkpoints do not hold.

    Raises:
        UsageError: A network was given arguments, or a class or function others than it takes.
        InputError: It cannot be made or copied.
    """
    found = given.found
    if isinstance(found, nn.Module):
        if arguments:
            raise UsageError(
                f"{where}: is a network that is made already, and --model-arg is for a class or function "
                f"({', '.join(arguments)}); leave one of the two out."
            )
        return Maker(partial(_copied, lambda: found, where), _identity(given, found, where))
    if (fault := argument_fault(found, arguments)) is not None:
        raise UsageError(f"{where}: {fault} Give them with --model-arg, or hand over a network that is made.")
    make = partial(called, found, arguments, where)
    # A function may return the same network every time, which is then the user's.
    build = make if isinstance(found, type) else partial(_copied, make, where)
    return Maker(build, source_hash(found) if given.defined else _identity(given, built(build), where))


def _copied(make: Callable[[], Any], where: str) -> Any:  # noqa: ANN401 - as the user's code made it
    made = unwrapped(make())
    try:
        with user_code(f"{where}:", "copying it raised"):
            return copy.deepcopy(made)
    except InputError as error:
        raise InputError(f"{error} Its class, or a function that makes it anew, needs no copy.") from error


def _identity(given: Live, model: nn.Module, where: str) -> str:
    """Return the SHA-256 of the user's source and of all of a model that its checkpoints do not hold."""
    digest = hashlib.sha256()
    # Layers of torch are known by their names and settings, whatever its version.
    classes = [kind for kind in map(type, model.modules()) if kind.__module__.partition(".")[0] != "torch"]
    made_by = [] if isinstance(given.found, nn.Module) else [given.found]
    for source in (*made_by, *dict.fromkeys(classes)):
        digest.update(source_hash(source).encode())
    with user_code(f"{where}:", "describing it raised"):
        for fact in _facts(model):
            digest.update(f"{fact}\0".encode())
    return digest.hexdigest()


def _facts(model: nn.Module) -> Iterator[str]:
    """Yield what a model is made of: its modules, their settings, and tensors that are in no state dict."""
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__} {module.extra_repr()}"
        kept = {key: module._buffers[key] for key in sorted(module._non_persistent_buffers_set)}
        plain = {key: value for key, value in sorted(vars(module).items()) if not key.startswith("_")}
        for key, value in {**kept, **plain}.items():
            if key != "training":
                yield f"{name}.{key} {_fact(value)}"


def _fact(value: Any) -> str:  # noqa: ANN401 - any attribute
    """Describe a setting by what does not differ from one process to the next."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()}"
    if isinstance(value, nn.Module):  # in a plain list, where neither checkpoints nor state dicts have it
        held = [f"{key} {_fact(tensor)}" for key, tensor in value.state_dict().items()]
        return "; ".join([*_facts(value), *held])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_fact, value))}]"
    if isinstance(value, Mapping):
        return f"[{', '.join(f'{key}: {_fact(one)}' for key, one in value.items())}]"
    # A function, such as an activation, by its name; of other objects only the kind is sure to stay.
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__)
