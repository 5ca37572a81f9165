"""Build models of the transformers library as a config describes them.

The library is imported where it is needed: it comes with the extra `hf`. Only its own code runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ibscan.core.records import TensorInfo
from ibscan.errors import InputError
from ibscan.inputs.code.hf_config import check_config, used_entries
from ibscan.inputs.code.load import Maker, code_hash, importing

__all__ = ["library_model"]

# Most numbers in buffers (causal masks, rotary angles): 1 GiB in float32.
LARGEST_BUFFERS = 1 << 28
# While it is built, a network may hold tied parameters twice, and a few that it drops later.
SPARE_PARAMETERS, SPARE_NUMBERS = 1000, 1 << 22


@importing(None)
def library_model(config: Mapping[str, Any], name: str, tensors: Mapping[str, TensorInfo], where: str) -> Maker:
    """Return the Maker of the model of a library class `name` that a config describes. Nothing is fetched.

    A model of token ids takes whole-number ids, or embeddings, by which there are derivatives. A network much larger
    than the checkpoint's `tensors` is refused before memory is allocated.

    Raises:
        InputError: The library is not installed or has no such class, or the config asks for something refused.
    """
    check_config(config, where)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"{where}: {name} is a model of the transformers library, which cannot be imported ({error}); install it "
            "with pip install 'ibscan[hf]'."
        ) from None
    found = getattr(transformers, name, None)
    config_type = getattr(found, "config_class", None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel) or config_type is None:
        raise InputError(
            f"{where}: {name!r} is no model class of transformers {transformers.__version__}; take the class it was "
            "saved from, as --model hf:CLASS, or another version of the library."
        )
    model_class = _with_main_input(found, where)
    used = used_entries(config)

    @importing(None)
    def build() -> nn.Module:
        with _offline():
            configuration = config_type.from_dict(used_entries(config))
            check_config(configuration.to_dict(), where)
            configuration.use_cache = False
            # Only eager attention has every derivative that is needed.
            model: nn.Module = model_class._from_config(configuration, attn_implementation="eager")
            return _with_linears(model)

    with _size_limit(tensors, where), torch.device("meta"):
        shapes = build()
    buffers = sum(buffer.numel() for buffer in shapes.buffers())
    if buffers > LARGEST_BUFFERS:
        raise InputError(f"{where}: its config asks for buffers of {buffers} numbers beside its weights; refused.")
    file = code_hash(f"{found.__module__}:{name}")
    code = hashlib.sha256(f"{json.dumps(used, sort_keys=True, default=str)} {file}".encode()).hexdigest()
    return Maker(build, code, _saved_names(shapes))


def _saved_names(model: nn.Module) -> dict[str, str]:
    """Return a model's own tensor names by the names the library saves them under, where the two differ.

    Version 5 renamed modules, but still writes files as version 4 did. Tensors that it joins or splits are left out.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {}
    keys = list(model.state_dict())
    try:
        # Stand-in tensors that hold their own index.
        marks = revert_weight_conversion(model, {key: torch.tensor([k]) for k, key in enumerate(keys)})
        named = {saved: keys[int(mark[0])] for saved, mark in marks.items()}
    except (RuntimeError, IndexError, ValueError, TypeError):
        return {}
    return {saved: own for saved, own in named.items() if saved != own}


def _with_main_input(found: type[nn.Module], where: str) -> Any:  # noqa: ANN401 - a class of an untyped library
    """Return a subclass whose forward takes the main input first (ids or embeddings), and masks by name."""
    own = str(getattr(found, "main_input_name", "input_ids"))
    arguments = inspect.signature(found.forward).parameters
    main = "inputs_embeds" if own == "input_ids" else own
    if main not in arguments:
        raise InputError(
            f"{where}: {found.__name__} has no argument {main}, and what takes no embeddings is not measured, as there "
            "is no derivative by an id. Measure a part of it that takes embeddings, as --model path.py:callable."
        )

    def forward(self: Any, rows: torch.Tensor, **named: torch.Tensor) -> Any:  # noqa: ANN401 - as the library has it
        width = self.get_input_embeddings().weight.shape[-1] if main == "inputs_embeds" else None
        if width is not None and own in arguments and rows.ndim == 2 and bool((rows == rows.round()).all()):
            return found.forward(self, **{own: rows.long()})
        if width is not None and (rows.ndim != 3 or rows.shape[-1] != width):
            raise InputError(
                f"the probe's rows have shape {tuple(rows.shape[1:])}, but {found.__name__} is fed the ids of its "
                f"tokens, whole numbers, or, as local rank asks for, their embeddings, (tokens, {width}): there is no "
                "derivative by an id."
            )
        with _Masked(named.get("attention_mask")):
            return found.forward(self, **{main: rows}, **named)

    # Other inputs that are allowed: masks and ids, not the main input again.
    others = [one for name, one in arguments.items() if name.endswith(("mask", "ids")) and name != "input_ids"]
    start = list(inspect.signature(forward).parameters.values())[:2]
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*start, *(one.replace(kind=one.KEYWORD_ONLY) for one in others if one.name not in ("self", main))]
    )
    return type(found.__name__, (found,), {"forward": forward, "__module__": found.__module__})


class _Masked(TorchFunctionMode):
    """A mode that keeps a mask of ones in use: the library would drop it, and so treat some rows differently."""

    def __init__(self, mask: torch.Tensor | None) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - as torch has it
        if self.mask is not None and func is torch.Tensor.all and len(args) == 1 and args[0].shape == self.mask.shape:
            return torch.zeros((), dtype=torch.bool, device=self.mask.device)
        return func(*args, **(kwargs or {}))


class Conv1D(nn.Linear):
    """A Linear that stores its weight transposed, as the Conv1D of GPT-2, which is no Linear, does."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].mT

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].mT
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _with_linears(model: nn.Module) -> nn.Module:
    """Replace every Conv1D by the equal Linear, which ibscan measures as a layer."""
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
            model.set_submodule(path, Conv1D(*module.weight.shape))
    return model


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the library from contacting its hub, and from logging below errors."""
    constants = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", False)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logger.setLevel(level)
        if constants is not None:
            constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


@contextlib.contextmanager
def _size_limit(tensors: Mapping[str, TensorInfo], where: str) -> Iterator[None]:
    """Raise InputError as soon as a network under construction is larger than the checkpoint's tensors."""
    stored = sum(math.prod(info.shape) for info in tensors.values())
    parameters = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal parameters, numbers
        del module, name
        parameters, numbers = parameters + 1, numbers + parameter.numel()
        if parameters > 2 * len(tensors) + SPARE_PARAMETERS or numbers > 2 * stored + SPARE_NUMBERS:
            raise InputError(
                f"{where}: its config describes a network larger than the weights beside it ({len(tensors)} "
                f"tensors, {stored} numbers); check that the two belong together."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
