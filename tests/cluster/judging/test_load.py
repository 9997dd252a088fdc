"""A load test of the judges' pool: its plan, its figures, its picture, and a real pool under one."""

import asyncio
import time
from dataclasses import replace

import pytest

from cluster.judging.arrivals import CallTrace, Latency, PoolSample, Tally
from cluster.judging.load import LoadTrace, follow_load, plan_load, running_pool
from cluster.judging.load_display import load_table
from cluster.judging.load_plot import plot_load
from cluster.judging.saturation import Saturation, verdicts_per_s
from configs.judges import JudgeConfig
from judge.deployment import count_judges
from judge.verdict import GradeReply, JudgeRequest, Verdict, check_reply


def make_plan(judge=None, *, seconds=10.0, rate=40.0, latency=None, seed=0):
    return plan_load(
        judge or JudgeConfig(),
        group_size=2,
        seconds=seconds,
        rate=rate,
        latency=latency or Latency(median_s=0.5, sigma=0.0),
        burst=1.5,
        seed=seed,
    )


def make_trace(plan):
    return LoadTrace(
        plan=plan,
        calls=(
            CallTrace(sent_s=0.5, done_s=1.1, service_s=0.5, num_verdicts=2),
            CallTrace(sent_s=2.5, done_s=3.4, service_s=0.5, num_verdicts=2),
        ),
        samples=(
            PoolSample(at_s=0.0, num_running=1),
            PoolSample(at_s=3.0, num_running=1, num_starting=3),
            PoolSample(at_s=4.5, num_running=4),
            PoolSample(at_s=9.0, num_running=1),
        ),
        errors=("group 7: JudgeError: gone [/red]",),
        tally=Tally(num_sent=6, lost=2, doubled=0),
    )


def test_the_plan_has_room_beyond_the_right_size_and_one_seed_is_one_plan():
    plan = make_plan()
    assert plan.size_of(plan.phases[1]) == 3  # 40/s of 0.5 s make 20 calls under way, 8 per replica
    assert plan.judge.max_replicas == 6
    assert (plan.busy_from_s, plan.busy_until_s, plan.seconds) == (2.0, 6.0, 10.0)
    assert plan.arrivals == make_plan().arrivals
    assert plan.arrivals != make_plan(seed=1).arrivals


def test_the_rate_by_default_makes_three_replicas_right():
    plan = make_plan(rate=None, latency=Latency(median_s=0.3, sigma=0.7))
    assert plan.size_of(plan.phases[1]) == 3


@pytest.mark.parametrize("setting", [{"seconds": 0.0}, {"rate": -1.0}, {"latency": Latency(median_s=0, sigma=1)}])
def test_a_load_that_cannot_be_is_refused(setting):
    with pytest.raises(ValueError, match="cannot work"):
        make_plan(**setting)


def test_the_figures_say_when_the_size_was_right_and_how_long_calls_waited():
    figures = make_trace(make_plan()).figures()
    assert (figures["right_size"], figures["right_size_s"], figures["overshoot"], figures["release_s"]) == (
        3,
        2.5,
        1,
        3,
    )
    assert figures["queue_wait_p50_s"] == pytest.approx(0.1)
    assert figures["queue_wait_p95_s"] == pytest.approx(0.4)
    assert (figures["lost"], figures["doubled"], figures["replicas_max"], figures["num_verdicts"]) == (2, 0, 4, 4)


def test_saturation_is_the_median_and_the_ratio_that_of_each_round():
    figures = Saturation(grouped=(80.0, 100.0, 60.0), single=(10.0, 20.0, 20.0)).figures()
    assert figures == {"verdicts_per_s": 80.0, "peer_verdicts_per_s": 20.0, "verdicts_ratio": 5.0}


async def test_callers_at_saturation_count_verdicts_not_calls():
    sizes = []

    async def grade(request):
        sizes.append(len(request.predictions))
        await asyncio.sleep(0.01)
        outcomes = tuple(Verdict(is_correct=True, judge="fake", reason="") for _ in request.predictions)
        return GradeReply(outcomes=outcomes, service_s=0.0)

    started = time.monotonic()
    rate = await verdicts_per_s(grade, 8, seconds=0.05)
    assert set(sizes) == {8}
    assert len(sizes) > 64
    assert rate >= 8 * len(sizes) / (time.monotonic() - started), "verdicts that came back were not counted"


def test_the_picture_is_a_png_and_the_table_shows_what_failed(tmp_path):
    trace = make_trace(make_plan())
    plot_load(trace, tmp_path / "new" / "load.png")
    picture = (tmp_path / "new" / "load.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 120_000
    table = load_table(trace, Saturation(grouped=(80.0,), single=(10.0,)))
    assert list(table.columns[0].cells)[-1] == "failed call"
    plot_load(replace(trace, calls=(), samples=()), tmp_path / "empty.png")


@pytest.mark.ray
@pytest.mark.slow
async def test_a_pool_that_grows_and_shrinks_under_load_loses_and_doubles_nothing(local_ray):
    judge = JudgeConfig(min_replicas=1, target_ongoing_requests=2, upscale_delay_s=0.2, downscale_delay_s=1.0)
    trace = await follow_load(make_plan(judge, seconds=20, rate=10, latency=Latency(median_s=0.4, sigma=0.5)))
    assert trace.errors == ()
    assert trace.tally == Tally(num_sent=2 * len(trace.plan.arrivals), lost=0, doubled=0)
    sizes = [sample.num_running for sample in trace.samples]
    assert max(sizes) >= 2
    assert sizes[-1] < max(sizes), "no replica was taken away under load"


@pytest.mark.ray
@pytest.mark.slow
async def test_the_first_call_wakes_a_pool_that_sleeps(local_ray):
    async with running_pool(JudgeConfig(min_replicas=0)) as (handle, name):
        assert count_judges(name) == 0
        reply = check_reply(await handle.grade(JudgeRequest(question="?", reference="red", predictions=("red",))), 1)
        assert [outcome.is_correct for outcome in reply.outcomes] == [True]
