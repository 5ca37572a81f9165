"""A checkpoint's weights in a model: every tensor and no other, as it was saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ibscan.errors import InputError
from ibscan.networks.loading import loaded


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.embed.weight


def load(build: type[nn.Module], state: dict[str, torch.Tensor], **saved: str) -> Any:
    return loaded(build, state, {key: key for key in state}, "a.safetensors", saved=saved)


def test_double_precision_is_kept() -> None:
    weight = torch.full((1, 1), 1 / 3, dtype=torch.float64)
    found: Any = loaded(lambda: nn.Linear(1, 1, bias=False), {"weight": weight}, {}, "a.safetensors")
    assert torch.equal(found.weight, weight)


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_of_two_tied_names_loads_both(name: str) -> None:
    weight = torch.randn(4, 3)
    found = load(Tied, {name: weight, "head.bias": torch.zeros(4)})
    assert torch.equal(found.embed.weight, weight)
    assert found.head.weight is found.embed.weight


def test_tied_names_with_different_tensors_are_refused() -> None:
    state = {"embed.weight": torch.ones(4, 3), "head.weight": torch.ones(4, 3), "head.bias": torch.zeros(4)}
    assert torch.equal(load(Tied, state).embed.weight, torch.ones(4, 3))
    with pytest.raises(InputError, match=r"'embed.weight' and 'head.weight' differ"):
        load(Tied, {**state, "head.weight": torch.zeros(4, 3)})
    with pytest.raises(InputError, match="2 missing"):
        load(Tied, {"head.bias": torch.zeros(4)})


def test_other_names_are_used_only_if_all_fit() -> None:
    state = {"old.weight": torch.ones(4, 3), "head.bias": torch.zeros(4)}
    assert torch.equal(load(Tied, state, **{"old.weight": "embed.weight"}).embed.weight, torch.ones(4, 3))
    with pytest.raises(InputError, match=r"1 unexpected, such as 'old.weight'"):
        load(Tied, {**state, "embed.weight": torch.ones(4, 3)}, **{"old.weight": "embed.weight"})


def test_a_counter_that_the_model_lacks_is_ignored() -> None:
    state = {**nn.Linear(3, 2).state_dict(), "epoch": torch.tensor(4)}
    found: Any = loaded(lambda: nn.Linear(3, 2), state, {key: key for key in state}, "a.pt")
    assert found.weight.equal(state["weight"])


def test_a_counter_that_the_model_has_is_loaded() -> None:
    def build() -> nn.Linear:
        model = nn.Linear(3, 2)
        model.register_buffer("step", torch.tensor(0))
        return model

    state = {**nn.Linear(3, 2).state_dict(), "step": torch.tensor(7)}
    found: Any = loaded(build, state, {key: key for key in state}, "a.pt")
    assert found.step.item() == 7
