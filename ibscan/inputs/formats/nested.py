"""Search the nested tables of a saved object for sets of tensors, and for the epoch and step stated beside one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from ibscan.inputs.folder.numbers import EPOCH_KEYS, STEP_KEYS

__all__ = ["nested_tables", "numbers_beside", "parents_of"]

Table: TypeAlias = Mapping[Any, Any]
Number: TypeAlias = int | float

# Limits for a small file that refers to one table a million times, or to itself.
MOST_TABLES, DEEPEST, LONGEST_LIST = 10_000, 8, 1000
# Keys of optimizers, schedulers and loops, whose tensors and counters are not the network's.
OTHER_STATE = re.compile(
    r"optim|sched|scaler|(^|_)rng|random|callback|loops?$|sampler|dataloader|hyper|hparam|config|cfg|args|gradient|grads?$",
    re.IGNORECASE,
)
# Keys of tables with the current epoch and step; others may state the best epoch, or the number of epochs.
STATUS = re.compile(
    r"(time_?stamp|meta|meta_?data|info|progress|trainer|(train(er|ing)?_)?(state|status|progress|info|meta)|counters?|"
    r"run|engine|iteration_info)",
    re.IGNORECASE,
)
# Averaged weights count their updates in a step of their own.
AVERAGING = re.compile(r"(^|_)(ema|swa|shadow|averag\w*)(_|$)", re.IGNORECASE)


def nested_tables(tree: Any) -> dict[str, Table]:  # noqa: ANN401 - whatever was saved
    """Return the tables in a saved object, loaded or described, by dotted key, shallow ones first.

    A list of tables counts as one with the keys 0, 1, ...; the state of optimizers and the like is not searched.
    """
    found: dict[str, Table] = {}
    # By id, as one large table may be referred to many times.
    searched: dict[int, list[tuple[str, Any]]] = {}
    level: list[tuple[str, Any]] = [("", tree)]
    for _ in range(DEEPEST + 1):
        below: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, Mapping):
                found[key] = value
            if id(value) not in searched:
                searched[id(value)] = list(_inner(value))
            if len(found) + len(below) + len(searched[id(value)]) > MOST_TABLES:
                return found
            below += [(f"{key}.{name}" if key else name, inner) for name, inner in searched[id(value)]]
        level = below
    return found


def _inner(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - whatever was saved
    if isinstance(value, list | tuple):
        if len(value) <= LONGEST_LIST:
            yield from ((str(k), one) for k, one in enumerate(value) if isinstance(one, Mapping | list | tuple))
    elif isinstance(value, Mapping):
        for name, one in value.items():
            if isinstance(name, str) and isinstance(one, Mapping | list | tuple) and not OTHER_STATE.search(name):
                yield name, one


def parents_of(tree: Any, key: str) -> list[Table]:  # noqa: ANN401 - whatever was saved
    """Return the tables that enclose the set under a key, outermost first, up to averages of weights."""
    parents: list[Table] = []
    while isinstance(tree, Mapping | list | tuple):
        if isinstance(tree, Mapping):
            if parents and any(_is_large(value) for value in tree.values()):
                break
            parents.append(tree)
        inner = dict(_inner(tree))
        step = next((name for name in inner if key == name or key.startswith(f"{name}.")), None)
        if step is None or key == step or AVERAGING.search(step):
            break
        tree, key = inner[step], key[len(step) + 1 :]
    return parents


def _is_large(value: Any) -> bool:  # noqa: ANN401 - whatever was saved
    """Tell whether a value is a tensor of more than one element."""
    return any(size != 1 for size in getattr(value, "shape", ()))


def numbers_beside(tree: Any, key: str, number: Callable[[Any], Number | None]) -> dict[str, Number]:  # noqa: ANN401
    """Return the epoch and the step that a described object states for the set of tensors under a dotted key.

    The top level counts first, then the tables that enclose the set, then tables such as `meta` or `timestamp` in
    these, if they agree. `number` converts a value to a number, or None.
    """
    parents = parents_of(tree, key)
    found: dict[str, Number] = {}
    for keys in (EPOCH_KEYS, STEP_KEYS):
        pairs = ((name, stated) for table in parents for name in keys if (stated := _stated(table, name, number)))
        first = next(pairs, None) or _agreed_number(parents, keys, number)
        if first is not None:
            found[first[0]] = first[1][0]
    return found


def _stated(table: Table, name: str, number: Callable[[Any], Number | None]) -> tuple[Number] | None:
    """Return the number under a name in a tuple (so that 0 counts as found), or None."""
    value = number(table[name]) if name in table else None
    return None if value is None else (value,)


def _agreed_number(
    parents: list[Table], keys: tuple[str, ...], number: Callable[[Any], Number | None]
) -> tuple[str, tuple[Number]] | None:
    tables_of_status = [table for parent in parents for table in _status_tables(parent)]
    for name in keys:
        values = {stated for table in tables_of_status if (stated := _stated(table, name, number))}
        if values:
            return (name, values.pop()) if len(values) == 1 else None
    return None


def _status_tables(table: Table, depth: int = 2) -> Iterator[Table]:
    for name, inner in table.items():
        if isinstance(name, str) and isinstance(inner, Mapping) and STATUS.fullmatch(name):
            yield inner
            if depth:
                yield from _status_tables(inner, depth - 1)
