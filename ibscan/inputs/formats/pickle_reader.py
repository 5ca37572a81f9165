"""Read a pickle without running it: interpret its opcodes on a stack of descriptions, importing nothing.

Unsafe globals are listed by name and never executed; tensors, numbers and names are described well enough to list a
checkpoint without loading it.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ibscan.inputs.formats.pickle_objects import (
    DENSE,
    KNOWN,
    NOT_DENSE,
    STORAGE_GLOBALS,
    WRAPPERS,
    Called,
    Global,
    Storage,
    is_harmless,
    other_tensor,
    rebuilt_tensor,
)

__all__ = ["BrokenPickle", "PickleReading", "read_pickle"]

MAX_OPERATIONS = 1_000_000
# Python hashes integers modulo 2^61 - 1 without a secret, so larger keys can be made to collide, and a table to take
# quadratic time. A few are allowed: random states hold such integers.
LARGEST_HASHED, MAX_LARGE_INTEGERS = 2**61 - 1, 1000

# Opcodes of later protocols, which torch's safe reader refuses.
LATER = {"FRAME", "STACK_GLOBAL", "MEMOIZE", "SHORT_BINUNICODE", "BINUNICODE8", "NEWOBJ_EX", "ADDITEMS", "FROZENSET"}
# What following the opcodes of a damaged pickle raises, here and in pickletools.
NONSENSE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
MARK = object()


class BrokenPickle(Exception):  # noqa: N818 - says what the file is; turned into a CheckpointError by the caller
    """Invalid opcodes: cut off, damaged, or far too many."""


@dataclass(frozen=True)
class PickleReading:
    """The contents of a pickle: the described object, the names of unsafe imports and calls, and the storages.

    `blocks` holds the offset in the file of each storage that follows the pickle (the legacy format).
    """

    value: Any
    unsafe: tuple[str, ...]
    storages: dict[str, Storage]
    later_protocol: bool
    blocks: dict[str, int] = field(default_factory=dict)


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    unsafe: dict[str, None] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    later: bool = False
    large: int = 0

    def popped_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]


def read_pickle(stream: BinaryIO) -> PickleReading:
    """Interpret one pickle, leaving the stream after it, without importing or calling anything.

    Raises:
        BrokenPickle: Truncated, damaged, or more than a million operations.
    """
    machine = _Machine()
    count = 0
    try:
        with warnings.catch_warnings():
            # pickletools warns of invalid escapes in damaged names.
            warnings.simplefilter("ignore")
            for opcode, argument, _ in pickletools.genops(stream):
                count += 1
                if count > MAX_OPERATIONS:
                    raise BrokenPickle(f"more than {MAX_OPERATIONS} pickle operations, far beyond a state dict")
                machine.later |= opcode.name in LATER
                _follow(machine, opcode.name, argument)
        value = machine.stack.pop()
    except (*NONSENSE, MemoryError, RecursionError) as error:
        raise BrokenPickle(
            f"the pickle breaks off or makes no sense ({str(error)[:80] or type(error).__name__})"
        ) from None
    return PickleReading(value, tuple(machine.unsafe), machine.storages, machine.later)


def _follow(machine: _Machine, name: str, argument: Any) -> None:  # noqa: ANN401 - an opcode's argument
    if name in OPCODES:
        OPCODES[name](machine, argument)
    elif argument is None:
        raise BrokenPickle(f"the pickle uses {name}, which no state dict needs")
    else:  # a constant
        machine.large += isinstance(argument, int) and abs(argument) >= LARGEST_HASHED
        if machine.large > MAX_LARGE_INTEGERS:
            raise BrokenPickle(f"more than {MAX_LARGE_INTEGERS} integers beyond 61 bits, far beyond a state dict")
        machine.stack.append(argument)


def _put(machine: _Machine, key: int) -> None:
    machine.memo[key] = machine.stack[-1]


def _extension(machine: _Machine, code: int) -> None:
    machine.unsafe[f"extension {code}"] = None
    machine.stack.append(Called("extension", ()))


def _short_tuple(machine: _Machine, count: int) -> None:
    if len(machine.stack) < count:
        raise BrokenPickle("the pickle takes more than it has put")
    machine.stack[-count:] = [tuple(machine.stack[-count:])]


def _dict(machine: _Machine, _: object) -> None:
    items = machine.popped_to_mark()
    machine.stack.append({})
    _update(machine, items)


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)


def _update(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    for key in items[::2]:
        # Hashing a deeply nested tuple overflows the C stack, which ends the process.
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise BrokenPickle("the pickle uses nested tuples as keys, which no state dict needs")
    if isinstance(target, dict):
        target.update(zip(items[::2], items[1::2], strict=True))


def _instance(machine: _Machine, argument: str) -> None:
    items = machine.popped_to_mark()
    machine.stack.append(_call(machine, _imported(machine, *argument.split(" ", 1)), tuple(items)))


def _object(machine: _Machine, _: object) -> None:
    items = machine.popped_to_mark()
    target = items.pop(0)
    machine.stack.append(_call(machine, target, tuple(items)))


def _reduce(machine: _Machine, _: object) -> None:
    args, target = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_call(machine, target, tuple(args)))


def _new_object_ex(machine: _Machine, _: object) -> None:
    machine.stack.pop()  # keyword arguments
    _reduce(machine, None)


def _build(machine: _Machine, _: object) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Called):
        target.state.append(state)
        # A dtype with fields or a subarray can point beyond its own bytes.
        if target.name == "numpy.dtype" and not (isinstance(state, tuple) and state[2:5] == (None, None, None)):
            machine.unsafe["numpy.dtype with fields"] = None


OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda *_: None),
    "MARK": lambda machine, _: machine.stack.append(MARK),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.popped_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.stack.append(machine.memo[key])),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
    "TUPLE1": lambda machine, _: _short_tuple(machine, 1),
    "TUPLE2": lambda machine, _: _short_tuple(machine, 2),
    "TUPLE3": lambda machine, _: _short_tuple(machine, 3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.popped_to_mark())),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.stack.append(machine.popped_to_mark())),
    "DICT": _dict,
    "APPEND": lambda machine, _: _extend(machine, [machine.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: _extend(machine, machine.popped_to_mark())),
    "SETITEM": lambda machine, _: _update(machine, [machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: _update(machine, machine.popped_to_mark()),
    "GLOBAL": lambda machine, path: machine.stack.append(_imported(machine, *path.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(
        _imported(machine, *[machine.stack.pop(), machine.stack.pop()][::-1])
    ),
    "INST": _instance,
    "OBJ": _object,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NEWOBJ_EX": _new_object_ex,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: machine.stack.append(_storage(machine, machine.stack.pop())),
    "PERSID": lambda machine, _: _storage(machine, None),
}


def _imported(machine: _Machine, module: Any, name: Any) -> Global:  # noqa: ANN401 - from the file
    full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
    if full not in KNOWN:
        machine.unsafe[full] = None
    return Global(full)


def _storage(machine: _Machine, pid: Any) -> Storage | None:  # noqa: ANN401 - from the file
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] in ("storage", b"storage")):
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            machine.unsafe.setdefault("torch.nn.modules (a module with its source)")
            return None
        raise BrokenPickle("the pickle refers to something stored that is no tensor data")
    kind, key, elements = pid[1], str(pid[2]), pid[4]
    dtype = STORAGE_GLOBALS.get(kind.name) if isinstance(kind, Global) else None
    is_size = type(elements) is int and 0 <= elements < 2**63
    if dtype is None or not is_size or any(part is not None for part in pid[5:]):
        raise BrokenPickle("the pickle describes a storage this version does not read")
    storage = Storage(key, dtype, elements)
    # A typed and an untyped storage may share one block of the same size.
    first = machine.storages.setdefault(key, storage)
    if first.elements * first.itemsize != elements * storage.itemsize:
        raise BrokenPickle(f"the pickle gives stored block {key!r} two sizes")
    return storage


def _call(machine: _Machine, target: Any, args: tuple[Any, ...]) -> Any:  # noqa: ANN401 - a description
    name = target.name if isinstance(target, Global) else ""
    if not name:
        machine.unsafe.setdefault("a computed function")
        return Called("", args)
    if name == "torch._tensor._rebuild_from_type_v2" and len(args) >= 3 and isinstance(args[0], Global):
        return _call(machine, args[0], tuple(args[2]))
    if name in DENSE:
        return rebuilt_tensor(args)
    if name in WRAPPERS:
        return args[0]
    if name in NOT_DENSE:
        return other_tensor(NOT_DENSE[name], args)
    if name == "collections.OrderedDict":
        return dict(args[0]) if args else {}
    if name == "_codecs.encode" and len(args) == 2 and all(isinstance(part, str) for part in args):
        return args[0].encode("latin-1") if args[1] in ("latin1", "latin-1") else args[0].encode()
    if not is_harmless(name, args):
        # Replace the bare name that the import added.
        machine.unsafe.pop(name, None)
        machine.unsafe[f"{name} called with {_brief(args)}"] = None
    return Called(name, args)


def _brief(args: tuple[Any, ...]) -> str:
    words = ", ".join(repr(part) if isinstance(part, int | str) else type(part).__name__ for part in args)
    return f"({words[:60]})"
