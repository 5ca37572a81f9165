"""Find the network's state dict in a saved object, and strip wrapper prefixes from its names."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ibscan.core.records import WRAPPERS
from ibscan.core.text import listed
from ibscan.errors import CheckpointError
from ibscan.inputs.formats.format import Wanted
from ibscan.inputs.formats.nested import nested_tables
from ibscan.inputs.formats.pickle_objects import StoredTensor

if TYPE_CHECKING:
    import torch

__all__ = ["below_prefix", "chosen_set", "is_tensor", "selected_tensors", "stripped_names", "tensor_sets"]

T = TypeVar("T")

# `current_model_state` holds Lightning's raw weights while `state_dict` holds averaged ones.
RAW = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "current_model_state")
AVERAGED = (
    "ema", "ema_state_dict", "state_dict_ema", "model_ema", "model_state_dict_ema", "ema_model", "ema_weights",
    "ema_params", "params_ema", "ema_model_state_dict", "model_ema_state_dict", "averaged", "averaged_model",
    "swa_model", "swa_state_dict", "shadow",
)  # fmt: skip
MOST_NESTED = 3
# torch's AveragedModel keeps this count beside the `module` it wraps.
AVERAGING_COUNT = "n_averaged"


def is_tensor(value: object) -> bool:
    """Tell whether a value is a tensor, or the description of one."""
    # Where torch is not loaded there can be no tensor of it.
    known = sys.modules.get("torch")
    return isinstance(value, StoredTensor) or (known is not None and isinstance(value, known.Tensor))


def tensor_kind(tensor: torch.Tensor | StoredTensor) -> str:
    """Return the kind of a described tensor: dense, sparse, quantised, ...; loaded tensors are dense."""
    return tensor.kind if isinstance(tensor, StoredTensor) else "dense"


def tensor_sets(tree: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - whatever was saved
    """Return the sets of named tensors in a saved or described object by dotted key, "" for the object itself."""
    sets: dict[str, dict[str, Any]] = {}
    if isinstance(tree, Mapping):
        _collect(tree, "", sets, MOST_NESTED, {})
    return sets


def _collect(
    tree: Mapping[Any, Any],
    key: str,
    sets: dict[str, dict[str, Any]],
    depth: int,
    searched: dict[int, tuple[dict[str, Any], dict[str, Mapping[Any, Any]]]],
) -> None:
    # By id, as one large table may be referred to many times.
    if id(tree) not in searched:
        named = {name: value for name, value in tree.items() if isinstance(name, str)}
        # Optimizers nest tensors too: search only the top level and tables with usual names.
        inner = {n: v for n, v in named.items() if isinstance(v, Mapping) and (not key or n in RAW + AVERAGED)}
        searched[id(tree)] = {n: v for n, v in named.items() if is_tensor(v)}, inner
    direct, inner = searched[id(tree)]
    if direct:
        sets[key] = direct
    for name, value in inner.items() if depth else ():
        _collect(value, f"{key}.{name}" if key else name, sets, depth - 1 if name in RAW + AVERAGED else 0, searched)


def chosen_set(tree: Any, name: str, wanted: Wanted) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
    """Return the key and the tensors of the one set that is the network's state, never guessing between several.

    Raises:
        CheckpointError: No tensors, or several sets and nothing that says which.
    """
    sets, weights = tensor_sets(tree), wanted.weights
    if wanted.state_key is not None:
        return _set_by_key({**sets, **nested_sets(tree)}, wanted.state_key, name)
    states = {key: tensors for key, tensors in sets.items() if _is_state(tensors)}
    averaged = [key for key in states if _is_averaged(key)]
    raw = [key for key in states if all(part in RAW for part in key.split("."))]
    if not raw and "" in states:
        raw = [""]
    if not raw and averaged:
        # Raw weights under an unusual key have the tensor names of the averaged ones.
        stripped = _stripped(states[averaged[0]])
        raw = [key for key in states if key not in averaged and _stripped(states[key]) == stripped]
    found = _of_weights(weights, raw, averaged, name)
    unnamed = _unnamed_averages(tree)
    if unnamed and not averaged and weights != "raw":
        raise CheckpointError(
            f"{name}: holds averaged weights as a list without names ({unnamed}), which cannot be told apart; take the "
            "raw ones with --weights raw."
        )
    if not found:
        sets = {**sets, **nested_sets(tree)}
        found = _nested_states(sets, weights, name)
    if len(found) == 1:
        return found[0], sets[found[0]]
    if found:
        raise CheckpointError(
            f"{name}: holds several sets of tensors ({_listed(found)}); say which with "
            f"--state-key, such as --state-key {found[0]}.",
            options=("--state-key", found[0]),
        )
    if sets and weights is not None:
        raise CheckpointError(
            f"{name}: holds no {weights} weights, only {_listed(sets)}; leave --weights out, or use --state-key."
        )
    named = [key for key in sets if key]
    if named:
        raise CheckpointError(
            f"{name}: holds tensors under {_listed(named)}, none of which is a usual name; say which with --state-key "
            f"{named[0]}.",
            options=("--state-key", named[0]),
        )
    if isinstance(tree, Mapping) and "param_groups" in tree:
        raise CheckpointError(
            f"{name}: holds the state of an optimizer and no network; expected a state dict, as model.state_dict() "
            "gives: save that as well."
        )
    raise CheckpointError(f"{name}: holds no named tensors; expected a state dict, as model.state_dict() gives.")


def nested_sets(tree: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - whatever was saved
    """Return the sets of tensors at any depth that may be a network's state, by dotted key."""
    searched: dict[int, dict[str, Any]] = {}
    sets = {}
    for key, table in nested_tables(tree).items():
        if id(table) not in searched:
            tensors = {name: value for name, value in table.items() if isinstance(name, str) and is_tensor(value)}
            searched[id(table)] = tensors if _is_state(tensors) else {}
        if key and searched[id(table)]:
            sets[key] = searched[id(table)]
    return sets


