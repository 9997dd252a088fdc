"""What the caller of the judges decides, against scripted handles and under a clock that jumps.

Outages have tests of their own (`test_outages`), and so have limits (`test_limits`).
"""

import asyncio
from dataclasses import replace
from itertools import count

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge import tries
from judge.breaker import PROBE
from judge.pool import JudgePool
from judge.tries import backoff_s
from judge.verdict import Failure, NoVerdict, Usage, Verdict
from tests.judge.scripted import USAGE, Judges, ScriptedHandle, ask, correctness, failed, llm_config, on, reply
from tests.virtual_time import in_virtual_time, now

REQUEST = ask("red", "blue", "red")
RULES = JudgeConfig()


async def honest(request):
    return reply(*(Verdict(is_correct=p == request.reference, judge="rules", reason="") for p in request.predictions))


async def half(request):
    first = (await honest(request)).outcomes[0]
    return reply(first, *[failed(Failure.UNUSABLE)] * (len(request.predictions) - 1))


async def hang(request):
    await asyncio.sleep(3600)
    return None


async def too_few(request):
    return reply()


async def prose(request):
    return ["Score: 1"] * len(request.predictions)


class Store:
    def __init__(self):
        self.kept = {}

    async def get(self, keys):
        await asyncio.sleep(0)
        return {key: self.kept[key] for key in keys if key in self.kept}

    async def put(self, answers):
        await asyncio.sleep(0)
        self.kept |= {answer.key: answer.verdict for answer in answers}


# Tries


