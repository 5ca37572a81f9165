"""Recognise checkpoints of adapters (such as LoRA): small tensors to add to the weights of a base network."""

from __future__ import annotations

import json
import re
from typing import Any

from ibscan.core.records import Checkpoint
from ibscan.errors import InputError
from ibscan.inputs.files import small_text

__all__ = ["adapters_alone", "adapters_sentence"]

CONFIG = "adapter_config.json"
# Part of a tensor name, as PEFT, loralib, kohya, LyCORIS and diffusers name adapters.
ADAPTER = re.compile(
    r"(?:^|[._])(?:(?i:lora)(?:_[A-Za-z]\w*|[AB])?|ia3_\w+|hada_\w+|loha_\w+|lokr_\w+|dora_\w+|b?oft_\w+|vera_\w+|randlora_\w+|"
    r"fourierft_\w+|prompt_embeddings?|prompt_encoder|prefix_encoder|adaption_prompt|trainable_tokens_delta|"
    r"adapters?[._](?:\w+[._])*(?:down|up)\w*)(?:[._]|$)"
)
BASES = ("weight", "base_layer.weight", "linear.weight", "original.weight", "original_module.weight", "base.weight")


def adapters_sentence(checkpoint: Checkpoint) -> str:
    """Return the message that refuses a checkpoint with adapters, or the empty string for one without."""
    name = next((key for key in checkpoint.tensors if ADAPTER.search(key)), "")
    alone = adapters_alone(checkpoint)
    if not name and not alone:
        return ""
    such = f", such as {name!r}" if name else f" (by the {CONFIG} beside it)"
    what = "adapters alone" if alone else "adapters beside the weights of their base"
    return (
        f"{checkpoint.name}: holds {what}{such}, which are no network but are added to one. Merge them into their base "
        "and scan what that gives; with PEFT: PeftModel.from_pretrained(base, FOLDER).merge_and_unload()."
    )


def adapters_alone(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint holds adapters without the weights they are added to."""
    keys = set(checkpoint.tensors)
    found = [match for key in keys if (match := ADAPTER.search(key))]
    if found:
        prefixes = {match.string[: match.start()] for match in found}
        return not any(
            f"{prefix}.{base}" in keys or (not prefix and base in keys) for prefix in prefixes for base in BASES
        )
    if checkpoint.path.name.startswith("adapter_model."):
        return True
    targets = _targets(checkpoint)
    # A merged model may keep the config of its adapters.
    return bool(targets) and not any(key.endswith(f"{target}.weight") for key in keys for target in targets)


def _targets(checkpoint: Checkpoint) -> list[str]:
    """Return the adapted modules that the config beside a checkpoint names."""
    path = checkpoint.path.parent / CONFIG
    try:
        if not path.is_file():
            return []
        config: Any = json.loads(small_text(path))
    except (OSError, ValueError, RecursionError, InputError):
        return []
    named = config.get("target_modules") if isinstance(config, dict) else None
    return [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
