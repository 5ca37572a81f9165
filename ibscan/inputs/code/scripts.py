"""Tell from a file's source, before it runs, whether importing or calling it would train or write files.

Only code that would run counts: the module level with its loops, conditions and class bodies, functions of the user's
own files called from there, and the user's own modules imported on the way. Code that is only defined, or stands under
`if __name__ == "__main__":`, does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ibscan.inputs.code.side_effects import dotted, has_side_effect, trains
from ibscan.inputs.code.sources import Function, Names, Parsed, Scope, collect, files_of, imported_names, read_source

__all__ = ["SideEffect", "call_effect", "import_effect"]

MOST_REEXPORTS = 10
# Functions that call a function they are given.
RUNNERS = {
    *("run", "spawn", "Fire", "Thread", "Timer", "Process", "submit", "launch", "start_processes", "map", "main"),
    *("optimize", "agent", "notebook_launcher", "delayed"),
}
# Writing into these writes no file.
IN_MEMORY = {"io.BytesIO", "io.StringIO"}
CONSTRUCTORS = ("__new__", "__init__", "__post_init__")
Body: TypeAlias = tuple[Scope, Sequence[ast.AST]]
Predicate: TypeAlias = Callable[[ast.Call, Mapping[str, str]], bool]


@dataclass(frozen=True)
class SideEffect:
    """A call that trains or writes files: its file, its line, and its beginning."""

    file: Path
    line: int
    text: str


def import_effect(files: Sequence[tuple[str, Path]]) -> SideEffect | None:
    """Return the first call that trains or writes files when modules (name, file) are imported in turn, or None."""
    parsed = Parsed()
    try:
        return next((effect for name, file in files if (effect := _module_effect(parsed, name, file))), None)
    except RecursionError:  # nested too deep to search
        return None


def call_effect(name: str, file: Path, called: str) -> SideEffect | None:
    """Return the first call with which a callable of a module trains, or imports a module that trains or writes."""
    parsed = Parsed()
    read = read_source(parsed, name, file)
    if read is None:
        return None
    try:
        found = (_body_effect(parsed, scope, body, trains) for scope, body in _definitions(parsed, read[0], called))
        return next((effect for effect in found if effect), None)
    except RecursionError:
        return None


def _module_effect(parsed: Parsed, name: str, file: Path) -> SideEffect | None:
    read = None if name in sys.modules else read_source(parsed, name, file)
    if read is None or id(read[1]) in parsed.seen:
        return None
    parsed.seen.add(id(read[1]))
    return _body_effect(parsed, *read, has_side_effect)


def _body_effect(parsed: Parsed, scope: Scope, body: Iterable[ast.AST], predicate: Predicate) -> SideEffect | None:
    for node in _executed(body):
        if isinstance(node, ast.Call):
            named = _dynamic_imports(node)
            called = list(_callees(parsed, scope, node))
            if not called and _matches(node, scope.names, predicate):
                text = ast.unparse(node.func)
                return SideEffect(scope.file, node.lineno, f"{text if len(text) < 60 else '...' + text[-60:]}(...)")
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom)
            imported_modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named, called = [*imported_modules, *imported_names(node, scope).values()], []
        for file in (file for name in named for file in files_of(name)):
            if effect := _module_effect(parsed, *file):
                return effect
        for inside, part in called:
            if id(part) not in parsed.seen:
                parsed.seen.add(id(part))
                if effect := _body_effect(parsed, inside, part, predicate):
                    return effect
    return None


def _matches(call: ast.Call, names: Names, predicate: Predicate) -> bool:
    """Tell whether a call matches by its name, or by the class of the instance it is a method of."""
    aliases = {**names.instances, **names.imported}
    given = [*call.args, *(word.value for word in call.keywords)]
    if IN_MEMORY & {dotted(one, aliases).removesuffix("()") for one in given}:
        return False
    return predicate(call, names.imported) or predicate(call, aliases)


def _executed(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield calls and imports in the order they run, without those in functions, lambdas and dead branches."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            yield from _executed([*decorators, *node.args.defaults, *(one for one in node.args.kw_defaults if one)])
        elif isinstance(node, ast.If):
            yield from _executed([node.test, *_live_branches(node)])
        else:
            yield from _executed(ast.iter_child_nodes(node))
            if isinstance(node, ast.Call | ast.Import | ast.ImportFrom):
                yield node


def _live_branches(node: ast.If) -> list[ast.stmt]:
    """Return the branches of a condition that may run when the module is imported."""
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


def _dynamic_imports(call: ast.Call) -> list[str]:
    """Return the module that a call such as `importlib.import_module("name")` imports."""
    name = ast.unparse(call.func)
    given = call.args[0] if call.args else None
    if name.rpartition(".")[2] not in ("import_module", "__import__") or not isinstance(given, ast.Constant):
        return []
    return [given.value] if isinstance(given.value, str) and given.value.isprintable() else []


def _callees(parsed: Parsed, scope: Scope, call: ast.Call) -> Iterator[Body]:
    """Yield the bodies of the user's own functions that a call runs, with their scopes."""
    targets = [call.func]
    imported, instances = scope.names.imported, scope.names.instances
    if dotted(call.func, {}).rpartition(".")[2] in RUNNERS or dotted(call.func, imported) == "atexit.register":
        targets += [*call.args, *(word.value for word in call.keywords)]
    for target in targets:
        if isinstance(target, ast.Lambda):
            yield _in_function(scope, target)
        elif isinstance(target, ast.Call):  # of an instance where it is created
            yield from _definitions(parsed, scope, f"{dotted(target.func, imported).replace('()', '')}.__call__")
        elif isinstance(target, ast.Name | ast.Attribute):
            name = dotted(target, imported).replace("()", "")
            first, dot, rest = name.partition(".")
            yield from _definitions(parsed, scope, f"{instances.get(first, first)}{dot}{rest}")
            if first in instances and not dot:
                yield from _definitions(parsed, scope, f"{instances[first]}.__call__")
            if target is call.func and not dot:
                # An application of typer or click runs its commands.
                yield from (
                    _in_function(scope, one) for one in scope.names.functions.values() if _is_command(one, name)
                )


