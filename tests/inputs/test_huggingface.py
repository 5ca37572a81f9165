"""Folders with a config.json beside the weights become models of transformers, or are refused."""

import functools
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from support import oracles
from support.layouts import in_shards

import ibscan
from ibscan.core.estimate import Status
from ibscan.core.network import JacobianSpec, Network
from ibscan.engine.model_spec import stated_model
from ibscan.engine.models import model_of
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.series.checkpoint import load_tensors
from ibscan.inputs.series.read import read_series
from ibscan.results.store import read

STANDINS = Path(__file__).parent.parent / "standins"
# The library's own warnings, of what it will change.
pytestmark = pytest.mark.filterwarnings("default")
TINY = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}
VISION = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 3,
    "transformers_version": "5.0",
    "torch_dtype": "bfloat16",
    **TINY,
}
TEXT = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    **{"vocab_size": 7, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8},
    **{"bos_token_id": None, "eos_token_id": None},
}


def library() -> Any:
    """Return the library, imported where a test needs it: that takes seconds, and every process collects all tests."""
    import transformers

    return transformers


@functools.cache
def saved_state(architecture: str, seed: int) -> dict[str, torch.Tensor]:
    """Return the weights of a tiny model under the names that the library writes into files."""
    config = VISION if architecture.startswith("ViT") else TEXT
    made = getattr(library(), architecture)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as place:
        entries = {key: value for key, value in config.items() if key != "torch_dtype"}
        made(made.config_class.from_dict(entries)).save_pretrained(place)
        return load_file(Path(place) / "model.safetensors")


def vision_state(seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(saved_state("ViTForImageClassification", seed))


def text_state() -> dict[str, torch.Tensor]:
    return dict(saved_state("GPT2LMHeadModel", 0))


def folder_of(place: Path, config: object, state: dict[str, torch.Tensor]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (place / "config.json").write_bytes(text)
    save_file(state, place / "model.safetensors")
    return place


@pytest.fixture
def images(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(8, 1, 4, 4))
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(8) % 3)
    return tmp_path / "images.npz"


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    np.save(tmp_path / "sentences.npy", np.random.default_rng(0).normal(size=(6, 2, 4)))
    return tmp_path / "sentences.npy"


@pytest.mark.slow
def test_a_trainer_folder_is_measured_under_the_names_it_was_saved_with(
    command: Run, images: Path, tmp_path: Path
) -> None:
    for step in (20, 100):
        folder = folder_of(tmp_path / f"run/checkpoint-{step}", VISION, vision_state(step))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 20}))
    done = command("cluster", tmp_path / "run", "--model", "hf", "-p", images, "-o", tmp_path / "a.h5")
    assert done.code == 0, done.err
    result = read(tmp_path / "a.h5")
    layers = result["layer"].values.tolist()
    assert layers[0] == "vit.embeddings.patch_embeddings.projection"
    assert "vit.layers.0.attention.q_proj" in layers
    assert layers[-1] == "classifier"
    assert result["step"].values.tolist() == [20, 100]
    assert result.attrs["model"] == "hf:ViTForImageClassification"
    # Files have the names of version 4; those of the class itself do as well, and so does the stated class.
    assert "vit.encoder.layer.0.attention.attention.query.weight" in vision_state(20)
    made = library().ViTForImageClassification
    torch.manual_seed(20)
    own = made(made.config_class.from_dict({**VISION, "torch_dtype": None})).state_dict()
    assert "vit.layers.0.attention.q_proj.weight" in own
    folder_of(tmp_path / "own", VISION, own)
    given = ["--model", "hf:ViTForImageClassification", "-p", images, "-o", tmp_path / "b.h5"]
    assert command("cluster", tmp_path / "own", *given).code == 0
    np.testing.assert_array_equal(read(tmp_path / "b.h5")["nc1"].values[0], result["nc1"].values[0])


