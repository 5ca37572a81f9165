"""Run folders made by other tools, from the command line: the numbers do not depend on how they were saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from support import layouts
from support.layouts import in_shards, put_safetensors, put_torch

from ibscan.results.store import read

State = dict[str, torch.Tensor]
WIDTHS = (6, 5, 4, 2)
QUICK = ["-m", "mlp:tanh", "-n", "8", "--channel", "readout", "--tolerance", "0.3", "--max-draws", "64"]


def trained(seed: int) -> State:
    return chain(*WIDTHS, seed=seed).state_dict()


def numbers(command: Run, folder: Path, *options: object, verb: str = "rank") -> list[dict[str, str]]:
    """Scan a folder; return its rows without the columns that name files and layers."""
    if not (folder / "probe.npz").exists():
        binary_probe(folder)
    quick = QUICK if verb == "scan" else QUICK[:4]
    done = command(verb, folder, *quick, "-o", folder.parent / f"{folder.name}.h5", *options)
    assert done.code == 0, done.err
    return [{key: value for key, value in row.items() if key not in ("checkpoint", "layer")} for row in done.rows()]


def clean(folder: Path) -> Path:
    for step in (1, 2):
        put_safetensors(folder / f"step-{step}.safetensors", trained(step))
    return folder


def lightning(folder: Path) -> None:
    for step in (1, 2):
        put_torch(folder / f"step={step}.ckpt", layouts.lightning(0, step, trained(step)))


def shards(folder: Path) -> None:
    for step in (1, 2):
        in_shards(folder / f"checkpoint-{step}", "model.safetensors", trained(step), {"epoch": 0}, count=3)


def trainer(folder: Path) -> None:
    for step in (1, 2):
        put_safetensors(layouts.trainer(folder / f"checkpoint-{step}", step, 0) / "model.safetensors", trained(step))


def averages(folder: Path) -> None:
    for step in (1, 2):
        content = layouts.timm(0, {k: t + 9 for k, t in trained(step).items()}, trained(step))
        put_torch(folder / f"step-{step}.pth.tar", content)


def wrapped(folder: Path) -> None:
    for step in (1, 2):
        put_torch(folder / f"step-{step}.pt", layouts.prefixed(trained(step), "module._orig_mod._fsdp_wrapped_module."))


SAVED: list[tuple[Callable[[Path], None], list[str]]] = [
    (lightning, []),
    (lightning, ["--state-key", "model"]),
    (shards, []),
    (trainer, []),
    (averages, ["--weights", "ema"]),
    (wrapped, []),
]


@pytest.mark.slow
def test_the_same_numbers_whatever_it_was_saved_as(command: Run, tmp_path: Path) -> None:
    wanted = [{**row, "epoch": ""} for row in numbers(command, clean(tmp_path / "clean"))]
    for k, (save, options) in enumerate(SAVED):
        folder = tmp_path / f"{save.__name__}{k}"
        folder.mkdir()
        save(folder)
        found = numbers(command, folder, *options)
        assert [{**row, "epoch": ""} for row in found] == wanted, save.__name__
        if save is shards:
            before = (tmp_path / f"{folder.name}.h5").read_bytes()
            numbers(command, folder, *options)
            assert (tmp_path / f"{folder.name}.h5").read_bytes() == before  # nothing was left to measure


def test_sets_of_weights_are_asked_for(command: Run, tmp_path: Path) -> None:
    averages(tmp_path)
    done = command("ls", tmp_path)
    assert done.code == 3
    assert "--weights raw or --weights ema" in done.err


NETWORK = (
    "from torch import nn\n"
    "def build():\n"
    "    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))\n"
)
TYPES = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.slow
def test_narrow_dtypes_give_the_numbers_of_their_float64_copy(command: Run, tmp_path: Path) -> None:
    for step, dtype in enumerate(TYPES):
        narrow = {key: tensor.to(getattr(torch, dtype)) for key, tensor in trained(step).items()}
        put_safetensors(tmp_path / "a" / f"step-{step}.safetensors", narrow)
        put_torch(tmp_path / "b" / f"step-{step}.pt", narrow)
        put_safetensors(
            tmp_path / "wide" / f"step-{step}.safetensors", {k: t.to(torch.float64) for k, t in narrow.items()}
        )
    wanted = numbers(command, tmp_path / "wide", verb="scan")
    assert numbers(command, tmp_path / "a", verb="scan") == wanted
    assert numbers(command, tmp_path / "b", verb="scan") == wanted
    assert [row["dtype"] for row in command("ls", tmp_path / "a").rows()] == list(TYPES)
    # The same weights in their stored precision and through a module of code.
    (tmp_path / "nets.py").write_text(NETWORK)
    code = ["-m", tmp_path / "nets.py:build", "-n", "8", "-o"]
    a, wide = (command("rank", tmp_path / place, *code, tmp_path / f"{place}.m.h5") for place in ("a", "wide"))
    assert a.code == 0, a.err
    assert a.out == wide.out


def test_double_precision_is_not_rounded_by_the_module(command: Run, tmp_path: Path) -> None:
    exact = {key: tensor.double() / 3 for key, tensor in trained(1).items()}
    put_safetensors(tmp_path / "run" / "step-1.safetensors", exact)
    binary_probe(tmp_path / "run")
    (tmp_path / "nets.py").write_text(NETWORK)
    found: list[Any] = []
    for model in ("mlp:tanh", f"{tmp_path / 'nets.py'}:build"):
        done = command("rank", tmp_path / "run", "-m", model, "-n", "4", "-o", tmp_path / f"{len(found)}.h5")
        assert done.code == 0, done.err
        found.append(read(tmp_path / f"{len(found)}.h5")["effective_rank"].values)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


LIGHTNING = """
from torch import nn
def inner():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = inner()
    def forward(self, x):
        return self.model(x)
