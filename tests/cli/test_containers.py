"""`--chain` from the command line, from Python and from ibscan.toml; adapters and ensembles refused with a way out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe
from support.layouts import put_safetensors, put_torch

import ibscan
from ibscan.errors import UsageError
from ibscan.results.store import read

WIDTHS = {"encoder.0": (6, 5), "encoder.2": (5, 3), "decoder.0": (3, 5), "decoder.2": (5, 6)}
CHAIN = "encoder.*,decoder.*"


def coder(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{part}": torch.randn(
            out if part == "bias" else (out, inputs), generator=generator, dtype=torch.float64
        )
        for name, (inputs, out) in WIDTHS.items()
        for part in ("weight", "bias")
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for epoch in (1, 2):
        put_safetensors(tmp_path / "run" / f"epoch_{epoch}.safetensors", coder(epoch))
    binary_probe(tmp_path / "run")
    return tmp_path / "run"


def distances(run: Path, epoch: int, layers: list[str]) -> list[float]:
    """Return the mean distance of all pairs of rows after each layer, computed in plain torch."""
    with np.load(run / "probe.npz") as probe:
        post = probe["x"].reshape(len(probe["x"]), -1).astype(float)
    found = []
    for k, name in enumerate(layers):
        post = post @ coder(epoch)[f"{name}.weight"].numpy().T + coder(epoch)[f"{name}.bias"].numpy()
        post = np.tanh(post) if k + 1 < len(layers) else post
        pairs = np.linalg.norm(post[:, None] - post[None], axis=-1)
        found.append(pairs.sum() / (len(post) * (len(post) - 1)))
    return found


def mean(path: Path) -> np.ndarray:
    result = read(path)
    within, between = (result[f"distance_{kind}"].values.sum(-1) for kind in ("within", "between"))
    sums = result["distance_within_mean"].values * within + result["distance_between_mean"].values * between
    return sums / (within + between)


@pytest.mark.slow
def test_a_chain_of_containers_is_what_it_says(command: Run, run: Path, tmp_path: Path) -> None:
    scan = ["cluster", run, "-m", "mlp:tanh", "-o", tmp_path / "r.h5"]
    refused = command(*scan)
    assert refused.code == 3
    assert "(decoder, encoder)" in refused.err or "(encoder, decoder)" in refused.err
    # The command it shows is one that works.
    shown = shlex.split(refused.err[refused.err.index("--chain") :].partition(" says")[0])
    assert shown == ["--chain", CHAIN]
    done = command(*scan, *shown)
    assert done.code == 0, done.err
    assert read(tmp_path / "r.h5").coordinates["layer"].values.tolist() == list(WIDTHS)
    np.testing.assert_allclose(mean(tmp_path / "r.h5"), [distances(run, epoch, list(WIDTHS)) for epoch in (1, 2)])
    # Another order is another network, and the file belongs to the first one.
    other = command(*scan, "--chain", "decoder.*")
    assert other.code == 3  # three numbers into the first layer: the probe has six
    other = command(*scan, "--chain", "encoder.*")
    assert other.code == 2
    assert "holds another result: layers is" in other.err
    other = command(*scan, "--chain", "encoder.*", "--force")
    assert other.code == 0
    assert "decoder.* is not measured: no glob of --chain takes it" in other.err
    np.testing.assert_allclose(mean(tmp_path / "r.h5"), [distances(run, epoch, list(WIDTHS)[:2]) for epoch in (1, 2)])


def test_the_same_chain_from_python_and_the_manifest(command: Run, run: Path) -> None:
    given = [
        ibscan.cluster(run, model="mlp:tanh", chain=chain) for chain in (CHAIN, CHAIN.split(","), "encoder,decoder")
    ]
    (run / "ibscan.toml").write_text(f'[model]\nspec = "mlp:tanh"\nchain = "{CHAIN}"\n')
    given.append(ibscan.cluster(run))
    for one in given[1:]:
        np.testing.assert_array_equal(one["distance_within_mean"].values, given[0]["distance_within_mean"].values)
    assert len(ibscan.cluster(run, chain="encoder.*")["nc1"].values[0]) == 2  # what is typed counts
    listed = command("ls", run)
    assert [row["chain"] for row in listed.rows()] == ["6-5-3-5-6"] * 2
    assert command("ls", run, "--chain", "encoder.*").rows()[0]["chain"] == "6-5-3"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--chain", "encoder.*,critic.*"], 5, "'critic.*' matches none"),
        (["--chain", "encoder.*,,decoder.*"], 2, "expected globs"),
        (["--chain", ""], 2, "expected globs"),
        (["--chain", "encoder.2,encoder.0"], 3, "do not feed one another in that order"),
        (["--chain", "encoder.*", "-m", "{}:build"], 2, "is code"),
        (["--state-key", "encoder"], 0, ""),
    ],
)
def test_chains_that_cannot_be_are_refused(command: Run, run: Path, options: list[str], code: int, words: str) -> None:
    (run.parent / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(6, 5)\n")
    typed = [option.format(run.parent / "net.py") for option in options]
    done = command(
        "cluster", run, *(["-m", "mlp:tanh"] if "-m" not in typed else []), *typed, "-o", run.parent / "r.h5"
    )
    assert done.code == code, done.err
    assert words in done.err


def test_a_chain_of_code_in_python(run: Path) -> None:
    with pytest.raises(UsageError, match="is code"):
        ibscan.cluster(run, model=f"{run.parent / 'net.py'}:build", chain="encoder.*")


def test_adapters_alone_are_no_network(command: Run, tmp_path: Path) -> None:
    shapes = {"fc1.lora_A": (2, 6), "fc1.lora_B": (8, 2), "fc2.lora_A": (2, 8), "fc2.lora_B": (3, 2)}
    folder = tmp_path / "run/checkpoint-500"
    put_torch(folder / "adapter_model.bin", {f"{key}.weight": torch.ones(shape) for key, shape in shapes.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["fc1", "fc2"]}))
    binary_probe(tmp_path / "run")
    (tmp_path / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(6, 5)\n")
    for model in (["-m", "mlp:relu"], ["-m", f"{tmp_path / 'net.py'}:build"], ["-m", "hf"], []):
        done = command("cluster", tmp_path / "run", *model, "-o", tmp_path / "r.h5")
        assert done.code == 3, done.err
        assert not done.out
        assert "adapters alone" in done.err
        assert "Merge them into their base" in done.err
    assert command("ls", tmp_path / "run").code == 0
