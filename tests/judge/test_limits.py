"""Admission of calls to an LLM, under a clock that jumps."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from judge.limits import Limits, Meter, most_usage
from judge.verdict import Failure, Usage
from tests.judge.scripted import LLM, ask, failed, llm_config, said
from tests.virtual_time import in_virtual_time, now

CALL = Usage(num_calls=1)


def limits(max_concurrent: int = 64, **settings: int) -> Limits:
    return Limits(llm_config(llm=replace(LLM, max_concurrent=max_concurrent, **settings)), warn=lambda text: None)


def done(usage: Usage = CALL):
    return replace(said(ask("red"), "red"), usage=usage)


async def pass_through(door: Limits, seconds: float = 1.0, log=None, name=None):
    async with door.admitted(CALL) as admission:
        if log is not None:
            log.append((now(), name))
        await asyncio.sleep(seconds)
        door.settle(admission, done())


@in_virtual_time
async def test_calls_under_way_stay_below_the_limit_and_go_in_the_order_they_came():
    door, log = limits(2), []
    started = now()
    async with asyncio.TaskGroup() as group:
        for name in range(6):
            group.create_task(pass_through(door, log=log, name=name))
    assert [(at - started, name) for at, name in log] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert door.num_under_way == 0


@in_virtual_time
async def test_the_place_of_a_call_that_ends_is_free_at_once_whatever_the_others_do():
    door, log = limits(2), []
    started = now()
    async with asyncio.TaskGroup() as group:
        group.create_task(pass_through(door, 100.0))
        for name in range(5):
            group.create_task(pass_through(door, log=log, name=name))
    assert [at - started for at, _ in log] == [0, 1, 2, 3, 4]


@in_virtual_time
async def test_calls_that_were_under_way_together_halve_the_limit_once_and_success_wins_it_back():
    door, throttled = limits(64), failed(Failure.THROTTLED)

    async def all_at_once(outcome, num_calls):
        async with contextlib.AsyncExitStack() as calls:
            for admission in [await calls.enter_async_context(door.admitted(CALL)) for _ in range(num_calls)]:
                door.settle(admission, outcome)

    await all_at_once(throttled, 3)
    assert door.limit == 32
    await all_at_once(throttled, 32)
    assert door.limit == 16
    await all_at_once(done(), 16)
    await all_at_once(done(), 2)
    assert door.limit == 17
    for _ in range(30):
        await all_at_once(throttled, 1)
    assert door.limit == 1, "never below one"
    for _ in range(3000):
        await all_at_once(done(), 1)
    assert door.limit == 64


@in_virtual_time
async def test_a_call_that_went_out_after_a_cut_may_cut_again_at_once():
    door = limits(64)
    throttled = failed(Failure.THROTTLED)
    async with door.admitted(CALL) as first, door.admitted(CALL) as second:
        for admission in (first, second):
            door.settle(admission, throttled)
    assert (door.limit, first.num_under_way, second.num_under_way) == (32, 1, 2)
    async with door.admitted(CALL) as admission:
        door.settle(admission, throttled)
    assert (door.limit, admission.num_under_way) == (16, 1)
    async with door.admitted(CALL) as admission:
        door.settle(admission, failed(Failure.UNREACHABLE))
    assert door.limit == 16, "a failed call is no reason for more of them"


@in_virtual_time
async def test_no_minute_sees_more_calls_than_allowed():
    door, log = limits(requests_per_minute=120), []
    async with asyncio.TaskGroup() as tasks:
        for name in range(400):
            tasks.create_task(pass_through(door, 0.01, log=log, name=name))
    times = [at for at, _ in log]
    assert 100 <= max(sum(at <= other < at + 60 for other in times) for at in times) <= 120
    rate = (len(times) - 1) / (times[-1] - times[0]) * 60
    assert rate == pytest.approx(114, rel=0.05), "no slower than need be"


@in_virtual_time
async def test_tokens_are_reserved_and_settled_by_what_was_used():
    door = limits(tokens_per_minute=60_000)
    started = now()
    most = Usage(num_calls=1, prompt_tokens=3000)
    for outcome in [None, done(Usage())] * 10:  # each reserves all of a burst and uses nothing
        async with door.admitted(most) as admission:
            door.settle(admission, outcome)
    assert now() == started
    async with door.admitted(most) as admission:
        door.settle(admission, done(Usage(num_calls=1, prompt_tokens=12_500)))  # 9,500 more than the bucket held
    async with door.admitted(most):
        assert now() - started == pytest.approx(12_500 / 950)


@in_virtual_time
async def test_a_call_that_was_never_settled_has_spent_what_it_reserved():
    door = limits(requests_per_minute=60)
    started = now()
    for _ in range(3):
        async with door.admitted(CALL):
            pass
    async with door.admitted(CALL):
        assert now() - started == pytest.approx(1 / 0.95)


@in_virtual_time
async def test_retry_after_closes_the_gate_for_that_long_but_not_for_ever():
    door = limits()
    started = now()
    async with door.admitted(CALL) as admission:
        door.settle(admission, failed(Failure.THROTTLED, retry_after_s=20.0))
    async with door.admitted(CALL) as admission:
        assert now() - started == 20
        door.settle(admission, failed(Failure.THROTTLED, retry_after_s=1e9))
    async with door.admitted(CALL):
        assert now() - started == 1820


@pytest.mark.parametrize("num_ticks", range(4))
@in_virtual_time
async def test_whoever_is_cancelled_in_the_moment_the_gate_changes_is_cancelled(num_ticks):
    door = limits(2)
    busy = asyncio.create_task(pass_through(door))
    await asyncio.sleep(0)
    door.rest(failed(Failure.THROTTLED, retry_after_s=600.0))
    waiting = asyncio.create_task(pass_through(door))
    await busy
    for _ in range(num_ticks):
        await asyncio.sleep(0)
    waiting.cancel()
    started = now()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert now() == started


@in_virtual_time
async def test_whoever_is_cancelled_at_the_gate_or_behind_it_blocks_nobody():
    door, log = limits(1), []
    inside = asyncio.create_task(pass_through(door, 100.0))
    first, second = (asyncio.create_task(pass_through(door, log=log, name=name)) for name in "ab")
    await asyncio.sleep(1)
    first.cancel()
    inside.cancel()
    await asyncio.wait([inside, first, second])
    assert [name for _, name in log] == ["b"]
    assert log[0][0] == pytest.approx(1001)
    assert door.num_under_way == 0


def test_an_amount_above_a_burst_waits_until_nothing_is_owed_and_is_paid_for_afterwards():
    meter = Meter(60)  # 3 at once, 0.95 a second
    assert meter.wait_s(8, 0.0) == 0
    meter.spend(8, 0.0)
    assert meter.wait_s(1, 0.0) == pytest.approx(6 / 0.95)
    assert meter.wait_s(8, 0.0) == pytest.approx(8 / 0.95)
    assert meter.wait_s(8, 8.5) == 0
    meter.spend(-5, 8.5)
    meter.spend(3, 20.0)
    assert meter.wait_s(1, 20.0) == pytest.approx(1 / 0.95), "what was given back is not saved up"


def test_no_bound_holds_nobody_up():
    meter = Meter(0)
    meter.spend(10**9, 0.0)
    assert meter.wait_s(10**9, 0.0) == 0


def test_what_a_call_may_take_counts_its_texts_and_knows_the_caps():
    config = llm_config()
    usage = most_usage(ask("x" * 30, question="q" * 57), config)
    assert usage == Usage(num_calls=1, prompt_tokens=300 + 30, reply_tokens=16)
    assert most_usage(ask("x" * 10**6, question="q" * 10**6), config).num_tokens < 3000
