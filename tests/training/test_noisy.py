"""`ibscan.noisy`: the noisy network for training, its law, its gradients, and that it leaves no trace."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import Net
from torch import nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

import ibscan
from ibscan.errors import InputError, UsageError
from ibscan.networks.admission import traced_network

relu, tanh = torch.relu, torch.tanh


def chain() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()


def residual() -> Any:
    torch.manual_seed(1)

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        return s.c(h + tanh(s.b(h)))

    return Net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 2)).double()


def normalised() -> Any:
    torch.manual_seed(2)
    parts = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(8, 2)).double()


def rows(n: int = 6, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


def traces(model: Any) -> Any:
    """All that a forward pass or a hook could leave behind."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modules = [
        (
            module.training,
            sorted(module.__dict__),
            *(len(found) for key, found in sorted(module.__dict__.items()) if "hooks" in key),
        )
        for module in model.modules()
    ]
    return state, modules, len(_get_current_function_mode_stack())


def assert_no_trace(
    model: Any, before: tuple[Mapping[str, torch.Tensor], Sequence[tuple[int | Sequence[str], ...]], int]
) -> None:
    state, modules, depth = before
    found, left, now = traces(model)
    assert left == modules
    assert now == depth == 0
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor), key


# The law -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("net", [chain, residual])
def test_noise_is_added_as_in_the_measured_network(net: Callable[..., Any]) -> None:
    """Mean and covariance of the output over many passes, in both: four standard errors of 20,000 draws each."""
    model, x, draws, noise = net().eval(), rows(2), 20_000, 0.5
    with torch.no_grad(), ibscan.noisy(model, noise):
        torch.manual_seed(3)
        found = model(x.repeat(draws, 1)).view(draws, 2, 2)
    still = traced_network(copy.deepcopy(model).requires_grad_(False), x.numpy(), (), device=torch.device("cpu"),
                          dtype=torch.float64)  # fmt: skip
    passes = still.noisy_passes(x.numpy(), 2, (noise,) * 3)
    z = torch.randn(2, draws, passes.units, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    measured = passes.values(torch.arange(2), z)
    for row in range(2):
        a, b = found[:, row], measured[row]
        moments: list[Callable[[torch.Tensor], torch.Tensor]]
        moments = [lambda t: t, lambda t: t.square(), lambda t: t[:, :1] * t[:, 1:]]
        for moment in moments:
            u, v = moment(a), moment(b)
            error = ((u.var(0) + v.var(0)) / draws).sqrt()
            assert ((u.mean(0) - v.mean(0)).abs() <= 4 * error).all()
    assert measured.std(1).min() > 0.1  # else this would say nothing


def test_noise_is_normal_independent_over_rows_units_layers_and_passes() -> None:
    """Two bare layers: T_1 = W_1 x + Z_1 and T_2 = W_2 T_1 + Z_2 are seen at the inputs of the next layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)).double()
    x, n, noise = rows(1, 2).repeat(30_000, 1), 30_000, 0.3
    seen = []
    handles = [
        model[k].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone())) for k in (1, 2)
    ]
    with ibscan.noisy(model, noise), torch.no_grad():
        model(x)
        del seen[:]  # what was recorded
        model(x)
        model(x)
    for handle in handles:
        handle.remove()
    first, second = ([t[0], t[1] - t[0] @ model[1].weight.T - model[1].bias] for t in (seen[:2], seen[2:]))
    first[0], second[0] = (t - model[0](x) for t in (first[0], second[0]))
    z = torch.cat([*first, *second], 1).detach() / noise  # 8 columns: pass, layer, unit
    assert (z.mean(0).abs() <= 4 / math.sqrt(n)).all()
    assert ((z.var(0) - 1).abs() <= 4 * math.sqrt(2 / n)).all()
    assert ((z.pow(4).mean(0) - 3).abs() <= 4 * math.sqrt(96 / n)).all()
    correlation = torch.corrcoef(z.T) - torch.eye(8)
    assert (correlation.abs() <= 4 / math.sqrt(n)).all()
    assert (z[1:] * z[:-1]).mean(0).abs().max() <= 4 / math.sqrt(n)  # row after row


def test_the_output_has_no_noise_and_all_consumers_of_a_layer_see_the_same() -> None:
    seen: dict[Any, Any] = {}
    model, x = residual(), rows()
    model.b.register_forward_pre_hook(lambda _, given: seen.__setitem__("b", given[0]))
    model.b.register_forward_hook(lambda *given: seen.__setitem__("b out", given[2]))
    model.c.register_forward_pre_hook(lambda _, given: seen.__setitem__("c", given[0]))
    with ibscan.noisy(model, 0.2), torch.no_grad():
        out = model(x)
    torch.testing.assert_close(out, model.c(seen["c"]), rtol=1e-12, atol=0)
    noise = seen["c"] - seen["b"] - tanh(seen["b out"])  # of b alone: the sum takes the very h that b was fed
    assert 0.05 < float(noise.std()) < 0.5
    assert (seen["b"] != relu(model.a(x))).all()


def test_noise_stays_before_dropout_on_one_of_two_paths() -> None:
    """In eval mode dropout returns its very input; in training it does not, and the other use must have noise too."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        return s.c(s.drop(h)) + s.d(h)

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(3, 4), c=nn.Linear(4, 2), d=nn.Linear(4, 2), drop=nn.Dropout(0.5)).double().train()
    seen: dict[Any, Any] = {}
    x = rows()
    model.c.register_forward_pre_hook(lambda _, given: seen.__setitem__("c", given[0]))
    model.d.register_forward_pre_hook(lambda _, given: seen.__setitem__("d", given[0]))
    with ibscan.noisy(model, 0.2):
        model(x)
    clean = relu(model.a(x))
    assert (seen["d"] != clean).all()
    kept = seen["c"] != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(seen["c"][kept], 2 * seen["d"][kept], rtol=1e-12, atol=0)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [chain, residual, normalised])
