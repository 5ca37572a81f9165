"""Code named on the command line is found and run, and leaves files and the import path alone."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ibscan.errors import IbscanError, InputError, Interrupted, ResourceError, UsageError
from ibscan.inputs.code.load import called, is_code, named_callable
from ibscan.inputs.probes.read import read_probe

MODULE = """
import sys
import numpy as np
from dataclasses import dataclass
print("loading")

@dataclass
class Builder:
    width: int = 3
    @staticmethod
    def build(width=2, *, depth=1):
        print("building")
        return ["net", width, depth]

number = 3
def probe(): return np.array([[0.5, 1.0], [0.25, 2.0]]), ["cat", "ant"]
def fails(): raise ValueError("not\\n today")
def silent(): raise KeyError
def leaves(): sys.exit(0)
def stopped(): raise KeyboardInterrupt
def hungry(): raise MemoryError
class Odd(Exception):
    def __str__(self): raise RuntimeError
def odd(): raise Odd
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "some place").mkdir()
    path = tmp_path / "some place" / "build.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("module:name", True),
        ("package.module:Class.build", True),
        ("some place/build.py:probe", True),
        ("größe.py:probe", True),
        ("build.py", False),
        ("build.py:", False),
        ("build.py:1x", False),
        ("build.py:a.", False),
        ("probe.npz", False),
        ("a b:c", False),
        ("a-b:c", False),
        (":c", False),
        ("", False),
        ("\0.py:a", True),
    ],
)
def test_a_spec_is_code_where_it_names_a_callable(spec: str, expected: bool) -> None:
    assert is_code(spec) is expected


def test_a_path_that_exists_is_no_code(tmp_path: Path) -> None:
    assert is_code("module:name")
    (tmp_path / "module:name").write_text("")
    assert not is_code("module:name")


