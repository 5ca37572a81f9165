"""The variable of local rank: another layer's post, a random subspace, some layers alone; against full Jacobians."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from support import oracles
from support.nets import Net
from support.oracles import Parameters, forward, full_jacobian, network_of, probe_of, random_chain
from torch import nn
from torch.nn import functional

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import At
from ibscan.core.streams import RandomStreams
from ibscan.measures.local_rank import LocalRank
from ibscan.networks.admission import traced_network
from ibscan.networks.chain import Chain
from ibscan.networks.module import Module
from ibscan.numerics.spectra.subspace import subspace
from ibscan.results.store import read

STREAMS = RandomStreams(0)
EPS = (1e-8, 0.01, 0.1, 0.4, 1.0)
RELATIVE = (1e-3, 0.1, 0.5)
WIDTHS = (6, 7, 5, 6, 4)
MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
# Quantities of the whole Jacobian, of which a subspace says nothing.
OF_THE_WHOLE = ("effective_rank", "stable_rank", "rank_bound_jacobian")

relu, tanh = torch.relu, torch.tanh


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def measured(
    network: Chain | Module, x: np.ndarray, streams: RandomStreams = STREAMS, layers: Any = None, **settings: Any
) -> Mapping[str, Estimate]:
    measure = LocalRank(**{"eps": EPS, "rel_eps": RELATIVE} | settings)
    return measure(network, probe_of(x), streams, layers)


def module_of(model: Any, x: np.ndarray) -> Module:
    model = model.double().eval().requires_grad_(False)
    # A copy: on another device it is moved there, away from the oracle.
    return traced_network(copy.deepcopy(model), x, (), device=oracles.DEVICE, dtype=torch.float64)


def sequential(chain: Parameters, activation: str, output: str = "identity") -> Any:
    """The chain as a module whose layers have the names the chain gives them."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (weight, bias) in enumerate(zip(*chain, strict=True), 1):
        parts[f"fc{k}"] = nn.Linear(weight.shape[1], weight.shape[0])
        parts[f"fc{k}"].weight.data, parts[f"fc{k}"].bias.data = weight.clone(), bias.clone()
        parts[f"act{k}"] = MODULES[activation]()
    if output == "softmax":
        parts[f"act{k}"] = nn.Softmax(-1)
    else:
        del parts[f"act{k}"]
    return nn.Sequential(parts)


# The oracle --------------------------------------------------------------------------------------------------------


def jacobian_after(
    chain: Parameters,
    names: tuple[str, str],
    x: np.ndarray,
    origin: int,
    layer: int,
    at: At,
) -> Any:
    """d layer / d post of the origin (N, D, d): that of the chain cut off behind the origin, at the origin's post."""
    post = forward(*chain, *names, torch.from_numpy(x))[origin][1]
    return full_jacobian(chain[0][origin + 1 :], chain[1][origin + 1 :], names, post, layer - origin - 1, at)


def basis_of(streams: RandomStreams, width: int, dims: int) -> np.ndarray:
    """Return the orthonormal columns (width, dims) a measure uses that is given these streams."""
    return subspace(streams.generator("subspace", width, 0), width, dims)(width, slice(0, dims))


