"""Calls to an LLM that takes only so many of them, under a clock that jumps."""

import asyncio
import random
from itertools import count

import pytest

from configs.judges import LLMJudgeConfig
from judge.pool import JudgePool
from judge.verdict import Failure
from tests.judge.scripted import (
    USAGE,
    Judges,
    SmallEndpoint,
    ask,
    correctness,
    failed,
    llm_config,
    reply,
    said,
)
from tests.virtual_time import in_virtual_time, now


@in_virtual_time
async def test_a_storm_of_429_is_ridden_out_by_calling_less():
    handle = SmallEndpoint(8, retry_after_s=1.0)
    pool = JudgePool(handle, llm_config())
    graded = await asyncio.gather(*(pool.grade(ask(*(f"{n} {i}" for i in range(4)))) for n in range(60)))
    assert all(correctness(outcomes) == [False] * 4 for outcomes in graded)
    assert pool.counters.num_throttled == handle.num_turned_away
    assert handle.num_turned_away < 200


@pytest.mark.parametrize("most", [1, 2, 4])
@in_virtual_time
async def test_a_group_larger_than_the_limit_is_asked_about_part_by_part(most):
    handle = SmallEndpoint(most)
    pool = JudgePool(handle, llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=most)))
    groups = [ask(*(f"{n} {i}" for i in range(16))) for n in range(10)]
    for outcomes in await asyncio.gather(*map(pool.grade, groups)):
        assert correctness(outcomes) == [False] * 16
    assert handle.most_under_way == most
    assert (pool.counters.num_throttled, pool.counters.num_retries) == (0, 0)


@pytest.mark.parametrize("num_taken", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
@in_virtual_time
async def test_an_endpoint_that_takes_few_calls_at_a_time_costs_no_verdict_while_that_is_learned(num_taken, seed):
    random.seed(seed)
    handle, told = SmallEndpoint(num_taken), []
    pool = JudgePool(handle, llm_config(chain=("openai",)), warn=told.append)
    started = now()
    groups = [ask(*(f"{n} {i}" for i in range(16))) for n in range(20)]
    for outcomes in await asyncio.gather(*map(pool.grade, groups)):
        assert correctness(outcomes) == [False] * 16
    assert now() - started < 1.2 * (320 * 0.5 / num_taken), "little slower than the endpoint is"
    assert handle.num_turned_away < 1.2 * 320, "about one for each verdict at worst: a limit of 1 is tried out again"
    assert told == []


@pytest.mark.parametrize(("max_concurrent", "most_tries"), [(1, 3), (64, 20)])
@in_virtual_time
async def test_a_prediction_that_is_always_turned_away_is_given_up_while_others_are_judged(max_concurrent, most_tries):
    random.seed(3)
    handle = Judges(
        lambda request, p: failed(Failure.THROTTLED, "too long") if p == "odd" else said(request, p), seconds=0.1
    )
    pool = JudgePool(handle, llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=max_concurrent)))

    async def keep_judging():
        for number in count():
            await pool.grade(ask(f"more {number}"))

    busy = asyncio.create_task(keep_judging())
    started = now()
    assert correctness(await pool.grade(ask("odd"))) == [None]
    busy.cancel()
    assert now() - started < 75
    assert handle.times_asked("odd") <= most_tries


@pytest.mark.parametrize(
    ("limits", "most_calls"),
    [({"requests_per_minute": 20}, 20), ({"requests_per_minute": 60}, 60), ({"tokens_per_minute": 10_000}, 30)],
)
@in_virtual_time
async def test_no_minute_sees_more_than_allowed_though_groups_are_larger_than_a_burst(limits, most_calls):
    handle = Judges(seconds=0.2)
    pool = JudgePool(handle, llm_config(llm=LLMJudgeConfig(model="m", **limits)))
    started = now()
    await asyncio.gather(*(pool.grade(ask(*(f"{n} {i}" for i in range(16)))) for n in range(10)))
    for since, _ in handle.calls:
        num_calls = sum(since <= at < since + 60 for at, _ in handle.calls)
        num_tokens = num_calls * (USAGE.prompt_tokens + USAGE.reply_tokens)
        assert num_calls <= limits.get("requests_per_minute", num_calls)
        assert num_tokens <= limits.get("tokens_per_minute", num_tokens)
    assert 160 / (now() - started) * 60 > 0.9 * most_calls, "no slower than need be"


@in_virtual_time
async def test_a_long_rest_that_the_endpoint_asks_for_is_kept_and_told_once():
    told, open_at = [], now() + 120

    def judge(request, prediction):
        rest_s = open_at - now()
        return said(request, prediction) if rest_s <= 0 else failed(Failure.THROTTLED, retry_after_s=rest_s)

    handle = Judges(judge, seconds=0.1)
    pool = JudgePool(
        handle,
        llm_config(timeout_s=10.0, llm=LLMJudgeConfig(model="m", max_concurrent=2, try_timeout_s=9.0)),
        warn=told.append,
    )
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(20)))
    assert [correctness(outcomes) for outcomes in graded] == [[False]] * 20
    assert len(handle.calls) == 22, "two were under way when the endpoint asked"
    assert len(told) == 1
    assert "120 s" in told[0]


@in_virtual_time
async def test_calls_under_way_which_serve_counts_fill_the_limit_and_never_pass_it():
    handle = Judges(seconds=1.0)
    pool = JudgePool(handle, llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=12)))
    await asyncio.gather(*(pool.grade(ask(*(f"{n} {i}" for i in range(4)))) for n in range(20)))
    assert handle.most_under_way == 12


@pytest.mark.parametrize("share_hung", [0.0, 1 / 16], ids=["none hangs", "one of each group hangs"])
@in_virtual_time
async def test_a_step_takes_little_longer_than_its_calls_at_all_places(share_hung):
    """512 groups of 16 at 256 places: a place is free when its call ends, not when the slowest call of a group does."""
    draw, busy_s = random.Random(0), 0.0
    hung = {(str(n), str(draw.randrange(16))) for n in range(512)} if share_hung else set()

    class LogNormal(Judges):
        async def grade(self, request):
            nonlocal busy_s
            (prediction,) = request.predictions
            seconds = draw.lognormvariate(0.0, 0.5)
            if (request.question, prediction) in hung:
                hung.discard((request.question, prediction))
                seconds = 19.0
            busy_s += seconds
            await asyncio.sleep(seconds)
            return reply(failed(Failure.UNREACHABLE) if seconds == 19.0 else said(request, prediction))

    pool = JudgePool(LogNormal(), llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=256)))
    started = now()
    groups = [ask(*map(str, range(16)), question=str(n)) for n in range(512)]
    for outcomes in await asyncio.gather(*map(pool.grade, groups)):
        assert correctness(outcomes) == [False] * 16
    ideal_s, longest_s = busy_s / 256, 19.0 if share_hung else 7.0
    print(f"{now() - started:.1f} s, ideal {ideal_s:.1f} s")
    assert now() - started < ideal_s + longest_s + 1, "the last call begins before the ideal end"