def _nested_states(sets: Mapping[str, dict[str, Any]], weights: str | None, name: str) -> list[str]:
    """Return the keys of possible network states: those with usual names, else all, but not one alone at the top."""
    weighted: dict[int, bool] = {}
    for tensors in sets.values():
        # By id, as one table may have ten thousand names.
        if id(tensors) not in weighted:
            weighted[id(tensors)] = any(name.endswith("weight") for name in tensors)
    states = [key for key, tensors in sets.items() if key and weighted[id(tensors)]]
    averaged = [key for key in states if _is_averaged(key)]
    found = _of_weights(weights, [key for key in states if not _is_averaged(key)], averaged, name)
    usual = [key for key in found if key.rpartition(".")[2] in RAW + AVERAGED]
    # Ask about a single set at the top level: its name (`generator`) may mean one of several networks.
    return usual or ([] if len(found) == 1 and "." not in found[0] else found)


def _is_averaged(key: str) -> bool:
    return any(part in AVERAGED for part in key.split("."))


def _of_weights(weights: str | None, raw: list[str], averaged: list[str], name: str) -> list[str]:
    """Return the keys of the averaged or the raw sets: the kind of `--weights`, else the only kind there is."""
    if weights is None and raw and averaged:
        raise CheckpointError(
            f"{name}: holds raw weights ({_listed(raw)}) beside averaged ones ({_listed(averaged)}); say which with "
            "--weights raw or --weights ema.",
            options=("--weights", "raw"),
        )
    return averaged if weights == "ema" else raw if weights == "raw" else raw or averaged


