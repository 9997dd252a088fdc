"""A load test of the judges' pool: its plan, its figures, its picture, and a real pool under one."""

import io
import time
from dataclasses import replace
from statistics import fmean, median

import pytest
from rich.console import Console

from cluster.judging.load import DelayedJudge, LoadTrace, follow_load, load_table, plan_load, plot_load, send_groups
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.deployment import PoolSize
from judge.pool import JudgePool
from judge.verdict import grade_one

POOL = JudgeConfig(max_replicas=6, target_ongoing_requests=8.0)


def make_plan(judge=POOL, *, seconds=10.0, rate=None, latency_s=0.5, seed=0):
    return plan_load(judge, group_size=4, seconds=seconds, rate=rate, latency_s=latency_s, seed=seed)


def make_trace(plan):
    sizes = [(0.0, 1, 0), (3.0, 1, 3), (4.5, 4, 0), (9.0, 1, 0)]
    return LoadTrace(
        plan=plan,
        sizes=[(at_s, PoolSize(num_running=up, num_starting=starting)) for at_s, up, starting in sizes],
        waits_s=[0.1, 0.4],
        verdicts_at_s=[1.0, 2.5, 3.0, 5.9, 6.0],
        num_lost=3,
    )


@pytest.mark.parametrize(
    ("rate", "settings", "size"),
    [
        (10, {}, 3),  # 40 answers/s of 0.57 s make 22.7 calls under way, 8 per replica
        (10, {"target_ongoing_requests": 23.0, "max_replicas": 2}, 1),
        (100, {}, 6),
        (10, {"max_replicas": 2}, 2),
        (0.1, {"min_replicas": 2}, 2),
        (10, {"llm": LLMJudgeConfig(requests_per_minute=600)}, 1),
    ],
)
def test_the_right_size_follows_littles_law_within_the_limits_of_the_run(rate, settings, size):
    plan = make_plan(replace(POOL, **settings), rate=rate)
    assert plan.size_at(plan.busy[0]) == size


def test_a_load_without_a_rate_wants_every_replica():
    assert make_plan().size_at(3.0) == 6
    assert make_plan(replace(POOL, max_replicas=2)).size_at(3.0) == 2


def test_a_pool_whose_limits_never_want_all_its_replicas_is_refused_whatever_the_chain():
    with pytest.raises(ValueError, match=r"judge\.max_replicas=6.*judge\.llm\.max_concurrent=32"):
        make_plan(replace(POOL, llm=LLMJudgeConfig(max_concurrent=32)))


def test_groups_come_quiet_busy_and_quiet_again_and_the_same_for_one_seed():
    plan = make_plan(seconds=400, rate=20)
    times = plan.arrivals()
    assert times == sorted(times) == make_plan(seconds=400, rate=20).arrivals()
    assert times != make_plan(seconds=400, rate=20, seed=1).arrivals()
    begin, end = plan.busy
    assert (begin, end) == (80, 240)
    assert sum(begin <= at_s < end for at_s in times) / 160 == pytest.approx(20, rel=0.05)
    assert sum(at_s < begin or at_s >= end for at_s in times) / 240 == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("setting", [{"seconds": 0.0}, {"rate": -1.0}, {"latency_s": float("inf")}])
def test_a_load_that_cannot_be_is_refused(setting):
    with pytest.raises(ValueError, match=r"--\w+ \S+ is invalid: must be above 0"):
        make_plan(**setting)


async def test_the_delayed_judge_takes_log_normal_time_the_same_wherever_it_is_drawn():
    judge = DelayedJudge(median_s=0.5, seed=7)
    drawn = [judge.delay_s(f"answer {number}") for number in range(4000)]
    assert drawn == [DelayedJudge(median_s=0.5, seed=7).delay_s(f"answer {number}") for number in range(4000)]
    assert median(drawn) == pytest.approx(0.5, rel=0.05)
    assert fmean(drawn) == pytest.approx(judge.mean_s, rel=0.05)


async def test_groups_go_through_the_limits_on_calls_and_their_wait_there_counts():
    class Counting:
        def __init__(self, judge):
            self.judge, self.under_way, self.most_under_way = judge, 0, 0

        async def grade(self, request):
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            reply = await grade_one(self.judge, request)
            self.under_way -= 1
            return reply

    waits = []
    for max_concurrent in (2, 64):
        judge = JudgeConfig(max_replicas=1, llm=LLMJudgeConfig(max_concurrent=max_concurrent))
        plan = make_plan(judge, seconds=1.0, rate=15, latency_s=0.05)
        handle, trace = Counting(plan.delayed), LoadTrace(plan=plan)
        await send_groups(JudgePool(handle, plan.judge), trace, time.monotonic())
        assert (len(trace.verdicts_at_s), trace.num_lost) == (4 * len(plan.arrivals()), 0)
        assert (handle.most_under_way == 2) == (max_concurrent == 2)
        waits.append(median(trace.waits_s))
    assert waits[0] > 2 * waits[1]


def test_the_figures_say_when_the_size_was_right_and_how_long_groups_waited():
    figures = make_trace(make_plan(rate=10)).figures()
    assert (figures["right_size"], figures["right_size_s"], figures["release_s"]) == (3, 2.5, 3.0)
    assert (figures["overshoot"], figures["replicas_max"]) == (1, 4)
    assert (figures["wait_p50_s"], figures["wait_p95_s"]) == pytest.approx((0.25, 0.385))
    assert (figures["num_verdicts"], figures["verdicts_per_s"], figures["num_lost"]) == (5, 0.75, 3)
    assert LoadTrace(plan=make_plan()).figures()["right_size_s"] is None


def test_the_picture_is_a_png_and_the_table_fits_80_columns(tmp_path):
    for name, trace in (("load", make_trace(make_plan(rate=10))), ("empty", LoadTrace(plan=make_plan()))):
        plot_load(trace, tmp_path / "new" / f"{name}.png")
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(load_table(trace))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
    assert "never" in text


@pytest.mark.ray
@pytest.mark.slow
async def test_a_pool_grows_and_shrinks_under_load_through_the_limits_of_a_run_and_loses_nothing(local_ray):
    judge = JudgeConfig(max_replicas=3, target_ongoing_requests=4, upscale_delay_s=0.2, downscale_delay_s=1.0)
    trace = await follow_load(make_plan(judge, seconds=25, latency_s=0.4))
    figures = trace.figures()
    assert (figures["num_lost"], figures["num_retries"]) == (0, 0)
    assert figures["num_verdicts"] == 4 * len(trace.plan.arrivals())
    assert figures["replicas_max"] >= 2
    assert trace.sizes[-1][1].num_running < figures["replicas_max"], "no replica was taken away"