def test_code_in_a_file_leaves_import_path_and_folder_unchanged(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, modules = list(sys.path), len(list(code.parent.iterdir()))
    build = named_callable(f"{code}:Builder.build", "--model")
    assert called(build, {"width": 5}, "--model b") == ["net", 5, 1]
    assert named_callable(f"{code}:Builder", "--model")().width == 3
    assert sys.path == before
    assert len(list(code.parent.iterdir())) == modules
    out, err = capsys.readouterr()
    assert out == ""
    # The second time the file is as it was.
    assert err.split() == ["loading", "building"]


def test_neighbours_are_importable_while_loaded_and_called(code: Path) -> None:
    (code.parent / "ibscan_test_early.py").write_text("name = 'early'")
    (code.parent / "ibscan_test_late.py").write_text("name = 'late'")
    code.write_text(
        "import ibscan_test_early\ndef build():\n    import ibscan_test_late\n"
        "    return ibscan_test_early.name + ibscan_test_late.name"
    )
    assert named_callable(f"{code}:build", "-m")() == "earlylate"
    with pytest.raises(ModuleNotFoundError):
        __import__("ibscan_test_absent")


def test_import_paths_that_code_adds_stay(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    code.write_text("import sys\nsys.path.insert(0, '/its/own')\ndef build(): return sys.path[1]")
    before = list(sys.path)
    assert named_callable(f"{code}:build", "-m")() == "/its/own"
    assert sys.path == ["/its/own", *before]


SCRIPT = """
import sys
from ibscan.inputs.code.load import named_callable
from ibscan.errors import InputError
try:
    print(named_callable(sys.argv[1], "-m")())
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-c", SCRIPT], ["here.py"], ["-m", "here"]])
def test_modules_never_come_from_the_working_folder(start: list[str], tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(SCRIPT)
    (tmp_path / "mine.py").write_text("import os\nos.mkdir('canary')\ndef build(): return 'built'")
    root = str(Path(__file__).parents[2])

    def run(path: str, spec: str) -> str:
        command = [sys.executable, *start, spec]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, cwd=tmp_path, env=environment, stdout=-1, text=True, check=True).stdout

    refused = run(root, "mine:build")
    assert "there is no module 'mine'" in refused
    assert "mine.py:" in refused
    assert not (tmp_path / "canary").exists()
    assert run(f"{root}{os.pathsep}{tmp_path}", "mine:build") == "built\n"
    (tmp_path / "canary").rmdir()
    assert run(root, "mine.py:build") == "built\n"


LOADING = [
    ("", "number", InputError, "is of type int"),
    ("", "bild", InputError, "there is no 'bild' in it; there is"),
    ("", "Builder.biuld", InputError, "did you mean build"),
    ("raise ValueError('no')", "probe", InputError, r"loading it raised ValueError: no \(build.py, line 1\)"),
    ("def x(:", "probe", InputError, "loading it raised SyntaxError: .*build.py, line 1"),
    ("import absent_thing", "probe", InputError, "ModuleNotFoundError: No module named 'absent_thing'"),
    ("import sys; sys.exit(3)", "probe", InputError, "SystemExit: 3"),
    ("def __getattr__(name): raise ValueError('odd')", "probe", InputError, "looking up 'probe' raised ValueError"),
    ("\0", "probe", InputError, "loading it raised"),
]


@pytest.mark.parametrize(("text", "name", "error", "words"), LOADING)
def test_code_that_does_not_load_is_refused(
    code: Path, text: str, name: str, error: type[IbscanError], words: str
) -> None:
    if text:
        code.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(error, match=words) as raised:
        named_callable(f"{code}:{name}", "--model")
    assert str(raised.value).startswith(f"--model {code}:{name}: ")
    assert "loading it" not in words or set(sys.modules) == modules


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("absent.py:build", InputError, "absent.py: does not exist"),
        ("absent_package.module:build", InputError, "no module 'absent_package'"),
        ("numpy.absent:build", InputError, "no module 'numpy.absent'"),
        ("numpy:arrange", InputError, "did you mean arange"),
        ("numpy:pi", InputError, "is of type float"),
        ("numpy", UsageError, "expected module:callable or path.py:callable"),
        ("numpy:", UsageError, "expected module:callable"),
    ],
)
def test_specs_that_name_nothing_are_refused(spec: str, error: type[IbscanError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        named_callable(spec, "--model")
    assert type(raised.value) is error


def test_pipes_and_folders_are_never_opened_as_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    for name, words in (("pipe.py", "named pipe"), ("folder.py", "a folder")):
        with pytest.raises(InputError, match=words):
            named_callable(f"{name}:x", "-m")


CALLS = [
    ("fails", {}, r"raised ValueError: not today \(build.py, line 17\); --debug"),
    ("silent", {}, "raised KeyError "),
    ("leaves", {}, "raised SystemExit: 0"),
    ("odd", {}, "raised Odd "),
    ("Builder.build", {"widht": 3}, r"takes \(width=2, \*, depth=1\), and the arguments given are widht"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), CALLS)
def test_failing_calls_become_input_errors(code: Path, name: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=f"^--model b: {words}"):
        called(named_callable(f"{code}:{name}", "--model"), arguments, "--model b")


def test_interrupts_and_memory_errors_pass_through_code(code: Path) -> None:
    for name, error in (("stopped", KeyboardInterrupt), ("hungry", MemoryError)):
        with pytest.raises(error):
            called(named_callable(f"{code}:{name}", "--model"), {}, "--model b")

    def interrupted() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        called(interrupted, {}, "--model b")


def test_failures_restore_what_was_changed(code: Path) -> None:
    before, out = list(sys.path), sys.stdout
    with pytest.raises(ValueError, match="today"):
        named_callable(f"{code}:fails", "--model")()
    assert (sys.path, sys.stdout) == (before, out)


# Probes

RETURNS = [
    ("np.array([[.5, 1]])", [[0.5, 1]], None),
    ("[[.5, 1], [1, 0]]", [[0.5, 1], [1, 0]], None),
    ("([[.5, 1], [1, 0]], [3, 1])", [[0.5, 1], [1, 0]], (1, 3)),
    ("([[.5, 1], [1, 0]],)", [[0.5, 1], [1, 0]], None),
    ("([[.5, 1], [1, 0]], None)", [[0.5, 1], [1, 0]], None),
    ("(torch.ones(1, 2, requires_grad=True), torch.tensor([3]))", [[1, 1]], (3,)),
    ("torch.ones(1, 2, dtype=torch.bfloat16)", [[1, 1]], None),
    ("[torch.ones(2), torch.zeros(2)]", [[1, 1], [0, 0]], None),
    ("{'inputs': [[.5, 1]], 'labels': np.array(['cat'], object), 'other': 3}", [[0.5, 1]], ("cat",)),
    ("{'x': [[.5, 1]], 'y': None}", [[0.5, 1]], None),
    # A list as a tuple, where it can be no rows.
    ("[np.ones((2, 2)), np.array([1, 0])]", [[1, 1], [1, 1]], (0, 1)),
    ("[torch.ones(2, 2), torch.tensor([1, 0])]", [[1, 1], [1, 1]], (0, 1)),
    ("[torch.ones(2, 2), [1, 0]]", [[1, 1], [1, 1]], (0, 1)),
    ("[[[.5, 1], [1, 0]], [3, 1]]", [[0.5, 1], [1, 0]], (1, 3)),
    ("[[[.5, 1], [1, 0]], [[3], [1]]]", [[0.5, 1], [1, 0]], (1, 3)),
    ("[[[.5, 1], [1, 0]], ['cat', 'ant']]", [[0.5, 1], [1, 0]], ("ant", "cat")),
    ("[[torch.ones(2), torch.zeros(2)], torch.tensor([3, 1])]", [[1, 1], [0, 0]], (1, 3)),
    ("[np.ones((2, 2)), None]", [[1, 1], [1, 1]], None),
    ("[np.ones((2, 2))]", [[1, 1], [1, 1]], None),
    ("[np.ones((2, 2)), np.eye(3)[[2, 0]]]", [[1, 1], [1, 1]], (0, 2)),
    # And rows, where it can.
    ("[np.ones(2)]", [[1, 1]], None),
    ("[[.5, 1]]", [[0.5, 1]], None),
    ("[[[.5, 1], [1, 0]], [[.5, .2], [.1, 0]]]", [[[0.5, 1], [1, 0]], [[0.5, 0.2], [0.1, 0]]], None),
    ("[np.ones((1, 2)), np.zeros((1, 2)), np.zeros((1, 2))]", [[[1, 1]], [[0, 0]], [[0, 0]]], None),
    # By name, in whatever order.
    ("__import__('collections').namedtuple('P', 'y x')([3], [[.5, 1]])", [[0.5, 1]], (3,)),
    ("__import__('collections').namedtuple('P', 'a b')([[.5, 1]], [3])", [[0.5, 1]], (3,)),
    ("{'x_train': [[.5, 1]], 'y_train': [3]}", [[0.5, 1]], (3,)),
    ("{'x': [[.5, 1]], 'y': torch.eye(1, 3)}", [[0.5, 1]], (0,)),
]


@pytest.mark.parametrize(("value", "x", "labels"), RETURNS, ids=[row[0][:30] for row in RETURNS])
def test_the_result_of_a_callable_becomes_a_probe(
    value: str, x: list[Any], labels: tuple[Any, ...] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.py").write_text(f"import torch, numpy as np\ndef probe():\n    print('said')\n    return {value}")
    probe, notices = read_probe("data.py:probe", {})
    assert probe.x.tolist() == x
    assert (probe.labels or None, len(notices)) == (labels, labels is None)
    assert probe.source == "data.py:probe"
    assert capsys.readouterr() == ("", "said\n")


NOT_PROBES = [
    ("3", "returned something of type int; expected x, a tuple"),
    ("None", "type NoneType"),
    ("([[1.]], [1], 3)", "a tuple of 3"),
    ("[[1.], [1., 2.]]", "its x is no array"),
    ("[np.ones((2, 2)), np.ones(2), np.ones(2)]", "its x is no array"),
    ("[[[1., 2.], [3., 4.]], [1, 2], [3, 4]]", "its x is no array"),
    ("[np.ones(2), np.ones(3)]", "its x is no array"),
    ("[np.ones((2, 2)), [1]]", "labels have length 1.*length 2"),
    ("np.ma.masked_less([[.5, 2.]], 1)", "NaN"),
    ("([[.5], [.2]], np.ma.masked_less([1, 2], 2))", r"row 0 .*missing"),
    ("([[.5], [.2]], [1, None])", r"row 1 .*missing"),
    ("{'x': [[.5], [.2]], 'y': torch.tensor([float('nan'), 1])}", r"row 0 .*missing"),
    ("torch.eye(2).to_sparse()", "its x is no array"),
    ("(np.ones((2, 2)), [1])", "labels have length 1.*length 2"),
    ("[['a']]", "real numbers"),
    ("np.array([[1, 'a']], object)", "real numbers"),
    ("1 / 0", "raised ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("value", "words"), NOT_PROBES, ids=[row[0] for row in NOT_PROBES])
def test_results_that_are_no_probe_are_refused(value: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(f"import torch, numpy as np\ndef probe(): return {value}")
    with pytest.raises(InputError, match=words):
        read_probe("data.py:probe", {})


def test_arrays_of_a_mapping_are_picked_and_pixels_need_a_scale(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "def probe(): return {'a': [[5, 7]], 'b': [1], 'c': [[1, 2]]}\ndef x(): return [[5]]"
    )
    with pytest.raises(UsageError, match=r"which array is x.*a \(1, 2\)"):
        read_probe("data.py:probe", {})
    with pytest.raises(UsageError, match="integers from 5 to 7"):
        read_probe("data.py:probe#x=a,y=b", {})
    probe, _ = read_probe("data.py:probe#x=a,y=b", {"scale": 1})
    assert (probe.x.tolist(), probe.labels) == ([[5, 7]], (1,))
    with pytest.raises(UsageError, match="no mapping"):
        read_probe("data.py:x#x=a", {})


def test_a_list_that_may_be_a_pair_or_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("import numpy as np\ndef probe(): return [np.ones((3, 2)), np.ones((3, 2))]")
    with pytest.raises(UsageError, match=r"two arrays of shape \(3, 2\).*tuple \(x, y\)"):
        read_probe("data.py:probe", {})


def test_labels_of_a_tuple_are_left_out_on_request(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("def probe(): return [[.5, 1], [.5, 0]], [1, float('nan')]")
    with pytest.raises(InputError, match="#y="):
        read_probe("data.py:probe", {})
    assert read_probe("data.py:probe#y=", {})[0].y is None


def test_running_out_of_memory_in_an_array_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "class Large:\n    shape = (2, 2)\n    def __array__(self, *_, **__): raise MemoryError\n"
        "def probe(): return Large()"
    )
    with pytest.raises(ResourceError, match="memory ran out"):
        read_probe("data.py:probe", {})


def test_a_probe_is_a_copy(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("import builtins\ndef probe(): return builtins.ibscan_test_array")
    builtins.ibscan_test_array = array = np.ones((2, 2))  # type: ignore[attr-defined]
    try:
        probe, _ = read_probe("data.py:probe", {})
    finally:
        del builtins.ibscan_test_array  # type: ignore[attr-defined]
    array[:] = 5
    assert (probe.x == 1).all()


def test_only_named_code_runs(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code.parent)
    code.write_text("open('canary', 'w')")
    for spec in ("build.py", "absent/build.py:probe", "other.py:probe", "build", "build:probe", "build.npz:x"):
        with pytest.raises(IbscanError):
            read_probe(spec, {})
    assert not Path("canary").exists()
