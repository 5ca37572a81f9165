"""Read a model spec, and find the order of the layers of a chain from names and shapes."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ibscan.core.records import TensorInfo, is_counter
from ibscan.core.text import listed, natural, near_names
from ibscan.errors import IbscanError, InputError, NothingMatched, UsageError
from ibscan.networks.activations import ACTIVATIONS, OUTPUTS
from ibscan.networks.containers import common_module, numbered_alike, separate_parts

__all__ = ["ChainSpec", "chain_order", "is_linear", "left_out", "parse_spec"]

# Steps of the search for an order that fits; a chain of a hundred numbered layers takes a hundred.
LARGEST_SEARCH = 20_000
# Containers that come first, and last, in a suggested order.
EARLIER = re.compile(r"enc(oder)?(?![a-z])|feature|backbone|trunk|body|stem|embed|input|generator")
LATER = re.compile(r"dec(oder)?(?![a-z])|classifier|head|output|discriminator|critic")
# Layers that come first, and last, in their container if their shapes allow several orders.
FIRST = re.compile(r"(^|_)(in|inp|input|stem|embed|embedding|first)(_|$)")
LAST = re.compile(r"(^|_)(out|output|head|classifier|final|last|logits|readout)(_|$)")
# Names listed in a message.
MOST_LISTED = 6


@dataclass(frozen=True)
class ChainSpec:
    """A plain chain of Linear layers: the hidden activation and the output's."""

    activation: str
    output: str

    def __str__(self) -> str:
        return f"mlp:{self.activation}" + ("" if self.output == "identity" else f":{self.output}")


def parse_spec(spec: str) -> ChainSpec:
    """Parse `mlp:ACT` or `mlp:ACT:OUT`.

    Args:
        spec: As typed, or as stored with the checkpoints.

    Returns:
        The spec; its output is `identity` if none is named.

    Raises:
        UsageError: An unknown activation, or another form.

    Example:
        >>> parse_spec("mlp:tanh:softmax")
        ChainSpec(activation='tanh', output='softmax')
    """
    kind, _, rest = spec.partition(":")
    if kind != "mlp":
        raise UsageError(
            f"--model {spec}: expected mlp:ACT or mlp:ACT:OUT for a plain chain, module:callable or path.py:callable."
        )
    names = rest.split(":")
    if len(names) > 2 or not names[0]:
        raise UsageError(f"--model {spec}: expected mlp:ACT or mlp:ACT:OUT, such as mlp:tanh or mlp:relu:softmax.")
    for name, known in zip(names, (tuple(ACTIVATIONS), OUTPUTS), strict=False):
        if name not in known:
            near = near_names(name, known)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(
                f"--model {spec}: {name!r} is no activation known here{hint}; known are {', '.join(known)}."
            )
    return ChainSpec(names[0], names[1] if len(names) == 2 else "identity")


def chain_order(tensors: Mapping[str, TensorInfo], globs: Sequence[str] = (), key: str = "") -> tuple[str, ...]:
    """Find the order of a chain of Linear layers from names and shapes alone.

    Layers whose names differ only in numbers keep their natural order; others (`fc1`, `out`) are ordered by their
    shapes, and if those allow several orders by words such as `input` and `out`. If more than one order remains, or
    the layers are in several containers, the chain is refused.

    Args:
        tensors: State-dict names to shape and dtype.
        globs: Which layers, container after container (`--chain`); all where there are none.
        key: Of the set in the file, for messages.

    Returns:
        The layers' dotted names in order of call ('' for a bare Linear).

    Raises:
        InputError: The tensors form no chain, or more than one.
        NothingMatched: A glob matches no layer.
        UsageError: All that a glob matches was taken by one before it.
    """
    if globs:
        return _stated_order(tensors, globs, key)
    weights = _linears(tensors, key)
    parts = separate_parts(weights)
    if parts:
        raise _several(parts, tensors, key)
    return _one_order([list(weights)], weights, tensors)


def is_linear(tensors: Mapping[str, TensorInfo]) -> bool:
    """Tell whether all tensors are weights and biases of Linear layers."""
    try:
        return bool(_linears(tensors, ""))
    except InputError:
        return False


