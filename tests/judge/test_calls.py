"""Calls to the LLM while it is away, sleeps or loses a call, under a clock that jumps."""

import asyncio
import random
from dataclasses import replace

import pytest

from actors.errors import JudgeError
from configs.judges import ClusterJudgeConfig
from judge.calls import MAX_OUTAGES
from judge.limits import most_usage
from judge.outages import PROBE
from judge.pool import JudgePool
from judge.verdict import Failure, NoVerdict, Usage, Verdict
from tests.judge.scripted import (
    USAGE,
    Judges,
    ask,
    correctness,
    down_until,
    failed,
    llm_config,
    on,
    reply,
    said,
)
from tests.virtual_time import in_virtual_time, now


@pytest.mark.parametrize("num_groups", [1, 3, 40])
@pytest.mark.parametrize("failure", [Failure.UNREACHABLE, Failure.THROTTLED, Failure.DENIED])
@in_virtual_time
async def test_an_outage_of_a_minute_loses_nothing(num_groups, failure):
    told = []
    handle = Judges(down_until(now() + 60, failure), seconds=0.2)
    pool = JudgePool(handle, llm_config(timeout_s=10.0), warn=told.append)
    started = now()
    graded = await asyncio.gather(*(pool.grade(ask("red", f"p{n}")) for n in range(num_groups)))
    assert [correctness(outcomes) for outcomes in graded] == [[True, False]] * num_groups
    assert 60 <= now() - started < 75
    assert 55 < pool.counters.paused_s < 75
    assert len(told) == 2
    assert len(handle.calls) < 6 * num_groups + 30, "a handful of calls until it was clear, then probes"


@in_virtual_time
async def test_a_black_hole_is_an_outage_as_well():
    class BlackHole(Judges):
        async def grade(self, request):
            if now() < back_at:
                await asyncio.sleep(10**6)
            return await super().grade(request)

    back_at = now() + 200
    pool = JudgePool(BlackHole(), llm_config(timeout_s=10.0))
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(2)))
    assert [correctness(outcomes) for outcomes in graded] == [[False]] * 2


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_outages_at_random_moments_lose_nothing(seed):
    draw = random.Random(seed)
    began = now()
    outages, at = [], 0.0
    while at < 400:
        at += draw.uniform(0.5, 40)
        outages.append((began + at, began + at + draw.uniform(3, 60)))
        at = outages[-1][1] - began

    def judge(request, prediction):
        is_down = any(start <= now() < end for start, end in outages)
        return failed(Failure.UNREACHABLE) if is_down else said(request, prediction)

    async def later(number):
        await asyncio.sleep(draw.uniform(0, 300))
        return await pool.grade(ask("red", f"p{number}"))

    pool = JudgePool(Judges(judge, seconds=0.7), llm_config())
    graded = await asyncio.gather(*(later(number) for number in range(60)))
    assert [correctness(outcomes) for outcomes in graded] == [[True, False]] * 60


@in_virtual_time
async def test_an_outage_beyond_the_limit_stops_everybody():
    pool = JudgePool(Judges(down_until(float("inf"))), llm_config(max_pause_s=120.0))
    started = now()
    outcomes = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(8)), return_exceptions=True)
    assert all(isinstance(outcome, JudgeError) for outcome in outcomes)
    assert 120 <= now() - started < 135


@in_virtual_time
async def test_a_poisonous_sample_ends_without_a_verdict_even_when_it_is_alone():
    handle = Judges(on({"odd": failed(Failure.UNREACHABLE, "500")}))
    pool = JudgePool(handle, llm_config())
    started = now()
    assert correctness(await pool.grade(ask("odd", "red"))) == [None, True]
    assert correctness(await pool.grade(ask("odd"))) == [None]
    assert now() - started < 5
    assert handle.times_asked("odd") <= 12
    assert pool.counters.paused_s == 0


@in_virtual_time
async def test_a_poisonous_sample_that_waited_out_an_outage_still_ends():
    back_at = now() + 60

    def judge(request, prediction):
        return failed(Failure.UNREACHABLE) if prediction == "odd" else down_until(back_at)(request, prediction)

    pool = JudgePool(Judges(judge, seconds=0.1), llm_config())
    graded = await asyncio.gather(pool.grade(ask("odd")), *(pool.grade(ask(f"p{n}")) for n in range(9)))
    assert [correctness(outcomes) for outcomes in graded] == [[None], *[[False]] * 9]
    assert now() < back_at + 20