def test_gradients_reach_every_parameter(net: Callable[..., Any]) -> None:
    """And are those of the noisy pass: against the same pass with its noise written by hand where there is a chain."""
    model, x = net().train(), rows(8)
    with ibscan.noisy(model, 0.1):
        model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0 or "bias" in name
    if net is chain:
        twin = chain()
        torch.manual_seed(5)
        with ibscan.noisy(model, 0.1):
            model.zero_grad()
            model(x).square().sum().backward()
        torch.manual_seed(5)
        h = tanh(twin[0](x))
        h = h + 0.1 * torch.randn_like(h)
        k = relu(twin[2](h))
        k = k + 0.1 * torch.randn_like(k)
        twin[4](k).square().sum().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_training_learns_under_noise() -> None:
    model, x = normalised().train(), rows(64)
    y = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    with ibscan.noisy(model, 0.1):
        for _ in range(60):
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])


def test_running_statistics_move_as_without_noise() -> None:
    """Those before the first noise, to the bit; the pass that records moves none."""
    noised, clean = normalised().train(), normalised().train()
    with ibscan.noisy(noised, 0.1):
        for seed in range(3):
            noised(rows(16, seed=seed))
            clean(rows(16, seed=seed))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(noised[1], key), getattr(clean[1], key))
    assert int(noised[5].num_batches_tracked) == 3
    assert not torch.equal(noised[5].running_mean, clean[5].running_mean)
    assert all(module.training for module in noised.modules())


def test_training_flags_of_all_modules_are_restored() -> None:
    model = normalised().train()
    model[1].eval()  # a frozen norm
    before = model[1].running_mean.clone()
    with ibscan.noisy(model, 0.1):
        model(rows())
        assert [module.training for module in model] == [True, False, *[True] * 6]
    assert torch.equal(model[1].running_mean, before)