def left_out(tensors: Mapping[str, TensorInfo], order: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that are not in a chain; a container without any of the chain as one glob."""
    taken = {f"{name}.{part}" if name else part for name in order for part in ("weight", "bias")}
    kept = {name[:k] for name in order for k in range(len(name)) if name[k] == "."}
    found: dict[str, None] = {}
    for name, info in tensors.items():
        owner = name.rpartition(".")[0]
        if name not in taken and not is_counter(name, info.shape):
            parents = [owner[:k] for k in range(len(owner)) if owner[k] == "."]
            whole = next((parent for parent in parents if parent not in kept), None)
            found[owner or name if whole is None else f"{whole}.*"] = None
    return tuple(found)


def _stated_order(tensors: Mapping[str, TensorInfo], globs: Sequence[str], key: str) -> tuple[str, ...]:
    typed = f"--chain {','.join(globs)}"
    owners = dict.fromkeys(name.rpartition(".")[0] for name in tensors if not is_counter(name, tensors[name].shape))
    groups: list[list[str]] = []
    taken: set[str] = set()
    for glob in globs:
        found = _matching(owners, glob) or _matching(owners, f"{common_module(owners)}.{glob}")
        group = [owner for owner in found if owner not in taken]
        if not found:
            raise NothingMatched(f"{typed}: {glob!r} matches none of the layers {_listed(list(owners))}.")
        if not group:
            raise UsageError(f"{typed}: all that {glob!r} matches was taken by a glob before it; name each layer once.")
        taken |= set(group)
        groups.append(group)
    chosen = {name: info for name, info in tensors.items() if name.rpartition(".")[0] in taken}
    weights = _linears(chosen, key)
    for glob, group in zip(globs, groups, strict=True):
        parts = [] if numbered_alike(group) else separate_parts(group)
        if parts:
            raise InputError(
                f"{typed}: {glob!r} takes layers of several containers ({_listed(parts)}), and does not say their "
                "order; name each with a glob of its own."
            )
    return _one_order(groups, weights, chosen, typed)


def _matching(owners: Iterable[str], glob: str) -> list[str]:
    return [owner for owner in owners if any(fnmatch.fnmatchcase(owner, one) for one in (glob, f"{glob}.*"))]


def _linears(tensors: Mapping[str, TensorInfo], key: str) -> dict[str, tuple[int, ...]]:
    """Return the weight shapes of a file's Linear layers by layer name, in the file's order.

    Raises:
        InputError: A tensor is part of no Linear layer, or there is none.
    """
    weights: dict[str, tuple[int, ...]] = {}
    odd = ""
    for name, info in tensors.items():
        layer, _, part = name.rpartition(".")
        partner = tensors.get(f"{layer}.weight" if layer else "weight")
        if part == "weight" and len(info.shape) == 2:
            weights[layer] = info.shape
        elif not (part == "bias" and partner is not None and info.shape == partner.shape[:1]):
            odd = odd or ("" if is_counter(name, info.shape) else name)
    if odd:
        parts = separate_parts(weights)
        way = f", or a part of it alone, as by --state-key {_joined(key, parts[0])}" if parts else ""
        raise InputError(
            f"'{odd}' {tensors[odd].shape} is not part of a plain chain of Linear layers; another network is given as "
            f"--model module:callable{way}. The tensors are {_shapes(tensors)}."
        )
    if not weights:
        raise InputError(f"no Linear weight was found; the tensors are {_shapes(tensors) or 'none'}.")
    return weights


def _one_order(
    groups: Sequence[Sequence[str]],
    weights: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorInfo],
    typed: str = "",
) -> tuple[str, ...]:
    """Return the only order in which each layer fits the next, group after group."""
    budget = iter(range(LARGEST_SEARCH))
    found = _grouped(groups, weights, None, budget)
    first, second = next(found, None), next(found, None)
    if second is not None and not typed:
        placed = list(itertools.islice(_grouped(_placed(groups[0], FIRST, LAST), weights, None, budget), 2))
        if len(placed) == 1:
            return placed[0]
    begin = f"{typed}: " if typed else ""
    if next(budget, None) is None:
        raise InputError(
            f"{begin}the order of the Linear layers cannot be told from names and shapes: too many fit one another "
            f"({_shapes(tensors)}). Name the layers with numbers (fc1, fc2, ...), or in order with --chain."
        )
    if first is None:
        order = "in that order" if typed else "in any order"
        raise InputError(f"{begin}the Linear layers do not feed one another {order}: {_shapes(tensors)}.")
    if second is not None:
        likely = first if typed else next(_grouped(_placed(groups[0], EARLIER, LATER), weights, None, budget), first)
        raise InputError(
            f"{begin}the order of the Linear layers cannot be told from names and shapes: {' -> '.join(first)} and "
            f"{' -> '.join(second)} both fit. Name the layers with numbers (fc1, fc2, ...), or say the order, as in "
            f"--chain '{','.join(likely)}'.",
            options=("--chain", ",".join(likely)),
        )
    return first


def _placed(names: Sequence[str], first: re.Pattern[str], last: re.Pattern[str]) -> list[list[str]]:
    """Split layers into those with a word for the first, the others, and those with a word for the last."""
    groups: tuple[list[str], ...] = ([], [], [])
    for name in names:
        word = name.rpartition(".")[2].lower()
        groups[1 - bool(first.search(word)) + bool(last.search(word))].append(name)
    return [group for group in groups if group]


def _grouped(
    groups: Sequence[Sequence[str]], weights: Mapping[str, tuple[int, ...]], width: int | None, budget: Iterator[int]
) -> Iterator[tuple[str, ...]]:
    if not groups:
        yield ()
        return
    stems: dict[str, list[str]] = {}
    for name in sorted(groups[0], key=natural):
        stems.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    for order in _orders(list(stems.values()), weights, width, (), budget):
        for rest in _grouped(groups[1:], weights, weights[order[-1]][0], budget):
            yield (*order, *rest)


def _several(parts: Sequence[str], tensors: Mapping[str, TensorInfo], key: str) -> InputError:
    """Return the error that refuses layers in several containers, with the options that choose among them."""
    command = _command(parts, tensors)
    take = f"--state-key {_joined(key, parts[0])} takes one alone"
    say = f"--chain '{command}' says that each feeds the next" if command else "--chain takes a part of them"
    return InputError(
        f"its Linear layers lie in several containers ({_listed(parts)}), and names and shapes do not say whether one "
        f"feeds another or they stand side by side, as an ensemble's members or actor and critic do: {take}, {say}; "
        "anything else is given as code, --model module:callable.",
        options=("--chain", command) if command else ("--state-key", _joined(key, parts[0])),
    )


def _command(parts: Sequence[str], tensors: Mapping[str, TensorInfo]) -> str:
    """Return globs of the containers in an order in which each fits the next, the empty string if there is none."""
    # Files may list containers alphabetically, decoder first.
    ranked = sorted(parts, key=lambda part: bool(LATER.search(part)) - bool(EARLIER.search(part)))
    globs = [part if f"{part}.weight" in tensors else f"{part}.*" for part in ranked]
    orders = list(itertools.permutations(globs)) if len(parts) < 5 else [tuple(globs)]
    if len(parts) > MOST_LISTED and len({re.sub(r"\d+", "#", part) for part in parts}) == 1:
        orders = [(re.sub(r"\d+$", "*", parts[0]),)]
    for order in orders:
        with contextlib.suppress(IbscanError):
            _stated_order(tensors, order, "")
            return ",".join(order)
    return ""


def _joined(key: str, part: str) -> str:
    return f"{key}.{part}" if key else part


def _listed(names: Sequence[str]) -> str:
    return listed([name or "linear" for name in names], MOST_LISTED)


def _orders(
    stems: Sequence[Sequence[str]],
    weights: Mapping[str, tuple[int, ...]],
    width: int | None,
    done: tuple[str, ...],
    budget: Iterator[int],
) -> Iterator[tuple[str, ...]]:
    # Depth first over "which stem has the next layer". The budget ends the search for a large model that is no chain.
    if next(budget, None) is None:
        return
    if not any(stems):
        yield done
    for i, stem in enumerate(stems):
        if stem and (width is None or weights[stem[0]][1] == width):
            rest = [*stems[:i], stem[1:], *stems[i + 1 :]]
            yield from _orders(rest, weights, weights[stem[0]][0], (*done, stem[0]), budget)


def _shapes(tensors: Mapping[str, TensorInfo]) -> str:
    return listed([f"{name} {tuple(info.shape)}" for name, info in tensors.items()], 12)
