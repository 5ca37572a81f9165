"""Local rank without a single wrong count: every route of counting against an SVD of the full Jacobian."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import oracles
from support.nets import Net
from support.oracles import ACTIVATION, Parameters, forward, network_of, probe_of, random_chain
from torch import nn

from ibscan.core.estimate import Estimate
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank
from ibscan.networks.admission import traced_network

pytestmark = pytest.mark.slow

DECADES = tuple(10.0**-k for k in range(1, 8))
# A singular value so near to the threshold, in units of the row's largest, may count or not.
BAND = 1e-8
ACTIVATIONS = ("tanh", "relu", "leaky_relu", "gelu", "sigmoid", "softplus", "silu", "elu", "identity")
# Autograd's own slope of these is a difference that keeps no digit where a unit is saturated.
SLOPE: dict[str, Any] = {
    "tanh": lambda p: torch.cosh(p) ** -2,
    "sigmoid": lambda p: torch.sigmoid(p) * torch.sigmoid(-p),
    "gelu": lambda p: torch.special.ndtr(p) + p * torch.exp(-(p**2) / 2) / (2 * torch.pi) ** 0.5,
}


# The oracle --------------------------------------------------------------------------------------------------------


def slope_of(name: str, p: torch.Tensor) -> torch.Tensor:
    if name in SLOPE:
        return SLOPE[name](p)
    p = p.clone().requires_grad_()
    return torch.autograd.grad(ACTIVATION[name](p).sum(), p)[0]


def chain_spectra(chain: Parameters, names: tuple[str, str], x: Any, at: At) -> list[np.ndarray]:
    """Singular values (N, k) of every layer: J as the product of W and diag(slope), `names` (activation, output)."""
    x, jacobian, found = torch.from_numpy(x), None, []
    for layer, (pre, post) in enumerate(forward(*chain, *names, x)):
        weight = chain[0][layer]
        name = names[layer == len(chain[0]) - 1]
        before = weight.expand(len(x), -1, -1) if jacobian is None else weight @ jacobian
        if name == "softmax":
            # The likeliest class's row is taken from all first, which changes nothing: near 1, q (1 - q) cancels.
            top = before.gather(1, post.argmax(1)[:, None, None].expand(-1, 1, before.shape[2]))
            jacobian = (torch.diag_embed(post) - post[:, :, None] * post[:, None, :]) @ (before - top)
        else:
            jacobian = slope_of(name, pre)[:, :, None] * before
        found.append(torch.linalg.svdvals(before if at == "pre" else jacobian).numpy())
    return found


def module_spectra(values: Callable[..., Any], x: np.ndarray, at: At) -> list[np.ndarray]:
    """The same of a module; `values(rows)` is [(pre, post), ...], differentiated by torch.func.jacrev."""

    def layers(row: torch.Tensor) -> list[torch.Tensor]:
        return [pair[at == "post"].flatten() for pair in values(row.unsqueeze(0))]

    rows = [torch.func.jacrev(layers)(row) for row in torch.from_numpy(x)]
    return [torch.linalg.svdvals(torch.stack(per_row).flatten(2)).numpy() for per_row in zip(*rows, strict=True)]


# What is held against it -------------------------------------------------------------------------------------------


def assert_between(least: np.ndarray, got: np.ndarray, most: np.ndarray, where: str) -> None:
    """Assert that counts lie between two bounds, ends included; the AssertionError names the thresholds that fail."""
    wrong = ~((least <= got) & (got <= most))
    assert not wrong.any(), f"{where}: {got[wrong]} not in {least[wrong]} .. {most[wrong]} at thresholds {wrong}"


def assert_estimate(
    found: Estimate, spectra: Sequence[Sequence[np.ndarray]], limits: Callable[..., Any], most_excepted: float
) -> None:
    """Sum, least, largest and spread over rows of `found` (C, L, E); only so many counts may be uncertain.

    `spectra[c][layer]` holds singular values (N, k), `limits(sigma)` the thresholds (1 or N, E).
    """
    excepted, seen = 0, 0
    for (c, layers), layer in itertools.product(enumerate(spectra), range(len(spectra[0]))):
        sigma = layers[layer]
        slack, limit = BAND * sigma[:, :1], limits(sigma)
        low, high = ((sigma[:, None] > (limit + s)[..., None]).sum(-1) for s in (slack, -slack))
        n, got = len(sigma), [values[c, layer] for values in (found.value, found.minimum, found.maximum, found.stderr)]
        total = np.rint(n * got[0])
        np.testing.assert_allclose(n * got[0], total, rtol=1e-12)
        for name, value, of in (("sum", total, np.sum), ("least", got[1], np.min), ("largest", got[2], np.max)):
            assert_between(of(low, axis=0), value, of(high, axis=0), f"{name}, checkpoint {c}, layer {layer}")
        sure = (low == high).all(0)
        if n > 1:
            spread = low[:, sure].std(0, ddof=1) / np.sqrt(n)
            np.testing.assert_allclose(got[3][sure], spread, rtol=1e-10, atol=1e-14)
        apart = limit > 2 * slack  # of another layer's thresholds some are below all this one can resolve
        excepted, seen = excepted + ((low != high) & apart).sum(), seen + apart.sum()
    assert excepted <= most_excepted * seen


def thresholds(spectra: Sequence[Sequence[np.ndarray]]) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Pairs (eps, rel_eps): seven decades below every layer's median row, and few, at which counting may differ."""
    tops = sorted({float(np.median(sigma[:, 0])) for layers in spectra for sigma in layers} - {0.0}) or [1.0]
    yield tuple(d * top for top in tops for d in DECADES), DECADES
    middle = tops[len(tops) // 2]
    yield (1e-2 * middle,), ()
    yield (1e-5 * middle,), (1e-3,)
    yield (1e-7 * middle,), (1e-7,)


def assert_no_wrong_count(
    network: Any,
    x: np.ndarray,
    spectra: Sequence[Sequence[np.ndarray]],
    at: At = "pre",
    calls: Sequence[tuple[tuple[float, ...], tuple[float, ...]]] | None = None,
    spectrum_rows: int | None = 1,
    most_excepted: float = 0.25,
) -> None:
    """Measure at every pair of thresholds; `spectra[c][layer]` are the oracle's."""
    for eps, relative in calls or thresholds(spectra):
        measure = LocalRank(eps=eps, rel_eps=relative, at=at, spectrum_rows=spectrum_rows)
        result = measure(network, probe_of(x), RandomStreams(0))
        assert result["local_rank"].value.shape == (len(spectra), len(spectra[0]), len(eps))
        assert result["local_rank_rel"].value.shape == (len(spectra), len(spectra[0]), len(relative))
        absolute, shares = np.array([eps]), np.array([relative])
        assert_estimate(result["local_rank"], spectra, lambda _, eps=absolute: eps, most_excepted)
        assert_estimate(result["local_rank_rel"], spectra, lambda s, r=shares: r * s[:, :1], most_excepted)


def assert_chains(
    chains: Sequence[Parameters],
    x: np.ndarray,
    activation: str = "tanh",
    output: str = "identity",
    at: At = "pre",
    **settings: Any,
) -> None:
    spectra = [chain_spectra(chain, (activation, output), x, at) for chain in chains]
    assert_no_wrong_count(network_of(chains, activation, output), x, spectra, at, **settings)


# Networks ----------------------------------------------------------------------------------------------------------


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def changed(
    widths: tuple[int, int, int, int], change: Callable[..., Any], seed: int = 1, scale: float = 1.5
) -> Parameters:
    """Return a random chain after change(weights, biases) has modified it in place."""
    weights, biases = random_chain(widths, seed, scale=scale)
    change(weights, biases)
    return weights, biases


def equal_units(w: Sequence[torch.Tensor], b: Sequence[torch.Tensor], difference: float = 0.0) -> None:
    for layer in (0, 1):
        w[layer][1:4] = w[layer][:1] + difference * torch.arange(1, 4).double()[:, None]
        b[layer][1:4] = b[layer][0]


def dead_units(_: object, b: Sequence[torch.Tensor]) -> None:
    b[0][::2] = -1e3
    b[1][:3] = -1e3


def units_dead_at_some_rows(w: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
    """All of layer 1 at rows of negative x, see `CRAFTED`."""
    w[0].abs_()
    b[0].zero_()


def graded(w: Sequence[torch.Tensor], _: object) -> None:
    u, s, v = torch.linalg.svd(w[0], full_matrices=False)
    w[0][:] = u @ torch.diag(torch.logspace(0, -12, len(s), dtype=torch.float64)) @ v


def times(factor: float) -> Callable[..., Any]:
    return lambda w, b: [t.mul_(factor) for t in (*w, *b)]


CRAFTED = {
    "equal units": (equal_units, "tanh"),
    "equal units of relu": (equal_units, "relu"),
    "nearly equal units": (lambda w, b: equal_units(w, b, 1e-9), "gelu"),
    "dead units": (dead_units, "relu"),
    "all dead at some rows": (units_dead_at_some_rows, "relu"),
    "saturated tanh": (times(30), "tanh"),
    "saturated sigmoid": (times(30), "sigmoid"),
    "layer of zeros": (lambda w, _: w[1].zero_(), "tanh"),
    "first layer of zeros": (lambda w, _: w[0].zero_(), "silu"),
    "graded": (graded, "tanh"),
    "graded relu": (graded, "relu"),
    "graded linear": (graded, "identity"),
    **{f"{scale:g} {name}": (times(scale), name) for scale in (1e-6, 1e6, 1e-80, 1e80) for name in ("relu", "elu")},
    "1e-80 tanh": (times(1e-80), "tanh"),
}


@functools.cache
def trained(
    activation: str, widths: tuple[int, ...] = (40, 64, 48, 32, 16, 5), steps: int = 240, rows: int = 160
) -> Any:
    """Chains before, amid and after full-batch Adam on labels made by five directions, and the rows."""
    x = rows_of(rows, widths[0], seed=3)
    y = torch.from_numpy((x[:, :15] ** 2).reshape(rows, 5, 3).sum(2).argmax(1))
    weights, biases = random_chain(widths, 4, scale=1.4)
    biases[0] -= 0.5
    optimizer = torch.optim.Adam([p.requires_grad_() for p in weights + biases], lr=3e-3, weight_decay=1e-3)
    chains = []
    for step in range(steps + 1):
        if step in (0, steps // 3, steps):
            chains.append(tuple([p.detach().clone() for p in part] for part in (weights, biases)))
        optimizer.zero_grad()
        logits = forward(weights, biases, activation, "identity", torch.from_numpy(x))[-1][1]
        nn.functional.cross_entropy(logits, y, label_smoothing=0.1).backward()
        optimizer.step()
    return chains, x


# Chains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "output"), [("pre", "identity"), ("post", "identity"), ("post", "softmax")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_counts_are_those_of_an_svd_for_every_activation(activation: str, at: At, output: str) -> None:
    scales = (1, 2, 0.5)
    chains = [random_chain((12, 10, 7, 5, 4, 3, 2), seed, scale=scale) for seed, scale in enumerate(scales)]
    assert_chains(chains, rows_of(64, 12), activation, output, at)


@pytest.mark.parametrize(("at", "output", "rows"), [("pre", "identity", 1), ("post", "softmax", 2)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_counts_are_those_of_an_svd_for_trained_networks(activation: str, at: At, output: str, rows: int) -> None:
    """With ReLU, fewer than 40 % of the units of layer 1 are active."""
    chains, x = trained(activation)
    if activation == "relu":
        assert all((torch.from_numpy(x) @ w[0].T + b[0] > 0).double().mean() < 0.4 for w, b in chains)
    assert_chains(chains, x[:12], activation, output, at, spectrum_rows=rows)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize(
    ("widths", "rows", "activation"),
    [
        ((200, 160, 120, 40), 4, "tanh"),
        ((200, 160, 120, 40), 4, "relu"),
        ((500, 96, 64, 10), 8, "relu"),
        ((10, 12, 12, 6), 400, "relu"),
        ((5, 60, 40, 20), 20, "gelu"),
        ((5, 60, 40, 20), 20, "relu"),
        ((30, 4, 30, 10), 20, "tanh"),
        ((30, 4, 30, 10), 20, "relu"),
        ((8, 12, 16, 24), 20, "silu"),
        ((40, 24, 24, 24, 24, 24), 12, "relu"),
        ((6, 1, 5, 1), 20, "elu"),
        ((7, 4), 9, "identity"),
    ],
)
def test_counts_are_those_of_an_svd_for_every_shape(
    widths: tuple[int, ...], rows: int, activation: str, at: At
) -> None:
    assert_chains([random_chain(widths, 1, scale=1.5)], rows_of(rows, widths[0]), activation, at=at, spectrum_rows=2)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("name", CRAFTED)
def test_counts_are_those_of_an_svd_for_crafted_weights(name: str, at: At) -> None:
    change, activation = CRAFTED[name]
    x = rows_of(24, 14)
    x[:8] = -np.abs(x[:8])
    assert_chains([changed((14, 16, 12, 8), change)], x, activation, at=at)


@pytest.mark.parametrize("eps", [DECADES, DECADES[2:3], DECADES[6:]])
def test_linear_net_of_known_spectrum(eps: tuple[float, ...]) -> None:
    """Orthogonal layers about one of singular values 1, 0.03, 0.003 ... 3e-6 and zeros."""
    g = np.random.default_rng(5)
    q = [np.linalg.qr(g.standard_normal((11, 11)))[0] for _ in range(4)]
    spectrum = np.array([1.0, *(3 * 10.0**-k for k in range(2, 7)), *[0.0] * 5])
    weights = [torch.from_numpy(w) for w in (q[0], q[1] @ np.diag(spectrum) @ q[2], q[3])]
    network = network_of([(weights, [None] * 3)], "identity")
    for relative in ((), DECADES, DECADES[6:]):
        result = LocalRank(eps=eps, rel_eps=relative, spectrum_rows=1)(
            network, probe_of(rows_of(9, 11)), RandomStreams(0)
        )
        for found, limits in ((result["local_rank"], eps), (result["local_rank_rel"], relative)):
            known = [(spectrum > limit).sum() for limit in limits]
            for values in (found.value, found.minimum, found.maximum):
                assert values[0].tolist() == [[11] * len(limits), known, known]


@pytest.mark.parametrize("name", ["trained", "saturated tanh", "all dead at some rows", "graded relu"])
def test_every_row_alone(name: str) -> None:
    """Row x = 0 twice, checkpoints that hold W_1 x_i + b_1 as their bias: no sum over rows hides a count.

    Twice, for a row whose spectrum is not wanted is counted in another way.
    """
    if name == "trained":
        chains, x = trained("relu")
        (weights, biases), x, activation = chains[-1], x[:12], "relu"
    else:
        change, activation = CRAFTED[name]
        x = rows_of(24, 14)
        x[:8] = -np.abs(x[:8])
        weights, biases = changed((14, 16, 12, 8), change)
    chains = [(weights, [weights[0] @ torch.from_numpy(row) + biases[0], *biases[1:]]) for row in x]
    assert_chains(chains, np.zeros((2, x.shape[1])), activation)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", ["graded", "graded linear", "nearly equal units", "saturated tanh", "equal units"])
def test_thresholds_just_outside_the_band(name: str, layer: int) -> None:
    """Thresholds two error bands above and below every singular value of the last row, singly and all at once."""
    change, activation = CRAFTED[name]
    chain, x = changed((14, 16, 12, 8), change), rows_of(3, 14)
    sigma = chain_spectra(chain, (activation, "identity"), x, "pre")[layer][-1]
    slack = 2 * BAND * sigma[0]
    limits = [float(limit) for limit in (*(sigma + slack), *(sigma - slack)) if limit > slack]
    shares = [limit / sigma[0] for limit in limits]
    calls = [(tuple(limits), tuple(shares)), *[((limit,), ()) for limit in limits], *[((1.0,), (s,)) for s in shares]]
    # Of values that fall from 1 to 1e-12, several lie as near as that to one another.
    assert_chains([chain], x, activation, calls=calls, most_excepted=1.0 if "graded" in name else 0.25)


@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_rows_that_repeat_and_checkpoints_of_other_scales(activation: str, rows: int | None) -> None:
    scales = (1, 1e-3, 1e3, 1e-7) if activation == "relu" else (1, 1e-3, 5, 1e-7)
    chains = [changed((9, 11, 7, 6), times(s), seed) for seed, s in enumerate(scales)]
    x = np.repeat(rows_of(7, 9), 3, axis=0)
    assert_chains(chains, x, activation, spectrum_rows=rows)
    assert_chains(chains, x[:1], activation, spectrum_rows=rows)


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_those_of_an_svd_for_random_networks(seed: int) -> None:
    g = np.random.default_rng(seed)
    activation, output = g.choice(ACTIVATIONS), g.choice(["identity", "tanh", "softmax"])
    widths = [int(w) for w in g.integers(1, 10, g.integers(2, 7))]
    chains = [random_chain(widths, seed + 100 * k, scale=10 ** g.uniform(-1, 0.5)) for k in range(g.integers(1, 4))]
    x, at = rows_of(int(g.integers(1, 40)), widths[0], seed=seed), g.choice(["pre", "post"])
    spectra = [chain_spectra(chain, (activation, output), x, at) for chain in chains]
    top = max(sigma.max() for layers in spectra for sigma in layers)
    calls = [
        (tuple(top * 10 ** g.uniform(-7, 0, k)) or (0.1,), tuple(10 ** g.uniform(-7, 0, r)))
        for k, r in ((1, 0), (1, 1), (2, 3), (9, 9))
    ]
    network = network_of(chains, activation, output)
    assert_no_wrong_count(network, x, spectra, at, calls, spectrum_rows=int(g.integers(1, 4)))


# Modules -----------------------------------------------------------------------------------------------------------


def convolutional() -> tuple[nn.Sequential, Callable[..., Any], tuple[int, int, int, int]]:
    """A convolution with more outputs than inputs (216 of 72), one with fewer (16)."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 2, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(model[:pre](x), model[:post](x)) for pre, post in ((1, 3), (4, 6), (7, 7))]

    return model, values, (6, 2, 6, 6)


def residual() -> tuple[Net, Callable[..., Any], tuple[int, int]]:
    model = Net(
        lambda s, x: s.c(torch.tanh((h := s.a(x)) + s.b(torch.relu(h)))),
        a=nn.Linear(8, 10), b=nn.Linear(10, 10), c=nn.Linear(10, 4),
    )  # fmt: skip

    def values(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        h = model.a(x)
        y = model.b(torch.relu(h))
        return [(h, h), (y, y), (model.c(torch.tanh(h + y)),) * 2]

    return model, values, (24, 8)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("net", [convolutional, residual])
def test_counts_are_those_of_an_svd_for_modules(net: Callable[..., Any], at: At) -> None:
    torch.manual_seed(1)
    model, values, shape = net()
    model.double().eval().requires_grad_(False)
    x = rows_of(*shape)
    spectra = [module_spectra(values, x, at)]
    model.to(oracles.DEVICE)
    network = traced_network(model, x, (), device=oracles.DEVICE, dtype=torch.float64)
    assert_no_wrong_count(network, x, spectra, at)
