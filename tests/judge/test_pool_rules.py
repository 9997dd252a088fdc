"""What is decided in the process that asks: by the precheck and the rules, before any cache, limit or LLM."""

import asyncio
from dataclasses import replace

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.pool import JudgePool, local_judges
from judge.verdict import Failure
from tests.judge.scripted import (
    LLM,
    UNDECIDED,
    Judges,
    Rules,
    Store,
    ask,
    correctness,
    failed,
    llm_config,
)
from tests.virtual_time import in_virtual_time, now

REQUEST = ask("red", "blue", "red")
RULES_FIRST = llm_config(chain=("rules", "openai"))


@in_virtual_time
async def test_what_rules_decide_reaches_neither_store_nor_llm():
    handle, store = Judges(), Store()
    pool = JudgePool(handle, RULES_FIRST, store=store, local=[Rules("red", "green")])
    assert correctness(await pool.grade(ask("red", "green", "blue", "red"))) == [True, True, False, True]
    assert [prediction for _, prediction in handle.calls] == ["blue"]
    assert len(store.asked) == len(store.kept) == 1


def away(config):
    return JudgePool(Judges(lambda *_: failed(Failure.UNREACHABLE)), config, local=[Rules("red")])


def limited(config):
    slow = replace(LLM, max_concurrent=1, requests_per_minute=1)
    return JudgePool(Judges(seconds=19.0), replace(config, llm=slow), local=[Rules("red")])


def throttled(config):
    wait = failed(Failure.THROTTLED, retry_after_s=1000.0)
    return JudgePool(Judges(lambda *_: wait), config, local=[Rules("red")])


@pytest.mark.parametrize("troubled", [away, limited, throttled])
@in_virtual_time
async def test_an_llm_in_trouble_holds_up_nothing_that_rules_decide(troubled):
    pool = troubled(RULES_FIRST)
    waiting = [asyncio.create_task(pool.grade(ask("red", f"p{n}"))) for n in range(20)]
    await asyncio.sleep(30)
    started = now()
    for _ in range(100):
        assert correctness(await pool.grade(ask("red"))) == [True]
    assert now() == started
    for task in waiting:
        task.cancel()
    assert await asyncio.gather(*waiting, return_exceptions=True)


@in_virtual_time
async def test_slow_rules_hold_up_no_other_group():
    pool = JudgePool(Judges(), RULES_FIRST, local=[Rules("red", seconds=5.0)])
    started = now()
    await asyncio.gather(*(pool.grade(ask("red")) for _ in range(50)))
    assert now() - started == 5


async def test_rules_alone_need_no_llm_and_what_they_leave_undecided_has_no_verdict():
    pool = JudgePool(None, JudgeConfig())
    assert correctness(await pool.grade(ask("red", "", "red"))) == [True, False, True]
    counts = pool.counters
    assert (counts.num_groups, counts.num_calls, counts.num_unjudged) == (1, 0, 0)
    pool = JudgePool(None, JudgeConfig(), local=[Rules(others=UNDECIDED)])
    assert await pool.grade(ask("red")) == (UNDECIDED,)
    assert pool.counters.num_unjudged == 1


@in_virtual_time
async def test_a_failure_of_the_rules_is_not_handed_on_and_a_bug_in_them_is_none():
    handle, broken = Judges(), failed(Failure.REJECTED, "no reference")
    assert await JudgePool(handle, RULES_FIRST, local=[Rules(others=broken)]).grade(ask("red")) == (broken,)
    assert handle.calls == []

    class Buggy:
        async def grade(self, request):
            raise KeyError("bug")

    with pytest.raises(KeyError):
        await JudgePool(handle, RULES_FIRST, local=[Buggy()]).grade(ask("red"))


@pytest.mark.parametrize(
    ("chain", "local"),
    [
        (("rules",), ["Precheck", "RulesJudge"]),
        (("rules", "openai"), ["Precheck", "RulesJudge"]),
        (("openai",), ["Precheck"]),
    ],
)
def test_all_but_the_llm_judges_in_the_process_that_asks(chain, local):
    config = JudgeConfig(chain=chain, llm=LLMJudgeConfig(model="m"))
    assert [type(judge).__name__ for judge in local_judges(config)] == local


async def test_the_config_says_what_rules_call_right():
    pool = JudgePool(None, JudgeConfig(metric="relaxed"))
    assert correctness(await pool.grade(replace(ask("10.4", "16"), reference="10.0"))) == [True, False]


@in_virtual_time
async def test_each_judge_sees_only_what_the_one_before_left_open_and_order_is_kept():
    first, second, handle = Rules("red"), Rules("crimson"), Judges()
    pool = JudgePool(handle, RULES_FIRST, local=[first, second])
    assert correctness(await pool.grade(ask("crimson", "unsure", "red", "blue"))) == [True, False, True, False]
    assert first.asked == [("crimson", "unsure", "red", "blue")]
    assert second.asked == [("crimson", "unsure", "blue")]
    assert sorted(prediction for _, prediction in handle.calls) == ["blue", "unsure"]
