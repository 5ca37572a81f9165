"""What training tools write, as they write it: contents of single files, and whole run folders."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.optim.swa_utils import AveragedModel

from support.hostile import state, torch_bytes

State = Mapping[str, torch.Tensor]


def weights(shift: float = 0.0) -> dict[str, torch.Tensor]:
    return {name: tensor + shift for name, tensor in state().items()}


def prefixed(tensors: State, prefix: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in tensors.items())


def network(shift: float = 0.0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model.load_state_dict(weights(shift))
    return model


def averaged(shift: float) -> dict[str, torch.Tensor]:
    """The state dict of torch's own average: a count, and the model under `module.`."""
    return AveragedModel(network(shift)).state_dict()


def optimizer() -> dict[str, object]:
    """What AdamW's state_dict() gives."""
    moments = [{"step": torch.tensor(1.0), "exp_avg": t * 0, "exp_avg_sq": t * 0} for t in weights().values()]
    group = {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "foreach": None,
        "decoupled_weight_decay": True,
        "params": [0, 1, 2, 3],
    }
    return {"state": dict(enumerate(moments)), "param_groups": [group]}


def lightning(epoch: int, step: int, tensors: State) -> dict[str, Any]:
    """Lightning 2: the module's own names begin with its attribute's, here `model.`."""
    progress = {"total": {"ready": step}, "current": {"ready": step}, "is_last_batch": False}
    best = {
        "monitor": "val_loss",
        "best_model_score": torch.tensor(0.1),
        "best_k_models": {"a.ckpt": torch.tensor(0.1)},
    }
    return {
        "epoch": epoch,
        "global_step": step,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": prefixed(tensors, "model."),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.batch_progress": progress}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}": {**best, "dirpath": "run"}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [{"last_epoch": epoch, "_last_lr": [0.1]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "args": Namespace(width=3), "class_weights": torch.ones(2)},
    }


def nanogpt(step: int, tensors: State) -> dict[str, object]:
    return {
        "model": prefixed(tensors, "_orig_mod."),
        "optimizer": optimizer(),
        "model_args": {"n_layer": 2, "bias": False, "vocab_size": None},
        "iter_num": step,
        "best_val_loss": torch.tensor(1.5),
        "config": {"batch_size": 12, "device": "cuda", "always_save_checkpoint": True},
    }


def timm(epoch: int, tensors: State, ema: State | None = None) -> dict[str, object]:
    content = {
        "epoch": epoch,
        "arch": "vit_tiny",
        "state_dict": tensors,
        "optimizer": optimizer(),
        "version": 2,
        "args": Namespace(model="vit_tiny", lr=0.1, mean=(0.5, 0.5), crop=None),
        "amp_scaler": {"scale": 65536.0, "growth_interval": 2000},
        "metric": np.float64(71.5),
    }
    return content if ema is None else {**content, "state_dict_ema": ema}


def torchvision(epoch: int, tensors: State, ema: State) -> dict[str, object]:
    scheduler = {"T_max": 90, "last_epoch": epoch, "_last_lr": [0.1]}
    return {
        "model": tensors,
        "optimizer": optimizer(),
        "lr_scheduler": scheduler,
        "epoch": epoch,
        "args": Namespace(workers=16),
        "model_ema": ema,
    }


def deepspeed(step: int, tensors: State) -> dict[str, object]:
    return {
        "module": prefixed(tensors, "module."),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in tensors.items())],
        "frozen_param_shapes": None,
        "lr_scheduler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": 8 * step,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 1}},
        "ds_version": "0.16.4",
    }


def weights_averaging(epoch: int, step: int, raw: State, ema: State) -> dict[str, object]:
    """Lightning's WeightAveraging: `state_dict` holds the averages, the raw weights lie beside."""
    return {**lightning(epoch, step, ema), "current_model_state": prefixed(raw, "model."), "averaging_state": {}}


def in_shards(
    folder: Path,
    stem: str,
    tensors: State,
    metadata: Mapping[str, object] | None = None,
    *,
    count: int = 2,
    written: Callable[[dict[str, torch.Tensor]], bytes] = safetensors_bytes,
) -> Path:
    """As transformers saves a large model: `model.safetensors` to model-00001-of-00002.safetensors, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, suffix = stem.rpartition(".")
    where: dict[str, str] = {}
    for k in range(count):
        mine = dict(list(tensors.items())[k::count])
        shard = f"{name}-{k + 1:05d}-of-{count:05d}.{suffix}"
        (folder / shard).write_bytes(written(mine))
        where |= dict.fromkeys(mine, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size, **(metadata or {})}, "weight_map": where}
    (folder / f"{stem}.index.json").write_text(json.dumps(index, indent=2))
    return folder / f"{stem}.index.json"


# Beside the weights in a folder of the HF Trainer; all but the JSON are pickles or text.
TRAINER_FILES = (
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "training_args.bin",
    "tokenizer.model",
    "merges.txt",
    "vocab",
)


def trainer(folder: Path, step: int, epoch: float, beside: Callable[[Path], object] = os.mkfifo) -> Path:
    """`checkpoint-N` of the HF Trainer, without its weights; everything that need not be opened is made by `beside`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"best_metric": None, "epoch": epoch, "global_step": step, "log_history": [{"step": step}], "max_steps": 900}
    (folder / "trainer_state.json").write_text(json.dumps(told, indent=2))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text('{"model_type": "tiny"}')
    for name in TRAINER_FILES:
        beside(folder / name)
    return folder


def put_safetensors(path: Path, tensors: State, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_bytes(dict(tensors), metadata=dict(metadata or {"format": "pt"})))
    return path


def put_torch(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(torch_bytes(content))
    return path
