"""Local rank beside its bounds, from a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run


def shown(command: Run, file: Any, *options: Any) -> Any:
    found = command("show", file, "--full", "--format", "table", *options)
    assert found.code == 0, found.err
    return found.out


@pytest.fixture
def ranked(command: Run, series: Any, tmp_path: Path) -> Any:
    assert command("rank", series, "-o", tmp_path / "run.h5").code == 0
    return tmp_path / "run.h5"


def test_the_last_checkpoint_is_shown_with_every_threshold_and_what_the_limit_is(command: Run, ranked: Any) -> None:
    text = " ".join(shown(command, ranked).split())
    assert "local rank and its bounds at epoch 30" in text
    for word in ("0.001", "0.01", "0.1", "by J", "by F", "limit", "least", "stable", "no bound on this network"):
        assert word in text


def test_every_layer_has_a_line(command: Run, ranked: Any) -> None:
    table = shown(command, ranked).split("and its bounds")[1]
    for layer in ("0", "2", "4"):
        assert sum(line.strip().startswith(f"{layer} ") for line in table.splitlines()) >= 1


def test_bounds_are_not_shown_beside_ranks_from_another_layer(command: Run, series: Any, tmp_path: Path) -> None:
    command("rank", series, "-o", tmp_path / "from.h5", "--from", "0")
    assert "and its bounds" not in shown(command, tmp_path / "from.h5")
