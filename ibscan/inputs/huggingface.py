"""Models of the transformers library, as `config.json` beside a checkpoint's weights describes them.

The file comes from whoever made the folder. Of it numbers, and names of the library's own classes, are used; what would
run other code, fetch something or take the machine's memory is refused. The library is imported where it is needed: it
comes with the extra `hf`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ibscan.errors import CheckpointError, InputError
from ibscan.inputs.code import Maker, code_hash, importing
from ibscan.inputs.files import exists, regular_stat, unreadable
from ibscan.types import Checkpoint, TensorInfo

__all__ = ["config_beside", "library_model", "stated_class"]

MAX_BYTES = 1 << 20
DEEPEST = 32
# Counts in a config become lists (of layers, of labels) before any weight is compared. Positions and tokens may be
# millions, and the base of rotary embeddings is more still; of these nothing is made but tensors, which are counted.
LARGEST_COUNT, LARGEST_POSITION = 1 << 17, 1 << 30
POSITIONS = ("position", "length", "seq", "window", "theta", "context", "ctx", "token", "vocab", "_id")
# What the library keeps beside the weights (causal masks, angles): 1 GiB in float32.
LARGEST_BUFFERS = 1 << 28
# A network under construction may hold a parameter twice before it ties the two, and a few that are thrown away.
SPARE_PARAMETERS, SPARE_NUMBERS = 1000, 1 << 22
NAME = re.compile(r"[A-Z][A-Za-z0-9_]*")
REFUSED = {
    "auto_map": "names code of its own, and code from files is not run; give that code as --model path.py:callable",
    "quantization_config": "says that the weights are quantised; save a float copy of them",
    "compression_config": "says that the weights are compressed; save a float copy of them",
    "backbone": "names a network to be fetched, and nothing is; give the whole model as --model path.py:callable",
    "use_timm_backbone": "asks for a network of timm; give the whole model as --model path.py:callable",
    "use_pretrained_backbone": "asks for weights to be fetched, and nothing is; they are those of the checkpoint",
}
TIMM = "describes a model of timm; give it as --model timm:create_model --model-arg model_name=NAME"
# What says how and where to compute (names of kernels on a hub among it), not what: all is set here.
IGNORED = {
    "dtype", "torch_dtype", "transformers_version", "architectures", "attn_implementation", "experts_implementation",
    "kernel_config", "use_kernels", "name_or_path", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "torchscript", "gradient_checkpointing", "trust_remote_code",
}  # fmt: skip
SPECIAL_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def config_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what `config.json` beside a checkpoint's weights says.

    Args:
        checkpoint: Of any format.

    Returns:
        Its entries, or None where there is no such file, or one of something else: it names no `model_type`.

    Raises:
        InputError: It cannot be read, is larger than 1 MiB or nested absurdly deep, or no JSON.
    """
    path = checkpoint.path.parent / "config.json"
    if not exists(str(path)):
        return None
    try:
        if (size := regular_stat(path, str(path)).st_size) > MAX_BYTES:
            raise InputError(f"{path}: has {size} bytes, and at most {MAX_BYTES} were expected; is it another file?")
        found = json.loads(path.read_bytes())
    except CheckpointError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(unreadable(path, str(path), error)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no readable JSON ({error}); mend it, or name the model with --model.") from None
    if not isinstance(found, dict):
        return None
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in level if isinstance(part, dict | list)]
    if level:
        raise InputError(f"{path}: is nested more than {DEEPEST} deep, as no config is; mend it, or move it away.")
    return found if isinstance(found.get("model_type"), str) else None


def stated_class(typed: str, checkpoints: Sequence[Checkpoint]) -> str:
    """Return the name of the class that a series' `config.json` states, or the one typed.

    Args:
        typed: `hf`, or `hf:CLASS`.
        checkpoints: The series; where each has a config of its own, all must say the same.

    Raises:
        InputError: There is no config, several that differ, or none or several classes in it.
    """
    beside = {checkpoint.path.parent: checkpoint for checkpoint in reversed(checkpoints)}
    first = config_beside(checkpoints[0])
    where = checkpoints[0].path.parent / "config.json"
    if first is None:
        raise InputError(
            f"{checkpoints[0].name}: there is no config.json of a transformers model beside it, of which --model "
            f"{typed} would make one; copy it there, or give the model as --model module:callable."
        )
    wanted = _used(first)
    for checkpoint in beside.values():
        found = config_beside(checkpoint)
        other = wanted if found is None else _used(found)
        # As text: a NaN equals no other.
        says, said = ({key: json.dumps(one[key], sort_keys=True) for key in one} for one in (other, wanted))
        odd = next((one for one in {**said, **says} if said.get(one) != says.get(one)), None)
        if odd is not None:
            raise InputError(
                f"{checkpoint.path.parent / 'config.json'}: {odd!r:.80} is {says.get(odd, 'absent'):.80}, but {where} "
                f"has {said.get(odd, 'absent'):.80}. A series holds one architecture; scan the two separately."
            )
    names = [typed.partition(":")[2]] if ":" in typed else first.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not NAME.fullmatch(str(names[0])):
        said_so = f"--model {typed}" if ":" in typed else f"{where}: architectures is {names!r:.80}"
        raise InputError(f"{said_so}: expected the name of one class of the library; say which with --model hf:CLASS.")
    return str(names[0])