"""


@pytest.mark.slow
def test_a_lightning_module_and_the_network_in_it(command: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        content = layouts.lightning(0, step, trained(step))
        put_torch(run / f"step={step}.ckpt", content)
    binary_probe(run)
    (tmp_path / "nets.py").write_text(LIGHTNING)
    rows = []
    for name in ("inner", "Whole"):
        done = command("rank", run, "-m", f"{tmp_path / 'nets.py'}:{name}", "-n", "4", "-o", tmp_path / f"{name}.h5")
        assert done.code == 0, done.err
        rows.append([row["result"] for row in done.rows()])
    assert rows[0] == rows[1]
    # A loss with weights of its own: the network alone no longer is all there is.
    for step in (1, 2):
        other: dict[str, Any] = layouts.lightning(0, step, trained(step))
        put_torch(
            run / f"step={step}.ckpt", {**other, "state_dict": {**other["state_dict"], "loss.scale": torch.ones(2)}}
        )
    inner = ["rank", run, "-m", f"{tmp_path / 'nets.py'}:inner", "-n", "4", "-o", tmp_path / "c.h5"]
    done = command(*inner)
    assert done.code == 3
    assert "The names under 'model' are: --state-key model" in done.err
    done = command(*inner, "--state-key", "model")
    assert done.code == 0, done.err
    assert [row["result"] for row in done.rows()] == rows[0]


def test_wrappers_on_both_sides_are_stripped(command: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    residual = {f"module.{k}.module.{p}": t for key, t in trained(1).items() for k, p in [key.split(".")]}
    put_torch(run / "step-1.pt", residual)
    binary_probe(run)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "class Held(nn.Module):\n"
        "    def __init__(self, module):\n"
        "        super().__init__()\n"
        "        self.module = module\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
        "def build():\n"
        "    a, b, c = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)\n"
        "    return nn.Sequential(Held(a), nn.Tanh(), Held(b), nn.Tanh(), Held(c))\n"
    )
    done = command("rank", run, "-m", f"{tmp_path / 'nets.py'}:build", "-n", "4", "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert {row["layer"] for row in done.rows()} >= {"0.module", "2.module", "4.module"}


TIED = """
from torch import nn

