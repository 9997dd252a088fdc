"""Admission of calls to an LLM, under a clock that jumps."""

import asyncio

import pytest

from judge.gate import Gate, TokenBucket, Window, estimate_tokens
from judge.verdict import Failure, Usage
from tests.judge.scripted import LLM, ask, failed, said
from tests.virtual_time import in_virtual_time, now

GOOD = [said(ask("red"), "red")]


def gate(max_concurrent: int = 64, **limits: float) -> Gate:
    return Gate(max_concurrent=max_concurrent, max_rest_s=1800.0, **limits)


async def pass_through(gate: Gate, num_calls: int, seconds: float = 1.0, num_tokens: int = 0, log=None, name=None):
    async with gate.admitted(num_calls, num_tokens) as admission:
        if log is not None:
            log.append((now(), name))
        await asyncio.sleep(seconds)
        admission.settle(Usage(num_calls=num_calls, prompt_tokens=num_tokens), GOOD)


@in_virtual_time
async def test_calls_under_way_stay_below_the_limit_and_groups_go_in_the_order_they_came():
    door, log = gate(8), []
    started = now()
    async with asyncio.TaskGroup() as group:
        for name in range(6):
            group.create_task(pass_through(door, 4, log=log, name=name))
    assert [(at - started, name) for at, name in log] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert door.num_under_way == 0


@in_virtual_time
async def test_a_group_above_the_limit_goes_alone_and_small_ones_behind_it_do_not_starve_it():
    door, log = gate(4), []
    started = now()
    async with asyncio.TaskGroup() as group:
        for name, num_calls in enumerate((2, 16, 1, 1)):
            group.create_task(pass_through(door, num_calls, log=log, name=name))
    assert [(at - started, name) for at, name in log] == [(0, 0), (1, 1), (2, 2), (2, 3)]


def test_calls_that_were_under_way_together_halve_the_window_once_and_success_wins_it_back():
    window = Window(64)
    for _ in range(3):
        window.throttled(0)
    assert window.size == 32
    window.throttled(1)
    assert window.size == 16
    window.succeeded(16)
    assert window.size == 17
    for num_cuts in range(2, 30):
        window.throttled(num_cuts)
    assert window.size == 1, "never below one"
    window.succeeded(10_000)
    assert window.size == 64


@in_virtual_time
async def test_a_call_that_went_out_after_a_cut_may_cut_again_at_once():
    door = gate(64)
    throttled = [failed(Failure.THROTTLED)] * 8
    async with door.admitted(8, 0) as first, door.admitted(8, 0) as second:
        for admission in (first, second):
            admission.settle(Usage(num_calls=8), throttled)
    assert (door.limit, first.num_under_way, second.num_under_way) == (32, 8, 16)
    async with door.admitted(8, 0) as admission:
        admission.settle(Usage(num_calls=8), throttled)
    assert (door.limit, admission.num_under_way) == (16, 8)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, 16),
        ({"max_concurrent": 5}, 5),
        ({"requests_per_minute": 20}, 1),
        ({"requests_per_minute": 5}, 1),
        ({"requests_per_minute": 120}, 6),
        ({"tokens_per_minute": 40_000}, 5),
        ({"tokens_per_minute": 100}, 1),
        ({"requests_per_minute": 120, "tokens_per_minute": 40_000}, 5),
    ],
)
def test_a_group_is_let_through_in_parts_that_no_limit_is_too_small_for(limits, most):
    assert gate(**limits).num_at_once([400] * 16) == most


@in_virtual_time
async def test_a_gate_learns_from_throttled_calls():
    door = gate(64)
    async with door.admitted(8, 0) as admission:
        admission.settle(Usage(num_calls=8), [failed(Failure.THROTTLED)] * 8)
    assert door.limit == 32
    async with door.admitted(8, 0) as admission:
        admission.settle(Usage(num_calls=8), [failed(Failure.UNREACHABLE)] * 8)
    assert door.limit == 32, "a failed call is no reason for more of them"


