"""The seeded load and what its trace says, against values computed by hand."""

import math
from statistics import fmean, median

import pytest

from cluster.judging.arrivals import (
    CallTrace,
    Latency,
    Phase,
    PoolSample,
    Tally,
    overshoot,
    per_bin,
    plan_arrivals,
    right_size,
    tally,
    time_to_release,
    time_to_size,
)

TRACE = [
    PoolSample(at_s=0.0, num_running=1),
    PoolSample(at_s=10.0, num_running=1),
    PoolSample(at_s=11.0, num_running=1, num_starting=3),
    PoolSample(at_s=13.5, num_running=3, num_starting=1),
    PoolSample(at_s=14.0, num_running=4),
    PoolSample(at_s=25.0, num_running=1),
]


def test_one_seed_is_one_plan_and_another_seed_another():
    phases = (Phase(seconds=5, rate=4), Phase(seconds=5, rate=40))
    assert plan_arrivals(phases, burst=2, seed=1) == plan_arrivals(phases, burst=2, seed=1)
    assert plan_arrivals(phases, burst=2, seed=1) != plan_arrivals(phases, burst=2, seed=2)


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_each_phase_has_its_rate_whatever_the_bursts(burst):
    arrivals = plan_arrivals((Phase(seconds=400, rate=5), Phase(seconds=400, rate=50)), burst=burst, seed=3)
    assert [arrival.group for arrival in arrivals] == list(range(len(arrivals)))
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)
    early = sum(arrival.at_s < 400 for arrival in arrivals)
    assert early / 400 == pytest.approx(5, rel=0.15)
    assert (len(arrivals) - early) / 400 == pytest.approx(50, rel=0.05)
    num_moments = len({arrival.at_s for arrival in arrivals})
    assert len(arrivals) / num_moments == pytest.approx(burst, rel=0.05)


def test_a_phase_without_load_sends_nothing_and_a_burst_below_one_is_refused():
    arrivals = plan_arrivals((Phase(seconds=5, rate=0), Phase(seconds=5, rate=10)), burst=1, seed=0)
    assert all(arrival.at_s >= 5 for arrival in arrivals)
    with pytest.raises(ValueError, match=r"burst=0\.5"):
        plan_arrivals((), burst=0.5, seed=0)


def test_latency_is_log_normal_and_the_same_wherever_it_is_drawn():
    latency = Latency(median_s=0.5, sigma=0.8)
    drawn = [latency.draw(7, group) for group in range(4000)]
    assert drawn == [latency.draw(7, group) for group in range(4000)]
    assert median(drawn) == pytest.approx(0.5, rel=0.05)
    assert latency.mean_s == pytest.approx(0.5 * math.exp(0.32))
    assert fmean(drawn) == pytest.approx(latency.mean_s, rel=0.06)
    assert Latency(median_s=0.2, sigma=0).draw(1, 1) == 0.2


@pytest.mark.parametrize(
    ("rate", "service_s", "target", "size"),
    [(40, 0.5, 8, 3), (48, 0.5, 8, 3), (48.1, 0.5, 8, 4), (0.1, 0.5, 8, 1), (0, 1, 8, 1), (3, 1, 0.5, 6)],
)
def test_the_right_size_follows_littles_law(rate, service_s, target, size):
    assert right_size(rate, service_s, target) == size


def test_a_trace_says_when_the_pool_was_right_and_how_far_it_went_beyond():
    assert time_to_size(TRACE, size=3, since_s=10.0) == 3.5
    assert time_to_size(TRACE, size=1, since_s=10.0) == 0.0
    assert time_to_size(TRACE, size=5, since_s=10.0) is None
    assert time_to_release(TRACE, size=1, since_s=15.0) == 10.0
    assert time_to_release(TRACE, size=0, since_s=15.0) is None
    assert overshoot(TRACE, size=3, since_s=10.0, until_s=20.0) == 1
    assert overshoot(TRACE, size=3, since_s=0.0, until_s=11.0) == 0
    assert overshoot([], size=3, since_s=0.0, until_s=1.0) == 0


def test_a_call_waits_whenever_no_judge_is_at_it():
    assert CallTrace(sent_s=1.0, done_s=2.5, service_s=1.2, num_verdicts=8).wait_s == pytest.approx(0.3)
    assert CallTrace(sent_s=1.0, done_s=2.0, service_s=1.1, num_verdicts=8).wait_s == 0.0


def test_lost_and_doubled_answers_are_counted_one_by_one():
    sent = ["a", "b", "c", "d"]
    judged = [("a", 1), ("b", 2), ("c", 1), ("d", 1)]
    assert tally(sent, ["d", "a", "b", "b"], judged) == Tally(num_sent=4, lost=1, doubled=1)
    assert tally(sent, sent, [("a", 1), ("b", 1), ("c", 3), ("d", 1)]) == Tally(num_sent=4, lost=0, doubled=1)
    assert tally(sent, sent, [(name, 1) for name in sent]) == Tally(num_sent=4, lost=0, doubled=0)


def test_sums_per_second_fall_into_bins():
    assert per_bin([0.0, 0.4, 0.5, 1.9, 2.0], [1, 1, 8, 3, 99], width_s=0.5, end_s=2.0) == [4.0, 16.0, 0.0, 6.0]
