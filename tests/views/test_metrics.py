"""Metrics saved with checkpoints, beside the accuracy."""

from __future__ import annotations

from types import ModuleType

import pytest
from conftest import Run

from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.store import write


def heads(synthetic: ModuleType, found: Result, **options: object) -> list[str]:
    """The words of the line of heads of the first table."""
    block = synthetic.printed(found, 160, **options)[1]
    (line,) = [line for line in block if line.startswith("epoch")]
    return line.split()


def test_a_metric_stands_beside_the_accuracy_by_either_name(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["rank", "fit"])
    assert heads(synthetic, found)[:3] == ["epoch", "accuracy", "ε"]
    for name in ("top 1", "metric_top_1"):
        assert heads(synthetic, found, beside=[name])[:5] == ["epoch", "accuracy", "top", "1", "ε"]
    both = heads(synthetic, found, beside=["probe_loss", "loss"])
    assert both[:5] == ["epoch", "accuracy", "probe_loss", "metric_loss", "ε"]
    assert heads(synthetic, found, beside=["accuracy"])[:3] == ["epoch", "accuracy", "ε"]


def test_where_there_is_no_accuracy_the_loss_stands_there(synthetic: ModuleType) -> None:
    found = synthetic.result((0, 1), ["rank"])
    assert heads(synthetic, found)[:3] == ["epoch", "loss", "ε"]
    line = next(line for line in synthetic.printed(found, 160)[1] if line.strip().startswith("1 "))
    assert line.split()[:2] == ["1", "0.500"]  # 1 / (1 + epoch), as saved
    bare = {name: v for name, v in found.variables.items() if not name.startswith("metric_")}
    assert heads(synthetic, Result(found.coordinates, bare, found.attrs))[:2] == ["epoch", "ε"]


def test_no_such_metric_is_refused_with_those_there_are(synthetic: ModuleType, command: Run, tmp_path: object) -> None:
    found = synthetic.result((0, 1))
    with pytest.raises(UsageError, match=r"--with val_loss: the result has no such metric; it has .*top 1"):
        synthetic.printed(found, 100, beside=["val_loss"])
    bare = {name: found.variables[name] for name in ("local_rank", "local_rank_se", "local_rank_status")}
    with pytest.raises(UsageError, match="it has none"):
        synthetic.printed(Result(found.coordinates, bare, found.attrs), 100, beside=["x"])
    write(found, tmp_path / "r.h5")  # type: ignore[operator]
    shown = command("show", "r.h5", "--with", "top 1", "--with", "probe_loss", "--format", "table")
    assert shown.code == 0, shown.err
    assert "top 1" in shown.out
    assert command("show", "r.h5", "--with", "val_loss", "--format", "table").code == 2
