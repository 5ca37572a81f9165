"""Training scripts are recognised from their source, before any of it runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ibscan.errors import InputError
from ibscan.inputs.code.load import named_callable
from ibscan.inputs.code.scripts import import_effect

HEAD = """
import gzip, json, logging, os, pickle, random, shutil, subprocess, sys, warnings
from pathlib import Path
import numpy as np
import torch
import torch as t
from torch import nn, save as keep
HERE = Path(__file__).parent
"""
# What stands at a module's level, and what of it is named.
SCRIPTS = [
    ("torch.save({}, 'a.pt')", "torch.save"),
    ("t.save({}, 'a.pt')", "t.save"),
    ("keep({}, 'a.pt')", "keep"),
    ("import ibscan\nfor epoch in range(3):\n    ibscan.save('.', net, epoch=epoch)", "ibscan.save"),
    ("from ibscan import save\nsave('.', net)", "save"),
    ("from safetensors.torch import save_file\nsave_file({}, 'a.safetensors')", "save_file"),
    ("from safetensors.numpy import *\nsave_file({}, 'a.safetensors')", "save_file"),
    ("for x in data:\n    loss(net(x)).backward()", "loss(net(x)).backward"),
    ("for x in data:\n    optimizer.step()", "optimizer.step"),
    ("while True:\n    if random.random() < 0.1:\n        scaler.step(opt)", "scaler.step"),
    ("with torch.enable_grad():\n    net.fit(data)", "net.fit"),
    ("try:\n    model.fit(data)\nfinally:\n    pass", "model.fit"),
    ("try:\n    pass\nexcept ValueError:\n    pass\nelse:\n    trainer.train()", "trainer.train"),
    ("import lightning as L\nL.Trainer(max_epochs=3).fit(net)", "L.Trainer(max_epochs=3).fit"),
    ("hf_trainer.train()", "hf_trainer.train"),
    ("booster = xgb.train({}, data)", "xgb.train"),
    ("np.savez('a.npz', x=1)", "np.savez"),
    ("np.save('a.npy', 1)", "np.save"),
    ("json.dump({}, sys.stdout)", "json.dump"),
    ("pickle.dump({}, out)", "pickle.dump"),
    ("open('log.txt', 'w')", "open"),
    ("with open('log.txt', mode='a') as log:\n    pass", "open"),
    ("with open('log.txt', 'rb+') as log:\n    pass", "open"),
    ("gzip.open('a.gz', 'wt')", "gzip.open"),
    ("(HERE / 'log').open('w')", "(HERE / 'log').open"),
    ("import h5py\nh5py.File('a.h5', 'w')", "h5py.File"),
    ("(HERE / 'log.txt').write_text('a')", "write_text"),
    ("Path('a').unlink()", "unlink"),
    ("os.remove('a')", "os.remove"),
    ("os.replace('a', 'b')", "os.replace"),
    ("Path('a').rename('b')", "rename"),
    ("shutil.rmtree('ckpts', ignore_errors=True)", "shutil.rmtree"),
    ("net.save_pretrained('out')", "save_pretrained"),
    ("logging.basicConfig(filename='log.txt')", "logging.basicConfig"),
    ("from torch.utils.tensorboard import SummaryWriter\nwriter = SummaryWriter()", "SummaryWriter"),
    ("frame.to_csv('rows.csv')", "to_csv"),
    ("os.system('rm -rf ckpts')", "os.system"),
    ("subprocess.run([sys.executable, 'train.py'])", "subprocess.run"),
    ("x = [torch.save(k, f'{k}.pt') for k in range(3)]", "torch.save"),
    ("match os.name:\n    case 'posix':\n        torch.save({}, 'a.pt')", "torch.save"),
    ("class Config:\n    torch.save({}, 'a.pt')", "torch.save"),
    ("def f(x=torch.save({}, 'a.pt')): pass", "torch.save"),
    ("def main():\n    torch.save({}, 'a.pt')\nmain()", "torch.save"),
    ("def main():\n    train()\ndef train():\n    for x in data:\n        opt.step()\nsys.exit(main())", "opt.step"),
    ("async def main():\n    torch.save({}, 'a.pt')\nimport asyncio\nasyncio.run(main())", "torch.save"),
    ("def main(argv):\n    torch.save({}, 'a.pt')\nfrom absl import app\napp.run(main)", "torch.save"),
    ("import typer\napp = typer.Typer()\n@app.command()\ndef go():\n    torch.save({}, 'a')\napp()", "torch.save"),
    ("def work(rank):\n    opt.step()\nimport torch.multiprocessing as mp\nmp.spawn(work, nprocs=1)", "opt.step"),
    ("go = lambda: torch.save({}, 'a.pt')\ngo()", "torch.save"),
    ("def go(trial):\n    opt.step()\nimport optuna\nstudy = optuna.create_study()\nstudy.optimize(go)", "opt.step"),
    ("from lightning.pytorch.cli import LightningCLI\nLightningCLI(Net)", "LightningCLI"),
    ("def main():\n    def inner():\n        torch.save({}, 'a.pt')\n    inner()\nmain()", "torch.save"),
    (
        "class Run:\n    def __init__(self):\n        self.go()\n    def go(self):\n        opt.step()\nRun()",
        "opt.step",
    ),
    ("class Run:\n    def go(self):\n        opt.step()\nrun = Run()\nrun.go()", "opt.step"),
    ("class A:\n    def go(self):\n        opt.step()\nclass B(A):\n    pass\nB().go()", "opt.step"),
    ("class Run:\n    def __call__(self):\n        opt.step()\nrun = Run()\nrun()", "opt.step"),
    ("class Run:\n    def __call__(self):\n        opt.step()\nRun()()", "opt.step"),
    ("from functools import partial\ndef go(n):\n    opt.step()\nrun = partial(go, 3)\nrun()", "opt.step"),
    ("import atexit\ndef bye():\n    open('log.txt', 'a')\natexit.register(bye)", "open"),
    ("import atexit\natexit.register(lambda: open('log.txt', 'a'))", "open"),
    ("old = Path('a.pt')\nold.rename('b.pt')", "old.rename"),
    ("os.symlink('a.pt', 'last.pt')", "os.symlink"),
    ("from logging.handlers import TimedRotatingFileHandler as H\nlog = H('a.log')", "H"),
    ("if __name__ == '__main__':\n    pass\nelse:\n    torch.save({}, 'a.pt')", "torch.save"),
    ("if __name__ != '__main__':\n    torch.save({}, 'a.pt')", "torch.save"),
    ("if os.environ.get('TRAIN'):\n    torch.save({}, 'a.pt')", "torch.save"),
]
MODELS = [
    "print('a'); torch.manual_seed(0); np.random.seed(0); random.seed(0)",
    "warnings.filterwarnings('ignore'); logging.basicConfig(level=10); os.environ['A'] = 'b'",
    "state = torch.load('a.pt'); data = np.load('x.npz'); text = open('a.txt').read(); json.load(open('a', 'rb'))",
    "Path('a').read_text(); (HERE / 'a').open(); (HERE / 'a').open('rb'); gzip.open('a', 'rb')",
    "net = nn.Linear(2, 2); net.train(); net.train(False); net.eval(); net.train(mode=True); net.load_state_dict({})",
    "opt = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)",
    "if __name__ == '__main__':\n    torch.save({}, 'a.pt')",
    "if '__main__' == __name__:\n    torch.save({}, 'a.pt')",
    "if __name__ == '__main__' and len(sys.argv) > 1:\n    torch.save({}, 'a.pt')",
    "if __name__ in ('__main__', '__mp_main__'):\n    torch.save({}, 'a.pt')",
    "if not __name__ == '__main__':\n    pass\nelse:\n    torch.save({}, 'a.pt')",
    "if False:\n    torch.save({}, 'a.pt')",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    torch.save({}, 'a.pt')",
    "def train():\n    opt.step()\ndef main():\n    train()\nif __name__ == '__main__':\n    main()",
    "class Net(nn.Module):\n    def fit(self, x):\n        opt.step()\n    def save(self):\n        torch.save(1, 'a')",
    "class Net(nn.Module):\n    pass\nnet = Net()",
    "class Plain:\n    def fit(self, x):\n        self.mean = x.mean()\nscale = Plain().fit(np.ones(3))",
    "go = lambda: torch.save({}, 'a.pt')",
    "import functools\n@functools.cache\ndef build():\n    return nn.Linear(2, 2)",
    "from safetensors.torch import save\nraw = save({})",
    "sha = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True)",
    "sys.stdout.write('a'); print('a', file=sys.stderr)",
    "Path('out').mkdir(exist_ok=True); os.makedirs('out', exist_ok=True)",
    "names = 'a b'.replace(' ', '_'); text = json.dumps({}); raw = pickle.dumps({})",
    "rows = frame.to_csv(); data = load_dataset('mnist', download=True)",
    "def step():\n    opt.step()\nsteps = [step]",
    "import io\nraw = io.BytesIO()\ntorch.save(nn.Linear(2, 2).state_dict(), raw)",
    "from io import StringIO\njson.dump({}, StringIO())",
    "from functools import partial\ndef go(n):\n    opt.step()\nrun = partial(go, 3)",
    "class Table(dict):\n    def register(self, f):\n        return f\ndef go():\n    opt.step()\nTable().register(go)",
    "table = dict(map(str.split, ['a b']))",
    "def (:",
]


def effect_of(tmp_path: Path, text: str) -> str | None:
    path = tmp_path / "net.py"
    path.write_text(HEAD + text)
    found = import_effect([("ibscan_test_net", path)])
    assert found is None or found.file == path
    return None if found is None else found.text


@pytest.mark.parametrize(("text", "call"), SCRIPTS, ids=[row[0][:40] for row in SCRIPTS])
def test_a_training_script_is_recognised(tmp_path: Path, text: str, call: str) -> None:
    found = effect_of(tmp_path, text)
    assert found is not None
    assert call in found


@pytest.mark.parametrize("text", MODELS, ids=[text[:40] for text in MODELS])
def test_files_that_only_define_and_read_are_no_scripts(tmp_path: Path, text: str) -> None:
    assert effect_of(tmp_path, text) is None


@pytest.mark.parametrize(
    "text",
    ["x = " + "+".join(["1"] * 50_000), "(" * 300 + ")" * 300, "\0", "# -*- coding: nonsense -*-", "é = 'ü'", ""],
    ids=range(6),
)
def test_invalid_source_is_left_to_python(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    assert import_effect([("ibscan_test_odd", tmp_path / "odd.py")]) is None


# Files beside the one named: how it uses them, and what they hold.
BESIDE = [
    ("import ibscan_t_one", "torch.save({}, 'a.pt')"),
    ("from ibscan_t_one import thing", "torch.save({}, 'a.pt')\nthing = 1"),
    ("from ibscan_t_one import *", "torch.save({}, 'a.pt')"),
    ("try:\n    import ibscan_t_one\nexcept ImportError:\n    pass", "for x in y:\n    opt.step()"),
    ("import importlib\nimportlib.import_module('ibscan_t_one')", "torch.save({}, 'a.pt')"),
    ("import ibscan_t_one\nibscan_t_one.train()", "def train():\n    torch.save({}, 'a.pt')"),
    ("import ibscan_t_one as one\none.Run(3).go()", "class Run:\n    def go(self):\n        opt.step()"),
    ("from ibscan_t_one import train as go\ngo()", "def train():\n    torch.save({}, 'a.pt')"),
    ("from ibscan_t_two import train\ntrain()", "def train():\n    torch.save({}, 'a.pt')"),
    ("def build():\n    import ibscan_t_one", "torch.save({}, 'a.pt')"),
    ("def build():\n    return helper()\ndef helper():\n    from ibscan_t_one import Net", "torch.save({}, 'a.pt')"),
]


@pytest.mark.slow
@pytest.mark.parametrize("module", [False, True], ids=["path", "module"])
@pytest.mark.parametrize(("text", "other"), BESIDE, ids=[row[0][:40] for row in BESIDE])
def test_scripts_that_a_file_imports_are_recognised(
    tmp_path: Path, text: str, other: str, module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "place"
    tmp_path.mkdir()
    (tmp_path / "ibscan_t_one.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'x')\n{HEAD}\n{other}\n")
    (tmp_path / "ibscan_t_two.py").write_text("from ibscan_t_one import *\nfrom ibscan_t_one import train\n")
    if "train()" in text or "Run" in text:
        (tmp_path / "ibscan_t_one.py").write_text(f"{HEAD}\n{other}\n")
    (tmp_path / "ibscan_t_net.py").write_text(f"import os\nos.mkdir('ran')\n{text}\ndef other(): pass\n")
    name = "build" if "build" in text else "other"
    if module:
        monkeypatch.syspath_prepend(tmp_path)
    spec = f"ibscan_t_net:{name}" if module else f"{tmp_path / 'ibscan_t_net.py'}:{name}"
    with pytest.raises(InputError, match=r"ibscan_t_one.py, line \d+, calls .*__main__.*--run-script"):
        named_callable(spec, "--model")
    assert not (tmp_path / "canary").exists()
    assert not Path("ran").exists()
    assert not {"ibscan_t_net", "ibscan_t_one", "ibscan_t_two"} & set(sys.modules)


def test_scripts_behind_relative_imports_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "place/ibscan_t_package"
    (package / "sub").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "place")
    files = {"__init__.py": "", "sub/__init__.py": "", "sub/net.py": "def build(): return 3", "run.py": ""}

    def write(**changed: str) -> None:
        for name, text in {**files, **{k.replace("__sub_", "sub/") + ".py": v for k, v in changed.items()}}.items():
            (package / name).write_text(text)

    for changed in (
        {"__init__": "import torch\ntorch.save({}, 'a')"},
        {"sub/net": "from . import run\ndef build(): pass", "sub/run": "opt.step()"},
        {"sub/net": "from ..run import go\ndef build(): pass", "run": "opt.step()"},
        {"sub/net": "from .. import run\nrun.go()\ndef build(): pass", "run": "def go():\n    opt.step()"},
    ):
        write(**changed)
        with pytest.raises(InputError, match="--run-script"):
            named_callable("ibscan_t_package.sub.net:build", "-m")
    write()
    assert named_callable("ibscan_t_package.sub.net:build", "-m")() == 3
    for name in [name for name in sys.modules if name.startswith("ibscan_t_package")]:
        del sys.modules[name]


CALLABLES = [
    ("def build():\n    torch.save(net.state_dict(), 'a.pt')", "torch.save"),
    ("def build():\n    return train()\ndef train():\n    loss.backward()", "loss.backward"),
    ("def build():\n    for x in y:\n        optimizer.step()", "optimizer.step"),
    ("def build():\n    trainer.fit(net)", "trainer.fit"),
    ("class build:\n    def __init__(self):\n        torch.save(net.state_dict(), 'a.pt')", "torch.save"),
    ("class Runs:\n    @staticmethod\n    def build():\n        torch.save(net.state_dict(), 'a.pt')", "torch.save"),
]
CACHES = [
    "def build():\n    torch.save({'x': 3}, 'cache.pt')",
    "def build():\n    x = StandardScaler().fit(3)",
    "def build():\n    np.save('cache.npy', 3)",
    "class build(nn.Module):\n    def train_step(self):\n        torch.save({}, 'a.pt')",
]


@pytest.mark.parametrize(("text", "call"), CALLABLES, ids=[row[0][:40] for row in CALLABLES])
def test_a_callable_that_trains_is_not_called(tmp_path: Path, text: str, call: str) -> None:
    (tmp_path / "net.py").write_text(HEAD + text)
    name = "Runs.build" if "Runs" in text else "build"
    with pytest.raises(InputError, match=rf"calls {call}\(\.\.\.\) when it is called"):
        named_callable(f"net.py:{name}", "-m")


@pytest.mark.parametrize("text", CACHES)
def test_a_callable_may_cache_its_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.py").write_text(HEAD + text)
    assert callable(named_callable("net.py:build", "-m"))


def test_run_script_runs_a_script_once(tmp_path: Path) -> None:
    text = "with open('count', 'a') as file:\n    file.write('x')\ndef build(): return 1\ndef probe(): return 2\n"
    (tmp_path / "net.py").write_text(text)
    for spec in ("net.py:build", f"{tmp_path}/net.py:probe", "./net.py:build"):
        with pytest.raises(InputError, match="--run-script"):
            named_callable(spec, "-m")
    assert not Path("count").exists()
    for spec in ("net.py:build", f"{tmp_path}/net.py:probe", "./net.py:build"):
        named_callable(spec, "-m", run_script=True)()
    assert Path("count").read_text() == "x"
    # What changed since is another file.
    (tmp_path / "net.py").write_text(text.replace("return 1", "return 7"))
    assert named_callable("net.py:build", "-m", run_script=True)() == 7
    assert Path("count").read_text() == "xx"


ONCE = """
import sys
from pathlib import Path
from ibscan.inputs.code.load import called, named_callable
sys.dont_write_bytecode = False
for spec in sys.argv[1:]:
    called(named_callable(spec, "-m"), {}, "-m")