def _set_by_key(sets: Mapping[str, dict[str, Any]], state_key: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return the set with a key or a unique part of it, or the tensors of a set whose names begin with it."""
    if state_key in sets:
        return state_key, sets[state_key]
    for part in (f".{state_key}", f"{state_key}."):
        ends = [key for key in sets if (key.endswith(part) if part[0] == "." else key.startswith(part))]
        if len(ends) == 1:
            return ends[0], sets[ends[0]]
    likely: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for key, tensors in sets.items():
        prefix = state_key.removeprefix(f"{key}.") if key else state_key
        chosen = below_prefix(tensors, prefix)
        # Without the key of its set, a prefix counts in the usual sets first.
        stated = prefix != state_key or not key or all(part in RAW + AVERAGED for part in key.split("."))
        if chosen:
            (likely if stated else others)[f"{key}.{prefix}" if key else prefix] = chosen
    likely = likely or others
    if len(likely) == 1:
        return next(iter(likely.items()))
    listed = _listed(list(likely) or list(sets))
    raise CheckpointError(
        f"{name}: holds {'several sets of' if likely else 'no'} tensors under {state_key!r}; --state-key may be one of "
        f"{listed}, or a prefix of the names in it."
    )


def selected_tensors(tensors: Mapping[str, T], wanted: Wanted, name: str) -> dict[str, T]:
    """Return the wanted tensors of a file whose format has no keys: all, or those whose names begin with the state key.

    Raises:
        CheckpointError: Averaged weights are wanted, or no name begins so.
    """
    if wanted.weights == "ema":
        raise CheckpointError(
            f"{name}: holds one set of tensors under no key, so there is no ema to take; leave --weights out."
        )
    chosen = below_prefix(tensors, wanted.state_key or "")
    if not chosen:
        raise CheckpointError(
            f"{name}: holds one set of tensors under no key, and no name in it begins with {wanted.state_key!r} and a "
            f"dot; leave --state-key {wanted.state_key} out."
        )
    return chosen


def below_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the tensors whose names begin with a prefix and a dot, cut off; all for the empty prefix.

    If there are none, try names without wrapper prefixes, as listings show them, then the only longer prefix that ends
    in this one (`model.actor` for `actor`).
    """
    if not prefix:
        return dict(tensors)
    chosen = _cut_prefix(tensors, prefix)
    if not chosen and any(wrapper in key for key in tensors for wrapper in WRAPPERS):
        stripped = stripped_names(list(tensors))
        chosen = _cut_prefix({key: tensors[stored] for stored, key in stripped.items()}, prefix)
    if not chosen:
        longer = {key[: key.index(f".{prefix}.")] for key in tensors if f".{prefix}." in key}
        chosen = _cut_prefix(tensors, f"{longer.pop()}.{prefix}") if len(longer) == 1 else {}
    return chosen


def _cut_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {key[len(prefix) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}.")}


def _unnamed_averages(tree: Any) -> str:  # noqa: ANN401 - whatever was saved
    """Return the usual key of averages stored as a list, as torch_ema saves them, or the empty string."""
    for key in AVERAGED if isinstance(tree, Mapping) else ():
        held = tree.get(key)
        for value in held.values() if isinstance(held, Mapping) else (held,):
            if isinstance(value, list | tuple) and any(is_tensor(item) for item in value):
                return key
    return ""


def _stripped(tensors: Mapping[str, Any]) -> set[str]:
    return set(stripped_names(list(tensors)).values())


def _is_state(tensors: Mapping[str, Any]) -> bool:
    # Scalars and random states alone are no network.
    return any(
        (len(tensor.shape) > 0 or tensor_kind(tensor) != "dense") and "rng" not in key
        for key, tensor in tensors.items()
    )


def _listed(keys: Mapping[str, Any] | Sequence[str]) -> str:
    words = [key or "(top level)" for key in keys]
    return listed(words, 6) or "(none)"


def stripped_names(stored: Sequence[str]) -> dict[str, str]:
    """Return the names in a file, in order, with the same names without wrapper prefixes at any depth.

    `module` may be a user's own name: it is stripped only where it has no sibling. If two names would become one, all
    names are kept. The count that torch's AveragedModel keeps is no part of the network and left out.

    Example:
        >>> stripped_names(["module._orig_mod.fc1.weight", "module._orig_mod.fc2.weight"])
        {'module._orig_mod.fc1.weight': 'fc1.weight', 'module._orig_mod.fc2.weight': 'fc2.weight'}
        >>> stripped_names(["module.weight", "head.weight"])
        {'module.weight': 'module.weight', 'head.weight': 'head.weight'}
    """
    split = {name: tuple(name.split(".")) for name in stored}
    if {parts[0] for parts in split.values()} == {"module", AVERAGING_COUNT} and AVERAGING_COUNT in split:
        del split[AVERAGING_COUNT]
    children: dict[tuple[str, ...], set[str]] = {}
    for parts in split.values():
        if any(wrapper in parts for wrapper in WRAPPERS):
            for depth in range(len(parts)):
                children.setdefault(parts[:depth], set()).add(parts[depth])
    for parts in split.values():
        for depth in range(len(parts)):
            if parts[:depth] in children:
                children[parts[:depth]].add(parts[depth])
    names = {}
    for name, parts in split.items():
        parts_kept = [
            part
            for depth, part in enumerate(parts)
            if not (part in WRAPPERS[1:] or (part == "module" and children.get(parts[:depth]) == {"module"}))
        ]
        names[name] = ".".join(parts_kept)
    return names if len(set(names.values())) == len(names) and all(names.values()) else {name: name for name in stored}
