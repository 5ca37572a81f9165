"""Models with named arguments beside x: each row keeps its own, and they are not part of the varied input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ibscan
from ibscan.core.network import JacobianSpec
from ibscan.core.records import At
from ibscan.engine.extra_inputs import ExtraInputs, extra_inputs
from ibscan.errors import InputError, UsageError
from ibscan.inputs.probes.read import read_probe
from ibscan.measures.driver import input_weights
from ibscan.networks.admission import traced_network
from ibscan.networks.budget import ModuleBudget
from ibscan.networks.module import Module
from ibscan.networks.packing import Packing, model_inputs, named_arguments

CPU = torch.device("cpu")
ROWS, WORDS, UNITS = 5, 4, 3


class Pooled(nn.Module):
    """A model with an integer mask, lengths and a float, each of which changes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(UNITS, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor = None, *, gain: torch.Tensor, keep: torch.Tensor = None
    ) -> torch.Tensor:
        h = self.a(x).tanh()
        weight = torch.ones_like(h[..., :1]) if attention_mask is None else attention_mask[..., None].to(h.dtype)
        pooled = self.b((h * weight).sum(1) / weight.sum(1)) * gain
        if keep is not None:
            pooled = pooled.masked_fill(~keep[:, None], 0.5)
        return self.c(pooled.tanh())


def drawn() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (ROWS, WORDS))
    mask[:, 0] = 1
    named = {"attention_mask": mask, "gain": rng.normal(size=(ROWS, 1)), "keep": rng.random(ROWS) < 0.7}
    return rng.normal(size=(ROWS, WORDS, UNITS)), named


def model() -> Any:
    torch.manual_seed(1)
    return Pooled().double().eval().requires_grad_(False)


def network(dtype: torch.dtype = torch.float64, *, budget: ModuleBudget | None = None) -> tuple[Module, np.ndarray]:
    x, named = drawn()
    packing = Packing.of(x, named)
    packed = packing.packed(x, named)
    traced = traced_network(model(), packed[:3], (), device=CPU, dtype=dtype, packing=packing)
    return dataclasses.replace(traced, budget=budget), packed


def plainly(layer: str, at: Any) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return a layer's values on one row as a function of its x, written out; named arguments are constants."""
    net, (_, named) = model(), drawn()

    def value(x: torch.Tensor, row: int) -> torch.Tensor:
        mask, gain, keep = (torch.as_tensor(named[name][row]) for name in ("attention_mask", "gain", "keep"))
        a = net.a(x)
        pooled = (a.tanh() * mask[:, None]).sum(0) / mask.sum()
        b = net.b(pooled)
        kept = torch.where(keep, b * gain, 0.5).tanh()
        values = {"a": (a, pooled), "b": (b, kept), "c": (net.c(kept), net.c(kept))}
        return values[layer][at == "post"].flatten()

    return value


def test_packed_rows_are_unpacked_unchanged() -> None:
    x, named = drawn()
    named |= {"many": np.array([[2**53, -(2**53)]] * ROWS), "small": np.ones((ROWS, 2, 2), np.uint8)}
    packing = Packing.of(x, named)
    rows = torch.as_tensor(packing.packed(x, named))
    found, others = model_inputs(rows, packing, torch.float32)
    assert found.dtype == others["gain"].dtype == torch.float32
    assert (found.numpy() == x.astype(np.float32)).all()
    assert {name: value.dtype for name, value in others.items() if name != "gain"} == {
        "attention_mask": torch.int64, "keep": torch.bool, "many": torch.int64, "small": torch.int64,
    }  # fmt: skip
    for name in ("attention_mask", "keep", "many", "small"):
        assert (others[name].numpy() == named[name]).all()
    found += 1
    assert model_inputs(rows, packing, torch.float64)[0].numpy().tolist() == x.tolist()