@pytest.mark.slow
def test_a_config_runs_only_where_it_is_asked_for(
    command: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    given = ["cluster", folder, "-p", images, "-o", tmp_path / "r.h5"]
    with monkeypatch.context() as patch:
        patch.delattr("ibscan.engine.models.library_model")
        refused = command(*given)
    assert refused.code == 3
    assert "--model hf" in refused.err
    assert "--trust" in refused.err
    assert command(*given, "--trust").code == 0
    listed = command("ls", folder)
    assert {row["model"] for row in listed.rows()} == {"hf:ViTForImageClassification"}
    (folder / "ibscan.toml").write_text('[model]\nspec = "hf"\n')
    assert command(*given).code == 3
    assert command(*given, "--trust").code == 0


@pytest.mark.slow
def test_entries_of_the_config_are_part_of_the_parameters_of_a_result(
    command: Run, images: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    given = ["cluster", folder, "-p", images, "-m", "hf", "-o", tmp_path / "r.h5"]
    assert command(*given).code == 0
    # What says how to compute is no part of it, what says what to compute is.
    folder_of(folder, {**VISION, "torch_dtype": "float32", "_name_or_path": "elsewhere"}, vision_state())
    assert command(*given).code == 0
    folder_of(folder, {**VISION, "hidden_act": "relu"}, vision_state())
    changed = command(*given)
    assert changed.code == 2
    assert "code" in changed.err
    typed = command(*given, "--model-arg", "num_labels=4")
    assert typed.code == 3
    assert "only the last layer differs" in typed.err


@pytest.mark.slow
def test_tokens_are_fed_as_embeddings_and_tied_weights_are_one(command: Run, sentences: Path, tmp_path: Path) -> None:
    state = text_state()
    folder = folder_of(tmp_path / "run", TEXT, state)
    given = ["--model", "hf", "-p", sentences]
    done = command("rank", folder, *given, "-o", tmp_path / "r.h5", "--eps", "0.5", "--rel-eps", "0.5")
    assert done.code == 0, done.err
    # The matrix of the embedding is measured as that of the output, where it is multiplied by.
    assert "is not measured" not in done.err
    result = read(tmp_path / "r.h5")
    parts = [f"transformer.h.0.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert result["layer"].values.tolist() == [*parts, "lm_head"]
    assert result["layer_type"].values.tolist() == [*["Conv1D"] * 4, "Linear"]
    assert "lm_head.weight" not in state
    both = {**state, "lm_head.weight": state["transformer.wte.weight"].clone()}
    assert command("cluster", folder_of(tmp_path / "both", TEXT, both), *given).code == 0
    both["lm_head.weight"] += 1
    differ = command("cluster", folder_of(tmp_path / "differ", TEXT, both), *given)
    assert differ.code == 3
    assert "'transformer.wte.weight' and 'lm_head.weight' differ" in differ.err
    untied = command("cluster", folder_of(tmp_path / "untied", {**TEXT, "tie_word_embeddings": False}, state), *given)
    assert untied.code == 3
    assert "1 missing, such as 'lm_head.weight'" in untied.err


@pytest.mark.slow
def test_arriving_shards_of_tied_and_wrapped_weights_are_measured(
    command: Run, sentences: Path, tmp_path: Path
) -> None:
    state, run = text_state(), tmp_path / "run"
    whole = folder_of(tmp_path / "whole", TEXT, state)
    given = ["--model", "hf", "-p", sentences, "-o"]
    assert command("cluster", whole, *given, tmp_path / "a.h5").code == 0
    for step, wrapper in ((10, ""), (20, "module._orig_mod.")):
        place = folder_of(tmp_path / f"checkpoint-{step}", TEXT, state)
        (place / "model.safetensors").unlink()
        in_shards(place, "model.safetensors", {f"{wrapper}{key}": tensor for key, tensor in state.items()})
    run.mkdir()
    # By another program: what a thread of this one moves would be the model's doing.
    moves = [f"sleep 0.3; mv {tmp_path / name} {run / name}" for name in ("checkpoint-10", "checkpoint-20")]
    with subprocess.Popen(["/bin/sh", "-c", "; ".join(moves)]):
        done = command("cluster", run, "--follow", "--idle", "1", *given, tmp_path / "b.h5")
    assert done.code == 0, done.err
    one, other = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    assert other["step"].values.tolist() == [10, 20]
    assert one["layer"].values.tolist() == other["layer"].values.tolist()
    for found in other["distance_within_mean"].values:
        np.testing.assert_array_equal(found, one["distance_within_mean"].values[0])


@pytest.mark.slow
def test_token_ids_are_measured_except_for_local_rank(command: Run, tmp_path: Path) -> None:
    """Token ids are the model's input as they are; every measure but local rank is taken."""
    folder = folder_of(tmp_path / "run", TEXT, text_state())
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(6, 2) % 3)
    options = ("-m", "hf", "-p", tmp_path / "ids.npy", "--probe-arg", "scale=1", "--layers", "transformer.h.*")
    done = command("scan", folder, *options, "--channel", "readout", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert "no derivative by an id" in done.err
    result = read(tmp_path / "r.h5")
    assert (result["local_rank_status"].values == Status.NOT_MEASURED).all()
    assert np.isfinite(result["mi_readout_xt"].values).all()
    told = [row for row in command("ls", folder, *options).rows() if row["layer"]]
    assert all("no derivative by an id" in row["not_measured"] for row in told)
    assert all("local_rank" not in row["measures"] for row in told)


@pytest.mark.slow
def test_rows_that_are_neither_ids_nor_embeddings_are_refused(command: Run, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", TEXT, text_state())
    np.save(tmp_path / "x.npy", np.full((6, 2), 0.5))
    done = command("cluster", folder, "-m", "hf", "-p", tmp_path / "x.npy", "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "(tokens, 4)" in done.err


@pytest.mark.slow
def test_configs_of_a_series_must_agree(command: Run, images: Path, tmp_path: Path) -> None:
    for step, act in ((1, "gelu"), (2, "relu")):
        folder_of(tmp_path / f"run/checkpoint-{step}", {**VISION, "hidden_act": act}, vision_state())
    done = command("cluster", tmp_path / "run", "-m", "hf", "-p", images, "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "'hidden_act' is" in done.err


GPTJ = {"n_embd": 4, "n_layer": 1, "n_head": 2, "rotary_dim": 2, "vocab_size": 7}
NESTED = json.dumps({"model_type": "tiny", "a": None}).replace("null", "[" * 300 + "]" * 300).encode()
LARGE = b'{"model_type": "tiny", "x": "' + b"y" * (1 << 20) + b'"}'

# Entries put over the config above, or the file's bytes; words of the refusal.
HOSTILE: dict[str, tuple[dict[str, object] | bytes, str]] = {
    "auto_map": ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "code of its own"),
    "auto_map, inside": ({"text_config": {"auto_map": {"AutoModel": "a--b.C"}}}, "code of its own"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    "compressed": ({"compression_config": {"format": "x"}}, "compressed"),
    "a backbone by name": ({"backbone": "somebody/something"}, "to be fetched"),
    "pretrained backbone": ({"vision": [{"use_pretrained_backbone": True}]}, "to be fetched"),
    "timm backbone": ({"use_timm_backbone": True}, "timm"),
    "timm": ({"model_type": "timm_wrapper"}, "timm:create_model"),
    "a module": ({"architectures": ["os"]}, "one class"),
    "a path": ({"architectures": ["../evil.Evil"]}, "one class"),
    "no class of a model": ({"architectures": ["AutoModel"]}, "no model class"),
    "no model": ({"architectures": ["PreTrainedConfig"]}, "no model class"),
    "no model of its own": ({"architectures": ["PreTrainedModel"]}, "no model class"),
    "escapes": ({"architectures": ["\x1b[31mViT"]}, "one class"),
    "no class": ({"architectures": None}, "hf:CLASS"),
    "two classes": ({"architectures": ["ViTForImageClassification"] * 2}, "hf:CLASS"),
    "ids alone": ({"architectures": ["CLIPTextModel"]}, "no argument inputs_embeds"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "at most"),
    "a billion, inside": ({"depths": [[10**9]]}, "at most"),
    "negative": ({"num_labels": -(10**9)}, "at most"),
    "a hundred thousand layers": ({"num_hidden_layers": 1 << 17}, "larger than the weights"),
    "a wide layer": ({"hidden_size": 1 << 12}, "larger than the weights"),
    "huge angles": ({"architectures": ["GPTJForCausalLM"], "n_positions": 1 << 28, **GPTJ}, "buffers"),
    "other sizes": ({"num_labels": 5}, "only the last layer differs"),
    "fewer layers": ({"num_hidden_layers": 1}, "unexpected"),
    "text for a number": ({"num_hidden_layers": "two"}, " raised "),
    "methods as entries": ({"to_dict": 1}, "raised TypeError"),
    "no JSON": (b"{", "no readable JSON"),
    "no text": (b"\xff\xfe\x00", "no UTF-8 text"),
    "a number of digits": (b'{"model_type": "tiny", "x": ' + b"9" * 5000 + b"}", "no readable JSON"),
    "deep": (NESTED, "nested"),
    "deeper": (b"[" * 100_000, "no readable JSON"),
    "large": (LARGE, "at most 1048576"),
    "no object": (b"[1, 2]", "no config.json of a transformers model"),
    "something else's": (b'{"lr": 0.1}', "no config.json of a transformers model"),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", HOSTILE, ids=list(HOSTILE))
def test_a_hostile_config_is_refused(
    command: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    config, words = HOSTILE[row]
    folder = folder_of(tmp_path / "run", config if isinstance(config, bytes) else {**VISION, **config}, vision_state())
    canary = tmp_path / "canary"
    for name in ("modeling_evil.py", "transformers.py", "os.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w')\n")
    # From within, as `python -m ibscan` puts it on the path: nothing may be imported from there.
    monkeypatch.syspath_prepend("")
    done = command("cluster", folder, "-m", "hf", "-p", images, "-o", tmp_path / "r.h5", inside=folder)
    assert done.code == 3, done.err
    assert words in done.err
    assert "\x1b" not in done.err
    assert not canary.exists()


@pytest.mark.slow
def test_a_config_that_is_no_file_is_not_opened(command: Run, images: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    done = command("cluster", folder, "-m", "hf", "-p", images, "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "a folder" in done.err


@pytest.mark.slow
def test_kernels_and_names_of_a_config_are_ignored(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        **VISION,
        "_attn_implementation": "somebody/kernel",
        "_attn_implementation_internal": "somebody/kernel",
        "attn_implementation": "somebody/kernel",
        "kernel_config": {"norm": "somebody/kernel"},
        "text_config": {"_experts_implementation_internal": "somebody/kernel"},
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
    }
    folder_of(tmp_path / "run", config, vision_state())
    asked: list[object] = []
    hub = importlib.import_module("huggingface_hub.constants")
    make = library().ViTForImageClassification._from_config.__func__

    def from_config(cls: type, made: Any, **given: object) -> torch.nn.Module:
        names = [key for key, value in vars(made).items() if value and ("implementation" in key or "kernel" in key)]
        asked.append((names, made.name_or_path, given, hub.HF_HUB_OFFLINE))
        return make(cls, made, **given)

    monkeypatch.setattr(library().PreTrainedModel, "_from_config", classmethod(cast("Any", from_config)))
    found = ibscan.cluster(tmp_path / "run", probe=str(images), model="hf")
    assert np.isfinite(found["nc1"].values[:, -1]).all()
    assert {repr(one) for one in asked} == {repr(([], "", {"attn_implementation": "eager"}, True))}
    assert not hub.HF_HUB_OFFLINE


def test_without_the_library_the_message_says_how_to_install_it(
    command: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    folder = folder_of(tmp_path / "run", VISION, {"classifier.weight": torch.zeros(3, 4)})
    done = command("cluster", folder, "-m", "hf", "-p", images, "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "pip install 'ibscan[hf]'" in done.err
    assert command("ls", folder).code == 0


@pytest.mark.parametrize(
    "given",
    [
        ["timm:create_model", "--model-arg", "model_name=tiny", "--model-arg", "num_classes=3"],
        ["torchvision.models:resnet18", "--model-arg", "num_classes=3"],
        ["torchvision.models:resnet18", "--model-arg", "num_classes=3", "--model-arg", "weights=null"],
    ],
)
def test_models_of_timm_and_torchvision_are_measured(
    command: Run, images: Path, tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stand-ins: to measure them they are callables like any other."""
    monkeypatch.syspath_prepend(STANDINS)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    save_file(net.state_dict(), tmp_path / "epoch-1.safetensors")
    done = command("cluster", tmp_path / "epoch-1.safetensors", "-p", images, "-o", tmp_path / "r.h5", "-m", *given)
    assert done.code == 0, done.err
    assert read(tmp_path / "r.h5")["layer"].values.tolist() == ["1", "3"]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]


# Models of several kinds, as the library computes them

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
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
        {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8},
        False,
        "transformer.h.0.attn.c_attn",
        "Conv1D",
    ),
    "LlamaForCausalLM": ({"num_key_value_heads": 1, **TOKENS}, False, "model.layers.0.mlp.down_proj", "Linear"),
}


@pytest.fixture(params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Save a model as the library does, with a probe beside it."""
    entries, images, _, _ = MODELS[request.param]
    made = getattr(library(), request.param)
    torch.manual_seed(0)
    made(made.config_class(**entries)).save_pretrained(tmp_path / "run")
    shape = (6, 1, 8, 8) if images else (6, 3, 8)
    x = np.random.default_rng(0).normal(size=shape)
    np.savez(tmp_path / "run/probe.npz", x=x, y=np.arange(6) % 3)
    return request.param, tmp_path / "run"


def network_of(folder: Path) -> tuple[Network, torch.Tensor]:
    checkpoints = read_series([folder], exclude=[folder / "probe.npz"]).checkpoints
    probe, _ = read_probe(str(folder / "probe.npz"), {})
    stated = stated_model("hf", {}, None, checkpoints, trust=False)
    model = model_of(stated, checkpoints[0], probe, device=oracles.DEVICE, dtype=torch.float64)
    return model.network([(checkpoints[0], load_tensors(checkpoints[0]))]), torch.as_tensor(probe.x)


@pytest.mark.slow
def test_values_and_derivatives_are_those_of_the_library(saved: tuple[str, Path]) -> None:
    name, folder = saved
    network, x = network_of(folder)
    reference = getattr(library(), name).from_pretrained(folder, attn_implementation="eager").double().eval()
    fed = "pixel_values" if MODELS[name][1] else "inputs_embeds"

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return reference(**{fed: rows}).logits

    last = len(network.layers) - 1
    found: list[torch.Tensor] = []
    network.walk(x.numpy(), lambda layer, *given: found.append(given[1][0]) if layer == last else None)
    output = torch.cat(found).flatten(1).cpu()
    np.testing.assert_allclose(output, logits(x).detach().flatten(1), rtol=1e-9, atol=1e-12)
    factors: list[torch.Tensor] = []
    spec = JacobianSpec("post", layers=(last,))
    network.jacobians(x[:2].numpy(), lambda *given: factors.append(given[1][0]), spec)
    for row, factor in zip(x[:2], torch.cat(factors), strict=True):
        jacobian = torch.autograd.functional.jacobian(logits, row[None]).reshape(logits(row[None]).numel(), -1)
        expected = torch.linalg.svdvals(jacobian)
        spectrum = torch.linalg.svdvals(factor.cpu())[: len(expected)]
        # The library computes norms and softmax in float32, whatever it is run in.
        np.testing.assert_allclose(spectrum, expected[: len(spectrum)], rtol=1e-5, atol=1e-6 * float(expected[0]))


MASKED: dict[str, Any] = {
    "BertForSequenceClassification": {"num_labels": 3, **TOKENS},
    "DistilBertForSequenceClassification": {"num_labels": 3, "vocab_size": 30, "dim": 8, "n_layers": 1, "n_heads": 2},
    "GPT2LMHeadModel": MODELS["GPT2LMHeadModel"][0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_beside_the_embeddings_is_fed_with_its_rows(name: str, tmp_path: Path) -> None:
    made = getattr(library(), name)
    torch.manual_seed(0)
    made(made.config_class(**MASKED[name])).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    # Rows without padding and rows with much, alone and among others.
    mask = np.arange(5) < np.array([5, 5, 2, 3, 5, 1])[:, None]
    np.savez(tmp_path / "probe.npz", inputs_embeds=rng.normal(size=(6, 5, 8)), attention_mask=mask.astype(int))
    checkpoints = read_series([tmp_path], exclude=[tmp_path / "probe.npz"]).checkpoints
    probe, _ = read_probe(str(tmp_path / "probe.npz"), {})
    stated = stated_model("hf", {}, None, checkpoints, trust=False)
    model = model_of(stated, checkpoints[0], probe, device=oracles.DEVICE, dtype=torch.float64)
    assert set(model.extra.arrays) == {"attention_mask"}
    network = model.network([(checkpoints[0], load_tensors(checkpoints[0]))])
    reference = made.from_pretrained(tmp_path, attn_implementation="eager").double().eval()
    given = {"inputs_embeds": torch.as_tensor(probe.x), "attention_mask": torch.as_tensor(mask.astype(int))}
    expected = reference(**given).logits.detach().flatten(1)
    last = len(network.layers) - 1
    for rows in ([0, 1], [0, 1, 2, 3, 4, 5], [5, 0], [2]):
        found: list[torch.Tensor] = []
        fed = model.extra.applied_to(probe).x[rows]
        network.walk(fed, lambda layer, *given, found=found: found.append(given[1][0]) if layer == last else None)
        np.testing.assert_allclose(torch.cat(found).flatten(1).cpu(), expected[rows], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_every_command_measures_a_transformers_model(saved: tuple[str, Path], command: Run, tmp_path: Path) -> None:
    name, folder = saved
    quick = ["--tolerance", "0.5", "--max-replicas", "16", "--max-draws", "64"]
    done = command("scan", folder, "--model", "hf", *quick, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert "is not measured" not in done.err
    assert "transformers" not in done.err
    result = read(tmp_path / "r.h5")
    kinds = dict(zip(result["layer"].values, result["layer_type"].values, strict=True))
    assert kinds[MODELS[name][2]] == MODELS[name][3]
    for variable in ("local_rank", "mi_readout_xt", "mi_binned_xt", "distance_within_mean"):
        assert np.isfinite(result[variable].values).all(), variable
