"""Folders with a config.json beside the weights, by a stand-in for the library: what is made, and what is refused."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from inputs.layouts import in_shards
from safetensors.torch import save_file

import ibscan
from ibscan.results.store import read
from ibscan.types import Status

STANDINS = Path(__file__).parent.parent / "standins"
PACKAGES = ("transformers", "huggingface_hub", "timm", "torchvision")
VISION = {
    "model_type": "tiny",
    "architectures": ["TinyForImageClassification"],
    "num_hidden_layers": 2,
    "num_labels": 3,
    "transformers_version": "0.0",
    "torch_dtype": "bfloat16",
}
TEXT = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "vocab_size": 7, "hidden_size": 5}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-ins in place of the libraries, installed or not."""
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STANDINS)
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            del sys.modules[name]


def vision_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "encoder.layer.0.weight": (2, 1, 3, 3),
        "encoder.layer.0.bias": (2,),
        "encoder.layer.1.weight": (2, 2, 3, 3),
        "encoder.layer.1.bias": (2,),
        "classifier.weight": (3, 32),
        "classifier.bias": (3,),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def text_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (7, 5), **{f"layers.{k}.weight": (5, 5) for k in (0, 1)}}
    shapes |= {f"layers.{k}.bias": (5,) for k in (0, 1)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


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
    np.save(tmp_path / "sentences.npy", np.random.default_rng(0).normal(size=(6, 2, 5)))
    return tmp_path / "sentences.npy"


def test_a_trainer_folder_is_measured_under_the_names_it_was_saved_with(
    command: Run, images: Path, tmp_path: Path
) -> None:
    for step in (20, 100):
        folder = folder_of(tmp_path / f"run/checkpoint-{step}", VISION, vision_state(step))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 20}))
    done = command("cluster", tmp_path / "run", "--model", "hf", "-p", images, "-o", tmp_path / "a.h5")
    assert done.code == 0, done.err
    assert "all of the config" not in done.err
    result = read(tmp_path / "a.h5")
    assert result["layer"].values.tolist() == ["layers.0", "layers.1", "classifier"]
    assert result["step"].values.tolist() == [20, 100]
    assert result.attrs["model"] == "hf:TinyForImageClassification"
    # The names of the class itself do as well, and so does the stated class.
    own = {key.replace("encoder.layer.", "layers."): value for key, value in vision_state(20).items()}
    folder_of(tmp_path / "own", VISION, own)
    given = ["--model", "hf:TinyForImageClassification", "-p", images, "-o", tmp_path / "b.h5"]
    assert command("cluster", tmp_path / "own", *given).code == 0
    np.testing.assert_array_equal(read(tmp_path / "b.h5")["nc1"].values[0], result["nc1"].values[0])


def test_the_output_is_that_of_the_weights(images: Path, tmp_path: Path) -> None:
    state = vision_state()
    folder_of(tmp_path / "run", VISION, state)
    found = ibscan.cluster(tmp_path / "run", probe=str(images), model="hf")
    x, y = (torch.as_tensor(np.load(images)[key]) for key in "xy")
    for k in (0, 1):
        weight, bias = (state[f"encoder.layer.{k}.{key}"].double() for key in ("weight", "bias"))
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
    logits = x.flatten(1) @ state["classifier.weight"].double().T + state["classifier.bias"].double()
    np.testing.assert_allclose(found["probe_loss"].values, float(torch.nn.functional.cross_entropy(logits, y)))


