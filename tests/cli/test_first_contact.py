"""What a newcomer types first: what is missing is said at once, with a command to copy; the help is readable."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from support.layouts import put_torch
from torch import nn

import ibscan
from ibscan.cli.glossary import commands
from ibscan.engine.hints import output_argument
from ibscan.inputs.code.definitions import MOST_BYTES, definitions, fitting

MLP = """
from torch import nn

class MLP(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc2(self.fc1(x).tanh())

if __name__ == "__main__":
    raise RuntimeError("trains")
"""
CONV = """
import torch.nn as nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu()

class Net(nn.Module):
    def __init__(self, depth, n_labels=5):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.blocks = nn.Sequential(*[Block(2) for _ in range(depth)])
        self.head = nn.Linear(2, n_labels)

    def forward(self, x):
        return self.head(self.blocks(self.norm(self.stem(x))).mean((2, 3)))

def small_net(n_labels=5):
    net = Net(1, n_labels)
    return net
"""


def mlp_state(outputs: int = 2) -> dict[str, torch.Tensor]:
    layers = {"fc1": nn.Linear(6, 4), "fc2": nn.Linear(4, outputs)}
    return {f"{name}.{key}": tensor for name, layer in layers.items() for key, tensor in layer.state_dict().items()}


def conv_state() -> dict[str, torch.Tensor]:
    layers = {"stem": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "blocks.0.conv": nn.Conv2d(2, 2, 3)}
    layers["head"] = nn.Linear(2, 3)
    return {f"{name}.{key}": tensor for name, layer in layers.items() for key, tensor in layer.state_dict().items()}


def plain() -> None:
    put_torch(Path("runs/epoch1.pt"), mlp_state())


def scripted() -> None:
    plain()
    Path("train.py").write_text(MLP)


def script_in_the_run() -> None:
    plain()
    Path("runs/train.py").write_text(MLP)


def convolutional() -> None:
    put_torch(Path("runs/epoch1.pt"), conv_state())


def with_its_code() -> None:
    convolutional()
    Path("nets.py").write_text(CONV)


def wider() -> None:
    put_torch(Path("runs/epoch1.pt"), mlp_state(outputs=10))
    binary_probe(Path("runs"))
    Path("train.py").write_text(MLP)
    Path("plain.py").write_text(MLP.replace("num_classes", "d"))


def several_runs() -> None:
    for letter in "ab":
        for epoch in (1, 2):
            put_torch(Path(f"runs/run {letter}/epoch{epoch}.pt"), mlp_state())


def logs() -> None:
    put_torch(Path("runs/lightning_logs/version_0/checkpoints/epoch=1.ckpt"), mlp_state())
    put_torch(Path("runs/lightning_logs/version_0/checkpoints/epoch=2.ckpt"), mlp_state())


def averaged_parts() -> None:
    sides = (("encoder", chain(6, 5, 4)), ("decoder", chain(4, 5, 6)))
    state = {f"{side}.{key}": tensor for side, net in sides for key, tensor in net.state_dict().items()}
    put_torch(Path("runs/epoch1.pt"), {"model": state, "ema": state})


def pixels() -> None:
    plain()
    np.savez("runs/probe.npz", x=np.arange(256, dtype=np.uint8)[:252].reshape(42, 6), y=np.arange(42) % 2)


def arrays_beside() -> None:
    plain()
    binary_probe(Path()).rename("test set.npz")


def optimizer() -> None:
    net = chain(6, 4)
    put_torch(Path("runs/opt.pt"), torch.optim.Adam(net.parameters()).state_dict())


def whole() -> None:
    Path("runs").mkdir()
    for epoch in (1, 2):
        torch.save(chain(6, 4), f"runs/epoch{epoch}.pt")


def result() -> None:
    Path("run.h5").write_bytes(b"")


def nothing() -> None:
    Path("runs").mkdir()


SAVEZ = "  np.savez('runs/probe.npz', x=x, y=y)"
# Situation, what is typed, exit code, the command below the message, what else is said.
CONTACTS: list[tuple[Callable[[], None], str, int, str, tuple[str, ...]]] = [
    (
        plain,
        "scan runs",
        2,
        "scan runs --model mlp:ACT --probe runs/probe.npz",
        ("activation", "mlp:tanh", "no probe", "  import numpy as np", SAVEZ, "--probe data.py:FUNCTION"),
    ),
    (
        plain,
        "rank runs --follow -o r.h5",
        2,
        "rank runs --follow -o r.h5 --model mlp:ACT --probe runs/probe.npz",
        ("activation", "no probe"),
    ),
    (nothing, "rank runs --follow -o r.h5", 3, "rank runs --follow -o r.h5 --probe runs/probe.npz", (SAVEZ,)),
    (plain, "rank runs -m mlp:tanh", 3, "rank runs -m mlp:tanh --probe runs/probe.npz", (SAVEZ,)),
    (plain, "scan runs/epoch1.pt", 2, "scan runs/epoch1.pt --model mlp:ACT --probe probe.npz", ("activation",)),
    (
        scripted,
        "scan runs",
        2,
        "scan runs --model train.py:MLP --probe runs/probe.npz",
        ("mlp:ACT", "did you mean train.py:MLP?"),
    ),
    (script_in_the_run, "mi runs", 2, "mi runs --model runs/train.py:MLP --probe runs/probe.npz", ("train.py:MLP?",)),
    (arrays_beside, "scan runs -m mlp:tanh", 3, "scan runs -m mlp:tanh --probe 'test set.npz'", ("did you mean",)),
    (pixels, "scan runs", 2, "scan runs --model mlp:ACT --probe-arg scale=255", ("activation", "no scale is stated")),
    (convolutional, "scan runs", 2, "scan runs --model train.py:Net --probe runs/probe.npz", ("your own class",)),
    (
        with_its_code,
        "scan runs",
        2,
        "scan runs --model nets.py:small_net --probe runs/probe.npz",
        ("did you mean nets.py:small_net, nets.py:Net?",),
    ),
    (
        with_its_code,
        "cluster runs --model=mlp:relu",
        3,
        "cluster runs --model nets.py:small_net --probe runs/probe.npz",
        ("Did you mean --model nets.py:small_net?",),
    ),
    (
        averaged_parts,
        "scan runs",
        3,
        "scan runs --weights raw --model mlp:ACT --chain 'encoder.*,decoder.*' --probe runs/probe.npz",
        ("--weights raw or --weights ema", "activation", "several containers", "no probe"),
    ),
    (scripted, "rank runs -m MLP", 2, "rank runs --model train.py:MLP --probe runs/probe.npz", ("did you mean",)),
    (
        scripted,
        "rank runs -m train.MLP",
        2,
        "rank runs --model train.py:MLP --probe runs/probe.npz",
        ("train.py:MLP?",),
    ),
    (scripted, "rank runs -mtrain:MLP", 2, "rank runs --model train.py:MLP --probe runs/probe.npz", ("PYTHONPATH",)),
    (scripted, "rank runs -m train.py", 2, "rank runs --model train.py:MLP --probe runs/probe.npz", ("train.py:MLP?",)),
    (
        scripted,
        "rank runs -m tarin.py:MLP",
        2,
        "rank runs --model train.py:MLP --probe runs/probe.npz",
        ("no such",),
    ),
    (plain, "rank runs -m MLP", 2, "rank runs --model mlp:ACT --probe runs/probe.npz", ("path.py:callable",)),
    (
        wider,
        "rank runs -m train.py:MLP",
        3,
        "rank runs -m train.py:MLP --model-arg num_classes=10",
        ("only the last layer differs: 'fc2.weight' has 10 units where the model has 2",),
    ),
    (
        wider,
        "rank runs -m train.py:MLP --model-arg num_classes=7",
        3,
        "rank runs -m train.py:MLP --model-arg num_classes=10",
        ("only the last layer",),
    ),
    (wider, "rank runs -m plain.py:MLP", 3, "", ("only the last layer", "--model-arg")),
    (several_runs, "scan runs", 5, "scan 'runs/run a'", ("run a, run b",)),
    (several_runs, "rank -n 10 runs", 5, "rank -n 10 'runs/run a'", ("run folders",)),
    (logs, "scan", 5, "scan runs/lightning_logs/version_0/checkpoints", ("one run folder",)),
    (plain, "runs", 2, "scan runs", ("no command",)),
    (plain, "runs rank --eps 0.1", 2, "rank runs --eps 0.1", ("no command",)),
    (result, "run.h5 --full", 2, "show run.h5 --full", ("no command",)),
    (nothing, "scam runs", 2, "", ("Did you mean 'scan'?",)),
    (nothing, "rank runs --noise .1", 2, "", ("--noise: it is an option of mi and scan.", "ibscan rank --help")),
    (nothing, "show r.h5 --strict", 2, "", ("it is an option of rank, mi, cluster and scan.",)),
    (nothing, "rank runs --ep 1", 2, "", ("--eps",)),
    (nothing, "scan runs", 5, "", ("holds no checkpoint",)),
    (optimizer, "scan runs", 3, "", ("state of an optimizer", "model.state_dict()")),
    (whole, "scan runs", 3, "", ("whole pickled module", "  for f in pathlib.Path().glob('*.pt'):", "state_dict()")),
]


@pytest.mark.parametrize(
    ("situation", "typed", "code", "copied", "said"),
    CONTACTS,
    ids=[f"{contact[0].__name__}: {contact[1]}" for contact in CONTACTS],
)
def test_first_contact(
    situation: Callable[[], None], typed: str, code: int, copied: str, said: tuple[str, ...], command: Run
) -> None:
    situation()
    done = command(*shlex.split(typed))
    assert done.code == code, done.err
    lines = done.err.splitlines()
    found = [re.sub(r" --device \S+ --dtype \S+", "", line) for line in lines if line.startswith("  ibscan ")]
    assert found == ([f"  ibscan {copied}"] if copied else []), done.err
    for words in said:
        assert words in done.err, done.err
    assert len(lines) < 12
    assert not done.out


def test_what_is_printed_works_when_it_is_copied(command: Run) -> None:
    with_its_code()
    np.savez("data.npz", images=np.random.default_rng(0).normal(size=(12, 1, 6, 6)), labels=np.arange(12) % 3)
    Path("data.npz").rename("data.bin")  # not suggested
    done = command("cluster", "runs")
    lines = [line.removeprefix("  ") for line in done.err.splitlines() if line.startswith("  ")]
    copied = next(line for line in lines if line.startswith("ibscan "))
    held = np.load("data.bin")
    given = {"test_inputs": held["images"], "test_labels": held["labels"]}
    exec("\n".join(line for line in lines if line != copied), given)
    done = command(*shlex.split(copied)[1:])
    assert done.code == 3, done.err
    assert "Add --model-arg n_labels=3." in done.err
    copied = next(line for line in done.err.splitlines() if line.startswith("  ibscan "))
    done = command(*shlex.split(copied)[1:])
    assert done.code == 0, done.err


def test_names_from_files_stay_quoted_in_what_is_copied(command: Run) -> None:
    name = "a b'; touch canary; #\n"
    (Path(name)).mkdir()
    put_torch(Path(name) / "epoch1.pt", mlp_state())
    (Path(name) / "x$(touch canary).py").write_text(MLP)
    done = command("rank", name)
    copied = [line for line in done.err.splitlines() if line.startswith("  ibscan ")]
    assert len(copied) == 1
    subprocess.run(["bash", "-c", copied[0].replace("ibscan", "true", 1)], check=False)
    assert not Path("canary").exists()
    assert all(letter.isprintable() for line in done.err.splitlines() for letter in line)


def test_python_gets_the_sentences_alone() -> None:
    plain()
    with pytest.raises(ibscan.errors.UsageError) as caught:
        ibscan.rank("runs")
    assert "activation" in str(caught.value)
    assert "no probe" in str(caught.value)
    assert "\n" not in str(caught.value)


# The help


def helped(verb: str, columns: int) -> str:
    typed = [verb, "--help"] if verb else ["--help"]
    done = subprocess.run(
        [sys.executable, "-m", "ibscan", *typed],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    )
    return done.stdout


VERBS = ["", *commands()]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_help_is_readable_at_80_columns(verb: str) -> None:
    text, wide = helped(verb, 80), helped(verb, 300)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert not {"<", "…"} & set(text)
    assert max(text) <= "╿", "an emoji"  # which Typer makes of words between colons
    assert "[default: no-" not in text
    assert set(re.findall(r"[^\s│╭╮╰╯─]+", text)) <= set(re.findall(r"[^\s│╭╮╰╯─]+", wide)), "a word is cut in two"
    panels = re.findall(r"╭─ (.*?) ─", text)
    assert "Rarely needed" in panels
    assert panels.index("Rarely needed") == len(panels) - (1 if verb else 2)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_three_examples_that_can_be_read(verb: str) -> None:
    above = helped(verb, 80).partition("╭")[0]
    examples = [line.split(" > ")[0].split(" | ")[0] for line in above.splitlines() if line.startswith("   ibscan ")]
    assert len(examples) == 3
    for example in examples:
        _, named, *words = shlex.split(example)
        assert named in ({verb} if verb else commands())
        context = commands()[named].make_context(f"ibscan {named}", list(words))
        assert context.params is not None


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["-h", "--help", "-V", "--version"])
def test_help_and_version_everywhere(verb: str, flag: str, command: Run) -> None:
    done = command(*([verb] if verb else []), flag)
    assert done.code == 0
    assert "Usage: ibscan" in done.out if "h" in flag else done.out.startswith("ibscan ")


def test_help_changes_nothing_in_what_a_command_takes(command: Run, series: Path) -> None:
    assert command("cluster", "--help").code == 0
    assert command("cluster", series, "--resume").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("ibscan sc", ["scan"]), ("ibscan rank --spec", ["--spectrum-rows"]), ("ibscan show --units ", ["nats", "bits"])],
)
def test_completion_in_bash_needs_no_torch(typed: str, offered: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['ibscan']\n"
        "from ibscan.cli.entry import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'scipy', 'h5py', 'numpy'} & set(sys.modules)"
    )
    asked = {"_IBSCAN_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered


# What is read of the user's files


def test_definitions_are_read_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n{MLP}")
    (tmp_path / "broken.py").write_text("class Net(nn.Module:")
    (tmp_path / "deep.py").write_text("x = " + "-" * 50_000 + "1")
    (tmp_path / "large.py").write_text(MLP + "#" * MOST_BYTES)
    (tmp_path / "test_a.py").write_text(MLP)
    os.mkfifo(tmp_path / "pipe.py")
    assert [one.name for one in definitions([tmp_path, tmp_path / "nowhere"])] == ["MLP"]
    assert not (tmp_path / "canary").exists()


KINDS = """
import torch
from torch import nn
import torch.nn.functional as F
import lightning as L
from torchvision.models import resnet18

class Base(nn.Module):
    def __init__(self, width, *, depth, act="relu"):
        self.body = nn.Linear(width, depth)

class Net(Base):
    pass

class Lit(L.LightningModule):
    def __init__(self):
        self.model = Net(3, depth=2)

class Chain(nn.Sequential):
    pass

class Data(torch.utils.data.Dataset):
    pass

def build(width: int = 3) -> nn.Module:
    return Net(width, depth=1)

def stack():
    layers = nn.Sequential(nn.Linear(2, 2))
    return layers

def vision():
    return resnet18()

def accuracy(model):
    return model(1)

def train():
    model = Net(1, depth=1)
    model(1).backward()
    return model
"""


def test_models_are_told_from_other_code(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(KINDS)
    found = {one.name: one for one in definitions([tmp_path])}
    assert set(found) == {"Base", "Net", "Lit", "Chain", "build", "stack", "vision"}
    assert found["Net"].needed == ("width", "depth")
    assert found["build"].needed == ()
    assert [one.name for one in fitting(found.values(), ["body.weight", "body.bias"])] == ["build", "Base", "Net"]
    assert fitting(found.values(), ["model.body.weight"])[0].name == "build"
    assert {one.name for one in fitting(found.values(), ["0.weight", "2.bias"])} == {"Chain", "stack"}
    assert fitting(found.values(), ["fc.weight"]) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("depth=3, num_classes=5", ("--model-arg", "num_classes=10")),
        ("n_outputs=2", ("--model-arg", "n_outputs=10")),
        ("dim_in=2, out_dim=3", ("--model-arg", "out_dim=10")),
        ("in_features=2, out_features=3", ("--model-arg", "out_features=10")),
        ("hidden=5", ()),
        ("dropout=0.1, layout=2", ()),
    ],
)
def test_the_argument_of_the_output_is_known_by_its_name(arguments: str, said: tuple[str, ...]) -> None:
    function = eval(f"lambda {arguments}: None")
    assert output_argument(function, 10) == said