def counts_of(
    jacobians: torch.Tensor,
    eps: tuple[float, float, float, float, float],
    relative: Any,
    basis: None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (N, E), (N, R), and singular values; relative to the largest of the whole Jacobian."""
    whole = torch.linalg.svdvals(jacobians).numpy()
    sigma = whole if basis is None else torch.linalg.svdvals(jacobians @ torch.from_numpy(basis)).numpy()
    absolute = np.array([[(s > e).sum() for e in eps] for s in sigma])
    own = np.array([[(s > e * w[0]).sum() for e in relative] for s, w in zip(sigma, whole, strict=True)])
    return absolute, own, sigma


def assert_counts(
    found: Mapping[str, Estimate],
    place: tuple[int, int],
    jacobians: torch.Tensor,
    basis: Any = None,
    spectrum_rows: int | None = None,
) -> None:
    """Assert every number of one (checkpoint, layer) that does not depend on the Jacobian of the layer's input."""
    absolute, relative, sigma = counts_of(jacobians, EPS, RELATIVE, basis)
    n = len(absolute)
    for key, counts in (("local_rank", absolute), ("local_rank_rel", relative)):
        one = found[key]
        np.testing.assert_allclose(one.value[place], counts.mean(0), rtol=1e-13, err_msg=key)
        np.testing.assert_array_equal(one.minimum[place], counts.min(0), err_msg=key)
        np.testing.assert_array_equal(one.maximum[place], counts.max(0), err_msg=key)
        np.testing.assert_allclose(one.stderr[place], counts.std(0, ddof=1) / math.sqrt(n), rtol=1e-12, atol=1e-14)
        assert (one.status[place] == (Status.OK if basis is None else Status.LOWER_BOUND)).all()
    for k in range(len(EPS)):
        histogram = found["local_rank_count"].value[(*place, k)]
        assert histogram.sum() == n
        assert (
            histogram[: absolute.max() + 1].tolist()
            == np.bincount(absolute[:, k], minlength=absolute.max() + 1).tolist()
        )
    few = sigma[:spectrum_rows]
    k = sigma.shape[1]
    got = found["singular_value"].value[place]
    np.testing.assert_allclose(got[:k], few.mean(0), rtol=1e-9, atol=1e-12 * few.max())
    assert np.isnan(got[k:]).all()
    if basis is None:
        stable = ((few**2).sum(1) / few[:, 0] ** 2).mean()
        assert found["stable_rank"].value[place] == pytest.approx(stable, rel=1e-10)
        p = few / few.sum(1, keepdims=True)
        effective = np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum(1)).mean()
        assert found["effective_rank"].value[place] == pytest.approx(effective, rel=1e-9)
    else:
        for key in OF_THE_WHOLE:
            assert (found[key].status[place] == Status.NOT_MEASURED).all(), key
            assert np.isnan(found[key].value[place]).all(), key


def assert_bound(
    found: Mapping[str, Estimate],
    place: tuple[int, int],
    weight: torch.Tensor,
    input_jacobian: torch.Tensor,
    spectrum_rows: Any,
) -> None:
    """Assert the bound #{sigma(W) > eps / |B|}, B (N, s, d) the Jacobian of the layer's input."""
    sigma = np.linalg.svd(weight.numpy(), compute_uv=False)
    bound = next(q for q in LocalRank.quantities if q.key == "rank_bound_jacobian")
    used = bound.rows(LocalRank(spectrum_rows=spectrum_rows), len(input_jacobian))
    norms = torch.linalg.matrix_norm(input_jacobian, 2)[:used].tolist()
    expected = np.array([[(sigma > e / norm).sum() if norm else 0 for e in EPS] for norm in norms])
    np.testing.assert_allclose(found["rank_bound_jacobian"].value[place], expected.mean(0), rtol=1e-13)


def assert_not_measured(found: Mapping[str, Estimate], layers: slice | Sequence[int]) -> None:
    for key, one in found.items():
        if one.status is None:
            assert (one.value[:, layers] == -1).all(), key
        else:
            assert (one.status[:, layers] == Status.NOT_MEASURED).all(), key
            assert np.isnan(one.value[:, layers]).all(), key


def assert_same(
    found: Mapping[str, Estimate],
    expected: Mapping[str, Estimate],
    rtol: float = 1e-10,
    layers: slice | Sequence[int] = slice(None),
) -> None:
    assert list(found) == list(expected)
    for key, part in itertools.product(expected, [field.name for field in dataclasses.fields(Estimate)]):
        a, b = (getattr(one[key], part) for one in (found, expected))
        assert (a is None) == (b is None), (key, part)
        if a is not None:
            np.testing.assert_allclose(a[:, layers], b[:, layers], rtol=rtol, atol=1e-12, err_msg=f"{key} {part}")


# Another layer's post ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("spectrum_rows", [None, 2])
@pytest.mark.parametrize(("activation", "output"), [("gelu", "softmax"), ("relu", "tanh")])
@pytest.mark.parametrize("origin", [0, 1, 2])
def test_chains_from_a_layers_post(
    origin: int, activation: str, output: str, spectrum_rows: int | None, at: At
) -> None:
    """Two checkpoints stacked, each with a post of its own."""
    chains, names = [random_chain(WIDTHS, seed, scale=2.0) for seed in (1, 2)], (activation, output)
    x = rows_of(6, WIDTHS[0], seed=1)
    found = measured(network_of(chains, *names), x, origin=f"fc{origin + 1}", at=at, spectrum_rows=spectrum_rows)
    assert_not_measured(found, slice(0, origin + 1))
    for (c, chain), layer in itertools.product(enumerate(chains), range(origin + 1, 4)):
        assert_counts(
            found, (c, layer), jacobian_after(chain, names, x, origin, layer, at), spectrum_rows=spectrum_rows
        )
        if at == "pre":
            before = torch.eye(WIDTHS[origin + 1], dtype=torch.float64).expand(len(x), -1, -1)
            if layer > origin + 1:
                before = jacobian_after(chain, names, x, origin, layer - 1, "post")
            assert_bound(found, (c, layer), chain[0][layer], before, spectrum_rows)
        else:
            assert (found["rank_bound_jacobian"].status[c, layer] == Status.NOT_MEASURED).all()


