"""Which layers lie in one container, and chains whose order is given."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from ibscan.core.records import TensorInfo
from ibscan.errors import InputError, NothingMatched, UsageError
from ibscan.networks.resolve import chain_order, left_out


def tensors(*layers: tuple[str, int, int]) -> dict[str, TensorInfo]:
    found = {}
    for name, width, inputs in layers:
        found[f"{name}.weight"] = TensorInfo((width, inputs), "float32")
        found[f"{name}.bias"] = TensorInfo((width,), "float32")
    return found


def square(*names: str) -> dict[str, TensorInfo]:
    return tensors(*((name, 6, 6) for name in names))


def within(container: str, *names: str) -> list[str]:
    return [f"{container}.{name}" for name in names]


ONE: list[Sequence[str]] = [
    ("fc1", "fc2", "fc3"),
    ("layers.0", "layers.2"),
    ("model.net.0", "model.net.2", "model.net.4"),
    ("0", "2", "4"),
    ("layers.0.linear", "layers.1.linear", "layers.2.linear"),
    ("encoder.layer.0.dense", "encoder.layer.1.dense"),
    ("net1", "net2"),
    ("fc1", "fc2", "head"),
    ("lin1", "lin2", "out"),
    ("input_layer", "hidden_layers.0", "hidden_layers.1", "output_layer"),
    ("nets.0", "nets.2", "nets.4"),
]


@pytest.mark.parametrize("names", ONE)
def test_layers_of_one_container_are_a_chain(names: Sequence[str]) -> None:
    assert chain_order(square(*names)) == tuple(names)


@pytest.mark.parametrize(
    "names",
    [
        ("layers.0", "layers.2", "out"),
        ("net.0", "net.2", "head"),
        ("model.net.0", "model.net.2", "model.head"),
        ("model.net.0", "model.net.2", "head"),
        ("stem", "layers.0", "layers.1"),
        ("0.0", "0.2", "1"),
    ],
)
def test_single_layers_beside_a_sequence_belong_to_it(names: Sequence[str]) -> None:
    widths = [6, 8, 7, 3]
    assert chain_order(tensors(*zip(names, widths[1:], widths[:-1], strict=True))) == tuple(names)


SEVERAL: dict[str, tuple[list[str], list[str]]] = {
    "members": ([*within("members.0", "0", "2"), *within("members.1", "0", "2")], ["members.0", "members.1"]),
    "nets": ([*within("nets.0", "fc1", "fc2"), *within("nets.1", "fc1", "fc2")], ["nets.0", "nets.1"]),
    "digits": ([*within("0.net", "0", "2"), *within("1.net", "0", "2")], ["0", "1"]),
    "single": (within("members", "0", "1", "2"), ["members.0", "members.1", "members.2"]),
    "one each": (["members.0.fc", "members.1.fc"], ["members.0", "members.1"]),
    "experts": (["moe.experts.0", "moe.experts.1"], ["moe.experts.0", "moe.experts.1"]),
    "actor": ([*within("actor", "0", "2"), *within("critic", "0", "2")], ["actor", "critic"]),
    "agent": ([*within("agent.actor", "0", "2"), *within("agent.critic", "0", "2")], ["agent.actor", "agent.critic"]),
    "actor alone": ([*within("actor", "0", "2"), "critic"], ["actor", "critic"]),
    "gan": (
        [*within("generator", "fc1", "fc2"), *within("discriminator", "fc1", "fc2")],
        ["generator", "discriminator"],
    ),
    "target": ([*within("online_net", "0", "2"), *within("target_net", "0", "2")], ["online_net", "target_net"]),
    "student": ([*within("student.net", "0", "2"), *within("teacher.net", "0", "2")], ["student", "teacher"]),
    "twins": (["q1", "q2"], ["q1", "q2"]),
    "twins of several layers": (["q1_fc1", "q1_fc2", "q2_fc1", "q2_fc2"], ["q1_fc1", "q1_fc2", "q2_fc1", "q2_fc2"]),
    "heads": (["fc1", "fc2", "head_0", "head_1"], ["fc1", "fc2", "head_0", "head_1"]),
    "numbered models": (["model1", "model2", "model3"], ["model1", "model2", "model3"]),
    "estimators": (within("estimators_", "0", "1"), ["estimators_.0", "estimators_.1"]),
    "decoder": ([*within("encoder", "0", "2"), *within("decoder", "0", "2")], ["encoder", "decoder"]),
    "head": ([*within("backbone.layers", "0", "2"), "head.0"], ["backbone", "head"]),
    "classifier": ([*within("features", "0", "2"), *within("classifier", "0", "2")], ["features", "classifier"]),
    "blocks": ([*within("blocks.0", "fc1", "fc2"), *within("blocks.1", "fc1", "fc2")], ["blocks.0", "blocks.1"]),
    "many": ([name for k in range(9) for name in within(f"m.{k}", "0", "2")], [f"m.{k}" for k in range(6)]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_layers_in_several_containers_are_refused_with_commands_that_work(name: str) -> None:
    names, parts = SEVERAL[name]
    with pytest.raises(InputError) as refused:
        chain_order(square(*names), key="state_dict")
    said = str(refused.value)
    assert ", ".join(parts) in said
    key = re.search(r"--state-key (\S+) takes", said)
    assert key is not None
    assert key[1] == f"state_dict.{parts[0]}"
    globs = re.search(r"--chain '([^']+)'", said)
    assert globs is not None
    assert chain_order(square(*names), globs[1].split(",")) == tuple(names)


def test_no_chain_is_offered_where_none_fits() -> None:
    found = tensors(("actor.0", 8, 6), ("actor.2", 4, 8), ("critic.0", 8, 6), ("critic.2", 1, 8))
    with pytest.raises(InputError, match=r"actor, critic.*--state-key actor takes one alone, --chain takes a part"):
        chain_order(found)


def test_the_suggested_order_follows_words_for_first_and_last() -> None:
    """Files may list containers alphabetically, and the shapes of an autoencoder fit in either order."""
    found = tensors(("decoder.0", 4, 2), ("decoder.2", 6, 4), ("encoder.0", 4, 6), ("encoder.2", 2, 4))
    with pytest.raises(InputError, match=r"--chain 'encoder\.\*,decoder\.\*'"):
        chain_order(found)
    flat = tensors(("decoder", 6, 2), ("encoder", 2, 6))
    with pytest.raises(InputError, match=r"--chain 'encoder,decoder'"):
        chain_order(flat)


AUTO = tensors(("encoder.0", 4, 6), ("encoder.2", 2, 4), ("decoder.0", 4, 2), ("decoder.2", 6, 4), ("loss.scale", 2, 2))
CODER = ("encoder.0", "encoder.2", "decoder.0", "decoder.2")


@pytest.mark.parametrize(
    ("globs", "order", "left"),
    [
        (["encoder.*", "decoder.*"], CODER, ("loss.*",)),
        (["encoder", "decoder"], CODER, ("loss.*",)),
        (["decoder.*", "encoder.*"], (*CODER[2:], *CODER[:2]), ("loss.*",)),
        (["encoder.*"], CODER[:2], ("decoder.*", "loss.*")),
        (["encoder.0", "encoder.2", "decoder.0"], CODER[:3], ("decoder.2", "loss.*")),
        (["e*.0", "e*.2", "d*"], CODER, ("loss.*",)),
    ],
)
def test_the_order_of_the_globs_is_the_order_of_the_chain(
    globs: list[str], order: tuple[str, ...], left: tuple[str, ...]
) -> None:
    found = {**AUTO, "epoch": TensorInfo((), "int64")}
    assert chain_order(found, globs) == order
    assert left_out(found, order) == left


def test_layers_outside_the_chain_may_be_of_any_kind() -> None:
    found = {**AUTO, "log_std": TensorInfo((2,), "float32"), "norm.weight": TensorInfo((2,), "float32")}
    order = chain_order(found, ["encoder.*", "decoder.*"])
    assert order == CODER
    assert left_out(found, order) == ("loss.*", "log_std", "norm")
    with pytest.raises(InputError, match=r"'norm\.weight'"):
        chain_order(found, ["encoder.*", "decoder.*", "norm"])


@pytest.mark.parametrize(
    ("globs", "error", "words"),
    [
        (["encoder.*", "critic.*"], NothingMatched, r"'critic\.\*' matches none of the layers encoder\.0, encoder\.2"),
        (["encoder.*", "enc*"], UsageError, "taken by a glob before it"),
        (["*"], InputError, r"'\*' takes layers of several containers \(encoder, decoder"),
        (["encoder.2", "encoder.0", "decoder.*"], InputError, "do not feed one another in that order"),
        (["encoder.*", "loss.*"], InputError, r"--chain encoder\.\*,loss\.\*.*in that order|both fit"),
    ],
)
def test_impossible_orders_are_refused(globs: list[str], error: type[Exception], words: str) -> None:
    found = AUTO if "loss.*" not in globs else {**AUTO, **tensors(("loss.scale", 2, 3))}
    with pytest.raises(error, match=words):
        chain_order(found, globs)


def test_a_stated_order_decides_between_orders_that_fit() -> None:
    with pytest.raises(InputError, match="--chain 'down,up'"):
        chain_order(square("up", "down"))
    assert chain_order(square("up", "down"), ["up", "down"]) == ("up", "down")


def test_blocks_of_one_glob_keep_the_order_of_their_numbers() -> None:
    names = [f"blocks.{k}.{name}" for k in range(12) for name in ("fc1", "fc2")]
    assert chain_order(square(*reversed(names)), ["blocks.*"]) == tuple(names)


def test_other_tensors_beside_several_containers_are_refused() -> None:
    found = {**square("actor.0", "actor.2", "critic.0", "critic.2"), "log_std": TensorInfo((2,), "float32")}
    with pytest.raises(InputError, match=r"'log_std'.*--state-key actor\."):
        chain_order(found)


def test_counters_beside_the_weights_are_no_layers() -> None:
    found = {**square("fc1", "fc2"), "epoch": TensorInfo((), "int64"), "global_step": TensorInfo((1,), "int64")}
    assert chain_order(found) == ("fc1", "fc2")


def test_globs_may_omit_a_prefix_of_all_names() -> None:
    found = {f"model.{name}": info for name, info in AUTO.items()}
    order = tuple(f"model.{name}" for name in CODER)
    assert chain_order(found, ["encoder.*", "decoder.*"]) == order
    assert chain_order(found, ["model.encoder.*", "model.decoder.*"]) == order