assert not sys.dont_write_bytecode
print(*sorted(path.name for path in Path("ran").iterdir()), *(p.name for p in Path(".").rglob("__pycache__")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "specs",
    [
        ["place/net.py:build", "place/net.py:probe"],
        ["place/data.py:probe", "place/net.py:build"],
        ["place/net.py:build", "place/data.py:probe"],
        ["net:build", "place/net.py:probe"],
        ["place/net.py:probe", "net:build"],
        ["place/late.py:probe", "place/net.py:build", "place/data.py:probe"],
    ],
    ids=" ".join,
)
def test_a_file_is_loaded_once_under_whatever_name(tmp_path: Path, specs: list[str]) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "ran").mkdir()
    count = f"""
    import os, tempfile
    tempfile.mkdtemp(prefix=__file__.rpartition("/")[2] + "-", dir={str(tmp_path / "ran")!r})
    """
    for name, text in {
        "net": "def build(): pass\ndef probe(): pass",
        "data": "import net\ndef probe(): return net.probe()",
        "late": "def probe():\n    import net\n    return net.probe()",
    }.items():
        (tmp_path / "place" / f"{name}.py").write_text(textwrap.dedent(count) + text)
    path = [str(Path(__file__).parents[2]), *([str(tmp_path / "place")] if "net:build" in specs else [])]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{ONCE}", *specs]
    out = subprocess.run(command, stdout=-1, text=True, check=True).stdout.split()
    assert len(out) == len({name.partition("-")[0] for name in out}), out
    assert "__pycache__" not in out


def test_code_sees_a_command_line_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    import argparse, sys
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=8)
    WIDTH = parser.parse_args().width
    def build(): return WIDTH, parser.parse_args().width, list(sys.argv)
    """
    (tmp_path / "net.py").write_text(textwrap.dedent(text))
    monkeypatch.setattr(sys, "argv", ["ibscan", "rank", "run", "--seed", "3"])
    assert named_callable("net.py:build", "-m")() == (8, 8, ["net.py"])
    assert sys.argv == ["ibscan", "rank", "run", "--seed", "3"]