@importing(None)
def library_model(config: Mapping[str, Any], name: str, tensors: Mapping[str, TensorInfo], where: str) -> Maker:
    """Return the model that a config describes.

    It is fed floats: a model of token ids their embeddings, as there is no derivative by an id. Nothing is fetched.

    Args:
        config: As `config_beside` returned it, entries perhaps replaced.
        name: Of a model class of the library.
        tensors: The checkpoint's: a network much larger than they are is refused before there is memory for it.
        where: What named it, for a message.

    Raises:
        InputError: The library is not installed or has no such class, or the config asks for something refused.
    """
    _vet(config, where)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"{where}: {name} is a model of the transformers library, which cannot be imported ({error}); install it "
            "with pip install 'ibscan[hf]'."
        ) from None
    found = getattr(transformers, name, None)
    described = getattr(found, "config_class", None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel) or described is None:
        raise InputError(
            f"{where}: {name!r} is no model class of transformers {transformers.__version__}; take the class it was "
            "saved from, as --model hf:CLASS, or another version of the library."
        )
    fed = _fed(found, where)
    used = _used(config)

    @importing(None)
    def build() -> nn.Module:
        with _alone():
            made = described.from_dict(_used(config))
            _vet(made.to_dict(), where)
            made.use_cache = False
            # The one kind of attention that has every derivative asked for here; it is not what is measured.
            model: nn.Module = fed._from_config(made, attn_implementation="eager")
            return _with_linears(model)

    with _bounded(tensors, where), torch.device("meta"):
        shapes = build()
    buffers = sum(buffer.numel() for buffer in shapes.buffers())
    if buffers > LARGEST_BUFFERS:
        raise InputError(f"{where}: its config asks for buffers of {buffers} numbers beside its weights; refused.")
    file = code_hash(f"{found.__module__}:{name}")
    code = hashlib.sha256(f"{json.dumps(used, sort_keys=True)} {file}".encode()).hexdigest()
    return Maker(build, code, _saved_names(shapes))


def _saved_names(model: nn.Module) -> dict[str, str]:
    """Return a model's own names by those under which the library saves it, where they differ.

    Version 5 renamed modules and still writes files as version 4 did. What it joins or splits besides is not followed.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {}
    keys = list(model.state_dict())
    try:
        # In place of each tensor a number, by which it is known again.
        marks = revert_weight_conversion(model, {key: torch.tensor([k]) for k, key in enumerate(keys)})
    except (RuntimeError, IndexError, ValueError, TypeError):
        return {}
    named = {saved: keys[int(mark[0])] for saved, mark in marks.items()}
    return {saved: own for saved, own in named.items() if saved != own}


def _used(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that say what the network is, at every depth."""
    return {key: _plain(value) for key, value in config.items() if key not in IGNORED and not key.startswith("_")}


def _plain(value: Any) -> Any:  # noqa: ANN401 - decoded JSON
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    # JSON has no infinity; the library writes one so.
    return SPECIAL_FLOATS.get(value["__float__"], value) if list(value) == ["__float__"] else _used(value)


def _vet(config: Any, where: str, key: str = "") -> None:  # noqa: ANN401 - decoded JSON
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name in REFUSED and value:
                raise InputError(f"{where}: its config {REFUSED[name]} ({name}: {value!r:.80}).")
            if name == "model_type" and str(value).startswith("timm"):
                raise InputError(f"{where}: its config {TIMM}.")
            _vet(value, where, str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            _vet(value, where, key)
    most = LARGEST_POSITION if any(word in key for word in POSITIONS) else LARGEST_COUNT
    if isinstance(config, int) and abs(config) > most:
        raise InputError(f"{where}: its config has {key!r:.80}: {str(config)[:20]}, and at most {most} was expected.")


def _fed(found: type[nn.Module], where: str) -> Any:  # noqa: ANN401 - a class of an untyped library
    """Return the class with a forward of one argument: what it is fed, embeddings where its own is token ids."""
    own = str(getattr(found, "main_input_name", "input_ids"))
    taken = inspect.signature(found.forward).parameters
    main = "inputs_embeds" if own == "input_ids" else own
    if main not in taken:
        raise InputError(
            f"{where}: {found.__name__} has no argument {main}. Of token ids alone nothing can be measured, as there "
            "is no derivative by an id; measure a part of it that takes embeddings, as --model path.py:callable."
        )

    def forward(self: Any, rows: torch.Tensor) -> Any:  # noqa: ANN401 - as the library has it
        width = self.get_input_embeddings().weight.shape[-1] if main == "inputs_embeds" else None
        if width is not None and (rows.ndim != 3 or rows.shape[-1] != width):
            raise InputError(
                f"the probe's rows have shape {tuple(rows.shape[1:])}, but {found.__name__} is fed the embeddings of "
                f"its tokens, (tokens, {width}): as its embedding gives them, for there is no derivative by an id."
            )
        return found.forward(self, **{main: rows})

    return type(found.__name__, (found,), {"forward": forward, "__module__": found.__module__})


class Conv1D(nn.Linear):
    """A Linear whose weight is stored transposed, as GPT-2 does, in a class of its own that is no Linear."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].mT

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].mT
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _with_linears(model: nn.Module) -> nn.Module:
    """Put a Linear, which is a layer here, in place of every Conv1D, which computes the same."""
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
            model.set_submodule(path, Conv1D(*module.weight.shape))
    return model


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep the library from asking its hub for anything (what would is refused before), and from chatter."""
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
def _bounded(tensors: Mapping[str, TensorInfo], where: str) -> Iterator[None]:
    """Stop a network under construction once it is larger than the weights for it."""
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