def _is_command(function: Function, application: str) -> bool:
    decorators = [] if isinstance(function, ast.Lambda) else function.decorator_list
    return any(dotted(one, {}).removesuffix("()").startswith(f"{application}.") for one in decorators)


def _definitions(parsed: Parsed, scope: Scope, name: str, depth: int = 0) -> Iterator[Body]:
    """Yield the bodies of the user's own function, method or constructors with this name."""
    first, *rest = name.split(".")
    names = scope.names
    if first in ("self", "cls") and scope.owner is not None:
        first = scope.owner
    if first in names.functions and not rest:
        yield _in_function(scope, names.functions[first])
    elif first in names.classes:
        for method in rest[:1] or CONSTRUCTORS:
            yield from _methods(parsed, scope, first, method, depth)
    elif depth < MOST_REEXPORTS:
        full = names.imported.get(first, first)
        parts = [*full.split("."), *rest]
        for k in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:k])
            files = files_of(module)
            read = read_source(parsed, *files[-1]) if files and files[-1][0] == module else None
            if read is not None:
                yield from _definitions(parsed, read[0], ".".join(parts[k:]), depth + 1)
                return


def _methods(parsed: Parsed, scope: Scope, owner: str, method: str, depth: int) -> Iterator[Body]:
    found = scope.names.classes[owner]
    own = [one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == method]
    if own:
        yield _in_function(Scope(scope.file, scope.module, scope.names, owner), own[-1])
        return
    for base in found.bases:
        name = dotted(base, scope.names.imported)
        if name != owner and depth < MOST_REEXPORTS:
            yield from _definitions(parsed, scope, f"{name}.{method}", depth + 1)


def _in_function(scope: Scope, function: Function) -> Body:
    """Return a function's scope and body."""
    if isinstance(function, ast.Lambda):
        return scope, [function.body]
    names = Names(*(dict(part) for part in vars(scope.names).values()))
    inner = Scope(scope.file, scope.module, names, scope.owner)
    collect(function.body, inner)
    return inner, function.body