class Tied(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
        self[2].weight = self[0].weight
"""


@pytest.mark.parametrize("odd", [0, 1])
def test_a_checkpoint_whose_tied_weights_differ_is_skipped(command: Run, odd: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "tied.py").write_text(TIED)
    for step in range(3):
        weight = torch.eye(4) * (step + 1)
        state = {"0.weight": weight, "2.weight": weight + (step == odd)}
        torch.save(state, tmp_path / f"run/step{step}.pt")
    np.save(tmp_path / "run/probe.npy", np.eye(4))
    done = command("cluster", tmp_path / "run", "-m", f"{tmp_path / 'tied.py'}:Tied", "-o", tmp_path / "r.h5")
    assert done.code == 4, done.err
    assert done.err.count(f"skipped: step{odd}.pt: '0.weight' and '2.weight' differ") == 1
    assert read(tmp_path / "r.h5")["step"].values.tolist() == [step for step in range(3) if step != odd]


def test_one_odd_checkpoint_first_or_last_is_partial(command: Run, tmp_path: Path) -> None:
    for odd in (0, 3):
        run = tmp_path / f"run{odd}"
        for epoch in range(4):
            widths = (6, 9, 4, 2) if epoch == odd else WIDTHS
            put_safetensors(run / f"epoch-{epoch}.safetensors", chain(*widths, seed=epoch).state_dict())
        binary_probe(run)
        done = command("rank", run, "-m", "mlp:tanh", "-n", "4", "-o", tmp_path / f"{odd}.h5")
        assert done.code == 4, done.err
        assert f"skipped: epoch-{odd}.safetensors" in done.err
        assert "3 like epoch-" in done.err
        assert list(json.loads(read(tmp_path / f"{odd}.h5").attrs["skipped"])) == [f"epoch-{odd}.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run-kl{}.safetensors", "kl={}/model.safetensors"])
def test_a_sweep_is_ordered_along_its_own_axis(command: Run, name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for seed, value in enumerate(("-1", "0", "1e-3", "0.5")):
        put_safetensors(run / name.format(value), trained(seed))
    binary_probe(run)
    pattern = name.partition("/")[0].format("{value:kl_weight}")
    (run / "ibscan.toml").write_text(f"[model]\nspec = 'mlp:tanh'\n[series]\npattern = '{pattern}'\n")
    listed = command("ls", run)
    assert listed.code == 0, listed.err
    assert [row["value"] for row in listed.rows()] == ["-1.0", "0.0", "0.001", "0.5"]
    assert {row["step_source"] for row in listed.rows()} == {"pattern"}
    done = command("rank", run, "-n", "4", "-o", tmp_path / "r.h5", "--format", "table", "--all")
    assert done.code == 0, done.err
    assert "kl_weight -1 .. 0.5" in done.out
    lines = [line.split()[:1] for line in done.out.splitlines()]
    assert all([value] in lines for value in ("-1", "0", "0.001", "0.5"))
    assert read(tmp_path / "r.h5")["value"].values.tolist() == [-1.0, 0.0, 0.001, 0.5]
    exported = command("export", tmp_path / "r.h5")
    assert [float(value) for value in dict.fromkeys(row["value"] for row in exported.rows())] == [-1.0, 0.0, 0.001, 0.5]
    shown = command("show", tmp_path / "r.h5", "--format", "table", "--curve")
    assert "kl_weight" in shown.out
    for spec, kept in (("-1:0", [-1, 0]), ("0.001,0.5", [0.001, 0.5]), ("last", [0.5]), ("log:1", [0.5])):
        some = command("rank", run, "-n", "4", "-o", tmp_path / "s.h5", "--force", f"--epochs={spec}")
        assert some.code == 0, some.err
        assert [float(v) for v in dict.fromkeys(row["value"] for row in some.rows())] == kept
    none = command("rank", run, "-n", "4", "-o", tmp_path / "s.h5", "--epochs", "7")
    assert none.code == 5
    assert "kl_weight runs from -1 to 0.5" in none.err
    assert np.isnan(read(tmp_path / "r.h5")["epoch"].values).all()