def test_the_layer_behind_the_origin_has_the_weights_spectrum() -> None:
    chain = random_chain(WIDTHS, 3)
    found = measured(network_of([chain]), rows_of(5, 6), origin="fc2")
    sigma = np.linalg.svd(chain[0][2].numpy(), compute_uv=False)
    assert found["local_rank"].value[0, 2].tolist() == [(sigma > e).sum() for e in EPS]
    assert (found["local_rank"].stderr[0, 2] == 0).all()
    np.testing.assert_array_equal(found["rank_bound_jacobian"].value[0, 2], found["local_rank"].value[0, 2])


def test_rows_whose_spectra_are_beyond_gram_matrices() -> None:
    chain, names, x = random_chain(WIDTHS, 4, scale=2.0), ("tanh", "identity"), rows_of(8, 6)
    relative = (1e-9, 0.2)
    found = measured(network_of([chain], *names), x, origin="fc1", rel_eps=relative, spectrum_rows=3)
    for layer in (1, 2, 3):
        _, counts, _ = counts_of(jacobian_after(chain, names, x, 0, layer, "pre"), EPS, relative)
        np.testing.assert_allclose(found["local_rank_rel"].value[0, layer], counts.mean(0), rtol=1e-13)


def test_a_checkpoint_that_is_not_finite_before_the_origin() -> None:
    """The origin's post is not finite in that checkpoint; the other checkpoint is unaffected."""
    chains, x = [random_chain(WIDTHS, seed) for seed in (1, 2)], rows_of(6, 6)
    clean = measured(network_of(chains), x, origin="fc2", spectrum_rows=2)
    chains[0][0][0][0, 0] = math.nan
    found = measured(network_of(chains), x, origin="fc2", spectrum_rows=2)
    assert_not_measured(found, slice(0, 2))
    assert (found["local_rank"].status[0, 2:] == Status.NONFINITE).all()
    assert_same({k: at(v, 1) for k, v in found.items()}, {k: at(v, 1) for k, v in clean.items()})


def at(estimate: Estimate, checkpoint: int) -> Estimate:
    """The estimate of one checkpoint."""
    parts = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(Estimate)}
    return Estimate(**{k: None if v is None else v[checkpoint : checkpoint + 1] for k, v in parts.items()})


