"""A child process that reads foreign formats: what it sends, what its limits are, and what its end is called."""

import signal

import pytest

from ibscan.core.child import ChildEnded, started

WORKER = "from ibscan.core.child import *; import json, sys\n"


def command(code: str) -> tuple[str, ...]:
    return ("-P", "-c", WORKER + code)


def test_messages_and_bytes_go_both_ways() -> None:
    code = "told = json.loads(sys.stdin.buffer.readline()); blob = sys.stdin.buffer.read(told['bytes'])\n"
    code += "tell({'length': len(blob)}, blob[::-1]); tell({'done': True})"
    content = bytes(range(256)) * 4096
    with started(command(code)) as child:
        child.send({"bytes": len(content)}, content)
        found = bytearray(child.answer()["length"])
        child.fill(memoryview(found))
        assert child.answer() == {"done": True}
    assert found == content[::-1]
    assert child.process.returncode is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(3)", "it broke down on it, exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "it broke down on it, signal 11"),
        ("limit(0, 8 << 30)\nwhile True: pass", "reading it does not come to an end"),
        ("sys.stdout.write('half an ans')", "it broke down on it, exit code 0"),
    ],
)
def test_an_end_without_an_answer_has_a_reason(code: str, words: str) -> None:
    with pytest.raises(ChildEnded) as ended, started(command(code)) as child:
        child.answer()
    assert ended.value.reason("it") == words


def test_bytes_that_do_not_come_are_an_end_too() -> None:
    with pytest.raises(ChildEnded), started(command("tell({'length': 5}, b'abc')")) as child:
        child.fill(memoryview(bytearray(child.answer()["length"])))


@pytest.mark.parametrize("arguments", ["60, 1 << 30", "60, 8 << 30, 256 << 20"])
def test_more_memory_than_granted_is_refused(arguments: str) -> None:
    code = f"limit({arguments})\ntry: bytearray(2 << 30)\nexcept MemoryError: tell({{'refused': True}})"
    with started(command(code)) as child:
        assert child.answer() == {"refused": True}


def test_a_child_is_ended_with_its_block() -> None:
    with started(command("tell({}); sys.stdin.read()")) as child:
        child.answer()
    assert child.process.returncode == -signal.SIGKILL
