"""The package imports cheaply, its names are stable, and files and functions are short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.sources import nodes, tree

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "ibscan"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_function_named_like_the_engine_stays_a_function() -> None:
    code = "import ibscan, ibscan.engine.run; assert callable(ibscan.rank) and callable(ibscan.scan)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_no_file_is_longer_than_350_lines() -> None:
    long = {str(p.relative_to(PACKAGE)) for p in SOURCES if len(p.read_text().splitlines()) > MOST_LINES}
    assert not long, long


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_FUNCTION
    }
    assert not long, long


def test_the_loop_of_a_minute_covers_every_room() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= {path.name for path in TESTS.iterdir()}
    for room in rooms:
        assert any(runs_in_the_loop(tree(path).body) for path in sorted((TESTS / room).glob("test_*.py"))), room


def runs_in_the_loop(body: list[ast.stmt]) -> bool:
    """Return whether a file has a test that is not marked slow."""
    if any(isinstance(node, ast.Assign) and ast.unparse(node) == "pytestmark = pytest.mark.slow" for node in body):
        return False
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return any("pytest.mark.slow" not in map(ast.unparse, test.decorator_list) for test in tests)
