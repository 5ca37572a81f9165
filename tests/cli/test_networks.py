"""Networks that are no plain chain, through the command line: code, its weights, its layers, and what ls says of it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import FIXTURES, Run, binary_probe, chain
from safetensors.torch import load_file, save_file
from support import oracles

import ibscan
from ibscan.core.estimate import Status
from ibscan.results.store import read

SCRIPT = FIXTURES / "make_fashion_resnet.py"
# Enough of everything to see that it works.
QUICK = ["--tolerance", "0.5", "--max-replicas", "16", "-n", "12"]
LAYERS = ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.0.shortcut.0", "fc"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_resnet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def residual(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny residual net on made-up images: two checkpoints and a probe of 20 rows."""
    folder = tmp_path_factory.mktemp("residual")
    script.train(folder, *script.synthetic_images(200), epochs=(0, 1), channels=2, blocks=1, probe_rows=20)
    return folder


@pytest.fixture
def untrained(script: ModuleType, tmp_path: Path) -> Path:
    """Save the same net untrained: training imports an optimiser, which takes seconds."""
    folder = tmp_path / "untrained"
    folder.mkdir()
    save_file(script.build(2, 1).state_dict(), folder / "epoch-00000.safetensors")
    x, y = script.synthetic_images(20)
    np.savez(folder / "probe.npz", x=x, y=y)
    return folder


def model(*more: str) -> list[str]:
    return ["--model", f"{SCRIPT}:build", "--model-arg", "channels=2", "--model-arg", "blocks=1", *more]