def test_recording_does_not_call_eval() -> None:
    """Adapters merge their weights when they are told to evaluate."""

    class Merging(nn.Linear):
        told = 0

        def train(self, mode: bool = True) -> Any:
            Merging.told += 1
            return super().train(mode)

    model = nn.Sequential(Merging(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with ibscan.noisy(model, 0.1):
        model(rows())
    assert Merging.told == 0


def test_recording_restores_the_random_state() -> None:
    """Recording draws nothing; a pass draws for its noise; the same seed gives the same pass."""
    model, x = normalised().eval(), rows()
    state = torch.get_rng_state()
    with ibscan.noisy(model, 0.1):
        a = model(x)
        moved = torch.get_rng_state()
        torch.set_rng_state(state)
        b = model(x)
        assert torch.equal(torch.get_rng_state(), moved)
        c = model(x)
    assert torch.equal(a, b)
    assert (a != c).any()
    assert not torch.equal(state, moved)
    torch.manual_seed(4)
    torch.randn(6, 8, dtype=torch.float64)
    torch.randn(6, 8, dtype=torch.float64)
    ahead = torch.rand(1)  # after what two hidden layers draw
    torch.manual_seed(4)
    with ibscan.noisy(model, 0.1):
        model(x)
    assert torch.equal(torch.rand(1), ahead)


def test_other_batch_sizes_and_eval_mode_work_within_the_block() -> None:
    model = normalised().train()
    with ibscan.noisy(model, 0.1):
        for n in (5, 2, 17):
            assert model(rows(n)).shape == (n, 2)
        model.eval()
        with torch.no_grad():
            a, b = model(rows(1)), model(rows(1))
        assert not a.requires_grad
        assert (a != b).all()  # every pass within the block is noisy
        model.train()
        assert model(rows(4)).requires_grad
    model.eval()
    assert torch.equal(model(rows(3)), model(rows(3)))


def test_keyword_and_further_arguments_are_passed_on() -> None:
    def forward(s: Net, mask: torch.Tensor, *, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return s.b(tanh(s.a(x)) * scale) * mask

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double()
    mask = torch.ones(6, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="no Linear or Conv"), ibscan.noisy(model, 0.1):
        model(mask, x=rows())  # its rows come second: the mask alone is no input of a layer
    swapped = Net(lambda s, x, mask: s.b(tanh(s.a(x))) * mask, a=model.a, b=model.b)
    with ibscan.noisy(swapped, 0.1):
        a, b = swapped(x=rows(), mask=mask), swapped(rows(), mask=mask)
    assert (a != b).all()
    with pytest.raises(UsageError, match="without a tensor"), ibscan.noisy(model, 0.1):
        model("text")


def test_the_input_is_not_changed() -> None:
    """By the pass that records: what the model itself does to it, it does once."""
    model = Net(lambda s, x: s.b(tanh(s.a(x.mul_(2)))), a=nn.Linear(3, 3), b=nn.Linear(3, 1)).double()
    x = rows()
    with ibscan.noisy(model, 0.1):
        model(x)
    assert torch.equal(x, 2 * rows())


# No trace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [chain, residual, normalised])
def test_no_hook_remains_after_the_block(net: Callable[..., Any]) -> None:
    model = net().eval()
    before, x = traces(model), rows()
    out = model(x)
    with ibscan.noisy(model, 0.3) as same:
        assert same is model
        model(x)
    assert_no_trace(model, before)
    assert torch.equal(model(x), out)
    with ibscan.noisy(model, 0.3):
        pass  # never called
    assert_no_trace(model, before)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), out)


def test_no_hook_remains_after_an_exception_in_the_block() -> None:
    model = chain()
    before = traces(model)

    def block() -> None:
        with ibscan.noisy(model, 0.3):
            model(rows())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert_no_trace(model, before)


@pytest.mark.parametrize("first", [True, False])
def test_no_hook_remains_after_an_exception_in_the_forward_pass(first: bool) -> None:
    """In the pass that records, or in a later one; the block goes on after either."""
    model = residual().eval()
    before, x = traces(model), rows()
    with ibscan.noisy(model, 0.3):
        if not first:
            model(x)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="mat1 and mat2"):
                model(rows(4, 7))
            assert _get_current_function_mode_stack() == []
        assert (model(x) != model(x)).any()
    assert_no_trace(model, before)


def test_an_exception_deep_in_the_model_ends_the_pass() -> None:
    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        if s.broken:
            raise ValueError("deep")
        return s.b(h)

    model: Any = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double()
    model.broken = False
    before = traces(model)
    with ibscan.noisy(model, 0.3):
        model(rows())
        model.broken = True
        with pytest.raises(ValueError, match="deep"):
            model(rows())
        assert _get_current_function_mode_stack() == []
        model.broken = False
        model(rows())
    assert_no_trace(model, before)


@pytest.mark.parametrize("more", [True, False])
def test_a_pass_along_another_path_is_refused(more: bool) -> None:
    """Also one that is shorter than the recorded one, whose last layers would go without a word."""

    def forward(s: Net, x: torch.Tensor) -> torch.Tensor:
        h = relu(s.a(x))
        return s.b(tanh(s.c(h))) if s.training is more else s.b(h)

    model = Net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 2), c=nn.Linear(3, 3)).double().train()
    before = traces(model)
    with pytest.raises(InputError, match="another way"), ibscan.noisy(model, 0.1):
        model(rows())
    assert_no_trace(model, before)
    short = Net(lambda s, x: s.a(x) if s.training else tanh(s.a(x)), a=nn.Linear(3, 3)).double().train()
    with pytest.raises(InputError, match="another way"), ibscan.noisy(short, 0.1):
        short(rows())
    assert_no_trace(short, traces(short))


