"""Networks and arrays handed over in Python: measured as the same by path, left as they are, known by what they are."""

import copy
import functools
import importlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas
import pytest
import torch
from conftest import Run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ibscan
from ibscan import IbscanError
from ibscan.engine.live_model import live_maker
from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.live import live
from ibscan.results.store import read

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5, slope=0.1):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(6, width), nn.LeakyReLU(slope), nn.Linear(width, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.b(self.drop(self.act(self.a(x))))

def make(width=5):
    return Net(width)
"""


class Net(nn.Module):
    """Has what a pass may change: a mode, a buffer that statistics go to, gradients."""

    shift: torch.Tensor

    def __init__(self, width: int = 5, slope: float = 0.1) -> None:
        super().__init__()
        self.slope = slope
        self.a, self.norm, self.b = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = self.b(self.drop(nn.functional.leaky_relu(self.norm(self.a(x)), self.slope)))
        return shifted + self.shift


def arrays() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = ((np.arange(64)[:, None] >> np.arange(6)) & 1).astype(np.float32)
    return x, (x[:, 0] != x[:, 1]).astype(np.int64)


def saved(folder: Path, net: nn.Module, epochs: int = 2) -> Path:
    folder.mkdir()
    net = copy.deepcopy(net)
    for epoch in range(epochs):
        torch.save(net.state_dict(), folder / f"epoch-{epoch}.pt")
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.3)
    return folder


def numbers(run: ibscan.Run) -> np.ndarray[Any, Any]:
    return run["local_rank"].values


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def ckpts(tmp_path: Path, net: Net) -> Path:
    return saved(tmp_path / "run", net)


def test_a_network_a_class_and_a_function_measure_what_code_named_by_path_does(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SOURCE)
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    made = namespace["Net"]
    folder = saved(tmp_path / "run", made())
    np.savez(tmp_path / "p.npz", x=arrays()[0], y=arrays()[1])
    named = ibscan.rank(folder, model=str(tmp_path / "train.py:Net"), probe=tmp_path / "p.npz")
    for model in (made(), made, lambda: made(), functools.partial(made, width=5), namespace["make"]):
        np.testing.assert_array_equal(numbers(ibscan.rank(folder, model=model, probe=arrays())), numbers(named))
    one = ibscan.rank(folder, model=made, model_arg={"width": 5}, probe=arrays())
    np.testing.assert_array_equal(numbers(one), numbers(named))
    assert one.result.attrs["probe_sha256"] == named.result.attrs["probe_sha256"]


def test_a_network_is_left_as_it_is(net: Net, ckpts: Path) -> None:
    net.train()
    net(torch.ones(4, 6)).sum().backward()
    net.b.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    drawn = torch.random.get_rng_state()
    assert numbers(ibscan.rank(ckpts, model=net, probe=arrays())).any()
    assert all(module.training for module in net.modules())
    assert all(tensor.equal(state[name]) for name, tensor in net.state_dict().items())
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) is (gradients[name] is None)
        assert parameter.grad is None or parameter.grad.equal(gradients[name])
        assert parameter.requires_grad is (name != "b.weight")
        assert parameter.dtype is torch.float32
    assert drawn.equal(torch.random.get_rng_state())


def test_a_network_that_a_function_returns_again_and_again_is_left_as_it_is(net: Net, ckpts: Path) -> None:
    net.train()
    before = net.a.weight.detach().clone()
    ibscan.rank(ckpts, model=lambda: net, probe=arrays(), epochs="last")
    assert net.training
    assert net.a.weight.equal(before)


def test_a_network_in_a_wrapper_is_measured(net: Net, ckpts: Path) -> None:
    wrapped = numbers(ibscan.rank(ckpts, model=nn.DataParallel(net), probe=arrays()))
    np.testing.assert_array_equal(wrapped, numbers(ibscan.rank(ckpts, model=net, probe=arrays())))


def test_weights_of_another_shape_are_refused_before_the_network_runs(ckpts: Path) -> None:
    class Counting(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().forward(x)

    with pytest.raises(InputError, match=r"another shape, such as 'a\.weight'"):
        ibscan.rank(ckpts, model=Counting(7), probe=arrays())
    assert Counting.calls == 0


@pytest.mark.parametrize("role", ["model", "probe"])
def test_live_code_that_changes_the_files_of_the_run_is_found_out(role: str, net: Net, ckpts: Path) -> None:
    class Writing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (ckpts / "log.txt").write_text("a pass")
            return super().forward(x)

    def probe() -> Any:
        (ckpts / "log.txt").write_text("a probe")
        return arrays()

    given: dict[str, Any] = (
        {"model": Writing(), "probe": arrays()} if role == "model" else {"model": net, "probe": probe}
    )
    with pytest.raises(InputError, match=r"log\.txt was (added|changed)"):
        ibscan.rank(ckpts, **given)


# Identity


def code(model: Any, ckpts: Path, **more: Any) -> str:
    found = ibscan.rank(ckpts, model=model, probe=arrays(), epochs="last", **more).result.settings["code"]
    return str(found)


def test_a_class_of_a_file_is_the_one_that_is_named_by_path(
    tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handed.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("handed").Net
    folder = saved(tmp_path / "run", made())
    np.savez(tmp_path / "p.npz", x=arrays()[0], y=arrays()[1])
    ibscan.rank(folder, model=made, probe=arrays(), output="r.h5", epochs=0)
    done = command("rank", folder, "-m", tmp_path / "handed.py:Net", "-p", "p.npz", "-o", "r.h5")
    assert done.code == 0, done.err
    assert read(Path("r.h5"))["epoch"].values.tolist() == [0, 1]
    assert read(Path("r.h5")).attrs["model"] == "handed.py:Net"


def test_networks_are_told_apart_by_what_checkpoints_do_not_hold(net: Net, ckpts: Path) -> None:
    other, shifted, acting, hiding = Net(slope=0.2), Net(), Net(), Net()
    hiding.hidden = [nn.Linear(1, 1)]  # type: ignore[assignment]
    shifted.shift += 1
    acting.act = torch.tanh  # type: ignore[assignment]
    codes = [code(model, ckpts) for model in (net, other, shifted, acting, hiding, lambda: Net(slope=0.3))]
    assert len(set(codes)) == len(codes)
    assert code(Net(), ckpts) == codes[0]  # weights are no part of it: those of checkpoints replace them
    net.train()
    assert code(net, ckpts) == codes[0]


def test_a_network_typed_at_a_prompt_is_known_by_its_code(ckpts: Path) -> None:
    def typed(factor: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "__main__", "Net": Net}
        exec(f"class Mine(Net):\n    def forward(self, x):\n        return super().forward({factor} * x)", namespace)
        return namespace["Mine"]

    assert code(typed("2"), ckpts) == code(typed("2"), ckpts) != code(typed("3"), ckpts)


def test_the_same_run_is_taken_up_and_another_network_is_refused(net: Net, ckpts: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.h5"
    first = ibscan.rank(ckpts, model=net, probe=arrays(), output=output)
    created = read(output).attrs["created_at"]
    again = ibscan.rank(ckpts, model=copy.deepcopy(net), probe=arrays(), output=output)
    np.testing.assert_array_equal(numbers(first), numbers(again))
    assert read(output).attrs["created_at"] == created
    with pytest.raises(UsageError, match=r"another result: .*code"):
        ibscan.rank(ckpts, model=Net(slope=0.2), probe=arrays(), output=output)
    with pytest.raises(UsageError, match=r"another result: .*probe"):
        ibscan.rank(ckpts, model=net, probe=(arrays()[0][:32], arrays()[1][:32]), output=output)


@pytest.mark.parametrize(
    ("found", "spec", "defined"),
    [
        (Net, f"{__name__}:Net", True),
        (Net(), f"{__name__}:Net", False),
        (functools.partial(Net, 3), f"{__name__}:Net", False),
        (lambda: Net(), f"{__name__}:lambda", False),
        (nn.Sequential(), "torch.nn.modules.container:Sequential", False),
        (nn.Linear, "torch.nn.modules.linear:Linear", True),
    ],
)
def test_what_is_handed_over_is_called_as_it_would_be_typed(found: Any, spec: str, defined: bool) -> None:
    assert (live(found).spec, live(found).defined) == (spec, defined)


def test_a_network_that_cannot_be_copied_says_what_to_hand_over() -> None:
    net = Net()
    net.kept = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(InputError, match="Its class, or a function that makes it anew, needs no copy"):
        live_maker(live(net), {}, "--model Net").build()


# Probes

X, Y = arrays()


@pytest.mark.parametrize(
    ("probe", "labelled"),
    [
        ((X, Y), True),
        ([X, Y], True),
        ((torch.as_tensor(X), torch.as_tensor(Y)), True),
        ({"x": X, "y": Y.tolist()}, True),
        ({"inputs": X, "labels": Y}, True),
        (TensorDataset(torch.as_tensor(X), torch.as_tensor(Y)), True),
        (lambda: (X, Y), True),
        (functools.partial(tuple, [X, Y]), True),
        ((pandas.DataFrame(X), pandas.Series(Y)), True),
        (X, False),
        (torch.as_tensor(X), False),
        ((X,), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_are_the_probe_that_a_file_of_them_is(probe: Any, labelled: bool, net: Net, ckpts: Path) -> None:
    np.savez("p.npz", **cast(Any, {"x": X, "y": Y} if labelled else {"x": X}))
    by_path = ibscan.rank(ckpts, model=net, probe="p.npz", epochs="last")
    held = ibscan.rank(ckpts, model=net, probe=probe, epochs="last")
    assert held.result.attrs["probe_sha256"] == by_path.result.attrs["probe_sha256"]
    np.testing.assert_array_equal(numbers(held), numbers(by_path))


def test_arrays_beside_x_are_fed_to_a_network_that_takes_them(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = self.a(x) * mask
            return scaled

    folder = saved(tmp_path / "run", Masked())
    run = ibscan.rank(folder, model=Masked, probe={"x": X, "mask": np.arange(64.0)[:, None] % 2}, epochs="last")
    ranks = run["local_rank"].sel(layer="a", eps=0.001).values
    assert ranks.shape == (1,)
    assert ibscan.rank(folder, model=Masked, probe={"x": X, "mask": np.zeros((64, 1))}, epochs="last").exit_code in (
        0,
        4,
    )


def test_changing_an_array_after_the_scan_changes_nothing(net: Net, ckpts: Path) -> None:
    x, y = arrays()
    run = ibscan.rank(ckpts, model=net, probe=(x, y), epochs="last")
    before = numbers(run).copy()
    x += 1
    np.testing.assert_array_equal(numbers(run), before)


# Mistakes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": functools.partial(cast(Any, Net), 1, 2, 3)}, "model=Net: raised TypeError"),
        ({"model": Net, "model_arg": {"widht": 5}}, r"model=Net: takes \(width: int = 5, .*given are widht"),
        ({"model_arg": {"width": 5}}, r"model=Net: is a network that is made already.*\(width\)"),
        ({"model": {}}, "model=dict: expected a network.*Weights come from the checkpoints"),
        ({"model": 3}, "model=int: expected a network"),
        ({"model": dict}, "the model's callable returned a dict; expected an nn.Module"),
        ({"probe": DataLoader(TensorDataset(torch.ones(3, 6)), shuffle=True)}, "A loader may shuffle.*next"),
        ({"probe": (X, Y, Y)}, "probe=tuple: is a tuple of 3"),
        ({"probe": {"a": X, "b": X}}, r"which array is x is not clear from a .*call it 'x'"),
        ({"probe": [X, X]}, r"give a tuple \(x, y\)"),
        ({"probe": X[:, 0]}, r"add probe_arg=\{'shape': \[1\]\}"),
        ({"probe": (X, Y[:5])}, r"probe=\(x, y\): the labels have length 5"),
        ({"probe": X * 255}, r"add probe_arg=\{'scale': 255\}"),
        ({"probe": lambda: 1 / 0}, "probe='?lambda.*ZeroDivisionError.*__cause__ shows where"),
        ({"chain": "a,b"}, "chain='a,b': is the order .* Net is code"),
        ({"ckpts": Net()}, "ckpts is Net; expected the path"),
        ({"ckpts": [Net().state_dict()]}, "ckpts is OrderedDict; expected the path"),
        ({"ckpts": []}, "ckpts is an empty list"),
        ({"ckpts": 3}, "ckpts is int"),
        ({"noise": 0.1, "nosie": 0.1}, "there is no option 'nosie'; did you mean noise?"),
        ({"layers": [0]}, r"layers=\[0\]: expected text"),
        ({"eps": "0.1,0.01"}, "eps='0.1,0.01': '0.1,0.01' is no number"),
        ({"eps": object()}, "expected one value or a list of them"),
        ({"dtype": torch.float16}, "dtype='?float16'?: expected float32 or float64"),
        ({"trust": "yes"}, "trust='yes': expected True or False"),
        ({"progress": "yes"}, "progress='yes': expected True or False"),
    ],
)
def test_a_mistake_ends_in_a_sentence(given: dict[str, Any], said: str, net: Net, ckpts: Path) -> None:
    given = {"ckpts": ckpts, "model": net, "probe": arrays(), **given}
    with pytest.raises(IbscanError, match=said) as caught:
        ibscan.rank(given.pop("ckpts"), **given)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"eps": "0.1"},
        {"eps": ["0.1"]},
        {"eps": np.array([0.1])},
        {"eps": torch.tensor([0.1], dtype=torch.float64)},
        {"eps": np.float64(0.1)},
        {"eps": 0.1, "dtype": torch.float64, "device": torch.device("cpu")},
        {"eps": 0.1, "dtype": np.float64, "max_draws": "65536", "seed": "0"},
        {"eps": 0.1, "model": None, "progress": None},
    ],
    ids=str,
)
def test_values_may_be_text_arrays_and_what_libraries_have(given: dict[str, Any], series: Path) -> None:
    expected = ibscan.rank(series, eps=0.1, epochs="last")
    found = ibscan.rank(series, epochs="last", **given)
    np.testing.assert_array_equal(numbers(found), numbers(expected))
    assert json.loads(found.result.attrs["settings"]) == json.loads(expected.result.attrs["settings"])
