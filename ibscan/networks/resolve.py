"""A model spec and a checkpoint's tensors to a network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ibscan.errors import InputError, UsageError
from ibscan.networks.activations import ACTIVATIONS, OUTPUTS
from ibscan.types import TensorInfo

__all__ = ["ChainSpec", "chain_order", "parse_spec"]

# Steps of the search for the one order that fits; a chain of a hundred numbered layers takes a hundred.
LARGEST_SEARCH = 20_000


@dataclass(frozen=True)
class ChainSpec:
    """A plain chain of Linear layers: the hidden activation and the output's."""

    activation: str
    output: str

    def __str__(self) -> str:
        return f"mlp:{self.activation}" + ("" if self.output == "identity" else f":{self.output}")


def parse_spec(spec: str) -> ChainSpec:
    """Read `mlp:ACT` or `mlp:ACT:OUT`.

    Args:
        spec: As typed, or as the series states it.

    Returns:
        The spec, its output `identity` where none is named.

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
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(
                f"--model {spec}: {name!r} is no activation known here{hint}; known are {', '.join(known)}."
            )
    return ChainSpec(names[0], names[1] if len(names) == 2 else "identity")


def chain_order(tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Recognise a chain of Linear layers from names and shapes alone.

    Layers whose names differ only in their numbers keep natural order; layers of different stems (`fc1`, `out`) are
    placed by their shapes. Where that leaves more than one order, the chain is refused: it never guesses.

    Args:
        tensors: State-dict names to shape and dtype.

    Returns:
        The layers' dotted names in order of call ('' for a bare Linear).

    Raises:
        InputError: The tensors form no chain, or more than one.
    """
    weights: dict[str, tuple[int, ...]] = {}
    for key, info in tensors.items():
        name, _, part = key.rpartition(".")
        partner = tensors.get(f"{name}.weight" if name else "weight")
        if part == "weight" and len(info.shape) == 2:
            weights[name] = info.shape
        elif not (part == "bias" and partner is not None and info.shape == partner.shape[:1]):
            raise InputError(
                f"'{key}' {info.shape} is not part of a plain chain of Linear layers; another network is given as "
                f"--model module:callable. The tensors are {_shapes(tensors)}."
            )
    if not weights:
        raise InputError(f"no Linear weight was found; the tensors are {_shapes(tensors) or 'none'}.")
    stems: dict[str, list[str]] = {}
    for name in sorted(weights, key=_natural):
        stems.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    budget = iter(range(LARGEST_SEARCH))
    found = _orders(list(stems.values()), weights, None, (), budget)
    first, second = next(found, None), next(found, None)
    if next(budget, None) is None:
        raise InputError(
            f"the order of the Linear layers cannot be told from names and shapes: too many fit one another "
            f"({_shapes(tensors)}). Name the layers with numbers (fc1, fc2, ...)."
        )
    if first is None:
        raise InputError(f"the Linear layers do not feed one another in any order: {_shapes(tensors)}.")
    if second is not None:
        raise InputError(
            f"the order of the Linear layers cannot be told from names and shapes: {' -> '.join(first)} and "
            f"{' -> '.join(second)} both fit. Name the layers with numbers (fc1, fc2, ...)."
        )
    return first


def _orders(
    stems: Sequence[Sequence[str]],
    weights: Mapping[str, tuple[int, ...]],
    width: int | None,
    done: tuple[str, ...],
    budget: Iterator[int],
) -> Iterator[tuple[str, ...]]:
    # Depth first over "which stem gives the next layer"; the caller asks for two answers at most. Names of a large
    # model that is no chain would make this endless: every step is paid from the budget.
    if next(budget, None) is None:
        return
    if not any(stems):
        yield done
    for i, stem in enumerate(stems):
        if stem and (width is None or weights[stem[0]][1] == width):
            rest = [*stems[:i], stem[1:], *stems[i + 1 :]]
            yield from _orders(rest, weights, weights[stem[0]][0], (*done, stem[0]), budget)


def _natural(name: str) -> list[tuple[int, str]]:
    # Numbers of absurd length are text: int() refuses thousands of digits.
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() and len(part) < 400 else (-1, part) for part in parts]


def _shapes(tensors: Mapping[str, TensorInfo]) -> str:
    shown = [f"{name} {tuple(info.shape)}" for name, info in list(tensors.items())[:12]]
    return ", ".join(shown) + (f" and {len(tensors) - 12} more" if len(tensors) > 12 else "")
