"""Which layers are affine maps by their weight: subclasses, hooks, parametrisations, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import oracles
from support.nets import Net
from support.oracles import network_of as chain_of
from support.oracles import probe_of, random_chain
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from ibscan.core.estimate import Status
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank
from ibscan.measures.weight_rank import WeightRank
from ibscan.networks.admission import traced_network
from ibscan.networks.module import Module

EPS = (1e-6, 1e-3, 0.1, 0.7)
OF_WEIGHTS = ("weight_rank", "weight_stable_rank", "rank_bound_frobenius", "rank_limit_statement", "rank_bound_weights")


class LowRank(nn.Linear):
    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o)
        self.down, self.up = nn.Parameter(torch.randn(3, i)), nn.Parameter(torch.randn(o, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(x)


class Masked(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(self.weight)
        mask[0] = 0
        return functional.linear(x, self.weight * mask, self.bias)


class Normalised(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.normalize(x, dim=-1))


class Cosine(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, functional.normalize(self.weight, dim=1), self.bias)


class Quantised(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, (self.weight * 8).round() / 8, self.bias)


class Clipping(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-0.3, 0.3))


class InPlace(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(2))


class Keyword(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input=input, weight=self.weight, bias=self.bias)


class Slow(nn.Linear):
    """The same product, summed in another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(-2) * self.weight).sum(-1) + self.bias


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Overridden(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


def hooked(
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
    late: Callable[..., Any] | None = None,
) -> nn.Linear:
    layer = nn.Linear(4, 3)
    if before:
        layer.register_forward_pre_hook(before)
    if after:
        layer.register_forward_hook(after)
    if late:
        vars(layer)["forward"] = late(layer)
    return layer


def pruned() -> nn.Linear:
    layer = nn.Linear(4, 3)
    prune.random_unstructured(layer, "weight", 0.4)
    return layer


OTHER = {
    "low rank": lambda: LowRank(4, 3),
    "scaled": lambda: Scaled(4, 3),
    "masked": lambda: Masked(4, 3),
    "normalised": lambda: Normalised(4, 3),
    "cosine": lambda: Cosine(4, 3),
    "quantised": lambda: Quantised(4, 3),
    "clipping": lambda: Clipping(4, 3),
    "in place": lambda: InPlace(4, 3),
    "hook on the output": lambda: hooked(after=lambda _, fed, out: out + fed[0][:, :3]),
    "forward replaced": lambda: hooked(
        late=lambda layer: lambda x: functional.linear(x, layer.weight.abs(), layer.bias)
    ),
}
PLAIN = {
    "linear": lambda: nn.Linear(4, 3),
    "no bias": lambda: nn.Linear(4, 3, bias=False),
    "keyword": lambda: Keyword(4, 3),
    "another order of sums": lambda: Slow(4, 3),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
    "pruned": pruned,
    # Of the layer's own input: what a hook makes of what comes before is part of that.
    "hook on the input": lambda: hooked(before=lambda _, fed: (torch.tanh(fed[0]),)),
}


def taken(model: nn.Module, x: np.ndarray, dtype: torch.dtype = torch.float64) -> Module:
    model = model.to(oracles.DEVICE, dtype).eval().requires_grad_(False)
    return traced_network(model, x, (), device=oracles.DEVICE, dtype=dtype)


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*OTHER, *PLAIN])
def test_only_a_plain_linear_is_affine(name: str, dtype: torch.dtype) -> None:
    """Other layers are not measured, and layers after them have no bounds; the layer before is unaffected."""
    torch.manual_seed(1)
    x = rows_of(9, 5)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), (OTHER | PLAIN)[name](), nn.Tanh(), nn.Linear(3, 2))
    network = taken(model, x, dtype)
    holds = name in PLAIN
    assert network.affine(x) == (True, holds, True)
    found = WeightRank(EPS)(network, probe_of(x), RandomStreams(0))
    for key in OF_WEIGHTS[:-1]:
        assert (found[key].status[0, [0, 2]] == Status.OK).all(), key
        assert (found[key].status[0, 1] == (Status.OK if holds else Status.NOT_MEASURED)).all(), key
    assert found["weight_holds"].value[0, :, 0].tolist() == [1, holds, 1]
    bounded = [Status.OK] * 3 if holds else [Status.OK, Status.NOT_MEASURED, Status.NOT_MEASURED]
    assert found["rank_bound_weights"].status[0].tolist() == bounded
    jacobian = LocalRank(EPS, spectrum_rows=None)(network, probe_of(x), RandomStreams(0))["rank_bound_jacobian"]
    assert jacobian.status[0, :, -1].tolist() == [Status.OK, Status.OK if holds else Status.NOT_MEASURED, Status.OK]


