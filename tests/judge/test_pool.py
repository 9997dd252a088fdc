"""The client side of the judges against scripted handles."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge import pool as pool_module
from judge.pool import JudgePool, backoff_s
from judge.verdict import GradeReply, JudgeRequest, NoVerdict, Outcome, Verdict

REQUEST = JudgeRequest(question="?", reference="red", predictions=("red", "blue", "red"))


class ScriptedHandle:
    """Takes one step of its script per call; a step is an error to raise or a function of the request."""

    def __init__(self, *script: Exception | Callable[[JudgeRequest], Awaitable[object]]) -> None:
        self.script = list(script)
        self.seen: list[tuple[str, ...]] = []

    async def grade(self, request: JudgeRequest) -> object:
        self.seen.append(request.predictions)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return await step(request)


def reply(*outcomes: Outcome) -> GradeReply:
    return GradeReply(outcomes=outcomes, service_s=0.0)


async def honest(request: JudgeRequest) -> GradeReply:
    return reply(*(Verdict(is_correct=p == request.reference, judge="fake", reason="") for p in request.predictions))


async def half(request: JudgeRequest) -> GradeReply:
    first = (await honest(request)).outcomes[0]
    return reply(first, *[NoVerdict(reason="unsure")] * (len(request.predictions) - 1))


async def hang(request: JudgeRequest) -> object:
    await asyncio.sleep(3600)
    return None


async def too_few(request: JudgeRequest) -> object:
    return reply()


async def prose(request: JudgeRequest) -> object:
    return ["Score: 1"] * len(request.predictions)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", 0.001)


def correctness(outcomes: tuple[Outcome, ...]) -> list[bool | None]:
    return [outcome.is_correct if isinstance(outcome, Verdict) else None for outcome in outcomes]


async def test_outcomes_come_in_the_order_of_the_predictions_and_equal_ones_are_judged_once():
    handle = ScriptedHandle(honest)
    assert correctness(await JudgePool(handle, JudgeConfig()).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red", "blue")]


async def test_a_call_that_fails_twice_is_tried_a_third_time():
    handle = ScriptedHandle(JudgeError("replica died"), JudgeError("replica died"), honest)
    judges = JudgePool(handle, JudgeConfig(max_tries=3))
    assert correctness(await judges.grade(REQUEST)) == [True, False, True]
    counts = judges.counters
    assert (counts.num_groups, counts.num_calls, counts.num_retries, counts.num_unjudged) == (1, 3, 2, 0)


async def test_judges_that_never_reply_give_no_verdict_and_never_a_zero():
    handle = ScriptedHandle(JudgeError("replica died"))
    judges = JudgePool(handle, JudgeConfig(max_tries=4))
    assert await judges.grade(REQUEST) == (NoVerdict(reason="replica died"),) * 3
    assert len(handle.seen) == 4
    assert judges.counters.num_unjudged == 3


async def test_a_hanging_judge_is_left_at_the_deadline():
    judges = JudgePool(ScriptedHandle(hang), JudgeConfig(timeout_s=0.05))
    async with asyncio.timeout(2):
        outcomes = await judges.grade(REQUEST)
    assert outcomes == (NoVerdict(reason="no verdict within 0.05 s"),) * 3
    assert judges.counters.total_s >= 0.05


async def test_all_tries_share_one_deadline():
    judges = JudgePool(ScriptedHandle(JudgeError("busy"), hang), JudgeConfig(timeout_s=0.05, max_tries=1000))
    async with asyncio.timeout(2):
        assert correctness(await judges.grade(REQUEST)) == [None, None, None]


@pytest.mark.parametrize("garbage", [too_few, prose])
async def test_garbage_is_no_verdict_and_is_tried_again(garbage):
    assert correctness(await JudgePool(ScriptedHandle(garbage, honest), JudgeConfig()).grade(REQUEST)) == [
        True,
        False,
        True,
    ]
    outcomes = await JudgePool(ScriptedHandle(garbage), JudgeConfig()).grade(REQUEST)
    assert correctness(outcomes) == [None, None, None]


async def test_verdicts_already_there_are_kept_and_only_the_rest_is_tried_again():
    handle = ScriptedHandle(half, honest)
    assert correctness(await JudgePool(handle, JudgeConfig()).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red", "blue"), ("blue",)]
    handle = ScriptedHandle(half, hang)
    assert correctness(await JudgePool(handle, JudgeConfig(timeout_s=0.05)).grade(REQUEST)) == [True, None, True]


async def test_nothing_to_judge_calls_nobody():
    handle = ScriptedHandle(honest)
    assert await JudgePool(handle, JudgeConfig()).grade(JudgeRequest(question="", reference="", predictions=())) == ()
    assert handle.seen == []


@pytest.mark.parametrize("bug", [KeyError("x"), TimeoutError("of something else")])
async def test_a_bug_is_not_a_missing_verdict(bug):
    with pytest.raises(type(bug)):
        await JudgePool(ScriptedHandle(bug), JudgeConfig()).grade(REQUEST)


async def test_a_cancelled_caller_is_cancelled():
    task = asyncio.create_task(JudgePool(ScriptedHandle(hang), JudgeConfig()).grade(REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_waits_double_up_to_a_limit_and_are_spread(monkeypatch):
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", 0.25)
    assert [backoff_s(n, 1.0) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert backoff_s(1, 0.0) == 0.125
    assert backoff_s(50, 1.0) == pool_module.MAX_BACKOFF_S
