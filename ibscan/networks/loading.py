"""Build a model by the user's code, and load a checkpoint's weights into it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ibscan.core.boundary import user_code
from ibscan.core.records import WRAPPERS, is_counter
from ibscan.core.text import near_names
from ibscan.errors import CheckpointError, InputError

__all__ = ["LastLayerDiffers", "built", "loaded", "unwrapped"]

# Wrappers of torch.compile and torch.optim.swa_utils, by name: their modules are slow to import.
UNWRAPPED = ("OptimizedModule", "AveragedModel")


def built(build: Callable[[], Any]) -> nn.Module:
    """Return the model a callable makes, unwrapped from torch.compile, DataParallel and AveragedModel, in eval mode.

    Args:
        build: Makes the model; it is run with a fixed seed.

    Raises:
        InputError: It returns no nn.Module.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = unwrapped(build())
    if not isinstance(model, nn.Module):
        raise InputError(f"the model's callable returned a {type(model).__name__}; expected an nn.Module.")
    with user_code("the model"):
        return model.eval().requires_grad_(False)


def unwrapped(model: Any) -> Any:  # noqa: ANN401 - as the user's code made it
    """Return the model inside of torch.compile, DataParallel and AveragedModel; anything else as it is."""
    while isinstance(model, nn.Module) and (type(model).__name__ in UNWRAPPED or _parallel(model)):
        model = model._modules["_orig_mod" if "_orig_mod" in model._modules else "module"]
    return model


def _parallel(model: nn.Module) -> bool:
    return isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)


class LastLayerDiffers(InputError):  # noqa: N818 - says what was found
    """All of a checkpoint fits a model but the number of units of one layer, `units` in the checkpoint."""

    def __init__(self, sentence: str, units: int) -> None:
        super().__init__(sentence)
        self.units = units


def loaded(
    build: Callable[[], Any],
    state: Mapping[str, torch.Tensor],
    stored: Mapping[str, str],
    name: str,
    *,
    saved: Mapping[str, str] | None = None,
) -> nn.Module:
    """Return the model with a checkpoint's weights, all of them and no others.

    Names are matched as in the file, then without wrapper prefixes in the file, then without them in the model too; a
    prefix that all names share (`model.` of a LightningModule) is tried without as well. All names must match. Names
    that the model has for one tensor (tied embeddings) are interchangeable.

    Args:
        build: Makes the model.
        state: Tensors by state-dict name, wrapper prefixes stripped.
        stored: State-dict names to names in the file, for models with a real submodule called `module`.
        name: The checkpoint, for a message.
        saved: Other names it may be saved under, to the model's own.

    Raises:
        InputError: Names or shapes do not fit.
        LastLayerDiffers: The shapes of all but one layer fit.
        CheckpointError: Tensors differ that the model ties to one.
    """
    model = built(build)
    with user_code("the model"):
        own = model.state_dict(keep_vars=True)
    # Lazy modules have no shapes yet.
    wanted = {key: tuple(tensor.shape) for key, tensor in own.items() if hasattr(tensor, "shape")}
    tied = _tied(own)
    state = {key: tensor for key, tensor in state.items() if key in wanted or not is_counter(key, tensor.shape)}
    original = {stored.get(key, key): tensor for key, tensor in state.items()}
    renamed = {(saved or {}).get(key, key): tensor for key, tensor in state.items()}
    candidates = [one for one in (original, renamed, state) if len(one) == len(state)]
    fitting = next((found for one in candidates if (found := _fitting(one, wanted, tied, name))), state)
    shapes = {key: tuple(tensor.shape) for key, tensor in fitting.items()}
    head = _other_head(shapes, wanted)
    if head:
        units = shapes[head][0]
        raise LastLayerDiffers(
            f"{name}: only the last layer differs: {head!r} has {units} units where the model has {wanted[head][0]}.",
            units,
        )
    if shapes != wanted:
        raise InputError(_misfit(name, shapes, wanted) + _part(original, wanted))
    with user_code("the model"):
        # Models are built in single precision, which would round weights saved in double.
        if any(tensor.dtype is torch.float64 for tensor in fitting.values()):
            model.double()
        model.load_state_dict(dict(fitting), strict=True)
    return model


def _fitting(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]], tied: Sequence[Sequence[str]], name: str
) -> Mapping[str, torch.Tensor] | None:
    """Return the tensors under the model's names for them, None if the names do not match."""
    bare = {_bare(key): key for key in wanted}
    while state:
        stripped = {_bare(key): tensor for key, tensor in state.items()}
        whole = len(stripped) == len(state) and len(bare) == len(wanted)
        for named in (state, {bare.get(key, key): tensor for key, tensor in stripped.items()} if whole else {}):
            found = _completed(named, tied, name)
            if set(found) == set(wanted):
                return found
        first = {key.partition(".")[0] for key in state}
        if len(first) > 1 or first & set(state):
            return None
        state = {key.partition(".")[2]: tensor for key, tensor in state.items()}
    return None


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _tied(own: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the groups of names that the model has for one tensor."""
    names: dict[int, list[str]] = {}
    for key, tensor in own.items():
        names.setdefault(id(tensor), []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _completed(
    state: Mapping[str, torch.Tensor], tied: Sequence[Sequence[str]], name: str
) -> Mapping[str, torch.Tensor]:
    """Return the tensors with all names of tied ones: safetensors files hold one name each."""
    found = dict(state)
    for keys in tied:
        present = [key for key in keys if key in state]
        for key in present[1:]:
            if not torch.equal(state[key], state[present[0]]):
                raise CheckpointError(
                    f"{name}: {present[0]!r} and {key!r} differ, but the model has one tensor for the two. Give the "
                    "model this checkpoint was made with, which does not tie them."
                )
        found.update({key: state[present[0]] for key in keys if present})
    return found


def _misfit(name: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key] != wanted[key]]
    parts = []
    if missing:
        near = near_names(missing[0], extra)
        hint = f" (nearest in the file: {near[0]!r} {found[near[0]]})" if near else ""
        parts.append(f"{len(missing)} missing, such as {missing[0]!r} {wanted[missing[0]]}{hint}")
    if extra:
        parts.append(f"{len(extra)} unexpected, such as {extra[0]!r} {found[extra[0]]}")
    if other:
        key = other[0]
        parts.append(f"{len(other)} of another shape, such as {key!r} {found[key]} where the model has {wanted[key]}")
    return (
        f"{name}: its tensors are not those of the model: of {len(wanted)}, {'; '.join(parts)}. "
        "Give the model and --model-arg this checkpoint was made with."
    )


def _other_head(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Return the weight of the only layer that differs, and in its number of units alone; empty where there is none."""
    if set(found) != set(wanted):
        return ""
    other = [key for key in wanted if found[key] != wanted[key]]
    owners = {key.rpartition(".")[0] for key in other}
    whole = [key for key in wanted if key.rpartition(".")[0] in owners]
    alike = all(found[key][1:] == wanted[key][1:] and len(found[key]) == len(wanted[key]) > 0 for key in other)
    units = {found[key][:1] for key in other}
    return other[0] if alike and len(owners) == len(units) == 1 and other == whole else ""


def _part(stored: Collection[str], wanted: Collection[str]) -> str:
    """Return a sentence that names the prefix under which the file has the model's names, or the empty string."""
    first = next(iter(wanted), "")
    ends = [key.removesuffix(f".{first}") for key in stored if key.endswith(f".{first}")]
    prefix = next((end for end in ends if all(f"{end}.{key}" in stored for key in wanted)), None)
    return "" if prefix is None else f" The names under {prefix!r} are: --state-key {prefix} takes those alone."