@pytest.mark.parametrize("budget", [1, 60, 2**22])
def test_values_of_packed_rows_are_those_of_the_model(budget: int) -> None:
    net, packed = network(budget=ModuleBudget(activations=budget))
    x, order = torch.as_tensor(drawn()[0]), np.random.default_rng(3).permutation(ROWS)
    names = [layer.name for layer in net.layers]
    assert names == ["a", "b", "c"]
    found: dict[tuple[int, str, int], torch.Tensor] = {}

    def visit(layer: int, pre: torch.Tensor, post: torch.Tensor, rows: slice) -> None:
        for k, row in enumerate(order[rows]):
            found[layer, "pre", row], found[layer, "post", row] = pre[0, k].flatten(), post[0, k].flatten()

    net.walk(packed[order], visit)
    for (layer, at, row), value in found.items():
        assert torch.allclose(value, plainly(names[layer], at)(x[row], int(row)), rtol=1e-12)
    assert len(found) == 6 * ROWS


@pytest.fixture(scope="module")
def exact() -> dict[tuple[str, str, int], torch.Tensor]:
    """Singular values of the Jacobian with respect to one row's x, by autograd, of every layer."""
    x = torch.as_tensor(drawn()[0])
    places = [(layer, at, row) for layer in "abc" for at in ("pre", "post") for row in range(ROWS)]
    found = {}
    for layer, at, row in places:
        function = plainly(layer, at)
        jacobian = torch.autograd.functional.jacobian(lambda x, f=function, k=row: f(x, k), x[row])
        found[layer, at, row] = torch.linalg.svdvals(jacobian.flatten(1))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("budget", [400, 2**22])
@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("wanted", [None, (2,)])  # all from directions, one narrow layer from gradients
def test_jacobians_are_of_x_alone(
    budget: int,
    at: At,
    wanted: tuple[int] | None,
    exact: Mapping[tuple[str, str, int], torch.Tensor],
) -> None:
    net, packed = network(budget=ModuleBudget(one_pass=budget, block=budget))
    assert net.inputs_of(packed) == WORDS * UNITS
    found: dict[tuple[int, int], torch.Tensor] = {}
    grams: dict[tuple[int, int], torch.Tensor] = {}

    def keep(layer: int, factor: torch.Tensor, _: object, rows: slice) -> None:
        found.update({(layer, row): factor[0, k] for k, row in enumerate(range(ROWS)[rows])})

    def count(layer: int, gram: Any, rows: slice) -> None:
        grams.update({(layer, row): gram.values[0, k] for k, row in enumerate(range(ROWS)[rows])})

    spec = JacobianSpec(at, layers=wanted)
    net.jacobians(packed, keep, spec)
    net.grams(packed, count, spec)
    norms = net.spectral_norms(packed, spec)
    assert len(found) == len(grams) == ROWS * (3 if wanted is None else 1)
    for (layer, row), value in found.items():
        expected = exact["abc"[layer], at, row]
        assert torch.allclose(torch.linalg.svdvals(value)[: len(expected)], expected, atol=1e-12)
        values = torch.linalg.eigvalsh(grams[layer, row]).flip(0)
        assert torch.allclose(values[: len(expected)], expected.square(), atol=1e-12)
        assert norms[0, layer, row] == pytest.approx(float(expected[0]), rel=1e-6)


def test_jacobians_from_a_layer_keep_the_named_arguments() -> None:
    net, packed = network()
    _, named = drawn()
    found: dict[int, torch.Tensor] = {}
    net.jacobians(packed, lambda *given: found.update({given[0]: given[1][0]}), JacobianSpec("post", origin=0))
    plain = model()
    for row in range(ROWS):
        pooled = plainly("a", "post")(torch.as_tensor(drawn()[0][row]), row)
        gain, keep = named["gain"][row].item(), bool(named["keep"][row])
        slope = 1 - (plain.b(pooled) * gain).tanh().square() if keep else torch.zeros(5)
        exact = plain.c.weight @ (slope[:, None].double() * gain * plain.b.weight)
        assert torch.allclose(torch.linalg.svdvals(found[2][row]), torch.linalg.svdvals(exact), atol=1e-12)


