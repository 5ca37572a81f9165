"""Tell from a file's source, before it runs, whether importing or calling it would train or write files.

What counts is what runs: the module's level with its loops, conditions and class bodies, functions of the user's own
files that are called from there, and the user's own modules that are imported on the way; not what is only defined, nor
what stands under `if __name__ == "__main__":`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ibscan.inputs.code.deeds import dotted, trains, writes
from ibscan.inputs.code.sources import Function, Names, Place, Reading, collect, files_of, imported_names, read_source

__all__ = ["Deed", "deed_of_call", "deed_of_import"]

# Names are followed through no more re-exports.
MOST_EXPORTS = 10
# What calls the function it is given.
RUNNERS = {
    *("run", "spawn", "Fire", "Thread", "Timer", "Process", "submit", "launch", "start_processes", "map", "main"),
    *("optimize", "agent", "notebook_launcher", "delayed"),
}
# By its full name, as `register` says too little: what runs at the end runs too.
AT_THE_END = "atexit.register"
# What is written there is no file.
MEMORY = {"io.BytesIO", "io.StringIO"}
# What calling a class calls.
MAKING = ("__new__", "__init__", "__post_init__")
Judge: TypeAlias = Callable[[ast.Call, Mapping[str, str]], bool]


@dataclass(frozen=True)
class Deed:
    """A call that trains or writes: where it stands, and how it begins."""

    file: Path
    line: int
    text: str


def deed_of_import(files: Sequence[tuple[str, Path]]) -> Deed | None:
    """Return the first call that trains or writes when these files are imported, one after the other, or None.

    Args:
        files: Modules by name, as `files_of` returns them; their neighbours are looked for on the import path.
    """
    reading = Reading()
    try:
        return next((deed for name, file in files if (deed := _of_module(reading, name, file))), None)
    except RecursionError:  # nested deeper than can be followed: importing it will tell
        return None


def deed_of_call(name: str, file: Path, called: str) -> Deed | None:
    """Return the first call with which a callable trains, or imports a module that trains or writes, or None.

    Args:
        name: Of its module.
        file: Of its module.
        called: The callable in it, dotted.
    """
    reading = Reading()
    read = read_source(reading, name, file)
    if read is None:
        return None
    try:
        found = (_of_body(reading, place, body, trains) for place, body in _defined(reading, read[0], called))
        return next((deed for deed in found if deed), None)
    except RecursionError:
        return None


def _of_module(reading: Reading, name: str, file: Path) -> Deed | None:
    # What is imported already does not run again.
    read = None if name in sys.modules else read_source(reading, name, file)
    if read is None or id(read[1]) in reading.seen:
        return None
    reading.seen.add(id(read[1]))
    return _of_body(reading, *read, writes)


def _of_body(reading: Reading, place: Place, body: Iterable[ast.AST], judge: Judge) -> Deed | None:
    for node in _running(body):
        if isinstance(node, ast.Call):
            named = _brought_in(node)
            called = list(_called(reading, place, node))
            if not called and _judged(node, place.names, judge):
                text = ast.unparse(node.func)
                return Deed(place.file, node.lineno, f"{text if len(text) < 60 else '...' + text[-60:]}(...)")
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom)
            stood = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named, called = [*stood, *imported_names(node, place).values()], []
        for file in (file for name in named for file in files_of(name)):
            if deed := _of_module(reading, *file):
                return deed
        for inside, part in called:
            if id(part) not in reading.seen:
                reading.seen.add(id(part))
                if deed := _of_body(reading, inside, part, judge):
                    return deed
    return None


def _judged(call: ast.Call, names: Names, judge: Judge) -> bool:
    """Tell whether a call does it, by its name or by that of the class of whose instance it is a method."""
    whole = {**names.instances, **names.imported}
    given = [*call.args, *(word.value for word in call.keywords)]
    if MEMORY & {dotted(one, whole).removesuffix("()") for one in given}:
        return False
    return judge(call, names.imported) or judge(call, whole)


def _running(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield calls and imports that run when this code does, in order: not those of what it defines, or guards."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            yield from _running([*decorators, *node.args.defaults, *(one for one in node.args.kw_defaults if one)])
        elif isinstance(node, ast.If):
            yield from _running([node.test, *_taken(node)])
        else:
            yield from _running(ast.iter_child_nodes(node))
            if isinstance(node, ast.Call | ast.Import | ast.ImportFrom):
                yield node


def _taken(node: ast.If) -> list[ast.stmt]:
    """Return what of a condition may run in a module that is imported."""
    test = node.test
    main = _asks_for_main(test)
    if main is None and isinstance(test, ast.Constant):
        main = not test.value
    if main is None and ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        main = True
    return [*node.body, *node.orelse] if main is None else node.orelse if main else node.body


def _asks_for_main(test: ast.expr) -> bool | None:
    """Return True where a condition holds in the main program alone, False where it holds in every other."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _asks_for_main(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return True if any(_asks_for_main(part) for part in test.values) else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        sides = {ast.unparse(test.left), ast.unparse(test.comparators[0])}
        if "__name__" in sides and any("__main__" in side for side in sides):
            return isinstance(test.ops[0], ast.Eq | ast.In | ast.Is)
    return None


