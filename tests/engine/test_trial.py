"""What a trial on a few rows finds, and how long it says that a scan would take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from ibscan.engine import trial as module
from ibscan.engine.complete import planned
from ibscan.engine.plan import Plan
from ibscan.engine.request import Silent, requested
from ibscan.engine.trial import _timed, tried
from ibscan.measures.work import seconds
from ibscan.views.progress import about


@dataclass
class Clock:
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def plan(series: Path) -> Plan:
    return planned(requested("scan", [series], {}, ""), Silent())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def timed(plan: Plan, clock: Clock, whole: int, takes: Callable[[float], float]) -> tuple[float, list[int], Any]:
    """Return the estimate, the rows that were run and the declared cost, where a run takes a function of that cost."""
    measure = next(one for one in plan.measures if one.name == "clustering")
    ran: list[int] = []

    def declared(rows: int) -> float:
        return seconds(measure, module.dataclasses.replace(plan.sizes(measure), rows=rows))

    def run(rows: int) -> None:
        ran.append(rows)
        clock.now += takes(declared(rows))

    many = module.dataclasses.replace(plan, probe=_rows(plan, whole))
    return _timed(many, measure, run), ran, declared


def _rows(plan: Plan, count: int) -> Any:
    return module.dataclasses.replace(plan.probe, x=plan.probe.x[:1].repeat(count, 0), y=plan.probe.y[:1].repeat(count))


@pytest.mark.parametrize("rate", [0.01, 1.0, 100.0])
def test_the_estimate_is_exact_where_cost_is_as_declared_but_for_overhead(
    plan: Plan, clock: Clock, rate: float
) -> None:
    found, ran, declared = timed(plan, clock, 4096, lambda cost: 0.05 + rate * cost)
    assert ran[0] == module.FEW_ROWS
    assert all(b == 4 * a for a, b in itertools.pairwise(ran))
    exact = 0.05 + rate * declared(4096)
    assert found == pytest.approx(exact, rel=1e-9 if len(ran) > 1 else 0.2)


def test_few_rows_are_all_run_and_more_are_not_once_it_takes_long(plan: Plan, clock: Clock) -> None:
    found, ran, _ = timed(plan, clock, 64, lambda _: 0.01)
    assert found == pytest.approx(0.01)
    assert ran == [16, 64]
    _, ran, _ = timed(plan, clock, 10**4, lambda _: 1.0)
    assert ran == [16]


def test_a_trial_of_a_series_takes_seconds_and_says_how_long_a_scan_would_take(plan: Plan) -> None:
    began = time.process_time()
    trial = tried(plan)
    assert trial.obstacles == {}
    assert trial.seconds is not None
    assert 0.005 < trial.seconds < 600
    assert time.process_time() - began < 60


def test_a_measure_without_memory_leaves_the_time_unknown(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any) -> Mapping[str, Any]:
        raise MemoryError

    monkeypatch.setattr(module, "measure_layers", without)
    trial = tried(plan)
    assert trial.seconds is None
    assert set(trial.obstacles) == set(plan.layers)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.01, "1 s"),
        (42.4, "42 s"),
        (89, "89 s"),
        (200, "3.3 min"),
        (5000, "83 min"),
        (9000, "2.5 h"),
        (3e5, "3.5 days"),
    ],
)
def test_an_estimate_has_two_digits(number: float, text: str) -> None:
    assert about(number) == text


def test_ls_says_time_and_memory(command: Run, series: Path) -> None:
    done = command("ls", series, "--probe", series / "probe.npz")
    assert done.code == 0
    assert "a scan would work, hold about " in done.err
    assert " on this machine (estimates from a few rows)." in done.err
