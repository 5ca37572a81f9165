"""The law of imports: who may see whom, and that no arrow runs in a circle."""

import ast
import functools
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.sources import nodes

PACKAGE = Path(__file__).parent.parent / "ibscan"
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in MODULES if path.name == "__init__.py")

# Room: the rooms it sees, and the libraries. No arrow runs up: a room sees those above its row alone.
ROOMS = {
    "_version": ("", ""),
    "errors": ("", ""),
    "core": ("errors", "numpy"),
    "numerics": ("", "numpy scipy torch"),
    "inputs": ("errors core", "numpy scipy torch safetensors h5py transformers"),
    "networks": ("errors core numerics", "numpy torch"),
    "measures": ("errors core numerics", "numpy torch"),
    "results": ("errors core", "numpy h5py"),
    "views": ("errors core", "numpy rich matplotlib IPython jinja2 markupsafe"),
    "engine": ("_version errors core numerics inputs networks measures results", "numpy torch"),
    "training": ("errors core networks", "torch safetensors"),
    "face": ("errors core measures results views engine", "numpy pandas xarray"),
    "cli": ("_version errors core numerics inputs networks measures results views engine", "rich typer"),
    "__main__": ("cli", ""),
    "__init__": ("_version errors training face", ""),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported(path: Path) -> tuple[str, ...]:
    """Every imported module by its dotted name; those for typing alone are left out."""
    typing_only = {
        id(node)
        for test in nodes(path)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found: list[str] = []
    for node in nodes(path):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            name = node.module or ""
            # `from ibscan.networks import chain` imports the module, not the room.
            found += [f"{name}.{a.name}" if file_of(f"{name}.{a.name}") else name for a in node.names]
    return tuple(found)


@functools.cache
def file_of(name: str) -> Path | None:
    """Return where a module of ours lies, None where there is none of the name."""
    if not name.startswith("ibscan"):
        return None
    place = PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_what_its_room_may_see(path: Path) -> None:
    rooms, libraries = (row.split() for row in ROOMS[room_of(path)])
    for name in imported(path):
        file = file_of(name)
        if name.split(".")[0] == "ibscan":
            assert file is not None, f"{path.name} imports {name}, which is not there"
            assert room_of(file) in {room_of(path), *rooms}, f"{path.name} imports {name}"
        else:
            assert name.split(".")[0] in {*sys.stdlib_module_names, *libraries}, f"{path.name} imports {name}"


def test_matplotlib_is_known_to_the_drawing_of_figures_alone() -> None:
    knowing = {path.relative_to(PACKAGE).as_posix() for path in MODULES if any(map(is_matplotlib, imported(path)))}
    assert knowing <= {f"views/figures/{name}.py" for name in ("draw", "artists", "legend")}
    for path in (PACKAGE / name for name in knowing):
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("matplotlib" in ast.unparse(node) for node in tops), path


def test_jinja_is_known_to_the_report_alone_and_plotly_to_no_module() -> None:
    knowing = {path.relative_to(PACKAGE).as_posix() for path in MODULES if {"jinja2", "markupsafe"} & tops(path)}
    assert knowing == {"views/report/page.py"}
    at_once = ast.parse((PACKAGE / "views/report/page.py").read_text()).body
    assert not any("jinja2" in ast.unparse(node) for node in at_once if isinstance(node, ast.Import | ast.ImportFrom))
    assert not any("plotly" in tops(path) for path in MODULES)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def is_matplotlib(name: str) -> bool:
    return name.split(".")[0] == "matplotlib"


def test_every_room_has_its_row_and_sees_rows_above_it_alone() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)
    order = list(ROOMS)
    for room, (seen, _) in ROOMS.items():
        assert set(seen.split()) <= set(order[: order.index(room)]), room


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(PACKAGE.parent)))
def test_no_imports_within_a_package_run_in_a_circle(package: Path) -> None:
    """Of modules and packages that lie side by side: a package depends on whatever a module in it imports."""
    arrows: dict[str, set[str]] = {}
    for path in (path for path in MODULES if package in path.parents):
        here = path.relative_to(package).parts[0]
        names = set(imported(path))
        for file in map(file_of, names):
            if file is not None and package in file.parents and file.relative_to(package).parts[0] != here:
                arrows.setdefault(here, set()).add(file.relative_to(package).parts[0])
    TopologicalSorter(arrows).prepare()
