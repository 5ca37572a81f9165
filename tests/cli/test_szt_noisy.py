"""The script that trains the SZT net as a noisy one: what it saves, that noise is on, and what it refuses."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.io
from conftest import FIXTURES, Run
from safetensors import safe_open
from safetensors.torch import load_file

SCRIPT = FIXTURES / "make_szt_noisy.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FIXTURES)
    return importlib.import_module("make_szt_noisy")


@pytest.fixture
def tanh(script: ModuleType) -> ModuleType:
    return sys.modules[script.train.__module__]


@pytest.fixture
def data(tanh: ModuleType, tmp_path: Path) -> Path:
    """A stand-in for the published file: its shapes and types, the labels of szt-tanh."""
    bits = tanh.every_input()
    path = tmp_path / "stand_in.mat"
    scipy.io.savemat(path, {"F": bits.astype(np.uint8), "y": tanh.rule(bits)[None].astype(np.uint8)})
    return path


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])


@pytest.mark.slow
def test_a_run_says_what_it_is(command: Run, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["--data", str(data), "--output", str(run), "--epochs", "3", "--checkpoints", "0,2,9"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in command("ls", run).rows()] == ["0", "2", "3"]
    with safe_open(run / "epoch-00003.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ibscan.noise"], metadata["ibscan.model"]) == ("0.005", "mlp:tanh:softmax")
    assert {"ibscan.metric.test_loss", "ibscan.metric.test_accuracy"} <= set(metadata)
    probe, published = np.load(run / "probe.npz"), scipy.io.loadmat(data)
    np.testing.assert_array_equal(probe["x"], published["F"])
    np.testing.assert_array_equal(probe["y"], published["y"][0])


@pytest.mark.slow
def test_noise_is_on_while_training_and_a_seed_repeats(
    script: ModuleType, tanh: ModuleType, data: Path, tmp_path: Path
) -> None:
    x, y = script.bits_and_labels(data)
    for name, noise in (("clean", None), ("noisy", 0.005), ("again", 0.005)):
        tanh.train(tmp_path / name, x, y, (0, 1), learning_rate=4e-4, seed=0, noise=noise, fused=True)
    for epoch in (0, 1):
        clean, noisy, again = (
            load_file(tmp_path / name / f"epoch-{epoch:05d}.safetensors") for name in ("clean", "noisy", "again")
        )
        for key in clean:
            # Every gradient feels the noise, and none by much in one epoch.
            assert bool((clean[key] == noisy[key]).all()) == (epoch == 0), key
            np.testing.assert_allclose(clean[key], noisy[key], atol=0.01)
            np.testing.assert_array_equal(noisy[key], again[key])


def test_ten_checkpoints_from_epoch_10_to_3000_are_the_default(script: ModuleType) -> None:
    saved = script.saved_epochs(script.CHECKPOINTS, script.EPOCHS)
    assert {10, 23, 68, 236, 515, 2099, 3000} <= set(saved)
    assert len([epoch for epoch in saved if 10 <= epoch <= 3000]) == 10
    assert saved[-1] == 3000
    assert script.saved_epochs(script.CHECKPOINTS, 2000)[-2:] == [1000, 2000]
    assert script.saved_epochs(script.CHECKPOINTS, 10_000)[-2:] == [6700, 10_000]


def test_a_folder_that_is_not_empty_is_refused_and_bad_data_delete_nothing(
    script: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    kept = run / "epoch-00000.safetensors"
    kept.touch()
    typed(monkeypatch, "--data", data, "--output", run)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "is not empty; --force" in capsys.readouterr().err
    scipy.io.savemat(data, {"F": np.zeros((8, 12), np.uint8)})
    typed(monkeypatch, "--data", data, "--output", run, "--force")
    with pytest.raises(SystemExit, match=r"expected F of shape \(4096, 12\) and y of .*found \{'F': \(8, 12\)\}"):
        script.main()
    typed(monkeypatch, "--data", data, "--output", run, "--force", "--epochs", "-1")
    with pytest.raises(SystemExit):
        script.main()
    assert "epoch -1 is before training" in capsys.readouterr().err
    assert kept.exists()
