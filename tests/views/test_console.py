from __future__ import annotations

import io
import os
import pty
import sys

import pytest
from rich.text import Text

from ibscan.views.console import console, escaped, is_terminal, unicode_ok


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def printed(stream: io.StringIO, color: str) -> str:
    console(stream, color=color).print(Text("word", style="bold red"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("color", "terminal", "environment", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("always", False, {}, True),
        ("always", False, {"TERM": "dumb"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_escapes_only_where_wanted(
    monkeypatch: pytest.MonkeyPatch, color: str, terminal: bool, environment: dict[str, str], expected: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = printed(Terminal() if terminal else io.StringIO(), color)
    assert ("\x1b" in text) == expected
    assert "word" in text


def test_text_is_printed_as_it_is() -> None:
    stream = io.StringIO()
    console(stream, color="never", width=80).print("[bold]x[/bold] [x='y'] :smile:")
    assert stream.getvalue() == "[bold]x[/bold] [x='y'] :smile:\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_that_lacks_characters(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    assert not unicode_ok(stream)
    console(stream, color="never", width=80).print("▁ \udce9 ok")
    stream.flush()
    assert raw.getvalue() == b"\\u2581 \\udce9 ok\n"


def test_unicode_where_there_is() -> None:
    assert unicode_ok(io.StringIO())
    assert unicode_ok(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))


@pytest.mark.parametrize(
    ("columns", "width"), [("1", 1), ("120", 120), ("0", 80), ("x", 80), ("-3", 80), ("9" * 50, 80)]
)
def test_columns_of_the_environment_set_the_width(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    found = console(io.StringIO(), color="never")
    if width != 80 or columns in ("0", "x"):
        assert found.width == width
    found.print("a word")


def test_width_given_wins() -> None:
    assert console(io.StringIO(), color="never", width=33).width == 33
    assert console(io.StringIO(), color="never", width=0).width == 1


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not is_terminal(stream)
    console(stream, color="auto")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name", "plain name"),
        ("caf\u00e9 \u4e2d", "caf\u00e9 \u4e2d"),
        ("\x1b[31m\r\n\t\x00", r"\x1b[31m\r\n\t\x00"),
        ("\x9b31m \u202e \u2028 \udce9", r"\x9b31m \u202e \u2028 \udce9"),
        ("[bold]", "[bold]"),
    ],
)
def test_escaped_text_is_printable(text: str, expected: str) -> None:
    assert escaped(text) == expected
    assert escaped(text).isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_real_terminal_gets_styles() -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        assert is_terminal(stream)
        console(stream, color="auto", width=40).print(Text("word", style="bold"))
    assert b"\x1b[1m" in os.read(controller, 1000)
    os.close(controller)
