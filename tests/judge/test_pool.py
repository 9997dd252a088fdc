"""What the caller of the judges decides, against scripted handles and under a clock that jumps."""

import asyncio
import random
from dataclasses import replace
from itertools import count

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge import tries
from judge.asker import MAX_OUTAGES
from judge.breaker import PROBE
from judge.pool import JudgePool
from judge.tries import backoff_s
from judge.verdict import Failure, NoVerdict, Usage, Verdict
from tests.judge.scripted import USAGE, Judges, ScriptedHandle, ask, failed, llm_config, reply, said
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


def correctness(outcomes):
    return [outcome.is_correct if isinstance(outcome, Verdict) else None for outcome in outcomes]


def on(script):
    """A judge function: failures by prediction, honest otherwise."""
    return lambda request, prediction: script.get(prediction) or said(request, prediction)


def down_until(at, failure=Failure.UNREACHABLE):
    return lambda request, prediction: said(request, prediction) if now() >= at else failed(failure, "down")


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


# Outages


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
    assert sum("odd" in request.predictions for _, request in handle.calls) <= 12
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


# Limits


@in_virtual_time
async def test_a_storm_of_429_is_ridden_out_by_calling_less():
    """An endpoint that takes 8 calls at a time and turns the rest away."""
    taken = 0

    class Busy(Judges):
        async def grade(self, request):
            nonlocal taken
            room = max(0, 8 - taken)
            admitted, turned_away = request.predictions[:room], request.predictions[room:]
            self.num_turned_away = getattr(self, "num_turned_away", 0) + len(turned_away)
            taken += len(admitted)
            await asyncio.sleep(0.5 if admitted else 0.01)
            taken -= len(admitted)
            self.calls.append((now(), request))
            return reply(
                *(said(request, p) for p in admitted),
                *(failed(Failure.THROTTLED, "429", retry_after_s=1.0) for _ in turned_away),
            )

    handle = Busy()
    pool = JudgePool(handle, llm_config())
    graded = await asyncio.gather(*(pool.grade(ask(*(f"{n} {i}" for i in range(4)))) for n in range(60)))
    assert all(correctness(outcomes) == [False] * 4 for outcomes in graded)
    assert pool.counters.num_throttled == handle.num_turned_away
    assert handle.num_turned_away < 200


class SmallEndpoint(Judges):
    """Takes so many calls at a time and turns the rest away."""

    def __init__(self, num_taken):
        super().__init__()
        self.num_free = num_taken

    async def grade(self, request):
        self.most_under_way = max(self.most_under_way, len(request.predictions))
        admitted, turned_away = request.predictions[: self.num_free], request.predictions[self.num_free :]
        self.num_free -= len(admitted)
        await asyncio.sleep(0.5)
        self.num_free += len(admitted)
        throttled = failed(Failure.THROTTLED, retry_after_s=1.0)
        return reply(*(said(request, p) for p in admitted), *(throttled for _ in turned_away))


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


@in_virtual_time
async def test_a_limit_below_a_group_is_learned_at_no_more_than_the_cost_of_those_under_way():
    random.seed(3)
    handle = SmallEndpoint(4)
    pool = JudgePool(handle, llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=64)))
    groups = [ask(*(f"{n} {i}" for i in range(16))) for n in range(40)]
    graded = await asyncio.gather(*map(pool.grade, groups))
    assert sum(correctness(outcomes).count(None) for outcomes in graded) <= 64


@in_virtual_time
async def test_a_long_rest_that_the_endpoint_asks_for_is_kept_and_told_once():
    told, open_at = [], now() + 120

    def judge(request, prediction):
        rest_s = open_at - now()
        return said(request, prediction) if rest_s <= 0 else failed(Failure.THROTTLED, retry_after_s=rest_s)

    handle = Judges(judge, seconds=0.1)
    pool = JudgePool(
        handle, llm_config(timeout_s=10.0, llm=LLMJudgeConfig(model="m", max_concurrent=2)), warn=told.append
    )
    graded = await asyncio.gather(*(pool.grade(ask(f"p{n}")) for n in range(20)))
    assert [correctness(outcomes) for outcomes in graded] == [[False]] * 20
    assert len(handle.calls) == 22, "two were under way when the endpoint asked"
    assert len(told) == 1
    assert "120 s" in told[0]


@in_virtual_time
async def test_no_more_llm_calls_are_under_way_than_allowed_and_rules_alone_know_no_limit():
    for config, most in ((llm_config(llm=LLMJudgeConfig(model="m", max_concurrent=12)), 12), (RULES, 80)):
        handle = Judges(seconds=1.0)
        pool = JudgePool(handle, config)
        await asyncio.gather(*(pool.grade(ask(*(f"{n} {i}" for i in range(4)))) for n in range(20)))
        assert handle.most_under_way == most


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
    assert (counts.mean_queue_s, counts.max_queue_s, counts.mean_s) == (2.0, 3.0, 4.0)
    await pool.grade(ask("b"))
    since = pool.counters - counts
    assert (since.num_groups, since.mean_queue_s, since.num_replies) == (1, 1.0, 1)
    assert Usage() + USAGE == USAGE