def test_noisy_passes_repeat_the_named_arguments_row_by_row() -> None:
    net, packed = network(budget=ModuleBudget(noisy=200))
    _, named = drawn()
    g = torch.Generator().manual_seed(0)
    z, order = torch.randn(ROWS, 4, 6, generator=g, dtype=torch.float64), torch.randperm(ROWS, generator=g)
    passes = net.noisy_passes(packed, 1, (0.3, 0.1, 0.1))
    plain, x = model(), torch.as_tensor(drawn()[0])
    gain, keep = (torch.as_tensor(named[name])[:, None] for name in ("gain", "keep"))

    def noisy(z: torch.Tensor) -> torch.Tensor:
        pooled = torch.stack([plainly("a", "post")(x[row], row) for row in range(ROWS)])
        return torch.where(keep[..., None], plain.b(pooled[:, None] + 0.3 * z) * gain, 0.5).tanh()

    assert torch.allclose(passes.values(order, z[order]), noisy(z)[order], rtol=1e-12)
    assert passes.differentiable
    values, derivative = passes.linearised(order, z[order, 0])
    assert torch.allclose(values, noisy(z)[order, 0], rtol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda z: noisy(z).sum((0, 1)), z[:, :1])[:, :, 0].transpose(0, 1)
    assert torch.allclose(derivative, jacobian[order], atol=1e-12)


def test_a_network_with_named_arguments_is_not_plain() -> None:
    # b is fed by a alone, but its post by the gain too: nothing bounds what it says of (x, gain) by what a does.
    net, _ = network()
    assert net.trace.plain
    assert not net.plain


def test_float32_rounds_the_model_and_not_its_masks() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        net, packed = network(dtype)
        held: list[torch.Tensor] = []
        net.walk(packed, lambda *given, held=held: held.append(given[2]) if given[0] == 2 else None)
        found.append(torch.cat(held, 1))
    assert found[0].dtype == torch.float64
    assert 0 < float((found[0] - found[1]).abs().max()) < 1e-5


def test_a_model_that_mixes_rows_of_named_arguments_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.a(x) * scale.sum()

    x, named = np.ones((3, 2)), {"scale": np.arange(3.0)}
    packing = Packing.of(x, named)
    with pytest.raises(InputError, match="mixes the rows"):
        traced_network(Mixed().double(), packing.packed(x, named), (), device=CPU, dtype=torch.float64, packing=packing)