@pytest.mark.parametrize("group", [1, 3])
@in_virtual_time
async def test_no_minute_sees_more_calls_than_allowed(group):
    door, log = gate(requests_per_minute=120), []
    async with asyncio.TaskGroup() as tasks:
        for name in range(400 // group):
            tasks.create_task(pass_through(door, group, 0.01, log=log, name=name))
    times = [at for at, _ in log]
    most = max(sum(group for other in times if at <= other < at + 60) for at in times)
    assert 100 <= most <= 120
    assert (len(times) - 1) * group / (times[-1] - times[0]) * 60 == pytest.approx(114, rel=0.05), (
        "no slower than need be"
    )


@in_virtual_time
async def test_tokens_are_reserved_and_settled_by_what_was_used():
    door = gate(tokens_per_minute=60_000)
    started = now()
    for _ in range(20):  # each reserves all of a burst and uses nothing: rules decided
        async with door.admitted(1, 3000) as admission:
            admission.settle(Usage(), GOOD)
    assert now() == started
    async with door.admitted(1, 3000) as admission:
        admission.settle(Usage(num_calls=1, prompt_tokens=12_500), GOOD)  # 9,500 more than the bucket held
    async with door.admitted(1, 3000):
        assert now() - started == pytest.approx(12_500 / 950)


@in_virtual_time
async def test_a_lost_call_has_spent_what_it_reserved():
    door = gate(requests_per_minute=60)
    started = now()
    async with door.admitted(3, 0):
        pass
    async with door.admitted(3, 0):
        assert now() - started == pytest.approx(3 / 0.95)


@in_virtual_time
async def test_retry_after_closes_the_gate_for_that_long_but_not_for_ever():
    door = gate()
    started = now()
    async with door.admitted(1, 0) as admission:
        admission.settle(Usage(), [failed(Failure.THROTTLED, retry_after_s=20.0)])
    async with door.admitted(1, 0) as admission:
        assert now() - started == 20
        admission.settle(Usage(), [failed(Failure.THROTTLED, retry_after_s=1e9)])
    async with door.admitted(1, 0):
        assert now() - started == 1820


@pytest.mark.parametrize("num_ticks", range(4))
@in_virtual_time
async def test_whoever_is_cancelled_in_the_moment_the_gate_changes_is_cancelled(num_ticks):
    door = gate(2)
    busy = asyncio.create_task(pass_through(door, 1))
    await asyncio.sleep(0)
    door.rest(600.0)
    waiting = asyncio.create_task(pass_through(door, 1))
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
    door, log = gate(4), []
    inside = asyncio.create_task(pass_through(door, 4, 100.0))
    first, second = (asyncio.create_task(pass_through(door, 4, log=log, name=name)) for name in "ab")
    await asyncio.sleep(1)
    first.cancel()
    inside.cancel()
    await asyncio.wait([inside, first, second])
    assert [name for _, name in log] == ["b"]
    assert log[0][0] == pytest.approx(1001)
    assert door.num_under_way == 0


def test_a_bucket_takes_an_amount_above_its_size_when_it_is_full_and_then_owes_the_rest():
    bucket = TokenBucket(60)  # holds 3, refills 0.95 a second
    assert bucket.wait_s(8, 0.0) == 0
    bucket.take(8, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(6 / 0.95)
    assert bucket.wait_s(8, 0.0) == pytest.approx(8 / 0.95)
    assert bucket.wait_s(8, 8.5) == 0


def test_an_estimate_counts_each_prediction_with_its_question_and_knows_the_caps():
    one, two = (estimate_tokens(ask(*["x" * 30] * n, question="q" * 57), LLM, 2000) for n in (1, 2))
    assert two == 2 * one == 2 * [300 + 16 + 30]
    assert sum(estimate_tokens(ask("x" * 10**6, question="q" * 10**6), LLM, 2000)) < 3000
