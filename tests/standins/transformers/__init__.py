"""As much of the transformers library as ibscan touches, for tests without it; two tiny models in its manner."""

import logging
from typing import Any

import huggingface_hub.constants as hub
import torch
from torch import nn

from transformers.pytorch_utils import Conv1D

__version__ = "0.0"


class PreTrainedConfig:
    """Keeps what it is given as attributes, as the library's own does with keys it does not know."""

    def __init__(self, **entries: Any) -> None:
        assert hub.HF_HUB_OFFLINE, "the config is made while the hub could be asked"
        logging.getLogger("transformers.configuration_utils").warning("all of the config: %s", entries)
        self.entries = entries
        for key, value in entries.items():
            setattr(self, key, value)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> "PreTrainedConfig":
        return cls(**entries)

    def to_dict(self) -> dict[str, Any]:
        return self.entries


class PreTrainedModel(nn.Module):
    config_class: type[PreTrainedConfig] | None = None
    main_input_name = "input_ids"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, *, attn_implementation: str) -> "PreTrainedModel":
        assert attn_implementation == "eager"
        assert not [key for key in vars(config) if key.startswith("_") or "implementation" in key or "dtype" in key]
        return cls(config)


class TinyForImageClassification(PreTrainedModel):
    config_class = PreTrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        widths = [1, *[2] * config.num_hidden_layers]
        self.layers = nn.ModuleList(nn.Conv2d(a, 2, 3, padding=1) for a in widths[:-1])
        self.classifier = nn.Linear(32, config.num_labels)
        masked = getattr(config, "max_position_embeddings", 1)
        self.register_buffer("mask", torch.ones(masked, masked), persistent=False)

    def forward(self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> Any:
        del labels
        hidden = pixel_values
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return {"hidden": hidden, "logits": self.classifier(hidden.flatten(1))}


class TinyForCausalLM(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Conv1D(config.hidden_size, config.hidden_size) for _ in range(2))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if getattr(config, "tie_word_embeddings", True):
            self.lm_head.weight = self.embed.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> Any:
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return (self.lm_head(hidden),)


class OnlyIds(PreTrainedModel):
    config_class = PreTrainedConfig

    def forward(self, input_ids: torch.Tensor) -> Any:
        return input_ids


def pipeline() -> None:
    raise AssertionError("no model, and not to be called")
