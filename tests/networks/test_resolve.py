"""Specs and the order of layers: what is recognised, and what is refused rather than guessed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.oracles import ACTIVATION

from ibscan.core.records import TensorInfo
from ibscan.errors import InputError, UsageError
from ibscan.networks.resolve import ChainSpec, chain_order, parse_spec


def tensors(*layers: tuple[str, int, int], bias: bool = True) -> dict[str, TensorInfo]:
    """(name, out, in) -> what a state dict of Linear layers looks like."""
    found = {}
    for name, width, inputs in layers:
        prefix = f"{name}." if name else ""
        found[f"{prefix}weight"] = TensorInfo((width, inputs), "float32")
        if bias:
            found[f"{prefix}bias"] = TensorInfo((width,), "float32")
    return found


@pytest.mark.parametrize("activation", sorted(set(ACTIVATION) - {"softmax"}))
def test_every_activation_has_a_spec(activation: str) -> None:
    assert parse_spec(f"mlp:{activation}") == ChainSpec(activation=activation, output="identity")
    assert parse_spec(f"mlp:{activation}:softmax") == ChainSpec(activation=activation, output="softmax")
    assert parse_spec(f"mlp:relu:{activation}").output == activation


@pytest.mark.parametrize(
    "spec", ["", "mlp", "mlp:", "mlp:tahn", "mlp:softmax", "cnn:relu", "mlp:tanh:nope", "mlp:a:b:c"]
)
def test_bad_specs_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(spec)


def test_a_misspelling_is_named_as_typed() -> None:
    with pytest.raises(UsageError, match="tahn"):
        parse_spec("mlp:tahn")


def test_numbered_layers_are_in_natural_order() -> None:
    """fc2 comes before fc10, whatever the order of the file."""
    layers = [(f"fc{k}", 4, 4) for k in range(1, 12)]
    assert chain_order(tensors(*layers[::-1])) == tuple(f"fc{k}" for k in range(1, 12))


def test_names_of_a_sequential_are_a_chain() -> None:
    assert chain_order(tensors(("net.4", 2, 5), ("net.0", 7, 12), ("net.2", 5, 7))) == ("net.0", "net.2", "net.4")


def test_different_stems_are_placed_by_shape() -> None:
    assert chain_order(tensors(("out", 2, 5), ("fc1", 7, 12), ("fc2", 5, 7))) == ("fc1", "fc2", "out")
    assert chain_order(tensors(("decoder", 9, 3), ("encoder", 3, 8))) == ("encoder", "decoder")


def test_a_bare_linear_without_bias_is_a_chain() -> None:
    assert chain_order(tensors(("", 3, 4))) == ("",)
    assert chain_order(tensors(("a1", 3, 4), ("a2", 2, 3), bias=False)) == ("a1", "a2")


def test_square_layers_of_different_stems_are_ambiguous() -> None:
    """Both orders fit: the chain is refused, never guessed."""
    with pytest.raises(InputError):
        chain_order(tensors(("up", 4, 4), ("down", 4, 4)))


@pytest.mark.parametrize(
    "found",
    [
        {},
        tensors(("fc1", 7, 12), ("fc2", 5, 6)),  # 7 units feed 6 inputs
        tensors(("fc1", 7, 12)) | {"conv.weight": TensorInfo((16, 1, 5, 5), "float32")},
        tensors(("fc1", 7, 12)) | {"fc1.bias": TensorInfo((6,), "float32")},
        tensors(("fc1", 7, 12)) | {"norm.running_mean": TensorInfo((7,), "float32")},
        {"fc1.bias": TensorInfo((7,), "float32")},
    ],
    ids=["nothing", "widths", "convolution", "bias width", "batch norm", "bias alone"],
)
def test_what_is_no_chain_is_refused(found: Mapping[str, TensorInfo]) -> None:
    with pytest.raises(InputError):
        chain_order(found)


@pytest.mark.parametrize("name", ["²", "fc²", "fc" + "9" * 5000, "٣"])
def test_layer_names_may_have_unusual_digits(name: str) -> None:
    assert chain_order({f"{name}.weight": TensorInfo((2, 3), "float32")}) == (name,)
