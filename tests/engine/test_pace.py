"""What a scan has in hand, and how long what is left may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ibscan.core.hand import Hand
from ibscan.engine.complete import planned
from ibscan.engine.pace import Pace
from ibscan.engine.request import Silent, requested
from ibscan.engine.run import run


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Heard(Silent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.hands: list[Hand] = []
        self.sentences: list[str] = []

    def notice(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def working(self, hand: Hand) -> None:
        self.hands.append(hand)


@pytest.fixture
def paced(series: Path) -> tuple[Pace, Clock, Heard, Any]:
    plan = planned(requested("scan", [series], {}, ""), Silent())
    clock, heard = Clock(), Heard()
    return Pace(plan, 5, heard, clock), clock, heard, plan


def finished(pace: Pace, clock: Clock, plan: Any, blocks: list[list[int]], seconds: float) -> None:
    """Let every measure of blocks take so many seconds a checkpoint for each that is declared."""
    for block in blocks:
        pace.block([plan.series.checkpoints[k] for k in block])
        for measure in plan.measures:
            pace.measure(measure)
            clock.now += seconds * pace._costs[measure.name] * len(block)
        pace.measure(None)


def test_before_anything_is_finished_what_is_left_is_what_is_declared(paced: Any) -> None:
    pace, _, _, plan = paced
    assert pace.left() == pytest.approx(5 * plan.seconds)


def test_what_is_left_follows_the_seconds_measured(paced: Any) -> None:
    pace, clock, _, plan = paced
    # Much slower than declared, so that what was measured counts in full.
    finished(pace, clock, plan, [[0], [1]], 1e4)
    assert pace.left() == pytest.approx(3 * 1e4 * plan.seconds, rel=0.05)
    finished(pace, clock, plan, [[2, 3], [4]], 1e4)
    assert pace.left() == pytest.approx(0.0)


def test_one_slow_measure_does_not_slow_the_others(paced: Any) -> None:
    pace, clock, _, plan = paced
    for number in range(4):
        pace.block([plan.series.checkpoints[number]])
        for measure in plan.measures:
            pace.measure(measure)
            clock.now += 1000.0 if measure.name == "local_rank" else 100.0
        pace.measure(None)
    assert pace.left() == pytest.approx(1000.0 + 100.0 * (len(plan.measures) - 1), rel=0.05)


def test_what_is_left_moves_while_a_measure_runs_and_grows_where_it_takes_longer_than_it_should(paced: Any) -> None:
    pace, clock, _, plan = paced
    pace.block(plan.series.checkpoints[:1])
    pace.measure(plan.measures[1])
    cost, before = pace._costs[plan.measures[1].name], pace.left()
    clock.now += cost / 2
    assert pace.left() == pytest.approx(before - cost / 2)
    clock.now += 100 * cost
    assert pace.left() > before + 4 * 100 * cost


def test_a_scan_tells_checkpoint_layer_and_measure_in_hand(series: Path) -> None:
    heard = Heard()
    options = {"samples": 16, "tolerance": 0.5, "max_draws": 32, "epochs": "0:3"}
    run(requested("scan", [series], options, ""), heard)
    assert {(hand.place, hand.where) for hand in heard.hands} == {("1-3", "epoch 0-3")}
    layers: dict[str, set[str]] = {}
    for hand in heard.hands:
        layers.setdefault(hand.measure, set()).add(hand.layer)
    assert layers["local_rank"] >= {""}
    for measure in ("mi_network", "mi_readout", "mi_binned", "clustering"):
        assert layers[measure] >= {"0", "2"}, measure
    assert all(hand.left() >= 0 for hand in heard.hands)


def test_a_scan_that_was_interrupted_says_what_it_takes_up(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibscan.engine.scan.LARGEST_BLOCK", 2)

    class Stops(Heard):
        def advanced(self, name: str) -> None:
            if name.startswith("epoch-00001"):
                raise KeyboardInterrupt

    request = requested("cluster", [series], {"output": tmp_path / "r.h5"}, "")
    with pytest.raises(KeyboardInterrupt):
        run(request, Stops())
    heard = Heard()
    run(request, heard)
    taken = [sentence for sentence in heard.sentences if "taken up" in sentence]
    assert taken == ["2 of 5 checkpoints taken up from a scan that was interrupted."]
    assert heard.hands[-1].place == "3"
    again = Heard()
    run(request, again)
    assert not [sentence for sentence in again.sentences if "taken up" in sentence]
