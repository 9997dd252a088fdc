"""The way of a verdict, against scripted handles and under a clock that jumps.

Rules, outages, limits, lost calls and cold starts have tests of their own.
"""

import asyncio
from dataclasses import replace
from itertools import count

import pytest

from actors.errors import JudgeError
from configs.judges import LLMJudgeConfig
from judge import calls
from judge.calls import Tries
from judge.outages import PROBE
from judge.pool import JudgePool
from judge.verdict import Failure, NoVerdict, Verdict
from tests.judge.scripted import (
    USAGE,
    InProcess,
    Judges,
    Rules,
    ScriptedHandle,
    Store,
    ask,
    correctness,
    failed,
    llm_config,
    on,
    reply,
    said,
)
from tests.virtual_time import in_virtual_time, now

REQUEST = ask("red", "blue", "red")
RULES_FIRST = llm_config(chain=("rules", "openai"))


async def honest(request):
    (prediction,) = request.predictions
    return reply(said(request, prediction))


# Tries


@in_virtual_time
async def test_outcomes_come_in_the_order_of_the_predictions_and_equal_ones_are_judged_once():
    handle = ScriptedHandle(honest)
    assert correctness(await JudgePool(handle, llm_config()).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red",), ("blue",)], "each answer is a call of its own"


@in_virtual_time
async def test_a_call_that_fails_twice_is_tried_a_third_time():
    handle = ScriptedHandle(JudgeError("replica died"), JudgeError("replica died"), honest)
    judges = JudgePool(handle, llm_config(max_tries=3))
    assert correctness(await judges.grade(ask("red"))) == [True]
    counts = judges.counters
    assert (counts.num_groups, counts.num_calls, counts.num_retries, counts.num_unjudged) == (1, 3, 2, 0)


@pytest.mark.parametrize("garbage", [None, [], "1", ["Score: 1"], [said(ask("red"), "red")] * 2])
@in_virtual_time
async def test_garbage_of_a_judge_is_no_verdict_and_is_tried_again(garbage):
    class Garbling:
        def __init__(self, num_times):
            self.left, self.num_asked = num_times, 0

        async def grade(self, request):
            self.left, self.num_asked = self.left - 1, self.num_asked + 1
            return garbage if self.left >= 0 else [said(request, p) for p in request.predictions]

    assert correctness(await JudgePool(InProcess(Garbling(1)), llm_config()).grade(ask("red"))) == [True]
    judge = Garbling(99)
    (outcome,) = await JudgePool(InProcess(judge), llm_config()).grade(ask("red"))
    assert (outcome.failure, judge.num_asked) == (Failure.UNUSABLE, 3)
    assert "judge replied with" in outcome.reason


@in_virtual_time
async def test_verdicts_already_there_are_kept_and_only_the_rest_is_tried_again():
    handle = ScriptedHandle(JudgeError("replica died"), honest)
    assert correctness(await JudgePool(handle, llm_config()).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red",), ("blue",), ("red",)]


@pytest.mark.parametrize(
    ("failure", "num_tries"),
    [(Failure.UNUSABLE, 3), (Failure.REJECTED, 1), (Failure.UNDECIDED, 1), (Failure.UNREACHABLE, 3)],
)
@in_virtual_time
async def test_each_failure_has_its_number_of_tries_while_others_succeed(failure, num_tries):
    handle = Judges(on({"odd": failed(failure)}))
    pool = JudgePool(handle, llm_config())
    others = [pool.grade(ask(f"p{n}")) for n in range(3)]

    async def keep_judging():
        for number in count():
            await pool.grade(ask(f"more {number}"))
            await asyncio.sleep(0.05)

    busy = asyncio.create_task(keep_judging())
    outcomes, *_ = await asyncio.gather(pool.grade(ask("odd", "red")), *others)
    busy.cancel()
    assert correctness(outcomes) == [None, True]
    assert handle.times_asked("odd") == num_tries
    assert handle.times_asked(*PROBE.predictions) == 0
    assert pool.counters.num_unjudged == 1


@in_virtual_time
async def test_nothing_to_judge_calls_nobody():
    handle = ScriptedHandle(honest)
    assert await JudgePool(handle, llm_config()).grade(ask()) == ()
    assert handle.seen == []


@pytest.mark.parametrize("bug", [KeyError("x"), TimeoutError("of something else")])
@in_virtual_time
async def test_a_bug_is_not_a_missing_verdict(bug):
    with pytest.raises(type(bug)):
        await JudgePool(ScriptedHandle(bug), llm_config()).grade(REQUEST)


@in_virtual_time
async def test_a_cancelled_caller_is_cancelled_and_leaves_nothing_behind():
    handle = Judges(seconds=100.0)
    pool = JudgePool(handle, llm_config())
    task = asyncio.create_task(pool.grade(REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert handle.under_way == 0
    handle.seconds = 0.0
    assert correctness(await pool.grade(REQUEST)) == [True, False, True]


def test_waits_double_up_to_a_limit_are_spread_and_end_with_the_time_there_is():
    def pause_s(num_calls, jitter, left_s=60.0):
        return Tries(num_left=1, left_s=left_s, num_calls=num_calls).pause_s(jitter)

    assert [pause_s(n, 1.0) for n in (0, 1, 2, 3)] == [0.0, 0.25, 0.5, 1.0]
    assert pause_s(1, 0.0) == 0.125
    assert pause_s(50, 1.0) == calls.MAX_BACKOFF_S
    assert pause_s(50, 1.0, left_s=2.0) == 2.0


# The deadline


@in_virtual_time
async def test_a_prediction_that_hangs_is_left_at_the_deadline_though_judges_are_there():
    class HangsOnOne(Judges):
        async def grade(self, request):
            if "odd" in request.predictions:
                await asyncio.sleep(10**6)
            return await super().grade(request)

    pool = JudgePool(HangsOnOne(), llm_config(timeout_s=60.0))
    started = now()
    (odd,) = await pool.grade(ask("odd"))
    assert isinstance(odd, NoVerdict)
    assert odd.reason == "no verdict within 60 s"
    assert now() - started == pytest.approx(120), "a second chance, since nobody else was there to ask"


@in_virtual_time
async def test_waiting_for_a_turn_does_not_count_against_the_deadline():
    handle = Judges(seconds=50.0)
    pool = JudgePool(handle, llm_config(timeout_s=60.0, llm=LLMJudgeConfig(model="m", max_concurrent=1)))
    started = now()
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(10)))
    assert now() - started == pytest.approx(500)
    assert [correctness(outcomes) for outcomes in graded] == [[False]] * 10


# Store and shared calls


@in_virtual_time
async def test_a_second_pool_makes_no_call_for_what_the_store_knows():
    store, handle = Store(), Judges()
    first = JudgePool(handle, llm_config(), store=store, judge_version="v1")
    assert correctness(await first.grade(REQUEST)) == [True, False, True]
    second = JudgePool(Judges(), llm_config(), store=store, judge_version="v1")
    assert correctness(await second.grade(REQUEST)) == [True, False, True]
    assert (second.counters.num_calls, second.counters.num_cache_hits, second.counters.cost_usd) == (0, 2, 0.0)
    other = JudgePool(Judges(), llm_config(), store=store, judge_version="v2")
    await other.grade(REQUEST)
    assert (other.counters.num_calls, other.counters.num_cache_hits) == (2, 0)


@in_virtual_time
async def test_only_what_an_llm_decided_is_kept():
    store = Store()
    by_rules = Verdict(is_correct=True, judge="rules", reason="")
    handle = Judges(on({"red": by_rules, "odd": failed(Failure.REJECTED)}))
    await JudgePool(handle, llm_config(), store=store).grade(ask("red", "odd", "blue"))
    assert [verdict.judge for verdict in store.kept.values()] == ["llm"]


@in_virtual_time
async def test_groups_that_ask_the_same_at_the_same_moment_share_one_call():
    handle = Judges(seconds=1.0)
    pool = JudgePool(handle, llm_config())
    graded = await asyncio.gather(pool.grade(ask("a", "b")), pool.grade(ask("b", "c")), pool.grade(ask("c", "a")))
    assert [correctness(outcomes) for outcomes in graded] == [[False, False]] * 3
    assert sorted(prediction for _, prediction in handle.calls) == ["a", "b", "c"]
    assert pool.counters.num_llm_calls == 3


@in_virtual_time
async def test_who_waits_for_anothers_call_asks_itself_when_the_other_leaves_or_fails():
    handle = Judges(seconds=10.0)
    pool = JudgePool(handle, llm_config())
    first, second = asyncio.create_task(pool.grade(ask("red"))), asyncio.create_task(pool.grade(ask("red")))
    await asyncio.sleep(1)
    first.cancel()
    assert correctness(await second) == [True]
    assert len(handle.calls) == 2
    handle = Judges(on({"odd": failed(Failure.UNUSABLE)}), seconds=1.0)
    pool = JudgePool(handle, llm_config())
    assert [correctness(o) for o in await asyncio.gather(*(pool.grade(ask("odd")) for _ in range(2)))] == [[None]] * 2
    assert len(handle.calls) == 6, "three tries each"


@pytest.mark.parametrize("failure", [Failure.REJECTED, Failure.UNDECIDED])
@in_virtual_time
async def test_groups_that_ask_what_is_refused_for_good_share_the_refusal(failure):
    started = now()
    handle = Judges(lambda request, prediction: replace(failed(failure), usage=USAGE), seconds=1.0)
    pool = JudgePool(handle, llm_config())
    graded = await asyncio.gather(*(pool.grade(ask("odd")) for _ in range(32)))
    assert [correctness(outcomes) for outcomes in graded] == [[None]] * 32
    assert (len(handle.calls), now() - started) == (1, 1.0)
    assert sum(outcomes[0].usage.num_calls for outcomes in graded) == pool.counters.num_llm_calls == 1


@in_virtual_time
async def test_a_canary_goes_to_the_llm_past_rules_and_store_and_leaves_no_trace_there_or_in_groups():
    store, handle = Store(), Judges()
    pool = JudgePool(handle, RULES_FIRST, store=store, judge_version="v1", local=[Rules("blue")])
    assert correctness(await pool.grade(ask("red", "blue"))) == [True, True]
    assert correctness([await pool.grade_by_llm(ask(p)) for p in ("red", "blue", "green")]) == [True, False, False]
    assert [prediction for _, prediction in handle.calls] == ["red", "red", "blue", "green"]
    assert len(store.kept) == 1
    assert (pool.counters.num_groups, pool.counters.num_llm_calls) == (1, 4)


# Counters


@in_virtual_time
async def test_usage_is_counted_once_per_reply_and_priced():
    pool = JudgePool(Judges(on({"odd": NoVerdict(reason="?", failure=Failure.UNUSABLE, usage=USAGE)})), llm_config())
    await pool.grade(ask("red", "red", "blue", "odd"))
    counts = pool.counters
    assert (counts.num_calls, counts.num_retries, counts.num_llm_calls) == (5, 2, 5)
    assert (counts.prompt_tokens, counts.reply_tokens) == (500, 25)
    assert counts.cost_usd == pytest.approx((500 * 1.0 + 25 * 10.0) / 1e6)


@in_virtual_time
async def test_the_usage_of_outcomes_adds_up_to_what_was_counted():
    pool = JudgePool(Judges(seconds=1.0), llm_config())
    graded = await asyncio.gather(*(pool.grade(ask("red", "blue", "red", "red")) for _ in range(3)))
    usages = [outcome.usage for outcomes in graded for outcome in outcomes]
    assert sum(usage.num_calls for usage in usages) == pool.counters.num_llm_calls == 2
    assert sum(usage.prompt_tokens for usage in usages) == pool.counters.prompt_tokens == 2 * USAGE.prompt_tokens


@in_virtual_time
async def test_the_queue_is_what_a_round_trip_took_beyond_the_replicas_own_time():
    class Queued(Judges):
        async def grade(self, request):
            await asyncio.sleep(3.0 if request.predictions == ("a",) else 1.0)
            return await super().grade(request)

    pool = JudgePool(Queued(seconds=2.0), llm_config())
    await asyncio.gather(pool.grade(ask("a")), pool.grade(ask("b")))
    counts = pool.counters
    assert (counts.mean_queue_s, counts.mean_s) == (2.0, 4.0)
    await pool.grade(ask("b"))
    since = pool.counters - counts
    assert (since.num_groups, since.mean_queue_s, since.num_replies) == (1, 1.0, 1)