def test_the_model_is_freed_after_the_block() -> None:
    model = chain()
    gone = weakref.ref(model)
    with ibscan.noisy(model, 0.1):
        model(rows())
    del model
    gc.collect()
    assert gone() is None


# Several models ------------------------------------------------------------------------------------------------------


def test_two_models_at_once_have_their_own_noise() -> None:
    """An encoder and a decoder, each with its own noise."""
    encoder, decoder = chain().eval(), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval()
    x = rows(2).repeat_interleave(4000, 0)
    before = [traces(model) for model in (encoder, decoder)]
    with torch.no_grad():
        with ibscan.noisy(encoder, 0.5), ibscan.noisy(decoder, 1e-9):
            z = encoder(x)
            assert z[:4000].std(0).min() > 0.05
            torch.testing.assert_close(decoder(z), decoder[2](tanh(decoder[0](z))), rtol=1e-6, atol=1e-6)
            assert (decoder(z) != decoder(z)).all()
        with ibscan.noisy(decoder, 0.5):
            assert torch.equal(encoder(x), encoder(x))
            with ibscan.noisy(encoder, 0.5):
                assert (encoder(x) != encoder(x)).any()
            assert torch.equal(encoder(x), encoder(x))
            assert (decoder(z) != decoder(z)).any()
    for model, was in zip((encoder, decoder), before, strict=True):
        assert_no_trace(model, was)


def test_a_model_within_another_has_its_own_noise() -> None:
    """The inner model's noise is the inner block's own; the outer one measures around it, or says it cannot."""
    inner = chain().eval()
    outer = nn.Sequential(inner, nn.Tanh(), nn.Linear(2, 1)).double().eval()
    before, x = traces(outer), rows()
    with ibscan.noisy(inner, 0.3), torch.no_grad():
        assert (outer(x) != outer(x)).all()
    assert_no_trace(outer, before)
    with pytest.raises(InputError, match="another way"), ibscan.noisy(inner, 0.3), ibscan.noisy(outer, 0.3):
        outer(x)
    assert_no_trace(outer, before)


def test_two_blocks_on_one_model_are_refused() -> None:
    model = chain()
    before = traces(model)
    with pytest.raises(InputError, match="another way"), ibscan.noisy(model, 0.1), ibscan.noisy(model, 0.2):
        model(rows())
    assert_no_trace(model, before)


def test_a_model_that_calls_itself_is_one_pass() -> None:
    """One pass, one noise a layer."""

    def forward(s: Net, x: torch.Tensor, depth: int = 1) -> torch.Tensor:
        return s(tanh(s.a(x)), 0) if depth else s.b(x)

    model = Net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 2)).double()
    before = traces(model)
    with ibscan.noisy(model, 0.2), torch.no_grad():
        out = model(rows(1).repeat(5000, 1))
    deviation = 0.2 * model.b.weight.norm(dim=1)
    assert ((out.std(0) / deviation - 1).abs() < 4 / math.sqrt(2 * 5000)).all()
    assert_no_trace(model, before)


# Misuse --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, -1.0, math.nan, math.inf, True, "0.1", None, torch.tensor(0.1)])
def test_noise_that_is_no_positive_number_is_refused(noise: Any) -> None:
    model = chain()
    before = traces(model)
    with pytest.raises(UsageError, match="expected a finite number > 0"), ibscan.noisy(model, noise):
        pass
    assert_no_trace(model, before)


@pytest.mark.parametrize("noise", [1, 0.5, np.float32(0.5), np.float64(0.5)])
def test_noise_may_be_a_number_of_any_kind(noise: float) -> None:
    model = chain()
    with ibscan.noisy(model, noise):
        assert (model(rows()) != model(rows())).all()


def test_wrapped_models_are_refused() -> None:
    compiled: Any = torch.compile(chain(), backend="eager")
    for wrapped in (nn.DataParallel(chain()), compiled):
        with pytest.raises(UsageError, match=r"wrapped in \w+"), ibscan.noisy(wrapped, 0.1):
            pass


def test_a_float32_model_stays_in_float32() -> None:
    model = chain().float()
    with ibscan.noisy(model, np.float64(0.1)):
        assert model(rows().float()).dtype is torch.float32