def test_a_config_runs_only_where_it_is_asked_for(command: Run, images: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    given = ["cluster", folder, "-p", images, "-o", tmp_path / "r.h5"]
    refused = command(*given)
    assert refused.code == 3
    assert "--model hf" in refused.err
    assert "--trust" in refused.err
    assert "transformers" not in sys.modules
    assert command(*given, "--trust").code == 0
    listed = command("ls", folder)
    assert {row["model"] for row in listed.rows()} == {"hf:TinyForImageClassification"}
    (folder / "ibscan.toml").write_text('[model]\nspec = "hf"\n')
    assert command(*given).code == 3
    assert command(*given, "--trust").code == 0


def test_entries_of_the_config_are_part_of_what_a_result_is(command: Run, images: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    given = ["cluster", folder, "-p", images, "-m", "hf", "-o", tmp_path / "r.h5"]
    assert command(*given).code == 0
    # What says how to compute is no part of it, what says what to compute is.
    folder_of(folder, {**VISION, "torch_dtype": "float32", "_name_or_path": "elsewhere"}, vision_state())
    assert command(*given).code == 0
    folder_of(folder, {**VISION, "hidden_act": "gelu"}, vision_state())
    changed = command(*given)
    assert changed.code == 2
    assert "code" in changed.err
    typed = command(*given, "--model-arg", "num_labels=4")
    assert typed.code == 3
    assert "another shape" in typed.err


def test_tokens_are_fed_as_embeddings_and_tied_weights_are_one(command: Run, sentences: Path, tmp_path: Path) -> None:
    state = text_state()
    folder = folder_of(tmp_path / "run", TEXT, state)
    given = ["--model", "hf", "-p", sentences]
    done = command("rank", folder, *given, "-o", tmp_path / "r.h5", "--eps", "0.5", "--rel-eps", "0.5")
    assert done.code == 0, done.err
    # The matrix of the embedding is measured as that of the output, where it is multiplied by.
    assert "is not measured" not in done.err
    result = read(tmp_path / "r.h5")
    assert result["layer"].values.tolist() == ["layers.0", "layers.1", "lm_head"]
    assert result["layer_type"].values.tolist() == ["Conv1D", "Conv1D", "Linear"]
    # The first layer maps each of two tokens by its weight.
    spectrum = np.repeat(torch.linalg.svdvals(state["layers.0.weight"].double()).numpy(), 2)
    np.testing.assert_allclose(result["singular_value"].values[0, 0][:10], spectrum, rtol=1e-6)
    both = {**state, "lm_head.weight": state["embed.weight"].clone()}
    assert command("cluster", folder_of(tmp_path / "both", TEXT, both), *given).code == 0
    both["lm_head.weight"] += 1
    differ = command("cluster", folder_of(tmp_path / "differ", TEXT, both), *given)
    assert differ.code == 3
    assert "'embed.weight' and 'lm_head.weight' differ" in differ.err
    untied = command("cluster", folder_of(tmp_path / "untied", {**TEXT, "tie_word_embeddings": False}, state), *given)
    assert untied.code == 3
    assert "1 missing, such as 'lm_head.weight'" in untied.err


def test_shards_of_tied_and_wrapped_weights_that_arrive_while_followed(
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
    arrivals = [
        threading.Timer(delay, (tmp_path / name).rename, (run / name,))
        for delay, name in ((0.2, "checkpoint-10"), (0.6, "checkpoint-20"))
    ]
    for arrival in arrivals:
        arrival.start()
    done = command("cluster", run, "--follow", "--idle", "0.6", *given, tmp_path / "b.h5")
    for arrival in arrivals:
        arrival.join()
    assert done.code == 0, done.err
    one, other = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    assert other["step"].values.tolist() == [10, 20]
    assert one["layer"].values.tolist() == other["layer"].values.tolist()
    for found in other["distance_within_mean"].values:
        np.testing.assert_array_equal(found, one["distance_within_mean"].values[0])


def test_token_ids_have_no_derivative(command: Run, tmp_path: Path) -> None:
    """They are fed as they are, and all but local rank is measured."""
    folder = folder_of(tmp_path / "run", TEXT, text_state())
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(6, 2) % 3)
    options = ("-m", "hf", "-p", tmp_path / "ids.npy", "--probe-arg", "scale=1", "--layers", "layers.*")
    done = command("scan", folder, *options, "--channel", "readout", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert "no derivative by an id" in done.err
    result = read(tmp_path / "r.h5")
    assert (result["local_rank_status"].values == Status.NOT_MEASURED).all()
    assert np.isfinite(result["mi_readout_xt"].values).all()
    told = [row for row in command("ls", folder, *options).rows() if row["layer"]]
    assert all("no derivative by an id" in row["not_measured"] for row in told)
    assert all("local_rank" not in row["measures"] for row in told)


def test_rows_that_are_neither_ids_nor_embeddings(command: Run, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", TEXT, text_state())
    np.save(tmp_path / "x.npy", np.full((6, 2), 0.5))
    done = command("cluster", folder, "-m", "hf", "-p", tmp_path / "x.npy", "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "(tokens, 5)" in done.err


def test_configs_of_a_series_say_the_same(command: Run, images: Path, tmp_path: Path) -> None:
    for step, act in ((1, "gelu"), (2, "relu")):
        folder_of(tmp_path / f"run/checkpoint-{step}", {**VISION, "hidden_act": act}, vision_state())
    done = command("cluster", tmp_path / "run", "-m", "hf", "-p", images, "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "'hidden_act' is" in done.err


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
    "a function": ({"architectures": ["Pipeline"]}, "no model class"),
    "no model": ({"architectures": ["PreTrainedConfig"]}, "no model class"),
    "no model of its own": ({"architectures": ["PreTrainedModel"]}, "no model class"),
    "escapes": ({"architectures": ["\x1b[31mTiny"]}, "one class"),
    "no class": ({"architectures": None}, "hf:CLASS"),
    "two classes": ({"architectures": ["TinyForImageClassification"] * 2}, "hf:CLASS"),
    "ids alone": ({"architectures": ["OnlyIds"]}, "no argument inputs_embeds"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "at most"),
    "a billion, inside": ({"depths": [[10**9]]}, "at most"),
    "negative": ({"num_labels": -(10**9)}, "at most"),
    "a hundred thousand layers": ({"num_hidden_layers": 1 << 17}, "larger than the weights"),
    "a wide layer": ({"num_labels": 1 << 17}, "larger than the weights"),
    "a huge mask": ({"max_position_embeddings": 1 << 29}, "buffers"),
    "other sizes": ({"num_labels": 5}, "another shape"),
    "fewer layers": ({"num_hidden_layers": 1}, "unexpected"),
    "text for a number": ({"num_hidden_layers": "two"}, "raised TypeError"),
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


def test_a_config_that_is_no_file_is_not_opened(command: Run, images: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", VISION, vision_state())
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    done = command("cluster", folder, "-m", "hf", "-p", images, "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "a folder" in done.err


def test_kernels_and_names_of_a_config_are_left_out(images: Path, tmp_path: Path) -> None:
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
    # The stand-in holds that none of them arrives, and that the hub may not be asked.
    found = ibscan.cluster(tmp_path / "run", probe=str(images), model="hf")
    assert np.isfinite(found["nc1"].values).all()
    import huggingface_hub.constants

    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_without_the_library_it_says_how_to_get_it(
    command: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    folder = folder_of(tmp_path / "run", VISION, vision_state())
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
def test_callables_of_timm_and_torchvision(command: Run, images: Path, tmp_path: Path, given: list[str]) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    save_file(net.state_dict(), tmp_path / "epoch-1.safetensors")
    done = command("cluster", tmp_path / "epoch-1.safetensors", "-p", images, "-o", tmp_path / "r.h5", "-m", *given)
    assert done.code == 0, done.err
    assert read(tmp_path / "r.h5")["layer"].values.tolist() == ["1", "3"]