@pytest.mark.parametrize("num_others", [0, 20])
@in_virtual_time
async def test_a_sample_that_takes_its_judge_down_each_time_is_given_up(num_others):
    random.seed(3)
    down_until_s, num_crashes = 0.0, 0

    def judge(request, prediction):
        nonlocal down_until_s, num_crashes
        if now() < down_until_s:
            return failed(Failure.UNREACHABLE, "down")
        if prediction == "odd":
            down_until_s, num_crashes = now() + 30, num_crashes + 1
            return failed(Failure.UNREACHABLE, "crashed")
        return said(request, prediction)

    pool = JudgePool(Judges(judge, seconds=0.1), llm_config())
    async with asyncio.timeout(600):
        odd, *others = await asyncio.gather(*(pool.grade(ask(p)) for p in ("odd", *map(str, range(num_others)))))
    assert correctness(odd) == [None]
    assert [correctness(outcomes) for outcomes in others] == [[False]] * num_others
    assert num_crashes <= MAX_OUTAGES


@in_virtual_time
async def test_judges_that_fail_on_every_group_but_answer_probes_do_not_hold_the_run_for_ever():
    handle = Judges(lambda request, p: said(request, p) if request == PROBE else failed(Failure.UNREACHABLE))
    pool = JudgePool(handle, llm_config())
    started = now()
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(40)))
    assert all(correctness(outcomes) == [None] for outcomes in graded)
    assert now() - started < 60


@in_virtual_time
async def test_with_a_tenth_of_the_predictions_failing_for_good_all_others_get_their_verdict():
    draw = random.Random(0)
    handle = Judges(
        lambda request, p: failed(Failure.UNREACHABLE, "500") if p.startswith("bad") else said(request, p), seconds=0.3
    )
    pool = JudgePool(handle, llm_config())
    requests = [
        ask(*(f"{'bad' if draw.random() < 0.1 else 'p'} {n} {i}" for i in range(8)), question=str(n))
        for n in range(300)
    ]
    graded = await asyncio.gather(*(pool.grade(request) for request in requests))
    pairs = [
        pair for r, outcomes in zip(requests, graded, strict=True) for pair in zip(r.predictions, outcomes, strict=True)
    ]
    assert all(isinstance(outcome, NoVerdict) == prediction.startswith("bad") for prediction, outcome in pairs)


@in_virtual_time
async def test_a_verdict_by_rules_does_not_hide_that_the_llm_is_away():
    def judge(request, prediction):
        if prediction == "red":
            return Verdict(is_correct=True, judge="rules", reason="")
        return down_until(back_at)(request, prediction)

    back_at = now() + 60
    pool = JudgePool(Judges(judge, seconds=0.1), llm_config())
    graded = await asyncio.gather(*(pool.grade(ask("red", f"p{n}")) for n in range(20)))
    assert [correctness(outcomes) for outcomes in graded] == [[True, False]] * 20


@in_virtual_time
async def test_a_judge_that_cannot_answer_the_probe_is_back_after_a_blip_all_the_same():
    back_at = now() + 3

    def judge(request, prediction):
        if request == PROBE and now() >= back_at:
            return failed(Failure.UNUSABLE)
        return down_until(back_at)(request, prediction)

    pool = JudgePool(Judges(judge, seconds=0.1), llm_config())
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(8)))
    assert [correctness(outcomes) for outcomes in graded] == [[False]] * 8
    assert now() < back_at + 5


# Lost calls