def _brought_in(call: ast.Call) -> list[str]:
    """Return the module that a call imports by its name."""
    name = ast.unparse(call.func)
    given = call.args[0] if call.args else None
    if name.rpartition(".")[2] not in ("import_module", "__import__") or not isinstance(given, ast.Constant):
        return []
    return [given.value] if isinstance(given.value, str) and given.value.isprintable() else []


def _called(reading: Reading, place: Place, call: ast.Call) -> Iterator[tuple[Place, Sequence[ast.AST]]]:
    """Yield the user's own code that a call runs."""
    targets = [call.func]
    imported, instances = place.names.imported, place.names.instances
    if dotted(call.func, {}).rpartition(".")[2] in RUNNERS or dotted(call.func, imported) == AT_THE_END:
        targets += [*call.args, *(word.value for word in call.keywords)]
    for target in targets:
        if isinstance(target, ast.Lambda):
            yield _inside(place, target)
        elif isinstance(target, ast.Call):  # of an instance as it is made
            yield from _defined(reading, place, f"{dotted(target.func, imported).replace('()', '')}.__call__")
        elif isinstance(target, ast.Name | ast.Attribute):
            name = dotted(target, imported).replace("()", "")
            first, dot, rest = name.partition(".")
            yield from _defined(reading, place, f"{instances.get(first, first)}{dot}{rest}")
            if first in instances and not dot:
                yield from _defined(reading, place, f"{instances[first]}.__call__")
            if target is call.func and not dot:
                # An application of typer or click runs its commands.
                yield from (_inside(place, one) for one in place.names.functions.values() if _is_command(one, name))


def _is_command(function: Function, application: str) -> bool:
    decorators = [] if isinstance(function, ast.Lambda) else function.decorator_list
    return any(dotted(one, {}).removesuffix("()").startswith(f"{application}.") for one in decorators)


def _defined(reading: Reading, place: Place, name: str, exports: int = 0) -> Iterator[tuple[Place, Sequence[ast.AST]]]:
    """Yield the user's own code behind a name: a function, a method, or what makes an instance of a class."""
    first, *rest = name.split(".")
    names = place.names
    if first in ("self", "cls") and place.owner is not None:
        first = place.owner
    if first in names.functions and not rest:
        yield _inside(place, names.functions[first])
    elif first in names.classes:
        for method in rest[:1] or MAKING:
            yield from _methods(reading, place, first, method, exports)
    elif exports < MOST_EXPORTS:
        whole = names.imported.get(first, first)
        parts = [*whole.split("."), *rest]
        for k in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:k])
            files = files_of(module)
            read = read_source(reading, *files[-1]) if files and files[-1][0] == module else None
            if read is not None:
                yield from _defined(reading, read[0], ".".join(parts[k:]), exports + 1)
                return


def _methods(
    reading: Reading, place: Place, owner: str, method: str, exports: int
) -> Iterator[tuple[Place, Sequence[ast.AST]]]:
    found = place.names.classes[owner]
    own = [one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == method]
    if own:
        yield _inside(Place(place.file, place.module, place.names, owner), own[-1])
        return
    for base in found.bases:
        name = dotted(base, place.names.imported)
        if name != owner and exports < MOST_EXPORTS:
            yield from _defined(reading, place, f"{name}.{method}", exports + 1)


def _inside(place: Place, function: Function) -> tuple[Place, Sequence[ast.AST]]:
    """Return a function's code, and what is known in it."""
    if isinstance(function, ast.Lambda):
        return place, [function.body]
    names = Names(*(dict(part) for part in vars(place.names).values()))
    inner = Place(place.file, place.module, names, place.owner)
    collect(function.body, inner)
    return inner, function.body
