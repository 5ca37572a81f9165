"""Tiny models of the transformers library itself, measured as it computes them; without it they are skipped."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import Run

from ibscan.inputs.checkpoint import load_tensors
from ibscan.inputs.probe import read_probe
from ibscan.inputs.series import read_series
from ibscan.models import model_of, stated_model
from ibscan.results.store import read
from ibscan.types import Derivative, Network

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="the extra hf (transformers) is not installed"
    ),
    # The library's own warnings of what it will change.
    pytest.mark.filterwarnings("default"),
]

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 30, "max_position_embeddings": 8, **SIZES}
# The class, entries of its config, whether it is fed images, and one of its layers with its kind.
MODELS: dict[str, tuple[dict[str, object], bool, str, str]] = {
    "ViTForImageClassification": (
        {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3, **SIZES},
        True,
        "vit.embeddings.patch_embeddings.projection",
        "Conv2d",
    ),
    "ResNetForImageClassification": (
        {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_labels": 3},
        True,
        "resnet.embedder.embedder.convolution",
        "Conv2d",
    ),
    "BertForSequenceClassification": ({"num_labels": 3, **TOKENS}, False, "bert.pooler.dense", "Linear"),
    "GPT2LMHeadModel": (
        {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8},
        False,
        "transformer.h.0.attn.c_attn",
        "Conv1D",
    ),
    "LlamaForCausalLM": ({"num_key_value_heads": 1, **TOKENS}, False, "model.layers.1.mlp.down_proj", "Linear"),
}


@pytest.fixture(params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Save a model as the library does, with a probe beside it."""
    import transformers

    entries, images, _, _ = MODELS[request.param]
    made = getattr(transformers, request.param)
    torch.manual_seed(0)
    made(made.config_class(**entries)).save_pretrained(tmp_path / "run")
    shape = (6, 1, 8, 8) if images else (6, 3, 16)
    x = np.random.default_rng(0).normal(size=shape)
    np.savez(tmp_path / "run/probe.npz", x=x, y=np.arange(6) % 3)
    return request.param, tmp_path / "run"


def network_of(folder: Path) -> tuple[Network, torch.Tensor]:
    checkpoints = read_series([folder], exclude=[folder / "probe.npz"]).checkpoints
    probe, _ = read_probe(str(folder / "probe.npz"), {})
    stated = stated_model("hf", {}, None, checkpoints, trust=False)
    model = model_of(stated, checkpoints[0], probe, device=oracles.DEVICE, dtype=torch.float64)
    return model.network([(checkpoints[0], load_tensors(checkpoints[0]))]), torch.as_tensor(probe.x)


def test_values_and_derivatives_are_those_of_the_library(saved: tuple[str, Path]) -> None:
    import transformers

    name, folder = saved
    network, x = network_of(folder)
    reference = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").double().eval()
    fed = "pixel_values" if MODELS[name][1] else "inputs_embeds"

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return reference(**{fed: rows}).logits

    last = len(network.layers) - 1
    found: list[torch.Tensor] = []
    network.walk(x.numpy(), lambda layer, *given: found.append(given[1][0]) if layer == last else None)
    output = torch.cat(found).flatten(1).cpu()
    np.testing.assert_allclose(output, logits(x).detach().flatten(1), rtol=1e-9, atol=1e-12)
    factors: list[torch.Tensor] = []
    which = Derivative("post", layers=(last,))
    network.jacobians(x[:2].numpy(), lambda *given: factors.append(given[1][0]), which)
    for row, factor in zip(x[:2], torch.cat(factors), strict=True):
        jacobian = torch.autograd.functional.jacobian(logits, row[None]).reshape(logits(row[None]).numel(), -1)
        expected = torch.linalg.svdvals(jacobian)
        spectrum = torch.linalg.svdvals(factor.cpu())[: len(expected)]
        # The library computes norms and softmax in float32, whatever it is run in.
        np.testing.assert_allclose(spectrum, expected[: len(spectrum)], rtol=1e-5, atol=1e-6 * float(expected[0]))


MASKED = {
    "BertForSequenceClassification": {"num_labels": 3, **TOKENS},
    "DistilBertForSequenceClassification": {"num_labels": 3, "vocab_size": 30, "dim": 16, "n_layers": 1, "n_heads": 2},
    "GPT2LMHeadModel": MODELS["GPT2LMHeadModel"][0],
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_beside_the_embeddings_is_fed_with_its_rows(name: str, tmp_path: Path) -> None:
    import transformers

    made = getattr(transformers, name)
    torch.manual_seed(0)
    made(made.config_class(**MASKED[name])).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    # Rows without padding and rows with much, alone and among others.
    mask = np.arange(5) < np.array([5, 5, 2, 3, 5, 1])[:, None]
    np.savez(tmp_path / "probe.npz", inputs_embeds=rng.normal(size=(6, 5, 16)), attention_mask=mask.astype(int))
    checkpoints = read_series([tmp_path], exclude=[tmp_path / "probe.npz"]).checkpoints
    probe, _ = read_probe(str(tmp_path / "probe.npz"), {})
    stated = stated_model("hf", {}, None, checkpoints, trust=False)
    model = model_of(stated, checkpoints[0], probe, device=oracles.DEVICE, dtype=torch.float64)
    assert set(model.fed.arrays) == {"attention_mask"}
    network = model.network([(checkpoints[0], load_tensors(checkpoints[0]))])
    reference = made.from_pretrained(tmp_path, attn_implementation="eager").double().eval()
    given = {"inputs_embeds": torch.as_tensor(probe.x), "attention_mask": torch.as_tensor(mask.astype(int))}
    expected = reference(**given).logits.detach().flatten(1)
    last = len(network.layers) - 1
    for rows in ([0, 1], [0, 1, 2, 3, 4, 5], [5, 0], [2]):
        found: list[torch.Tensor] = []
        fed = model.fed.probed(probe).x[rows]
        network.walk(fed, lambda layer, *given, found=found: found.append(given[1][0]) if layer == last else None)
        np.testing.assert_allclose(torch.cat(found).flatten(1).cpu(), expected[rows], rtol=1e-6, atol=1e-9)


def test_every_verb_measures_it(saved: tuple[str, Path], command: Run, tmp_path: Path) -> None:
    name, folder = saved
    quick = ["--tolerance", "0.5", "--max-replicas", "16"]
    done = command("scan", folder, "--model", "hf", *quick, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert "is not measured" not in done.err
    assert "transformers" not in done.err
    result = read(tmp_path / "r.h5")
    kinds = dict(zip(result["layer"].values, result["layer_type"].values, strict=True))
    assert kinds[MODELS[name][2]] == MODELS[name][3]
    for variable in ("local_rank", "mi_readout_xt", "mi_binned_xt", "distance_within_mean"):
        assert np.isfinite(result[variable].values).all(), variable


def test_a_config_with_code_of_its_own_is_refused(saved: tuple[str, Path], command: Run, tmp_path: Path) -> None:
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    done = command("cluster", folder, "--model", "hf", "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert not (tmp_path / "canary").exists()
