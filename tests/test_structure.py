"""The import table of the house, held against the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ibscan"

# Room: the rooms it may import from, and the libraries. Within a room modules may import one another.
BASE = {"errors", "types", "boundary", "core"}
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "boundary": ({"errors"}, set()),
    "types": ({"errors"}, {"numpy"}),
    "core": ({"errors", "types"}, {"numpy"}),
    "numerics": (set(), {"torch", "numpy", "scipy"}),
    "inputs": (BASE, {"numpy", "torch", "scipy", "safetensors", "h5py", "transformers"}),
    "networks": (BASE | {"numerics"}, {"torch", "numpy"}),
    "measures": (BASE | {"numerics"}, {"torch", "numpy"}),
    "results": (BASE, {"numpy", "h5py"}),
    "views": (BASE, {"numpy", "rich"}),
    "request": (BASE, set()),
    "training": (BASE | {"networks"}, {"torch", "safetensors"}),
    "scanning": (BASE | {"models", "measures", "numerics"}, {"torch", "numpy"}),
    "feeding": (BASE | {"networks"}, {"torch", "numpy"}),
    "models": (BASE | {"inputs", "networks", "feeding"}, {"torch"}),
    "measuring": (BASE | {"request", "models", "measures"}, set()),
    "planning": (
        BASE | {"request", "models", "measuring", "inputs", "networks", "measures", "results", "__init__"},
        {"torch"},
    ),
    "following": (BASE | {"planning", "request", "inputs"}, set()),
    "memory": (BASE | {"planning", "networks", "measures"}, set()),
    "resuming": (BASE | {"request", "planning", "results"}, {"numpy"}),
    "api": (
        BASE
        | {"request", "planning", "resuming", "following", "scanning", "inputs", "networks", "measures", "results"},
        {"torch", "numpy"},
    ),
    "cli": ({"*"}, {"typer"}),
    "__init__": ({"api", "networks", "training"}, set()),
    "__main__": ({"cli"}, set()),
}
STANDARD = sys.stdlib_module_names
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every imported module; those for typing alone are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    rooms, libraries = ROOMS[room]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "ibscan":
            target = parts[1] if len(parts) > 1 else "__init__"
            assert target == room or target in rooms or "*" in rooms, f"{path.name} imports {name}"
        else:
            assert parts[0] in STANDARD or parts[0] in libraries, f"{path.name} imports {name}"


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["ls", "--help"], ["rank", "-h"], ["--version"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['ibscan', *{arguments!r}]\n"
        "from ibscan.cli.entry import main\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code\n"
        "heavy = {'torch', 'scipy', 'h5py', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ibscan" in done.stdout


def test_package_import_is_cheap() -> None:
    code = "import sys, ibscan; assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_function_named_like_the_engine_stays_a_function() -> None:
    code = "import ibscan, ibscan.api; assert callable(ibscan.rank) and callable(ibscan.scan)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
