from __future__ import annotations

import io
import os
import pty
import select
import time

import pytest

from ibscan.core.hand import Hand
from ibscan.views import progress as module
from ibscan.views.progress import Progress, progress


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(clock: Clock, mode: str, seconds: float, total: int = 20) -> list[str]:
    stream = io.StringIO()
    with progress(total, stream=stream, mode=mode) as reporter:
        reporter.began = reporter.said = clock.now
        for place in range(total):
            clock.now += seconds
            reporter.advance(f"epoch-{place}\x1b")
    return stream.getvalue().splitlines()


def test_a_line_every_half_minute_off_a_terminal(clock: Clock) -> None:
    lines = run(clock, "auto", 10.0)
    assert len(lines) == 6
    assert lines[0] == r"ibscan: 3 of 20 checkpoints, 6/min, about 2 min 50 s left (epoch-2\x1b)"


def test_a_short_run_says_nothing_off_a_terminal(clock: Clock) -> None:
    assert run(clock, "auto", 0.1) == []
    assert run(clock, "on", 0.1) == ["ibscan: 0 of 20 checkpoints", "ibscan: 20 of 20 checkpoints in 2 s"]


def test_off_is_silent(clock: Clock) -> None:
    assert run(clock, "off", 100.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (119.6, "2 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    assert module.duration(seconds) == text


def on_a_terminal(total: int = 3) -> bytes:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        with progress(total, stream=stream, mode="auto") as reporter:
            for place in range(total):
                reporter.advance(f"[bold]epoch-{place}")
        content = b""
        while select.select([controller], [], [], 0.2)[0]:
            content += os.read(controller, 65536)
    os.close(controller)
    return content


def test_a_terminal_shows_it_and_is_clean_afterwards() -> None:
    content = on_a_terminal()
    assert b"checkpoints" in content
    # The line is erased last: nothing but the cursor's return follows.
    tail = content.rpartition(b"\x1b[2K")[2]
    assert not tail.strip(b"\r\n") or tail.strip().startswith(b"\x1b[")
    assert content.count(b"\x1b[?25h") == content.count(b"\x1b[?25l") == 1


@pytest.mark.parametrize("columns", ["1", "7", "30"])
def test_a_narrow_terminal_shows_progress(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    on_a_terminal()


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_no_escapes_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "dumb")
    assert b"\x1b" not in on_a_terminal()


def test_a_stream_that_is_gone_stops_nothing(clock: Clock) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError

    with progress(3, stream=Gone(), mode="on") as reporter:
        clock.now += 100
        reporter.advance("a")
    assert reporter.done == 1


HAND = Hand("10-12", "epoch 234-336", "representation", "layer4.1.conv2", lambda: 4205.0)


def shown(clock: Clock, hand: Hand | None, width: int, done: int = 9, unicode: bool = True) -> str:
    reporter = Progress(20, io.StringIO(), done=done, hand=hand, began=clock.now - 642.0, advanced=clock.now - 12.0)
    return reporter.line(width, unicode=unicode)


def test_the_line_says_where_it_is_what_is_in_hand_and_how_long(clock: Clock) -> None:
    assert shown(clock, HAND, 120) == (
        "━━━━────── 10-12/20 · epoch 234-336 · representation layer4.1.conv2 · 70 s each · 10:42, 1:10:05 left"
    )
    assert shown(clock, HAND, 80) == "10-12/20 · epoch 234-336 · representation…onv2 · 70 s each · 10:42, 1:10:05 left"
    one = Hand("3", "epoch 38", "local_rank", "", lambda: 70.0)
    assert shown(clock, one, 80, 0) == "────────── 3/20 · epoch 38 · local_rank · 10:42, 1:10 left"
    assert shown(clock, one, 80, 0, False) == "---------- 3/20 - epoch 38 - local_rank - 10:42, 1:10 left"
    assert shown(clock, None, 80, 0) == "0/20 checkpoints · 10:42"


@pytest.mark.parametrize("width", [1, 10, 24, 40, 60, 79, 200])
def test_the_line_fits_in_any_width_and_keeps_what_is_left_as_long_as_it_can(clock: Clock, width: int) -> None:
    for hand in (HAND, None, Hand("1", "\x1b" * 300, "mi_network", "a" * 300, lambda: 1e6)):
        line = shown(clock, hand, width)
        assert len(line) <= width
        assert line.isprintable()
        if hand is HAND and width >= 40:
            assert line.endswith("10:42, 1:10:05 left")


def test_the_times_move_while_nothing_is_finished() -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream, progress(3, stream=stream, mode="auto") as reporter:
        began = time.monotonic()
        reporter.hand = Hand("1", "epoch 0", "local_rank", "fc1", lambda: 9.5 - (time.monotonic() - began))
        content = b""
        while b"0:02" not in content and time.monotonic() - began < 20:
            if select.select([controller], [], [], 0.2)[0]:
                content += os.read(controller, 65536)
    os.close(controller)
    assert b"1/3 \xc2\xb7 epoch 0 \xc2\xb7 local_rank fc1 \xc2\xb7 0:01, 0:08 left" in content
    assert b"0:02, 0:0" in content
