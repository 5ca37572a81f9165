"""Messages of the Python face name options as Python has them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sources import nodes

import ibscan
from ibscan import IbscanError
from ibscan.core.option import Setting
from ibscan.engine.request import requested, run_settings
from ibscan.face.wording import in_python, speaking_python
from ibscan.measures import measure_settings

PACKAGE = Path(ibscan.__file__).parent
SETTINGS = (*run_settings(), *measure_settings())
# Rooms whose texts are for the command line alone.
ELSEWHERE = ("cli", "face")


@pytest.mark.parametrize(
    ("typed", "given", "said"),
    [
        ("--noise -1: expected a finite number > 0.", {"noise": -1}, "noise=-1: expected a finite number > 0."),
        ("--noise a: 'a' is no number.", {"noise": ["a", 1]}, "noise='a': 'a' is no number."),
        ("--layers a b matches none.", {"layers": ("a", "b")}, "layers=('a', 'b') matches none."),
        ("--layers a matches none.", {"layers": "a"}, "layers='a' matches none."),
        ("--bin-range 1:0: expected", {"bin_range": (1, 0)}, "bin_range=(1, 0): expected"),
        ("--trust yes: expected", {"trust": "yes"}, "trust='yes': expected"),
        ("name it with --model, or add --trust.", {}, "name it with model=, or add trust=True."),
        ("add --probe-arg scale=255.", {}, "add probe_arg={'scale': 255}."),
        ("give --model-arg num_classes=10, or", {}, "give model_arg={'num_classes': 10}, or"),
        ("as --model path.py:callable.", {}, "as model=net."),
        ("or --model module:callable for", {"model": None}, "or model=net for"),
        ("as --model timm:create_model", {}, "as model='timm:create_model'"),
        ("say which with --state-key net.", {}, "say which with state_key='net'."),
        ("--state-key may be one of a", {"state_key": "b"}, "state_key= may be one of a"),
        ("leave --weights out, or --weights raw or", {}, "leave weights= out, or weights='raw' or"),
        ("a larger --tolerance or --noise asks less.", {}, "a larger tolerance= or noise= asks less."),
        ("--samples all takes every row", {}, "samples='all' takes every row"),
        ("with --from LAYER)", {}, "with from_layer=LAYER)"),
        ("Write elsewhere with -o, or --no-resume.", {}, "Write elsewhere with output=, or resume=False."),
        ("raised ValueError; --debug shows where.", {}, "raised ValueError; __cause__ shows where."),
        ("Run ibscan rank on it.", {}, "Run ibscan.rank on it."),
        ("--variable 'x': there is", {"variable": "x"}, "variable='x': there is"),
        ("a well-known file-name.h5 at -1 and a/-b--c", {}, "a well-known file-name.h5 at -1 and a/-b--c"),
    ],
)
def test_an_option_is_said_as_its_keyword(typed: str, given: dict[str, Any], said: str) -> None:
    assert in_python(typed, given) == said


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file with X in place of what is filled in, without docstrings."""
    inside = {id(part) for node in nodes(path) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def test_no_message_of_the_package_has_a_flag_left_in_python() -> None:
    found = [
        text
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ELSEWHERE
        for text in texts(path)
        if re.search(r"(?<![\w/])--[a-z]", text) and "\n" not in text and "/--" not in text
    ]
    assert len(found) > 80
    for text in found:
        assert not re.search(r"(?<!/)--[a-z]", in_python(text)), text


WRONG: tuple[Any, ...] = (-1, "?", 3.5, [], (2, 1), "a,,b", object(), [None], {"?": 1}, True)


def said_of(given: dict[str, Any], folder: Path) -> str:
    try:
        with speaking_python(given):
            requested("scan", [folder], given, "")
    except IbscanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_an_option_says_of_a_wrong_value_has_no_flag(setting: Setting, series: Path) -> None:
    said = [said_of({setting.name: value}, series) for value in WRONG]
    assert not any("--" in sentence for sentence in said), said


@pytest.mark.parametrize(
    "given",
    [
        *({"epochs": spec} for spec in ("5:3:x", "17", "log:x", "a")),
        *({"model": spec} for spec in ("tanh", "mlp:thanh", "nowhere.py:Net", "hf", "nowhere:Net")),
        *({"probe": spec} for spec in ("nowhere.npz", "nowhere:probe", "probe.npz#x=a", np.ones(3))),
        *({"layers": "a"}, {"from_layer": "a"}, {"device": "mps"}, {"device": "gpu"}, {"state_key": "net"}),
        *({"weights": "ema"}, {"chain": "a"}, {"probe_arg": {"scael": 1}}, {"probe_arg": "scale"}, {"idle": 3}),
        *({"follow": True}, {"bin_range": (0, 1), "bin_width": 0.1}, {"output": "."}, {"model_arg": {"a-b": 1}}),
        {"model": "mlp:tanh", "model_arg": {"width": 3}},
    ],
    ids=str,
)
def test_what_is_found_wrong_later_has_no_flag(given: dict[str, Any], series: Path) -> None:
    with pytest.raises(IbscanError) as caught:
        ibscan.scan(series, **given)
    assert not re.search(r"(?<![\w/])--[a-z]|\s-[a-z]\b", str(caught.value)), str(caught.value)


def test_an_error_keeps_its_kind_and_its_cause(series: Path) -> None:
    def probe() -> None:
        raise LookupError("mine")

    with pytest.raises(IbscanError, match="mine") as caught:
        ibscan.rank(series, probe=probe)
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.exit_code == 3
