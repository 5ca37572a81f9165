"""Read and check `config.json` beside a checkpoint's weights, which describes a model of transformers.

The file is not trusted. Its numbers and names of the library's own classes are used; entries that would run other code,
fetch something or exhaust memory are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ibscan.core.records import Checkpoint
from ibscan.errors import InputError
from ibscan.inputs.files import exists, small_text

__all__ = ["check_config", "config_beside", "stated_class", "used_entries"]

DEEPEST = 32
# Counts in a config become lists (of layers, of labels) before any weight is compared. Positions and tokens may be
# millions, and the base of rotary embeddings more: they make only tensors, whose size is limited elsewhere.
LARGEST_COUNT, LARGEST_POSITION = 1 << 17, 1 << 30
POSITIONS = ("position", "length", "seq", "window", "theta", "context", "ctx", "token", "vocab", "_id")
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
# Entries on how and where to compute (such as kernels on a hub), which ibscan sets itself.
IGNORED = {
    "dtype", "torch_dtype", "transformers_version", "architectures", "attn_implementation", "experts_implementation",
    "kernel_config", "use_kernels", "name_or_path", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "torchscript", "gradient_checkpointing", "trust_remote_code",
}  # fmt: skip
SPECIAL_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def config_beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the entries of `config.json` beside a checkpoint's weights, or None without a `model_type` in it.

    Raises:
        InputError: It cannot be read, is larger than 1 MiB or nested absurdly deep, or no JSON.
    """
    path = checkpoint.path.parent / "config.json"
    if not exists(str(path)):
        return None
    text = small_text(path)
    try:
        found = json.loads(text)
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
    """Return the model class that a user typed (`hf` or `hf:CLASS`), or that the `config.json` of a series states.

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
    wanted = used_entries(first)
    for checkpoint in beside.values():
        found = config_beside(checkpoint)
        other = wanted if found is None else used_entries(found)
        # As text, since NaN differs from itself.
        here, there = ({key: json.dumps(one[key], sort_keys=True) for key in one} for one in (other, wanted))
        key = next((one for one in {**there, **here} if there.get(one) != here.get(one)), None)
        if key is not None:
            raise InputError(
                f"{checkpoint.path.parent / 'config.json'}: {key!r:.80} is {here.get(key, 'absent'):.80}, but "
                f"{where} has {there.get(key, 'absent'):.80}. A series holds one architecture; scan the two separately."
            )
    names = [typed.partition(":")[2]] if ":" in typed else first.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not NAME.fullmatch(str(names[0])):
        source = f"--model {typed}" if ":" in typed else f"{where}: architectures is {names!r:.80}"
        raise InputError(f"{source}: expected the name of one class of the library; say which with --model hf:CLASS.")
    return str(names[0])


def used_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that describe the network, at every depth."""
    return {key: _plain(value) for key, value in config.items() if key not in IGNORED and not key.startswith("_")}


def _plain(value: Any) -> Any:  # noqa: ANN401 - decoded JSON
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    # JSON has no infinity; the library writes one so.
    return SPECIAL_FLOATS.get(value["__float__"], value) if list(value) == ["__float__"] else used_entries(value)


def check_config(config: Any, where: str, key: str = "") -> None:  # noqa: ANN401 - decoded JSON
    """Refuse entries that would run other code, fetch something, or exhaust memory; `key` names a single entry.

    Raises:
        InputError: There is such an entry at any depth.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name in REFUSED and value:
                raise InputError(f"{where}: its config {REFUSED[name]} ({name}: {value!r:.80}).")
            if name == "model_type" and str(value).startswith("timm"):
                raise InputError(f"{where}: its config {TIMM}.")
            check_config(value, where, str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            check_config(value, where, key)
    most = LARGEST_POSITION if any(word in key for word in POSITIONS) else LARGEST_COUNT
    if isinstance(config, int) and abs(config) > most:
        raise InputError(f"{where}: its config has {key!r:.80}: {str(config)[:20]}, and at most {most} was expected.")
