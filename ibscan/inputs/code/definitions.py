"""Find the classes and functions of a user's files that may make a model, by reading alone: nothing is imported."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ibscan.core.text import natural
from ibscan.errors import CheckpointError
from ibscan.inputs.code.side_effects import dotted, trains
from ibscan.inputs.code.sources import Function, Names, Parsed, read_source
from ibscan.inputs.files import regular_stat

__all__ = ["Definition", "definitions", "fitting"]

# Of one folder, in natural order: files, bytes of one, and bytes of all that are parsed.
MOST_FILES = 50
MOST_BYTES, MOST_PARSED = 256 << 10, 512 << 10
# A file without any of these words makes no model; looking for them is a hundred times as fast as parsing.
LIKELY = re.compile(rb"\b(torch|torchvision|timm|transformers|lightning|pytorch_lightning)\b")
NO_MODEL = re.compile(r"(setup|conftest|test_.*|.*_test)\.py")
# Ends of the full names of classes that are modules, and beginnings of those of functions that return one.
MODULES = ("Module", "Sequential", "PreTrainedModel")
LIBRARIES = ("torchvision.models.", "timm.create_model", "transformers.Auto")
# Names that nn.Sequential gives its parts.
NUMBERED = frozenset(map(str, range(1000)))


@dataclass(frozen=True)
class Definition:
    """A class or function that may make a model.

    Args:
        spec: As `--model` takes it, `train.py:MLP`.
        name: The last part of it.
        needed: Arguments that have no default.
        parts: Names that its class gives the modules in it; empty where unknown.
        trainer: Whether it is a LightningModule: often around the network that is meant.
    """

    spec: str
    name: str
    needed: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()
    trainer: bool = False


def definitions(folders: Iterable[Path]) -> tuple[Definition, ...]:
    """Return what may make a model in the Python files of folders, files inside these not among them.

    At most 50 files of a folder are read, none over 256 KiB, and 512 KiB of those that name a library of networks are
    parsed. Files that cannot be read or parsed define nothing.
    """
    found: dict[tuple[Path, str], Definition] = {}
    parsed = Parsed()
    for folder in folders:
        for file in _files(folder):
            read = read_source(parsed, file.stem, file)
            with contextlib.suppress(RecursionError):  # nested too deep to search
                for definition in () if read is None else _in_file(file, read[0].names):
                    found.setdefault((file.resolve(), definition.name), definition)
    return tuple(found.values())


def fitting(found: Iterable[Definition], names: Iterable[str]) -> list[Definition]:
    """Return the definitions whose parts have the names of a checkpoint's tensors, the likeliest first.

    Args:
        found: From `definitions`.
        names: Of tensors; a prefix that they share (`model.`) may be of a module around the network.
    """
    split = [name.split(".") for name in names]
    tops = [{parts[0] for parts in split if len(parts) > 1}]
    if len(tops[0]) == 1:
        tops.append({parts[1] for parts in split if len(parts) > 2})
    fit = [one for one in found if any(top and top <= one.parts for top in tops)]
    return sorted(fit, key=lambda one: (bool(one.needed), one.trainer))


def _files(folder: Path) -> Iterator[Path]:
    try:
        named = [path for path in folder.glob("*.py") if not NO_MODEL.fullmatch(path.name)]
    except OSError:
        return
    left = MOST_PARSED
    for path in sorted(named, key=lambda path: natural(path.name))[:MOST_FILES]:
        try:
            size = regular_stat(path, path.name).st_size
            likely = size <= min(MOST_BYTES, left) and LIKELY.search(path.read_bytes())
        except (CheckpointError, OSError):
            continue
        if likely:
            left -= size
            yield path


def _in_file(file: Path, names: Names) -> Iterator[Definition]:
    classes = {name: one for name, node in names.classes.items() if (one := _module_class(file, node, names))}
    for name, function in names.functions.items():
        made = _made(function, names, classes)
        if made is not None:
            yield dataclasses.replace(made, spec=f"{file}:{name}", name=name, needed=_needed(function.args))
    # Blocks of which another class is made come last.
    used = {part for node in names.classes.values() for part in _called(node, names)}
    yield from sorted(classes.values(), key=lambda one: one.name in used)


def _module_class(file: Path, node: ast.ClassDef, names: Names, depth: int = 0) -> Definition | None:
    """Return what a class defines, None where it is no module by its bases."""
    bases = [dotted(base, names.imported) for base in node.bases]
    own = {base: names.classes[base] for base in bases if base in names.classes and base != node.name and depth < 9}
    parents = [one for base in own.values() if (one := _module_class(file, base, names, depth + 1))]
    if not parents and not any(base.endswith(MODULES) for base in bases):
        return None
    parts = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and _is_part(one)}
    parts.update(*(parent.parts for parent in parents), NUMBERED if _ends_with(bases, "Sequential") else ())
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    needed = _needed(made[-1].args)[1:] if made else parents[0].needed if parents else ()
    trainer = _ends_with(bases, "LightningModule") or any(parent.trainer for parent in parents)
    return Definition(f"{file}:{node.name}", node.name, needed, frozenset(parts), trainer)


def _is_part(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _ends_with(names: Iterable[str], end: str) -> bool:
    return any(name.endswith(end) for name in names)


def _made(function: Function, names: Names, classes: dict[str, Definition]) -> Definition | None:
    """Return what a function that returns a module makes, None where it returns something else, or trains."""
    if isinstance(function, ast.Lambda):
        return None
    nodes = list(ast.walk(function))
    if any(isinstance(node, ast.Call) and trains(node, names.imported) for node in nodes):
        return None
    returned = [ast.unparse(node.value) for node in nodes if isinstance(node, ast.Return) and node.value is not None]
    stated = "" if function.returns is None else ast.unparse(function.returns)
    if not returned or not (set(returned) & _models(nodes, names, classes) or stated.endswith(MODULES)):
        return None
    called = _called(function, names)
    parts = [classes[name].parts for name in called if name in classes]
    return Definition("", "", parts=frozenset().union(*parts, NUMBERED if _ends_with(called, "Sequential") else ()))


def _models(nodes: Iterable[ast.AST], names: Names, classes: dict[str, Definition]) -> set[str]:
    """Return the expressions in a function that are a model: calls that make one, and the names given to these."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Assign | ast.Return) and isinstance(node.value, ast.Call):
            name = dotted(node.value.func, names.imported)
            if name in classes or name.startswith(LIBRARIES) or name.endswith("nn.Sequential"):
                found.add(ast.unparse(node.value))
                found.update(ast.unparse(target) for target in getattr(node, "targets", ()))
    return found


def _called(node: ast.AST, names: Names) -> set[str]:
    return {dotted(one.func, names.imported) for one in ast.walk(node) if isinstance(one, ast.Call)}


def _needed(arguments: ast.arguments) -> tuple[str, ...]:
    positional: Sequence[ast.arg] = [*arguments.posonlyargs, *arguments.args]
    positional = positional[: len(positional) - len(arguments.defaults)]
    named = [one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    return tuple(one.arg for one in (*positional, *named))