@in_virtual_time
async def test_outcomes_come_in_the_order_of_the_predictions_and_equal_ones_are_judged_once():
    handle = ScriptedHandle(honest)
    assert correctness(await JudgePool(handle, RULES).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red", "blue")]


@in_virtual_time
async def test_a_call_that_fails_twice_is_tried_a_third_time():
    handle = ScriptedHandle(JudgeError("replica died"), JudgeError("replica died"), honest)
    judges = JudgePool(handle, JudgeConfig(max_tries=3))
    assert correctness(await judges.grade(REQUEST)) == [True, False, True]
    counts = judges.counters
    assert (counts.num_groups, counts.num_calls, counts.num_retries, counts.num_unjudged) == (1, 3, 2, 0)


@pytest.mark.parametrize("garbage", [too_few, prose])
@in_virtual_time
async def test_garbage_is_no_verdict_and_is_tried_again(garbage):
    assert correctness(await JudgePool(ScriptedHandle(garbage, honest), RULES).grade(REQUEST)) == [True, False, True]
    handle = ScriptedHandle(garbage)
    assert correctness(await JudgePool(handle, RULES).grade(REQUEST)) == [None, None, None]
    assert len(handle.seen) == 3


@in_virtual_time
async def test_verdicts_already_there_are_kept_and_only_the_rest_is_tried_again():
    handle = ScriptedHandle(half, honest)
    assert correctness(await JudgePool(handle, RULES).grade(REQUEST)) == [True, False, True]
    assert handle.seen == [("red", "blue"), ("blue",)]


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
    assert sum("odd" in request.predictions for _, request in handle.calls) == num_tries
    assert PROBE not in [request for _, request in handle.calls]
    assert pool.counters.num_unjudged == 1


@in_virtual_time
async def test_nothing_to_judge_calls_nobody():
    handle = ScriptedHandle(honest)
    assert await JudgePool(handle, RULES).grade(ask()) == ()
    assert handle.seen == []


@pytest.mark.parametrize("bug", [KeyError("x"), TimeoutError("of something else")])
@pytest.mark.parametrize("config", [RULES, llm_config()])
@in_virtual_time
async def test_a_bug_is_not_a_missing_verdict(bug, config):
    with pytest.raises(type(bug)):
        await JudgePool(ScriptedHandle(bug), config).grade(REQUEST)


@pytest.mark.parametrize("config", [RULES, llm_config()])
@in_virtual_time
async def test_a_cancelled_caller_is_cancelled_and_leaves_nothing_behind(config):
    handle = Judges(seconds=100.0)
    pool = JudgePool(handle, config)
    task = asyncio.create_task(pool.grade(REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    handle.seconds = 0.0
    assert correctness(await pool.grade(REQUEST)) == [True, False, True]


def test_waits_double_up_to_a_limit_and_are_spread():
    assert [backoff_s(n, 1.0) for n in (0, 1, 2, 3)] == [0.0, 0.25, 0.5, 1.0]
    assert backoff_s(1, 0.0) == 0.125
    assert backoff_s(50, 1.0) == tries.MAX_BACKOFF_S


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
    odd = await pool.grade(ask("odd"))
    assert odd == (NoVerdict(reason="no verdict within 60 s"),)
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
    assert other.counters.num_calls == 1


@in_virtual_time
async def test_only_what_an_llm_decided_is_kept():
    store = Store()
    by_rules = Verdict(is_correct=True, judge="rules", reason="")
    handle = Judges(on({"red": by_rules, "odd": failed(Failure.REJECTED)}))
    await JudgePool(handle, llm_config(), store=store).grade(ask("red", "odd", "blue"))
    assert [verdict.judge for verdict in store.kept.values()] == ["llm"]
    await JudgePool(Judges(), RULES, store=store).grade(ask("green"))
    assert len(store.kept) == 1


@in_virtual_time
async def test_groups_that_ask_the_same_at_the_same_moment_share_one_call():
    handle = Judges(seconds=1.0)
    pool = JudgePool(handle, llm_config())
    graded = await asyncio.gather(pool.grade(ask("a", "b")), pool.grade(ask("b", "c")), pool.grade(ask("c", "a")))
    assert [correctness(outcomes) for outcomes in graded] == [[False, False]] * 3
    assert sorted(p for _, request in handle.calls for p in request.predictions) == ["a", "b", "c"]
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
async def test_a_canary_is_judged_anew_and_leaves_no_trace_in_store_or_groups():
    store, handle = Store(), Judges()
    pool = JudgePool(handle, llm_config(), store=store, judge_version="v1")
    await pool.grade(ask("red"))
    assert correctness(await pool.grade_anew(ask("red"))) == [True]
    assert correctness(await pool.grade_anew(ask("blue"))) == [False]
    assert len(handle.calls) == 3
    assert len(store.kept) == 1
    assert (pool.counters.num_groups, pool.counters.num_llm_calls) == (1, 3)


# Counters


@in_virtual_time
async def test_usage_is_counted_once_per_reply_and_priced():
    pool = JudgePool(Judges(on({"odd": NoVerdict(reason="?", failure=Failure.UNUSABLE, usage=USAGE)})), llm_config())
    await pool.grade(ask("red", "red", "blue", "odd"))
    counts = pool.counters
    assert (counts.num_calls, counts.num_retries, counts.num_llm_calls) == (3, 2, 5)
    assert (counts.prompt_tokens, counts.reply_tokens) == (500, 25)
    assert counts.cost_usd == pytest.approx((500 * 1.0 + 25 * 10.0) / 1e6)


@in_virtual_time
async def test_the_usage_of_outcomes_adds_up_to_what_was_counted():
    pool = JudgePool(Judges(seconds=1.0), llm_config())
    graded = await asyncio.gather(*(pool.grade(ask("red", "blue", "red", "red")) for _ in range(3)))
    usage = sum((outcome.usage for outcomes in graded for outcome in outcomes), Usage())
    assert usage.num_calls == pool.counters.num_llm_calls == 2
    assert usage.prompt_tokens == pool.counters.prompt_tokens == 2 * USAGE.prompt_tokens


@in_virtual_time
async def test_the_queue_is_what_a_round_trip_took_beyond_the_replicas_own_time():
    class Queued(Judges):
        async def grade(self, request):
            await asyncio.sleep(3.0 if request.predictions == ("a",) else 1.0)
            return await super().grade(request)

    pool = JudgePool(Queued(seconds=2.0), RULES)
    await asyncio.gather(pool.grade(ask("a")), pool.grade(ask("b")))
    counts = pool.counters
    assert (counts.mean_queue_s, counts.mean_s) == (2.0, 4.0)
    await pool.grade(ask("b"))
    since = pool.counters - counts
    assert (since.num_groups, since.mean_queue_s, since.num_replies) == (1, 1.0, 1)
    assert Usage() + USAGE == USAGE
