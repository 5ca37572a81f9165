"""Find the user's own source files that an import runs, and resolve the names in them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypeAlias

from ibscan.core.boundary import is_installed
from ibscan.inputs.code.side_effects import dotted

__all__ = ["Function", "Names", "Parsed", "Scope", "collect", "files_of", "imported_names", "read_source"]

# The most files read of one project.
MOST_FILES = 300
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass
class Names:
    """Definitions by name: functions, classes, full names of instances' classes, full names of imports."""

    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scope:
    """A scope of names: its file and module, the names defined in it, and the class if it is a method of one."""

    file: Path
    module: str
    names: Names
    owner: str | None = None


@dataclass
class Parsed:
    """The parsed files of one search, each read once, and the ids of bodies of code already searched."""

    files: dict[Path, tuple[Scope, list[ast.stmt]] | None] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


def files_of(name: str) -> list[tuple[str, Path]]:
    """Return the user's own files that importing a dotted name runs, packages first, with their modules' names."""
    found: list[tuple[str, Path]] = []
    parts, search = name.split("."), None
    if parts[0] in sys.stdlib_module_names:
        return []
    for k in range(len(parts)):
        try:
            spec = PathFinder.find_spec(".".join(parts[: k + 1]), search)
        except (ImportError, ValueError, OSError):
            spec = None
        if spec is None or (spec.origin is not None and is_installed(spec.origin)):
            break
        if spec.origin is not None and spec.origin.endswith(".py"):
            found.append((spec.name, Path(spec.origin)))
        if spec.submodule_search_locations is None:
            break
        search = list(spec.submodule_search_locations)
    return found


def read_source(parsed: Parsed, name: str, file: Path) -> tuple[Scope, list[ast.stmt]] | None:
    """Parse a module once and collect its names; None where that fails, or too many files were read."""
    if file not in parsed.files and len(parsed.files) < MOST_FILES:
        try:
            body = ast.parse(file.read_bytes()).body
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # importing it will show the error
            parsed.files[file] = None
        else:
            scope = Scope(file, name, Names())
            collect(body, scope)
            parsed.files[file] = scope, body
    return parsed.files.get(file)


def collect(body: Iterable[ast.AST], scope: Scope) -> None:
    """Add the names that a body of code defines to a scope."""
    names = scope.names
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.functions[node.name] = node
        elif isinstance(node, ast.ClassDef):
            names.classes[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.imported.update(imported_names(node, scope))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and node.value is not None:
                    _assign(target.id, node.value, names)
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            collect(ast.iter_child_nodes(node), scope)


def _assign(name: str, value: ast.expr, names: Names) -> None:
    if isinstance(value, ast.Lambda):
        names.functions[name] = value
    elif isinstance(value, ast.Name) and value.id in names.functions:
        names.functions[name] = names.functions[value.id]
    elif isinstance(value, ast.Call):
        made = dotted(value.func, names.imported)
        given = value.args[0] if value.args else None
        if made == "functools.partial" and isinstance(given, ast.Name) and given.id in names.functions:
            names.functions[name] = names.functions[given.id]
        else:
            names.instances[name] = made


def imported_names(node: ast.Import | ast.ImportFrom, scope: Scope) -> dict[str, str]:
    """Return the full names of an import by the names it defines; a star import defines `*`."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in node.names
        }
    base = node.module or ""
    if node.level:
        package = scope.module.split(".")
        up = node.level - (scope.file.name == "__init__.py")
        base = ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])
    return {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
