"""The shipped series: it describes itself, it is what its script says, and it shows what the README tells of it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import FIXTURES, Run

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.results.store import read

pytestmark = pytest.mark.slow

SERIES = FIXTURES / "szt-tanh"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_szt_tanh", FIXTURES / "make_szt_tanh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, int]:
    """Scan four epochs in a process of its own; the result, and its peak memory in bytes."""
    output = tmp_path_factory.mktemp("fixture") / "r.h5"
    arguments = ["scan", str(SERIES), "--channel", "readout", "--epochs", "0,13,38,1000", "-o", str(output)]
    scan = [sys.executable, "-m", "ibscan", *arguments]
    # A process of its own counts its children, and no other tests'.
    peak = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", peak, *scan], capture_output=True, text=True, check=False, cwd=output.parent
    )
    assert done.returncode == 0, done.stderr
    return read(output), int(done.stdout) * 1024


def test_the_probe_is_the_script_s(script: ModuleType) -> None:
    bits = script.every_input()
    labels = script.rule(bits)
    stored = np.load(SERIES / "probe.npz")
    np.testing.assert_array_equal(stored["x"], 2.0 * bits - 1.0)
    np.testing.assert_array_equal(stored["y"], labels)
    assert labels.sum() == 2048
    # Some bits never matter: flipping one of them changes no label.
    for bit in (9, 10, 11):
        np.testing.assert_array_equal(labels[np.arange(4096) ^ (1 << bit)], labels)
    for bit in range(9):
        assert (labels[np.arange(4096) ^ (1 << bit)] != labels).any()


def test_the_folder_is_small_and_whole(command: Run) -> None:
    assert sum(path.stat().st_size for path in SERIES.iterdir()) < 2**20
    rows = command("ls", SERIES).rows()
    assert len(rows) == 20
    assert rows[0]["epoch"] == "0"
    assert {row["step_source"] for row in rows} == {"metadata"}
    assert {row["model"] for row in rows} == {"mlp:tanh:softmax"}
    assert {row["chain"] for row in rows} == {"12-10-7-5-4-3-2"}


def test_the_last_layers_compress(scanned: tuple[Result, int]) -> None:
    result, _ = scanned
    assert result["layer"].values.tolist() == [f"fc{k}" for k in range(1, 7)]
    accuracy = result["probe_accuracy"].values
    assert accuracy[0] == pytest.approx(0.5, abs=0.01)
    assert accuracy[-1] > 0.98
    information = result["mi_readout_xt"].values[..., 0]
    for layer in (3, 4):  # up while the net learns, then down by more than half a nat
        assert information[0, layer] < information[1, layer]
        assert information[2, layer] - information[3, layer] > 0.5
    assert information[3, 5] == pytest.approx(np.log(2), abs=0.01)
    assert (result["mi_readout_xt_status"].values[0, 0] == Status.SATURATED).all()
    assert result["mi_binned_xt"].values[3, 4, 0] < result["mi_binned_xt"].values[2, 4, 0] - 0.5
    assert result["nc1"].values[3, 4] < 0.01 * result["nc1"].values[1, 4]
    assert result["local_rank"].values[3, 5, 1] < result["local_rank"].values[2, 5, 1]


def test_every_number_keeps_its_bounds(scanned: tuple[Result, int]) -> None:
    result, _ = scanned
    value, error = result["mi_readout_xt"].values, result["mi_readout_xt_se"].values
    ceiling = np.log(4096)
    assert (value <= ceiling + 1e-9).all()
    assert (value <= result["mi_readout_cap"].values + 4 * error + 1e-9).all()
    assert (value >= result["mi_readout_xt_lower"].values - 4 * error - 1e-9).all()
    assert (value <= result["mi_readout_xt_upper"].values + 4 * error + 1e-9).all()
    label, label_error = result["mi_readout_ty"].values, result["mi_readout_ty_se"].values
    assert (label >= -4 * label_error - 1e-9).all()
    assert (label <= np.log(2) + 4 * label_error + 1e-9).all()
    assert (result["mi_binned_xt"].values <= ceiling + 1e-9).all()
    pairs = result["distance_within"].values.sum(-1) + result["distance_between"].values.sum(-1)
    assert (pairs == 4096 * 4095 // 2).all()
    rank = result["local_rank"].values
    assert (np.diff(rank, axis=-1) <= 0).all()
    assert (rank <= result["layer_width"].values[None, :, None]).all()


def test_4096_rows_run_in_under_two_gibibytes(scanned: tuple[Result, int]) -> None:
    assert scanned[1] < 2 * 2**30


def test_the_network_channel_is_resolved_and_loses_information_at_every_layer(command: Run, tmp_path: Path) -> None:
    done = command("mi", SERIES, "--channel", "network", "--epochs", "1000", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    result = read(tmp_path / "r.h5")
    value, error = result["mi_network_xt"].values[0, :5, 0], result["mi_network_xt_se"].values[0, :5, 0]
    assert np.isin(result["mi_network_xt_status"].values[0, :5, 0], (Status.OK, Status.SATURATED)).all()
    assert (1.96 * error <= 0.05).all()
    half = (result["mi_network_xt_upper"].values - result["mi_network_xt_lower"].values)[0, :5, 0] / 2
    assert (half <= 0.1 + 1e-9).all()
    assert (np.diff(value) < 0).all()
    assert (value <= result["mi_network_cap"].values[0, :5, 0] + half).all()
    # What README says: 3.78 at fc2, 0.65 at fc5, after 8.00 at fc1.
    assert value == pytest.approx([8.0, 3.78, 2.17, 0.92, 0.65], abs=0.1)