@pytest.mark.slow
def test_a_residual_net_is_scanned_whole(command: Run, residual: Path, tmp_path: Path) -> None:
    done = command("scan", residual, *model(), *QUICK, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    result = read(tmp_path / "r.h5")
    assert result["layer"].values.tolist() == LAYERS
    assert result["layer_type"].values.tolist() == ["Conv2d"] * 4 + ["Linear"]
    assert result["layer_width"].values.tolist() == [392, 196, 196, 196, 10]
    for name in ("local_rank", "mi_readout_xt", "mi_binned_xt", "nc1", "distance_within_mean"):
        assert np.isfinite(result[name].values).all(), name
    network = result["mi_network_xt"].values[..., 0]
    assert np.isfinite(network[:, :-1]).all()
    assert (result["mi_network_xt_status"].values[:, -1] == Status.NOT_MEASURED).all()
    # No noise comes before the first layer: there the channels are one.
    np.testing.assert_array_equal(network[:, 0], result["mi_readout_xt"].values[:, 0, 0])
    accuracy = result["probe_accuracy"].values
    expected = script_accuracy(residual)
    np.testing.assert_allclose(accuracy, expected)
    again = command("scan", residual, *model(), *QUICK, "-o", tmp_path / "r.h5")
    assert again.code == 0, again.err


def script_accuracy(folder: Path) -> list[float]:
    """Accuracy on the probe, by the model's own forward pass."""
    spec = importlib.util.spec_from_file_location("again", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    probe = np.load(folder / "probe.npz")
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        net = module.build(channels=2, blocks=1).eval()
        net.load_state_dict(load_file(path))
        with torch.no_grad():
            found.append(float((net(torch.tensor(probe["x"])).argmax(1).numpy() == probe["y"]).mean()))
    return found


@pytest.mark.slow
def test_a_table_has_both_channels_and_bins_side_by_side(command: Run, series: Path) -> None:
    assert command("mi", series, "--noise", "0.1", "--tolerance", "0.3", "--epochs", "1,30").code == 0
    head = command("show", "ibscan.h5", "--full", "--format", "table").out.splitlines()
    line = next(line for line in head if "network" in line)
    assert "read-out" in line
    assert "binned" in line


@pytest.mark.slow
def test_a_bracket_left_open_is_printed_and_exported(
    command: Run, series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # all layers in one panel
    budget = ["--max-replicas", "2", "--tolerance", "0.0001", "--max-draws", "8"]
    done = command("mi", series, "--noise", "0.3", *budget, "--channel", "network", "--epochs", "30")
    assert done.code == 0
    assert "unresolved" in done.err
    rows = done.rows()
    full = command("show", "ibscan.h5", "--full", "--format", "table").out
    assert "v [a, b]? the bracket did not close" in " ".join(full.split())
    for key, title in (("xt", "I(X;T)"), ("ty", "I(T;Y)"), ("xt_given_y", "I(X;T|Y)")):
        table = next(part for part in full.split("\n\n") if f"information {title}" in part or f", {title}" in part)
        printed = re.findall(r"\[(\S+), (\S+)\]\?", table)
        stored = [r for r in rows if r["variable"] == f"mi_network_{key}" and r["status"] == "unresolved"]
        assert printed
        assert len(printed) == len(stored)
        for (low, high), row in zip(printed, stored, strict=True):
            assert float(low) <= float(row["lower"]) < float(row["upper"]) <= float(high)


@pytest.mark.slow
def test_code_that_a_checkpoint_names_needs_trust(command: Run, residual: Path, tmp_path: Path) -> None:
    refused = command("rank", residual, "-o", tmp_path / "r.h5")
    assert refused.code == 3
    assert "--trust" in refused.err
    # The copy of the script beside the checkpoints is what they name; sizes are not in them.
    given = ["--model-arg", "channels=2", "--model-arg", "blocks=1", "-n", "2"]
    assert command("rank", residual, "--trust", *given, "-o", tmp_path / "r.h5").code == 0


def test_weights_must_fit_the_model(command: Run, untrained: Path, tmp_path: Path) -> None:
    done = command("rank", untrained, "--model", f"{SCRIPT}:build", "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "another shape" in done.err
    assert "missing" in done.err
    assert not (tmp_path / "r.h5").exists()
    done = command("rank", untrained, *model("--model-arg", "depth=3"), "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "depth" in done.err


def test_a_probe_that_does_not_fit_is_refused(command: Run, untrained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.zeros((4, 5)))
    done = command("rank", untrained, *model(), "-p", tmp_path / "wrong.npy", "-o", tmp_path / "r.h5")
    assert done.code == 3
    assert "conv2d" in done.err


@pytest.mark.slow
def test_prefixes_are_stripped_where_the_names_then_fit(command: Run, residual: Path, tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    for path in residual.glob("*.safetensors"):
        save_file({f"module._orig_mod.{k}": v for k, v in load_file(path).items()}, wrapped / path.name)
    options = [*model(), "-p", residual / "probe.npz", "-n", "3"]
    plain = command("rank", residual, *options, "-o", tmp_path / "a.h5")
    other = command("rank", wrapped, *options, "-o", tmp_path / "b.h5")
    assert plain.code == other.code == 0, other.err
    a, b = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    np.testing.assert_array_equal(a["local_rank"].values, b["local_rank"].values)


@pytest.mark.slow
def test_a_chain_is_the_same_as_code(command: Run, series: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "print('made')\n"
        "def build(width=5):\n"
        "    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 2))\n"
    )
    options = ["--tolerance", "0.3", "--epochs", "3,30"]
    chained = command("scan", series, *options, "-o", tmp_path / "a.h5")
    coded = command("scan", series, *options, "-m", f"{tmp_path}/nets.py:build", "-o", tmp_path / "b.h5")
    assert chained.code == coded.code == 0, coded.err
    assert "made" not in coded.out
    assert "made" in coded.err
    a, b = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    assert set(a.variables) == set(b.variables)
    # In single precision the two round in their own order, and distances fall on the other side of a bin's edge.
    exact = torch.float64 == oracles.DTYPE
    for name in [name for name in a.variables if exact or name.startswith(("mi_readout", "local_rank"))]:
        close = 1e-9 if exact else 1e-4
        np.testing.assert_allclose(a[name].values, b[name].values, rtol=close, atol=close, err_msg=name)


@pytest.mark.slow
def test_code_is_part_of_what_a_result_is(command: Run, series: Path, tmp_path: Path) -> None:
    text = (
        "from torch import nn\ndef build():\n    return nn.Sequential("
        "nn.Linear(6, 5), nn.{}(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))\n"
    )
    code = tmp_path / "nets.py"
    code.write_text(text.format("Tanh"))
    common = ["rank", series, "--epochs", "3", "-o", tmp_path / "r.h5"]
    assert command(*common, "-m", code_spec(code)).code == 0
    # The same file from elsewhere is the same model.
    assert command(*common, "-m", "nets.py:build", inside=tmp_path).code == 0
    code.write_text(text.format("ReLU"))
    changed = command(*common, "-m", code_spec(code))
    assert changed.code == 2
    assert "code" in changed.err


def code_spec(path: Path) -> str:
    return f"{path}:build"


@pytest.mark.slow
def test_other_modules_are_measured_by_name(command: Run, residual: Path, tmp_path: Path) -> None:
    options = [*QUICK, "--channel", "network", "--epochs", "1"]
    all_layers = command("mi", residual, *model(), *options, "-o", tmp_path / "a.h5")
    named = command("mi", residual, *model(), *options, "--layers", "norm", "--layers", "stem", "-o", tmp_path / "a.h5")
    assert all_layers.code == named.code == 0, named.err
    result = read(tmp_path / "a.h5")
    assert result["layer"].values.tolist() == [*LAYERS, "norm"]
    assert result["layer_type"].values.tolist()[-1] == "BatchNorm2d"
    # The post of the norm is that of the layer it follows, noise at the layer excepted.
    assert {row["layer"] for row in named.rows() if row["layer"]} == {"stem", "norm"}
    missed = command("mi", residual, *model(), "--layers", "nothing*", "-o", tmp_path / "b.h5")
    assert missed.code == 5


@pytest.mark.slow
def test_ls_says_what_a_scan_would_do(command: Run, residual: Path, series: Path) -> None:
    done = command("ls", residual, *model(), "--probe", residual / "probe.npz")
    assert done.code == 0, done.err
    assert "a scan would work" in done.err
    layers = {row["layer"]: row for row in done.rows() if row["layer"]}
    assert list(layers) == LAYERS
    assert "mi_network" in layers["stem"]["measures"]
    assert "mi_network" in layers["fc"]["not_measured"]
    assert all(int(row["memory"]) > 0 for row in layers.values())
    scaled = command("ls", residual, *model(), "--probe", residual / "probe.npz", "--probe-arg", "scale=2")
    assert scaled.code == 0, scaled.err
    absent = command("ls", series, "--probe", "absent.npz")
    assert absent.code == 3
    assert len(absent.rows()) == 5
    unfit = command("ls", series, "--probe", residual / "probe.npz")
    assert unfit.code == 3
    assert "196" in unfit.err


@pytest.mark.slow
def test_trained_noise_is_the_default(command: Run, tmp_path: Path) -> None:
    for epoch in (0, 1):
        ibscan.save(tmp_path, chain(6, 5, 4, 2, seed=epoch), epoch=epoch, noise=0.4)
    binary_probe(tmp_path)
    assert command("mi", tmp_path, "--tolerance", "0.3", "-o", tmp_path / "r.h5").code == 0
    assert read(tmp_path / "r.h5")["noise"].values.tolist() == [0.4]


@pytest.mark.slow
def test_the_fashion_fixture_describes_itself(command: Run, tmp_path: Path) -> None:
    folder = FIXTURES / "fashion-mlp"
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 12_000_000
    rows = command("ls", folder).rows()
    assert len(rows) == 12
    assert rows[0]["epoch"] == "0"
    assert {row["chain"] for row in rows} == {"784-128-64-32-10"}
    assert {row["model"] for row in rows} == {"mlp:relu"}
    done = command(
        "mi", folder, "--epochs", "90", "--noise", "2", "-n", "128", "--tolerance", "0.2", "-o", tmp_path / "r.h5"
    )
    assert done.code == 0, done.err
    result = read(tmp_path / "r.h5")
    assert result["probe_accuracy"].values[0] > 0.9
    assert (result["mi_readout_xt_status"].values != Status.NOT_MEASURED).all()


@pytest.mark.slow
def test_both_channels_take_noise_relative_to_each_layer(command: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    common = ["mi", FIXTURES / "fashion-mlp", "--epochs", "90", "-n", "24", "--tolerance", "2", "-o", out]
    done = command(*common, "--rel-noise", "0.3", "--channel", "network")
    assert done.code == 0, done.err
    alone = read(out)
    assert not any(name.startswith("mi_readout") for name in alone.variables)
    status = alone["mi_network_rel_xt_status"].values[0, :, 0]
    assert (status[:3] != Status.NOT_MEASURED).all()
    assert status[3] == Status.NOT_MEASURED
    assert np.isfinite(alone["mi_network_rel_xt"].values[0, :3]).all()
    noise = alone["mi_network_noise_absolute"].values[0, :3, 0]
    assert len(set(noise)) == 3
    assert "network, noise R rms" in command("show", out, "--full", "--format", "table").out
    # The other channel, and another noise, into the same file; what is there is not measured again.
    assert command(*common, "--rel-noise", "0.3", "--rel-noise", "1").code == 0
    both = read(out)
    assert both["rel_noise"].values.tolist() == [0.3, 1.0]
    assert both.settings["measures"]["mi_network"]["rel_noise"] == [0.3, 1.0]
    for name in (name for name in alone.variables if name.startswith(("mi_network_rel", "mi_network_noise"))):
        np.testing.assert_array_equal(both[name].values[..., 0], alone[name].values[..., 0], err_msg=name)
    np.testing.assert_allclose(both["noise_absolute"].values[0, :3, 0], noise, rtol=1e-9)
    np.testing.assert_allclose(
        both["mi_network_rel_xt"].values[0, 0], both["mi_readout_rel_xt"].values[0, 0], rtol=1e-6
    )
    rows = command("export", out, "--variable", "mi_network_rel_xt").rows()
    assert {(row["parameter"], float(row["parameter_value"])) for row in rows} == {("rel_noise", 0.3), ("rel_noise", 1)}


NARROW = """
import torch
from torch import nn


class Bend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Narrow(nn.Module):
    def __init__(self, single=False, bent=False):
        super().__init__()
        self.single, self.bent = single, bent
        self.a, self.b, self.c = (nn.Linear(i, o, bias=False) for i, o in ((12, 2), (2, 10), (10, 6)))

    def forward(self, x):
        h = self.a(x)
        # A Linear of float32 weights takes nothing else.
        h = self.b(h.to(torch.float32) if self.single else h)
        return self.c(Bend.apply(h) if self.bent else h - 0.5 * h)
"""


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A net of rank two, a checkpoint of it in double precision, and a probe."""
    (tmp_path / "net.py").write_text(NARROW)
    g = np.random.default_rng(0)
    sizes = {"a": (2, 12), "b": (10, 2), "c": (6, 10)}
    for epoch in (1, 2):
        state = {f"{name}.weight": torch.tensor(g.normal(size=shape)) for name, shape in sizes.items()}
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save(state, tmp_path / f"run/epoch_{epoch}.pt")
    np.savez(tmp_path / "run/probe.npz", x=g.normal(size=(80, 12)), y=np.arange(80) % 3)
    return tmp_path


@pytest.mark.slow
def test_what_is_counted_is_float64_in_float32_runs_too(command: Run, narrow: Path) -> None:
    options = ["--model", f"{narrow}/net.py:Narrow", "--eps", "1e-9", "--eps", "1e-7", "--dtype", "float32"]
    done = command("rank", narrow / "run", *options, "-o", narrow / "r.h5")
    assert done.code == 0, done.err
    assert (read(narrow / "r.h5")["local_rank"].values == 2.0).all()
    single = command("rank", narrow / "run", *options, "--model-arg", "single=true", "-o", narrow / "s.h5")
    assert single.code == 0, single.err
    assert single.err.count("cannot be computed in float64 throughout") == 1
    status = read(narrow / "s.h5")["local_rank_status"].values
    assert (status[:, 0] == Status.OK).all()
    assert (status[:, 1:] == Status.UNRESOLVED).all()
    strict = command("rank", narrow / "run", *options, "--model-arg", "single=true", "--strict", "-o", narrow / "t.h5")
    assert strict.code == 4


def test_a_chain_in_float32_is_counted_in_float64(command: Run, narrow: Path) -> None:
    options = ["--model", "mlp:identity", "--eps", "1e-9", "--rel-eps", "1e-9", "--dtype", "float32"]
    done = command("rank", narrow / "run", *options, "-o", narrow / "r.h5")
    assert done.code == 0, done.err
    result = read(narrow / "r.h5")
    assert (result["local_rank"].values == 2.0).all()
    assert (result["local_rank_rel"].values == 2.0).all()


@pytest.mark.slow
def test_a_layer_without_a_derivative_spoils_nothing_else(command: Run, narrow: Path) -> None:
    options = ["--model", f"{narrow}/net.py:Narrow", "--model-arg", "bent=true"]
    done = command("scan", narrow / "run", *options, *QUICK, "-o", narrow / "r.h5")
    assert done.code == 4
    assert done.err.count("central differences") == 1
    result = read(narrow / "r.h5")
    status = result["local_rank_status"].values
    assert (status[:, :2] == Status.OK).all()
    assert (status[:, 2] == Status.FAILED).all()
    for name in ("mi_readout_xt", "mi_binned_xt", "distance_within_mean"):
        assert np.isfinite(result[name].values).all(), name
    told = command("ls", narrow / "run", *options, "--probe", narrow / "run/probe.npz")
    assert told.code == 0
    assert "but for local_rank of 'c'" in told.err
    layers = {row["layer"]: row for row in told.rows() if row["layer"]}
    assert "local_rank" in layers["b"]["measures"]
    assert "local_rank" not in layers["c"]["measures"]
    assert "central differences" in layers["c"]["not_measured"]


@pytest.mark.slow
def test_ls_says_where_memory_would_not_do(command: Run, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.cli.probing.free_bytes", lambda _: 2**20)
    told = command("ls", narrow / "run", "--model", f"{narrow}/net.py:Narrow", "--probe", narrow / "run/probe.npz")
    assert told.code == 0
    assert "a scan would work" not in told.err
    assert "1 MiB are free here" in told.err