def test_named_arguments_are_read_from_the_signature() -> None:
    assert named_arguments(model()) == {"attention_mask", "gain", "keep"}
    assert named_arguments(nn.Linear(2, 2)) == set()

    class Whatever(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    assert named_arguments(Whatever()) == set()


# From the probe


def stored(folder: Path, **arrays: Any) -> str:
    x, named = drawn()
    np.savez(folder / "probe.npz", **{"x": x, **named, **arrays})
    return str(folder / "probe.npz")


def test_notices_tell_which_arrays_the_model_gets(tmp_path: Path) -> None:
    spec = stored(tmp_path, y=np.arange(ROWS), lengths=np.ones(ROWS), keep=np.ones(3), labels2=np.ones(2))
    probe, _ = read_probe(spec, {})
    found = extra_inputs(model(), probe)
    assert set(found.arrays) == {"attention_mask", "gain"}
    assert found.notices == (
        f"{spec}: keep of shape (3,) has not one entry for each of the 5 rows, and is not fed to the model's argument "
        "keep.",
        f"{spec}: fed to the model's arguments of these names, row by row: attention_mask, gain.",
        f"{spec}: not used, as the model is fed nothing by these names: lengths (5,), labels2 (2,).",
    )
    (chain,) = extra_inputs(None, probe).notices
    assert "a plain chain takes x alone: attention_mask (5, 4), gain (5, 1), keep (3,), lengths (5,)" in chain
    left, _ = read_probe(f"{spec}#attention_mask=,lengths=", {})
    assert set(extra_inputs(model(), left).arrays) == {"gain"}
    assert "lengths" not in " ".join(extra_inputs(model(), left).notices)
    with pytest.raises(UsageError, match="no array 'mask'"):
        read_probe(f"{spec}#mask=", {})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"gain": np.full((ROWS, 1), np.nan)}, "gain.*NaN.*#gain="),
        ({"gain": np.array(["a"] * ROWS)}, "gain.*real numbers"),
        ({"attention_mask": np.full((ROWS, WORDS), 2**60)}, r"attention_mask.*beyond 2\^53"),
        ({"gain": np.ones((ROWS, 1), complex)}, "gain.*complex"),
    ],
)
def test_arrays_that_cannot_be_arguments_are_refused(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    probe, _ = read_probe(stored(tmp_path, **arrays), {})
    with pytest.raises(InputError, match=words):
        extra_inputs(model(), probe)


def test_named_arguments_are_found_beside_x(tmp_path: Path) -> None:
    x, named = drawn()
    arrays: dict[str, Any] = {f"train/{name}": value[:4] for name, value in {"x": x, **named}.items()}
    arrays |= {f"test/{name}": value for name, value in {"x": x, **named}.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", x_test=x, gain_test=named["gain"], gain_train=named["gain"][:4], x_train=x[:4])
    for spec, rows in (("a.npz#x=train/x", 4), ("a.npz#x=test/x", 5), ("b.npz#x=x_test", 5), ("b.npz#x=x_train", 4)):
        found = extra_inputs(model(), read_probe(f"{tmp_path}/{spec}", {})[0])
        assert (found.arrays["gain"] == named["gain"][:rows]).all()


def test_rows_with_different_arguments_are_different_inputs(tmp_path: Path) -> None:
    x = np.ones((6, 2))
    np.savez(tmp_path / "a.npz", x=x, gain=np.array([[1.0], [1], [1], [2], [2], [3]]))
    probe, _ = read_probe(str(tmp_path / "a.npz"), {})
    assert input_weights(probe)[1] == 0
    share = np.array([3, 2, 1]) / 6
    both = extra_inputs(model(), probe).applied_to(probe)
    assert input_weights(both)[1] == pytest.approx(-(share * np.log(share)).sum())
    assert input_weights(both.sampled(6, 0))[1] == input_weights(both)[1]
    other = ExtraInputs({"gain": np.ones((6, 1))}).applied_to(probe)
    assert len({probe.sha256, both.sha256, other.sha256, ExtraInputs().applied_to(probe).sha256}) == 3
    assert dataclasses.replace(probe, beside=None) == dataclasses.replace(ExtraInputs().applied_to(probe), beside=None)


SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, attention_mask=None):
        h = self.a(x).tanh()
        keep = torch.ones_like(h[..., :1]) if attention_mask is None else attention_mask[..., None].to(h.dtype)
        return self.b((h * keep).sum(1) / keep.sum(1))


class Wrong(Net):
    def forward(self, x, attention_mask=None):
        return super().forward(x, attention_mask.reshape(-1, 7))
"""


def test_a_scan_measures_the_network_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)
    space: dict[Any, Any] = {}
    exec(SOURCE, space)
    torch.manual_seed(5)
    net = space["Net"]().double()
    net.b.weight.data *= 4
    Path("run").mkdir()
    torch.save(net.state_dict(), "run/epoch_1.pt")
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(60, 5, 4)), rng.integers(0, 2, (60, 5))
    mask[:, 0] = 1
    with torch.no_grad():
        y = net(torch.tensor(x), torch.tensor(mask)).argmax(1).numpy()
    np.savez("probe.npz", x=x, attention_mask=mask, y=y)
    options: dict[str, Any] = {"model": "net.py:Net", "noise": [0.3], "tolerance": 0.5, "bins": [3], "seed": 1}
    run = ibscan.scan("run", probe="probe.npz", **options)
    assert run.exit_code == 0
    assert float(run["probe_accuracy"].values[0]) == 1.0
    bare = ibscan.cluster("run", probe="probe.npz#attention_mask=", model="net.py:Net")
    assert float(bare["probe_accuracy"].values[0]) < 1.0
    assert bare.result.attrs["probe_sha256"] != run.result.attrs["probe_sha256"]
    assert run.result.settings["widths"][0] == 20
    # The head's Jacobian, row by row.
    ranks = []
    for row in range(60):
        given = torch.tensor(mask[row : row + 1])
        exact = torch.autograd.functional.jacobian(lambda x, m=given: net(x[None], m)[0], torch.tensor(x[row]))
        ranks.append(int((torch.linalg.svdvals(exact.detach().flatten(1)) > 0.1).sum()))
    assert run["local_rank"].values[0, 1, 2] == np.mean(ranks)
    with pytest.raises(InputError, match=r"fed the probe's attention_mask.*give probe.npz#attention_mask=\."):
        ibscan.rank("run", probe="probe.npz", model="net.py:Wrong")
    with pytest.raises(InputError, match=r"give probe.npz#x=x,y=y,attention_mask=\."):
        ibscan.rank("run", probe="probe.npz#x=x,y=y", model="net.py:Wrong")