def residual() -> tuple[Net, Callable[..., Any], dict[str, Callable[..., Any]], tuple[int]]:
    """Two blocks: what goes round a block is held constant while the block's own layers vary."""
    torch.manual_seed(2)
    parts = {name: nn.Linear(5, 5) for name in ("b1", "b2", "b3", "b4")}
    m = Net(residual_forward, stem=nn.Linear(4, 5), head=nn.Linear(5, 3), n=nn.LayerNorm(5), **parts).double()

    # h is stem's post, which both paths take.
    def after_stem(x: torch.Tensor, h: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        p: torch.Tensor = m.b1(h)
        q: torch.Tensor = m.b2(relu(p))
        return [("b1", p, relu(p)), ("b2", q, q), *after_b2(x, q, h)]

    def after_b1(x: torch.Tensor, r: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:  # r is post of b1
        q: torch.Tensor = m.b2(r)
        return [("b2", q, q), *after_b2(x, q)]

    def after_b2(
        x: torch.Tensor, q: torch.Tensor, h: torch.Tensor | None = None
    ) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        h = (relu(m.stem(x)) if h is None else h) + q
        g = m.n(h)
        p = m.b3(g)
        s: torch.Tensor = m.b4(tanh(p))
        return [("b3", p, tanh(p)), ("b4", s, s), *after_b4(x, s, h)]

    def after_b3(x: torch.Tensor, r: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        s: torch.Tensor = m.b4(r)
        return [("b4", s, s), *after_b4(x, s)]

    def after_b4(
        x: torch.Tensor, s: torch.Tensor, h: torch.Tensor | None = None
    ) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        if h is None:
            h = relu(m.stem(x))
            h = h + m.b2(relu(m.b1(h)))
        return [("head", o := m.head(h + s), functional.softmax(o, -1))]

    def posts(x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = relu(m.stem(x))
        r = relu(m.b1(h))
        q = m.b2(r)
        t = tanh(m.b3(m.n(h + q)))
        return {"stem": h, "b1": r, "b2": q, "b3": t, "b4": m.b4(t)}

    after = {"stem": after_stem, "b1": after_b1, "b2": after_b2, "b3": after_b3, "b4": after_b4}
    return m, posts, after, (4,)


def residual_forward(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = relu(m.stem(x))
    h = h + m.b2(relu(m.b1(h)))
    y = m.b4(tanh(m.b3(m.n(h))))
    y += h
    return functional.softmax(m.head(y), -1)


def pooled() -> tuple[Net, Callable[..., Any], dict[str, Callable[..., Any]], tuple[int, int, int]]:
    """A convolution whose post is smaller than its pre."""
    torch.manual_seed(3)
    a, b, head = nn.Conv2d(1, 3, 3).double(), nn.Conv2d(3, 4, 2).double(), nn.Linear(4, 3).double()
    model = Net(lambda m, x: m.head(tanh(m.b(functional.max_pool2d(tanh(m.a(x)), 2))).flatten(1)), a=a, b=b, head=head)

    def after_a(x: torch.Tensor, h: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        p = b(h)
        return [("b", p, tanh(p)), *after_b(x, tanh(p))]

    def after_b(x: torch.Tensor, h: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:  # noqa: ARG001
        return [("head", o := head(h.flatten(1)), o)]

    def posts(x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = functional.max_pool2d(tanh(a(x)), 2)
        return {"a": h, "b": tanh(b(h))}

    return model, posts, {"a": after_a, "b": after_b}, (1, 6, 6)


def twice() -> tuple[Net, Callable[..., Any], dict[str, Callable[..., Any]], tuple[int]]:
    """One module called twice: its second call is another layer."""
    torch.manual_seed(4)
    a, b = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    model = Net(lambda m, x: m.b(tanh(m.a(tanh(m.a(x))))), a=a, b=b)

    def after_a(x: torch.Tensor, h: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:  # noqa: ARG001
        q = a(h)
        return [("a#2", q, tanh(q)), ("b", o := b(tanh(q)), o)]

    return model, lambda x: {"a": tanh(a(x))}, {"a": after_a}, (4,)


MODELS = {"residual": residual, "pooled": pooled, "twice": twice}
ORIGINS = [
    *(("residual", name) for name in ("stem", "b1", "b2", "b3", "b4")),
    ("pooled", "a"),
    ("pooled", "b"),
    ("twice", "a"),
]


def module_jacobians(
    posts: Callable[..., Any], after: Mapping[str, Callable[..., Any]], x: np.ndarray, origin: str, place: int
) -> Any:
    """{layer name: d layer / d post of the origin (N, D, d)} by jacrev, row by row; nothing else varies."""
    found: dict[Any, Any] = {}
    for row in torch.from_numpy(x):
        post = posts(row[None])[origin][0]
        names = [name for name, *_ in after[origin](row[None], post[None])]
        for k, name in enumerate(names):
            jacobian = torch.func.jacrev(lambda h, k=k, row=row: after[origin](row[None], h[None])[k][place][0])(post)
            found.setdefault(name, []).append(jacobian.reshape(-1, post.numel()))
    return {name: torch.stack(rows) for name, rows in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("spectrum_rows", [None, 2])
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(("model", "origin"), ORIGINS)
def test_modules_from_a_layers_post(model: Any, origin: str, place: At, spectrum_rows: int | None) -> None:
    model, posts, after, shape = MODELS[model]()
    x = rows_of(6, *shape)
    network = module_of(model, x)
    found = measured(network, x, origin=origin, at=place, spectrum_rows=spectrum_rows)
    names = [layer.name for layer in network.layers]
    assert_not_measured(found, slice(0, names.index(origin) + 1))
    jacobians = module_jacobians(posts, after, x, origin, 1 if place == "pre" else 2)
    assert names[names.index(origin) + 1 :] == list(jacobians)
    for name, jacobian in jacobians.items():
        assert_counts(found, (0, names.index(name)), jacobian, spectrum_rows=spectrum_rows)
    bound = found["rank_bound_jacobian"]
    if not network.plain or place == "post":
        assert (bound.status == Status.NOT_MEASURED).all()
        assert np.isnan(bound.value).all()
    else:
        assert (bound.status[0, -1] == Status.OK).all()
    assert network.plain == (posts(torch.from_numpy(x)).keys() != {"stem", "b1", "b2", "b3", "b4"})


def test_bounds_of_modules_from_a_layers_post() -> None:
    """The input of the layer after the origin is the variable itself, that of a later layer a function of it."""
    shape: tuple[int, ...]
    model, posts, after, shape = twice()
    x = rows_of(6, *shape)
    found = measured(module_of(model, x), x, origin="a", spectrum_rows=None)
    assert_bound(found, (0, 1), model.a.weight, torch.eye(4, dtype=torch.float64).expand(6, -1, -1), None)
    assert_bound(found, (0, 2), model.b.weight, module_jacobians(posts, after, x, "a", 2)["a#2"], None)
    model, posts, after, shape = pooled()
    x = rows_of(6, *shape)
    found = measured(module_of(model, x), x, origin="a", spectrum_rows=None)
    assert (found["rank_bound_jacobian"].status[0, 1] == Status.NOT_MEASURED).all()  # overlapping patches
    assert_bound(found, (0, 2), model.head.weight, module_jacobians(posts, after, x, "a", 2)["b"], None)


def test_what_does_not_depend_on_the_origin_is_dead() -> None:
    """Of two parallel branches, the second one's layer comes later but does not depend on the first one's post."""
    torch.manual_seed(5)
    model = Net(lambda m, x: m.c(tanh(m.a(x)) * tanh(m.b(x))), a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2))
    x = rows_of(5, 3)
    for spectrum_rows in (None, 1):
        found = measured(module_of(model, x), x, origin="a", spectrum_rows=spectrum_rows)
        assert (found["local_rank"].status[0, 1] == Status.DEAD).all()
        assert (found["local_rank"].value[0, 1] == 0).all()
        factor = torch.from_numpy(x) @ model.b.weight.T + model.b.bias
        assert_counts(found, (0, 2), model.c.weight * tanh(factor)[:, None, :], spectrum_rows=spectrum_rows)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("options", [{"origin": "fc2"}, {"origin": "fc1", "directions": 3}, {"directions": 3}])
@pytest.mark.parametrize(("activation", "spectrum_rows"), [("tanh", 3), ("relu", None), ("relu", 3)])
def test_chain_and_module_agree(activation: str, spectrum_rows: int | None, options: dict[str, Any], place: At) -> None:
    chain, x = random_chain(WIDTHS, 6, scale=1.5), rows_of(9, 6)
    options = options | {"spectrum_rows": spectrum_rows, "at": place}
    expected = measured(network_of([chain], activation, "softmax"), x, **options)
    found = measured(module_of(sequential(chain, activation, "softmax"), x), x, **options)
    assert_same(found, expected, rtol=1e-8)


# A subspace ----------------------------------------------------------------------------------------------------------


@given(width=st.integers(1, 300), seed=st.integers(0, 10**6), data=st.data())
def test_a_basis_is_orthonormal_and_incoherent(width: int, seed: int, data: st.DataObject) -> None:
    """No axis has more than its share, 2 N / d of a unit vector's square; any cut into parts is the same basis."""
    dims = data.draw(st.integers(1, width))
    columns = subspace(np.random.default_rng(seed), width, dims)
    basis = columns(width, slice(0, dims))
    assert basis.shape == (width, dims)
    np.testing.assert_allclose(basis.T @ basis, np.eye(dims), atol=1e-12)
    assert np.abs(basis).max() <= math.sqrt(2 / width) + 1e-12
    assert (basis**2).sum(1).max() <= 2 * dims / width + 1e-12
    cut = data.draw(st.integers(0, dims))
    parts = [columns(width, part) for part in (slice(0, cut), slice(cut, dims))]
    np.testing.assert_array_equal(np.concatenate(parts, 1), basis)
    if dims < width:  # smaller subspaces lie in larger ones
        larger = subspace(np.random.default_rng(seed), width, dims + 1)
        np.testing.assert_array_equal(larger(width, slice(0, dims)), basis)


def test_a_large_basis_is_orthonormal() -> None:
    basis = basis_of(RandomStreams(3), 50_000, 64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(64), atol=1e-12)
    assert np.abs(basis).max() <= math.sqrt(2 / 50_000) + 1e-15


def test_subspaces_are_random() -> None:
    """Of the seed; a fixed vector keeps N / d of its square on average: 400 seeds, the mean within 4 of its errors."""
    one, again, other = (basis_of(RandomStreams(s), 40, 5) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one @ one.T - other @ other.T).max() > 0.01
    v = np.random.default_rng(0).standard_normal(40)
    v /= np.linalg.norm(v)
    for vector in (v, np.eye(40)[0], np.ones(40) / math.sqrt(40)):
        kept = [np.square(basis_of(RandomStreams(s), 40, 5).T @ vector).sum() for s in range(400)]
        assert abs(np.mean(kept) - 5 / 40) <= 4 * np.std(kept, ddof=1) / 20


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("origin", [None, 0, 1])
@pytest.mark.parametrize("spectrum_rows", [None, 2])
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_chains_on_a_subspace(
    activation: str, directions: int, spectrum_rows: int | None, origin: int | None, place: At
) -> None:
    """Singular values of J Q; relative thresholds are of the whole Jacobian's largest."""
    chains, names = [random_chain(WIDTHS, seed, scale=2.0) for seed in (1, 2)], (activation, "softmax")
    x, streams = rows_of(8, WIDTHS[0], seed=2), RandomStreams(7)
    name = None if origin is None else f"fc{origin + 1}"
    options: dict[str, Any] = {"origin": name, "directions": directions, "at": place, "spectrum_rows": spectrum_rows}
    found = measured(network_of(chains, *names), x, streams, **options)
    start = 0 if origin is None else origin + 1
    assert_not_measured(found, slice(0, start))
    width = WIDTHS[start]
    basis = basis_of(streams, width, directions)
    for (c, chain), layer in itertools.product(enumerate(chains), range(start, 4)):
        if origin is None:
            jacobians = full_jacobian(*chain, names, torch.from_numpy(x), layer, place)
        else:
            jacobians = jacobian_after(chain, names, x, origin, layer, place)
        assert_counts(found, (c, layer), jacobians, basis, spectrum_rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "origin"), [("residual", None), ("residual", "b2"), ("pooled", None), ("pooled", "a")]
)
@pytest.mark.parametrize("spectrum_rows", [None, 2])
def test_modules_on_a_subspace(model: Any, origin: str | None, spectrum_rows: int | None) -> None:
    model, posts, after, shape = MODELS[model]()
    x = rows_of(3, *shape)
    network = module_of(model, x)
    names = [layer.name for layer in network.layers]
    found = measured(network, x, origin=origin, directions=3, spectrum_rows=spectrum_rows)
    if origin is None:
        first = names[0]
        rest = module_jacobians(posts, after, x, first, 1)
        stem = getattr(model, first)
        each = [torch.func.jacrev(lambda row: posts(row[None])[first].flatten())(row) for row in torch.from_numpy(x)]
        inner = torch.stack([j.reshape(len(j), -1) for j in each])
        own = [torch.func.jacrev(lambda row: stem(row[None]).flatten())(row) for row in torch.from_numpy(x)]
        jacobians = {first: torch.stack([j.reshape(len(j), -1) for j in own])}
        jacobians |= {name: jacobian @ inner for name, jacobian in rest.items()}
    else:
        jacobians = module_jacobians(posts, after, x, origin, 1)
    for name, jacobian in jacobians.items():
        width = jacobian.shape[2]
        basis = basis_of(STREAMS, width, 3)
        assert_counts(found, (0, names.index(name)), jacobian, basis, spectrum_rows)


@cache
def pair() -> Any:
    chain, x = random_chain(WIDTHS, 8, scale=2.0), rows_of(10, 6)
    return network_of([chain], "relu"), module_of(sequential(chain, "relu"), x)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("options", [{}, {"origin": "fc1"}, {"at": "post"}])
def test_counts_on_a_subspace_do_not_exceed_the_full_ones(options: Any, which: int) -> None:
    """Row by row, absolute and relative; and a larger subspace, which holds the smaller one, has no lower count."""
    network = pair()[which]
    for row in rows_of(4, 1, 6, seed=5):
        full = measured(network, row, **options)
        before = None
        for directions in (1, 3):
            found = measured(network, row, directions=directions, **options)
            for key in ("local_rank", "local_rank_rel"):
                few, whole = found[key].value, full[key].value
                assert (np.isnan(few) == np.isnan(whole)).all()
                assert not (few > whole).any()
                assert not (few > directions).any()
                assert before is None or not (before[key].value > few).any()
            before = found


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("origin", "width"), [(None, 6), ("fc1", 7), ("fc2", 5)])
def test_all_directions_are_the_whole(which: int, origin: str | None, width: int) -> None:
    network, x = pair()[which], rows_of(7, 6)
    full = measured(network, x, origin=origin)
    for directions in (width, 1000):
        found = measured(network, x, origin=origin, directions=directions)
        assert_same(found, full, rtol=0)
        assert (found["local_rank"].status[0, 2:] == Status.OK).all()
    assert (measured(network, x, origin=origin, directions=width - 1)["local_rank"].status[0, 2:] == 8).all()


def test_all_directions_of_a_pooled_post() -> None:
    """The variable is the post: 12 numbers, where the convolution's own output has 48."""
    model, _, _, shape = pooled()
    x = rows_of(3, *shape)
    network = module_of(model, x)
    full = measured(network, x, origin="a")
    assert_same(measured(network, x, origin="a", directions=12), full, rtol=0)
    assert (measured(network, x, origin="a", directions=11)["local_rank"].status[0, 1:] == Status.LOWER_BOUND).all()


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_only_the_seed_decides_on_the_subspace(which: int) -> None:
    network, x = pair()[which], rows_of(9, 6)
    one, again, other = (measured(network, x, RandomStreams(s), directions=3) for s in (4, 4, 5))
    assert_same(again, one, rtol=0)
    assert not np.allclose(other["singular_value"].value[0, :, 0], one["singular_value"].value[0, :, 0])
    # The whole has nothing random.
    assert_same(measured(network, x, RandomStreams(4)), measured(network, x, RandomStreams(5)), rtol=0)


def test_a_dead_layer_on_a_subspace() -> None:
    chain = random_chain(WIDTHS, 9)
    chain[0][1].zero_()
    found = measured(network_of([chain]), rows_of(5, 6), directions=2, spectrum_rows=2)
    assert (found["local_rank"].status[0, 0] == Status.LOWER_BOUND).all()
    for key in ("local_rank", "local_rank_rel"):
        assert (found[key].status[0, 1:] == Status.DEAD).all()
        assert (found[key].value[0, 1:] == 0).all()


def test_checkpoints_that_are_not_finite_on_a_subspace() -> None:
    chains, x = [random_chain(WIDTHS, seed) for seed in (1, 2)], rows_of(6, 6)
    clean = measured(network_of(chains), x, directions=3, spectrum_rows=2)
    chains[0][0][2][0, 0] = math.nan
    found = measured(network_of(chains), x, directions=3, spectrum_rows=2)
    for key in ("local_rank", "local_rank_rel"):
        assert (found[key].status[0, 2:] == Status.NONFINITE).all()
        assert np.isnan(found[key].value[0, 2:]).all()
        assert (found[key].status[0, :2] == Status.LOWER_BOUND).all()
    assert_same({k: at(v, 1) for k, v in found.items()}, {k: at(v, 1) for k, v in clean.items()})
    assert_same({k: at(v, 0) for k, v in found.items()}, {k: at(v, 0) for k, v in clean.items()}, layers=slice(0, 2))


# Some layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("spectrum_rows", [None, 2])
@pytest.mark.parametrize("asked", [(1,), (0, 2)])
@pytest.mark.parametrize("options", [{}, {"at": "post"}, {"origin": "fc1"}, {"directions": 3}])
def test_layers_asked_for_are_as_ever(
    options: dict[str, Any], asked: tuple[int, ...], spectrum_rows: int | None, which: int
) -> None:
    network, x = pair()[which], rows_of(8, 6)
    options = options | {"spectrum_rows": spectrum_rows}
    whole, found = measured(network, x, **options), measured(network, x, layers=asked, **options)
    assert_same(found, whole, rtol=1e-12, layers=list(asked))
    assert_not_measured(found, [k for k in range(4) if k not in asked])


def test_layers_of_stacked_checkpoints() -> None:
    chains, x = [random_chain(WIDTHS, seed) for seed in (1, 2, 3)], rows_of(8, 6)
    whole, found = measured(network_of(chains), x), measured(network_of(chains), x, layers=(1,))
    assert_same(found, whole, rtol=1e-12, layers=[1])
    assert_not_measured(found, [0, 2, 3])


def test_no_layer_behind_the_origin_is_asked_for() -> None:
    for network in pair():
        assert_not_measured(measured(network, rows_of(4, 6), origin="fc3", layers=(0, 1)), slice(None))


# The command line -----------------------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise AssertionError("measured again")


@pytest.mark.slow
def test_from_a_layer_through_the_command_line(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stores the variable: results of another one are not joined, those of the same are not measured again."""
    out = tmp_path / "r.h5"
    done = command("rank", series, "--from", "0", "-o", out)
    assert done.code == 0, done.err
    assert {row["layer"] for row in done.rows() if row["variable"] == "local_rank"} == {"2", "4"}
    result, keys = read(out), {q.key for q in LocalRank.quantities}
    for key in keys:
        assert (result[key].attrs["from"], result[key].attrs["input_dims"]) == ("0", 0), key
    assert "weight_rank" in result
    for layer, values in zip(result["layer"].values, result["local_rank"].values.swapaxes(0, 1), strict=True):
        assert np.isfinite(values).all() == (layer != "0")
    before = out.read_bytes()
    for options, named in ([], "0"), (["--from", "2"], "2"), (["--from", "0", "--input-dims", "2"], "input_dims"):
        refused = command("rank", series, *options, "-o", out)
        assert refused.code == 2, refused.err
        assert "from" in refused.err if named != "input_dims" else "input_dims" in refused.err
        assert named in refused.err
        assert "--force" in refused.err
    assert out.read_bytes() == before
    monkeypatch.setattr(LocalRank, "__call__", refuse)
    again = command("rank", series, "--from", "0", "-o", out)
    assert again.code == 0, again.err
    assert again.out == done.out
    assert out.read_bytes() == before


@pytest.mark.slow
def test_a_subspace_through_the_command_line(command: Run, series: Path, tmp_path: Path) -> None:
    out, full = tmp_path / "r.h5", tmp_path / "full.h5"
    assert command("rank", series, "-o", full).code == 0
    done = command("rank", series, "--input-dims", "2", "-o", out)
    assert done.code == 0, done.err
    assert {row["status"] for row in done.rows() if row["variable"] == "local_rank"} == {"lower_bound"}
    result, whole = read(out), read(full)
    assert (result["local_rank"].attrs["from"], result["local_rank"].attrs["input_dims"]) == ("input", 2)
    assert (whole["local_rank"].attrs["from"], whole["local_rank"].attrs["input_dims"]) == ("input", 0)
    assert (result["local_rank"].values <= whole["local_rank"].values).all()
    refused = command("rank", series, "-o", out)
    assert refused.code == 2
    assert "input_dims" in refused.err
    before = out.read_bytes()
    assert command("rank", series, "--input-dims", "2", "-o", out).code == 0
    assert out.read_bytes() == before


def test_variables_that_are_refused(command: Run, series: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "r.h5"]
    for options, code, words in (
        (["--from", "1"], 5, ("--from 1", "0, 2, 4")),
        (["--from", "fc9"], 5, ("fc9",)),
        (["--from", "4"], 5, ("--from 4",)),
        (["--from", "2", "--layers", "[02]"], 5, ("--from 2",)),
        (["--input-dims", "0"], 2, ("--input-dims",)),
        (["--input-dims", "-1"], 2, ("--input-dims",)),
    ):
        done = command("rank", series, *options, *out)
        assert done.code == code, (options, done.err)
        assert all(word in done.err for word in words), done.err
        assert not (tmp_path / "r.h5").exists()
    assert command("mi", series, "--from", "0", *out).code == 2


@pytest.mark.slow
def test_what_was_measured_before_is_not_measured_again(
    command: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that does not name the variable is one of the whole input."""
    out = tmp_path / "r.h5"
    first = command("rank", series, "-o", out)
    assert first.code == 0, first.err
    monkeypatch.setattr(LocalRank, "__call__", refuse)
    monkeypatch.setattr("ibscan.engine.run.load_tensors", refuse)
    for strip in (False, True):
        if strip:
            with h5py.File(out, "r+") as file:
                for variable in file.values():
                    for name in ("from", "input_dims"):
                        variable.attrs.pop(name, None)
        before = out.read_bytes()
        again = command("rank", series, "-o", out)
        assert again.code == 0, again.err
        assert again.out == first.out
        assert out.read_bytes() == before


@pytest.mark.slow
def test_scan_takes_the_variable_for_rank_alone(command: Run, series: Path, tmp_path: Path) -> None:
    out, rank = tmp_path / "scan.h5", tmp_path / "rank.h5"
    options = ["--from", "2", "--input-dims", "3", "--epochs", "30"]
    assert command("scan", series, *options, "-o", out).code == 0
    assert command("rank", series, *options, "-o", rank).code == 0
    scanned, ranked = read(out), read(rank)
    for key in ("local_rank", "local_rank_rel", "singular_value"):
        np.testing.assert_array_equal(scanned[key].values, ranked[key].values)
        assert scanned[key].attrs["from"] == "2"
    assert np.isfinite(scanned["mi_readout_xt"].values).all()
    assert scanned["mi_readout_xt"].attrs.get("from", "input") == "input"