class LosesFirst(Judges):
    """The first call about each answer brings no reply, in one of the ways that this may happen."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    async def grade(self, request):
        (prediction,) = request.predictions
        if request == PROBE or self.times_asked(prediction):
            return await super().grade(request)
        self.calls.append((now(), prediction))
        return await self.loss()


async def deadline():
    await asyncio.sleep(10**6)


async def replica_lost():
    raise JudgeError("replica died")


async def endpoint_silent():
    return reply(replace(failed(Failure.UNREACHABLE), usage=Usage(num_calls=1, num_lost_calls=1)))


@pytest.mark.parametrize("loss", [deadline, replica_lost, endpoint_silent])
@in_virtual_time
async def test_a_call_that_brings_no_reply_stands_in_the_cost_as_an_estimate(loss):
    config = llm_config(max_tries=2)
    pool = JudgePool(LosesFirst(loss), config)
    (outcome,) = await pool.grade(ask("blue"))
    assert isinstance(outcome, Verdict)
    lost, counts = most_usage(ask("blue"), config), pool.counters
    num_probes = counts.num_calls - 2  # who waits in vain asks whether the judges are there at all
    assert (counts.num_llm_calls, counts.num_lost_calls) == (2 + num_probes, 1)
    assert counts.prompt_tokens == lost.prompt_tokens + (1 + num_probes) * USAGE.prompt_tokens
    prices = config.llm
    expected = counts.prompt_tokens * prices.prompt_price + counts.reply_tokens * prices.reply_price
    assert counts.cost_usd == pytest.approx(expected / 1e6)
    assert counts.reply_tokens == lost.reply_tokens + (1 + num_probes) * USAGE.reply_tokens


@in_virtual_time
async def test_a_call_that_the_endpoint_refused_costs_nothing():
    refused = replace(failed(Failure.UNREACHABLE, "500"), usage=Usage(num_calls=1))
    pool = JudgePool(Judges(on({"odd": refused})), llm_config())
    await asyncio.gather(pool.grade(ask("odd", "red")))
    counts = pool.counters
    assert counts.num_lost_calls == 0
    assert counts.prompt_tokens == USAGE.prompt_tokens * (counts.num_llm_calls - 6)


# An engine that the cluster scaled to none


class Sleeping(Judges):
    """An engine that goes after an idle minute. Calls that it does not hear in time are lost."""

    def __init__(self, start_s: float):
        super().__init__(seconds=0.5)
        self.start_s = start_s
        self.up_until = 0.0
        self.num_starts = 0

    async def wake(self):
        if now() > self.up_until:
            self.num_starts += 1
            await asyncio.sleep(self.start_s)
        self.up_until = now() + 60

    async def grade(self, request):
        if now() > self.up_until:
            await asyncio.sleep(19.0)
            return reply(failed(Failure.UNREACHABLE, "no reply"))
        self.up_until = now() + 60
        return await super().grade(request)


def cluster_config(**settings):
    return llm_config(chain=("cluster",), cluster=ClusterJudgeConfig(downscale_delay_s=60.0), **settings)


@in_virtual_time
async def test_a_cold_engine_is_waited_for_and_is_no_outage():
    engine, told = Sleeping(start_s=200.0), []
    pool = JudgePool(engine, cluster_config(), wake=engine.wake, warn=told.append)
    for step in range(3):
        started = now()
        groups = [ask(*(f"{step} {n} {i}" for i in range(8))) for n in range(10)]
        for outcomes in await asyncio.gather(*map(pool.grade, groups)):
            assert correctness(outcomes) == [False] * 8
        assert now() - started < 202
        assert engine.num_starts == step + 1
        await asyncio.sleep(1000)
    counts = pool.counters
    assert told == []
    assert (counts.num_retries, counts.num_lost_calls, counts.num_unjudged, counts.paused_s) == (0, 0, 0, 0)


@in_virtual_time
async def test_an_engine_that_does_not_wake_up_in_time_stops_the_run_with_its_reason():
    async def wake():
        await asyncio.sleep(900)
        raise JudgeError("was not up within judge.cluster.start_timeout_s")

    pool = JudgePool(Judges(), cluster_config(), wake=wake)
    with pytest.raises(JudgeError, match="start_timeout_s"):
        await pool.grade(ask("red", "blue"))


@in_virtual_time
async def test_who_wakes_an_engine_may_be_cancelled_and_the_next_one_goes_on():
    engine = Sleeping(start_s=100.0)
    pool = JudgePool(engine, cluster_config(), wake=engine.wake)
    first, second = (asyncio.create_task(pool.grade(ask(p))) for p in ("a", "b"))
    await asyncio.sleep(10)
    first.cancel()
    assert correctness(await second) == [False]
    assert first.cancelled()
