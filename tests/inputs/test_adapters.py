"""Checkpoints of adapters are refused unless code knows them; whole networks are not mistaken for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import put_safetensors, put_torch

from ibscan.engine.model_spec import stated_model
from ibscan.errors import InputError
from ibscan.inputs.series.adapters import adapters_alone, adapters_sentence
from ibscan.inputs.series.read import read_series

ONES = {"fc1": (8, 6), "fc2": (3, 8)}
Shapes = dict[str, tuple[int, ...]]
PEFT: Shapes = {
    "base_model.model.fc1.lora_A.weight": (2, 6),
    "base_model.model.fc1.lora_B.weight": (8, 2),
    "base_model.model.fc2.lora_A.weight": (2, 8),
    "base_model.model.fc2.lora_B.weight": (3, 2),
}
ALONE: dict[str, Shapes] = {
    "peft": PEFT,
    "named": {key.replace(".weight", ".default.weight"): shape for key, shape in PEFT.items()},
    "dora": {**PEFT, "base_model.model.fc1.lora_magnitude_vector": (8,)},
    "with a head": {**PEFT, "base_model.model.score.weight": (3, 3)},
    "ia3": {"base_model.model.fc1.ia3_l": (8, 1), "base_model.model.fc2.ia3_l": (8, 1)},
    "kohya": {"lora_unet_fc1.lora_down.weight": (2, 6), "lora_unet_fc1.lora_up.weight": (8, 2)},
    "hada": {"fc1.hada_w1_a": (8, 2), "fc1.hada_w1_b": (2, 6)},
    "lokr": {"fc1.lokr_w1": (8, 2)},
    "loralib": {"fc1.lora_A": (2, 6), "fc1.lora_B": (8, 2)},
    "own": {"fc1.loraA.weight": (2, 6), "fc1.loraB.weight": (8, 2)},
    "diffusers": {"unet.processor.to_q_lora.down.weight": (2, 6), "unet.processor.to_q_lora.up.weight": (8, 2)},
    "bottleneck": {
        "layer.0.adapters.task.adapter_down.0.weight": (2, 6),
        "layer.0.adapters.task.adapter_up.weight": (6, 2),
    },
}


def made(shapes: Any) -> dict[str, torch.Tensor]:
    return {key: torch.ones(shape) for key, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize(
    "place", ["checkpoint-5/adapter_model.safetensors", "checkpoint-5/adapter_model.bin", "e_1.pt"]
)
@pytest.mark.parametrize("spec", ["mlp:relu", "hf", None])
def test_adapters_alone_are_refused(kind: str, place: str, spec: str | None, tmp_path: Path) -> None:
    put = put_safetensors if place.endswith("safetensors") else put_torch
    put(tmp_path / place, made(ALONE[kind]))
    (checkpoint,) = read_series([tmp_path]).checkpoints
    assert adapters_alone(checkpoint)
    with pytest.raises(InputError, match=r"holds adapters alone, such as .*Merge them.*merge_and_unload"):
        stated_model(spec, {}, None, [checkpoint], trust=True)
    # Code gets to see whether it has them.
    assert stated_model("net.py:build", {}, None, [checkpoint], trust=True).spec == "net.py:build"


def test_adapters_beside_their_base_are_refused_unless_code_knows_them(tmp_path: Path) -> None:
    shapes = {"fc1.base_layer.weight": (8, 6), "fc1.lora_A.weight": (2, 6), "fc1.lora_B.weight": (8, 2)}
    put_torch(tmp_path / "e_1.pt", made(shapes))
    (checkpoint,) = read_series([tmp_path]).checkpoints
    assert not adapters_alone(checkpoint)
    assert "adapters beside the weights of their base" in adapters_sentence(checkpoint)


CONFIGS: list[tuple[Shapes, object, bool]] = [
    ({"fc1.A.weight": (2, 6), "fc1.B.weight": (8, 2)}, {"target_modules": ["fc1"]}, True),
    ({"prompt.weight": (8, 6)}, {"peft_type": "PROMPT_TUNING"}, False),
    ({"fc1.weight": (8, 6), "fc2.weight": (3, 8)}, {"target_modules": ["fc1"]}, False),
    ({"fc1.weight": (8, 6), "fc2.weight": (3, 8)}, {}, False),
]


@pytest.mark.parametrize(("shapes", "config", "alone"), CONFIGS)
def test_adapter_config_marks_adapters_that_names_do_not_show(
    shapes: Shapes, config: object, alone: bool, tmp_path: Path
) -> None:
    put_torch(tmp_path / "model.pt", made(shapes))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (checkpoint,) = read_series([tmp_path]).checkpoints
    assert adapters_alone(checkpoint) == alone
    assert bool(adapters_sentence(checkpoint)) == alone


@pytest.mark.parametrize("name", ["fc1", "explora", "flora.0", "adapter", "soft_prompt", "lorax", "to_adapter.0"])
def test_whole_networks_are_no_adapters(name: str, tmp_path: Path) -> None:
    put_torch(tmp_path / "e_1.pt", {f"{name}.weight": torch.ones(3, 6), "out.weight": torch.ones(2, 3)})
    (checkpoint,) = read_series([tmp_path]).checkpoints
    assert adapters_sentence(checkpoint) == ""


def test_a_folder_of_adapters_beside_whole_networks_says_why(tmp_path: Path) -> None:
    for step in (1, 2):
        put_safetensors(tmp_path / f"checkpoint-{step}/model.safetensors", made({"fc1.weight": (3 + 0 * step, 6)}))
    put_safetensors(tmp_path / "checkpoint-3/adapter_model.safetensors", made(PEFT))
    skipped = read_series([tmp_path]).skipped
    assert list(skipped) == ["checkpoint-3/adapter_model.safetensors"]
    assert "holds adapters alone" in skipped["checkpoint-3/adapter_model.safetensors"]
