"""Useful time: what counts, and that a run's earlier drivers count too."""

from __future__ import annotations

import pytest

from cluster.records.work import EarlierWork, WorkMeter, earlier_work


def test_useful_time_is_that_of_finished_steps_without_what_was_repeated():
    now = 110.0
    meter = WorkMeter(EarlierWork(), started_at=100.0, clock=lambda: now)
    first = meter.step_done(8.0, lost_s=0.0)
    assert first["run/useful_time"] == pytest.approx(0.8), "start-up is not useful"
    now = 130.0
    second = meter.step_done(20.0, lost_s=5.0)
    assert second["run/useful_time"] == pytest.approx(23 / 30)
    assert second["waste/reform_s"] == 5.0
    now = 140.0
    third = meter.step_done(10.0, lost_s=5.0)
    assert third["waste/reform_s"] == 0.0, "lost seconds count in one step"
    now = 141.0
    assert meter.step_done(1.0, lost_s=60.0)["run/useful_s"] == third["run/useful_s"], "a step is at least useless"


def recorded(num_steps: int) -> list[dict[str, float]]:
    """Steps of 8 of 10 seconds, with an evaluation in between."""
    lines: list[dict[str, float]] = [
        {"step": float(n), "time/step_s": 8.0, "run/useful_s": 8.0 * n, "run/wall_s": 10.0 * n}
        for n in range(1, num_steps + 1)
    ]
    return [*lines, {"step": float(num_steps), "heldout/accuracy": 0.5}]


def test_a_resumed_run_keeps_what_is_kept_and_pays_for_what_is_repeated():
    before = earlier_work(recorded(7), step=5)
    assert before == EarlierWork(useful_s=40.0, wall_s=70.0, repeated_steps=(6, 7))
    meter = WorkMeter(before, started_at=1000.0, clock=lambda: 1010.0)
    assert meter.step_done(8.0, lost_s=0.0)["run/useful_time"] == pytest.approx(48 / 80)


def test_a_run_that_starts_over_keeps_nothing():
    assert earlier_work(recorded(2), step=0) == EarlierWork(wall_s=20.0, repeated_steps=(1, 2))
    assert earlier_work([], step=0) == EarlierWork()
    assert earlier_work([{"step": 3.0, "time/step_s": 1.0}], step=3) == EarlierWork(), "an older version's metrics"
