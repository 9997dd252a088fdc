from types import SimpleNamespace

import pytest

from learner import update
from learner.batches.plan import Workload
from learner.update import UpdateInParts


def step(**figures):
    return {"is_applied": 1.0, "num_tokens": 10.0, "loss": 1.0, "mismatch": 0.1, "mismatch_max": 0.2, **figures}


def test_a_report_counts_all_parts_and_the_seconds_in_them_alone(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(update, "time", SimpleNamespace(monotonic=lambda: clock.now))
    running = UpdateInParts(start_version=4)
    for number, seconds in enumerate((2.0, 3.0)):
        with running.working():
            clock.now += seconds
            running.steps.append(step(loss=float(number)))
        running.workload += Workload(
            num_tokens=100, num_computed=20 + 10 * number, mean_cost=1.0, most_cost=1.0 + number
        )
        clock.now += 100.0  # the next groups are still played
    report = running.report(optimizer_step=6, others={"time/learner_vision_s": 0.5})
    assert (report.start_version, report.optimizer_step, report.num_tokens) == (4, 6, 20)
    assert report.seconds == 5.0
    assert report.metrics["learner/loss"] == 0.5
    assert report.metrics["learner/num_steps"] == 2.0
    assert report.metrics["learner/computed_share"] == pytest.approx(0.25)
    assert report.metrics["learner/rank_imbalance"] == pytest.approx(1.5)
    assert report.metrics["time/learner_vision_s"] == 0.5