@pytest.mark.parametrize(
    ("layer", "holds"),
    [
        (nn.Conv2d(2, 4, 3), True),
        (nn.Conv2d(2, 4, 3, padding=1, stride=2, dilation=2), True),
        (nn.Conv2d(2, 4, 3, padding="same", bias=False), True),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), True),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), True),
        (nn.Conv2d(2, 4, 3, groups=2), True),
        (nn.ConvTranspose2d(2, 4, 3), True),
        (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), True),
        (parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), True),
        (Standardised(2, 4, 3), False),
        (Overridden(2, 4, 3), False),
    ],
)
def test_only_a_plain_convolution_is_affine(layer: nn.Module, holds: bool) -> None:
    x = rows_of(3, 2, 6, 6)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 2, 6, 6))
    assert taken(model, x).affine(x) == (holds, True)


def test_a_layer_is_affine_only_if_it_is_so_on_every_row() -> None:
    """A layer that clips is affine on the rows that it does not clip, and only on those."""
    x = 0.01 * rows_of(40, 4)
    network = taken(nn.Sequential(Clipping(4, 3), nn.Linear(3, 2)), x)
    assert network.affine(x) == (True, True)
    x[37] = 5.0
    assert network.affine(x) == (False, True)


def test_a_layer_is_checked_in_every_checkpoint() -> None:
    """A low-rank update of rank 0 changes nothing: checkpoints of one architecture may differ in the answer."""
    x = rows_of(4, 4)
    for size in (0.0, 1.0):
        layer = LowRank(4, 3)
        layer.up.data *= size
        assert taken(nn.Sequential(layer, nn.Linear(3, 2)), x).affine(x) == (size == 0.0, True)


def test_every_call_of_a_layer_is_checked_alone() -> None:
    """A layer called twice, a layer within a layer, and one called on no row each have their own answer."""

    class Within(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.inner(x)

    model = Net(
        lambda s, x: s.b(torch.tanh(s.c(torch.tanh(s.b(s.a(x))))) + s.d(torch.ones(1, 4, dtype=x.dtype))),
        a=Scaled(4, 4), b=nn.Linear(4, 4), c=Within(), d=Scaled(4, 4),
    )  # fmt: skip
    x = rows_of(4, 4)
    network = taken(model, x)
    assert [layer.name for layer in network.layers] == ["a", "b", "c", "b#2"]
    assert network.affine(x) == (False, True, False, True)


def test_every_layer_of_a_chain_is_affine() -> None:
    network = chain_of([random_chain((4, 3, 2), 1)])
    assert network.affine(rows_of(2, 4)) == (True, True)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: 10 * x,
        lambda x: functional.normalize(x, dim=1),
        lambda x: torch.cat((x, x, x[:, :2]), 1)[:, :6],
        torch.tanh,
        lambda x: x.view(-1, 2, 3).mT.flatten(1),
    ],
)
def test_operations_before_the_first_layer_are_part_of_its_jacobian(before: Callable[..., Any]) -> None:
    """The first layer's input is a function of the network's input: at no row is its Jacobian the weight."""
    torch.manual_seed(3)
    a, b = nn.Linear(6, 5).double(), nn.Linear(5, 4).double()
    x = rows_of(12, 6) * np.logspace(-1, 1, 12)[:, None]
    network = taken(Net(lambda s, x: s.b(torch.relu(s.a(before(x)))), a=a, b=b), x)
    found = LocalRank(EPS, spectrum_rows=None)(network, probe_of(x), RandomStreams(0))
    jacobians = torch.stack([torch.func.jacrev(lambda row: a(before(row[None]))[0])(row) for row in torch.tensor(x)])
    fed = torch.stack([torch.func.jacrev(lambda row: before(row[None])[0])(row) for row in torch.tensor(x)])
    own, norms = torch.linalg.svdvals(a.weight), torch.linalg.matrix_norm(fed, 2)
    for k, eps in enumerate(EPS):
        count = (torch.linalg.svdvals(jacobians) > eps).sum(1).double().mean()
        bound = (own > (eps / norms).unsqueeze(1)).sum(1).double().mean()
        assert found["local_rank"].value[0, 0, k] == pytest.approx(float(count), rel=1e-12)
        assert float(count) <= found["rank_bound_jacobian"].value[0, 0, k] == pytest.approx(float(bound), rel=1e-12)
    assert (found["rank_bound_jacobian"].status == Status.OK).all()
